"""Where Python looks for modules: in the current directory only for what the user names, and there last.

Under `python -m` the current directory comes first. A file there called random.py or evaluate.py, which nobody named,
would be run in the place of the module of that name; and wandb.py, because a library looks whether it is installed.
"""

import os
import sys


def leave_out_current_directory() -> None:
    """Under `python -m trainer_loop...`, before the command imports anything else; does nothing elsewhere.

    Dotted paths are looked up there all the same, see `locate`. What Python itself imports before it comes here cannot
    be helped (contextlib, functools, runpy and a few more), nor can a current directory that PYTHONPATH names.
    """
    if getattr(sys, "argv", [])[:1] != ["-m"]:  # so it is while Python looks for the module of `-m`
        return
    try:
        directory = os.getcwd()  # noqa: PTH109 - pathlib would be imported from there
    except OSError:  # it was removed
        return
    if sys.path[:1] != [directory]:
        return
    del sys.path[0]
    from pathlib import Path

    if str(Path(__file__).parents[1]) == directory:  # a checkout that is not installed
        insert_after_installed(directory)


def insert_after_installed(directory: str) -> None:
    """After the installed packages, which no file there shall hide, and before checkouts that were added to them."""
    if directory not in sys.path:
        installed = [index for index, entry in enumerate(sys.path) if entry and is_installed(entry)]
        sys.path.insert(max(installed, default=-1) + 1, directory)


def is_installed(file: str) -> bool:
    """Whether a file belongs to Python or to an installed package, not to the user."""
    import sysconfig  # not before the current directory has left the first place
    from pathlib import Path

    roots = {sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    return any(Path(file).is_relative_to(root) for root in roots)
