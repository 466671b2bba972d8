"""Computes loaded metrics, and names their results."""

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from trainer_loop.errors import UserError, in_one_line, refuse
from trainer_loop.metrics.values import InParts

RESERVED = ("loss", "rows")  # keys that the loop itself reports for an evaluation
COLUMNS = ("predictions", "references")  # columns that every metric of the evaluate library compares


@dataclass(frozen=True)
class NamedMetric:
    """A metric with its arguments, and the key under which it is reported.

    Attributes:
        columns: The outputs of the task that it compares, and the dtype that each is converted to, `[N]`; None: it is
            not converted.
    """

    place: str  # the key of the config it comes from
    name: str
    compute_rows: Callable[..., Any]  # (columns and arguments by name) -> a number, or a dict of results
    arguments: Mapping[str, Any]
    key: str | None = None
    columns: Mapping[str, type[np.generic] | None] = field(default_factory=lambda: dict.fromkeys(COLUMNS))

    def compute(self, outputs: Mapping[str, Any]) -> dict[str, float]:
        """Compute the metric from the outputs of a task, arrays `[N]` or `[N, ...]` by name.

        A list result becomes `f1/0`, `f1/1`, ..., numbered by the argument `labels` if given. A dict becomes
        `PER/f1`, .... A result `InParts` becomes `entity_f1`, `entity_f1/PER`, .... `key` replaces the name of a single
        result, and is the prefix of several.

        Returns:
            Finite floats by name.

        Raises:
            UserError: A column is missing, there are no rows, columns do not match each other or the metric, or a
                result is not finite.
        """
        if missing := [name for name in self.columns if name not in outputs]:
            raise UserError(describe_missing(self.place, self.name, missing, outputs))
        columns = {name: np.asarray(outputs[name]) for name in self.columns}
        refuse([f"{self.place}: {self.name} {problem}" for problem in _column_problems(columns, self.columns)])
        try:
            numbers = {name: _convert(column, self.columns[name]) for name, column in columns.items()}
            results = self.compute_rows(**numbers, **self.arguments)
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
    """Return the message for a metric that needs outputs which the task does not have."""
    return f"{place}: {name} asks for {', '.join(missing)}, and the task gives {', '.join(outputs)}"


def compute_metrics(
    metrics: Sequence[NamedMetric], outputs: Mapping[str, Any], *, taken: Collection[str] = ()
) -> dict[str, float]:
    """Compute all metrics. Raises UserError if two results have the same key, or a key is reserved.

    Args:
        taken: Further names that the evaluation uses.
    """
    results: dict[str, float] = {}
    problems = []
    for metric in metrics:
        for name, value in metric.compute(outputs).items():
            if name in results or name in RESERVED or name in taken:
                problems.append(f"{metric.place}: {metric.name} reports {name}, which is taken; set its key")
            results[name] = value
    refuse(problems)
    return results


def name_results(names: list[str], key: str | None) -> list[str]:
    """Return the names of a metric's results. `key` replaces a single name, and is the prefix of several."""
    if key is None:
        return names
    return [key] if len(names) == 1 else [f"{key}/{name}" for name in names]


def _flatten(name: str, value: Any, *, labels: Sequence[Any] | None) -> Iterator[tuple[str, Any]]:
    """Yield (name, scalar) for a scalar, or for a nested list, array or dict. `labels` name the items of a list."""
    parts: list[tuple[Any, Any]]
    if isinstance(value, InParts):
        if value.whole is not None:
            yield name, value.whole
        parts = list(value.parts.items())
    elif isinstance(value, Mapping):
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


def _column_problems(columns: Mapping[str, np.ndarray], dtypes: Mapping[str, type[np.generic] | None]) -> list[str]:
    """Return problems of the columns that a metric would ignore or report unclearly."""
    lengths = {len(column) for column in columns.values()}
    if len(lengths) > 1:
        counts = " and ".join(f"{len(column)} {name}" for name, column in columns.items())
        return [f"has {counts}; it compares them row by row"]
    if lengths == {0}:
        return ["has no rows to score; give the split at least one row"]
    problems = []
    for name, column in columns.items():
        if dtypes[name] is np.int64 and column.dtype.kind == "f":
            fractions = np.argwhere(~(np.isfinite(column) & (np.trunc(column) == column)))  # 0.9 would become 0
            if len(fractions):
                row = int(fractions[0][0])
                problems.append(f"compares whole numbers and {name} has {column[row]} in row {row}")
                continue
        if dtypes[name] is not None and column.ndim != 1:
            problems.append(f"compares one number a row and {name} has the shape {list(column.shape)}")
    return problems


def _convert(column: np.ndarray, dtype: type[np.generic] | None) -> np.ndarray:
    """Convert a column. Raises ValueError for a value that cannot be converted."""
    try:
        return column if dtype is None else column.astype(dtype, copy=False)
    except TypeError as error:
        raise ValueError(str(error)) from error
