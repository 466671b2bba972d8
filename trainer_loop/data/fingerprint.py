"""Hashes of content: what a cache is keyed by."""

import hashlib
from collections.abc import Iterable
from pathlib import Path

import datasets
import pyarrow as pa

from trainer_loop.errors import UserError, in_one_line

_READ_BYTES = 1 << 20
_HASHED_ROWS = 10_000  # at a time


def digest(*parts: bytes) -> str:
    """One hash of several byte strings; where one ends and the next begins matters."""
    return _digest((len(part), [part]) for part in parts)


def digest_joined(pieces: Iterable[bytes], num_bytes: int, *parts: bytes) -> str:
    """As `digest` of the pieces, joined to so many bytes, and of the parts; the pieces are not held together."""
    return _digest([(num_bytes, pieces), *((len(part), [part]) for part in parts)])


def _digest(parts: Iterable[tuple[int, Iterable[bytes]]]) -> str:
    hasher = hashlib.blake2b(digest_size=16)
    for num_bytes, pieces in parts:
        hasher.update(num_bytes.to_bytes(8, "big"))
        for piece in pieces:
            hasher.update(piece)
    return hasher.hexdigest()


def digest_file(path: Path) -> str:
    """A hash of the bytes of a file, read piece by piece."""
    hasher = hashlib.blake2b(digest_size=16)
    with path.open("rb") as file:
        while chunk := file.read(_READ_BYTES):
            hasher.update(chunk)
    return hasher.hexdigest()


def digest_rows(rows: datasets.Dataset) -> str:
    """A hash of the content of a data set, and of its types."""
    batches = rows.with_format("arrow").iter(batch_size=_HASHED_ROWS)
    return digest(str(rows.features).encode(), *(_serialise(batch) for batch in batches))


def _serialise(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table.combine_chunks())
    return bytes(sink.getvalue())


def check_unchanged(path: str, content: str) -> None:
    """Raises UserError where the bytes of a file no longer have this hash."""
    try:
        changed = digest_file(Path(path)) != content
    except OSError as error:
        raise UserError(f"{path} cannot be read: {in_one_line(error)}") from error
    if changed:
        raise UserError(f"{path} was changed while it was read; start again when it is complete")
