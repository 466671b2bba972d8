"""How much memory a step takes on a process, for each way to spread the model over the processes.

Bytes of weights, gradients, optimizer state and exchange follow from shapes. Those of activations are given: a pass in
shapes alone measures them, see `runtime/outline.py`.
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
class HeldTensors:
    """What a process holds without shards, as tensors of any kind that have a shape and a type.

    Args:
        layers: weights that are gathered at once, of each layer.
        rest: the other weights of the model, which are gathered at once too.
        state: of the optimizer; None: unknown.
        averages: of the weights.
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
    """Bytes on a process, by what they are for. None: unknown. What is measured, passes and updates, is added later."""

    weights: int  # that the process keeps, as the optimizer state and the averages
    optimizer: int | None
    averages: int
    gradients: int  # at the update
    waiting: int = 0  # gradients of earlier microbatches, where the activations take most
    gathered: int = 0  # weights that other processes keep, in a pass
    activations: int | None = 0
    exchange: int = 0  # gradients and buffers on their way, at the end of a backward pass
    update: int = 0  # made in the update
    host: int = 0  # kept in host memory; all others are on the device

    @property
    def peak(self) -> int:
        """The most that is held at once, without what is unknown."""
        kept = self.weights + (self.optimizer or 0) + self.averages
        in_pass = self.waiting + self.gathered + (self.activations or 0)
        return kept + max(in_pass, self.gradients + self.gathered + self.exchange, self.gradients + self.update)


def plan_whole(held: HeldTensors, *, num_processes: int, accumulates: bool) -> MemoryPlan:
    """Every process has the whole model. accumulates: some steps have several microbatches on a process."""
    kept = _keep(held)
    # DistributedDataParallel keeps buckets, in which gradients lie; those that are added up lie beside them first.
    buckets = kept.gradients if num_processes > 1 else 0
    if accumulates:
        return replace(kept, waiting=kept.gradients + buckets, exchange=buckets)
    return replace(kept, waiting=buckets)


def plan_zero2(held: HeldTensors, *, num_parts: int, accumulates: bool, reduce_dtype: torch.dtype) -> MemoryPlan:
    """Every process has a part of everything, and in a step the whole weights and gradients."""
    buffer = count_bytes(_largest(held), num_parts, dtype=reduce_dtype, padded=True)
    return replace(
        _keep(held, num_parts),
        waiting=count_bytes(_learning(held.weights), dtype=reduce_dtype) if accumulates else 0,
        gathered=count_bytes(held.weights, num_parts, padded=True),
        exchange=count_bytes(_learning(held.rest)) + buffer,
    )


def plan_full(
    held: HeldTensors,
    *,
    num_parts: int,
    accumulates: bool,
    cast_to: torch.dtype | None,
    reduce_dtype: torch.dtype,
    keeps_gradients: bool = False,
) -> MemoryPlan:
    """Every process has a part of everything, and in a pass the weights of two layers and of the rest.

    Args:
        cast_to: type of the gathered weights; None: their own.
        keeps_gradients: they are whole until the last microbatch of a step.
    """
    kept = _keep(held, num_parts)
    earlier = count_bytes(_learning(held.weights), dtype=reduce_dtype) if keeps_gradients else kept.gradients
    layer = count_bytes(max(held.layers, key=count_bytes, default=()), num_parts, dtype=cast_to, padded=True)
    buffer = count_bytes(_largest(held), num_parts, dtype=reduce_dtype, padded=True)
    return replace(
        kept,
        waiting=earlier if accumulates else 0,
        gathered=2 * layer + count_bytes(held.rest, num_parts, dtype=cast_to, padded=True),
        exchange=count_bytes(_learning(held.rest), dtype=cast_to) + buffer,
    )


def offload(plan: MemoryPlan, *, keeps_gradients: bool) -> MemoryPlan:
    """The same where host memory has what a process keeps.

    keeps_gradients: they are whole, and on the device, until the last microbatch of a step.
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


def _keep(held: HeldTensors, num_parts: int = 1) -> MemoryPlan:
    """What a process that has one of so many parts of everything keeps between steps."""
    return MemoryPlan(
        weights=count_bytes(held.weights, num_parts),
        optimizer=None if held.state is None else count_bytes(held.state, num_parts),
        averages=count_bytes(held.averages, num_parts),
        gradients=count_bytes(_learning(held.weights), num_parts),
    )


def _learning(weights: Iterable[Tensor]) -> list[Tensor]:
    return [weight for weight in weights if weight.requires_grad]


def _largest(held: HeldTensors) -> Sequence[Tensor]:
    """The weights that learn of the group that has most of them."""
    return max(map(_learning, (*held.layers, held.rest)), key=count_bytes)


def count_bytes(
    tensors: Iterable[Tensor], num_parts: int = 1, *, dtype: torch.dtype | None = None, padded: bool = False
) -> int:
    """Bytes of tensors, or of the parts that process 0 has of them, which are the largest.

    Args:
        num_parts: parts into which the first dimension of each tensor is divided; a single number is whole everywhere.
        dtype: their type while they are counted; None: their own.
        padded: count all parts, each as long as the first.
    """
    total = 0
    for tensor in tensors:
        rows, *others = tensor.shape or (1,)
        total += math.ceil(rows / num_parts) * math.prod(others) * (dtype or tensor.dtype).itemsize
    return total * (num_parts if padded else 1)


def count_missing_state(optimizer: Optimizer) -> int:
    """Bytes of the state that the first update of an optimizer will make on this process."""
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
