"""Arrow and parquet files: the columns that datasets can hold, damaged files, batches, the cache of converted rows."""

import contextlib
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from pathlib import Path

import datasets
import pyarrow as pa

from trainer_loop.data.arrow_types import plain_array, plain_type
from trainer_loop.data.row_cache import load_or_make
from trainer_loop.data.shards import BATCH_ROWS, Batch, Mark
from trainer_loop.errors import UserError, in_one_line

_MOST_MEMORY = 2**48  # bytes that a processor can address
_REFUSALS = (ValueError, TypeError, KeyError)  # of datasets, at a type or metadata that it does not know


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


def hold(table: pa.Table, features: datasets.Features) -> pa.Table:
    """The columns in these types, as `as_held`.

    Raises ArrowInvalid where they are damaged: a number out of place, such as one of a category that is not there,
    would read what lies elsewhere in memory.
    """
    table = table.select(list(features))
    table.validate(full=True)
    return as_held(table, features)


def as_held(table: pa.Table, features: datasets.Features) -> pa.Table:
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


def select(names: Sequence[str], columns: Collection[str] | None) -> list[str] | None:
    """The columns of a file that are read, None for all. Where it has none of them, its first tells how many rows."""
    if columns is None:
        return None
    return [name for name in dict.fromkeys(names) if name in columns] or list(names[:1])


def number_batches(batches: Iterable[pa.RecordBatch], *, begin: int, mark: Mark | None) -> Iterator[Batch]:
    """Batches of any size, the first of which begins behind `begin` rows, as ours from a mark on.

    Raises ArrowInvalid where one is damaged.
    """
    skipped = 0 if mark is None else mark["row"]
    for batch in batches:
        for start in range(max(skipped - begin, 0), len(batch), BATCH_ROWS):
            piece = pa.Table.from_batches([batch.slice(start, BATCH_ROWS)])
            piece.validate(full=True)
            yield Batch(piece, [(begin + start + row + 1,) for row in range(len(piece))], ("row",))
        begin += len(batch)


def keep_converted(path: str, *, key: str, convert: Callable[[str], None]) -> datasets.Dataset:
    """The rows that `convert(target)` writes to an Arrow file, mapped from the cache of datasets; written once.

    path: the file that they come from. key: tells rows from others, wherever that file lies. Raises UserError where
    they cannot be written.
    """
    cache = Path(datasets.config.HF_DATASETS_CACHE) / "trainer_loop"
    try:
        return load_or_make(cache / key, convert)
    except OSError as error:
        raise UserError(
            f"{path} cannot be converted to Arrow in {cache}: {in_one_line(error)}; let the environment variable "
            "HF_DATASETS_CACHE name a directory with room that can be written"
        ) from error
