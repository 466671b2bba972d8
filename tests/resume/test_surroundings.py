"""A full, read-only or missing disk and a clock that is set back: the run reports it and keeps its checkpoints."""

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import Ended, Run, assert_same


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """The run directory `run` in tmp_path, mounted as a file system of 5 MB."""
    directory = tmp_path / "run"
    directory.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=5m", "tmpfs", str(directory)]
    result = subprocess.run(mount, capture_output=True, text=True)
    if result.returncode != 0:
        pytest.skip(f"no file system can be mounted, which root may: {result.stderr.strip()}")
    yield directory
    while directory.is_mount():
        subprocess.run(["umount", "--lazy", str(directory)], check=True)


def assert_survived(ended: Ended, run: Run, *, code: int) -> str:
    """Check that the run trained to its last step although saves failed. Returns its last warning on checkpoints."""
    assert ended.code == code, ended.describe()
    assert "Traceback" not in ended.err, ended.describe()
    assert "trained 16 steps" in ended.out
    saves = [warning for warning in ended.warnings if warning.startswith("the checkpoint of step")]
    assert len(saves) == 1, "reported once, until a save succeeds again"
    assert "training goes on" in saves[0]
    others = [warning for warning in ended.warnings if not warning.startswith("run/train.log cannot be written")]
    assert others[-1].startswith("the last checkpoint is missing: ")
    assert not [path.name for path in run.path.rglob(".*") if path.is_dir()], "partly written files are left"
    run.check()
    return others[-1]


def test_a_disk_with_room_for_the_model_and_for_no_checkpoint(small_disk, bench, tmp_path):
    run = bench.run(tmp_path, "checkpoint.best=null", "report=false")
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(shutil.disk_usage(small_disk).free - 120_000))
    (ended,) = run.run()
    assert "there is none yet" in assert_survived(ended, run, code=0)
    whole = bench.whole("checkpoint.best=null")
    assert run.rows() == whole.rows
    assert (run.path / "model" / "model.safetensors").read_bytes() == whole.model["model.safetensors"]


@pytest.mark.parametrize("case", [(), ("checkpoint.background=true",)])
def test_a_disk_that_is_full_in_mid_run(case, small_disk, bench, tmp_path):
    run = bench.run(tmp_path, *case)
    ballast = small_disk / "ballast"
    (ended,) = run.run(FAULT_AT="step:7", FAULT=f"shell:sh -c 'cat /dev/zero 2>/dev/null >{ballast} || true'")
    assert "the newest is step-00000006" in assert_survived(ended, run, code=2)
    (line,) = ended.err.splitlines()
    assert line.startswith("error: run/model could not be written: No space left on device")
    ballast.unlink()
    assert "resumed at step 6 of 16" in run.finish()
    assert_same(run, bench.whole(*case))


def test_a_disk_that_is_read_only_in_mid_run(small_disk, bench, tmp_path):
    run = bench.run(tmp_path)
    # Mount a second time: a mount with a file open for writing cannot become read-only.
    over = f"mount --bind {small_disk} {small_disk} && mount -o remount,bind,ro {small_disk}"
    (ended,) = run.run(FAULT_AT="step:7", FAULT=f"shell:sh -c '{over}'")
    assert_survived(ended, run, code=2)
    (line,) = ended.err.splitlines()
    assert line.startswith("error: run/model could not be written: Read-only file system")
    subprocess.run(["umount", str(small_disk)], check=True)
    assert "resumed at step 6 of 16" in run.finish()
    assert_same(run, bench.whole())


def test_a_run_directory_that_is_removed_in_mid_run(bench, tmp_path):
    whole = bench.whole()
    run = bench.run(tmp_path)
    (ended,) = run.run(FAULT_AT="step:7", FAULT=f"shell:rm -r {run.path}")
    assert ended.code == 0, ended.describe()
    assert ended.err == ""
    assert not ended.warnings, "saving step 8 creates the directory again"
    run.check()
    assert run.rows() == [row for row in whole.rows if row["step"] > 7]
    assert (run.path / "model" / "model.safetensors").read_bytes() == whole.model["model.safetensors"]


def test_a_clock_that_is_set_back(bench, tmp_path):
    run = bench.run(tmp_path)
    run.finish(FAULT_AT="step:7", FAULT="clock:-1000000")
    assert_same(run, bench.whole())
