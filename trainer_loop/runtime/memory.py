"""Peak memory of a run, and out-of-memory errors."""

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

# Texts of errors that are not an OutOfMemoryError: from the host's allocator, the driver, cuBLAS and Apple's MPS.
_OTHER_WORDS = (
    "DefaultCPUAllocator",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "MPS backend out of memory",
)


def read_peak_memory(device: "torch.device") -> int:
    """Peak memory of this process so far, in bytes: on the GPU, or in main memory for other devices."""
    import resource

    import torch

    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # kilobytes on Linux


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the error says that a device or the host had no more memory."""
    import torch

    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return any(words in str(error) for words in _OTHER_WORDS)


def release_memory() -> None:
    """Free unused tensors and return their memory to the device."""
    import gc

    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
