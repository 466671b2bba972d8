"""Which weights are the best so far, and when a run has waited long enough for better ones."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from trainer_loop.errors import UserError
from trainer_loop.options import LoopOptions
from trainer_loop.record.state import TrainState


@dataclass(frozen=True)
class Comparison:
    """A metric of an evaluation beside its best value so far."""

    value: float  # negated where smaller is better, so that larger is better
    is_better: bool


@dataclass(frozen=True)
class Verdict:
    """What an evaluation says about the weights it scored; None: no metric was asked for."""

    best: Comparison | None  # are these the weights to export?
    patience: Comparison | None  # are they what the run waits for?


def judge(metrics: Mapping[str, float], state: TrainState, options: LoopOptions) -> Verdict:
    """Compare an evaluation with the best ones before it. Raises UserError where it lacks a metric."""
    best = None if options.best is None else compare(metrics, options.best, state.best_value, place="checkpoint.best")
    if options.patience_metric is None:
        return Verdict(best, best)
    patience = compare(metrics, options.patience_metric, state.patience_value, place="train.patience_metric")
    return Verdict(best, patience)


def compare(metrics: Mapping[str, float], metric: str, best_value: float | None, *, place: str) -> Comparison:
    """Compare one metric.

    Args:
        metric: `accuracy`, or `-loss` where smaller is better.
        best_value: the `value` of the best comparison so far; None: there is none.
        place: the config key that names the metric, for the message.

    >>> compare({"loss": 0.5}, "-loss", -0.7, place="checkpoint.best")
    Comparison(value=-0.5, is_better=True)
    """
    found = find_metric(metrics, metric, place=place)
    value = -found if metric.startswith("-") else found
    return Comparison(value, math.isfinite(value) and (best_value is None or value > best_value))


def find_metric(metrics: Mapping[str, float], metric: str, *, place: str) -> float:
    """The value of `metric`, with or without its sign. Raises UserError where the evaluation has no such metric."""
    name = metric.removeprefix("-")
    if name not in metrics:
        raise UserError(f"{place}: {metric} is not among the metrics of an evaluation: {', '.join(metrics)}")
    return metrics[name]


def is_out_of_patience(state: TrainState, patience: int | None) -> bool:
    """Whether the run ends; patience: evaluations it waits for a better one, None: for ever."""
    return patience is not None and state.evaluations_without_best >= patience
