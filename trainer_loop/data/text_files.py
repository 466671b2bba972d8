"""Readers of .csv, .tsv, .json, .jsonl and .txt that know the row and line of whatever is wrong."""

import json
import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

import datasets
import numpy as np
import pyarrow as pa

from trainer_loop.data.arrow_types import make_dataset
from trainer_loop.data.delimited import Records
from trainer_loop.data.split import Origins
from trainer_loop.data.text_format import Lines, TextFormat
from trainer_loop.data.wording import enumerate_some, shorten
from trainer_loop.errors import UserError

_SHOWN = 5  # problems of one kind that are told in full

_INTEGER = re.compile(r"[+-]?(0|[1-9]\d{0,17})")  # no leading zeros: 007 is a text
_DECIMAL = re.compile(r"[+-]?((0|[1-9]\d*)(\.\d*)?|\.\d+)([eE][+-]?\d+)?")
_BOOLEANS = {"true": True, "false": False}
_MOST_DIGITS = 4300  # that Python reads as an integer
_BRACKETS = re.compile(r'"(?:[^"\\]|\\.)*"|[\[{\]}]')
_DEEP = 500  # brackets within brackets; near the number at which Python's reader gives up


class FileRows(NamedTuple):
    """The rows of a file. names: of all of its columns, where `rows` has those that are wanted."""

    rows: datasets.Dataset
    origins: Origins
    names: list[str]


def read_delimited(
    path: str, *, text_format: TextFormat, texts: Collection[str], label: str | None, keeps_all: bool = False
) -> FileRows:
    """A .csv or .tsv file with a header. Every field is a text, an empty one is null.

    texts: the columns that are going to be read as texts. label: the column whose values become integers, true/false
    or numbers where all of them are. keeps_all: other columns are read too.
    """
    header, columns, num_rows = read_fields(
        path, text_format=text_format, texts=texts, wanted=None if keeps_all else {*texts, label}
    )
    arrays = {
        name: infer_label(values) if name == label else pa.array(values, pa.string())
        for name, values in columns.items()
    }
    return FileRows(make_dataset(arrays, header, num_rows), Origins.of(f"{path} row", num_rows), header)


def read_fields(
    path: str, *, text_format: TextFormat, texts: Collection[str], wanted: Collection[str | None] | None
) -> tuple[list[str], dict[str, list[str | None]], int]:
    """A .csv or .tsv file -> the names of all columns, the fields of those that are wanted, and the number of rows.

    wanted: None for all columns. Raises UserError with every row whose number of fields is not the header's, or the
    first broken quote.
    """
    records = Records(path, text_format=text_format, texts=texts)
    header = records.header
    positions = [(place, name) for place, name in enumerate(header) if wanted is None or name in wanted]
    columns: list[list[str | None]] = [[] for _ in positions]
    uneven: list[str] = []
    num_uneven = 0
    for record, first_line in records:
        if len(record) != len(header):
            num_uneven += 1
            if num_uneven <= _SHOWN:
                uneven.append(records.explain_fields(record, first_line))
            continue
        for column, (place, _) in zip(columns, positions, strict=True):
            column.append(record[place] or None)
    if num_uneven:
        more = [f"{path}: {num_uneven - _SHOWN:,} more rows like these"] if num_uneven > _SHOWN else []
        raise UserError(uneven + more)
    if not records.row:
        raise UserError(f"{path} has a header and no rows")
    return header, dict(zip((name for _, name in positions), columns, strict=True)), records.row


def read_json(path: str, *, text_format: TextFormat, wanted: Collection[str], keeps_all: bool = False) -> FileRows:
    """A list of objects, or one object per line. Keys that a row lacks are null there. `wanted`: see `make_table`."""
    return _as_file_rows(*read_objects(path, text_format=text_format), wanted=wanted, keeps_all=keeps_all)


def read_json_lines(
    path: str, *, text_format: TextFormat, wanted: Collection[str], keeps_all: bool = False
) -> FileRows:
    """One JSON object per line; blank lines are skipped. `wanted`: see `make_table`."""
    return _as_file_rows(*read_object_lines(path, text_format=text_format), wanted=wanted, keeps_all=keeps_all)


def read_text_lines(path: str, *, text_format: TextFormat) -> FileRows:
    """One row per line that is not blank, in a column `text`."""
    texts: list[str] = []
    numbers: list[int] = []
    lines = Lines(path, encoding=text_format.encoding)
    for line in lines:
        if line.strip():
            texts.append(strip_line_end(line))
            numbers.append(lines.number)
    if not texts:
        raise UserError(f"{path} is empty")
    origins = Origins.of(f"{path} line", np.array(numbers, dtype=np.int64))
    return FileRows(make_dataset({"text": pa.array(texts, pa.string())}, ["text"], len(texts)), origins, ["text"])


def read_objects(path: str, *, text_format: TextFormat) -> tuple[list[Any], Origins]:
    """The values of a .json file: those of one list, or one per line."""
    first = next((line for line in Lines(path, encoding=text_format.encoding) if line.strip()), "")
    if not first.lstrip().startswith("["):
        return read_object_lines(path, text_format=text_format)
    text = "".join(Lines(path, encoding=text_format.encoding))
    try:
        rows = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{path} line {error.lineno}, column {error.colno}: this is no JSON ({error.msg})") from error
    except (RecursionError, ValueError) as error:
        raise UserError(f"{path} line {_find_unreadable(text)} {_explain_unreadable(error)}") from error
    if not rows:
        raise UserError(f"{path} holds an empty list: it has no rows")
    return rows, Origins.of(f"{path} row", len(rows))


def read_object_lines(path: str, *, text_format: TextFormat) -> tuple[list[Any], Origins]:
    """The values of a .jsonl file, one per line that is not blank."""
    rows: list[Any] = []
    numbers: list[int] = []
    broken: list[str] = []
    num_broken = 0
    lines = Lines(path, encoding=text_format.encoding)
    for line in lines:
        if not line.strip():
            continue
        try:
            rows.append(parse_json(line, f"{path} line {lines.number}"))
            numbers.append(lines.number)
        except UserError as error:
            num_broken += 1
            broken += error.problems if num_broken <= _SHOWN else []
    if num_broken:
        if _is_one_object(path, text_format):
            raise UserError(f"{path} is one JSON object; it must be a list of objects, or one object per line")
        more = [f"{path}: {num_broken - _SHOWN:,} more lines like these"] if num_broken > _SHOWN else []
        raise UserError(broken + more)
    if not rows:
        raise UserError(f"{path} is empty")
    return rows, Origins.of(f"{path} line", np.array(numbers, dtype=np.int64))


def parse_json(line: str, place: str) -> Any:
    """The value on a line. Raises UserError where there is none."""
    try:
        return json.loads(line.rstrip())
    except json.JSONDecodeError as error:
        raise UserError(
            f"{place}, column {error.colno}: this is no JSON ({error.msg}); every line must be one JSON object"
        ) from error
    except (RecursionError, ValueError) as error:
        raise UserError(f"{place} {_explain_unreadable(error)}") from error


def _explain_unreadable(error: Exception) -> str:
    """JSON that Python does not read, though it is some."""
    if isinstance(error, RecursionError):
        return "has lists or objects nested too deeply to be read; flatten them, or write them as a text"
    return f"has a whole number of more than {_MOST_DIGITS:,} digits; write it as a text"


def _find_unreadable(text: str) -> int:
    """The line of the first number that is too long, or where brackets are nested too deeply."""
    depth = 0
    found = re.search(rf"\d{{{_MOST_DIGITS + 1}}}", text)
    place = len(text) if found is None else found.start()
    for match in _BRACKETS.finditer(text):
        depth += {"[": 1, "{": 1, "]": -1, "}": -1}.get(match.group(), 0)
        if depth > _DEEP or match.start() > place:
            place = min(place, match.start())
            break
    return text.count("\n", 0, place) + 1


def _as_file_rows(rows: list[Any], origins: Origins, *, wanted: Collection[str], keeps_all: bool) -> FileRows:
    table, names = make_table(rows, wanted=wanted, place=origins.place, keeps_all=keeps_all)
    if not names:
        raise UserError(f"{origins.place(0)} and all rows behind it are objects without names")
    arrays = dict(zip(table.column_names, table.columns, strict=True))
    return FileRows(make_dataset(arrays, names, len(rows)), origins, names)


def make_table(
    rows: Sequence[Any], *, wanted: Collection[str], place: Callable[[int], str], keeps_all: bool = False
) -> tuple[pa.Table, list[str]]:
    """Objects -> a table of the wanted columns, and the names of all; keys that a row lacks are null there.

    In a wanted column NaN is null, and values of several kinds are an error. keeps_all: other columns are in the table
    too, as JSON where their values are of several kinds. `place` says where a row stands. Raises UserError.
    """
    strangers = [row for row, value in enumerate(rows) if not isinstance(value, Mapping)]
    if strangers:
        shown = [f"{place(row)} is {shorten(rows[row])}" for row in strangers[:_SHOWN]]
        raise UserError(f"every row must be an object of named values: {enumerate_some(shown, total=len(strangers))}")
    names = {str(name): name for values in rows for name in values}
    problems: list[str] = []
    arrays: dict[str, pa.Array] = {}
    for name in names if keeps_all else [name for name in names if name in wanted]:
        column = [_as_plain(values.get(names[name])) for values in rows]
        try:
            arrays[name] = pa.array(column, from_pandas=name in wanted)
        except (pa.ArrowException, OverflowError, UnicodeEncodeError) as error:
            if name in wanted:
                problems.append(explain_mixture(name, column, place=place, error=error))
            else:
                arrays[name] = pa.array([None if value is None else json.dumps(value, default=str) for value in column])
    if problems:
        raise UserError(problems)
    return pa.table(arrays), list(names)


def _as_plain(value: Any) -> Any:
    """What a scalar of numpy or torch stands for."""
    return value.item() if getattr(value, "ndim", None) == 0 and hasattr(value, "item") else value


def is_nan(value: object) -> bool:
    """NaN stands for a missing value, also in columns of texts: pandas has no other."""
    return isinstance(value, float) and math.isnan(value)


def explain_mixture(name: str, column: Sequence[Any], *, place: Callable[[int], str], error: Exception) -> str:
    """Why Arrow has no one type for these values."""
    first_of_kind: dict[str, int] = {}
    for row, value in enumerate(column):
        if isinstance(value, str) and not is_encodable(value):
            return f"{place(row)}, column {name!r}: the text holds half of a surrogate pair, which is no character"
        if value is not None and not is_nan(value):
            first_of_kind.setdefault(type(value).__name__, row)
    kinds = [f"{kind} ({shorten(column[row])}, {place(row)})" for kind, row in first_of_kind.items()]
    if len(kinds) > 1:
        return f"column {name!r} has values of several kinds: {enumerate_some(kinds)}; write all of them alike"
    return f"column {name!r} ({place(next(iter(first_of_kind.values())))} and on) cannot be read: {error}"


def is_encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def strip_line_end(line: str) -> str:
    return line.removesuffix("\n").removesuffix("\r")


def infer_label(values: Sequence[str | None]) -> pa.Array:
    """Integers, true/false or numbers where all values are, else the texts as they are."""
    distinct = {value for value in values if value is not None}
    converted: dict[str, Any]
    if all(map(_INTEGER.fullmatch, distinct)):
        converted = {value: int(value) for value in distinct}
    elif all(map(_DECIMAL.fullmatch, distinct)):
        converted = {value: float(value) for value in distinct}
    elif all(value.lower() in _BOOLEANS for value in distinct):
        converted = {value: _BOOLEANS[value.lower()] for value in distinct}
    else:
        return pa.array(values, pa.string())
    return pa.array([None if value is None else converted[value] for value in values])


def read_field(field: str, kind: type) -> int | bool | str:
    """A field as a value of this kind, as `infer_label` reads a column of them; the text itself where it is none."""
    if kind is bool:
        return _BOOLEANS.get(field.lower(), field)
    if kind is int and _DECIMAL.fullmatch(field):
        number = float(field)
        return int(field) if _INTEGER.fullmatch(field) else int(number) if number.is_integer() else field
    return field


def _is_one_object(path: str, text_format: TextFormat) -> bool:
    try:
        return isinstance(json.loads("".join(Lines(path, encoding=text_format.encoding))), dict)
    except (ValueError, RecursionError):
        return False
