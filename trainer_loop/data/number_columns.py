"""How many numbers a row has to predict: as many in each."""

from collections.abc import Mapping
from typing import Any

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


def find_num_numbers(splits: Mapping[str, Split], columns: Columns) -> int | None:
    """How many numbers the first training row has that has some; None if none has, or the task reads none."""
    name, train = columns.numbers, splits.get("train")
    if name is None or train is None or name not in train.rows.column_names:
        return None
    values = (value for part in read_column(train.rows, name) for value in part.to_pylist() if value is not None)
    return next((count for count in map(count_numbers, values) if count), None)


def find_fault_of_count(value: Any, expected: int | None) -> str | None:
    """What is wrong with how many numbers a value has, as the rest of a sentence. expected: None for any."""
    if expected is None or count_numbers(value) == expected:
        return None
    return f"has {plural(count_numbers(value), 'number')} where the first training row has {expected}"


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
