"""Two processes never train in one run directory, and scripts learn how the last one there ended."""

import json
import os
import subprocess
import sys

import pytest

from trainer_loop.record import claim
from trainer_loop.record.claim import RunClaim, RunDirInUse
from trainer_loop.record.run_dir import RunDir

_TAKE_AND_WAIT = """
import sys
from trainer_loop.record import claim
from trainer_loop.record.run_dir import RunDir
claim._SECONDS_TO_WAIT = 0.1
mine = claim.RunClaim(RunDir(sys.argv[1]), enabled=True)
mine.take()
print("taken", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def other(tmp_path):
    """A process that has taken tmp_path."""
    with subprocess.Popen(
        [sys.executable, "-c", _TAKE_AND_WAIT, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "taken\n"
        yield process
        process.kill()


def test_a_directory_in_use_is_refused_by_the_name_of_who_uses_it(other, tmp_path, monkeypatch):
    monkeypatch.setattr(claim, "_SECONDS_TO_WAIT", 0.1)
    with pytest.raises(RunDirInUse, match=f"is in use by process {other.pid} on "):
        RunClaim(RunDir(tmp_path), enabled=True).take()


def test_it_is_free_as_soon_as_the_other_is_killed(other, tmp_path):
    other.kill()
    mine = RunClaim(RunDir(tmp_path), enabled=True)
    mine.take()
    command = [sys.executable, "-c", _TAKE_AND_WAIT, str(tmp_path)]
    third = subprocess.run(command, capture_output=True, text=True, check=False)
    assert f"is in use by process {os.getpid()} on " in third.stderr
    mine.release()


def test_a_directory_that_is_not_there_is_not_made(tmp_path):
    mine = RunClaim(RunDir(tmp_path / "run"), enabled=True)
    mine.take()
    mine.end("error", exit_code=2, step=None)
    assert not (tmp_path / "run").exists()


def test_how_it_ended_is_there_until_the_next_run_begins(tmp_path):
    mine = RunClaim(RunDir(tmp_path), enabled=True)
    mine.end("preempted", exit_code=75, step=7)
    assert json.loads((tmp_path / "status.json").read_text()) == {"ended": "preempted", "exit_code": 75, "step": 7}
    mine.end("error", exit_code=2, step=None)
    assert json.loads((tmp_path / "status.json").read_text()) == {"ended": "error", "exit_code": 2, "step": 7}
    mine.begin()
    assert not (tmp_path / "status.json").exists()


def test_other_processes_of_a_run_claim_nothing(tmp_path):
    idle = RunClaim(RunDir(tmp_path), enabled=False)
    idle.take()
    idle.begin()
    idle.end("finished", exit_code=0, step=1)
    assert list(tmp_path.iterdir()) == []
