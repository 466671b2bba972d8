"""Settings of the host: the rank, threads, and how torch gets memory and returns it."""

import ctypes
import mmap
import os
import sys
from pathlib import Path

from trainer_loop.errors import UserError

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # parameters of glibc's mallopt
_LARGEST_MMAP_THRESHOLD = 32 * 2**20  # the largest that glibc accepts
_SMALLEST_MMAP_THRESHOLD = 2**17  # bytes of a tensor
_NEVER = 2**31 - 1


def prepare_environment() -> None:
    """Set the environment variables that torch's threads read at import, unless the user has set them."""
    # A thread that spins while it waits takes its core from other processes, for milliseconds. A thread that does not
    # spin wakes up late. This value, a third of a millisecond, costs 2 % if nothing else runs; no spinning costs 6 %.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "20000")


def process_index_from_environment() -> int:
    """Rank of this process as set by the launcher; available before torch is imported."""
    return int(os.environ.get("RANK", 0))


def count_launched_processes() -> int:
    """Number of processes of this run as set by the launcher."""
    return int(os.environ.get("WORLD_SIZE", 1))


def expand_home(path: str | Path, *, place: str = "") -> Path:
    """Replace `~` and `~name` at the start of a path.

    Raises:
        UserError: if the user has no home directory; `place` is the start of the message.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        message = f"{path}: there is no such home directory; write the path out"
        raise UserError(f"{place}: {message}" if place else message) from error


def expect_many_shapes() -> None:
    """Make oneDNN keep fewer compiled kernels. It compiles half a megabyte for every operation and every shape.

    Batches of texts have new shapes all the time. The default of 1,024 kernels is half a gigabyte of code that is
    rarely used again. oneDNN reads the variable at its first matrix product. An update uses twenty to forty operations
    per shape.
    """
    if "DNNL_PRIMITIVE_CACHE_CAPACITY" not in os.environ:  # the older name
        os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "128")


def keep_freed_memory() -> None:
    """Let the allocator keep freed memory. Otherwise each step gets the same pages from the kernel and clears them."""
    _set_thresholds(_LARGEST_MMAP_THRESHOLD, _NEVER)


def return_freed_memory() -> None:
    """Let the allocator return the memory of freed tensors of 128 KB or more to the kernel at once."""
    _set_thresholds(_SMALLEST_MMAP_THRESHOLD, _SMALLEST_MMAP_THRESHOLD)


def return_free_memory_once() -> None:
    """Return memory that is free now to the kernel. This does not change what happens to memory that is freed later."""
    libc = _find_glibc()
    if libc is not None:
        libc.malloc_trim(0)


def return_pages(address: int, num_bytes: int) -> None:
    """Return the whole pages of a memory range to the kernel, on Linux only. Their content is lost.

    The memory must be private to this process. The range stays valid; a later access gets a page of zeros.
    """
    if not sys.platform.startswith("linux"):
        return
    start = -(-address // mmap.PAGESIZE) * mmap.PAGESIZE
    size = (address + num_bytes) // mmap.PAGESIZE * mmap.PAGESIZE - start
    if size > 0:
        ctypes.CDLL(None).madvise(ctypes.c_void_p(start), ctypes.c_size_t(size), mmap.MADV_DONTNEED)


def _set_thresholds(mmap: int, trim: int) -> None:
    libc = _find_glibc()
    if libc is not None:
        libc.mallopt(_M_MMAP_THRESHOLD, mmap)
        libc.mallopt(_M_TRIM_THRESHOLD, trim)
        if trim != _NEVER:
            libc.malloc_trim(0)


def _find_glibc() -> ctypes.CDLL | None:
    """Return the C library if it is glibc."""
    libc = ctypes.CDLL(None) if sys.platform.startswith("linux") else None
    return libc if hasattr(libc, "malloc_trim") else None  # musl has none


def choose_threads(setting: int | str) -> int | None:
    """Return the number of threads of a process that computes on the CPU; None leaves the choice to torch.

    Args:
        setting: a number, or `auto`, which respects OMP_NUM_THREADS, except for the 1 that a launcher sets by default,
            and gives the processes of this machine equal shares of its cores.
    """
    if setting != "auto":
        return int(setting)
    launched = "LOCAL_WORLD_SIZE" in os.environ or "ACCELERATE_MIXED_PRECISION" in os.environ
    if not launched or os.environ.get("OMP_NUM_THREADS", "1") != "1":
        return None
    return max(1, _count_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))


def _count_cores() -> int:
    """Physical cores that this process may use, by its affinity and the limit of its container."""
    from joblib import cpu_count  # comes with scikit-learn

    return int(cpu_count(only_physical_cores=True))
