"""Searches whose trials run a stand-in for training, which takes milliseconds."""

import os
import random
import re
import signal
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("optuna")

import optuna

from trainer_loop.cli.search import main, read_plan
from trainer_loop.search.study import Study, _make

STAND_IN = [sys.executable, "-S", "-E", str(Path(__file__).with_name("stand_in.py"))]
BASE = ["model.type=bert", "data.train=a.csv", "data.validation_fraction=0.1", "search.metric=accuracy"]
SPACE = "search.space={optimizer.lr: {low: 1e-6, high: 1e-2, log: true}, batch.size: [8, 16, 32]}"


def search(*arguments: str) -> int:
    return main([*BASE, *arguments], command=STAND_IN, poll_seconds=0.005)


def fork(directory: Path, *arguments: str, log: Path | None = None) -> int:
    """Run a search in a forked process; returns its process id."""
    pid = os.fork()
    if pid == 0:
        out = os.open(log or directory.with_suffix(".txt"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(out, 1)
        os.dup2(out, 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
        code = 1
        try:
            code = search(f"search.dir={directory}", *arguments)
        except BaseException:  # noqa: BLE001 - as the interpreter does
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    return pid


def wait(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def wait_for(word: str, log: Path, times: int = 1) -> None:
    """Wait until a search has printed this word so many times, or has ended."""
    output = ""
    while output.count(word) < times and not any(end in output for end in ("best:", "error:", "Traceback")):
        time.sleep(0.002)
        output = log.read_text() if log.exists() else ""


def rows_of(directory: Path, *arguments: str) -> list[tuple]:
    study = Study(read_plan([*BASE, f"search.dir={directory}", *arguments]))
    return [(row.number, dict(row.values), row.value, row.result.get("ended")) for row in study.list_rows()]


TRIALS = "search.trials=12"


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A search that was not interrupted. It runs in this process, so that forks have all modules loaded."""
    directory = tmp_path_factory.mktemp("searches") / "uninterrupted"
    assert search(f"search.dir={directory}", SPACE, TRIALS) == 0
    return directory


def test_a_search_killed_or_stopped_ten_times_has_the_same_result(uninterrupted: Path, tmp_path: Path):
    directory, generator, codes = tmp_path / "stopped", random.Random(2), []
    for number in [signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGKILL, signal.SIGINT] * 2:
        log = tmp_path / f"{len(codes)}.txt"
        pid = fork(directory, SPACE, TRIALS, log=log)
        wait_for("evaluation", log)
        time.sleep(generator.uniform(0.0, 0.15))
        os.kill(pid, number)
        codes.append(wait(pid))
    output = "".join(log.read_text() for log in tmp_path.glob("*.txt"))
    assert "accuracy of each trial" in (directory / "search.html").read_text()  # although the search did not finish
    assert set(codes) <= {-signal.SIGKILL, 75, 0}, output
    assert codes.count(-signal.SIGKILL) >= 4
    assert "Traceback" not in output
    assert wait(fork(directory, SPACE, TRIALS)) == 0
    rows = rows_of(directory, SPACE)
    assert [row[0] for row in rows] == list(range(12))
    assert {row[3] for row in rows} == {"finished", "pruned"}
    assert rows == rows_of(uninterrupted, SPACE)
    best, expected = ((folder / "best.yaml").read_text() for folder in (directory, uninterrupted))
    assert best.replace(str(directory), "") == expected.replace(str(uninterrupted), "")
    starts = [len((trial / "starts").read_text()) for trial in directory.glob("trial-*")]
    assert len(starts) == 12
    assert sum(starts) > 12  # some were killed while they ran, and started again


def test_two_processes_share_trials_and_claim_those_of_a_killed_process(uninterrupted: Path, tmp_path: Path):
    directory = tmp_path / "shared"
    logs = [tmp_path / "first.txt", tmp_path / "second.txt"]
    first, second = (fork(directory, SPACE, TRIALS, log=log) for log in logs)
    for log in logs:
        wait_for("evaluation 1", log, times=2)
    os.kill(first, signal.SIGKILL)
    assert wait(first) == -signal.SIGKILL
    assert wait(second) == 0, logs[1].read_text()
    rows = rows_of(directory, SPACE)
    assert [row[0] for row in rows] == list(range(12))
    assert None not in {row[3] for row in rows}
    mine, others = (re.findall(r"^trial (\d+): optimizer", log.read_text(), re.MULTILINE) for log in logs)
    assert len(mine) >= 2
    assert set(mine) & set(others) <= {mine[-1]}  # the trial of the killed process


def test_a_trial_that_ends_while_another_process_looks_for_one_is_not_claimed_again(tmp_path: Path):
    plan = read_plan([*BASE, f"search.dir={tmp_path}", SPACE])
    mine, other = Study(plan), Study(plan)
    taken = mine.claim_trial()
    assert taken is not None
    lock = other._lock

    def lock_late(number: int) -> Any:
        if number == taken.number:
            mine.finish(taken, {"ended": "finished", "value": 0.5})
        return lock(number)

    other._lock = lock_late
    next_one = other.claim_trial()
    assert next_one is not None
    assert next_one.number == taken.number + 1


def test_the_ending_of_a_trial_is_stored_as_its_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.setenv("STAND_IN_16", "diverged")
    monkeypatch.setenv("STAND_IN_32", "out of memory")
    arguments = ["search.space={optimizer.lr: [1e-3, 1e-4], batch.size: [8, 16, 32]}", "search.sampler=grid"]
    arguments += [f"search.dir={tmp_path / 'found'}", "search.pruner=none"]
    assert search(*arguments) == 0
    output = capsys.readouterr().out
    rows = [line.split() for line in output.splitlines() if line.strip()[:1] in ("*", *"012345") and "0.00" in line]
    assert [row[-1] for row in rows if "finished" in row] == ["finished", "finished"]
    assert "diverged: step 30: the loss is nan" in output
    assert "out of memory: step 30: out of memory with one row a microbatch" in output
    assert "best: trial 3, accuracy 0.992" in output
    page = (tmp_path / "found" / "search.html").read_text()
    assert f"all trials, with charts: {tmp_path / 'found' / 'search.html'}" in output
    assert "out of memory: step 30: out of memory with one row a microbatch" in page
    assert "4 trials without a value are left out" in page
    best = (tmp_path / "found" / "best.yaml").read_text()
    assert "\n  lr: 0.0001\n" in best
    assert f"run_dir: {tmp_path / 'found' / 'best'}" in best
    assert search(*arguments) == 0
    assert capsys.readouterr().out.splitlines()[-10:] == output.splitlines()[-10:]
    assert (tmp_path / "found" / "search.html").read_text() == page
    (tmp_path / "found" / "search.html").unlink()
    (tmp_path / "found" / "search.html").mkdir()
    assert search(*arguments) == 0
    output = capsys.readouterr().out
    assert "best: trial 3" in output
    assert re.search("^warning: .*search.html", output, re.MULTILINE)


def test_refused_values_are_a_result_and_the_search_ends_if_all_are_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("STAND_IN_16", "refused")
    arguments = ["search.sampler=grid", f"search.dir={tmp_path / 'found'}"]
    assert search("search.space={optimizer.lr: [1e-4], batch.size: [16, 8]}", *arguments) == 0
    output = capsys.readouterr()
    assert "trial 0: refused: command line: batch.size is 16; too many" in output.out
    assert "best: trial 1" in output.out
    arguments[-1] += "-2"
    monkeypatch.setenv("STAND_IN_REFUSES", "search.metric")
    assert search("search.space={optimizer.lr: [1e-4], batch.size: [8]}", *arguments) == 2
    assert capsys.readouterr().err == "error: search.metric: accuracy is not reported; evaluations have: f1, loss\n"
    monkeypatch.delenv("STAND_IN_REFUSES")
    assert search("search.space={optimizer.lr: [1e-4, 1e-3, 1e-2, 1e-1], batch.size: [16]}", *arguments) == 2
    assert "error: search.space: the first 3 trials were refused; see the lines above" in capsys.readouterr().err


def test_several_seeds_and_folds_are_runs_of_one_trial(tmp_path, capsys):
    directory = tmp_path / "found"
    arguments = ["search.space={optimizer.lr: [1e-4, 1e-3], batch.size: [8]}", "search.sampler=grid"]
    assert search(*arguments, "search.seeds=3", "search.folds=2", f"search.dir={directory}") == 0
    runs = sorted(str(path.parent.relative_to(directory)) for path in directory.rglob("status.json"))
    assert len(runs) == 12
    assert runs[:2] == ["trial-0000/seed-1/fold-1", "trial-0000/seed-1/fold-2"]
    assert (directory / runs[0] / "name").read_text() == "found-trial-0000-seed-1-fold-1"  # the name in trackers
    output = capsys.readouterr().out
    assert "spread" in output
    assert "  seed-3/fold-2  1.022" in output
    ((_, _, value, _), _) = rows_of(directory, *arguments, "search.seeds=3", "search.folds=2")
    assert value == pytest.approx(1 - 0.008 + 0.02)


def test_a_trial_has_no_value_unless_all_its_runs_finished(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("STAND_IN_16", "out of memory")
    monkeypatch.setenv("STAND_IN_SEED", "2")
    arguments = ["search.space={optimizer.lr: [1e-4], batch.size: [8, 16]}", "search.sampler=grid", "search.seeds=3"]
    assert search(*arguments, f"search.dir={tmp_path / 'found'}") == 0
    output = capsys.readouterr().out
    first, second = rows_of(tmp_path / "found", *arguments)
    assert first[2:] == (pytest.approx(0.992 + 0.02), "finished")
    assert second[2:] == (None, "out of memory")
    assert "trial 1: out of memory: step 30" in output
    assert "importance of each key: shown from 10 finished trials on (so far 1)" in output
    page = (tmp_path / "found" / "search.html").read_text()
    assert "Importance of each key: shown from 10 finished trials on (so far 1)." in page


def test_another_space_in_the_same_directory_is_refused(uninterrupted: Path, capsys):
    assert search(f"search.dir={uninterrupted}", SPACE.replace("8, ", "4, ")) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: search.name: the study uninterrupted was started with other values (search.space")
    assert search(f"search.dir={uninterrupted}", SPACE, "optimizer.weight_decay=0.5") == 2
    assert "(optimizer.weight_decay was 0.01, is 0.5)" in capsys.readouterr().err
    assert search(f"search.dir={uninterrupted}", SPACE, "log.every=5", "search.trials=16", "search.seed=0") == 0
    output = capsys.readouterr().out
    assert "importance of each key" in output
    assert '<th scope="col" class="bar">importance</th>' in (uninterrupted / "search.html").read_text()
    assert len(rows_of(uninterrupted, SPACE)) == 16


@pytest.mark.parametrize(
    ("arguments", "problems"),
    [
        ([], ["search.space= is missing: such as {optimizer.lr"]),
        ([SPACE, "search.trails=3"], ["search.trails: there is no such key; did you mean search.trials?"]),
        ([SPACE, "search.trials=0", "search.metric=-"], ["search.trials=0: it must be", "search.metric= is missing"]),
        (
            ["search.space={optimizer.rl: [1]}"],
            ["search.space: there is no key optimizer.rl; did you mean optimizer.lr"],
        ),
        (
            ["search.space={optimizer.lr: {low: 1, high: 1}, batch.size: {low: 0.5, high: 2}, seed: {hihg: 2}}"],
            [
                "search.space: optimizer.lr: low is 1.0 and high is 1.0; low must be below high",
                "search.space: batch.size: low is 0.5; it must be a whole number",
                "search.space: seed: hihg is none of low, high, log, step; did you mean high?",
            ],
        ),
        (
            ["search.space={optimizer.lr: {low: -1, high: 1}, optimizer.name: [adam, 7], train.precision: [no, bf61]}"],
            [
                "search.space: optimizer.lr is -1.0; allowed: a number of at least 0",
                "search.space: train.precision is 'bf61'; allowed: auto, no, bf16 or fp16; did you mean bf16?",
            ],
        ),
        (
            ["search.space={optimizer.lr: {low: 0, high: 1, log: true}}"],
            ["search.space: optimizer.lr: low is 0.0; with"],
        ),
        (
            ["search.space={optimizer.lr: {low: 0, high: 1}}", "search.sampler=grid"],
            ["search.space: optimizer.lr: search"],
        ),
        ([SPACE, "evaluate.every=never"], ["search.metric=accuracy: evaluate.every is never; set it to epoch"]),
        ([SPACE, "data.validation_fraction="], ["search.metric=accuracy: there are no validation rows; set data.val"]),
        (["search.space={seed: [1, 2]}", "search.seeds=2"], ["search.space: seed is set by search.seeds; leave one"]),
        ([SPACE, "train.epohcs=1"], ["command line: there is no key train.epohcs; did you mean train.epochs or"]),
        (
            ["search.space=nowhere.yaml"],
            ["search.space: 'nowhere.yaml' is neither a mapping nor a file that can be read"],
        ),
        ([SPACE, "dry_run=true"], ["dry_run: the first trial is checked by a dry run in any case; leave it out"]),
        (["search.space={run_dir: [a]}"], ["search.space: run_dir is set by the search itself; leave it out"]),
        ([SPACE, "search.sampler=tpee"], ["search.sampler is 'tpee'; allowed: grid, random, tpe, or a dotted path"]),
        ([SPACE, "search.storage=nosuch://x"], ["search.storage cannot be opened"]),
    ],
)
def test_all_problems_are_reported_at_once(arguments: Sequence[str], problems: Sequence[str], tmp_path: Path, capsys):
    assert search(*arguments, f"search.dir={tmp_path / 'found'}") == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == len(problems), lines
    for line, expected in zip(lines, problems, strict=True):
        assert line.startswith(f"error: {expected}"), line


@pytest.mark.parametrize("weight", [1, 0])
def test_importance_is_the_share_of_the_differences_between_trials(weight: int, tmp_path: Path):
    study = Study(read_plan([*BASE, f"search.dir={tmp_path / 'found'}", SPACE]))
    kinds = {
        "optimizer.lr": optuna.distributions.FloatDistribution(1e-6, 1e-2, log=True),
        "batch.size": optuna.distributions.CategoricalDistribution([8, 16, 32]),
    }
    generator, trials = random.Random(0), []
    for place in range(24):  # most are near the best rate, as a sampler draws them
        power, size = -4 + generator.gauss(0, 0.01 if place > 4 else 1), generator.choice([8, 16, 32])
        params = {"optimizer.lr": 10**power, "batch.size": size}
        value = -weight * ((power + 4) ** 2 + size / 1000)
        trials.append(optuna.create_trial(params=params, distributions=kinds, value=value))
    optuna.load_study(study_name="found", storage=f"sqlite:///{tmp_path / 'found' / 'study.db'}").add_trials(trials)
    weights = study.weigh_keys()
    if weight:
        assert weights["optimizer.lr"] > 0.9
    else:
        assert weights == {"optimizer.lr": 0, "batch.size": 0}


def test_the_best_trial_of_another_directory_has_no_path_in_this_one(tmp_path: Path, capsys):
    arguments = [SPACE, "search.trials=2", f"search.storage=sqlite:///{tmp_path / 'study.db'}", "search.name=one"]
    assert search(*arguments, f"search.dir={tmp_path / 'first'}") == 0
    assert search(*arguments, f"search.dir={tmp_path / 'second'}") == 0
    first, second = (out.split("best: ")[1] for out in capsys.readouterr().out.split("its config")[:2])
    assert str(tmp_path / "first") in first
    assert second.rstrip().endswith("in the directory of another search")


class Pruner(optuna.pruners.NopPruner):
    def __init__(self, seed: int = 7):
        self.seed = seed


def test_a_custom_pruner_keeps_its_default_seed():
    assert _make("pruner", f"{__name__}.Pruner", {}, optuna.pruners.BasePruner).seed == 7
