"""Types of Arrow: plain ones for dictionaries and views, and those of values of Python and fields of text files."""

import json
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from trainer_loop.data.text_format import is_encodable
from trainer_loop.data.values import is_nan
from trainer_loop.data.wording import enumerate_some, shorten
from trainer_loop.errors import refuse

_INTEGER = re.compile(r"[+-]?(0|[1-9]\d{0,17})")  # no leading zeros: 007 is a text
_DECIMAL = re.compile(r"[+-]?((0|[1-9]\d*)(\.\d*)?|\.\d+)([eE][+-]?\d+)?")
_BOOLEANS = {"true": True, "false": False}
_VIEWS = {pa.string_view(): pa.large_string(), pa.binary_view(): pa.large_binary()}


def plain_type(kind: pa.DataType) -> pa.DataType:
    """The type of the values: of a dictionary those that it lists, of runs those that repeat, of views the whole.

    An extension type of Arrow's stands for what it is stored as; those of datasets are left to datasets.
    """
    if isinstance(kind, pa.DictionaryType) or pa.types.is_run_end_encoded(kind):
        return plain_type(kind.value_type)
    if isinstance(kind, pa.BaseExtensionType) and kind.extension_name.startswith("arrow."):
        return plain_type(kind.storage_type)
    if pa.types.is_decimal(kind):
        make = pa.decimal256 if kind.bit_width == 256 else pa.decimal128
        return make(kind.precision, kind.scale)
    return _VIEWS.get(kind, kind)


def plain_array(array: pa.Array | pa.ChunkedArray) -> pa.Array | pa.ChunkedArray:
    """The same values in their plain type."""
    if plain_type(array.type) == array.type:
        return array
    if isinstance(array, pa.ChunkedArray):
        return pa.chunked_array([plain_array(chunk) for chunk in array.chunks], plain_type(array.type))
    if isinstance(array.type, pa.DictionaryType):
        return plain_array(array.dictionary).take(array.indices)  # decoding knows not all types of values
    if pa.types.is_run_end_encoded(array.type):
        return plain_array(pc.run_end_decode(array))
    if isinstance(array, pa.ExtensionArray):
        return plain_array(array.storage)
    return array.cast(plain_type(array.type))


def whole_numbers(array: pa.ChunkedArray) -> pa.ChunkedArray | None:
    """Decimal numbers as int64, NaN as null; None where one of them is not whole."""
    if pa.types.is_float16(array.type):
        array = array.cast(pa.float32())
    if pa.types.is_floating(array.type):
        array = pc.if_else(pc.is_nan(array), pa.scalar(None, array.type), array)
    try:
        return array.cast(pa.int64())
    except pa.ArrowInvalid:
        return None


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
