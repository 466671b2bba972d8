"""Hashes of content, used as cache keys."""

import hashlib
from collections.abc import Iterable
from pathlib import Path

import datasets
import pyarrow as pa

from trainer_loop.errors import UserError, in_one_line

_READ_BYTES = 1 << 20
_HASHED_ROWS = 10_000  # rows that are hashed at a time


def digest(*parts: bytes) -> str:
    """Return one hash of several byte strings. It depends on where each string ends."""
    return _digest((len(part), [part]) for part in parts)


def digest_joined(pieces: Iterable[bytes], num_bytes: int, *parts: bytes) -> str:
    """Return `digest` of the joined pieces (`num_bytes` in total) and the parts, without joining them in memory."""
    return _digest([(num_bytes, pieces), *((len(part), [part]) for part in parts)])


def _digest(parts: Iterable[tuple[int, Iterable[bytes]]]) -> str:
    hasher = hashlib.blake2b(digest_size=16)
    for num_bytes, pieces in parts:
        hasher.update(num_bytes.to_bytes(8, "big"))
        for piece in pieces:
            hasher.update(piece)
    return hasher.hexdigest()


def digest_file(path: Path) -> str:
    """Return a hash of the bytes of a file, which is read in chunks."""
    hasher = hashlib.blake2b(digest_size=16)
    with path.open("rb") as file:
        while chunk := file.read(_READ_BYTES):
            hasher.update(chunk)
    return hasher.hexdigest()


def digest_rows(rows: datasets.Dataset) -> str:
    """Return a hash of the content of a data set and of its types."""
    batches = rows.with_format("arrow").iter(batch_size=_HASHED_ROWS)
    return digest(str(rows.features).encode(), *(_serialise(batch) for batch in batches))


def _serialise(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table.combine_chunks())
    return bytes(sink.getvalue())


def check_unchanged(path: str, content: str) -> None:
    """Raise UserError if the bytes of a file do not have the hash `content`."""
    try:
        is_changed = digest_file(Path(path)) != content
    except OSError as error:
        raise UserError(f"{path} cannot be read: {in_one_line(error)}") from error
    if is_changed:
        raise UserError(f"{path} was changed while it was read; start again when it is complete")
