"""Hashes of content: what a cache is keyed by."""

import hashlib
from pathlib import Path

from trainer_loop.errors import UserError, in_one_line

_READ_BYTES = 1 << 20


def digest(*parts: bytes) -> str:
    """One hash of several byte strings; where one ends and the next begins matters."""
    hasher = hashlib.blake2b(digest_size=16)
    for part in parts:
        hasher.update(len(part).to_bytes(8, "big"))
        hasher.update(part)
    return hasher.hexdigest()


def digest_file(path: Path) -> str:
    """A hash of the bytes of a file, read piece by piece."""
    hasher = hashlib.blake2b(digest_size=16)
    with path.open("rb") as file:
        while chunk := file.read(_READ_BYTES):
            hasher.update(chunk)
    return hasher.hexdigest()


def check_unchanged(path: str, content: str) -> None:
    """Raises UserError where the bytes of a file no longer have this hash."""
    try:
        changed = digest_file(Path(path)) != content
    except OSError as error:
        raise UserError(f"{path} cannot be read: {in_one_line(error)}") from error
    if changed:
        raise UserError(f"{path} was changed while it was read; start again when it is complete")
