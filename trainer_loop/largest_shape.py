"""Before the first step of a sharded run: whether the largest microbatch of its plan fits into memory everywhere.

In a step a process could not answer alone, because the others wait for it in an exchange.
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

RunPasses = Callable[[Microbatch, int], None]  # forward and backward passes of a microbatch, so many times


def cut_until_it_fits(
    data: RunData, *, accelerator: Accelerator, run_passes: RunPasses, warn: Callable[[str], None]
) -> None:
    """Run the largest microbatches, and cut all microbatches smaller until no process runs out of memory.

    All processes call this. A stream has no plan, so nothing is known of its microbatches.

    Args:
        run_passes: in which no process waits for another.
        warn: for a line about each cut.

    Raises:
        UserError: on every process, where a single row does not fit.
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
    """The rows of a microbatch that does not fit on some process; the same answer on all of them."""
    largest = find_largest(train.plan)
    for rows in largest.microbatches:
        # The second pass of a step has the gradients of the first beside it.
        failed = _runs_out(train, rows, run_passes, times=2 if largest.accumulates else 1)
        if sum_on_hosts(accelerator, [failed])[0]:
            release_memory()
            return rows
    return None


def _runs_out(train: TrainLoader, rows: Rows, run_passes: RunPasses, *, times: int) -> bool:
    """Whether these rows do not fit on this process. Nothing holds what a failed pass made, once this returns."""
    try:
        run_passes(as_dummy(train.make_microbatch(rows, 0)).to(train.device), times)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return True
    return False


@contextmanager
def leaving_modules_alone(model: nn.Module) -> Iterator[None]:
    """Give modules their buffers and their other attributes back at the end, as they were.

    What lies inside an attribute, such as the entries of a list, stays as it is then.
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
            for held, name, buffer, before in buffers:
                held[name] = buffer
                buffer.copy_(before)
        for held_attributes, values in attributes:
            held_attributes.clear()
            held_attributes.update(values)
