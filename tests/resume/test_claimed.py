"""Only one run uses a run directory: each start decides what to do only after it has locked the directory."""

import json
import shutil
import signal
from pathlib import Path

import yaml
from harness import KILLED, Run, assert_same, wait_until

from trainer_loop.record.checkpoint_files import list_checkpoints, read_run
from trainer_loop.record.run_dir import RunDir


def learning_rates(run: Run) -> set[float]:
    """Return the learning rates in all files of the run directory."""
    run_dir = RunDir(run.path)
    rates = {
        json.loads((path / "manifest.json").read_text())["config"]["optimizer.lr"] for path in list_checkpoints(run_dir)
    }
    rates.add(yaml.safe_load(run_dir.config.read_text())["optimizer"]["lr"])
    rates.add(json.loads((run_dir.model / "trainer_loop.json").read_text())["plan"]["optimizer.lr"])
    rates.add(max(row["lr"] for row in run.rows() if "lr" in row))
    return {round(rate, 3) for rate in rates}


def test_two_runs_that_start_at_the_same_time_never_share_a_new_directory(bench, tmp_path):
    """The second run starts after the first has looked for a checkpoint, and before it writes anything."""
    run, other = bench.run(tmp_path), bench.run(tmp_path, "optimizer.lr=0.9")
    mark = tmp_path / "looked"
    (first,) = run.start(FAULT_AT="restored", FAULT=f"hang:{mark}")
    wait_until(mark.exists, what="the first has looked")
    (second,) = other.run(CLAIM_SECONDS="0.5")
    assert second.code == 2, second.describe()
    assert f"run_dir: run is in use by process {first.pid} on " in second.problems[0]
    first.send(signal.SIGKILL)
    assert first.wait().code == KILLED
    assert "resumed" not in other.finish()
    assert learning_rates(other) == {0.9}
    assert len({read_run(path) for path in list_checkpoints(RunDir(run.path))}) == 1


def test_a_run_that_waits_for_another_sees_its_result(bench, tmp_path):
    run, other = bench.run(tmp_path), bench.run(tmp_path, "optimizer.lr=0.9")
    processes = [*run.start(), *other.start(CLAIM_SECONDS="60")]
    ended = [process.wait() for process in processes]
    assert sorted(process.code for process in ended) == [0, 2], ended[0].describe() + ended[1].describe()
    (refused,) = [process for process in ended if process.code == 2]
    assert "is complete, so this has no effect: optimizer.lr was" in refused.problems[0]
    assert len(learning_rates(run)) == 1


def test_a_run_whose_directory_now_belongs_to_another_ends_without_writing(bench, tmp_path):
    """The directory is deleted and another run starts in it while the first still trains."""
    run, other = bench.run(tmp_path), bench.run(tmp_path / "other")
    other.finish()
    source = other.path
    before = {path: path.read_bytes() for path in source.rglob("*") if path.is_file()}
    (ended,) = run.run(FAULT_AT="step:7", FAULT=f"shell:sh -c 'rm -r {run.path} && mv {source} {run.path}'")
    assert ended.code == 2, ended.describe()
    assert "run_dir: another run has begun in run, and this one ends without writing there" in ended.problems[0]
    changed = {"metrics.jsonl", "train.log"}  # the run notices at its next save
    for path, content in before.items():
        if path.name not in changed:
            assert (run.path / path.relative_to(source)).read_bytes() == content, path
    saved = {path.relative_to(source).parent.name for path in before if path.name == "manifest.json"}
    assert {path.name for path in list_checkpoints(RunDir(run.path))} == saved != set()


def test_a_copy_with_folders_instead_of_links_resumes_like_the_original(bench, tmp_path):
    run = bench.run(tmp_path)
    run.kill_at("step:13")
    moved = Path(shutil.move(run.path, tmp_path / "moved"))
    shutil.copytree(moved, run.path, symlinks=False)
    (ended,) = run.run()
    assert ended.code == 0, ended.describe()
    assert ended.warnings == []
    assert_same(run, bench.whole())
