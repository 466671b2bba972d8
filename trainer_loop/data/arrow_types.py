"""Arrow types: plain types, types of Python values and text fields, and types that datasets can hold."""

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

_INTEGER = re.compile(r"[+-]?(0|[1-9]\d{0,17})")  # without leading zeros: 007 is a text
_DECIMAL = re.compile(r"[+-]?((0|[1-9]\d*)(\.\d*)?|\.\d+)([eE][+-]?\d+)?")
_BOOLEANS = {"true": True, "false": False}
_MOST_MEMORY = 2**48  # in bytes; no processor can address more
_TYPE_ERRORS = (ValueError, TypeError, KeyError)  # errors of datasets for unknown types or metadata
_VIEWS = {pa.string_view(): pa.large_string(), pa.binary_view(): pa.large_binary()}


def plain_type(kind: pa.DataType) -> pa.DataType:
    """Return the type of the plain values: without dictionary encoding, run-end encoding and views.

    An extension type of Arrow becomes its storage type. Extension types of datasets stay, as datasets handles them.
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
    """Convert an array to its plain type."""
    if plain_type(array.type) == array.type:
        return array
    if isinstance(array, pa.ChunkedArray):
        return pa.chunked_array([plain_array(chunk) for chunk in array.chunks], plain_type(array.type))
    if isinstance(array.type, pa.DictionaryType):
        return plain_array(array.dictionary).take(array.indices)  # `dictionary_decode` does not support all types
    if pa.types.is_run_end_encoded(array.type):
        return plain_array(pc.run_end_decode(array))
    if isinstance(array, pa.ExtensionArray):
        return plain_array(array.storage)
    return array.cast(plain_type(array.type))


def whole_numbers(array: pa.ChunkedArray) -> pa.ChunkedArray | None:
    """Convert floats or decimals to int64, and NaN to null. Returns None if a number has a fraction."""
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
    """Convert columns of Python values to Arrow arrays.

    Args:
        columns: Values by column.
        wanted: Columns in which NaN becomes null and values of several kinds are an error. Other columns with several
            kinds become JSON texts.
        place: Returns the origin of a row for messages.

    Raises:
        UserError: A wanted column has no single type.
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
    """Return why Arrow has no single type for these values."""
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
    """Whether all values are texts or null, as in text files; `data.map` may have changed them."""
    return all(value is None or isinstance(value, str) for value in values)


def infer_label(values: Sequence[str | None]) -> pa.Array:
    """Convert texts to integers, floats or booleans if all of them are written like that; else keep them."""
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
    """Convert one field to `kind` with the rules of `infer_label`. Returns the text if it cannot be converted."""
    if kind is bool:
        return _BOOLEANS.get(field.lower(), field)
    if kind is int and _INTEGER.fullmatch(field):
        return int(field)
    if kind is int and _DECIMAL.fullmatch(field):
        number = float(field)
        return int(number) if number.is_integer() else field
    return field


def find_features(schema: pa.Schema, *, path: str, wanted: Collection[str] | None) -> datasets.Features:
    """Return the types of the wanted columns that are present, in the order of the file.

    Args:
        schema: Types of the file.
        path: The file, for messages.
        wanted: Columns that are read, with plain types. None: all, with their own types if datasets can hold them.

    Raises:
        UserError: Datasets cannot hold a column.
    """
    _check_metadata(schema, path)
    fields: list[pa.Field] = []
    problems: list[str] = []
    for name in dict.fromkeys(schema.names):
        if wanted is None or name in wanted:
            try:
                fields.append(_find_field(schema, name, as_plain=wanted is not None))
            except _TYPE_ERRORS as error:
                problems.append(f"{path}: column {name!r} cannot be read: {in_one_line(error).rstrip('.')}")
    if problems:
        raise UserError(problems)
    return datasets.Features.from_arrow_schema(pa.schema(fields, metadata=schema.metadata))


def validate_and_cast(table: pa.Table, features: datasets.Features) -> pa.Table:
    """Validate the columns, then convert them like `cast_plain`.

    Raises:
        pa.ArrowInvalid: The data are damaged. Without the check, a wrong index would read memory out of bounds.
    """
    table = table.select(list(features))
    table.validate(full=True)
    return cast_plain(table, features)


def cast_plain(table: pa.Table, features: datasets.Features) -> pa.Table:
    """Select the columns of `features`. Those whose plain type is the type in `features` are converted to it."""
    plain = table.select(list(features))
    for index, field in enumerate(features.arrow_schema):
        if plain.schema.types[index] != field.type and plain_type(plain.schema.types[index]) == field.type:
            plain = plain.set_column(index, pa.field(field.name, field.type), plain_array(plain.column(index)))
    return plain


def _check_metadata(schema: pa.Schema, path: str) -> None:
    try:
        datasets.Features.from_arrow_schema(pa.schema([], metadata=schema.metadata))
    except _TYPE_ERRORS as error:
        raise UserError(
            f"{path}: the types of its columns, as datasets noted them in it, cannot be read: {in_one_line(error)}; "
            "use the version of datasets that wrote it"
        ) from error


def _find_field(schema: pa.Schema, name: str, *, as_plain: bool) -> pa.Field:
    """Return a column with a type that datasets can hold. Raises one of `_TYPE_ERRORS` if there is none."""
    indices = schema.get_all_field_indices(name)
    if len(indices) > 1:
        raise ValueError(f"there are {len(indices)} columns of this name; rename or drop all but one")
    field = schema.field(indices[0])
    plain = pa.field(name, plain_type(field.type))
    if not as_plain:
        with contextlib.suppress(*_TYPE_ERRORS):
            datasets.Features.from_arrow_schema(pa.schema([field]))
            return field
    try:
        datasets.Features.from_arrow_schema(pa.schema([plain]))
    except _TYPE_ERRORS as error:
        reason = in_one_line(error).rstrip(".")
        raise ValueError(f"{reason}; store texts, numbers, or lists or structures of them") from error
    return plain


@contextlib.contextmanager
def telling_damage(path: str, kind: str) -> Iterator[None]:
    """Convert errors of Arrow inside the block to UserError. `kind` is the kind of the file."""
    try:
        yield
    except UserError:
        raise
    except (pa.ArrowException, OSError, MemoryError, *_TYPE_ERRORS) as error:
        match = re.search(r"size (\d+)", str(error))
        is_damaged_length = match is not None and int(match.group(1)) > _MOST_MEMORY
        if isinstance(error, MemoryError) and not is_damaged_length:
            raise
        reason = in_one_line(error).rstrip(".")
        if isinstance(error, OSError) and error.errno is not None:  # only errors of the system have one
            raise UserError(f"{path} cannot be read: {reason}") from error
        raise UserError(f"{path} is no readable {kind} file: {reason}; write or copy it again") from error
