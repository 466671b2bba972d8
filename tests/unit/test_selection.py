"""Which weights are the best: what an evaluation says about them."""

import math

import pytest

from trainer_loop.errors import UserError
from trainer_loop.record.state import TrainState
from trainer_loop.selection import find_metric, is_out_of_patience, judge


@pytest.mark.parametrize(
    ("found", "metric", "best_value", "is_best"),
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
def test_the_best_is_strictly_better_and_finite(found, metric, best_value, is_best):
    verdict = judge({"accuracy": found}, metric, best_value=best_value, place="checkpoint.best")
    assert verdict.is_best == is_best
    assert verdict.value == pytest.approx(-found if metric.startswith("-") else found, nan_ok=True)


def test_a_metric_that_no_evaluation_has_is_named_with_its_key():
    with pytest.raises(UserError, match=r"checkpoint\.best: -f1 is not among the metrics of an evaluation: loss, rows"):
        find_metric({"loss": 1.0, "rows": 2}, "-f1", place="checkpoint.best")


def test_patience_counts_evaluations_and_none_waits_for_ever():
    state = TrainState(evaluations_without_best=3)
    assert is_out_of_patience(state, 3)
    assert not is_out_of_patience(state, 4)
    assert not is_out_of_patience(state, None)
