"""The processes of a run and the device each one has: how the Accelerator is built, and sums over processes."""

import hashlib
import json
import os
from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from trainer_loop.errors import UserError

if TYPE_CHECKING:  # torch and accelerate take seconds to import: a config error is told before that
    import numpy as np
    import torch
    from accelerate import Accelerator


_DATA_PARALLEL = ("NO", "MULTI_CPU", "MULTI_GPU", "MULTI_XPU", "MULTI_NPU", "MULTI_MLU", "MULTI_HPU")


def process_index_from_environment() -> int:
    """Rank of this process as its launcher set it; known before anything heavy is imported."""
    return int(os.environ.get("RANK", 0))


def choose_precision(requested: str) -> str:
    """Turn `auto` into what this hardware does best, and refuse what it cannot do.

    auto: bf16 where matrix products have it in hardware, else fp16 on a GPU with tensor cores, else no.
    """
    import torch

    cuda = torch.cuda.is_available()
    if requested == "auto":
        if cuda:
            major, _ = torch.cuda.get_device_capability()
            return "bf16" if major >= 8 else "fp16" if major >= 7 else "no"
        return "bf16" if _cpu_has_bf16() else "no"
    if requested == "fp16" and not cuda:
        raise UserError("train.precision: fp16 needs a GPU and none was found; allowed here: auto, no, bf16")
    if requested == "bf16" and cuda and not torch.cuda.is_bf16_supported():
        raise UserError("train.precision: this GPU has no bf16; allowed here: auto, no, fp16")
    return requested


def _cpu_has_bf16() -> bool:
    import torch

    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("amx_bf16") or capabilities.get("avx512_bf16"))


def make_accelerator(
    *,
    precision: str,
    trackers: Sequence[str] = (),
    project_dir: str | None = None,
) -> "Accelerator":
    """The Accelerator of this process; joins the process group when a launcher started several.

    `precision` is no, bf16 or fp16 (see `choose_precision`).
    """
    import torch
    from accelerate import Accelerator
    from accelerate.utils import DistributedDataParallelKwargs, GradientAccumulationPlugin, InitProcessGroupKwargs

    accelerator = Accelerator(
        # Without this, two processes on a machine without a GPU would each believe to be alone.
        cpu=not torch.accelerator.is_available(),
        mixed_precision=precision,
        # The loop divides by the targets itself; ACCELERATE_GRADIENT_ACCUMULATION_STEPS must not divide again.
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
        kwargs_handlers=[
            # Processes may run unlike numbers of forward passes, so none may hide a collective for its buffers.
            DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True),
            InitProcessGroupKwargs(timeout=timedelta(minutes=30)),
        ],
        log_with=list(trackers) or None,
        project_dir=project_dir,
    )
    launched = int(os.environ.get("WORLD_SIZE", 1))
    if launched != accelerator.num_processes:
        raise UserError(
            f"WORLD_SIZE={launched} processes were launched but accelerate joined {accelerator.num_processes}: "
            "each would train alone; launch with `accelerate launch --multi_gpu --num_processes N`"
        )
    if accelerator.distributed_type not in _DATA_PARALLEL:
        raise UserError(
            f"accelerate was told to use {accelerator.distributed_type.value}; gradient norms and checkpoints here are "
            "those of data parallelism: launch with --multi_gpu, or with a file of launch/accelerate"
        )
    return accelerator


def sum_over_processes(accelerator: "Accelerator", values: "torch.Tensor") -> "torch.Tensor":
    """Sum of a tensor over all processes, on every process; the device is not synchronised."""
    if accelerator.num_processes == 1:
        return values
    import torch.distributed

    torch.distributed.all_reduce(values)
    return values


def gather_rows(accelerator: "Accelerator", tensors: "Sequence[torch.Tensor]") -> "np.ndarray":
    """What all processes hold, `[rows, ...]`, in one array; a process may have no tensor at all."""
    import numpy as np
    import torch
    from accelerate.utils import gather_object

    mine = torch.cat(list(tensors)).cpu().numpy() if tensors else None
    return np.concatenate([part for part in gather_object([mine]) if part is not None])


def agree(accelerator: "Accelerator", value: Any, *, what: str) -> None:
    """Refuse to go on where the processes hold unlike values; called by all of them.

    value: plain JSON. what: how a user calls it. Raises UserError on every process.
    """
    if accelerator.num_processes == 1:
        return
    from accelerate.utils import gather_object

    digest = hashlib.blake2b(json.dumps(value, sort_keys=True, default=str).encode(), digest_size=8).hexdigest()
    digests = gather_object([digest])
    if len(set(digests)) > 1:
        unlike = [str(rank) for rank, other in enumerate(digests) if other != digests[0]]
        raise UserError(
            f"{what} of process {', '.join(unlike)} is not that of process 0: all processes must see the same files, "
            "and a function that returns rows must return them in the same order everywhere"
        )


def leave_process_group() -> None:
    """Leave it before the process ends, whatever happened: gloo aborts a process that does not."""
    import torch.distributed

    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
