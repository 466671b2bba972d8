"""One run in a run directory: what is read there to decide is read when nobody else can change it."""

import json
import shutil
import signal
from pathlib import Path

import yaml
from harness import KILLED, Run, assert_same, wait_until

from trainer_loop.record.checkpoint_files import list_checkpoints, read_run
from trainer_loop.record.run_dir import RunDir


def learning_rates(run: Run) -> set[float]:
    """Of everything that the run directory holds."""
    run_dir = RunDir(run.path)
    rates = {
        json.loads((path / "manifest.json").read_text())["config"]["optimizer.lr"] for path in list_checkpoints(run_dir)
    }
    rates.add(yaml.safe_load(run_dir.config.read_text())["optimizer"]["lr"])
    rates.add(json.loads((run_dir.model / "trainer_loop.json").read_text())["plan"]["optimizer.lr"])
    rates.add(max(row["lr"] for row in run.rows() if "lr" in row))
    return {round(rate, 3) for rate in rates}


def test_two_that_begin_at_the_same_moment_never_share_a_new_directory(bench, tmp_path):
    """The second one begins when the first has looked for a checkpoint, and has written nothing."""
    run, other = bench.run(tmp_path), bench.run(tmp_path, "optimizer.lr=0.9")
    mark = tmp_path / "looked"
    (first,) = run.start(FAULT_AT="restored", FAULT=f"hang:{mark}")
    wait_until(mark.exists, what="the first has looked")
    (second,) = other.run(CLAIM_SECONDS="0.5")
    assert second.code == 2, second.told()
    assert f"run_dir: run is in use by process {first.pid} on " in second.problems[0]
    first.send(signal.SIGKILL)
    assert first.wait().code == KILLED
    assert "resumed" not in other.finish()
    assert learning_rates(other) == {0.9}
    assert len({read_run(path) for path in list_checkpoints(RunDir(run.path))}) == 1


def test_one_that_waited_sees_what_the_other_has_done_meanwhile(bench, tmp_path):
    run, other = bench.run(tmp_path), bench.run(tmp_path, "optimizer.lr=0.9")
    processes = [*run.start(), *other.start(CLAIM_SECONDS="60")]
    ended = [process.wait() for process in processes]
    assert sorted(process.code for process in ended) == [0, 2], ended[0].told() + ended[1].told()
    (refused,) = [process for process in ended if process.code == 2]
    assert "is complete, so this has no effect: optimizer.lr was" in refused.problems[0]
    assert len(learning_rates(run)) == 1


def test_a_run_whose_directory_another_has_taken_over_ends_without_writing_there(bench, tmp_path):
    """Its directory is removed, and the command is given anew, while it still trains."""
    run, other = bench.run(tmp_path), bench.run(tmp_path / "other")
    other.finish()
    taken = other.path
    before = {path: path.read_bytes() for path in taken.rglob("*") if path.is_file()}
    (ended,) = run.run(FAULT_AT="step:7", FAULT=f"shell:sh -c 'rm -r {run.path} && mv {taken} {run.path}'")
    assert ended.code == 2, ended.told()
    assert "run_dir: another run has begun in run, and this one ends without writing there" in ended.problems[0]
    changed = {"metrics.jsonl", "train.log"}  # until its next save it could not know
    for path, content in before.items():
        if path.name not in changed:
            assert (run.path / path.relative_to(taken)).read_bytes() == content, path
    saved = {path.relative_to(taken).parent.name for path in before if path.name == "manifest.json"}
    assert {path.name for path in list_checkpoints(RunDir(run.path))} == saved != set()


def test_a_copy_in_which_links_became_folders_goes_on_as_the_run_itself(bench, tmp_path):
    run = bench.run(tmp_path)
    run.kill_at("step:13")
    moved = Path(shutil.move(run.path, tmp_path / "moved"))
    shutil.copytree(moved, run.path, symlinks=False)
    (ended,) = run.run()
    assert ended.code == 0, ended.told()
    assert ended.warnings == []
    assert_same(run, bench.whole())
