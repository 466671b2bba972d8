"""Rows that were costly to make, kept on disk under a key; made once, however many processes want them."""

import json
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

    def make_folder() -> datasets.Dataset:
        partial = folder.with_name(f"{folder.name}.partial")  # the lock is ours, so one name is enough
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        make(str(partial / _ROWS))
        (partial / _FACTS).write_text(json.dumps({"digest": digest_file(partial / _ROWS)}))
        shutil.rmtree(folder, ignore_errors=True)
        partial.replace(folder)
        return datasets.Dataset.from_file(str(folder / _ROWS))

    return make_once(folder, load=lambda: _load(folder), make=make_folder)


def make_once(
    place: Path, *, load: Callable[[], datasets.Dataset | None], make: Callable[[], datasets.Dataset]
) -> datasets.Dataset:
    """What `load` finds at `place`, or else `make` puts there, which one process does while the others wait."""
    rows = load()
    if rows is not None:
        return rows
    place.parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(f"{place}.lock"):
        rows = load()  # another process may have been first
        return make() if rows is None else rows


def _load(folder: Path) -> datasets.Dataset | None:
    """The rows, or None where there are none or the file is not as it was written."""
    try:
        facts = json.loads((folder / _FACTS).read_text())
        if facts["digest"] != digest_file(folder / _ROWS):
            return None
        return datasets.Dataset.from_file(str(folder / _ROWS))
    except (OSError, ValueError, KeyError, TypeError):  # missing, cut short, or not what we wrote
        return None
