"""Law 2: an epoch trains every row exactly once, and evaluation scores every row exactly once."""

from dataclasses import replace
from pathlib import Path

import pytest
from scenarios import Outcome, Scenario, run_here, run_in_group

EPOCH = Scenario(num_rows=61, batch_size=8, num_steps=8, per_device=2)
EVALUATION = Scenario(num_rows=8, num_steps=1, num_validation_rows=1001)
PERPLEXITY = replace(EVALUATION, task="causal_lm")
LOGGED = replace(EPOCH, task="logging", num_rows=57, num_validation_rows=61)  # the last batch has one row


@pytest.fixture(scope="session")
def on_two(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Outcome]:
    return run_in_group([EPOCH, EVALUATION, PERPLEXITY, LOGGED], tmp_path_factory.mktemp("once"))


def test_two_processes_train_each_row_once_in_an_epoch(on_two: dict[str, Outcome]):
    seen = [row for process in on_two[EPOCH.name].rows for step in process for row in step]
    assert sorted(seen) == list(range(61))


def test_steps_hold_the_same_rows_on_one_and_on_two_processes(on_two: dict[str, Outcome], tmp_path: Path):
    one = [set(step) for step in run_here(EPOCH, tmp_path).rows[0]]
    two = [set(first) | set(second) for first, second in zip(*on_two[EPOCH.name].rows, strict=True)]
    assert one == two


@pytest.mark.parametrize("scenario", [EVALUATION, PERPLEXITY], ids=["classification", "causal LM"])
def test_evaluation_scores_each_row_once_on_two_processes(
    scenario: Scenario, on_two: dict[str, Outcome], tmp_path: Path
):
    one, two = run_here(scenario, tmp_path).evaluation, on_two[scenario.name].evaluation
    assert one["rows"] == two["rows"] == 1001
    assert two == pytest.approx(one, abs=1e-6)


def test_what_a_task_logs_is_the_same_on_two_processes_of_which_one_is_idle(on_two: dict[str, Outcome], tmp_path: Path):
    one, two = run_here(LOGGED, tmp_path), on_two[LOGGED.name]
    assert all(set(row) >= {"square"} for row in one.logged) and len(one.logged) == 8
    for row, same in zip(one.logged, two.logged, strict=True):
        assert same == pytest.approx(row, abs=1e-9)
    assert one.evaluation.keys() >= {"square", "square_of_even"}
    assert two.evaluation == pytest.approx(one.evaluation, abs=1e-6)


@pytest.mark.parametrize("per_device", [1, 8, 61])
@pytest.mark.parametrize("task", ["sequence_classification", "causal_lm"])
def test_evaluation_does_not_depend_on_its_microbatches(per_device: int, task: str, tmp_path: Path):
    scenario = Scenario(task=task, dtype="float32", num_rows=8, num_steps=1, num_validation_rows=61)
    whole = run_here(scenario, tmp_path).evaluation
    parts = run_here(replace(scenario, evaluation_per_device=per_device), tmp_path).evaluation
    assert whole["rows"] == parts["rows"] == 61
    assert parts == pytest.approx(whole, abs=1e-6)
