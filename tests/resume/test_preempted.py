"""A run that is asked to stop saves, exits with 75 within one step, and resumes like an uninterrupted run."""

import json
import signal
import time

import pytest
from harness import Run, assert_same, wait_until

PREEMPTED = 75
WORKERS = ("data.num_workers=1",)


def assert_left_at(run: Run, step: int) -> None:
    """Check that the newest checkpoint is complete and of this step, and that status.json reports it."""
    assert json.loads((run.path / "status.json").read_text()) == {
        "ended": "preempted",
        "exit_code": PREEMPTED,
        "step": step,
    }
    checkpoints = run.checkpoints()
    assert max(checkpoints) == step
    assert set(checkpoints.values()) == {None}
    run.check()


@pytest.mark.parametrize(
    ("name", "shown"),
    [("SIGTERM", "SIGTERM"), ("SIGUSR1", "SIGUSR1"), ("SIGHUP", "SIGHUP"), ("SIGINT", "Ctrl-C")],
)
def test_in_training(name, shown, bench, tmp_path):
    run = bench.run(tmp_path)
    (ended,) = run.run(FAULT_AT="step:10", FAULT=f"signal:{name}")
    assert ended.code == PREEMPTED, ended.describe()
    assert_left_at(run, 11)
    assert ended.out.splitlines()[-1] == (
        f"preempted at step 11 of 16 by {shown}; saved in run/checkpoints/step-00000011: "
        "the same command goes on from there"
    )
    assert ended.err == ""
    assert "resumed at step 11 of 16" in run.finish()
    assert_same(run, bench.whole())


def test_in_an_evaluation(bench, tmp_path):
    run = bench.run(tmp_path)
    (ended,) = run.run(FAULT_AT="evaluation:3", FAULT="signal:SIGTERM")
    assert ended.code == PREEMPTED, ended.describe()
    assert_left_at(run, 9)
    assert [row["step"] for row in run.rows() if "validation/rows" in row] == [3, 6]
    run.finish()
    assert_same(run, bench.whole())


def test_while_the_test_split_is_scored(bench, tmp_path):
    options = (f"data.test={bench.validation}",)
    run = bench.run(tmp_path, *options)
    (ended,) = run.run(FAULT_AT="evaluation:7", FAULT="signal:SIGTERM")
    assert ended.code == PREEMPTED, ended.describe()
    assert_left_at(run, 16)
    assert not (run.path / "model").exists()
    run.finish()
    assert_same(run, bench.whole(*options))


def test_while_texts_are_tokenised_it_leaves_at_once_and_no_lock_stays(bench, tmp_path):
    run = bench.run(tmp_path, f"data.cache_dir={tmp_path / 'cache'}")
    (ended,) = run.run(FAULT_AT="tokenising", FAULT="signal:SIGTERM")
    assert ended.code == PREEMPTED, ended.describe()
    assert ended.err == "preempted by SIGTERM before training; the same command begins again\n"
    assert not run.path.exists()
    run.finish()
    assert_same(run, bench.whole())


def test_a_second_ctrl_c_leaves_at_once_wherever_the_process_hangs(bench, tmp_path):
    run = bench.run(tmp_path)
    mark = tmp_path / "hangs"
    (process,) = run.start(FAULT_AT="step:5", FAULT=f"hang:{mark}")
    wait_until(mark.exists, what="step 5")
    process.send(signal.SIGINT)
    time.sleep(0.2)
    process.send(signal.SIGINT)  # the launcher repeats the signal of the terminal: within a second, both count once
    time.sleep(1.2)
    assert process.is_running()
    process.send(signal.SIGINT)
    (ended,) = run.wait(20)
    assert ended.code == 130, ended.describe()
    assert ended.err == "left at once; the same command goes on from the last checkpoint\n"
    run.check()
    assert "resumed at step 4 of 16" in run.finish()
    assert_same(run, bench.whole())


@pytest.mark.parametrize(
    ("name", "place", "step"),
    [
        ("SIGTERM", "step:10", 11),
        ("SIGTERM", "evaluation:3", 9),
        ("SIGUSR1", "evaluation:3", 9),
        ("SIGINT", "step:10", 11),
    ],
)
def test_a_signal_to_the_workers_of_the_loader_too(name, place, step, bench, tmp_path):
    """A scheduler signals all processes of a job, and a terminal signals all processes in the foreground."""
    run = bench.run(tmp_path, *WORKERS)
    (ended,) = run.run(FAULT_AT=place, FAULT=f"signal_group:{name}")
    assert ended.code == PREEMPTED, ended.describe()
    assert_left_at(run, step)
    run.finish()
    assert_same(run, bench.whole(*WORKERS))


def test_a_signal_to_the_workers_while_they_start(bench, tmp_path):
    """Each evaluation starts new workers."""
    run = bench.run(tmp_path, *WORKERS)
    (ended,) = run.run(FAULT_AT="worker", FAULT="signal_group:SIGTERM")
    assert ended.code == PREEMPTED, ended.describe()
    assert_left_at(run, 1)
    run.finish()
    assert_same(run, bench.whole(*WORKERS))


def test_when_its_time_is_over(bench, tmp_path):
    run = bench.run(tmp_path)
    (ended,) = run.run("train.max_time_minutes=1e-6")
    assert ended.code == PREEMPTED, ended.describe()
    assert_left_at(run, 1)
    assert "by train.max_time_minutes is over" in ended.out
    run.finish()
    assert_same(run, bench.whole())


def test_every_start_makes_progress_even_with_a_tiny_time_limit(bench, tmp_path):
    half_epoch = ("train.epochs=0.5",)
    run = bench.run(tmp_path, *half_epoch, "train.max_time_minutes=1e-6")
    starts = 1
    while (ended := run.run()[0]).code == PREEMPTED:
        starts += 1
        assert starts <= 7, f"4 steps and 2 evaluations\n{ended.describe()}"
    assert ended.code == 0, ended.describe()
    assert_same(run, bench.whole(*half_epoch))


@pytest.mark.parametrize(("place", "step"), [("step:10", 11), ("evaluation:3", 9)])
def test_one_of_two_processes_is_asked(place, step, bench, tmp_path):
    run = bench.run(tmp_path, num_processes=2)
    ended = run.run(FAULT_AT=place, FAULT="signal:SIGTERM", FAULT_RANK="1")
    assert [process.code for process in ended] == [PREEMPTED, PREEMPTED], "\n".join(each.describe() for each in ended)
    assert_left_at(run, step)
    assert f"preempted at step {step} of 16 by another process was asked to stop" in ended[0].out
    assert ended[1].out == ended[1].err == ""
    run.finish()
    assert_same(run, bench.whole(num_processes=2))
