"""Two processes never train in one run directory, and status.json says how the last command ended."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from trainer_loop import UserError
from trainer_loop.record import run_lock as claim
from trainer_loop.record.run_dir import RunDir
from trainer_loop.record.run_lock import RunDirInUse, RunLock

_TAKE_AND_WAIT = """
import sys
from trainer_loop.record import run_lock as claim
from trainer_loop.record.run_dir import RunDir
claim._SECONDS_TO_WAIT = 0.1
mine = claim.RunLock(RunDir(sys.argv[1]), enabled=True)
mine.acquire()
print("taken", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def other(tmp_path):
    """A process that holds the lock of tmp_path."""
    with subprocess.Popen(
        [sys.executable, "-c", _TAKE_AND_WAIT, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "taken\n"
        yield process
        process.kill()


def test_a_directory_in_use_is_refused_and_the_message_names_the_process(other, tmp_path, monkeypatch):
    monkeypatch.setattr(claim, "_SECONDS_TO_WAIT", 0.1)
    with pytest.raises(RunDirInUse, match=f"is in use by process {other.pid} on "):
        RunLock(RunDir(tmp_path), enabled=True).acquire()


def test_a_directory_is_free_when_its_process_is_killed(other, tmp_path):
    other.kill()
    mine = RunLock(RunDir(tmp_path), enabled=True)
    mine.acquire()
    command = [sys.executable, "-c", _TAKE_AND_WAIT, str(tmp_path)]
    third = subprocess.run(command, capture_output=True, text=True, check=False)
    assert f"is in use by process {os.getpid()} on " in third.stderr
    mine.release()


def test_a_missing_directory_is_not_created(tmp_path):
    mine = RunLock(RunDir(tmp_path / "run"), enabled=True)
    mine.acquire()
    mine.end("error", exit_code=2, step=None)
    assert not (tmp_path / "run").exists()


def test_the_status_stays_until_the_next_run_starts(tmp_path):
    mine = RunLock(RunDir(tmp_path), enabled=True)
    mine.end("preempted", exit_code=75, step=7)
    assert json.loads((tmp_path / "status.json").read_text()) == {"ended": "preempted", "exit_code": 75, "step": 7}
    mine.end("error", exit_code=2, step=None)
    assert json.loads((tmp_path / "status.json").read_text()) == {"ended": "error", "exit_code": 2, "step": 7}
    mine.begin()
    assert not (tmp_path / "status.json").exists()


def test_other_processes_of_a_run_take_no_lock(tmp_path):
    idle = RunLock(RunDir(tmp_path), enabled=False)
    idle.acquire()
    idle.begin()
    idle.end("finished", exit_code=0, step=1)
    assert list(tmp_path.iterdir()) == []


def test_a_directory_created_for_a_run_that_did_not_start_is_removed(tmp_path):
    mine = RunLock(RunDir(tmp_path / "runs" / "a"), enabled=True)
    mine.make()
    assert (tmp_path / "runs" / "a" / ".lock").read_text().startswith(f"process {os.getpid()} on ")
    mine.end("error", exit_code=2, step=None)
    mine.release()
    assert list(tmp_path.iterdir()) == []


def test_a_directory_that_existed_or_was_used_stays(tmp_path):
    for starts in (False, True):
        root = tmp_path / str(starts)
        if not starts:
            root.mkdir()
        mine = RunLock(RunDir(root), enabled=True)
        mine.make()
        if starts:
            mine.begin()
        mine.end("error", exit_code=2, step=None)
        mine.release()
        assert json.loads((root / "status.json").read_text())["ended"] == "error"


def test_a_lock_file_that_was_removed_does_not_block_other_runs(other, tmp_path, monkeypatch):
    """The directory was removed while a process held its lock; the next run creates a new one."""
    monkeypatch.setattr(claim, "_SECONDS_TO_WAIT", 0.1)
    (tmp_path / ".lock").rename(tmp_path / "old")
    mine = RunLock(RunDir(tmp_path), enabled=True)
    mine.make()
    command = [sys.executable, "-c", _TAKE_AND_WAIT, str(tmp_path)]
    third = subprocess.run(command, capture_output=True, text=True, check=False)
    assert f"is in use by process {os.getpid()} on " in third.stderr
    mine.release()


def test_a_lock_file_that_was_removed_between_opening_and_locking_is_not_used(tmp_path, monkeypatch):
    try_to_lock, calls = claim.try_to_lock, []

    def remove_first(file):
        calls.append(file)
        if len(calls) == 1:
            (tmp_path / ".lock").unlink()
        return try_to_lock(file)

    monkeypatch.setattr(claim, "try_to_lock", remove_first)
    mine = RunLock(RunDir(tmp_path), enabled=True)
    mine.acquire()
    assert len(calls) == 2
    assert os.path.samestat(os.fstat(mine._lock.fileno()), (tmp_path / ".lock").stat())
    mine.release()


def test_a_directory_that_cannot_be_locked_is_read_and_not_written(tmp_path, monkeypatch):
    def refuse(*_args, **_options):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Path, "open", refuse)
    mine = RunLock(RunDir(tmp_path), enabled=True)
    mine.make()
    with pytest.raises(UserError, match=r"\.lock cannot be written: Read-only file system; make it writable"):
        mine.begin()
    mine.end("error", exit_code=2, step=None)
    mine.release()


@pytest.mark.parametrize("content", ["", "{", "[]", "7", '{"step": [1]}', "[" * 100_000])
def test_the_status_replaces_any_content(content, tmp_path):
    (tmp_path / "status.json").write_text(content)
    mine = RunLock(RunDir(tmp_path), enabled=True)
    mine.end("finished", exit_code=0, step=3)
    assert json.loads((tmp_path / "status.json").read_text()) == {"ended": "finished", "exit_code": 0, "step": 3}


@pytest.mark.parametrize(
    "name", [".lock", "config.yaml", "environment.json", "metrics.jsonl", "status.json", "train.log"]
)
def test_a_folder_with_the_name_of_a_file_is_reported_before_anything_is_read(name, tmp_path):
    (tmp_path / name).mkdir()
    (tmp_path / "model").touch()
    with pytest.raises(UserError) as caught:
        RunLock(RunDir(tmp_path), enabled=True).make()
    assert caught.value.problems == [
        f"run_dir: {tmp_path / name} is a folder, in the place of a file; rename it",
        f"run_dir: {tmp_path / 'model'} is a file, in the place of a folder; rename it",
    ]
