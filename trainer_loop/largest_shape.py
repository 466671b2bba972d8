"""Checks before the first step of a sharded run that the largest microbatch of its plan fits into memory.

Within a step, a process that runs out of memory cannot recover, because the others wait for it in an exchange.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from accelerate import Accelerator
from accelerate.utils import release_memory
from torch import nn

from trainer_loop.data.batch_plan import Rows, halve_dearest
from trainer_loop.data.loader import Microbatch, TrainLoader, as_dummy
from trainer_loop.data.run_data import RunData
from trainer_loop.data.sample_microbatches import find_largest
from trainer_loop.errors import UserError
from trainer_loop.parallel.processes import sum_on_hosts
from trainer_loop.runtime.memory import is_out_of_memory

RunPasses = Callable[[Microbatch, int], None]  # runs a number of forward and backward passes of a microbatch


def cut_until_it_fits(
    data: RunData, *, accelerator: Accelerator, run_passes: RunPasses, warn: Callable[[str], None]
) -> None:
    """Run the largest microbatches, and cut all microbatches smaller until no process runs out of memory.

    All processes must call this. It does nothing for a stream, which has no plan of its microbatches.

    Args:
        run_passes: runs passes without waiting for other processes.
        warn: receives one line about each cut.

    Raises:
        UserError: on every process if a single row does not fit.
    """
    train = data.train
    if not isinstance(train, TrainLoader):
        return
    while (rows := _find_too_large(train, accelerator, run_passes)) is not None:
        widths = train.plan.widths(rows)
        half, tokens = halve_dearest([[rows]], widths, packed=train.plan.limits.packed), max(widths.values())
        if half is None:
            raise UserError(
                f"a row of {tokens:,} tokens does not fit into memory; lower data.max_length, choose a smaller model, "
                "set model.gradient_checkpointing=true, or start more processes"
            )
        data.limit_tokens(half)
        warn(
            f"{len(rows):,} rows of up to {tokens:,} tokens, the largest microbatch, do not fit into memory: none has "
            f"more than {half:,} padded tokens from now on; batch.max_tokens={half} says so from the start"
        )


def _find_too_large(train: TrainLoader, accelerator: Accelerator, run_passes: RunPasses) -> Rows | None:
    """Return the rows of a microbatch that does not fit on some process; None if all fit. All processes agree."""
    largest = find_largest(train.plan)
    for rows in largest.microbatches:
        # During the second pass of a step, the gradients of the first are also in memory.
        failed = _runs_out(train, rows, run_passes, times=2 if largest.accumulates else 1)
        if sum_on_hosts(accelerator, [failed])[0]:
            release_memory()
            return rows
    return None


def _runs_out(train: TrainLoader, rows: Rows, run_passes: RunPasses, *, times: int) -> bool:
    """Whether these rows do not fit on this process. The tensors of a failed pass can be freed after this returns."""
    try:
        run_passes(as_dummy(train.make_microbatch(rows, 0)).to(train.device), times)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return True
    return False


@contextmanager
def leaving_modules_alone(model: nn.Module) -> Iterator[None]:
    """Restore the buffers and other attributes of all modules at the end of the block.

    Changes inside an attribute, such as to the entries of a list, are not undone.
    """
    buffers = [
        (module._buffers, name, buffer, buffer.clone())
        for module in model.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    attributes = [(vars(module), dict(vars(module))) for module in model.modules()]
    try:
        yield
    finally:
        with torch.no_grad():
            for module_buffers, name, buffer, before in buffers:
                module_buffers[name] = buffer
                buffer.copy_(before)
        for module_attributes, values in attributes:
            module_attributes.clear()
            module_attributes.update(values)
