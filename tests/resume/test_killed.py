"""A run that is killed at any moment and started again ends bit for bit like an uninterrupted run."""

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from harness import (
    CASES,
    KILLED,
    assert_same,
    end_tree,
    kill_at_random,
    launch,
    list_children,
    wait_until,
)
from scenarios import find_free_port

# The run under test has 16 steps, 8 per epoch: saved at 2, 4, ..., evaluated at 3, 6, 9, 12, 15, 16.
PLACES = [
    "tokenising",
    "fit",
    "step:1",
    "step:5",
    "updated:8",
    "step:9",
    "step:16",
    "updated:16",
    "evaluation:2",
    "evaluation:6",
    "half_checkpoint:2",
    "half_checkpoint:8",
    "latest:6",
    "latest:16",
    "best:3",
    "best:12",
    "rotation:8",
    "row:10",
    "half_export",
    "exported",
]
# These follow each other in one run, so that all but the first hit a resumed run.
CHAIN = ["half_checkpoint:4", "evaluation:1", "row:9", "step:9", "restored", "rewriting"]
LONG = "train.epochs=8"
# `make test` combines the cases of each row, the first on two processes; `make test-slow` also runs each alone.
TWO_PROCESS_CASES = ("ema", "plateau", "background", "patience")
ONE_PROCESS_CASES = [("workers", "neftune", "unfreezing", "patience by a metric"), ("bf16", "lora", "mixture")]


@pytest.mark.parametrize("place", PLACES)
def test_killed_once(place, bench, tmp_path):
    whole = bench.whole()
    run = bench.run(tmp_path, *([f"data.cache_dir={tmp_path / 'cache'}"] if place == "tokenising" else []))
    run.kill_at(place)
    run.finish()
    assert_same(run, whole)


@pytest.mark.parametrize(
    "cases", [*ONE_PROCESS_CASES, *(pytest.param((case,), marks=pytest.mark.slow) for case in CASES)], ids=" and ".join
)
def test_killed_again_and_again_with(cases, bench, tmp_path):
    options = [option for case in cases for option in CASES[case]]
    run = bench.run(tmp_path, *options)
    for place in CHAIN:
        run.kill_at(place)
    output = run.finish()
    assert "resumed at step" in output
    assert ("evaluations without a better" in output) == any(case.startswith("patience") for case in cases)
    assert_same(run, bench.whole(*options))


def test_killed_30_times_at_random(bench, tmp_path):
    whole = bench.whole(LONG)
    run = bench.run(tmp_path, LONG)
    dice = random.Random(30)
    kills = sum(kill_at_random(run, dice, seconds=0.15) for _ in range(30))
    assert kills >= 25  # some kills come after the end of the run
    run.finish()
    assert_same(run, whole)


@pytest.mark.parametrize("place", ["evaluation:2", "half_checkpoint:6", "half_export"])
def test_two_processes_killed_together(place, bench, tmp_path):
    whole = bench.whole(num_processes=2)
    run = bench.run(tmp_path, num_processes=2)
    run.kill_at(place)
    run.finish()
    assert_same(run, whole)


def test_two_processes_killed_again_and_again(bench, tmp_path):
    options = [option for case in TWO_PROCESS_CASES for option in CASES[case]]
    run = bench.run(tmp_path, *options, num_processes=2)
    for place in CHAIN:
        run.kill_at(place)
    assert "evaluations without a better" in run.finish()
    assert_same(run, bench.whole(*options, num_processes=2))


def test_two_processes_killed_at_random(bench, tmp_path):
    whole = bench.whole(num_processes=2)
    run = bench.run(tmp_path, num_processes=2)
    dice = random.Random(5)
    assert sum(kill_at_random(run, dice, seconds=0.12) for _ in range(6)) >= 4
    run.finish()
    assert_same(run, whole)


def test_killed_in_the_last_rotation(bench, tmp_path):
    newest_only = "checkpoint.keep_last=1"
    run = bench.run(tmp_path, newest_only)
    run.kill_at("rotation:16")
    run.finish()
    assert_same(run, bench.whole(newest_only))


def test_killed_after_the_save_of_the_best_weights(bench, tmp_path):
    """The run resumes after the evaluation, so its predictions must be on disk before the save."""
    every_5 = "checkpoint.every=5"  # not at step 12
    run = bench.run(tmp_path, every_5)
    run.kill_at("best:12")
    assert "resumed at step 12" in run.finish()
    assert_same(run, bench.whole(every_5))


def test_the_command_as_it_is_typed(bench, tmp_path):
    """The tests above start the command in the harness. Without it, the run gives the same bits."""
    run = bench.run(tmp_path)
    run.kill_at("step:5")
    command = [sys.executable, "-m", "trainer_loop.run", *run.arguments, "run_dir=run"]
    # Another number of threads would add in another order.
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, cwd=run.directory, env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    assert "resumed at step 4 of 16" in result.stdout
    assert_same(run, bench.whole())


@pytest.mark.parametrize(
    "kill",
    [
        pytest.param(end_tree, id="with all its processes", marks=pytest.mark.slow),
        pytest.param(subprocess.Popen.kill, id="alone"),
    ],
)
def test_the_launcher_is_killed(kill, bench, tmp_path):
    """The processes of a killed launcher must end, and not train next to those of the next start."""
    long = "train.epochs=4"
    run = bench.run(tmp_path, long, num_processes=2)
    options = ("--multi_gpu", "--num_processes", "2", "--main_process_port", str(find_free_port()))
    launched = launch(run, *options, program=["-m", "trainer_loop.run"])
    try:
        wait_until(lambda: (run.path / "checkpoints" / "latest").exists(), what="a checkpoint")
        children = list_children(launched.pid)
        assert len(children) == 2
        kill(launched)
        assert launched.wait(60) == KILLED
        wait_until(
            lambda: not any(Path(f"/proc/{pid}").exists() for pid in children),
            what="the end of its processes",
            seconds=60,
        )
    finally:
        end_tree(launched)
    run.check()
    assert run.newest < 32
    run.finish()
    assert_same(run, bench.whole(long, num_processes=2))
