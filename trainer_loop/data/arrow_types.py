"""Types of Arrow: plain ones, those of values of Python and fields of text files, and those that datasets can hold."""

import contextlib
import json
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.compute as pc

from trainer_loop.data.text_format import is_encodable
from trainer_loop.data.values import is_nan
from trainer_loop.data.wording import enumerate_some, shorten
from trainer_loop.errors import UserError, in_one_line, refuse

_INTEGER = re.compile(r"[+-]?(0|[1-9]\d{0,17})")  # no leading zeros: 007 is a text
_DECIMAL = re.compile(r"[+-]?((0|[1-9]\d*)(\.\d*)?|\.\d+)([eE][+-]?\d+)?")
_BOOLEANS = {"true": True, "false": False}
_MOST_MEMORY = 2**48  # bytes that a processor can address
_REFUSALS = (ValueError, TypeError, KeyError)  # of datasets, at a type or metadata that it does not know
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


def find_features(schema: pa.Schema, *, path: str, wanted: Collection[str] | None) -> datasets.Features:
    """The types that rows have of the wanted columns that are there, in the order of the file.

    wanted: None for all columns, as datasets reads them. Raises UserError where datasets cannot hold one of them.
    """
    _check_metadata(schema, path)
    held: list[pa.Field] = []
    told: list[str] = []
    for name in dict.fromkeys(schema.names):
        if wanted is None or name in wanted:
            try:
                held.append(_find_field(schema, name, as_plain=wanted is not None))
            except _REFUSALS as error:
                told.append(f"{path}: column {name!r} cannot be read: {in_one_line(error).rstrip('.')}")
    if told:
        raise UserError(told)
    return datasets.Features.from_arrow_schema(pa.schema(held, metadata=schema.metadata))


def validate_and_cast(table: pa.Table, features: datasets.Features) -> pa.Table:
    """The columns in these types, as `cast_plain`.

    Raises ArrowInvalid where they are damaged: a number out of place, such as one of a category that is not there,
    would read what lies elsewhere in memory.
    """
    table = table.select(list(features))
    table.validate(full=True)
    return cast_plain(table, features)


def cast_plain(table: pa.Table, features: datasets.Features) -> pa.Table:
    """The columns that have these types, as far as only their plain values do."""
    held = table.select(list(features))
    for place, field in enumerate(features.arrow_schema):
        if held.schema.types[place] != field.type and plain_type(held.schema.types[place]) == field.type:
            held = held.set_column(place, pa.field(field.name, field.type), plain_array(held.column(place)))
    return held


def _check_metadata(schema: pa.Schema, path: str) -> None:
    try:
        datasets.Features.from_arrow_schema(pa.schema([], metadata=schema.metadata))
    except _REFUSALS as error:
        raise UserError(
            f"{path}: the types of its columns, as datasets noted them in it, cannot be read: {in_one_line(error)}; "
            "use the version of datasets that wrote it"
        ) from error


def _find_field(schema: pa.Schema, name: str, *, as_plain: bool) -> pa.Field:
    """A column in a type that datasets can hold. Raises one of _REFUSALS where there is none."""
    places = schema.get_all_field_indices(name)
    if len(places) > 1:
        raise ValueError(f"there are {len(places)} columns of this name; rename or drop all but one")
    field = schema.field(places[0])
    plain = pa.field(name, plain_type(field.type))
    if not as_plain:
        with contextlib.suppress(*_REFUSALS):
            datasets.Features.from_arrow_schema(pa.schema([field]))
            return field
    try:
        datasets.Features.from_arrow_schema(pa.schema([plain]))
    except _REFUSALS as error:
        told = in_one_line(error).rstrip(".")
        raise ValueError(f"{told}; store texts, numbers, or lists or structures of them") from error
    return plain


@contextlib.contextmanager
def telling_damage(path: str, kind: str) -> Iterator[None]:
    """Around the reading of a file: raises UserError where Arrow cannot read it as one of this kind."""
    try:
        yield
    except UserError:
        raise
    except (pa.ArrowException, OSError, MemoryError, *_REFUSALS) as error:
        asked = re.search(r"size (\d+)", str(error))
        is_damaged_length = asked is not None and int(asked.group(1)) > _MOST_MEMORY
        if isinstance(error, MemoryError) and not is_damaged_length:
            raise
        told = in_one_line(error).rstrip(".")
        if isinstance(error, OSError) and error.errno is not None:  # of what Arrow raises, only the system's have one
            raise UserError(f"{path} cannot be read: {told}") from error
        raise UserError(f"{path} is no readable {kind} file: {told}; write or copy it again") from error
