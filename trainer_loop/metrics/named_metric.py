"""A metric that was loaded: computing it, and the names its results are reported under."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from trainer_loop.errors import UserError, in_one_line

RESERVED = ("loss", "rows")  # keys of an evaluation that are the loop's own
COLUMNS = ("predictions", "references")  # what every metric of evaluate's form compares


@dataclass(frozen=True)
class NamedMetric:
    """A metric with the arguments it computes with and the name its results are reported under."""

    place: str  # the key of the config it comes from
    name: str
    compute_rows: Callable[..., Any]  # (columns and arguments by name) -> a number, or a dict of results
    arguments: Mapping[str, Any]
    key: str | None = None
    columns: Sequence[str] = COLUMNS  # those of the task's outputs that it compares
    features: Any = None  # what evaluate says of the columns, where it says so

    def compute(self, outputs: Mapping[str, Any]) -> dict[str, float]:
        """Compare what a task gives, arrays `[N]` or `[N, ...]` by name; every result is a finite float.

        A list becomes `f1/0`, `f1/1`, ..., numbered by the argument `labels` where there is one; a dict becomes
        `PER/f1`, .... `key` replaces the name of an only result, and goes before the names of several.

        Raise UserError when a column is missing, when there are no rows, when the columns do not fit each other or the
        metric, and when a result is not a finite number.
        """
        if missing := [name for name in self.columns if name not in outputs]:
            raise UserError(describe_missing(self.place, self.name, missing, outputs))
        columns = {name: np.asarray(outputs[name]) for name in self.columns}
        problems = _column_problems(columns, self.features)
        if problems:
            raise UserError([f"{self.place}: {self.name} {problem}" for problem in problems])
        try:
            results = self.compute_rows(**columns, **self.arguments)
        except ValueError as error:
            raise UserError(f"{self.place}: {self.name} cannot be computed: {in_one_line(error)}") from error
        if not isinstance(results, Mapping):
            results = {self.name.rpartition(".")[2]: results}
        names = name_results(list(results), self.key)
        values: dict[str, Any] = {}
        for name, value in zip(names, results.values(), strict=True):
            values.update(_flatten(name, value, labels=self.arguments.get("labels")))
        bad = [f"{name} = {value}" for name, value in values.items() if not _is_finite(value)]
        if bad:
            raise UserError(f"{self.place}: {self.name} gave {', '.join(bad)}; a result must be a finite number")
        return {name: float(value) for name, value in values.items()}


def describe_missing(place: str, name: str, missing: Sequence[str], outputs: Iterable[str]) -> str:
    """What to say of a metric that asks for what the task does not give."""
    return f"{place}: {name} asks for {', '.join(missing)}, and the task's `predict` gives {', '.join(outputs)}"


def compute_metrics(metrics: Sequence[NamedMetric], outputs: Mapping[str, Any]) -> dict[str, float]:
    """The results of all metrics in one dict. Raise UserError where a key is reported twice or is the loop's own."""
    results: dict[str, float] = {}
    problems = []
    for metric in metrics:
        for name, value in metric.compute(outputs).items():
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

    lengths = {len(column) for column in columns.values()}
    if len(lengths) > 1:
        told = " and ".join(f"{len(column)} {name}" for name, column in columns.items())
        return [f"has {told}; it compares them row by row"]
    if lengths == {0}:
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
