"""What Arrow and parquet files have: which columns can be held as rows of datasets, which format, which damage."""

from collections.abc import Collection
from pathlib import Path

import datasets
import pyarrow as pa

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


def explain_damage(path: str, kind: str, error: Exception) -> UserError:
    """What Arrow cannot read as a file of this kind."""
    told = in_one_line(error).rstrip(".")
    return UserError(f"{path} is no readable {kind} file: {told}; write or copy it again")


def is_arrow_stream(path: str) -> bool:
    """Of the two formats of Arrow, datasets has the streaming one and feather the other."""
    with Path(path).open("rb") as file:
        return file.read(6) != b"ARROW1"
