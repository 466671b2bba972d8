"""A cache on disk of rows that are expensive to compute. One process computes them; the others wait and load them."""

import contextlib
import json
import os
import platform
import shutil
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import datasets
import filelock

from trainer_loop.data.fingerprint import digest_file
from trainer_loop.errors import UserError, in_one_line
from trainer_loop.runtime.plain_json import parse_json

_ROWS, _FACTS = "rows.arrow", "facts.json"
_ABANDONED_SECONDS = 3600  # an incomplete folder without a write for this long is deleted


def load_or_make(folder: Path, make: Callable[[str], None]) -> datasets.Dataset:
    """Return the rows in `folder`, memory-mapped. If there are none, `make(path)` writes them to an Arrow file first.

    If several processes call this at the same time, one runs `make` and the others wait. The folder is complete or does
    not exist. Rows that were changed or damaged since they were written are made again.

    Args:
        make: Writes the rows to the given path. It may write arrays to .npy files in the same folder.

    Raises:
        OSError: The folder cannot be written.
    """
    rows = load_rows(folder)
    if rows is not None:
        return rows
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _lock(folder):
        rows = load_rows(folder)  # another process may have made them in the meantime
        return _make(folder, make) if rows is None else rows


def keep_converted(path: str, *, key: str, convert: Callable[[str], None]) -> datasets.Dataset:
    """Return the rows that `convert(target)` writes to an Arrow file, memory-mapped from the cache of datasets.

    Args:
        path: The source file, for messages.
        key: A hash of the content of the rows; it does not depend on the path of the source file.

    Raises:
        UserError: The rows cannot be written.
    """
    cache = Path(datasets.config.HF_DATASETS_CACHE) / "trainer_loop"
    try:
        return load_or_make(cache / key, convert)
    except OSError as error:
        raise UserError(
            f"{path} cannot be converted to Arrow in {cache}: {in_one_line(error)}; let the environment variable "
            "HF_DATASETS_CACHE name a directory with room that can be written"
        ) from error


def _lock(folder: Path) -> filelock.AcquireReturnProxy:
    try:
        return filelock.FileLock(f"{folder}.lock").acquire()
    except NotImplementedError as error:
        raise OSError(f"files in {folder.parent} cannot be locked") from error


def _make(folder: Path, make: Callable[[str], None]) -> datasets.Dataset:
    """Write under a unique name and rename it when complete, because some file systems do not lock across hosts."""
    _remove_abandoned(folder.parent)
    partial = folder.with_name(f"{folder.name}.{platform.node()}-{uuid.uuid4().hex}.partial")
    partial.mkdir()
    try:
        make(str(partial / _ROWS))
        for path in _list_files(partial):
            with path.open("rb+") as file:
                os.fsync(file.fileno())
        facts = {"digest": _digest(partial), "written": _written(partial)}
        (partial / _FACTS).write_text(json.dumps(facts))
        return _put(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _remove_abandoned(folder: Path) -> None:
    """Remove the incomplete folders of killed processes, for all keys."""
    for partial in folder.glob("*.partial"):
        with contextlib.suppress(FileNotFoundError):  # another process has removed or completed it
            last_write = max(entry.stat().st_mtime for entry in [partial, *partial.iterdir()])
            if time.time() - last_write > _ABANDONED_SECONDS:
                shutil.rmtree(partial, ignore_errors=True)


def _put(partial: Path, folder: Path) -> datasets.Dataset:
    try:
        partial.replace(folder)
    except OSError:  # the folder exists: damaged rows, or rows of another host, which may have mapped them already
        rows = load_rows(folder)
        if rows is not None:
            return rows
        if not folder.exists():
            raise
        _move_away(folder, partial.with_name(f"{partial.stem}-damaged.partial"))
        return _put(partial, folder)
    return datasets.Dataset.from_file(str(folder / _ROWS))


def _move_away(folder: Path, abandoned: Path) -> None:
    """Rename the folder instead of deleting it, because another host may have just written and mapped good rows."""
    with contextlib.suppress(FileNotFoundError):  # another host has moved it
        folder.replace(abandoned)
        os.utime(abandoned)


def load_rows(folder: Path) -> datasets.Dataset | None:
    """Return the rows in `folder`; None if there are none, or if they were changed since they were written."""
    try:
        facts = parse_json((folder / _FACTS).read_bytes())
        if facts["written"] != _written(folder) and facts["digest"] != _digest(folder):
            return None
        return datasets.Dataset.from_file(str(folder / _ROWS))
    except (OSError, ValueError, KeyError, TypeError):  # missing, truncated, or written by another program
        return None


def _list_files(folder: Path) -> list[Path]:
    return [folder / _ROWS, *sorted(folder.glob("*.npy"))]


def _digest(folder: Path) -> str:
    return "".join(map(digest_file, _list_files(folder)))


def _written(folder: Path) -> list[int]:
    """Return sizes and modification times of the files. If these are unchanged, the rows are not hashed again."""
    stats = [path.stat() for path in _list_files(folder)]
    return [number for stat in stats for number in (stat.st_size, stat.st_mtime_ns)]
