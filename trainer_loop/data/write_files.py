"""Writes tables as files of any kind. Columns are checked before, and files are written atomically."""

import base64
import csv
import datetime
import decimal
import functools
import io
import json
import math
import os
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, TextIO

import pyarrow as pa
import pyarrow.parquet as pq

from trainer_loop.data.arrow_types import explain_mixture, plain_array
from trainer_loop.data.tables import Column, WholeTable
from trainer_loop.data.text_format import is_encodable
from trainer_loop.errors import UserError, in_one_line

SUFFIXES = (".csv", ".tsv", ".json", ".jsonl", ".parquet")
_UNITS = {"s": 0, "ms": -3, "us": -6, "ns": -9}  # unit -> power of ten of a second
_CONVERSION_ERRORS = (ValueError, TypeError, OverflowError, RecursionError, pa.ArrowException)


class ReadyTable:
    """A table that is converted for one kind of file. Raises UserError if a column cannot be converted."""

    def __init__(self, table: WholeTable, suffix: str):
        self.suffix = suffix
        self._metadata = table.metadata
        self._columns: dict[str, Any] = {}
        problems: list[str] = []
        for name, column in table.columns.items():
            try:
                self._columns[name] = _convert_column(column, suffix)
            except _UnwritableError as error:
                problems.append(f"column {name!r} cannot be written to a {suffix} file: {error}")
            except _CONVERSION_ERRORS as error:
                problems.append(_explain(name, column, table, suffix, error))
        if problems:
            other = {".json": "csv or parquet", ".jsonl": "csv or parquet", ".parquet": "jsonl"}.get(suffix, "parquet")
            raise UserError([f"{problem}; let output= end in .{other}, or drop the column" for problem in problems])

    def add(self, name: str, values: Sequence[Any]) -> None:
        """Add a column of texts or numbers."""
        assert name not in self._columns, "what was read is never replaced"
        self._columns[name] = pa.array(values) if self.suffix == ".parquet" else list(values)

    def write(self, file: BinaryIO) -> None:
        """Write the table to an empty file."""
        if self.suffix == ".parquet":
            pq.write_table(pa.table(self._columns).replace_schema_metadata(self._metadata), file)
            return
        text = io.TextIOWrapper(file, encoding="utf-8", newline="")
        rows = zip(*self._columns.values(), strict=True)
        lines = (_dump(dict(zip(self._columns, row, strict=True))) for row in rows)
        if self.suffix == ".jsonl":
            text.writelines(line + "\n" for line in lines)
        elif self.suffix == ".json":
            text.write("[\n" + ",\n".join(lines) + "\n]\n")
        else:
            writer = csv.writer(_LineEnds(text), delimiter="," if self.suffix == ".csv" else "\t")
            writer.writerow(self._columns)
            writer.writerows(
                [_dump(value) if isinstance(value, (list, dict)) else value for value in row] for row in rows
            )
        text.detach()  # flushes the buffer and leaves the file open


def write_whole(path: Path, write: Callable[[BinaryIO], None], *, replaces: bool) -> None:
    """Write a file atomically: to a temporary file, which is then renamed.

    Args:
        path: The file; missing folders are created.
        write: Writes the content.
        replaces: Replace an existing file; else FileExistsError is raised.

    Raises:
        OSError: The disk cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{uuid.uuid4().hex}.tmp")
    try:
        with temporary.open("xb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        if not replaces:  # if two processes write the same name at once, only one succeeds
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


# ------------------------------------------------------------------------------------------------ conversion of columns


class _LineEnds:
    r"""Replaces \r\n by \n at the end of each row of a csv.writer.

    With lineterminator="\n" the writer would not quote fields with a carriage return, where readers start a new row.
    """

    def __init__(self, file: TextIO):
        self._file = file

    def write(self, row: str) -> None:
        self._file.write(row.removesuffix("\r\n") + "\n")


class _UnwritableError(Exception):
    """Says why a column cannot be written, as the end of a sentence."""


def _convert_column(column: Column, suffix: str) -> Any:
    if suffix == ".parquet":
        return _convert_for_parquet(column)
    is_delimited = suffix in (".csv", ".tsv")
    values = [_as_json(value, allows_all=is_delimited) for value in _as_values(column)]
    if is_delimited and not all(is_encodable(value) for value in values if isinstance(value, str)):
        raise _UnwritableError("it has half of a surrogate pair, which is no character")
    return values


def _convert_for_parquet(column: Column) -> Any:
    array = pa.chunked_array([pa.array(column)]) if isinstance(column, list) else column
    is_dictionary = pa.types.is_dictionary(array.type)
    has_null_category = is_dictionary and any(chunk.dictionary.null_count for chunk in array.chunks)
    if has_null_category or not _is_parquet_type(array.type):
        array = plain_array(array)
        if not _is_parquet_type(array.type):
            raise _UnwritableError(f"parquet has no type for {array.type}")
    return array


@functools.lru_cache(maxsize=1000)
def _is_parquet_type(kind: pa.DataType) -> bool:
    try:
        pq.write_table(pa.table({"column": pa.array([], kind)}), pa.BufferOutputStream())
    except (pa.ArrowException, NotImplementedError, TypeError):
        return False
    return True


def _as_values(column: Column) -> list[Any]:
    """Return the values as Python objects, or as texts for types that Python lacks."""
    if isinstance(column, list):
        return column
    kind = column.type
    if isinstance(kind, pa.BaseExtensionType) and kind.extension_name in ("arrow.uuid", "arrow.bool8"):
        return column.to_pylist()
    plain = plain_array(column)
    if pa.types.is_duration(plain.type):
        numbers = plain.cast(pa.int64()).to_pylist()
        return [None if number is None else _format_seconds(number, plain.type.unit) for number in numbers]
    if pa.types.is_time64(plain.type):  # times of Python have no nanoseconds
        plain = plain.cast(pa.string())
    return plain.to_pylist()


def _format_seconds(number: int, unit: str) -> str:
    """Return a duration in ISO 8601, such as PT1.5S."""
    seconds = decimal.Decimal(abs(number)).scaleb(_UNITS[unit])
    return f"{'-' if number < 0 else ''}PT{seconds:f}S"


def _as_json(value: Any, *, allows_all: bool = False) -> Any:
    """Convert a value to JSON: NaN to null, dates and times to ISO 8601, decimals to texts, bytes to base64.

    With `allows_all`, NaN and infinities stay as they are.
    """
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        if math.isinf(value) and not allows_all:
            raise _UnwritableError("JSON has no infinity")
        return None if math.isnan(value) and not allows_all else value
    if isinstance(value, pa.MonthDayNano):
        return {name: getattr(value, name) for name in ("months", "days", "nanoseconds")}
    if isinstance(value, Mapping):
        return {str(name): _as_json(part, allows_all=allows_all) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_as_json(part, allows_all=allows_all) for part in value]
    if isinstance(value, (datetime.date, datetime.time)):
        return value.isoformat()
    if isinstance(value, datetime.timedelta):
        nanoseconds = (value // datetime.timedelta(microseconds=1)) * 1000 + getattr(value, "nanoseconds", 0)
        return _format_seconds(nanoseconds, "ns")
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, (decimal.Decimal, uuid.UUID)):
        return str(value)
    if hasattr(value, "tolist"):  # numpy values
        return _as_json(value.tolist(), allows_all=allows_all)
    raise _UnwritableError(f"it holds a {type(value).__name__}")


def _dump(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if is_encodable(text) else json.dumps(value)  # it escapes half of a surrogate pair


def _explain(name: str, column: Column, table: WholeTable, suffix: str, error: Exception) -> str:
    if isinstance(error, RecursionError):
        reason = "it is nested too deeply"
    elif isinstance(column, list):
        reason = explain_mixture(name, column, place=table.origins.place, error=error)
    else:
        reason = f"it is of type {column.type}, {in_one_line(error, at_most=150)}"
    return f"column {name!r} cannot be written to a {suffix} file: {reason}"
