"""Merges the outputs of all encoded rows of a raw row into one prediction, by `Task.merge`."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from trainer_loop.tasks.task import Task


def merge_outputs(
    task: Task, outputs: Mapping[str, np.ndarray], *, sources: Sequence[int], read: Callable[[int], Mapping[str, Any]]
) -> tuple[dict[str, np.ndarray], list[int]]:
    """Merge the outputs of encoded rows for each raw row.

    Args:
        outputs: The outputs of `predict`, `[N, ...]` by name.
        sources: The number of the raw row of each encoded row, `[N]`, ascending.
        read: Returns the raw row of a number, by the task's columns.

    Returns:
        The outputs of the M raw rows, `[M]` by name, and the number of the first encoded row of each.
    """
    starts = np.flatnonzero(np.diff(sources, prepend=-1)).tolist()
    merged = []
    for start, end in zip(starts, [*starts[1:], len(sources)], strict=True):
        parts = [{name: column[row] for name, column in outputs.items()} for row in range(start, end)]
        merged.append(task.merge(parts, read(sources[start])))
    names = merged[0] if merged else ()
    return {name: _as_column([row[name] for row in merged]) for name in names}, starts


def _as_column(values: Sequence[Any]) -> np.ndarray:
    """Return numbers, and arrays of equal shape, as a numeric array; other values, such as texts, as objects."""
    if all(isinstance(value, (bool, int, float, np.generic)) for value in values):
        return np.array(values)
    if all(isinstance(value, np.ndarray) for value in values) and len({value.shape for value in values}) == 1:
        return np.stack(values)
    return np.fromiter(values, dtype=object, count=len(values))
