"""A console only shows training: whatever happens to it, the run ends as if it were there."""

import pytest
from harness import assert_same

REASONS = {"full": "No space left on device", "gone": "Broken pipe"}


@pytest.mark.parametrize("kind", ["full", "gone", "full:1", "gone:2"])
def test_a_console_that_can_no_longer_be_written_costs_one_warning(kind, bench, tmp_path):
    run = bench.run(tmp_path)
    (ended,) = run.run(FAULT_AT="step:7", FAULT=f"console:{kind}")
    assert ended.code == 0, ended.told()
    run.check()
    assert_same(run, bench.whole())
    log = (run.path / "train.log").read_text()
    told = f"the console cannot be written: {REASONS[kind.partition(':')[0]]}; the run goes on, and train.log has"
    assert log.count(told) == (0 if kind.endswith("2") else 1)
    assert "trained 16 steps" in log
    assert ended.err.count(told) == (1 if kind.endswith("1") else 0), "what still works has it too"


def test_problems_that_nobody_reads_end_with_their_exit_code(bench, tmp_path):
    run = bench.run(tmp_path, "optimizer.lr=1e30", "train.on_nonfinite=stop")
    (ended,) = run.run(FAULT_AT="step:1", FAULT="console:full")
    assert ended.code == 3, ended.told()
