"""How much memory a run has taken."""

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def read_peak_memory(device: "torch.device") -> int:
    """The most this process has held so far, in bytes: on the GPU, or in main memory."""
    import resource

    import torch

    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # kilobytes on Linux
