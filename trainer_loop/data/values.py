"""What values of files and of Python stand for: columns of them, labels in texts, missing values."""

import json
import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from decimal import Decimal
from typing import Any

import pyarrow as pa

from trainer_loop.data.wording import enumerate_some, shorten
from trainer_loop.errors import refuse

_INTEGER = re.compile(r"[+-]?(0|[1-9]\d{0,17})")  # no leading zeros: 007 is a text
_DECIMAL = re.compile(r"[+-]?((0|[1-9]\d*)(\.\d*)?|\.\d+)([eE][+-]?\d+)?")
_NUMBER = re.compile(r"\s*[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?\s*", re.ASCII)
_BOOLEANS = {"true": True, "false": False}


def make_arrays(
    columns: Mapping[str, Sequence[Any]], *, wanted: Collection[str], place: Callable[[int], str]
) -> dict[str, pa.Array]:
    """Columns of Python values in types of Arrow.

    In a wanted column NaN is null, and values of several kinds are an error; others are JSON where they have several
    kinds. `place` says where a row stands. Raises UserError.
    """
    problems: list[str] = []
    arrays: dict[str, pa.Array] = {}
    for name, column in columns.items():
        try:
            arrays[name] = pa.array(column, from_pandas=name in wanted)
        except (pa.ArrowException, OverflowError, UnicodeEncodeError) as error:
            if name in wanted:
                problems.append(explain_mixture(name, column, place=place, error=error))
            else:
                arrays[name] = pa.array([None if value is None else json.dumps(value, default=str) for value in column])
    refuse(problems)
    return arrays


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
    """Whether the text can be written as UTF-8: half of a surrogate pair cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def are_fields(values: Sequence[Any]) -> bool:
    """Whether all values are texts or null, as in a file of texts; `data.map` may have put others in their place."""
    return all(value is None or isinstance(value, str) for value in values)


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
    if kind is int and _INTEGER.fullmatch(field):
        return int(field)
    if kind is int and _DECIMAL.fullmatch(field):
        number = float(field)
        return int(number) if number.is_integer() else field
    return field


def read_number(value: Any) -> float | None:
    """A value of the kind `number`, also where it is written as a text, as in a CSV file; None if it is no number.

    >>> read_number("4.5"), read_number(3), read_number("many"), read_number(True)
    (4.5, 3.0, None, None)
    """
    if isinstance(value, bool) or (isinstance(value, str) and not _NUMBER.fullmatch(value)):
        return None
    return float(value) if isinstance(value, (int, float, str, Decimal)) else None
