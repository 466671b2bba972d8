"""Bootstrap intervals of metrics (Efron 1979): how far a metric would move if other rows of the kind were drawn."""

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from trainer_loop.errors import UserError
from trainer_loop.metrics.named_metric import NamedMetric
from trainer_loop.report.wording import is_count

LEVEL = 0.95
_DRAWS = 2000  # of a metric that is a mean over rows
_FEWER_DRAWS = 100, 400  # of any other, which is computed anew for each: scikit-learn takes milliseconds
_ROWS_TO_COMPUTE = 2_000_000  # in all draws of these; seconds
_TEXTS_TO_COMPUTE = 50_000  # where rows are texts or tags; seconds
_ROWS_TO_DRAW = 100_000_000  # in all draws of a mean: a second
_MOST_ROW_VALUES = 20_000  # to compute one by one
_SAMPLES, _SAMPLE = 5, 25  # of rows, on which a metric shows whether it is a mean over rows
_FEW_VALUES = 64
_SAME = 1e-6  # relative difference of a metric that was logged and of one that is computed again


@dataclass(frozen=True)
class Interval:
    """A metric, and the limits between which `LEVEL` of the draws lie."""

    value: float
    low: float
    high: float

    def is_of(self, value: float | None) -> bool:
        """Whether it is of this value of the metric: the rows may be of other weights."""
        return value is not None and abs(self.value - value) <= _SAME * max(abs(value), 1)


Intervals = Mapping[str, Mapping[str, Interval]]  # by the name of a set, such as `test.hard`, and of a metric


def find_intervals(
    metrics: Sequence[NamedMetric], columns: Mapping[str, np.ndarray], *, seed: int = 0
) -> dict[str, Interval]:
    """The percentile intervals of all results of some metrics, by their names.

    A result that cannot be computed, or not for most draws, has none; nor has one that is the same for all draws, which
    is no sign of certainty, nor one that counts what there is in the data.

    Args:
        columns: Outputs of the task by name, `[N, ...]` each; metrics that compare others are left out, and all
            metrics of a single row.
        seed: The intervals are a function of it and of the columns.
    """
    found: dict[str, Interval] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of draws for which a score is not defined
        for metric in metrics:
            if metric.columns.keys() <= columns.keys() and len(columns["predictions"]) > 1:
                read = {name: columns[name] for name in metric.columns}
                generator = np.random.default_rng(seed)
                found |= _find_intervals_of(metric, read, generator)
    return found


def draw_means(values: np.ndarray, generator: np.random.Generator, *, draws: int = _DRAWS) -> np.ndarray:
    """The means of about `draws` samples of N of the values `[N]`, drawn with replacement."""
    distinct, counts = np.unique(values, return_counts=True)
    if len(distinct) <= _FEW_VALUES:  # as many of each value as a multinomial draw says: the same, and fast
        drawn: np.ndarray = generator.multinomial(len(values), counts / len(values), size=draws) @ distinct
        return drawn / len(values)
    draws = min(draws, max(_FEWER_DRAWS[0], _ROWS_TO_DRAW // len(values)))
    return np.array([values[generator.integers(0, len(values), len(values))].mean() for _ in range(draws)])


def _find_intervals_of(
    metric: NamedMetric, columns: Mapping[str, np.ndarray], generator: np.random.Generator
) -> dict[str, Interval]:
    whole = _compute(metric, columns, slice(None))
    if whole is None:
        return {}
    of_rows = _find_row_values(metric, columns, whole)
    if of_rows is not None:
        drawn = {name: draw_means(values, generator) for name, values in of_rows.items()}
    else:
        drawn = _draw_anew(metric, columns, whole, generator)
    limits = [50 - 50 * LEVEL, 50 + 50 * LEVEL]
    shown = [name for name in whole if name in drawn and not is_count(name)]
    intervals = {name: Interval(whole[name], *np.percentile(drawn[name], limits).tolist()) for name in shown}
    return {name: interval for name, interval in intervals.items() if interval.low < interval.high}


def _draw_anew(
    metric: NamedMetric,
    columns: Mapping[str, np.ndarray],
    whole: Mapping[str, float],
    generator: np.random.Generator,
) -> dict[str, np.ndarray]:
    """The results of draws of all rows; of many rows, of fewer of them, whose larger spread is scaled.

    That is the m out of n bootstrap (Bickel, Götze and van Zwet 1997) with the rate of a root.
    """
    count, has_texts = len(next(iter(columns.values()))), any(column.dtype == object for column in columns.values())
    most = _TEXTS_TO_COMPUTE if has_texts else _ROWS_TO_COMPUTE
    draws = int(np.clip(most // count, *_FEWER_DRAWS))
    size = min(count, most // draws)
    results = [_compute(metric, columns, generator.integers(0, count, size)) for _ in range(draws)]
    known = [result for result in results if result is not None]
    if len(known) < 0.9 * draws:
        return {}
    names = set.intersection(*(set(result) for result in known)) & whole.keys()
    drawn = {name: np.array([result[name] for result in known]) for name in names}
    if size == count:
        return drawn
    return {name: whole[name] + (own - own.mean()) * math.sqrt(size / count) for name, own in drawn.items()}


def _find_row_values(
    metric: NamedMetric, columns: Mapping[str, np.ndarray], whole: Mapping[str, float]
) -> dict[str, np.ndarray] | None:
    """Values of the rows, `[N]`, whose means the results are; None where they are no such means."""
    count = len(next(iter(columns.values())))
    groups = np.arange(count)  # rows with the same values have the same result
    if all(column.ndim == 1 and column.dtype != object for column in columns.values()):
        table = np.stack([column.astype(np.float64) for column in columns.values()], axis=1)
        _, firsts, groups = np.unique(table, axis=0, return_index=True, return_inverse=True)
        groups = firsts[groups.ravel()]
    # Several, drawn at random: a correlation is 0 for each row, and so it can be for some rows together.
    draws = np.random.default_rng(0).integers(0, count, (_SAMPLES, min(_SAMPLE, count)))
    for few in groups[draws]:
        of_few = _compute(metric, columns, few)
        if of_few is None or _compute_each(metric, columns, few, of_few) is None:
            return None
    return None if len(set(groups)) > _MOST_ROW_VALUES else _compute_each(metric, columns, groups, whole)


def _compute_each(
    metric: NamedMetric, columns: Mapping[str, np.ndarray], rows: np.ndarray, expected: Mapping[str, float]
) -> dict[str, np.ndarray] | None:
    """The results of each row; None unless their means are those that are expected."""
    known = {row: _compute(metric, columns, np.array([row])) for row in dict.fromkeys(rows.tolist())}
    if any(result is None or result.keys() != expected.keys() for result in known.values()):
        return None
    values = {name: np.array([(known[row] or {})[name] for row in rows.tolist()]) for name in expected}
    are_means = all(np.isclose(values[name].mean(), expected[name], rtol=1e-9, atol=1e-12) for name in expected)
    return values if are_means else None


def _compute(
    metric: NamedMetric, columns: Mapping[str, np.ndarray], rows: slice | np.ndarray
) -> dict[str, float] | None:
    """The results for some rows; None where there are none."""
    try:
        return metric.compute({name: column[rows] for name, column in columns.items()})
    except (UserError, ImportError):  # such as a score that is not finite; a package that is not installed here
        return None
