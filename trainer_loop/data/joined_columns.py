"""Several columns that are read as one: a column for each label of a row, as in files of toxic comments, or number.

The joined column holds `{"toxic": 1, "obscene": 0}`, values as they stand in the file. Of labels it has, once they are
checked, the list of those of the row, `["toxic"]`.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import datasets
import pyarrow as pa

from trainer_loop.data.arrow_types import as_typed_rows
from trainer_loop.data.columns import Columns
from trainer_loop.data.split import Split
from trainer_loop.data.values import is_nan
from trainer_loop.data.wording import shorten

_FLAGS = {"0": False, "1": True, "0.0": False, "1.0": True, "false": False, "true": True}


def join_columns(
    rows: datasets.Dataset, joined: Mapping[str, Sequence[str]], *, kept: Collection[str] = ()
) -> datasets.Dataset:
    """The rows with the joined columns in the place of their parts; one of which a part is missing is left out.

    joined: the names of the parts, by the names of the joined columns. kept: parts that are read by themselves, too.
    """
    for name, parts in joined.items():
        is_joined = name in rows.column_names and isinstance(rows.features[name], dict)
        if is_joined or not set(parts) <= set(rows.column_names):
            continue
        table: pa.Table = rows.with_format("arrow")[:]
        column = pa.StructArray.from_arrays([table[part].combine_chunks() for part in parts], names=list(parts))
        others = {other: feature for other, feature in rows.features.items() if other not in parts or other in kept}
        rows = as_typed_rows(table.select(list(others)).append_column(name, column), others)
    return rows


def join_values(values: Mapping[str, Any], joined: Mapping[str, Sequence[str]]) -> Mapping[str, Any]:
    """The same for one row of a stream."""
    return {**values, **{name: {part: values.get(part) for part in parts} for name, parts in joined.items()}}


def is_nothing(value: Any) -> bool:
    """Whether a value is missing: null, NaN, or a blank text."""
    return value is None or is_nan(value) or (isinstance(value, str) and not value.strip())


def lacks_part(value: Mapping[str, Any]) -> bool:
    """Whether a joined value has nothing in one of its columns."""
    return any(is_nothing(part) for part in value.values())


def find_fault_of_flags(value: Mapping[str, Any]) -> str | None:
    """What is wrong with a joined value that says of each label whether the row has it; None: nothing."""
    for name, flag in value.items():
        if is_nothing(flag):
            return f"has nothing in {name!r}"
        if _read_flag(flag) is None:
            return f"has {shorten(flag)} in {name!r}, which is none of 0, 1, true and false,"
    return None


def list_flagged(value: Mapping[str, Any]) -> list[str]:
    """The labels of a row whose joined value has no fault.

    >>> list_flagged({"toxic": "1", "obscene": False, "threat": 1.0})
    ['toxic', 'threat']
    """
    return [name for name, flag in value.items() if _read_flag(flag)]


def name_labels_of_rows(split: Split, columns: Columns) -> Split:
    """The split with the list of its labels in each row, if a column for each label says so."""
    label = columns.label
    if label is None or label not in columns.joined or label not in split.rows.column_names:
        return split
    table: pa.Table = split.rows.with_format("arrow")[:]
    lists = pa.array([list_flagged(value) for value in table[label].to_pylist()], pa.list_(pa.string()))
    others = {name: feature for name, feature in split.rows.features.items() if name != label}
    return replace(split, rows=as_typed_rows(table.drop_columns([label]).append_column(label, lists), others))


def _read_flag(value: Any) -> bool | None:
    """Whether a row has a label; None: the value does not say."""
    if isinstance(value, str):
        return _FLAGS.get(value.strip().lower())
    return bool(value) if value in (0, 1) else None
