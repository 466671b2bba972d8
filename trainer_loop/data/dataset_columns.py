"""Builds a `datasets.Dataset` from Arrow columns, and reads, searches and replaces its columns."""

import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import datasets
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

_READ_ROWS = 10_000  # rows that are read at a time

Mask = npt.NDArray[np.bool_]
Test = Callable[[pa.ChunkedArray], pa.ChunkedArray]


def as_rows(table: Any) -> datasets.Dataset:
    """Convert a table of Arrow or datasets to a Dataset. The fingerprint is random: datasets would hash all rows."""
    return datasets.Dataset(table, fingerprint=uuid.uuid4().hex)


def as_typed_rows(table: pa.Table, features: Mapping[str, Any]) -> datasets.Dataset:
    """Convert a table to a Dataset. `features` are types of some columns; the others have those of the table."""
    typed = datasets.Features.from_arrow_schema(pa.schema(table.schema)) | dict(features)
    return as_rows(table.replace_schema_metadata(datasets.Features(typed).arrow_schema.metadata))


def make_dataset(
    arrays: Mapping[str, Any], names: Sequence[str], num_rows: int, metadata: Mapping[bytes, bytes] | None = None
) -> datasets.Dataset:
    """Build a Dataset from columns.

    Args:
        arrays: Values by column.
        names: Names of all columns of the source. If `arrays` is empty, the first becomes a column of nulls.
        num_rows: Number of rows.
        metadata: Metadata of the schema.
    """
    if not arrays and names:
        arrays, metadata = {names[0]: pa.nulls(num_rows)}, None
    return as_rows(pa.table(dict(arrays)).replace_schema_metadata(metadata))


def read_column(rows: datasets.Dataset, column: str) -> Iterator[pa.ChunkedArray]:
    """Yield a column in parts of some rows."""
    if rows._indices is None:  # else it selects or reorders the rows of its table
        whole = rows.data.column(column)
        yield from (whole.slice(start, _READ_ROWS) for start in range(0, len(whole), _READ_ROWS))
        return
    table: Any
    for table in rows.select_columns([column]).with_format("arrow").iter(batch_size=_READ_ROWS):
        yield table[column]


def read_values(rows: datasets.Dataset, column: str) -> Iterator[Any]:
    """Yield the values of a column as Python objects."""
    return (value for part in read_column(rows, column) for value in part.to_pylist())


def whole_column(rows: datasets.Dataset, column: str) -> pa.ChunkedArray:
    table: Any = rows.select_columns([column]).with_format("arrow")[:]
    return table[column]


def find_rows(rows: datasets.Dataset, column: str, test: Test) -> Mask:
    """Return a mask `[N]` of the rows whose value passes the test."""
    masks = [np.asarray(pc.fill_null(test(part), False)) for part in read_column(rows, column)]
    return np.concatenate([np.zeros(0, dtype=np.bool_), *masks])


def replace_columns(rows: datasets.Dataset, columns: Mapping[str, Any]) -> datasets.Dataset:
    """Replace the columns of these names by Arrow columns."""
    if not columns:
        return rows
    table: pa.Table = rows.with_format("arrow")[:]
    for name, column in columns.items():
        table = table.set_column(table.column_names.index(name), name, column)
    return as_typed_rows(table, {name: feature for name, feature in rows.features.items() if name not in columns})
