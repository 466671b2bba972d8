"""Measures the memory and the computations of a step on fake tensors, and describes them in a table."""

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
from trainer_loop.parallel.memory_plan import MemoryPlan, ModelTensors, offload, plan_full, plan_whole, plan_zero2
from trainer_loop.parallel.plan import ShardingPlan
from trainer_loop.parallel.sharding import check_optimizer_class, find_layers
from trainer_loop.runtime.outline import Outline, count_flops, measure_pass, measure_update, name_device
from trainer_loop.runtime.randomness import keeping_random_state
from trainer_loop.runtime.text_table import align
from trainer_loop.tasks.task import Batch

_MOST_FROZEN = 0.01  # largest share of frozen weights, such as those of an unused pooler
_PROCESSES = 8  # number of processes in the columns with shards if the run has only one
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
    """Describe the memory of a step in a table, as lines. The largest microbatches run with fake weights.

    For a run on one process, the table also shows shards on eight.
    """
    microbatches, accumulates = _find_largest(loop.data.train)
    device = name_device(loop.accelerator.device)
    trial = _TrialPasses(loop, outline, [microbatch.to(device).batch for microbatch in microbatches])
    plans = _plan(trial, sharding, accumulates=accumulates)
    sizes = " and ".join(map(_describe, microbatches))
    return [
        f"memory of a process, with a microbatch of {sizes}:",
        *(f"  {line}" for line in draw_table(plans)),
        *trial.notes,
        *_compare_with_device(plans, loop.accelerator.device),
    ]


def count_flops_per_token(loop: TrainingLoop, outline: Outline) -> tuple[float | None, str]:
    """Count the floating-point operations of the model per token, forward and backward.

    The backward pass counts as two forward passes. Padding and recomputed activations do not count.

    Returns:
        The number, None if it is unknown, and a line for the console.
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
        trial = _TrialPasses(loop, outline, [microbatch.to(name_device(loop.accelerator.device)).batch])
        forward = trial.count_flops()
    if forward is None:
        return None, trial.notes[0]
    per_token = 3 * forward / num_tokens
    return per_token, f"model FLOPs: {per_token:.4g} a token, forward and backward"


def _find_largest(loader: StepLoader) -> tuple[list[Microbatch], bool]:
    """Return the largest microbatches, and whether a step has several on one process.

    For a stream, only the largest microbatch of the first step is known.
    """
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
class _TrialPasses:
    """Passes and updates of an outline, some of which may fail."""

    loop: TrainingLoop
    outline: Outline
    batches: Sequence[Batch]
    notes: list[str] = field(default_factory=list)  # lines about failed passes for the console

    def measure_update(self) -> int | None:
        return self._try("optimizer state", lambda: measure_update(self.outline))

    def measure_passes(self, *, has_gradients: bool) -> int | None:
        """Return the peak bytes of the pass that takes the most."""
        measure = partial(measure_pass, has_gradients=has_gradients)
        return self._try("activations", lambda: max(self._measure_each(measure)))

    def count_flops(self) -> int | None:
        """Count the floating-point operations of the forward pass of all batches."""
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
        except Exception as error:  # noqa: BLE001 # model code that reads fake values may raise any error
            note = f"{what} unknown: {type(error).__name__}: {in_one_line(error, at_most=120)}"
            self.notes += [] if note in self.notes else [note]
            return None


def _plan(trial: _TrialPasses, sharding: ShardingPlan, *, accumulates: bool) -> dict[str, MemoryPlan]:
    """Return the plan of each column of the table, by its title."""
    outline, accelerator = trial.outline, trial.loop.accelerator
    num_processes = accelerator.num_processes
    update = trial.measure_update()
    tensors = collect_tensors(outline, sharding.layers, knows_state=update is not None)
    has_earlier_gradients = accumulates or num_processes > 1
    activations = trial.measure_passes(has_gradients=has_earlier_gradients)
    whole = plan_whole(tensors, num_processes=num_processes, accumulates=accumulates)
    plans = {_name("none", num_processes): replace(whole, activations=activations, update=update or 0)}
    try:
        check_optimizer_class(type(outline.optimizer))
    except UserError as error:
        trial.notes += error.problems
        return plans
    launched = _PROCESSES if num_processes == 1 else num_processes
    num_parts = launched // (sharding.num_replicas if num_processes > 1 else 1)
    common: dict[str, Any] = {
        "num_parts": num_parts,
        "accumulates": accumulates,
        "reduce_dtype": sharding.gradient_type,
    }
    update = (update or 0) // num_parts
    if not has_earlier_gradients:
        activations = trial.measure_passes(has_gradients=True)
    zero2 = replace(plan_zero2(tensors, **common), activations=activations, update=update)
    cast_to = torch.bfloat16 if accelerator.mixed_precision == "bf16" else None
    full, full_once = (plan_full(tensors, **common, cast_to=cast_to, keeps_gradients=keeps) for keeps in (False, True))
    if cast_to is not None:
        outline.cast_weights(cast_to)  # this also casts those in `tensors`
        activations = trial.measure_passes(has_gradients=True)
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


def collect_tensors(outline: Outline, layers: Sequence[str] = (), *, knows_state: bool = True) -> ModelTensors:
    """Collect the tensors that a process holds, grouped by layers. For `layers` see `find_layers`."""
    groups, seen = [], set()
    for module in find_layers(outline.model, layers):
        groups.append([weight for weight in module.parameters() if weight not in seen])
        seen.update(groups[-1])
    rest = [weight for weight in outline.model.parameters() if weight not in seen]
    return ModelTensors(groups, rest, outline.state if knows_state else None, outline.averages)


def draw_table(plans: Mapping[str, MemoryPlan]) -> list[str]:
    """Draw a table of bytes with one column per plan, as lines. Rows that are zero everywhere are left out."""
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
