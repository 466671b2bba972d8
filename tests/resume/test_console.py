"""The console only shows training: if it breaks, the run ends as usual."""

import pytest
from harness import assert_same

REASONS = {"full": "No space left on device", "gone": "Broken pipe"}


@pytest.mark.parametrize("kind", ["full", "gone", "full:1", "gone:2"])
def test_a_broken_console_causes_one_warning(kind, bench, tmp_path):
    run = bench.run(tmp_path)
    (ended,) = run.run(FAULT_AT="step:7", FAULT=f"console:{kind}")
    assert ended.code == 0, ended.describe()
    run.check()
    assert_same(run, bench.whole())
    log = (run.path / "train.log").read_text()
    message = f"the console cannot be written: {REASONS[kind.partition(':')[0]]}; the run goes on, and train.log has"
    assert log.count(message) == (0 if kind.endswith("2") else 1)
    assert "trained 16 steps" in log
    assert ended.err.count(message) == (1 if kind.endswith("1") else 0), "the stream that still works shows it too"


def test_an_error_keeps_its_exit_code_without_a_console(bench, tmp_path):
    run = bench.run(tmp_path, "optimizer.lr=1e30", "train.on_nonfinite=stop")
    (ended,) = run.run(FAULT_AT="step:1", FAULT="console:full")
    assert ended.code == 3, ended.describe()
