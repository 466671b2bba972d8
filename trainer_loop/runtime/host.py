"""The machine a process runs on: threads, and how memory is given to torch and taken back."""

import ctypes
import os
import sys
from pathlib import Path

from trainer_loop.errors import UserError

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's mallopt
_LARGEST_MMAP_THRESHOLD = 32 * 2**20  # that glibc accepts
_NEVER = 2**31 - 1


def prepare_environment() -> None:
    """What torch's threads read from the environment when it is imported, where the user has not set it."""
    # A thread that spins while it waits takes its core from any other process, for milliseconds; one that does not spin
    # is woken late. This much, a third of a millisecond, costs 2 % where nothing else runs, and none at all 6 %.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "20000")


def expand_home(path: str | Path, *, place: str = "") -> Path:
    """A path in which `~` and `~name` are home directories.

    Args:
        place: the config key or argument the path is from, for the error.

    Raises:
        UserError: there is no such home directory, as in a container for a user that it does not know.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        told = f"{path}: there is no such home directory; write the path out"
        raise UserError(f"{place}: {told}" if place else told) from error


def expect_many_shapes() -> None:
    """Let oneDNN keep less of the code that it compiles for every shape, half a megabyte each for every operation.

    Batches of texts have ever new shapes: what it keeps by default, 1024, is half a gigabyte of code hardly used again.
    It reads the variable when it first multiplies; an update has some twenty to forty operations of a shape.
    """
    if "DNNL_PRIMITIVE_CACHE_CAPACITY" not in os.environ:  # its older name
        os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "128")


def keep_freed_memory() -> None:
    """Let the allocator keep what tensors leave: each step would get the same pages from the kernel and clear them."""
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # glibc has it, musl has not
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD)
        mallopt(_M_TRIM_THRESHOLD, _NEVER)


def choose_threads(setting: int | str) -> int | None:
    """Threads of a process that computes on the CPU; None: as many as torch takes by itself.

    setting: `auto`, or the number the user wants. auto leaves a number in OMP_NUM_THREADS alone, but for the 1 that a
    launcher puts there unasked, and gives the processes of this machine equal shares of its cores.
    """
    if setting != "auto":
        return int(setting)
    launched = "LOCAL_WORLD_SIZE" in os.environ or "ACCELERATE_MIXED_PRECISION" in os.environ
    if not launched or os.environ.get("OMP_NUM_THREADS", "1") != "1":
        return None
    return max(1, _count_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))


def _count_cores() -> int:
    """Physical cores that this process may use: its affinity and the limit of its container are heeded."""
    from joblib import cpu_count  # comes with scikit-learn

    return int(cpu_count(only_physical_cores=True))
