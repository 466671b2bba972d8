"""A metric that was loaded: computing it, and the names its results are reported under."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from trainer_loop.errors import UserError, in_one_line

if TYPE_CHECKING:  # importing evaluate takes seconds
    import evaluate

RESERVED = ("loss", "rows")  # keys of an evaluation that are the loop's own


@dataclass(frozen=True)
class NamedMetric:
    """A metric with the arguments it computes with and the name its results are reported under."""

    place: str  # the key of the config it comes from
    name: str
    module: "evaluate.Metric"
    arguments: Mapping[str, Any]
    key: str | None = None

    def compute(self, predictions: Any, references: Any) -> dict[str, float]:
        """Compare two arrays, `[N]` or `[N, ...]`; every result is a finite float.

        A list becomes `f1/0`, `f1/1`, ..., numbered by the argument `labels` where there is one; a dict becomes
        `PER/f1`, .... `key` replaces the name of an only result, and goes before the names of several.

        Raise UserError when there are no rows, when the two arrays do not fit each other or the metric, and when a
        result is not a finite number.
        """
        columns = {"predictions": np.asarray(predictions), "references": np.asarray(references)}
        problems = _column_problems(columns, self.module.features)
        if problems:
            raise UserError([f"{self.place}: {self.name} {problem}" for problem in problems])
        try:
            results = self.module.compute(**columns, **self.arguments)
        except ValueError as error:
            raise UserError(f"{self.place}: {self.name} cannot be computed: {in_one_line(error)}") from error
        names = name_results(list(results), self.key)
        values: dict[str, Any] = {}
        for name, value in zip(names, results.values(), strict=True):
            values.update(_flatten(name, value, labels=self.arguments.get("labels")))
        bad = [f"{name} = {value}" for name, value in values.items() if not _is_finite(value)]
        if bad:
            raise UserError(f"{self.place}: {self.name} gave {', '.join(bad)}; a result must be a finite number")
        return {name: float(value) for name, value in values.items()}


def compute_metrics(metrics: Sequence[NamedMetric], *, predictions: Any, references: Any) -> dict[str, float]:
    """The results of all metrics in one dict. Raise UserError where a key is reported twice or is the loop's own."""
    results: dict[str, float] = {}
    problems = []
    for metric in metrics:
        for name, value in metric.compute(predictions, references).items():
            if name in results or name in RESERVED:
                problems.append(f"{metric.place}: {metric.name} reports {name}, which is taken; set its key")
            results[name] = value
    if problems:
        raise UserError(problems)
    return results


def name_results(names: list[str], key: str | None) -> list[str]:
    """The names of a metric's results; `key` replaces an only one, and goes before several."""
    if key is None:
        return names
    return [key] if len(names) == 1 else [f"{key}/{name}" for name in names]


def _flatten(name: str, value: Any, *, labels: Sequence[Any] | None) -> Iterator[tuple[str, Any]]:
    """(name, scalar) of a scalar, a list or array of any depth, or a dict of such; `labels` number a list."""
    if isinstance(value, Mapping):
        parts = list(value.items())
    elif isinstance(value, (list, tuple)) or getattr(value, "ndim", 0) > 0:
        numbers = labels if labels is not None and len(labels) == len(value) else range(len(value))
        parts = list(zip(numbers, value, strict=True))
    else:
        yield name, value
        return
    for part, inner in parts:
        yield from _flatten(f"{name}/{part}", inner, labels=labels)


def _is_finite(value: Any) -> bool:
    try:
        return math.isfinite(float(value))
    except (TypeError, ValueError):
        return False


def _column_problems(columns: Mapping[str, np.ndarray], features: Any) -> list[str]:
    """What evaluate would pass over in silence or say in a riddle."""
    import datasets

    predictions, references = columns["predictions"], columns["references"]
    if len(predictions) != len(references):
        return [f"has {len(predictions)} predictions for {len(references)} references; it compares them row by row"]
    if len(predictions) == 0:
        return ["has no rows to score; give the split at least one row"]
    problems = []
    for name, column in columns.items():
        feature = features.get(name) if isinstance(features, dict) else None
        if isinstance(feature, datasets.Value) and "int" in feature.dtype and column.dtype.kind == "f":
            fractions = np.argwhere(
                ~(np.isfinite(column) & (np.trunc(column) == column))
            )  # evaluate would cut 0.9 down to 0
            if len(fractions):
                row = int(fractions[0][0])
                problems.append(f"compares whole numbers and {name} has {column[row]} in row {row}")
    return problems
