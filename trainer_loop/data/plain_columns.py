"""Selects the columns that a task reads, joins several columns to one, and converts them to plain types.

A joined column is made of several columns of the data: one for each label, as in data sets of toxic comments, or one
for each number. Its values are dicts of the raw values, such as `{"toxic": 1, "obscene": 0}`. After the checks, a
joined column of labels becomes a list of the labels of the row, `["toxic"]`.
"""

import dataclasses
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from trainer_loop.data.arrow_types import plain_array, whole_numbers
from trainer_loop.data.columns import Columns
from trainer_loop.data.dataset_columns import as_typed_rows, read_column, read_values, replace_columns, whole_column
from trainer_loop.data.fingerprint import digest
from trainer_loop.data.images import DATA_URI
from trainer_loop.data.split import Split
from trainer_loop.data.values import count_numbers, list_flagged


def with_plain_columns(split: Split, columns: Columns) -> Split:
    """Keep only the columns that are read, with plain types. Labels that are floats without fractions become integers.

    Some libraries write integers with missing values as floats.
    """
    rows, images = split.rows, columns.of_kind("image")
    names = list(split.columns or rows.column_names)
    for name in images:
        if isinstance(rows.features.get(name), datasets.Image):
            rows = rows.cast_column(name, datasets.Image(decode=False))
    rows = join_columns(rows, columns.joined, keep=columns.names.values())
    present = [name for name in rows.column_names if name in {*columns.all, *columns.stored}]
    present = present or rows.column_names[:1]  # keeps the number of rows
    if len(present) < len(rows.column_names):
        rows = rows.select_columns(present)
    converted: dict[str, pa.ChunkedArray] = {}
    for name, kind in zip(rows.column_names, rows.features.arrow_schema.types, strict=True):
        if name in columns.of_kind("text") and pa.types.is_string_view(kind):
            converted[name] = plain_array(whole_column(rows, name))
        elif name == columns.single_label and (pa.types.is_floating(kind) or pa.types.is_decimal(kind)):
            column = whole_column(rows, name)
            numbers = whole_numbers(column) if column.null_count < len(column) else None
            converted |= {} if numbers is None else {name: numbers}
    rows = replace_columns(rows, converted)
    image_columns = (column for name in images if name in rows.column_names for column in read_column(rows, name))
    paths = [path for column in image_columns for path in _list_paths(column)]
    fingerprint = split.fingerprint
    if any(paths):
        fingerprint = digest(fingerprint.encode(), _fingerprint_files(paths).encode())
    return dataclasses.replace(split, rows=rows, columns=names, fingerprint=fingerprint)


def join_columns(
    rows: datasets.Dataset, joined: Mapping[str, Sequence[str]], *, keep: Collection[str] = ()
) -> datasets.Dataset:
    """Replace columns by the joined columns. A joined column with a missing part is left out.

    Args:
        rows: The raw rows.
        joined: Names of the parts by the name of the joined column.
        keep: Columns that are also read by themselves, so they stay.
    """
    for name, parts in joined.items():
        is_joined = name in rows.column_names and isinstance(rows.features[name], dict)
        if is_joined or not set(parts) <= set(rows.column_names):
            continue
        table: pa.Table = rows.with_format("arrow")[:]
        column = pa.StructArray.from_arrays([table[part].combine_chunks() for part in parts], names=list(parts))
        others = {other: feature for other, feature in rows.features.items() if other not in parts or other in keep}
        rows = as_typed_rows(table.select(list(others)).append_column(name, column), others)
    return rows


def join_values(values: Mapping[str, Any], joined: Mapping[str, Sequence[str]]) -> Mapping[str, Any]:
    """Add the joined columns to one row of a stream."""
    return {**values, **{name: {part: values.get(part) for part in parts} for name, parts in joined.items()}}


def name_labels_of_rows(split: Split, columns: Columns) -> Split:
    """Convert a joined column of labels to lists of labels."""
    label = columns.label
    if label is None or label not in columns.joined or label not in split.rows.column_names:
        return split
    lists = pa.array([list_flagged(value) for value in read_values(split.rows, label)], pa.list_(pa.string()))
    return dataclasses.replace(split, rows=replace_columns(split.rows, {label: lists}))


def find_num_numbers(splits: Mapping[str, Split], columns: Columns) -> int | None:
    """Return the count of numbers in the first training row that has any; None if there is no such row or column."""
    name, train = columns.numbers, splits.get("train")
    if name is None or train is None or name not in train.rows.column_names:
        return None
    counts = (count_numbers(value) for value in read_values(train.rows, name) if value is not None)
    return next(filter(None, counts), None)


def _list_paths(column: pa.ChunkedArray) -> list[str | None]:
    """Return the paths in a column of images; None for images that are stored as bytes, which are not read."""
    if pa.types.is_struct(column.type) and {"bytes", "path"} <= {field.name for field in column.type}:
        has_bytes = pc.is_valid(pc.struct_field(column, "bytes"))
        column = pc.if_else(has_bytes, pa.scalar(None, pa.string()), pc.struct_field(column, "path"))
    elif not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
        return [None] * len(column)
    paths: list[str | None] = column.to_pylist()
    return paths


def _fingerprint_files(paths: Iterable[str | None]) -> str:
    """Return a hash of the sizes of these files. A file that changes usually changes its size."""
    sizes = (Path(path).stat().st_size if path is not None and _is_file(path) else -1 for path in paths)
    return digest(np.fromiter(sizes, dtype=np.int64).tobytes())


def _is_file(path: str) -> bool:
    try:
        return not path.startswith(DATA_URI) and Path(path).is_file()
    except (OSError, ValueError):  # the system rejects the name
        return False
