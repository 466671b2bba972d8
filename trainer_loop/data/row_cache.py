"""Rows that were costly to make, kept on disk under a key; made once, however many processes want them."""

import json
import platform
import shutil
from collections.abc import Callable
from pathlib import Path

import datasets
import filelock

from trainer_loop.data.fingerprint import digest_file

_ROWS, _FACTS = "rows.arrow", "facts.json"


def load_or_make(folder: Path, make: Callable[[str], None]) -> datasets.Dataset:
    """The rows kept in `folder`, mapped into memory; `make(path)` writes them to an Arrow file where there are none.

    Of the processes that ask at one time, one makes them and the others wait. What is kept appears whole or not at
    all, and what was damaged since is made again. Raises OSError where it cannot be written.
    """
    rows = _load(folder)
    if rows is not None:
        return rows
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _lock(folder):
        rows = _load(folder)  # another process may have been first
        return _make(folder, make) if rows is None else rows


def _lock(folder: Path) -> filelock.AcquireReturnProxy:
    try:
        return filelock.FileLock(f"{folder}.lock").acquire()
    except NotImplementedError as error:
        raise OSError(f"files in {folder.parent} cannot be locked") from error


def _make(folder: Path, make: Callable[[str], None]) -> datasets.Dataset:
    """Under a name of this host until it is whole: on some file systems locks bind no other host."""
    partial = folder.with_name(f"{folder.name}.{platform.node()}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # of a process that was killed
    partial.mkdir()
    try:
        make(str(partial / _ROWS))
        (partial / _FACTS).write_text(json.dumps({"digest": digest_file(partial / _ROWS)}))
        rows = _load(folder)
        if rows is not None:  # of another host, which may have mapped it already
            return rows
        shutil.rmtree(folder, ignore_errors=True)
        partial.replace(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return datasets.Dataset.from_file(str(folder / _ROWS))


def _load(folder: Path) -> datasets.Dataset | None:
    """The rows, or None where there are none or the file is not as it was written."""
    try:
        facts = json.loads((folder / _FACTS).read_text())
        if facts["digest"] != digest_file(folder / _ROWS):
            return None
        return datasets.Dataset.from_file(str(folder / _ROWS))
    except (OSError, ValueError, KeyError, TypeError):  # missing, cut short, or not what we wrote
        return None
