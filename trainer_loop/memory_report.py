"""What a step asks of a device, found in shapes alone: a table of its memory for a person, and its computations."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from trainer_loop.data.loader import Microbatch, StepLoader, TrainLoader
from trainer_loop.data.sample_microbatches import find_largest, take_typical
from trainer_loop.errors import UserError, in_one_line
from trainer_loop.loop import TrainingLoop
from trainer_loop.parallel.memory_plan import HeldTensors, MemoryPlan, offload, plan_full, plan_whole, plan_zero2
from trainer_loop.parallel.plan import ShardingPlan
from trainer_loop.parallel.sharding import check_optimizer_class, find_layers
from trainer_loop.runtime.outline import Outline, count_flops, measure_pass, measure_update, name_device
from trainer_loop.runtime.randomness import keeping_random_state
from trainer_loop.runtime.text_table import align
from trainer_loop.tasks.task import Batch

_MOST_FROZEN = 0.01  # share of the weights, such as those of a pooler that nothing uses
_PROCESSES = 8  # of the columns with shards, where there is one
_ROWS: dict[str, Callable[[MemoryPlan], int | None]] = {
    "weights": lambda plan: plan.weights,
    "optimizer state": lambda plan: plan.optimizer,
    "average of the weights": lambda plan: plan.averages,
    "gradients": lambda plan: max(plan.gradients, plan.waiting),
    "gathered weights": lambda plan: plan.gathered,
    "activations": lambda plan: plan.activations,
    "exchange buffers": lambda plan: plan.exchange,
    "at once, at most": lambda plan: plan.peak,
    "host memory": lambda plan: plan.host,
}


def describe_memory(loop: TrainingLoop, outline: Outline, sharding: ShardingPlan) -> list[str]:
    """The table, in lines. The largest microbatches are run in shapes alone, with a copy of the model without numbers.

    A run on one process is shown beside shards on eight.
    """
    microbatches, accumulates = _find_largest(loop.data.train)
    device = name_device(loop.accelerator.device)
    rehearsal = _Rehearsal(loop, outline, [microbatch.to(device).batch for microbatch in microbatches])
    plans = _plan(rehearsal, sharding, accumulates=accumulates)
    sizes = " and ".join(map(_describe, microbatches))
    return [
        f"memory of a process, with a microbatch of {sizes}:",
        *(f"  {line}" for line in draw_table(plans)),
        *rehearsal.notes,
        *_compare_with_device(plans, loop.accelerator.device),
    ]


def count_flops_per_token(loop: TrainingLoop, outline: Outline) -> tuple[float | None, str]:
    """Floating-point operations of the model a token, forward and backward, and a line about it for a person.

    The backward pass counts twice the forward pass. Padding, and what is computed again to save memory, do not count.
    None: not known.
    """
    if not loop.engine.tries_largest:
        return None, "model FLOPs unknown: a pass may change what the task or the loop keeps"
    if not all(weight.is_floating_point() for weight in outline.model.parameters()):
        return None, "model FLOPs unknown: nothing counts those of quantized weights"
    sizes = {weight: weight.numel() for weight in loop.bare_model.parameters()}
    if sum(size for weight, size in sizes.items() if not weight.requires_grad) > _MOST_FROZEN * sum(sizes.values()):
        return None, "model FLOPs are not counted: some weights are frozen, and take less in the backward pass"
    if type(loop).loss_sum is not TrainingLoop.loss_sum:
        return None, "model FLOPs are not counted: the loop has a loss of its own"
    with keeping_random_state():
        microbatch, num_tokens = take_typical(loop.data.train)
        rehearsal = _Rehearsal(loop, outline, [microbatch.to(name_device(loop.accelerator.device)).batch])
        forward = rehearsal.count_flops()
    if forward is None:
        return None, rehearsal.notes[0]
    per_token = 3 * forward / num_tokens
    return per_token, f"model FLOPs: {per_token:.4g} a token, forward and backward"


def _find_largest(loader: StepLoader) -> tuple[list[Microbatch], bool]:
    """The largest microbatches, of a stream that of the first step, and whether steps have several."""
    if isinstance(loader, TrainLoader):
        largest = find_largest(loader.plan)
        return [loader.make_microbatch(rows, 0) for rows in largest.microbatches], largest.accumulates
    with closing(loader.steps(start=0, stop=1)) as steps:  # type: ignore[type-var] # it is a generator
        microbatches = next(steps).microbatches
    return [max(microbatches, key=lambda microbatch: _count_tokens(microbatch) or 0)], len(microbatches) > 1


def _count_tokens(microbatch: Microbatch) -> int | None:
    tokens = microbatch.batch.get("input_ids")
    return tokens.numel() if isinstance(tokens, Tensor) else None


def _describe(microbatch: Microbatch) -> str:
    tokens = _count_tokens(microbatch)
    return f"{len(microbatch.rows):,} rows" + ("" if tokens is None else f", {tokens:,} tokens with padding")


@dataclass
class _Rehearsal:
    """Passes and updates of an outline, of which some may not run. notes: what a person should know of it."""

    loop: TrainingLoop
    outline: Outline
    batches: Sequence[Batch]
    notes: list[str] = field(default_factory=list)

    def measure_update(self) -> int | None:
        return self._try("optimizer state", lambda: measure_update(self.outline))

    def measure_passes(self, *, has_gradients: bool) -> int | None:
        """Bytes of the largest pass."""
        measure = partial(measure_pass, has_gradients=has_gradients)
        return self._try("activations", lambda: max(self._measure_each(measure)))

    def count_flops(self) -> int | None:
        """Floating-point operations of the forward pass of all batches."""
        return self._try("model FLOPs", lambda: sum(self._measure_each(count_flops)))

    def _measure_each(self, measure: Callable[[Outline, Callable[[], Tensor]], int]) -> list[int]:
        with self.loop.task.logging_to(None):
            return [measure(self.outline, partial(self._loss_of, batch)) for batch in self.batches]

    def _loss_of(self, batch: Batch) -> Tensor:
        loop, before = self.loop, (self.loop.model, self.loop.bare_model)
        loop.model = loop.bare_model = self.outline.model
        try:
            return loop.loss_sum(batch)
        finally:
            loop.model, loop.bare_model = before

    def _try(self, what: str, measure: Callable[[], int]) -> int | None:
        try:
            return measure()
        except Exception as error:  # noqa: BLE001 # the code of a model may look at numbers, and anything comes of that
            note = f"{what} unknown: {type(error).__name__}: {in_one_line(error, at_most=120)}"
            self.notes += [] if note in self.notes else [note]
            return None


def _plan(rehearsal: _Rehearsal, sharding: ShardingPlan, *, accumulates: bool) -> dict[str, MemoryPlan]:
    """The plan of each column of the table, by its title."""
    outline, accelerator = rehearsal.outline, rehearsal.loop.accelerator
    num_processes = accelerator.num_processes
    update = rehearsal.measure_update()
    held = find_held_tensors(outline, sharding.layers, knows_state=update is not None)
    adds_up = accumulates or num_processes > 1
    activations = rehearsal.measure_passes(has_gradients=adds_up)
    whole = plan_whole(held, num_processes=num_processes, accumulates=accumulates)
    plans = {_name("none", num_processes): replace(whole, activations=activations, update=update or 0)}
    try:
        check_optimizer_class(type(outline.optimizer))
    except UserError as error:
        rehearsal.notes += error.problems
        return plans
    launched = _PROCESSES if num_processes == 1 else num_processes
    num_parts = launched // (sharding.num_replicas if num_processes > 1 else 1)
    common: dict[str, Any] = {
        "num_parts": num_parts,
        "accumulates": accumulates,
        "reduce_dtype": sharding.gradient_type,
    }
    update = (update or 0) // num_parts
    if not adds_up:
        activations = rehearsal.measure_passes(has_gradients=True)
    zero2 = replace(plan_zero2(held, **common), activations=activations, update=update)
    cast_to = torch.bfloat16 if accelerator.mixed_precision == "bf16" else None
    full, full_once = (plan_full(held, **common, cast_to=cast_to, keeps_gradients=keeps) for keeps in (False, True))
    if cast_to is not None:
        outline.cast_weights(cast_to)  # those of `held` too
        activations = rehearsal.measure_passes(has_gradients=True)
    full, full_once = (replace(plan, activations=activations, update=update) for plan in (full, full_once))
    if sharding.offloads:
        zero2, full_once = (offload(plan, keeps_gradients=True) for plan in (zero2, full_once))
        full = offload(full, keeps_gradients=False)
    plans |= {_name("zero2", launched): zero2, _name("full", launched): full}
    if accumulates:
        plans["full, exchange=step"] = full_once
    if not sharding.offloads:
        plans["full, offload=weights"] = offload(full, keeps_gradients=False)
    return plans


def _name(shard: str, num_processes: int) -> str:
    return f"{shard}, {num_processes:,} process" + ("es" if num_processes > 1 else "")


def find_held_tensors(outline: Outline, layers: Sequence[str] = (), *, knows_state: bool = True) -> HeldTensors:
    """What the model and its optimizer hold, by what is gathered at once. layers: see `find_layers`."""
    groups, seen = [], set()
    for module in find_layers(outline.model, layers):
        groups.append([weight for weight in module.parameters() if weight not in seen])
        seen.update(groups[-1])
    rest = [weight for weight in outline.model.parameters() if weight not in seen]
    return HeldTensors(groups, rest, outline.state if knows_state else None, outline.averages)


def draw_table(plans: Mapping[str, MemoryPlan]) -> list[str]:
    """Lines of a table of bytes, one column a plan; rows that are zero everywhere are left out."""
    unit, scale = ("GB", 1e9) if max(plan.peak for plan in plans.values()) >= 1e9 else ("MB", 1e6)
    kinds, notes = zip(*(name.split(", ") for name in plans), strict=True)
    rows = [(unit, *kinds), ("", *notes)]
    for row, read in _ROWS.items():
        values = [read(plan) for plan in plans.values()]
        if any(value != 0 for value in values):
            rows.append((row, *("unknown" if value is None else f"{value / scale:,.2f}" for value in values)))
    return align(rows)


def _compare_with_device(plans: Mapping[str, MemoryPlan], device: torch.device) -> list[str]:
    if device.type != "cuda":
        return []
    size = torch.cuda.get_device_properties(device).total_memory
    fits = "; ".join(f"{name}: {'fits' if plan.peak < size else 'does not fit'}" for name, plan in plans.items())
    return [f"memory of the device: {size / 1e9:,.1f} GB; {fits}"]
