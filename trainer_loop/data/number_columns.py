"""How many numbers a row has to predict: as many in each."""

from collections.abc import Mapping
from typing import Any

import datasets
import numpy as np
import numpy.typing as npt

from trainer_loop.data.column_values import read_numbers
from trainer_loop.data.columns import Columns
from trainer_loop.data.missing import read_column
from trainer_loop.data.split import Split
from trainer_loop.data.wording import plural


def count_numbers(value: Any) -> int:
    """Of a value of the kind `numbers`."""
    return len(value) if isinstance(value, (list, tuple, Mapping)) else 1


def check_numbers(
    splits: Mapping[str, Split], columns: Columns, *, expected: int | None = None
) -> tuple[list[str], int | None]:
    """Check that rows without other faults have as many numbers as the first training row.

    Args:
        expected: How many there must be; None: as many as in the first training row.

    Returns:
        Problems, and how many numbers a row has; None if the task reads none, or there is no training row.
    """
    name = columns.numbers
    if name is None:
        return [], None
    if expected is None:
        if "train" not in splits or not len(splits["train"].rows):
            return [], None
        expected = count_numbers(splits["train"].rows[0][name])
    problems = []
    for split in splits.values():
        counts = _count_each(split, name)
        wrong = np.flatnonzero(counts != expected)
        if len(wrong):
            found, place = plural(int(counts[wrong[0]]), "number"), split.origins.place(int(wrong[0]))
            problems.append(
                f"data.{split.name}: column {name!r} has {found} in {place}, and {expected} in the first training row; "
                "each row needs as many"
            )
    return problems, expected


def _count_each(split: Split, name: str) -> npt.NDArray[np.int64]:
    """`[N]` numbers of each row."""
    if isinstance(split.rows.features[name], datasets.Value):
        return np.ones(len(split.rows), dtype=np.int64)
    return np.array([count_numbers(value) for part in read_column(split.rows, name) for value in part.to_pylist()])


def name_numbers(columns: Columns, count: int | None) -> list[str] | None:
    """The names of several numbers, those of their columns or 0, 1, ...; None for one number, or none."""
    if count is None or count == 1:
        return None
    return list(columns.joined.get(columns.numbers or "", map(str, range(count))))


def list_numbers(split: Split, columns: Columns) -> npt.NDArray[np.float64]:
    """The numbers of all rows, `[N]`, or `[N, K]` if a row has several."""
    assert columns.numbers is not None, "a task that scales reads a column of the kind numbers"
    parts = read_column(split.rows, columns.numbers)
    return np.array([read_numbers(value) for part in parts for value in part.to_pylist()], dtype=np.float64)
