"""Arrow and parquet files: which columns can be held as rows of datasets, which format, which damage, and where rows
of theirs are kept that had to be converted."""

import contextlib
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

import datasets
import pyarrow as pa

from trainer_loop.data.row_cache import load_or_make
from trainer_loop.errors import UserError, in_one_line

_REFUSALS = (ValueError, TypeError, KeyError)  # of datasets, at a type or metadata that it does not know


def find_features(schema: pa.Schema, *, path: str, wanted: Collection[str] | None) -> datasets.Features:
    """The types of the columns that can be held; others are left out.

    wanted: columns that must not be left out, None for all of them. Raises UserError where one would be, or where the
    file at `path` has no other.
    """
    _check_metadata(schema, path)
    refused = {name: _why_refused(schema, name) for name in dict.fromkeys(schema.names)}
    held = [field for field in schema if refused[field.name] is None]
    told = [
        f"{path}: column {name!r} cannot be read: {reason}"
        for name, reason in refused.items()
        if reason is not None and (wanted is None or name in wanted or not held)
    ]
    if told:
        raise UserError(told)
    return datasets.Features.from_arrow_schema(pa.schema(held, metadata=schema.metadata))


def _check_metadata(schema: pa.Schema, path: str) -> None:
    try:
        datasets.Features.from_arrow_schema(pa.schema([], metadata=schema.metadata))
    except _REFUSALS as error:
        raise UserError(
            f"{path}: the types of its columns, as datasets noted them in it, cannot be read: {in_one_line(error)}; "
            "use the version of datasets that wrote it"
        ) from error


def _why_refused(schema: pa.Schema, name: str) -> str | None:
    places = schema.get_all_field_indices(name)
    if len(places) > 1:
        return f"there are {len(places)} columns of this name; rename or drop all but one"
    try:
        datasets.Features.from_arrow_schema(pa.schema([schema.field(places[0])]))
    except _REFUSALS as error:
        return f"{in_one_line(error).rstrip('.')}; store texts, numbers, or lists or structures of them"
    return None


@contextlib.contextmanager
def telling_damage(path: str, kind: str) -> Iterator[None]:
    """Around the reading of a file: raises UserError where Arrow cannot read it as one of this kind."""
    try:
        yield
    except (UserError, MemoryError):
        raise
    except (pa.ArrowException, OSError, *_REFUSALS) as error:
        told = in_one_line(error).rstrip(".")
        if isinstance(error, OSError) and error.errno is not None:  # of what Arrow raises, only the system's have one
            raise UserError(f"{path} cannot be read: {told}") from error
        raise UserError(f"{path} is no readable {kind} file: {told}; write or copy it again") from error


def is_arrow_stream(path: str) -> bool:
    """Of the two formats of Arrow, datasets has the streaming one and feather the other.

    Raises UserError for feather's first version, which is neither.
    """
    with Path(path).open("rb") as file:
        start = file.read(6)
    if start.startswith(b"FEA1"):
        raise UserError(f"{path} is of version 1 of feather, which keeps no types of columns; write it as version 2")
    return start != b"ARROW1"


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
