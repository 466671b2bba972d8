"""Runs an update on this hardware: processes, loss scaling, clipping, memory. loop.py defines what is computed."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import release_memory
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler

from trainer_loop.data.loader import Microbatch, StepBatch, StepLoader
from trainer_loop.data.run_data import RunData
from trainer_loop.errors import Preempted, UserError
from trainer_loop.largest_shape import cut_until_it_fits, leaving_modules_alone
from trainer_loop.metrics.meter import Gradients, StepReport, zero_sum
from trainer_loop.optim.averages import AveragedWeights
from trainer_loop.optim.groups import ParameterGroup
from trainer_loop.optim.schedules import follows_metric
from trainer_loop.parallel.memory_plan import count_missing_state
from trainer_loop.parallel.processes import (
    announce_fault,
    average_gradients,
    is_reduction_complete,
    sum_gradients,
    sum_on_hosts,
)
from trainer_loop.parallel.sharding import ShardedModel, local_part
from trainer_loop.runtime.memory import is_out_of_memory
from trainer_loop.runtime.outline import Outline
from trainer_loop.runtime.preempt import Preemption
from trainer_loop.runtime.profiler import StepProfiler
from trainer_loop.runtime.randomness import keeping_random_state, seed_everything
from trainer_loop.selection import find_metric


@dataclass(eq=False, repr=False, kw_only=True)
class Engine:
    """Holds model, optimizer and schedule, and runs the parts of an update. Every process creates one."""

    accelerator: Accelerator
    model: nn.Module  # prepared by the accelerator
    optimizer: Any  # prepared by the accelerator
    scheduler: LRScheduler  # of the torch optimizer, not prepared
    seed: int
    groups: Sequence[ParameterGroup] = ()  # of the optimizer; each is frozen before its `unfreeze_at`
    averaged_weights: AveragedWeights | None = None  # evaluated and exported in place of the weights
    sharded: ShardedModel | None = None  # the sharded model; None if every process has the whole model
    allow_unused: bool = False  # parameters may get no gradient; otherwise that is an error before the first update
    preemption: Preemption = field(default_factory=Preemption)
    tries_largest: bool = True  # whether trial passes are allowed; false if a pass changes the state of a task or loop
    outline: Outline | None = None  # the unprepared model with fake weights, to measure memory and computations
    profiler: StepProfiler | None = None

    def __post_init__(self) -> None:
        # accelerate's wrapper looks for a package on the disk at every step. Only the loss scaler needs the wrapper.
        if self.accelerator.scaler is None:
            self.optimizer = self.optimizer.optimizer
        # Processes evaluate different numbers of batches, so evaluation must not call DDP's collectives.
        self.bare_model: nn.Module = self.accelerator.unwrap_model(self.model)
        self.names, self.parameters = zip(
            *((name, parameter) for name, parameter in self.bare_model.named_parameters() if parameter.requires_grad),
            strict=True,
        )
        self.schedule_step = 0  # number of updates that changed the weights
        self._has_overflowed = False  # the loss scaler skipped the last update
        self.stop_requested = False  # any process was asked to stop; equal on all processes, see `count_targets`
        if self.sharded is not None:
            self.sharded.watch_gradients()
        self._gradients_are_checked = self.allow_unused  # every trainable parameter got one before
        # Of the current pass over the microbatches:
        self._synchronises = False  # this backward pass sums gradients over the processes
        self._is_reducing = False  # that backward pass has started, on several processes
        self._is_out_of_memory = False

    def begin_training(
        self, data: RunData, *, loss_of: Callable[[Microbatch], Tensor], warn: Callable[[str], None]
    ) -> None:
        """Set the model to training mode. A sharded model runs its largest microbatches first: see largest_shape.py."""
        self.model.train()
        if self.sharded is None or not self.tries_largest:
            return
        sharded, state_bytes = self.sharded, count_missing_state(getattr(self.optimizer, "optimizer", self.optimizer))

        def run_passes(microbatch: Microbatch, times: int) -> None:
            # Reserves the memory of the optimizer state, which the first update creates.
            state = torch.empty(state_bytes, dtype=torch.uint8, device=self.parameters[0].device)
            try:
                with sharded.alone():
                    for number in range(1, times + 1):
                        with sharded.synchronising(number == times):
                            self.backward(loss_of(microbatch), 1.0)
            finally:
                del state
                self.clear_gradients()

        with keeping_random_state(), leaving_modules_alone(self.bare_model):
            cut_until_it_fits(data, accelerator=self.accelerator, run_passes=run_passes, warn=warn)

    # ------------------------------------------------------------------------------------- one pass over an update

    def count_targets(self, step_batch: StepBatch, loader: StepLoader) -> float:
        """Count the targets of the whole update over all processes, each times the weight of its row.

        The same exchange shares whether any process was asked to stop. If all processes must run the same number of
        microbatches, it also shares their numbers, and dummy microbatches are added up to the largest number.
        """
        if self.profiler is not None:
            self.profiler.begin_step(step_batch.step + 1)
        microbatches = step_batch.microbatches
        own_targets = sum(microbatch.num_targets for microbatch in microbatches)
        passes = [0.0] * self.accelerator.num_processes
        passes[self.accelerator.process_index] = len(microbatches)
        needs_equal_passes = self.sharded is not None and not self.sharded.plan.gathers_once
        numbers = [own_targets, self.preemption.requested, *(passes if needs_equal_passes else ())]
        targets, requests, *passes = sum_on_hosts(self.accelerator, numbers)
        while len(microbatches) < max(passes, default=0):
            microbatches.append(loader.dummy_microbatch(step_batch.step))
        self.stop_requested = requests > 0
        return targets or 1

    def begin_step(self, step: int) -> Tensor:
        """Seed all generators for this process's part of step `step` (from 0); returns a zero for the losses, `[]`."""
        seed_everything(self.seed, "step", step, self.accelerator.process_index)
        return zero_sum(self.accelerator.device)

    @contextmanager
    def catching_out_of_memory(self, step: int, *, max_tokens: int | None) -> Iterator[None]:
        """Catch out-of-memory errors of the microbatches of an update; `settle` then shares them with all processes.

        Args:
            max_tokens: limit of padded tokens of a microbatch, for the message.

        Raises:
            UserError: if other processes wait for this one in an exchange, so the update cannot be repeated.
        """
        self._is_reducing = self._is_out_of_memory = False
        # All microbatches share autocast's casts of the weights. Not for a sharded model: gradients would come through
        # nodes of the first microbatch, which autograd visits last, after the gradients were exchanged.
        device_type = self.accelerator.device.type
        keeping_casts = nullcontext() if self.sharded is not None else torch.autocast(device_type, enabled=False)
        try:
            with keeping_casts:
                yield
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if self._is_reducing or self.sharded is not None:
                exchanged = "gradients were" if self.sharded is None else "the processes"
                fault = (
                    f"step {step + 1}: process {self.accelerator.process_index} ran out of memory while {exchanged} "
                    f"exchanged, at {max_tokens or 'no limit of'} padded tokens a microbatch; set a smaller "
                    "batch.max_tokens: the run goes on from its last checkpoint"
                )
                announce_fault(self.accelerator, fault)
                raise UserError(fault) from error
            self._is_out_of_memory = True

    def synchronising(self, is_last: bool) -> AbstractContextManager[Any]:
        """Use this around one microbatch: gradients are exchanged once, in the backward pass of the last one."""
        if self.sharded is not None:
            return self.sharded.synchronising(is_last)
        self._synchronises = is_last and not self.allow_unused
        return nullcontext() if self._synchronises else self.accelerator.no_sync(self.model)

    def backward(self, loss: Tensor, factor: float) -> None:
        """Compute the gradients of `loss * factor`.

        This product, and the division by 1 of accelerate's `backward`, would take 30 microseconds.
        """
        self._is_reducing = self._synchronises and self.accelerator.num_processes > 1
        scaler = self.accelerator.scaler
        scaled = loss if scaler is None else scaler.scale(loss)
        scaled.backward(gradient=torch.full_like(scaled, factor))

    def settle(
        self, step: int, loss_sum: Tensor, *, loss_of: Callable[[Microbatch], Tensor], loader: StepLoader
    ) -> Tensor | None:
        """Return `loss_sum`, or None on every process if any ran out of memory.

        Call this after `catching_out_of_memory`, because its exception handler keeps the memory of the failed pass. A
        process that failed uses `loss_of` and `loader` to join the reduction of the others with a dummy microbatch.
        """
        if self.sharded is not None:  # running out of memory would have ended the run
            self._drop_unused_gradients(self.sharded.used)
            if not self._gradients_are_checked:
                self._refuse_missing_gradients(step)
            return loss_sum
        failed = self._is_out_of_memory
        if not failed and (self._is_reducing or not self._gradients_are_checked):
            self._refuse_missing_gradients(step)
        if failed and self.accelerator.num_processes > 1 and not self.allow_unused:
            self.clear_gradients()
            release_memory()
            self._join_reduction(step, loss_of, loader)
        if sum_on_hosts(self.accelerator, [failed])[0]:
            self.clear_gradients()
            release_memory()
            return None
        if self.allow_unused:
            average_gradients(self.accelerator, self.parameters)
        return loss_sum

    def _drop_unused_gradients(self, used: set[str]) -> None:
        """Remove the gradients of parameters that no process used, as in an unsharded model. FSDP sets them to 0."""
        unused = [name not in used for name in self.names]
        used.clear()
        if not sum_on_hosts(self.accelerator, [sum(unused)])[0]:  # the usual case exchanges only one number
            return
        counts = sum_on_hosts(self.accelerator, unused)
        for parameter, count in zip(self.parameters, counts, strict=True):
            if count == self.accelerator.num_processes:
                parameter.grad = None

    def _join_reduction(self, step: int, loss_of: Callable[[Microbatch], Tensor], loader: StepLoader) -> None:
        """Join the reduction of gradients in which the other processes wait for this one."""
        try:
            self.backward(loss_of(loader.dummy_microbatch(step)), 1.0)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise UserError(
                f"step {step + 1}: process {self.accelerator.process_index} ran out of memory with one row, the "
                "shortest of the step; lower data.max_length, choose a smaller model, or set "
                "model.gradient_checkpointing=true: the run goes on from its last checkpoint"
            ) from error

    def _refuse_missing_gradients(self, step: int) -> None:
        """Raise UserError if a trainable parameter has no gradient: it would not change, and DDP would never finish."""
        named = zip(self.names, self.parameters, strict=True)
        without = [name for name, parameter in named if parameter.grad is None]
        if without:
            shown = ", ".join(without[:4]) + (", ..." if len(without) > 4 else "")
            raise UserError(
                f"step {step + 1}: {len(without)} of {len(self.names)} trainable parameters get no gradient: {shown}; "
                f"the loss of this step does not depend on them: freeze them, optimizer.freeze=[{shown}], or set "
                "train.unused_parameters=allow where other steps do"
            )
        if not is_reduction_complete(self.model):
            raise UserError(
                "some parameters get a gradient in one microbatch of a step and none in its last, where the processes "
                "add their gradients up: let every microbatch use all parameters, or set "
                "train.unused_parameters=allow"
            )
        self._gradients_are_checked = True

    # --------------------------------------------------------------------------------------------------- gradients

    def clip(self, step: int, max_norm: float | None, max_value: float | None) -> Gradients:
        """Scale the gradients down to L2 norm `max_norm`, and clamp each element to +-`max_value`; None: no limit.

        Parameters that are frozen at step `step` (from 0) lose their gradient first. Returns the norms before clipping.
        """
        if self.accelerator.scaler is not None:
            self.accelerator.unscale_gradients(self.optimizer)
        for group in self.groups:
            for parameter in group.parameters.values() if step < group.unfreeze_at else ():
                parameter.grad = None
        gradients = [parameter.grad for parameter in self.parameters if parameter.grad is not None]
        if self.sharded is not None:
            gradients = [local_part(gradient) for gradient in gradients]
        names: Sequence[str] = self.names
        if len(gradients) < len(names):
            named = zip(names, self.parameters, strict=True)
            names = [name for name, parameter in named if parameter.grad is not None]
        # One norm per parameter, in one call. The total follows from them, and a message can name a bad parameter.
        norms = torch.stack(torch._foreach_norm(gradients))
        if self.sharded is not None:
            norms = self.sharded.combine_norms(norms)
        norm = torch.linalg.vector_norm(norms)
        if max_norm is not None:
            torch._foreach_mul_(gradients, (max_norm / (norm + 1e-6)).clamp(max=1.0))
        if max_value is not None:
            torch._foreach_clamp_min_(gradients, -max_value)
            torch._foreach_clamp_max_(gradients, max_value)
        return Gradients(names, norm, norms)

    def is_nonfinite_anywhere(self, loss_sum: Tensor, grad_norm: Tensor) -> bool:
        """Whether the loss or the gradient of any process is not finite. This waits for the device."""
        finite = bool(torch.isfinite(loss_sum)) and bool(torch.isfinite(grad_norm))
        return sum_on_hosts(self.accelerator, [not finite])[0] > 0

    def skip_update(self) -> None:
        """Skip this update; a loss scaler still adjusts its scale."""
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.update()

    def update_weights(self) -> None:
        """Run a step of the optimizer, and update the averaged weights."""
        scaler = self.accelerator.scaler
        scale = 0.0 if scaler is None else scaler.get_scale()
        self.optimizer.step()
        # A fused optimizer skips an update on the device, which accelerate does not detect.
        self._has_overflowed = scaler is not None and scaler.get_scale() < scale
        if self.averaged_weights is not None and not self._has_overflowed:
            self.averaged_weights.update()

    def report_step(
        self,
        step_batch: StepBatch,
        loss_sum: Tensor,
        num_targets: float,
        gradients: Gradients,
        *,
        skipped: bool,
        logged: Mapping[str, tuple[Tensor, float]],
    ) -> StepReport:
        """Step the schedule, and return the report of the update.

        The schedule is not stepped if the weights did not change: the update was skipped, or the loss scaler skipped it
        because gradients overflowed in fp16.

        Args:
            logged: sum and count of each extra metric.
        """
        lr = float(self.scheduler.get_last_lr()[0])
        if not skipped and not self._has_overflowed:
            self.schedule_step += 1
            if not follows_metric(self.scheduler):
                self.scheduler.step()
        if self.profiler is not None:
            self.profiler.end_step(step_batch.step + 1)
        return StepReport(
            step=step_batch.step + 1,
            loss_sum=loss_sum,
            num_targets=num_targets,
            gradients=gradients,
            lr=lr,
            num_rows=step_batch.num_rows,
            num_tokens=step_batch.num_tokens,
            num_padded_tokens=step_batch.num_padded_tokens,
            wait_seconds=step_batch.wait_seconds,
            skipped=skipped,
            extra_metrics=logged,
        )

    def follow_evaluation(self, metrics: Mapping[str, float], metric: str) -> None:
        """Step a schedule that follows an evaluation metric; do nothing for other schedules."""
        if follows_metric(self.scheduler):
            value = find_metric(metrics, metric, place="scheduler.metric")
            self.scheduler.step(value)  # type: ignore[arg-type] # the value of its metric

    def can_save_after(self, error: Exception) -> bool:
        """Whether a checkpoint can be saved after this error.

        All processes together save a sharded model, so all must have the error. Only Preempted is raised on all.
        """
        return self.sharded is None or isinstance(error, Preempted)

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Sum the gradients over all processes, for a step that calls `bare_model` instead of `model`.

        A process without rows contributes zeros.
        """
        assert self.sharded is None, "the config refuses a custom step"
        sum_gradients(self.accelerator, parameters)

    def clear_gradients(self) -> None:
        for parameter in self.parameters:
            parameter.grad = None
