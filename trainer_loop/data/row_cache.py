"""Rows that were costly to make, kept on disk under a key; made once, however many processes want them."""

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
_ABANDONED_SECONDS = 3600  # since anything was written to what is not whole


def load_or_make(folder: Path, make: Callable[[str], None]) -> datasets.Dataset:
    """The rows kept in `folder`, mapped into memory; `make(path)` writes them to an Arrow file where there are none.

    It may write arrays beside them, in files that end in .npy.

    Of the processes that ask at one time, one makes them and the others wait. What is kept appears whole or not at
    all, and is made again where its size or time tell that it is not as it was written. Raises OSError where it
    cannot be written.
    """
    rows = load_rows(folder)
    if rows is not None:
        return rows
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _lock(folder):
        rows = load_rows(folder)  # another process may have been first
        return _make(folder, make) if rows is None else rows


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


def _lock(folder: Path) -> filelock.AcquireReturnProxy:
    try:
        return filelock.FileLock(f"{folder}.lock").acquire()
    except NotImplementedError as error:
        raise OSError(f"files in {folder.parent} cannot be locked") from error


def _make(folder: Path, make: Callable[[str], None]) -> datasets.Dataset:
    """Under a name that no other has until it is whole: on some file systems locks do not bind other hosts."""
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
    """What processes left that were killed, under any key: they may not come again."""
    for partial in folder.glob("*.partial"):
        with contextlib.suppress(FileNotFoundError):  # another process has removed it, or made it whole
            written = max(entry.stat().st_mtime for entry in [partial, *partial.iterdir()])
            if time.time() - written > _ABANDONED_SECONDS:
                shutil.rmtree(partial, ignore_errors=True)


def _put(partial: Path, folder: Path) -> datasets.Dataset:
    try:
        partial.replace(folder)
    except OSError:  # something is there: damaged rows, or those of another host, which may have mapped them already
        rows = load_rows(folder)
        if rows is not None:
            return rows
        if not folder.exists():
            raise
        _move_away(folder, partial.with_name(f"{partial.stem}-damaged.partial"))
        return _put(partial, folder)
    return datasets.Dataset.from_file(str(folder / _ROWS))


def _move_away(folder: Path, abandoned: Path) -> None:
    """Not removed at once: another host may have put whole rows there just now, and mapped them."""
    with contextlib.suppress(FileNotFoundError):  # or have moved them itself
        folder.replace(abandoned)
        os.utime(abandoned)


def load_rows(folder: Path) -> datasets.Dataset | None:
    """The rows kept in `folder`, or None where there are none or the file is not as it was written."""
    try:
        facts = parse_json((folder / _FACTS).read_bytes())
        if facts["written"] != _written(folder) and facts["digest"] != _digest(folder):
            return None
        return datasets.Dataset.from_file(str(folder / _ROWS))
    except (OSError, ValueError, KeyError, TypeError):  # missing, cut short, or not what we wrote
        return None


def _list_files(folder: Path) -> list[Path]:
    return [folder / _ROWS, *sorted(folder.glob("*.npy"))]


def _digest(folder: Path) -> str:
    return "".join(map(digest_file, _list_files(folder)))


def _written(folder: Path) -> list[int]:
    """Sizes and times of the files: where these are as they were, the rows need not be read to be trusted."""
    facts = [path.stat() for path in _list_files(folder)]
    return [number for one in facts for number in (one.st_size, one.st_mtime_ns)]
