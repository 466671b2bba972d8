import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from trainer_loop import UserError
from trainer_loop.errors import Preempted
from trainer_loop.record.run_dir import RunDir
from trainer_loop.search.runs import Watch, read_ending, run_to_end


def make_watch(lines: list[str], *, stop_at: int = 0, should_stop: bool = False) -> Watch:
    return Watch("accuracy", lambda number, _: number == stop_at, lambda: should_stop, lines.append, poll_seconds=0.2)


def shell(root: Path, *lines: str) -> Sequence[str]:
    return ["sh", "-c", f"cd {root}; echo x >> starts; {'; '.join(lines)}"]


@pytest.mark.parametrize(
    ("status", "code", "output", "how"),
    [
        (0, 0, "", "finished"),
        (0, 1, "launcher: its processes ended with 0", "finished"),
        (3, 3, "error: step 9: the loss is nan", "diverged"),
        (3, 1, "process 1: error: step 9: the loss is nan", "diverged"),
        (2, 2, "error: batch.size: 7 is odd", "refused"),
        (None, 2, "error: config=a.yaml is not there", "refused"),
        (2, 2, "error: step 3: out of memory with one row a microbatch", "out of memory"),
        (1, 1, "Traceback\ntorch.OutOfMemoryError: CUDA out of memory", "out of memory"),
        (1, 1, "Traceback\nKeyError: 'a'", "error"),
        (75, 1, "preempted", None),
        (4, 1, "error: process 1 is lost", None),
        (None, -9, "", None),
        (None, 1, "", None),
        (None, 2, "error: run_dir: r is in use by process 7 on here; wait for it", None),
    ],
)
def test_the_ending_of_a_run_is_read_from_its_files(status, code, output, how, tmp_path: Path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "trainer_loop.json").write_text(json.dumps({"metrics": {"accuracy": 0.5}}))
    (tmp_path / "output.txt").write_text(output)
    if status is not None:
        (tmp_path / "status.json").write_text(json.dumps({"exit_code": status}))
    ending = read_ending(RunDir(tmp_path), code, "accuracy")
    assert (ending and ending.how) == how
    assert ending is None or ending.value == (0.5 if how == "finished" else None)
    assert how in (None, "finished") or ending.reason == output.rpartition("\n")[2].rpartition("error: ")[2]


@pytest.mark.parametrize("value", ["NaN", "Infinity", "null", '"high"'])
def test_a_metric_that_is_not_finite_is_no_value(value: str, tmp_path: Path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "trainer_loop.json").write_text(f'{{"metrics": {{"accuracy": {value}}}}}')
    assert read_ending(RunDir(tmp_path), 0, "accuracy").how == "diverged"


def test_a_run_that_ends_before_it_is_checked_is_pruned_too(tmp_path: Path):
    rows = "".join(json.dumps({"step": step, "validation/accuracy": step / 10}) + "\\n" for step in (1, 2, 3))
    ending = run_to_end(shell(tmp_path, f"printf '{rows}' > metrics.jsonl"), tmp_path, make_watch([], stop_at=2))
    assert (ending.how, ending.reason, ending.value) == ("pruned", "at evaluation 2", 0.2)


def test_a_run_without_progress_is_given_up_and_one_with_progress_is_not(tmp_path: Path):
    lines: list[str] = []
    ending = run_to_end(shell(tmp_path, "exit 75"), tmp_path, make_watch(lines))
    assert (ending.how, ending.reason) == ("error", "started 4 times without progress: exit code 75")
    assert len(lines) == 3
    (tmp_path / "starts").unlink()
    progressing = (
        """printf '{"step": %d}\\n' $(wc -l < starts) >> metrics.jsonl; test $(wc -l < starts) -gt 6 || exit 75"""
    )
    assert (
        run_to_end(shell(tmp_path, progressing), tmp_path, make_watch(lines)).how == "diverged"
    )  # it exported nothing
    assert (tmp_path / "starts").read_text().count("x") == 7


def test_a_search_that_must_stop_stops_its_run_first(tmp_path: Path):
    with pytest.raises(Preempted):
        run_to_end(["sleep", "60"], tmp_path, make_watch([], should_stop=True))
    with pytest.raises(UserError, match=r"search.launch: no_such_launcher cannot be started: No such file"):
        run_to_end(["no_such_launcher"], tmp_path, make_watch([]))
