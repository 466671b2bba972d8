"""One of two processes ends or hangs: the other names it and exits with 4, and the same command resumes the run."""

import json
import re

import pytest
from harness import HERE, KILLED, Ended, Run, assert_same, end_tree, launch
from scenarios import find_free_port

LOST = 4


def assert_process_named(ended: Ended, *, survivor: int, silent: str) -> None:
    """Check that one error line of a process names the process that no longer answers."""
    assert ended.code == LOST, ended.describe()
    (line,) = [line for line in ended.err.splitlines() if "error:" in line]
    prefix = "" if survivor == 0 else f"process {survivor}: "
    assert re.fullmatch(
        rf"{prefix}error: {silent} no longer answers \(.+\); the same command goes on from the last checkpoint", line
    )


def assert_resumes(run: Run, bench) -> None:
    status = json.loads((run.path / "status.json").read_text()) if (run.path / "status.json").exists() else None
    assert status is None or status["exit_code"] == LOST
    run.finish()
    assert_same(run, bench.whole(num_processes=2))


@pytest.mark.parametrize("place", ["step:5", "evaluation:2"])
def test_process_1_is_killed(place, bench, tmp_path):
    run = bench.run(tmp_path, num_processes=2)
    ended = run.kill_at(place, rank=1, together=False)
    assert_process_named(ended[0], survivor=0, silent="process 1")
    assert_resumes(run, bench)


def test_process_0_is_killed_while_it_saves(bench, tmp_path):
    run = bench.run(tmp_path, num_processes=2)
    ended = run.kill_at("half_checkpoint:6", rank=0, together=False)
    assert_process_named(ended[1], survivor=1, silent="process 0, or its machine,")
    assert_resumes(run, bench)


@pytest.mark.parametrize(("stopped", "silent"), [(1, "process 1"), (0, "process 0, or its machine,")])
def test_a_process_hangs(stopped, silent, bench, tmp_path):
    run = bench.run(tmp_path, "train.timeout_minutes=0.1", num_processes=2)
    processes = run.start(FAULT_AT="step:5", FAULT="stop", FAULT_RANK=str(stopped))
    try:
        ended = processes[1 - stopped].wait(60)
        assert processes[stopped].is_running()
    finally:
        run.kill()
    assert_process_named(ended, survivor=1 - stopped, silent=silent)
    assert run.wait()[stopped].code == KILLED
    run.finish()
    assert_same(run, bench.whole(num_processes=2))


def test_the_launcher_starts_the_processes_again(bench, tmp_path):
    run = bench.run(tmp_path, num_processes=2)
    options = [
        "--multi_gpu",
        "--num_processes",
        "2",
        "--max_restarts",
        "1",
        "--rdzv_backend",
        "c10d",
        "--main_process_port",
    ]
    once = tmp_path / "once"
    started = launch(
        run,
        *options,
        str(find_free_port()),
        program=[str(HERE / "driver.py")],
        FAULT_AT="step:11",
        FAULT_RANK="1",
        FAULT_ONCE=str(once),
    )
    try:
        code = started.wait(300)
    finally:
        end_tree(started)
    output = (tmp_path / "launch.log").read_text()
    assert once.exists()
    assert code == 0, output
    assert output.count("resumed at step 10 of 16") == 1
    assert_same(run, bench.whole(num_processes=2))
