"""Estimates the memory that a step takes on one process, for each way to shard the model.

The bytes of weights, gradients, optimizer state and exchange buffers follow from shapes. The caller adds the bytes of
activations, which a pass with fake tensors measures; see `runtime/outline.py`.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from trainer_loop.parallel.sharding import local_part
from trainer_loop.runtime.outline import Outline, update


@dataclass(frozen=True)
class ModelTensors:
    """The tensors that a process holds between steps without sharding. Only their shapes and types are read.

    Args:
        layers: the weights of each layer; the weights of one layer are gathered together.
        rest: all other weights of the model, which are also gathered together.
        state: the optimizer state; None if it is unknown.
        averages: the averaged weights.
    """

    layers: Sequence[Sequence[Tensor]]
    rest: Sequence[Tensor]
    state: Sequence[Tensor] | None = ()
    averages: Sequence[Tensor] = ()

    @property
    def weights(self) -> list[Tensor]:
        return [weight for group in (*self.layers, self.rest) for weight in group]


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes on one process, by purpose; None: unknown. The caller sets the measured ones, `activations` and `update`.

    `weights`, `optimizer` and `averages` are the parts that the process keeps between steps.
    """

    weights: int
    optimizer: int | None
    averages: int
    gradients: int  # at the update
    waiting: int = 0  # gradients of earlier microbatches, while the activations take the most memory
    gathered: int = 0  # weights gathered from other processes in a pass
    activations: int | None = 0
    exchange: int = 0  # gradients and buffers in transfer at the end of a backward pass
    update: int = 0  # temporary tensors of the update
    host: int = 0  # in host memory; all other bytes are on the device

    @property
    def peak(self) -> int:
        """The largest number of bytes held at once; unknown ones count as 0."""
        kept = self.weights + (self.optimizer or 0) + self.averages
        in_pass = self.waiting + self.gathered + (self.activations or 0)
        return kept + max(in_pass, self.gradients + self.gathered + self.exchange, self.gradients + self.update)


def plan_whole(tensors: ModelTensors, *, num_processes: int, accumulates: bool) -> MemoryPlan:
    """Plan for an unsharded model: every process has all of it.

    Args:
        accumulates: some steps have several microbatches on one process.
    """
    kept = _plan_kept_tensors(tensors)
    # DistributedDataParallel stores gradients in buckets. Accumulated gradients are separate tensors at first.
    buckets = kept.gradients if num_processes > 1 else 0
    if accumulates:
        return replace(kept, waiting=kept.gradients + buckets, exchange=buckets)
    return replace(kept, waiting=buckets)


def plan_zero2(tensors: ModelTensors, *, num_parts: int, accumulates: bool, reduce_dtype: torch.dtype) -> MemoryPlan:
    """Plan for `shard: zero2`: a process keeps a part of each tensor; in a step it has whole weights and gradients."""
    buffer = count_bytes(_find_largest_group(tensors), num_parts, dtype=reduce_dtype, padded=True)
    return replace(
        _plan_kept_tensors(tensors, num_parts),
        waiting=count_bytes(_select_trainable(tensors.weights), dtype=reduce_dtype) if accumulates else 0,
        gathered=count_bytes(tensors.weights, num_parts, padded=True),
        exchange=count_bytes(_select_trainable(tensors.rest)) + buffer,
    )


def plan_full(
    tensors: ModelTensors,
    *,
    num_parts: int,
    accumulates: bool,
    cast_to: torch.dtype | None,
    reduce_dtype: torch.dtype,
    keeps_gradients: bool = False,
) -> MemoryPlan:
    """Plan for `shard: full`: a process keeps a part of each tensor; a pass gathers two layers and the other weights.

    Args:
        cast_to: type of the gathered weights; None for the type of the weights.
        keeps_gradients: gradients are whole until the last microbatch of a step.
    """
    kept = _plan_kept_tensors(tensors, num_parts)
    earlier = count_bytes(_select_trainable(tensors.weights), dtype=reduce_dtype) if keeps_gradients else kept.gradients
    layer = count_bytes(max(tensors.layers, key=count_bytes, default=()), num_parts, dtype=cast_to, padded=True)
    buffer = count_bytes(_find_largest_group(tensors), num_parts, dtype=reduce_dtype, padded=True)
    return replace(
        kept,
        waiting=earlier if accumulates else 0,
        gathered=2 * layer + count_bytes(tensors.rest, num_parts, dtype=cast_to, padded=True),
        exchange=count_bytes(_select_trainable(tensors.rest), dtype=cast_to) + buffer,
    )


def offload(plan: MemoryPlan, *, keeps_gradients: bool) -> MemoryPlan:
    """Return the same plan with the tensors that a process keeps between steps in host memory.

    Args:
        keeps_gradients: gradients are whole, and on the device, until the last microbatch of a step.
    """
    kept = plan.weights + (plan.optimizer or 0) + plan.averages + plan.gradients + plan.update
    return replace(
        plan,
        weights=0,
        optimizer=None if plan.optimizer is None else 0,
        averages=0,
        gradients=0,
        waiting=plan.waiting if keeps_gradients else 0,
        update=0,
        host=kept,
    )


def _plan_kept_tensors(tensors: ModelTensors, num_parts: int = 1) -> MemoryPlan:
    """Return the bytes that a process keeps between steps if it has one of `num_parts` parts of each tensor."""
    return MemoryPlan(
        weights=count_bytes(tensors.weights, num_parts),
        optimizer=None if tensors.state is None else count_bytes(tensors.state, num_parts),
        averages=count_bytes(tensors.averages, num_parts),
        gradients=count_bytes(_select_trainable(tensors.weights), num_parts),
    )


def _select_trainable(weights: Iterable[Tensor]) -> list[Tensor]:
    return [weight for weight in weights if weight.requires_grad]


def _find_largest_group(tensors: ModelTensors) -> Sequence[Tensor]:
    """Return the trainable weights of the group in which they take the most bytes."""
    return max(map(_select_trainable, (*tensors.layers, tensors.rest)), key=count_bytes)


def count_bytes(
    tensors: Iterable[Tensor], num_parts: int = 1, *, dtype: torch.dtype | None = None, padded: bool = False
) -> int:
    """Count the bytes of tensors, or of the parts of process 0, which are the largest.

    Args:
        num_parts: parts into which the first dimension of each tensor is divided; a scalar is not divided.
        dtype: count the tensors as if they had this type; None for their own type.
        padded: count all parts, each padded to the size of the first.
    """
    total = 0
    for tensor in tensors:
        rows, *others = tensor.shape or (1,)
        total += math.ceil(rows / num_parts) * math.prod(others) * (dtype or tensor.dtype).itemsize
    return total * (num_parts if padded else 1)


def count_missing_state(optimizer: Optimizer) -> int:
    """Return the bytes of the state that the first update of an optimizer will create on this process."""
    if optimizer.state:
        return 0
    outline, kind = Outline(nn.Module()), cast(Any, type(optimizer))
    with outline.fakes:
        groups = [
            {**group, "params": [nn.Parameter(torch.empty_like(local_part(weight))) for weight in group["params"]]}
            for group in optimizer.param_groups
        ]
    outline.model = nn.ParameterList(chain.from_iterable(group["params"] for group in groups))
    outline.optimizer = kind(groups)
    update(outline)
    return sum(value.nbytes for value in outline.state)
