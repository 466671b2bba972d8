"""How much memory a run has taken, and what to do when there is no more."""

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

# Of errors that are no OutOfMemoryError: the host's allocator, the driver's, cuBLAS's, Apple's.
_OTHER_WORDS = (
    "DefaultCPUAllocator",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "MPS backend out of memory",
)


def read_peak_memory(device: "torch.device") -> int:
    """The most this process has held so far, in bytes: on the GPU, or in main memory."""
    import resource

    import torch

    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # kilobytes on Linux


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device, or the host, had no more memory to give."""
    import torch

    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return any(words in str(error) for words in _OTHER_WORDS)


def release_memory() -> None:
    """Give what tensors have left back to the device."""
    import gc

    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
