"""A `datasets.Dataset` made of columns of Arrow, and its columns: read, searched and replaced."""

import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import datasets
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

_READ_ROWS = 10_000  # at a time

Mask = npt.NDArray[np.bool_]
Test = Callable[[pa.ChunkedArray], pa.ChunkedArray]


def as_rows(table: Any) -> datasets.Dataset:
    """A table of Arrow or datasets as a data set; the name that datasets would give it takes reading all of it."""
    return datasets.Dataset(table, fingerprint=uuid.uuid4().hex)


def as_typed_rows(table: pa.Table, features: Mapping[str, Any]) -> datasets.Dataset:
    """A table as a data set. features: the types that datasets has for some columns; the others keep those of Arrow."""
    typed = datasets.Features.from_arrow_schema(pa.schema(table.schema)) | dict(features)
    return as_rows(table.replace_schema_metadata(datasets.Features(typed).arrow_schema.metadata))


def make_dataset(
    arrays: Mapping[str, Any], names: Sequence[str], num_rows: int, metadata: Mapping[bytes, bytes] | None = None
) -> datasets.Dataset:
    """Columns as a data set. names: of all columns there are; where none is wanted, the first stands in as nulls.

    metadata: what is noted beside the types.
    """
    if not arrays and names:
        arrays, metadata = {names[0]: pa.nulls(num_rows)}, None
    return as_rows(pa.table(dict(arrays)).replace_schema_metadata(metadata))


def read_column(rows: datasets.Dataset, column: str) -> Iterator[pa.ChunkedArray]:
    """A column, some rows at a time."""
    if rows._indices is None:  # else it has other rows than its table, or in another order
        whole = rows.data.column(column)
        yield from (whole.slice(start, _READ_ROWS) for start in range(0, len(whole), _READ_ROWS))
        return
    table: Any
    for table in rows.select_columns([column]).with_format("arrow").iter(batch_size=_READ_ROWS):
        yield table[column]


def read_values(rows: datasets.Dataset, column: str) -> Iterator[Any]:
    """The values of a column, as Python has them."""
    return (value for part in read_column(rows, column) for value in part.to_pylist())


def whole_column(rows: datasets.Dataset, column: str) -> pa.ChunkedArray:
    table: Any = rows.select_columns([column]).with_format("arrow")[:]
    return table[column]


def find_rows(rows: datasets.Dataset, column: str, test: Test) -> Mask:
    """`[N]` rows whose value passes the test."""
    masks = [np.asarray(pc.fill_null(test(part), False)) for part in read_column(rows, column)]
    return np.concatenate([np.zeros(0, dtype=np.bool_), *masks])


def replace_columns(rows: datasets.Dataset, made: Mapping[str, Any]) -> datasets.Dataset:
    """The rows with these columns, of types of Arrow, in the place of those of the same names."""
    if not made:
        return rows
    table: pa.Table = rows.with_format("arrow")[:]
    for name, column in made.items():
        table = table.set_column(table.column_names.index(name), name, column)
    return as_typed_rows(table, {name: feature for name, feature in rows.features.items() if name not in made})
