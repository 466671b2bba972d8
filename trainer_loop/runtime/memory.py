"""Peak memory of a run, out-of-memory errors, and tensors that share memory."""

import resource
import sys

import torch
from torch.distributed.tensor import DTensor

# Texts of errors that are not an OutOfMemoryError: from the host's allocator, the driver, cuBLAS and Apple's MPS.
_OTHER_MESSAGES = (
    *("DefaultCPUAllocator", "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "MPS backend out of memory"),
)


def read_peak_memory(device: torch.device) -> int:
    """Return the peak memory of this process so far, in bytes: on the GPU, or in main memory for other devices."""
    if device.type == "cuda":
        # `max_memory_allocated` would also collect and sort hundreds of other statistics.
        return int(torch.cuda.memory_stats_as_nested_dict(device)["allocated_bytes"]["all"]["peak"])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # kilobytes on Linux


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the error says that a device or the host had no more memory."""
    is_typed = isinstance(error, torch.OutOfMemoryError | MemoryError)
    return is_typed or any(message in str(error) for message in _OTHER_MESSAGES)


def place_in_memory(tensor: torch.Tensor) -> tuple[int, ...]:
    """Return the storage address, offset and shape of a tensor. They are equal for all names of a tied weight."""
    part = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    return (part.untyped_storage().data_ptr(), part.storage_offset(), *tensor.shape)
