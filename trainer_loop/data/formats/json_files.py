"""JSON files: one object for each line that is not blank (.jsonl, .json), or one list of objects (.json)."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from trainer_loop.data.shards import Batch, Item, Mark, Shard, Values, gather
from trainer_loop.data.text_format import Lines, TextFormat
from trainer_loop.data.wording import shorten
from trainer_loop.errors import UserError

_MOST_DIGITS = 4300  # of an integer that Python reads
_BRACKETS = re.compile(r'"(?:[^"\\]|\\.)*"|[\[{\]}]')
_DEEP = 500  # levels of brackets; near the limit of Python's reader
_MOST_BYTES = 1 << 28  # size up to which a file is searched for one object


def open_json(path: str, *, text_format: TextFormat) -> Shard:
    """Open a JSON file: as a list if it is a .json file that starts with a bracket, else with one row per line."""
    if Path(path).suffix.lower() == ".json" and _is_list(path, text_format):
        return Shard(
            path,
            "row",
            lambda mark: gather(_read_list(path, text_format), list, nothing={}, names=("row", "offset")),
            no_rows="holds an empty list: it has no rows",
            whole_only=f"{path} is one JSON list, which can only be read as a whole; a stream needs one object per "
            f"line: jq -c '.[]' {path} > {Path(path).with_suffix('.jsonl')}",
        )

    def read(mark: Mark | None) -> Iterator[Batch]:
        return gather(_read_lines(path, text_format, mark), list, nothing={}, names=("line", "offset"))

    return Shard(path, "line", read, no_rows="is empty")


# ----------------------------------------------------------------------------------------------------- object per line


def _read_lines(path: str, text_format: TextFormat, mark: Mark | None) -> Iterator[Item[Values]]:
    lines = Lines(path, text_format.encoding, mark)
    is_first = mark is None
    for line in lines:
        if not line.strip():
            continue
        value = _parse(line, path, lines.number)
        if is_first and isinstance(value, UserError) and _is_one_object(path, text_format):
            raise UserError(f"{path} is one JSON object; it must be a list of objects, or one object per line")
        is_first = False
        yield value, (lines.number, lines.offset)


def _parse(line: str, path: str, number: int) -> dict[str, Any] | UserError:
    """Return the object on a line, or an error."""
    try:
        value = json.loads(line.rstrip())
    except json.JSONDecodeError as error:
        return UserError(
            f"{path} line {number}, column {error.colno}: this is no JSON ({error.msg}); every line must be one JSON "
            "object"
        )
    except (RecursionError, ValueError) as error:
        return UserError(f"{path} line {number} {_explain_unreadable(error)}")
    if not isinstance(value, dict):
        return UserError(f"{path} line {number} is {shorten(value)}; every line must be one JSON object")
    return value


def _is_one_object(path: str, text_format: TextFormat) -> bool:
    if Path(path).stat().st_size > _MOST_BYTES:
        return False
    try:
        return isinstance(json.loads(_read_text(path, text_format)), dict)
    except (UserError, ValueError, RecursionError):
        return False


# ---------------------------------------------------------------------------------------------------- list of objects


def _is_list(path: str, text_format: TextFormat) -> bool:
    first = next((line for line in Lines(path, text_format.encoding) if line.strip()), "")
    return first.lstrip().startswith("[")


def _read_list(path: str, text_format: TextFormat) -> Iterator[Item[Values]]:
    for number, value in enumerate(_parse_list(path, _read_text(path, text_format)), start=1):
        if not isinstance(value, dict):
            value = UserError(
                f"{path} row {number} is {shorten(value)}; every item of the list must be one JSON object"
            )
        yield value, (number, 0)


def _parse_list(path: str, text: str) -> list[Any]:
    try:
        values: list[Any] = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{path} line {error.lineno}, column {error.colno}: this is no JSON ({error.msg})") from error
    except (RecursionError, ValueError) as error:
        raise UserError(f"{path} line {_find_unreadable(text)} {_explain_unreadable(error)}") from error
    return values


def _read_text(path: str, text_format: TextFormat) -> str:
    return "".join(Lines(path, text_format.encoding))


def _explain_unreadable(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "has lists or objects nested too deeply to be read; flatten them, or write them as a text"
    return f"has a whole number of more than {_MOST_DIGITS:,} digits; write it as a text"


def _find_unreadable(text: str) -> int:
    """Return the line of the first number that is too long or bracket that is nested too deeply."""
    depth = 0
    number = re.search(rf"\d{{{_MOST_DIGITS + 1}}}", text)
    position = len(text) if number is None else number.start()
    for match in _BRACKETS.finditer(text):
        depth += {"[": 1, "{": 1, "]": -1, "}": -1}.get(match.group(), 0)
        if depth > _DEEP or match.start() > position:
            position = min(position, match.start())
            break
    return text.count("\n", 0, position) + 1
