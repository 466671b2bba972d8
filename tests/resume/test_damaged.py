"""A damaged checkpoint is reported with its fault and set aside, and the run resumes from the one before."""

import io
import shutil
from pathlib import Path

import pytest
from harness import SHARDED, Bench, Run, assert_same

from trainer_loop.record.checkpoint_choice import choose_checkpoint
from trainer_loop.record.logs import Console
from trainer_loop.record.run_dir import RunDir

OPTIONS = ("ema.decay=0.9", "checkpoint.keep_last=3")
FILES = [
    "averages.safetensors",
    "manifest.json",
    "model.safetensors",
    "optimizer.bin",
    "scheduler.bin",
    "state.json",
]


PARTS = ["part-00001-of-00002.safetensors", "part-00002-of-00002.safetensors"]
SHARDED_FILES = ["manifest.json", "optimizer.bin", *PARTS, "parts.json", "scheduler.bin", "state.json"]


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


DAMAGES = {
    "truncated": (truncate, "{file} has "),
    "deleted": (Path.unlink, "{file} is missing"),
    "flipped": (flip, "{file} was altered"),
}


@pytest.fixture(scope="module")
def killed(bench: Bench, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run that was killed when only the export was left to do."""
    run = bench.run(tmp_path_factory.mktemp("killed"), *OPTIONS)
    run.kill_at("half_export")
    assert sorted(run.checkpoints()) == [3, 12, 14, 16], "the best, and the newest three"
    assert sorted(file.name for file in (run.path / "checkpoints" / "step-00000016").iterdir()) == FILES
    return run


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("file", FILES)
def test_each_file_of_the_newest(file, damage, killed, bench, tmp_path):
    whole = bench.whole(*OPTIONS)
    run = bench.run(tmp_path, *OPTIONS)
    shutil.copytree(killed.path, run.path, symlinks=True)
    inflict, what = DAMAGES[damage]
    newest = run.path / "checkpoints" / "step-00000016"
    inflict(newest / file)

    (ended,) = run.run()
    assert ended.code == 0, ended.describe()
    (warning,) = ended.warnings
    what = "manifest.json is missing or damaged" if file == "manifest.json" else what.format(file=file)
    assert warning.startswith(f"run/checkpoints/step-00000016: {what}")
    assert warning.endswith("it is set aside as step-00000016.damaged")
    assert "resumed at step 14 of 16" in ended.out
    shutil.rmtree(newest.with_name("step-00000016.damaged"))
    assert_same(run, whole)


@pytest.fixture(scope="module")
def killed_with_shards(bench: Bench, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The same for two processes, each of which has written its part."""
    run = bench.run(tmp_path_factory.mktemp("killed_with_shards"), *SHARDED["full"], num_processes=2)
    run.kill_at("half_export")
    assert sorted(file.name for file in (run.path / "checkpoints" / "step-00000016").iterdir()) == SHARDED_FILES
    return run


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("file", SHARDED_FILES)
def test_each_file_of_the_newest_that_several_processes_wrote(file, damage, killed_with_shards, tmp_path):
    shutil.copytree(killed_with_shards.path, tmp_path / "run", symlinks=True)
    inflict, what = DAMAGES[damage]
    checkpoints = tmp_path / "run" / "checkpoints"
    inflict(checkpoints / "step-00000016" / file)
    stream = io.StringIO()
    chosen = choose_checkpoint(RunDir(tmp_path / "run"), "auto", Console(stream=stream))
    assert chosen == checkpoints / "step-00000014"
    what = "manifest.json is missing or damaged" if file == "manifest.json" else what.format(file=file)
    assert stream.getvalue().startswith(f"warning: {checkpoints / 'step-00000016'}: {what}")


def test_a_sharded_run_resumes_from_the_checkpoint_before(killed_with_shards, bench, tmp_path):
    run = bench.run(tmp_path, *SHARDED["full"], num_processes=2)
    shutil.copytree(killed_with_shards.path, run.path, symlinks=True)
    flip(run.path / "checkpoints" / "step-00000016" / PARTS[1])
    assert "resumed at step 14 of 16" in run.finish()
    shutil.rmtree(run.path / "checkpoints" / "step-00000016.damaged")
    assert_same(run, bench.whole(*SHARDED["full"], num_processes=2))


def test_a_damaged_checkpoint_that_is_newest_and_best(bench, tmp_path):
    whole = bench.whole()
    run = bench.run(tmp_path)
    run.kill_at("step:13")
    newest = run.path / "checkpoints" / "step-00000012"
    assert (run.path / "checkpoints" / "best").resolve() == newest.resolve()
    flip(newest / "model.safetensors")
    (ended,) = run.run()
    assert ended.code == 0, ended.describe()
    assert "resumed at step 10 of 16" in ended.out
    shutil.rmtree(newest.with_name("step-00000012.damaged"))
    assert_same(run, whole)


@pytest.mark.parametrize(
    ("file", "damage"), [*((file, "truncated") for file in FILES), ("state.json", "deleted"), ("state.json", "flipped")]
)
def test_a_damaged_checkpoint_named_in_resume_is_refused_in_one_line(file, damage, killed, bench, tmp_path):
    damaged = tmp_path / "run" / "checkpoints" / "step-00000016"
    shutil.copytree(killed.path / "checkpoints" / damaged.name, damaged)
    inflict, what = DAMAGES[damage]
    inflict(damaged / file)
    run = bench.run(tmp_path / "branch", *OPTIONS, f"resume={damaged}")
    (ended,) = run.run()
    assert ended.code == 2, ended.describe()
    what = "manifest.json is missing or damaged" if file == "manifest.json" else what.format(file=file)
    (line,) = ended.err.splitlines()
    assert line.startswith(f"error: resume: {damaged}: {what}")
    assert not run.path.exists()
    assert damaged.is_dir(), "it belongs to another run and is left unchanged"
