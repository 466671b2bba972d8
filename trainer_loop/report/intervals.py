"""Bootstrap intervals of metrics (Efron 1979): how much a metric would vary with other rows of the same kind."""

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
_FEWER_DRAWS = 100, 400  # of any other metric, which is computed for each draw: scikit-learn takes milliseconds
_ROWS_TO_COMPUTE = 2_000_000  # in all draws of such a metric, which takes seconds
_TEXTS_TO_COMPUTE = 50_000  # in all draws, if rows are texts or tags, which takes seconds
_ROWS_TO_DRAW = 100_000_000  # in all draws of a mean, which takes a second
_MOST_ROW_VALUES = 20_000  # rows for which a metric is computed one by one
_SAMPLES, _SAMPLE = 5, 25  # number and size of samples of rows that test whether a metric is a mean over rows
_FEW_VALUES = 64
_SAME = 1e-6  # relative difference between a logged metric and the same metric computed again


@dataclass(frozen=True)
class Interval:
    """A metric, and the limits that contain the share `LEVEL` of the draws."""

    value: float
    low: float
    high: float

    def is_of(self, value: float | None) -> bool:
        """Return whether the interval belongs to this value of the metric: the rows may be of other weights."""
        return value is not None and abs(self.value - value) <= _SAME * max(abs(value), 1)


Intervals = Mapping[str, Mapping[str, Interval]]  # by the name of a set, such as `test.hard`, and of a metric


def find_intervals(
    metrics: Sequence[NamedMetric], columns: Mapping[str, np.ndarray], *, seed: int = 0
) -> dict[str, Interval]:
    """Return the percentile intervals of all results of some metrics, by name.

    A result has no interval if it cannot be computed for most draws, if it counts what is in the data, or if it is the
    same for all draws, which is no sign of certainty.

    Args:
        columns: Outputs of the task by name, `[N, ...]` each. A metric that needs other columns is left out, and every
            metric if there is only one row.
        seed: The intervals are a function of the seed and the columns.
    """
    intervals: dict[str, Interval] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about draws for which a score is not defined
        for metric in metrics:
            if metric.columns.keys() <= columns.keys() and len(columns["predictions"]) > 1:
                compared = {name: columns[name] for name in metric.columns}
                generator = np.random.default_rng(seed)
                intervals |= _find_intervals_of(metric, compared, generator)
    return intervals


def draw_means(values: np.ndarray, generator: np.random.Generator, *, draws: int = _DRAWS) -> np.ndarray:
    """Return the means of about `draws` samples of N of the values `[N]`, drawn with replacement."""
    distinct, counts = np.unique(values, return_counts=True)
    if len(distinct) <= _FEW_VALUES:  # draw how often each value occurs: the same distribution, and fast
        sums: np.ndarray = generator.multinomial(len(values), counts / len(values), size=draws) @ distinct
        return sums / len(values)
    draws = min(draws, max(_FEWER_DRAWS[0], _ROWS_TO_DRAW // len(values)))
    return np.array([values[generator.integers(0, len(values), len(values))].mean() for _ in range(draws)])


def _find_intervals_of(
    metric: NamedMetric, columns: Mapping[str, np.ndarray], generator: np.random.Generator
) -> dict[str, Interval]:
    whole = _compute(metric, columns, slice(None))
    if whole is None:
        return {}
    row_values = _find_row_values(metric, columns, whole)
    if row_values is not None:
        drawn = {name: draw_means(values, generator) for name, values in row_values.items()}
    else:
        drawn = _draw_results(metric, columns, whole, generator)
    limits = [50 - 50 * LEVEL, 50 + 50 * LEVEL]
    shown = [name for name in whole if name in drawn and not is_count(name)]
    intervals = {name: Interval(whole[name], *np.percentile(drawn[name], limits).tolist()) for name in shown}
    return {name: interval for name, interval in intervals.items() if interval.low < interval.high}


def _draw_results(
    metric: NamedMetric,
    columns: Mapping[str, np.ndarray],
    whole: Mapping[str, float],
    generator: np.random.Generator,
) -> dict[str, np.ndarray]:
    """Return the results for draws of all rows; for many rows, of fewer rows, with the larger spread scaled.

    That is the m out of n bootstrap (Bickel, Götze and van Zwet 1997) with the rate of a root.
    """
    count, has_texts = len(next(iter(columns.values()))), any(column.dtype == object for column in columns.values())
    most = _TEXTS_TO_COMPUTE if has_texts else _ROWS_TO_COMPUTE
    draws = int(np.clip(most // count, *_FEWER_DRAWS))
    size = min(count, most // draws)
    results = [_compute(metric, columns, generator.integers(0, count, size)) for _ in range(draws)]
    computed = [result for result in results if result is not None]
    if len(computed) < 0.9 * draws:
        return {}
    names = set.intersection(*(set(result) for result in computed)) & whole.keys()
    drawn = {name: np.array([result[name] for result in computed]) for name in names}
    if size == count:
        return drawn
    return {name: whole[name] + (values - values.mean()) * math.sqrt(size / count) for name, values in drawn.items()}


def _find_row_values(
    metric: NamedMetric, columns: Mapping[str, np.ndarray], whole: Mapping[str, float]
) -> dict[str, np.ndarray] | None:
    """Return the values of the rows, `[N]`, whose means the results are; None if the results are not such means."""
    count = len(next(iter(columns.values())))
    groups = np.arange(count)  # rows with the same values have the same result
    if all(column.ndim == 1 and column.dtype != object for column in columns.values()):
        table = np.stack([column.astype(np.float64) for column in columns.values()], axis=1)
        _, firsts, groups = np.unique(table, axis=0, return_index=True, return_inverse=True)
        groups = firsts[groups.ravel()]
    # Several random samples: a correlation is 0 for each single row, and by chance for some samples too.
    draws = np.random.default_rng(0).integers(0, count, (_SAMPLES, min(_SAMPLE, count)))
    for sample in groups[draws]:
        result = _compute(metric, columns, sample)
        if result is None or _compute_each(metric, columns, sample, result) is None:
            return None
    return None if len(set(groups)) > _MOST_ROW_VALUES else _compute_each(metric, columns, groups, whole)


def _compute_each(
    metric: NamedMetric, columns: Mapping[str, np.ndarray], rows: np.ndarray, expected: Mapping[str, float]
) -> dict[str, np.ndarray] | None:
    """Return the results of each row; None unless their means are the expected results."""
    results = {row: _compute(metric, columns, np.array([row])) for row in dict.fromkeys(rows.tolist())}
    if any(result is None or result.keys() != expected.keys() for result in results.values()):
        return None
    values = {name: np.array([(results[row] or {})[name] for row in rows.tolist()]) for name in expected}
    are_means = all(np.isclose(values[name].mean(), expected[name], rtol=1e-9, atol=1e-12) for name in expected)
    return values if are_means else None


def _compute(
    metric: NamedMetric, columns: Mapping[str, np.ndarray], rows: slice | np.ndarray
) -> dict[str, float] | None:
    """Return the results for some rows; None if they cannot be computed."""
    try:
        return metric.compute({name: column[rows] for name, column in columns.items()})
    except (UserError, ImportError):  # such as a score that is not finite, or a missing package
        return None
