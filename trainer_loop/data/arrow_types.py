"""Convert types of Arrow, such as dictionaries and views, to the plain types of their values."""

import uuid
from collections.abc import Mapping, Sequence
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.compute as pc

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


def as_rows(table: Any) -> datasets.Dataset:
    """A table of Arrow or datasets as a data set; the name that datasets would give it takes reading all of it."""
    return datasets.Dataset(table, fingerprint=uuid.uuid4().hex)


def as_typed_rows(table: pa.Table, features: Mapping[str, Any]) -> datasets.Dataset:
    """A table as a data set. features: the types that datasets has for some columns; the others keep those of Arrow."""
    typed = datasets.Features.from_arrow_schema(pa.schema(table.schema)) | dict(features)
    return as_rows(table.replace_schema_metadata(datasets.Features(typed).arrow_schema.metadata))


def make_dataset(
    arrays: Mapping[str, Any], names: Sequence[str], num_rows: int, metadata: Mapping[bytes, bytes] | None = None
) -> datasets.Dataset:
    """Columns as a data set. names: of all columns there are; where none is wanted, the first stands in as nulls.

    metadata: what is noted beside the types.
    """
    if not arrays and names:
        arrays, metadata = {names[0]: pa.nulls(num_rows)}, None
    return as_rows(pa.table(dict(arrays)).replace_schema_metadata(metadata))
