"""Peak memory of a run, out-of-memory errors, and tensors that share memory."""

import resource
import sys

import torch
from torch.distributed.tensor import DTensor

# Texts of errors that are not an OutOfMemoryError: from the host's allocator, the driver, cuBLAS and Apple's MPS.
_OTHER_WORDS = (
    *("DefaultCPUAllocator", "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "MPS backend out of memory"),
)


def read_peak_memory(device: torch.device) -> int:
    """Peak memory of this process so far, in bytes: on the GPU, or in main memory for other devices."""
    if device.type == "cuda":
        # `max_memory_allocated` would sort hundreds of other numbers first.
        return int(torch.cuda.memory_stats_as_nested_dict(device)["allocated_bytes"]["all"]["peak"])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # kilobytes on Linux


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the error says that a device or the host had no more memory."""
    is_typed = isinstance(error, torch.OutOfMemoryError | MemoryError)
    return is_typed or any(words in str(error) for words in _OTHER_WORDS)


def place_in_memory(tensor: torch.Tensor) -> tuple[int, ...]:
    """Where a tensor lies, and its shape: the same for all names of tied weights."""
    part = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    return (part.untyped_storage().data_ptr(), part.storage_offset(), *tensor.shape)
