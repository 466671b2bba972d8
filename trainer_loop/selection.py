"""Which weights are the best so far, and when a run has waited long enough for better ones."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from trainer_loop.errors import UserError
from trainer_loop.record.state import TrainState


@dataclass(frozen=True)
class Verdict:
    """What an evaluation says about the weights it scored."""

    value: float  # of the metric; negated where smaller is better, so that larger is better
    is_best: bool


def judge(metrics: Mapping[str, float], metric: str, *, best_value: float | None, place: str) -> Verdict:
    """Compare an evaluation with the best so far.

    Args:
        metric: `accuracy`, or `-loss` where smaller is better.
        best_value: the `value` of the best verdict so far; None: there is none.
        place: the config key that names the metric, for the message.

    >>> judge({"loss": 0.5}, "-loss", best_value=-0.7, place="checkpoint.best")
    Verdict(value=-0.5, is_best=True)
    """
    found = find_metric(metrics, metric, place=place)
    value = -found if metric.startswith("-") else found
    return Verdict(value, math.isfinite(value) and (best_value is None or value > best_value))


def find_metric(metrics: Mapping[str, float], metric: str, *, place: str) -> float:
    """The value of `metric`, with or without its sign. Raises UserError where the evaluation has no such metric."""
    name = metric.removeprefix("-")
    if name not in metrics:
        raise UserError(f"{place}: {metric} is not among the metrics of an evaluation: {', '.join(metrics)}")
    return metrics[name]


def is_out_of_patience(state: TrainState, patience: int | None) -> bool:
    """Whether the run ends; patience: evaluations it waits for a better one, None: for ever."""
    return patience is not None and state.evaluations_without_best >= patience
