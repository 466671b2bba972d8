"""A metric that was loaded: computing it, and the names its results are reported under."""

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from trainer_loop.errors import UserError, in_one_line, refuse
from trainer_loop.metrics.values import InParts

RESERVED = ("loss", "rows")  # keys of an evaluation that are the loop's own
COLUMNS = ("predictions", "references")  # what every metric of evaluate's form compares


@dataclass(frozen=True)
class NamedMetric:
    """A metric with the arguments it computes with and the name its results are reported under.

    columns: the task's outputs that it compares, and what numbers each is converted to, `[N]`; None: it stays as it is.
    """

    place: str  # the key of the config it comes from
    name: str
    compute_rows: Callable[..., Any]  # (columns and arguments by name) -> a number, or a dict of results
    arguments: Mapping[str, Any]
    key: str | None = None
    columns: Mapping[str, type[np.generic] | None] = field(default_factory=lambda: dict.fromkeys(COLUMNS))

    def compute(self, outputs: Mapping[str, Any]) -> dict[str, float]:
        """Compare what a task gives, arrays `[N]` or `[N, ...]` by name; every result is a finite float.

        A list becomes `f1/0`, `f1/1`, ..., numbered by the argument `labels` where there is one; a dict becomes
        `PER/f1`, ..., and a result `InParts` `entity_f1`, `entity_f1/PER`, .... `key` replaces the name of an only
        result, and goes before the names of several.

        Raise UserError when a column is missing, when there are no rows, when the columns do not fit each other or the
        metric, and when a result is not a finite number.
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
    """What to say of a metric that asks for what the task does not give."""
    return f"{place}: {name} asks for {', '.join(missing)}, and the task gives {', '.join(outputs)}"


def compute_metrics(
    metrics: Sequence[NamedMetric], outputs: Mapping[str, Any], *, taken: Collection[str] = ()
) -> dict[str, float]:
    """The results of all metrics in one dict. Raise UserError where a key is reported twice or is the loop's own.

    taken: names that the evaluation has for something else.
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
    """The names of a metric's results; `key` replaces an only one, and goes before several."""
    if key is None:
        return names
    return [key] if len(names) == 1 else [f"{key}/{name}" for name in names]


def _flatten(name: str, value: Any, *, labels: Sequence[Any] | None) -> Iterator[tuple[str, Any]]:
    """(name, scalar) of a scalar, a list or array of any depth, or a dict of such; `labels` number a list."""
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
    """What a conversion or a metric would pass over in silence or say in a riddle."""
    lengths = {len(column) for column in columns.values()}
    if len(lengths) > 1:
        told = " and ".join(f"{len(column)} {name}" for name, column in columns.items())
        return [f"has {told}; it compares them row by row"]
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
    """Raise ValueError where a value is no such number."""
    try:
        return column if dtype is None else column.astype(dtype, copy=False)
    except TypeError as error:
        raise ValueError(str(error)) from error
