"""Selection of the best weights, and early stopping."""

import math

import pytest

from trainer_loop import UserError
from trainer_loop.options import LoopOptions
from trainer_loop.record.state import TrainState
from trainer_loop.selection import compare, compare_with_best, find_metric, is_out_of_patience


@pytest.mark.parametrize(
    ("found", "metric", "best_value", "is_better"),
    [
        (0.8, "accuracy", None, True),
        (0.8, "accuracy", 0.7, True),
        (0.8, "accuracy", 0.8, False),  # as good is not better: the earlier weights stay
        (0.8, "accuracy", 0.9, False),
        (0.8, "-accuracy", -0.9, True),
        (0.8, "-accuracy", -0.7, False),
        (math.nan, "accuracy", None, False),
        (math.inf, "accuracy", 0.1, False),
    ],
)
def test_the_best_is_strictly_better_and_finite(found, metric, best_value, is_better):
    comparison = compare({"accuracy": found}, metric, best_value, place="checkpoint.best")
    assert comparison.is_better == is_better
    assert comparison.value == pytest.approx(-found if metric.startswith("-") else found, nan_ok=True)


def test_a_metric_that_no_evaluation_has_is_named_with_its_key():
    with pytest.raises(UserError, match=r"checkpoint\.best: -f1 is not among the metrics of an evaluation: loss, rows"):
        find_metric({"loss": 1.0, "rows": 2}, "-f1", place="checkpoint.best")


def test_patience_counts_evaluations_and_none_waits_for_ever():
    state = TrainState(evaluations_without_best=3)
    assert is_out_of_patience(state, 3)
    assert not is_out_of_patience(state, 4)
    assert not is_out_of_patience(state, None)


def test_patience_may_go_by_another_metric_than_the_best():
    state = TrainState(best_value=0.7, patience_value=-0.4)
    metrics = {"accuracy": 0.8, "loss": 0.5}
    both = compare_with_best(metrics, state, LoopOptions(num_steps=9, best="accuracy", patience_metric="-loss"))
    assert both.best is not None and both.best.is_better
    assert both.patience is not None and not both.patience.is_better
    one = compare_with_best(metrics, state, LoopOptions(num_steps=9, best="accuracy"))
    assert one.patience == one.best
    none = compare_with_best(metrics, state, LoopOptions(num_steps=9))
    assert (none.best, none.patience) == (None, None)


def test_the_best_of_patience_survives_where_the_best_weights_are_forgotten():
    state = TrainState(best_step=2, best_by="accuracy", best_value=0.5)
    state.count_evaluation(is_better=True, patience_by="-loss", value=-0.4)
    state.count_evaluation(is_better=False, patience_by="-loss", value=-0.6)
    state.forget_best()
    assert (state.best_step, state.evaluations_without_best, state.patience_value) == (None, 1, -0.4)
    state.restart_patience()
    assert (state.evaluations_without_best, state.patience_by, state.patience_value) == (0, None, None)
