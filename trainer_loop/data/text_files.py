"""Readers of .csv, .tsv, .json, .jsonl and .txt that know the row and line of whatever is wrong."""

import contextlib
import csv
import json
import re
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

import datasets
import numpy as np
import pyarrow as pa

from trainer_loop.data.split import Places
from trainer_loop.data.wording import enumerate_some, shorten
from trainer_loop.errors import UserError

_SHOWN = 5  # problems of one kind that are told in full
_LONGEST_FIELD = 2**31 - 1  # characters; the csv module's own limit is 131,072, which a long document exceeds
_DELIMITER_NAMES = {",": "commas", "\t": "tabs", ";": "semicolons", "|": "vertical bars"}

_INTEGER = re.compile(r"[+-]?(0|[1-9]\d{0,17})")  # no leading zeros: 007 is a text
_DECIMAL = re.compile(r"[+-]?((0|[1-9]\d*)(\.\d*)?|\.\d+)([eE][+-]?\d+)?")
_BOOLEANS = {"true": True, "false": False}

Rows = tuple[datasets.Dataset, Places]


def read_delimited(path: str, *, delimiter: str, texts: Collection[str], label: str | None) -> Rows:
    """A .csv or .tsv file with a header. Every field is a text, an empty one is null.

    texts: the columns that are going to be read as texts. label: the column whose values become integers, true/false
    or numbers where all of them are. Raises UserError with every row whose number of fields is not the header's, or
    the first broken quote.
    """
    with _open_text(path, newline="") as lines, long_fields():
        reader = csv.reader(lines, delimiter=delimiter, strict=True)
        header: list[str] = []
        columns: list[list[str | None]] = []
        uneven: list[str] = []
        num_rows = num_uneven = 0
        first_line = 1  # of the record being read: one record may have many lines
        try:
            header = next(reader, [])
            check_header(path, header, delimiter=delimiter, texts=texts)
            columns = [[] for _ in header]
            first_line = reader.line_num + 1
            for record in reader:
                if record:  # a blank line is no row
                    num_rows += 1
                    if len(record) == len(columns):
                        for column, field in zip(columns, record, strict=True):
                            column.append(field or None)
                    else:
                        num_uneven += 1
                        if num_uneven <= _SHOWN:
                            place = f"{path} row {num_rows} (line {first_line})"
                            uneven.append(explain_fields(place, len(record), header, delimiter=delimiter))
                first_line = reader.line_num + 1
        except csv.Error as error:
            place = f"{path} row {num_rows + 1}, which begins on line {first_line}"
            raise UserError(explain_quoting(place, reader.line_num, error)) from error
    if num_uneven:
        more = [f"{path}: {num_uneven - _SHOWN:,} more rows like these"] if num_uneven > _SHOWN else []
        raise UserError(uneven + more)
    if not num_rows:
        raise UserError(f"{path} has a header and no rows")
    arrays = {
        name or f"column_{position}": infer_label(values) if name == label else pa.array(values, pa.string())
        for position, (name, values) in enumerate(zip(header, columns, strict=True), start=1)
    }
    return datasets.Dataset(pa.table(arrays)), Places.of(f"{path} row", num_rows)


def read_json(path: str, *, wanted: Collection[str]) -> Rows:
    """A list of objects, or one object per line. Keys that a row lacks are null there. `wanted`: see `make_table`."""
    with _open_text(path) as lines:
        first = next((line for line in lines if line.strip()), "")
    if not first.lstrip().startswith("["):
        return read_json_lines(path, wanted=wanted)
    try:
        with _open_text(path) as lines:
            rows = json.load(lines)
    except json.JSONDecodeError as error:
        raise UserError(f"{path} line {error.lineno}, column {error.colno}: this is no JSON ({error.msg})") from error
    if not rows:
        raise UserError(f"{path} holds an empty list: it has no rows")
    places = Places.of(f"{path} row", len(rows))
    return datasets.Dataset(make_table(rows, wanted=wanted, place=places.place)), places


def read_json_lines(path: str, *, wanted: Collection[str]) -> Rows:
    """One JSON object per line; blank lines are skipped. `wanted`: see `make_table`."""
    rows: list[Any] = []
    numbers: list[int] = []
    broken: list[str] = []
    num_broken = 0
    with _open_text(path) as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                rows.append(json.loads(line.rstrip()))
                numbers.append(number)
            except json.JSONDecodeError as error:
                num_broken += 1
                if num_broken <= _SHOWN:
                    broken.append(explain_json(f"{path} line {number}", error))
    if num_broken:
        if _is_one_object(path):
            raise UserError(f"{path} is one JSON object; it must be a list of objects, or one object per line")
        more = [f"{path}: {num_broken - _SHOWN:,} more lines like these"] if num_broken > _SHOWN else []
        raise UserError(broken + more)
    if not rows:
        raise UserError(f"{path} is empty")
    places = Places.of(f"{path} line", np.array(numbers, dtype=np.int64))
    return datasets.Dataset(make_table(rows, wanted=wanted, place=places.place)), places


def read_text_lines(path: str) -> Rows:
    """One row per line that is not blank, in a column `text`."""
    texts: list[str] = []
    numbers: list[int] = []
    with _open_text(path) as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                texts.append(line.removesuffix("\n").removesuffix("\r"))
                numbers.append(number)
    if not texts:
        raise UserError(f"{path} is empty")
    table = pa.table({"text": pa.array(texts, pa.string())})
    return datasets.Dataset(table), Places.of(f"{path} line", np.array(numbers, dtype=np.int64))


def make_table(rows: Sequence[Any], *, wanted: Collection[str], place: Callable[[int], str]) -> pa.Table:
    """Objects -> a table; keys that a row lacks are null there.

    A column whose values are of several kinds is an error where it is `wanted`; where not, it holds its values as JSON.
    `place` says where a row stands. Raises UserError.
    """
    strangers = [row for row, value in enumerate(rows) if not isinstance(value, Mapping)]
    if strangers:
        shown = [f"{place(row)} is {shorten(rows[row])}" for row in strangers[:_SHOWN]]
        raise UserError(f"every row must be an object of named values: {enumerate_some(shown, total=len(strangers))}")
    columns: dict[str, list[Any]] = {}
    for row, values in enumerate(rows):
        for name, value in values.items():
            column = columns.setdefault(str(name), [])
            column.extend([None] * (row - len(column)))
            column.append(value)
    problems: list[str] = []
    arrays: dict[str, pa.Array] = {}
    for name, column in columns.items():
        column.extend([None] * (len(rows) - len(column)))
        try:
            arrays[name] = pa.array(column)
        except (pa.ArrowException, OverflowError, UnicodeEncodeError) as error:
            if name in wanted:
                problems.append(_explain_mixture(name, column, place=place, error=error))
            else:
                arrays[name] = pa.array([None if value is None else json.dumps(value, default=str) for value in column])
    if problems:
        raise UserError(problems)
    return pa.table(arrays)


def explain_fields(place: str, num_fields: int, header: Sequence[str], *, delimiter: str) -> str:
    """A record that has not as many fields as the header."""
    return (
        f"{place} has {num_fields} fields; the header has {len(header)} ({enumerate_some(header)}): "
        f"quote texts that contain {_DELIMITER_NAMES[delimiter]} or line breaks"
    )


def explain_quoting(place: str, line: int, error: csv.Error) -> str:
    """A quoted field that does not end where it should."""
    return (
        f"{place}: the quoting breaks by line {line} ({error}); "
        'close the quoted text, and write a quote inside it twice ("")'
    )


def explain_json(place: str, error: json.JSONDecodeError) -> str:
    """A line that is no JSON."""
    return f"{place}, column {error.colno}: this is no JSON ({error.msg}); every line must be one JSON object"


def explain_byte(path: str, line: int, *, offset: int, byte: int, more: str = "") -> str:
    """A byte that is not UTF-8. offset: of the byte in the file."""
    return (
        f"{path} line {line}: byte 0x{byte:02x} at offset {offset} of the file is not UTF-8{more}; "
        "save the file as UTF-8, for example with `iconv -f windows-1252 -t utf-8`"
    )


def _explain_mixture(name: str, column: Sequence[Any], *, place: Callable[[int], str], error: Exception) -> str:
    """Why Arrow has no one type for these values."""
    first_of_kind: dict[str, int] = {}
    for row, value in enumerate(column):
        if isinstance(value, str) and not is_encodable(value):
            return f"{place(row)}, column {name!r}: the text holds half of a surrogate pair, which is no character"
        if value is not None:
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


def check_header(path: str, header: Sequence[str], *, delimiter: str, texts: Collection[str]) -> None:
    if not header:
        raise UserError(f"{path} is empty, or its first line is; it must begin with the names of its columns")
    repeated = sorted({name for name in header if name and header.count(name) > 1})
    if repeated:
        raise UserError(f"{path} line 1 names these columns more than once: {enumerate_some(repeated)}; rename them")
    if len(header) == 1 and header[0] not in texts:
        for other, name in _DELIMITER_NAMES.items():
            if other in header[0]:
                allowed = _DELIMITER_NAMES[delimiter]
                raise UserError(
                    f"{path} line 1 has the one column {header[0]!r}: its fields seem to be separated by {name}; "
                    f"a .csv file has commas and a .tsv file has tabs, so this one must have {allowed}"
                )


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
    return int(field) if kind is int and _INTEGER.fullmatch(field) else field


def _is_one_object(path: str) -> bool:
    with _open_text(path) as lines:
        try:
            return isinstance(json.load(lines), dict)
        except json.JSONDecodeError:
            return False


@contextlib.contextmanager
def _open_text(path: str, *, newline: str = "\n") -> Iterator[TextIO]:
    """UTF-8 with or without a byte order mark; a UserError names the line of what is not."""
    try:
        with Path(path).open(encoding="utf-8-sig", newline=newline) as lines:
            yield lines
    except UnicodeDecodeError as error:
        raise UserError(_find_invalid_utf8(path)) from error


def _find_invalid_utf8(path: str) -> str:
    bad: list[tuple[int, int, int]] = []  # line, offset of the byte in the file, the byte
    offset = 0
    with Path(path).open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if number == 1 and line.startswith((b"\xff\xfe", b"\xfe\xff")):
                return f"{path} is UTF-16; save it as UTF-8, for example with `iconv -f utf-16 -t utf-8`"
            try:
                line.decode()
            except UnicodeDecodeError as error:
                bad.append((number, offset + error.start, line[error.start]))
            offset += len(line)
    number, offset, byte = bad[0]
    more = f" (and {len(bad) - 1:,} more lines are not)" if len(bad) > 1 else ""
    return explain_byte(path, number, offset=offset, byte=byte, more=more)


@contextlib.contextmanager
def long_fields() -> Iterator[None]:
    """Inside, no field is too long. The limit is global to the csv module: the last of all readers puts it back."""
    global _num_readers, _limit_before
    with _limit_lock:
        if _num_readers == 0:
            _limit_before = csv.field_size_limit(_LONGEST_FIELD)
        _num_readers += 1
    try:
        yield
    finally:
        with _limit_lock:
            _num_readers -= 1
            if _num_readers == 0:
                csv.field_size_limit(_limit_before)


_limit_lock = threading.Lock()
_num_readers = 0
_limit_before = 0
