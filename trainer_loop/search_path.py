"""Keeps the current directory out of the first place of the import path.

`python -m` puts the current directory first. A file random.py, evaluate.py or wandb.py there would then run instead of
the standard or installed module, although no config names it.
"""

import os
import sys


def leave_out_current_directory() -> None:
    """Remove the current directory from the import path under `python -m trainer_loop...`; else do nothing.

    Call this before any other import. `locate` still finds dotted paths in the current directory. Two cases remain: the
    modules that Python imports before this one (contextlib, functools, runpy and a few more), and a current directory
    that PYTHONPATH names.
    """
    if getattr(sys, "argv", [])[:1] != ["-m"]:  # sys.argv[0] is "-m" while Python locates the module to run
        return
    try:
        directory = os.getcwd()  # noqa: PTH109 - pathlib would be imported from there
    except OSError:  # the directory was removed
        return
    if sys.path[:1] != [directory]:
        return
    del sys.path[0]
    from pathlib import Path

    if str(Path(__file__).parents[1]) == directory:  # a checkout that is not installed
        insert_after_installed(directory)


def insert_after_installed(directory: str) -> None:
    """Insert a directory into the import path: after installed packages, to hide none, and before editable ones."""
    if directory not in sys.path:
        installed = [index for index, entry in enumerate(sys.path) if entry and is_installed(entry)]
        sys.path.insert(max(installed, default=-1) + 1, directory)


def is_installed(file: str) -> bool:
    """Return whether a file belongs to Python or to an installed package."""
    import sysconfig  # only after the current directory was removed from the first place
    from pathlib import Path

    roots = {sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    return any(Path(file).is_relative_to(root) for root in roots)
