"""Files with all their rows in memory: the batches of each, joined."""

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

_NOTED = b"huggingface"  # the part of a schema's metadata that datasets writes
_SHOWN = 5  # faults of rows that are told in full

Column: TypeAlias = list[Any] | pa.ChunkedArray  # of JSON the values themselves: Arrow has no type for some


@dataclass(frozen=True)
class WholeTable:
    """The rows of files, one file after the other.

    columns: those that were read; null where a file lacks one. names: of all columns. has_fields: the values are texts
    that may stand for something else. metadata: what is noted beside the types of a single file.
    """

    columns: dict[str, Column]
    names: Sequence[str]
    origins: Origins
    has_fields: bool
    metadata: Mapping[bytes, bytes] | None = None

    def __len__(self) -> int:
        return len(self.origins)

    def as_arrays(self, *, wanted: Collection[str], label: str | None) -> dict[str, Any]:
        """The columns in types of Arrow. wanted, label: see `make_arrays` and `infer_label`. Raises UserError."""
        lists = {name: column for name, column in self.columns.items() if isinstance(column, list)}
        made: dict[str, Any] = make_arrays(lists, wanted=wanted, place=self.origins.place)
        for name, column in self.columns.items():
            is_field = self.has_fields and name == label
            if isinstance(column, pa.ChunkedArray):
                made[name] = infer_label(column.to_pylist()) if is_field else column
            elif is_field and are_fields(column):
                made[name] = infer_label(column)
        return {name: made[name] for name in self.columns}

    def as_split(self, columns: Columns) -> Split:
        """Some columns as rows of a data set. Raises UserError where their values are of several kinds."""
        present = [name for name in self.columns if name in columns.stored]
        arrays = self.select(present).as_arrays(wanted=columns.stored, label=columns.label)
        made = pa.table(arrays).replace_schema_metadata(self.metadata)
        features = find_features(made.schema, path="the file", wanted=columns.stored)
        rows = as_rows(validate_and_cast(made, features)) if features else make_dataset({}, self.names, len(self))
        return with_plain_columns(Split("train", rows, self.origins, "", self.names), columns)

    def select(self, columns: Sequence[str]) -> "WholeTable":
        """The table with these columns in this order, as far as it has them."""
        kept = {name: self.columns[name] for name in columns if name in self.columns}
        return WholeTable(kept, self.names, self.origins, self.has_fields, self.metadata)


def read_table(shard: Shard, *, columns: Collection[str] | None) -> WholeTable:
    """All rows of a file. columns: those that are read; None for all. Raises UserError with what is wrong with them.

    Only of a file that `data.filter` was applied to there may be none.
    """
    table = join_batches(shard, read_batches(shard), columns=columns)
    if not len(table) and not shard.is_filtered:
        raise UserError(f"{shard.name} {shard.no_rows}")
    return table


def join_batches(shard: Shard, batches: Iterable[Batch], *, columns: Collection[str] | None) -> WholeTable:
    """The rows of batches of one file. Raises UserError with what is wrong with them."""
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
        more = len(faults) - _SHOWN
        told = [problem for fault in faults[:_SHOWN] for problem in fault.problems]
        raise UserError(told + ([f"{shard.name}: {more:,} more {shard.noun}s like these"] if more > 0 else []))
    origins = Origins.of(f"{shard.name} {shard.noun}", np.concatenate(numbers))
    if not tables:
        names = list(dict.fromkeys(name for values in objects for name in values))
        read = [name for name in names if columns is None or name in columns]
        listed = {name: [values.get(name) for values in objects] for name in read}
        return _put_changes(WholeTable(listed, names, origins, False), changed)
    table = pa.concat_tables(tables)
    names = list(shard.names() if shard.names is not None else table.column_names)
    made: dict[str, Column] = dict(zip(table.column_names, table.columns, strict=True))
    return _put_changes(WholeTable(made, names, origins, shard.has_fields, table.schema.metadata), changed)


def _put_changes(table: WholeTable, changed: Sequence[Values]) -> WholeTable:
    """The table with what `data.map` returned for each row. A column that it changed has the type of its new values."""
    if not changed:
        return table
    columns = dict(table.columns)
    names = list(dict.fromkeys(name for new in changed for name in new))
    for name in names:
        column = columns.get(name, [None] * len(table))
        before = column if isinstance(column, list) else column.to_pylist()
        columns[name] = [new.get(name, value) for new, value in zip(changed, before, strict=True)]
    metadata = _forget_types(table.metadata, names) if table.metadata else None
    return WholeTable(columns, list(dict.fromkeys([*table.names, *names])), table.origins, table.has_fields, metadata)


def _forget_types(metadata: Mapping[bytes, bytes], names: Sequence[str]) -> dict[bytes, bytes]:
    """What datasets noted beside the types, without these columns."""
    noted = json.loads(metadata.get(_NOTED, b"{}"))
    for name in names:
        noted.get("info", {}).get("features", {}).pop(name, None)
    return {**metadata, _NOTED: json.dumps(noted).encode()} if noted else dict(metadata)


def read_whole(files: Sequence[str], *, text_format: TextFormat) -> WholeTable:
    """Files with all their columns as they are, so that they can be written again with more of them.

    Raises UserError with the problems of all files.
    """

    def read_one(file: str) -> WholeTable:
        shard = open_file(file, columns=None, text_format=text_format)
        table = read_table(shard, columns=None)
        names = [] if shard.schema is None else shard.schema.names
        if repeated := sorted(name for name, times in Counter(names).items() if times > 1):
            told = f"{file} has several columns of one name: {enumerate_some(repeated)}"
            raise UserError(f"{told}; rename or drop all but one")
        return table

    read = read_each(files, read_one)
    if len(read) == 1:
        return read[0]
    problems = Problems()
    columns: dict[str, Column] = {}
    for name in dict.fromkeys(name for table in read for name in table.columns):
        joined = problems.collect("", _join, name, read, files)
        if joined is not None:
            columns[name] = joined
    problems.refuse()
    origins = Origins.join([table.origins for table in read])
    return WholeTable(columns, list(columns), origins, has_fields=all(table.has_fields for table in read))


def _join(name: str, tables: Sequence[WholeTable], files: Sequence[str]) -> Column:
    """A column over all files. Raises UserError where its types do not go together."""
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
