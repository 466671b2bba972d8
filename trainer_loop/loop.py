"""The training loop: one file, read from top to bottom. Everything it uses is handed to it as a plain argument."""

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from trainer_loop.components import locate_source
from trainer_loop.data.loader import EvaluationLoader, Microbatch, StepBatch, StepLoader
from trainer_loop.errors import Diverged, Preempted, UserError
from trainer_loop.evaluation import Evaluator, zero_sum
from trainer_loop.metrics.meter import LOGGED, Meter, NonFinite, StepReport
from trainer_loop.metrics.named_metric import NamedMetric
from trainer_loop.optim.ema import Ema
from trainer_loop.optim.groups import ParameterGroup
from trainer_loop.optim.replan import read_groups, replan
from trainer_loop.optim.schedule_free import ScheduleFreeAverages
from trainer_loop.optim.schedules import follows_metric
from trainer_loop.parallel.processes import average_gradients, is_reduction_complete, share_buffers, sum_on_hosts
from trainer_loop.record.checkpoint import Checkpointer, Stateful
from trainer_loop.record.checkpoint_files import list_checkpoints
from trainer_loop.record.logs import Console, MetricLog, Values
from trainer_loop.record.publisher import Publisher
from trainer_loop.record.state import TrainState
from trainer_loop.runtime.memory import is_out_of_memory, read_peak_memory, release_memory
from trainer_loop.runtime.preempt import Preemption
from trainer_loop.runtime.randomness import seed_everything
from trainer_loop.tasks.losses import explain_wrong_loss
from trainer_loop.tasks.task import Batch, Task

_JUDGED_ON = ("data.validation", "data.limit.validation", "evaluate.metrics")  # where these change, the best is another


@dataclass(frozen=True)
class Gradients:
    """The norms of an update's gradients before they were clipped; on the device."""

    names: Sequence[str]  # [P] of the parameters that have one
    norm: Tensor  # [] over all of them
    norms: Tensor  # [P] of each


class TrainingLoop:
    """Trains, evaluates, saves and exports one model; every process of a run has one.

    model, optimizer: prepared by `accelerator`. scheduler: over the torch optimizer itself, not prepared.
    validation_loaders, test_loaders: by the name of the set; the only one may be named by the empty text.
    num_steps: updates of the whole run. *_every: in steps; None: never.
    best: the metric that picks the exported weights, `-metric` where smaller is better; None: the last weights.
    plateau_metric: what a schedule that moves by evaluations follows, likewise.
    patience: evaluations without a better one after which the run ends; None: never.
    max_grad_norm, max_grad_value: gradients are scaled down to this L2 norm, then each number is cut to +-value.
    averages: of the weights, which are evaluated and exported in their place.
    groups: of parameters, as the optimizer has them; some do not move before so many updates were made.
    skip_nonfinite: leave an update out whose loss or gradient is not finite, instead of ending the run.
    allow_unused: trainable parameters may have no gradient; else one without is an error before the first update.
    max_time_minutes: after which the run is saved and raises Preempted; None: never.
    describe: writes what the run is, before its first step. export: writes the model, on the main process.
    keep_predictions: likewise those of a test set, by its name.
    make_loader: of rows that somebody holds in hand; false: of rows without labels, all of them on every process.
    publisher: pushes to the hub, on the main process; None: nothing is pushed.
    """

    extra_metrics: tuple[str, ...] = ()  # names of what a step of one's own tells with `log_metric`

    def __init__(
        self,
        *,
        accelerator: Accelerator,
        task: Task,
        model: nn.Module,
        optimizer: Any,
        scheduler: LRScheduler,
        train_loader: StepLoader,
        num_steps: int,
        seed: int,
        checkpointer: Checkpointer,
        console: Console,
        metric_log: MetricLog,
        validation_loaders: Mapping[str, EvaluationLoader] | None = None,
        test_loaders: Mapping[str, EvaluationLoader] | None = None,
        metrics: Sequence[NamedMetric] = (),
        max_grad_norm: float | None = 1.0,
        max_grad_value: float | None = None,
        skip_nonfinite: bool = False,
        allow_unused: bool = False,
        averaged_weights: Ema | ScheduleFreeAverages | None = None,
        groups: Sequence[ParameterGroup] = (),
        evaluate_every: int | None = None,
        evaluate_at_start: bool = False,
        checkpoint_every: int | None = None,
        log_every: int = 10,
        best: str | None = None,
        plateau_metric: str = "-loss",
        patience: int | None = None,
        resume: str = "auto",
        preemption: Preemption | None = None,
        max_time_minutes: float | None = None,
        export: Callable[[nn.Module, TrainState], None] | None = None,
        keep_predictions: Callable[[str, np.ndarray, np.ndarray], None] | None = None,
        describe: Callable[["TrainingLoop"], None] | None = None,
        make_loader: Callable[[Any, bool], EvaluationLoader] | None = None,
        publisher: Publisher | None = None,
    ):
        self.accelerator = accelerator
        self.task = task
        self.model = model
        # accelerate's wrapper looks for a package on the disk at every step, and is needed for the loss scaler alone.
        self.optimizer = optimizer if accelerator.scaler is not None else optimizer.optimizer
        self.scheduler = scheduler
        self.train_loader = train_loader
        self.validation_loaders = dict(validation_loaders or {})
        self.test_loaders = dict(test_loaders or {})
        self.num_steps = num_steps
        self.seed = seed
        self.checkpointer = checkpointer
        self.console = console
        self.metric_log = metric_log
        self.max_grad_norm = max_grad_norm
        self.max_grad_value = max_grad_value
        self.skip_nonfinite = skip_nonfinite
        self.allow_unused = allow_unused
        self.averaged_weights = averaged_weights
        self.groups = groups
        self.evaluate_every = evaluate_every if self.validation_loaders else None
        self.evaluate_at_start = evaluate_at_start and bool(self.validation_loaders)
        self.checkpoint_every = checkpoint_every
        self.log_every = log_every
        self.best = best
        self.plateau_metric = plateau_metric
        self.patience = patience
        self.resume = resume
        self.preemption = preemption or Preemption()
        self.max_time_minutes = max_time_minutes
        self.export = export
        self.keep_predictions = keep_predictions
        self.describe = describe
        self.make_loader = make_loader
        self.publisher = publisher

        # Evaluation runs unlike numbers of batches on each process, so it must stay clear of DDP's collectives.
        self.bare_model = accelerator.unwrap_model(model)
        self.names, self.parameters = zip(
            *((name, parameter) for name, parameter in self.bare_model.named_parameters() if parameter.requires_grad),
            strict=True,
        )
        if taken := [name for name in self.extra_metrics if name in LOGGED]:
            raise UserError(f"{type(self).__name__}.extra_metrics: {', '.join(taken)} stands in every row; rename it")
        self.meter = Meter(
            sum_over_processes=lambda values: sum_on_hosts(accelerator, values),
            scaled_gradients=accelerator.scaler is not None,
            extra_metrics=self.extra_metrics,
        )
        self.evaluator = Evaluator(
            accelerator=accelerator,
            task=task,
            model=self.bare_model,
            metrics=metrics,
            averaged_weights=averaged_weights,
            seed=seed,
            console=console,
            preemption=self.preemption,
        )
        self._max_tokens: int | None = None  # padded tokens of a microbatch, once more did not fit into memory
        self._noted: dict[str, tuple[Tensor, int]] = {}  # in this step: sum and count
        self._is_dummy = False  # whether the microbatch of now counts nothing
        self._weights_are_meant = False  # they were restored or trained, or it was told that they are not
        self._stop = False  # some process was asked to stop: the same answer on all of them
        self._gradients_are_checked = allow_unused  # every trainable parameter has got one once
        self._mark = 0.0  # when the clock of the training steps was last read

    # ------------------------------------------------------------------------------------------------- the loop

    def restore(self) -> TrainState:
        """Where the run stands: at the checkpoint that `resume` names, or at its beginning.

        Raises UserError where the checkpoint is not of this run.
        """
        self._weights_are_meant = True
        planned = read_groups(self.optimizer)
        state = self.checkpointer.load(self.resume)
        if state is None:
            return TrainState(num_steps=self.num_steps)
        if state.step > self.num_steps:
            raise UserError(
                f"the checkpoint is at step {state.step:,} and the run ends at {self.num_steps:,}; "
                "raise train.epochs or train.steps, or choose another run_dir"
            )
        changes = self.checkpointer.changes
        other_schedule = sorted(name for name in changes if name.startswith("scheduler."))
        if other_schedule and not isinstance(self.scheduler, LambdaLR):
            raise UserError(
                f"{', '.join(other_schedule)}: a {type(self.scheduler).__name__} has a memory of its own and cannot be "
                "changed, or taken up, when a run goes on; give what the run was begun with, or choose another run_dir"
            )
        if state.num_steps != self.num_steps and hasattr(self.scheduler, "total_steps"):
            raise UserError(
                f"scheduler.name: a {type(self.scheduler).__name__} that was planned for {state.num_steps:,} steps "
                f"cannot become one of {self.num_steps:,}; give the length the run was begun with, or choose another "
                "run_dir"
            )
        if state.num_steps != self.num_steps or any(name.startswith(("optimizer.", "scheduler.")) for name in changes):
            args = {name for given in changes.get("optimizer.args", ()) for name in given or ()}
            replan(self.optimizer, self.scheduler, groups=planned, args=args, step=state.step)
        judged_otherwise = None in changes.get("ema.decay", ()) or any(name.startswith(_JUDGED_ON) for name in changes)
        if judged_otherwise or state.best_by not in (None, self.best):
            state.forget_best()
        if state.max_tokens is not None and "batch.max_tokens" not in changes:
            self._max_tokens = state.max_tokens
            self.train_loader.limit_tokens(state.max_tokens)
            self.console.say(f"microbatches of at most {state.max_tokens:,} padded tokens, since more did not fit")
        if state.stream is not None:
            self.train_loader.load_state_dict(state.stream)
        return state

    def fit(self, state: TrainState | None = None) -> TrainState:
        """Train from `state` (None: what `restore` finds) up to `num_steps`; returns the state at the end.

        Raises Diverged when the loss or a gradient is not finite, the last checkpoint then stays as it was, and
        Preempted when any process was asked to stop, after a checkpoint was saved.
        """
        if state is None:
            state = self.restore()
        self._weights_are_meant = True
        if self.describe is not None:
            self.describe(self)
        self.preemption.defer_signals()
        self._go_on_from(state)
        # Not before: a start that only finishes an evaluation would never get further, however often it is made.
        self.preemption.defer_signals(max_minutes=self.max_time_minutes)

        self.model.train()
        self._mark = time.perf_counter()
        stop_at = state.step if self._is_out_of_patience(state) else self.num_steps
        for step_batch in self.train_loader.steps(start=state.step, stop=stop_at):
            report = self.train_step(step_batch)
            state.step += 1
            self.meter.add(report)
            self.console.advance_progress()
            self.checkpointer.check()

            last = state.step == self.num_steps
            evaluation_due = self._is_due(self.evaluate_every, state.step, last=last)
            save_due = self._is_due(self.checkpoint_every, state.step, last=last) or self._stop
            log_due = self._is_due(self.log_every, state.step, last=last or evaluation_due)
            if log_due or save_due:
                self._flush()
            if log_due:
                self._log_training(state)
            if save_due or evaluation_due:
                share_buffers(self.accelerator, self.bare_model)
            if save_due:  # before the evaluation, which may be long, or fail
                self._save(state)
            if self._stop:
                self._leave(state)
            if evaluation_due:
                self._evaluate_and_log(state)
            if save_due and not last and self.publisher is not None:
                self.publisher.offer(self.bare_model, state, self.averaged_weights)
            if save_due or evaluation_due:
                self._mark = time.perf_counter()
            if self._is_out_of_patience(state):
                self._save(state)
                break
        self._finish(state)
        return state

    def train_step(self, step_batch: StepBatch) -> StepReport:
        """One update, and the only place where weights change."""
        num_targets = self.count_targets(step_batch)
        while (loss_sum := self.accumulate_gradients(step_batch, num_targets)) is None:
            step_batch = self._cut_smaller(step_batch.step)  # some process ran out of memory
        clipped = self.clip_gradients(step_batch.step)
        skipped = self.skip_nonfinite and self._is_nonfinite_anywhere(loss_sum, clipped.norm)
        if not skipped:
            self.optimizer.step()
        elif self.accelerator.scaler is not None:
            self.accelerator.scaler.update()
        if not skipped and self.averaged_weights is not None:
            self.averaged_weights.update()
        self.clear_gradients()
        return self.report_step(step_batch, loss_sum, num_targets, clipped, skipped=skipped)

    def report_step(
        self, step_batch: StepBatch, loss_sum: Tensor, num_targets: int, clipped: Gradients, *, skipped: bool = False
    ) -> StepReport:
        """Move the schedule on, and tell what was done. loss_sum: over the targets of this process, `[]`."""
        lr = float(self.scheduler.get_last_lr()[0])
        if not follows_metric(self.scheduler):
            self.scheduler.step()
        noted, self._noted, self._is_dummy = self._noted, {}, False
        return StepReport(
            step=step_batch.step + 1,
            loss_sum=loss_sum,
            num_targets=num_targets,
            grad_norm=clipped.norm,
            grad_norms=clipped.norms,
            names=clipped.names,
            lr=lr,
            num_rows=step_batch.num_rows,
            num_tokens=step_batch.num_tokens,
            num_padded_tokens=step_batch.num_padded_tokens,
            wait_seconds=step_batch.wait_seconds,
            skipped=skipped,
            own=noted,
        )

    def log_metric(self, name: str, value: Tensor, *, count: int = 1) -> None:
        """Tell a number of this step: metrics.jsonl gets its mean since the row before, over all processes.

        name: one of the class's `extra_metrics`. value: `[]`, a sum over `count`; it waits on its device.
        """
        if name not in self.extra_metrics:
            raise UserError(
                f"{type(self).__name__}.extra_metrics: {', '.join(self.extra_metrics) or 'none'}; {name} is noted"
            )
        if not self._is_dummy:
            total, so_far = self._noted.get(name, (0.0, 0))
            self._noted[name] = (value.detach() + total, so_far + count)

    def register_for_checkpoint(self, name: str, part: Stateful) -> None:
        """Let each checkpoint hold what a loop of one's own has besides: a module, an optimizer, a queue."""
        self.checkpointer.register_for_checkpoint(name, part)

    def loss_sum(self, batch: Batch) -> Tensor:
        """The loss of one microbatch in training, **summed** over its targets, `[]`: the first thing to override.

        The weights must stay as they are in it: what was made of them in one microbatch serves the others too.
        """
        return self.task.loss(self.model, batch)

    def evaluate(self, rows: EvaluationLoader | Any) -> dict[str, float]:
        """Mean loss over all targets, the metrics over all rows, and the number of rows scored: each row once.

        rows: a loader, or rows as `build` takes them, with their labels. Raises Preempted on every process where one
        was asked to stop before it was through.
        """
        loader = rows if isinstance(rows, EvaluationLoader) else self._make_loader(rows, labelled=True)
        self._warn_of_weights()
        return self.evaluator.score(loader).figures

    def predict(self, rows: Any) -> dict[str, np.ndarray]:
        """What the task predicts of each row, in the order of the rows: its outputs `[N, ...]` by their names.

        rows: as `build` takes them; they need no labels. Every process goes through all of them. With
        `data.missing=drop` a row without a text has NaN, or -1 where a task predicts integers.
        """
        loader = self._make_loader(rows, labelled=False)
        self._warn_of_weights()
        outputs = self.evaluator.predict(loader)
        return outputs if loader.kept is None else {name: loader.kept.spread(each) for name, each in outputs.items()}

    def _warn_of_weights(self) -> None:
        """A run directory may hold what was trained, and this loop has not taken it up."""
        if not self._weights_are_meant and list_checkpoints(self.checkpointer.run_dir):
            self._weights_are_meant = True
            self.console.warn(
                f"these are the weights that the run begins with; loop.restore() takes those of its newest checkpoint "
                f"in {self.checkpointer.run_dir.root}, fit() trains"
            )

    def _make_loader(self, rows: Any, *, labelled: bool) -> EvaluationLoader:
        if self.make_loader is None:
            raise UserError("this loop was made without make_loader: hand evaluate an EvaluationLoader")
        return self.make_loader(rows, labelled)

    # ---------------------------------------------------------------------------------------------- parts of a step

    def count_targets(self, step_batch: StepBatch) -> int:
        """Targets of the whole update, over all processes: what the loss is divided by.

        Whether any process was asked to stop travels along.
        """
        mine = sum(microbatch.num_targets for microbatch in step_batch.microbatches)
        targets, requests = sum_on_hosts(self.accelerator, [mine, self.preemption.requested])
        self._stop = requests > 0
        return max(int(targets), 1)

    def accumulate_gradients(self, step_batch: StepBatch, num_targets: int) -> Tensor | None:
        """Forward and backward over all microbatches; the sum of their losses on this process, `[]`.

        None, on every process, where one of them ran out of memory; there are no gradients then.
        """
        seed_everything(self.seed, "step", step_batch.step, self.accelerator.process_index)
        loss_sum = zero_sum(self.accelerator.device)
        out_of_memory = reducing = False
        try:
            # Within it, what autocast makes of the weights in one microbatch serves the others too.
            with torch.autocast(self.accelerator.device.type, enabled=False):
                for position, microbatch in enumerate(step_batch.microbatches):
                    last = position == len(step_batch.microbatches) - 1 and not self.allow_unused
                    with nullcontext() if last else self.accelerator.no_sync(self.model):
                        loss = self._loss_sum(microbatch)
                        reducing = last and self.accelerator.num_processes > 1
                        # Gradients are averaged over the processes; a sum over targets wants them added up.
                        self._backward(loss, self.accelerator.num_processes / num_targets)
                    loss_sum += loss.detach()
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if reducing:
                raise UserError(
                    f"step {step_batch.step + 1}: process {self.accelerator.process_index} ran out of memory while "
                    f"gradients were exchanged, at {self.train_loader.max_tokens or 'no limit of'} padded tokens a "
                    "microbatch; set a smaller batch.max_tokens: the run goes on from its last checkpoint"
                ) from error
            out_of_memory = True
        if not out_of_memory and (reducing or not self._gradients_are_checked):
            self._refuse_missing_gradients(step_batch.step)
        total = self._unless_out_of_memory(out_of_memory, loss_sum, step_batch.step)
        if self.allow_unused and total is not None:
            average_gradients(self.accelerator, self.parameters)
        return total

    def _unless_out_of_memory(self, out_of_memory: bool, loss_sum: Tensor, step: int) -> Tensor | None:
        """The same answer on all processes; outside the handler, which holds on to the memory of the failed pass."""
        if out_of_memory and self.accelerator.num_processes > 1 and not self.allow_unused:
            self.clear_gradients()
            release_memory()
            # The others wait for this process in their reduction of gradients.
            self._backward(self._loss_sum(self.train_loader.dummy_microbatch(step)), 1.0)
        if not sum_on_hosts(self.accelerator, [out_of_memory])[0]:
            return loss_sum
        self._noted.clear()
        self.clear_gradients()
        release_memory()
        return None

    def _cut_smaller(self, step: int) -> StepBatch:
        step_batch = self.train_loader.cut_smaller(step)
        if step_batch is None:
            raise UserError(
                f"step {step + 1}: out of memory with one row a microbatch; lower data.max_length, choose a smaller "
                "model, or set model.gradient_checkpointing=true"
            )
        self._max_tokens = self.train_loader.max_tokens
        self.console.warn(
            f"step {step + 1} ran out of memory: it is done again, and all that follow are done, in microbatches of "
            f"at most {self._max_tokens:,} padded tokens; batch.max_tokens={self._max_tokens} says so from the start"
        )
        return step_batch

    def _loss_sum(self, microbatch: Microbatch) -> Tensor:
        self._is_dummy = microbatch.is_dummy
        loss = self.loss_sum(microbatch.batch)
        if (wrong := explain_wrong_loss(loss)) is not None:
            own = type(self).loss_sum is not TrainingLoop.loss_sum
            raise UserError(f"{locate_source(type(self).loss_sum if own else type(self.task).loss)} {wrong}")
        return loss * 0.0 if microbatch.is_dummy else loss

    def _backward(self, loss: Tensor, factor: float) -> None:
        """Gradients of `loss * factor`. That product, and accelerate's division by 1, would take 30 microseconds."""
        scaler = self.accelerator.scaler
        scaled = loss if scaler is None else scaler.scale(loss)
        scaled.backward(gradient=torch.full_like(scaled, factor))

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Add their gradients up over all processes: for a step that calls `bare_model` instead of `model`.

        A process that had no rows takes part with zeros.
        """
        if self.accelerator.num_processes == 1:
            return
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            torch.distributed.all_reduce(parameter.grad)

    def clear_gradients(self) -> None:
        for parameter in self.parameters:
            parameter.grad = None

    def _is_nonfinite_anywhere(self, loss_sum: Tensor, grad_norm: Tensor) -> bool:
        """Whether this update is to be left out; waits for the device."""
        finite = bool(torch.isfinite(loss_sum)) and bool(torch.isfinite(grad_norm))
        return sum_on_hosts(self.accelerator, [not finite])[0] > 0

    def clip_gradients(self, step: int) -> Gradients:
        """Scale the gradients down to `max_grad_norm`, cut them to `max_grad_value`; what is frozen now loses its own.

        Returns their norms before. step: from 0.
        """
        if self.accelerator.scaler is not None:
            self.accelerator.unscale_gradients(self.optimizer)
        for group in self.groups:
            for parameter in group.parameters.values() if step < group.unfreeze_at else ():
                parameter.grad = None
        gradients = [parameter.grad for parameter in self.parameters if parameter.grad is not None]
        names: Sequence[str] = self.names
        if len(gradients) < len(names):
            named = zip(names, self.parameters, strict=True)
            names = [name for name, parameter in named if parameter.grad is not None]
        # One norm a parameter, all in one call: the total comes from them, and a bad one can be named later.
        grad_norms = torch.stack(torch._foreach_norm(gradients))
        grad_norm = torch.linalg.vector_norm(grad_norms)
        if self.max_grad_norm is not None:
            torch._foreach_mul_(gradients, (self.max_grad_norm / (grad_norm + 1e-6)).clamp(max=1.0))
        if self.max_grad_value is not None:
            torch._foreach_clamp_min_(gradients, -self.max_grad_value)
            torch._foreach_clamp_max_(gradients, self.max_grad_value)
        return Gradients(names, grad_norm, grad_norms)

    def _refuse_missing_gradients(self, step: int) -> None:
        """Each trainable parameter must get one: it would not learn, and their reduction would never end."""
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

    # -------------------------------------------------------------------------------------- what surrounds the steps

    def _go_on_from(self, state: TrainState) -> None:
        pending = self._is_evaluation_pending(state)
        self.meter.load_state_dict(state.interval)
        if self.accelerator.is_main_process:
            self.metric_log.forget_after(state.step, evaluated=state.step > 0 and not pending)
        if state.step:
            self.console.say(f"resumed at step {state.step:,} of {self.num_steps:,}")
        if state.num_steps != self.num_steps:
            self.console.warn(
                f"the run was planned for {state.num_steps:,} steps: from here on the learning rate follows a schedule "
                f"of {self.num_steps:,}, which is not what a run of that length from its beginning would do"
            )
            state.num_steps = self.num_steps
        self.console.start_progress(total=self.num_steps, done=state.step)
        if pending:
            self._evaluate_and_log(state)

    def _is_evaluation_pending(self, state: TrainState) -> bool:
        """Whether the run was saved, or begins, before an evaluation that was due."""
        if state.evaluated_step == state.step:
            return False
        if state.step == 0:
            return self.evaluate_at_start
        return self._is_due(self.evaluate_every, state.step, last=state.step == state.num_steps)

    @staticmethod
    def _is_due(every: int | None, step: int, *, last: bool) -> bool:
        return every is not None and (last or step % every == 0)

    def _is_out_of_patience(self, state: TrainState) -> bool:
        return self.patience is not None and state.evaluations_without_best >= self.patience

    def _save(self, state: TrainState) -> None:
        state.interval = self.meter.state_dict()
        state.max_tokens = self._max_tokens
        state.stream = self.train_loader.state_dict()
        self.checkpointer.save(state)

    def _leave(self, state: TrainState) -> NoReturn:
        """All processes end here, with one complete checkpoint."""
        self.checkpointer.finish()
        if self.publisher is not None:
            self.publisher.leave()
        self.console.stop_progress()
        where = "nothing is saved yet" if state.step == 0 else self.checkpointer.describe_newest()
        raise Preempted(
            f"preempted at step {state.step:,} of {self.num_steps:,} by {self.preemption.reason}; {where}: "
            "the same command goes on from there"
        )

    def _flush(self) -> None:
        """Bring the reports to the host, stop at the first that is not finite, and read the clock of the steps."""
        bad = self.meter.flush()
        now = time.perf_counter()
        self.meter.add_seconds(now - self._mark)
        self._mark = now
        if bad is not None:
            raise Diverged(self._describe_divergence(bad))

    def _describe_divergence(self, bad: NonFinite) -> str:
        origins = self.train_loader.origins(bad.step - 1)
        shown = ", ".join(origins[:8]) + (f" and {len(origins) - 8} more" if len(origins) > 8 else "")
        first = "" if bad.parameter is None else f"; first bad gradient: {bad.parameter}"
        return (
            f"step {bad.step}: loss {bad.loss:g}, gradient norm {bad.grad_norm:g}{first}; rows of this step: {shown}; "
            "lower optimizer.lr, set train.max_grad_norm or train.on_nonfinite=skip, or look at these rows"
        )

    def _log_training(self, state: TrainState) -> None:
        values = self.meter.read()
        sums = self.meter.state_dict()
        state.rows_seen += int(sums["rows"])
        state.tokens_seen += int(sums["tokens"])
        state.targets_seen += int(sums["targets"])
        state.skipped_steps += int(sums["skipped"])
        state.train_seconds += sums["seconds"]
        self.meter.clear()
        self._record(state, values)
        self.console.tell_training({"step": state.step, "epoch": self._epoch(state)} | values)

    def _evaluate_and_log(self, state: TrainState) -> None:
        """Score the validation sets, and keep the weights of this step where they are the best so far."""
        values: dict[str, float] = {}
        try:
            for name, loader in self.validation_loaders.items():
                values |= _name_figures(name, self.evaluate(loader))
        except Preempted:
            if state.step:
                self._save(state)
            self._leave(state)
        except Exception:
            if state.step:  # what was trained is not lost because it cannot be judged
                self._save(state)
            raise
        state.evaluated_step = state.step
        self._record(state, {f"validation/{name}": value for name, value in values.items()})
        self.console.tell_evaluation(f"validation at step {state.step:,}, epoch {self._epoch(state):.4g}", values)
        if follows_metric(self.scheduler) and state.step > 0:
            figure = self._find_figure(values, self.plateau_metric, place="scheduler.metric")
            self.scheduler.step(figure)  # type: ignore[arg-type] # its metric
        if self.best is None:
            state.figures = values
        elif state.step > 0:
            self._compare_with_best(state, values)

    def _compare_with_best(self, state: TrainState, values: dict[str, float]) -> None:
        value = self._value_of_best(values)
        if not math.isfinite(value) or (state.best_value is not None and value <= state.best_value):
            state.evaluations_without_best += 1
            return
        before = (state.best_by, state.best_value, state.best_step, state.figures)
        state.best_by, state.best_value, state.best_step, state.figures = self.best, value, state.step, values
        state.evaluations_without_best = 0
        self._save(state)
        if not self.checkpointer.mark_best(state.step):
            state.best_by, state.best_value, state.best_step, state.figures = before
            self.console.warn(f"the weights of step {state.step:,} are the best so far and could not be saved")

    def _value_of_best(self, values: dict[str, float]) -> float:
        """The figure that is to grow."""
        assert self.best is not None
        value = self._find_figure(values, self.best, place="checkpoint.best")
        return -value if self.best.startswith("-") else value

    @staticmethod
    def _find_figure(values: Mapping[str, float], figure: str, *, place: str) -> float:
        name = figure.removeprefix("-")
        if name not in values:
            raise UserError(f"{place}: {figure} is not among the figures of an evaluation: {', '.join(values)}")
        return values[name]

    def _finish(self, state: TrainState) -> None:
        """Take the best weights if there is a best, score the test split with them, write the totals and the model."""
        self.console.stop_progress()
        self.checkpointer.finish()
        self.model.eval()  # whoever goes on with it wants it without dropout
        if state.step < self.num_steps:
            self.console.say(
                f"stopped at step {state.step:,} of {self.num_steps:,}: {state.evaluations_without_best} evaluations "
                f"without a better {self.best}"
            )
        self._take_weights_to_export(state)
        if self.test_loaders:
            self._score_test(state)
        self._record(state, self._totals(state))
        rate = state.rows_seen / max(state.train_seconds, 1e-9)
        self.console.say(
            f"trained {state.step:,} steps in {state.train_seconds:,.1f} seconds, {rate:,.4g} rows a second"
        )
        if state.skipped_steps:
            self.console.warn(f"{state.skipped_steps:,} steps were not finite and were skipped")
        if self.checkpointer.fault is not None:
            self.console.warn(f"the last checkpoint is missing: {self.checkpointer.fault}")
        if self.export is not None and self.accelerator.is_main_process:
            self.checkpointer.ensure_own_directory()
            self.export(self.bare_model, state)
        self.accelerator.wait_for_everyone()
        if self.publisher is not None:  # not before: nobody waits for an upload
            self.publisher.finish(is_stopped=lambda: self.preemption.requested)

    def _take_weights_to_export(self, state: TrainState) -> None:
        """The model gets the best weights where there is a best, and the averages where there are averages."""
        share_buffers(self.accelerator, self.bare_model)
        if state.best_step is not None and state.best_step != state.step:
            fault = self.checkpointer.load_weights(self.bare_model, state.best_step)
            if fault is None:
                figure = state.figures[str(self.best).removeprefix("-")]
                self.console.say(f"the best weights are those of step {state.best_step:,}: {self.best} {figure:.4g}")
                return
            self.console.warn(f"the best weights, of step {state.best_step:,}, are lost: {fault}; the last are taken")
            state.forget_best()
        if self.averaged_weights is not None:
            self.averaged_weights.copy_to_model()

    def _score_test(self, state: TrainState) -> None:
        values: dict[str, float] = {}
        try:
            for name, loader in self.test_loaders.items():
                scores = self.evaluator.score(loader)
                values |= _name_figures(name, scores.figures)
                if self.keep_predictions is not None and self.accelerator.is_main_process:
                    self.keep_predictions(name, scores.predictions, scores.references)
        except Preempted:
            trained_weights = self.averaged_weights is None and state.best_step in (None, state.step)
            if trained_weights:  # where checkpoint.every is never, nothing is there yet
                self._save(state)
            self._leave(state)
        self._record(state, {f"test/{name}": value for name, value in values.items()})
        self.console.tell_evaluation("test, with the exported weights", values)

    def _totals(self, state: TrainState) -> dict[str, float]:
        return {
            "train_seconds": state.train_seconds,
            "rows_seen": state.rows_seen,
            "tokens_seen": state.tokens_seen,
            "targets_seen": state.targets_seen,
            "peak_memory_bytes": read_peak_memory(self.accelerator.device),
        }

    def _record(self, state: TrainState, values: Values) -> None:
        row = {"step": state.step, "epoch": self._epoch(state)} | dict(values)
        if self.accelerator.is_main_process:
            self.metric_log.append(row)
        if self.accelerator.trackers:
            self.accelerator.log(dict(values), step=state.step)

    def _epoch(self, state: TrainState) -> float:
        """Passes over the training rows so far."""
        return self.train_loader.count_epochs(state.step)


def _name_figures(name: str, values: Mapping[str, float]) -> dict[str, float]:
    """`accuracy` of the set `matched` is `matched/accuracy`."""
    return {f"{name}/{figure}" if name else figure: value for figure, value in values.items()}
