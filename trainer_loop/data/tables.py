"""Loads files into memory as whole tables."""

import json
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa

from trainer_loop.data.arrow_types import are_fields, find_features, infer_label, make_arrays, validate_and_cast
from trainer_loop.data.columns import Columns
from trainer_loop.data.dataset_columns import as_rows, make_dataset
from trainer_loop.data.formats import open_file, read_each
from trainer_loop.data.origins import Origins
from trainer_loop.data.plain_columns import with_plain_columns
from trainer_loop.data.shards import Batch, Shard, Values, read_batches
from trainer_loop.data.split import Split
from trainer_loop.data.text_format import TextFormat
from trainer_loop.data.wording import enumerate_some
from trainer_loop.errors import Problems, UserError

_INFO_KEY = b"huggingface"  # key of the schema metadata that datasets writes
_MAX_EXPLAINED = 5  # faults of rows whose message is written in full

Column: TypeAlias = list[Any] | pa.ChunkedArray  # JSON values are kept in a list, because Arrow has no type for some


@dataclass(frozen=True)
class WholeTable:
    """The rows of files, in the order of the files.

    Attributes:
        columns: The columns that were read; null in the rows of a file that lacks one.
        names: Names of all columns of the files.
        origins: File and row number of each row.
        has_fields: All values are texts, as in CSV files, and may be converted to other types.
        metadata: Schema metadata of a single file.
    """

    columns: dict[str, Column]
    names: Sequence[str]
    origins: Origins
    has_fields: bool
    metadata: Mapping[bytes, bytes] | None = None

    def __len__(self) -> int:
        return len(self.origins)

    def as_arrays(self, *, wanted: Collection[str], label: str | None) -> dict[str, Any]:
        """Return the columns as Arrow arrays. See `make_arrays` for `wanted`; `infer_label` is applied to `label`."""
        lists = {name: column for name, column in self.columns.items() if isinstance(column, list)}
        arrays: dict[str, Any] = make_arrays(lists, wanted=wanted, place=self.origins.place)
        for name, column in self.columns.items():
            is_field = self.has_fields and name == label
            if isinstance(column, pa.ChunkedArray):
                arrays[name] = infer_label(column.to_pylist()) if is_field else column
            elif is_field and are_fields(column):
                arrays[name] = infer_label(column)
        return {name: arrays[name] for name in self.columns}

    def as_split(self, columns: Columns) -> Split:
        """Return `columns` as a split. Raises UserError if the values of a column have several kinds."""
        present = [name for name in self.columns if name in columns.stored]
        arrays = self.select(present).as_arrays(wanted=columns.stored, label=columns.label)
        table = pa.table(arrays).replace_schema_metadata(self.metadata)
        features = find_features(table.schema, path="the file", wanted=columns.stored)
        rows = as_rows(validate_and_cast(table, features)) if features else make_dataset({}, self.names, len(self))
        return with_plain_columns(Split("train", rows, self.origins, "", self.names), columns)

    def select(self, columns: Sequence[str]) -> "WholeTable":
        """Return a table with those of `columns` that are present, in this order."""
        selected = {name: self.columns[name] for name in columns if name in self.columns}
        return WholeTable(selected, self.names, self.origins, self.has_fields, self.metadata)


def read_table(shard: Shard, *, columns: Collection[str] | None) -> WholeTable:
    """Read all rows of a file.

    Args:
        shard: The file.
        columns: Columns that are read; None: all.

    Raises:
        UserError: With the faults of the rows, or if there are no rows and `data.filter` was not applied.
    """
    table = join_batches(shard, read_batches(shard), columns=columns)
    if not len(table) and not shard.is_filtered:
        raise UserError(f"{shard.name} {shard.no_rows}")
    return table


def join_batches(shard: Shard, batches: Iterable[Batch], *, columns: Collection[str] | None) -> WholeTable:
    """Join batches of one file to a table. Raises UserError with the faults of their rows."""
    tables: list[pa.Table] = []
    objects: list[Values] = []
    changed: list[Values] = []
    numbers = [np.zeros(0, dtype=np.int64)]
    faults: list[UserError] = []
    for batch in batches:
        faults += batch.faults.values()
        changed += batch.changed
        numbers.append(np.asarray(batch.numbers, dtype=np.int64))
        if isinstance(batch.rows, pa.Table):
            tables.append(batch.rows)
        elif shard.has_fields:
            read = [name for name in batch.rows[0] if columns is None or name in columns]
            tables.append(pa.table({name: pa.array([row[name] for row in batch.rows], pa.string()) for name in read}))
        else:
            objects += batch.rows
    if faults:
        more = len(faults) - _MAX_EXPLAINED
        messages = [problem for fault in faults[:_MAX_EXPLAINED] for problem in fault.problems]
        raise UserError(messages + ([f"{shard.name}: {more:,} more {shard.noun}s like these"] if more > 0 else []))
    origins = Origins.of(f"{shard.name} {shard.noun}", np.concatenate(numbers))
    if not tables:
        names = list(dict.fromkeys(name for values in objects for name in values))
        read = [name for name in names if columns is None or name in columns]
        listed = {name: [values.get(name) for values in objects] for name in read}
        return _apply_changes(WholeTable(listed, names, origins, False), changed)
    table = pa.concat_tables(tables)
    names = list(shard.names() if shard.names is not None else table.column_names)
    arrays: dict[str, Column] = dict(zip(table.column_names, table.columns, strict=True))
    return _apply_changes(WholeTable(arrays, names, origins, shard.has_fields, table.schema.metadata), changed)


def _apply_changes(table: WholeTable, changed: Sequence[Values]) -> WholeTable:
    """Apply what `data.map` returned for each row. A changed column has the type of its new values."""
    if not changed:
        return table
    columns = dict(table.columns)
    names = list(dict.fromkeys(name for values in changed for name in values))
    for name in names:
        column = columns.get(name, [None] * len(table))
        old_values = column if isinstance(column, list) else column.to_pylist()
        columns[name] = [values.get(name, old) for values, old in zip(changed, old_values, strict=True)]
    metadata = _drop_types(table.metadata, names) if table.metadata else None
    return WholeTable(columns, list(dict.fromkeys([*table.names, *names])), table.origins, table.has_fields, metadata)


def _drop_types(metadata: Mapping[bytes, bytes], names: Sequence[str]) -> dict[bytes, bytes]:
    """Remove these columns from the types that datasets wrote into the metadata."""
    info = json.loads(metadata.get(_INFO_KEY, b"{}"))
    for name in names:
        info.get("info", {}).get("features", {}).pop(name, None)
    return {**metadata, _INFO_KEY: json.dumps(info).encode()} if info else dict(metadata)


def read_whole(files: Sequence[str], *, text_format: TextFormat) -> WholeTable:
    """Read files with all columns unchanged, so that they can be written again with additional columns.

    Raises:
        UserError: With the problems of all files.
    """

    def read_one(file: str) -> WholeTable:
        shard = open_file(file, columns=None, text_format=text_format)
        table = read_table(shard, columns=None)
        names = [] if shard.schema is None else shard.schema.names
        if repeated := sorted(name for name, count in Counter(names).items() if count > 1):
            message = f"{file} has several columns of one name: {enumerate_some(repeated)}"
            raise UserError(f"{message}; rename or drop all but one")
        return table

    tables = read_each(files, read_one)
    if len(tables) == 1:
        return tables[0]
    problems = Problems()
    columns: dict[str, Column] = {}
    for name in dict.fromkeys(name for table in tables for name in table.columns):
        joined = problems.collect("", _join, name, tables, files)
        if joined is not None:
            columns[name] = joined
    problems.refuse()
    origins = Origins.join([table.origins for table in tables])
    return WholeTable(columns, list(columns), origins, has_fields=all(table.has_fields for table in tables))


def _join(name: str, tables: Sequence[WholeTable], files: Sequence[str]) -> Column:
    """Concatenate a column of all files. Raises UserError if its types are not compatible."""
    parts = [table.columns.get(name) for table in tables]
    if any(isinstance(part, list) for part in parts):
        joined: list[Any] = []
        for part, table in zip(parts, tables, strict=True):
            values = [None] * len(table) if part is None else part
            joined += values if isinstance(values, list) else values.to_pylist()
        return joined
    columns = [
        pa.table({name: pa.nulls(len(table)) if part is None else part})
        for part, table in zip(parts, tables, strict=True)
    ]
    try:
        return pa.concat_tables(columns, promote_options="permissive").column(name)
    except (pa.ArrowException, TypeError) as error:
        types = [
            (file, column.schema.types[0])
            for file, part, column in zip(files, parts, columns, strict=True)
            if part is not None
        ]
        (first, kind), (other, unlike) = types[0], next((pair for pair in types if pair[1] != types[0][1]), types[0])
        raise UserError(
            f"column {name!r} has one type in {first} ({kind}) and another in {other} ({unlike}); make them alike"
        ) from error
