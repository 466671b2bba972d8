"""Files with all their columns as they are, so that they can be written again with more of them."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import pyarrow as pa

from trainer_loop.data.arrow_files import find_features, hold, is_arrow_stream, telling_damage
from trainer_loop.data.arrow_types import as_rows, make_dataset
from trainer_loop.data.missing import with_plain_columns
from trainer_loop.data.parquet_files import open_parquet
from trainer_loop.data.split import Origins, Split
from trainer_loop.data.text_files import (
    infer_label,
    make_table,
    read_fields,
    read_object_lines,
    read_objects,
    read_text_lines,
)
from trainer_loop.data.text_format import TextFormat
from trainer_loop.data.wording import enumerate_some, shorten
from trainer_loop.errors import UserError, in_one_line

Column: TypeAlias = list[Any] | pa.ChunkedArray  # of JSON the values themselves: Arrow has no type for some


@dataclass(frozen=True)
class WholeTable:
    """The rows of files, one file after the other.

    columns: all that any of the files has, in their order; null where a file lacks one. has_fields: its values are
    texts that may stand for something else. metadata: what is noted beside the types of a single file.
    """

    columns: dict[str, Column]
    origins: Origins
    has_fields: bool
    metadata: Mapping[bytes, bytes] | None = None

    def __len__(self) -> int:
        return len(self.origins)

    def as_split(self, columns: Sequence[str], *, label: str | None = None) -> Split:
        """Some columns as rows of a data set. Raises UserError where their values are of several kinds."""
        present = [name for name in self.columns if name in columns]
        table = self._read_lists([name for name in present if isinstance(self.columns[name], list)])
        for name in present:
            column = self.columns[name]
            if isinstance(column, pa.ChunkedArray):
                is_field = self.has_fields and name == label
                table[name] = infer_label(column.to_pylist()) if is_field else column
        made = pa.table({name: table[name] for name in present})
        if self.metadata is not None:
            made = made.replace_schema_metadata(self.metadata)
        features = find_features(made.schema, path="the file", wanted=columns)
        rows = as_rows(hold(made, features)) if features else make_dataset({}, list(self.columns), len(self))
        split = Split("train", rows, self.origins, "", list(self.columns))
        return with_plain_columns(split, texts=[name for name in columns if name != label], label=label)

    def _read_lists(self, names: Sequence[str]) -> dict[str, Any]:
        if not names:
            return {}
        rows = [
            dict(zip(names, values, strict=True))
            for values in zip(*(self.columns[name] for name in names), strict=True)
        ]
        table, _ = make_table(rows, wanted=names, place=self.origins.place)
        return dict(zip(table.column_names, table.columns, strict=True))


def read_whole(files: Sequence[str], *, text_format: TextFormat) -> WholeTable:
    """Raises UserError with the problems of all files."""
    problems: list[str] = []
    read: list[WholeTable] = []
    for file in files:
        try:
            read.append(_read(file, text_format))
        except UserError as error:
            problems += error.problems
        except OSError as error:
            problems.append(f"{file} cannot be read: {in_one_line(error)}")
    if problems:
        raise UserError(problems)
    if len(read) == 1:
        return read[0]
    columns: dict[str, Column] = {}
    for name in dict.fromkeys(name for table in read for name in table.columns):
        try:
            columns[name] = _join(name, read, files)
        except UserError as error:
            problems += error.problems
    if problems:
        raise UserError(problems)
    origins = Origins.join([table.origins for table in read])
    return WholeTable(columns, origins, has_fields=all(table.has_fields for table in read))


def _read(path: str, text_format: TextFormat) -> WholeTable:
    if not Path(path).stat().st_size:
        raise UserError(f"{path} is empty")
    match Path(path).suffix.lower():
        case ".csv" | ".tsv":
            header, fields, num_rows = read_fields(path, text_format=text_format, texts=(), wanted=None)
            texts = {name: pa.chunked_array([pa.array(fields[name], pa.string())]) for name in header}
            return WholeTable(texts, Origins.of(f"{path} row", num_rows), has_fields=True)
        case ".json":
            return _from_objects(*read_objects(path, text_format=text_format))
        case ".jsonl":
            return _from_objects(*read_object_lines(path, text_format=text_format))
        case ".txt":
            rows, origins, _ = read_text_lines(path, text_format=text_format)
            return WholeTable({"text": rows.data.column("text")}, origins, has_fields=True)
        case ".parquet":
            with open_parquet(path) as file, telling_damage(path, "parquet"):
                table = file.read()
        case _:
            with telling_damage(path, "Arrow"):
                mapped = pa.memory_map(path)
                table = (pa.ipc.open_stream if is_arrow_stream(path) else pa.ipc.open_file)(mapped).read_all()
    with telling_damage(path, "Arrow"):
        return _from_table(path, table)


def _from_objects(rows: list[Any], origins: Origins) -> WholeTable:
    strangers = [row for row, value in enumerate(rows) if not isinstance(value, Mapping)]
    if strangers:
        shown = [f"{origins.place(row)} is {shorten(rows[row])}" for row in strangers[:5]]
        raise UserError(f"every row must be an object of named values: {enumerate_some(shown, total=len(strangers))}")
    names = dict.fromkeys(name for values in rows for name in values)
    return WholeTable({name: [values.get(name) for values in rows] for name in names}, origins, has_fields=False)


def _from_table(path: str, table: pa.Table) -> WholeTable:
    if not table.num_rows:
        raise UserError(f"{path} has no rows")
    repeated = sorted(name for name, times in Counter(table.column_names).items() if times > 1)
    if repeated:
        raise UserError(
            f"{path} has several columns of one name: {enumerate_some(repeated)}; rename or drop all but one"
        )
    table.validate(full=True)
    columns: dict[str, Column] = dict(zip(table.column_names, table.columns, strict=True))
    return WholeTable(columns, Origins.of(f"{path} row", table.num_rows), False, table.schema.metadata)


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
        first = next(number for number, part in enumerate(parts) if part is not None)
        other = next(
            (
                number
                for number, column in enumerate(columns)
                if column.schema.types[0] != columns[first].schema.types[0]
            ),
            first,
        )
        types = [columns[number].schema.types[0] for number in (first, other)]
        raise UserError(
            f"column {name!r} has one type in {files[first]} ({types[0]}) and another in {files[other]} ({types[1]}); "
            "make them alike"
        ) from error
