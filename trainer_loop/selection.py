"""Selection of the best weights, and early stopping. Only `select` changes the state of the run."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from trainer_loop.errors import UserError
from trainer_loop.options import LoopOptions
from trainer_loop.record.state import Best, TrainState


@dataclass(frozen=True)
class Comparison:
    """One metric of an evaluation, compared with its best value so far."""

    value: float  # negated if smaller is better, so that larger is always better
    is_better: bool


@dataclass(frozen=True)
class Verdict:
    """Result of comparing an evaluation with the best earlier ones. None: the run uses no metric for it."""

    best: Comparison | None  # by `options.best`, the metric that selects the weights to export
    patience: Comparison | None  # by the metric of early stopping


def select(state: TrainState, metrics: dict[str, float], options: LoopOptions) -> Best | None:
    """Update `state` from the metrics of its weights: metrics of the export, best weights, early stopping.

    Returns:
        The previous best if these weights are better, else None.
    """
    verdict = compare_with_best(metrics, state, options)
    if (patience := verdict.patience) is not None:
        by = options.patience_metric
        state.count_evaluation(is_better=patience.is_better, patience_by=by, value=patience.value)
    if options.best is None or verdict.best is None:
        state.metrics = metrics
    elif verdict.best.is_better:
        return state.take_best(options.best, verdict.best.value, metrics)
    return None


def compare_with_best(metrics: Mapping[str, float], state: TrainState, options: LoopOptions) -> Verdict:
    """Compare the metrics of an evaluation with the best values so far.

    Raises:
        UserError: A metric that the options name is missing.
    """
    best = None if options.best is None else compare(metrics, options.best, state.best_value, place="checkpoint.best")
    if options.patience_metric is None:
        return Verdict(best, best)
    patience = compare(metrics, options.patience_metric, state.patience_value, place="train.patience_metric")
    return Verdict(best, patience)


def compare(metrics: Mapping[str, float], metric: str, best_value: float | None, *, place: str) -> Comparison:
    """Compare one metric with its best value.

    Args:
        metric: For example `accuracy`, or `-loss` if smaller is better.
        best_value: The largest `Comparison.value` so far; None: there is none.
        place: The config key that names the metric, for the error message.

    >>> compare({"loss": 0.5}, "-loss", -0.7, place="checkpoint.best")
    Comparison(value=-0.5, is_better=True)
    """
    value = find_metric(metrics, metric, place=place)
    value = -value if metric.startswith("-") else value
    return Comparison(value, math.isfinite(value) and (best_value is None or value > best_value))


def find_metric(metrics: Mapping[str, float], metric: str, *, place: str) -> float:
    """Return the value of `metric`, whose leading `-` is ignored. Raises UserError if the evaluation lacks it."""
    name = metric.removeprefix("-")
    if name not in metrics:
        raise UserError(f"{place}: {metric} is not among the metrics of an evaluation: {', '.join(metrics)}")
    return metrics[name]


def is_out_of_patience(state: TrainState, patience: int | None) -> bool:
    """Return whether the last `patience` evaluations brought no improvement; None: never stop early."""
    return patience is not None and state.evaluations_without_best >= patience
