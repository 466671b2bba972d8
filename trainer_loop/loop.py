"""The training loop: one file, read from top to bottom. Everything it uses is handed to it as a plain argument."""

import math
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from trainer_loop.data.loader import EvaluationLoader, Microbatch, StepBatch, TrainLoader
from trainer_loop.errors import Diverged, UserError
from trainer_loop.metrics.meter import Meter, NonFinite, StepReport
from trainer_loop.metrics.named_metric import NamedMetric, compute_metrics
from trainer_loop.record.checkpoint import Checkpointer
from trainer_loop.record.logs import Console, MetricLog, Values
from trainer_loop.record.state import TrainState
from trainer_loop.runtime.distributed import gather_rows, sum_over_processes
from trainer_loop.runtime.memory import read_peak_memory
from trainer_loop.runtime.randomness import seed_everything
from trainer_loop.tasks.task import Task


class TrainingLoop:
    """Trains, evaluates, saves and exports one model; every process of a run has one.

    model, optimizer: prepared by `accelerator`. scheduler: over the torch optimizer itself, not prepared.
    num_steps: updates of the whole run. *_every: in steps; None: never.
    best: the metric that picks the exported weights, `-metric` where smaller is better; None: the last weights.
    place_of: row index -> where that row stands in the user's data. export: writes the model, on the main process.
    """

    def __init__(
        self,
        *,
        accelerator: Accelerator,
        task: Task,
        model: nn.Module,
        optimizer: Any,
        scheduler: LRScheduler,
        train_loader: TrainLoader,
        num_steps: int,
        seed: int,
        checkpointer: Checkpointer,
        console: Console,
        metric_log: MetricLog,
        validation_loader: EvaluationLoader | None = None,
        test_loader: EvaluationLoader | None = None,
        metrics: Sequence[NamedMetric] = (),
        max_grad_norm: float | None = 1.0,
        evaluate_every: int | None = None,
        evaluate_at_start: bool = False,
        checkpoint_every: int | None = None,
        log_every: int = 10,
        best: str | None = None,
        resume: str = "auto",
        place_of: Callable[[int], str] = str,
        export: Callable[[nn.Module, TrainState], None] | None = None,
    ):
        self.accelerator = accelerator
        self.task = task
        self.model = model
        # accelerate's wrapper looks for a package on the disk at every step, and is needed for the loss scaler alone.
        self.optimizer = optimizer if accelerator.scaler is not None else optimizer.optimizer
        self.scheduler = scheduler
        self.train_loader = train_loader
        self.validation_loader = validation_loader
        self.test_loader = test_loader
        self.num_steps = num_steps
        self.seed = seed
        self.checkpointer = checkpointer
        self.console = console
        self.metric_log = metric_log
        self.metrics = metrics
        self.max_grad_norm = max_grad_norm
        self.evaluate_every = evaluate_every if validation_loader is not None else None
        self.evaluate_at_start = evaluate_at_start and validation_loader is not None
        self.checkpoint_every = checkpoint_every
        self.log_every = log_every
        self.best = best
        self.resume = resume
        self.place_of = place_of
        self.export = export

        # Evaluation runs unlike numbers of batches on each process, so it must stay clear of DDP's collectives.
        self.bare_model = accelerator.unwrap_model(model)
        self.names, self.parameters = zip(
            *((name, parameter) for name, parameter in self.bare_model.named_parameters() if parameter.requires_grad),
            strict=True,
        )
        self.meter = Meter(
            sum_over_processes=lambda values: sum_over_processes(accelerator, values),
            scaled_gradients=accelerator.scaler is not None,
        )
        self._mark = 0.0  # when the clock of the training steps was last read

    # ------------------------------------------------------------------------------------------------- the loop

    def restore(self) -> TrainState:
        """Where the run stands: at the checkpoint that `resume` names, or at its beginning. Writes nothing.

        Raises UserError where the checkpoint is not of this run.
        """
        state = self.checkpointer.load(self.resume) or TrainState(num_steps=self.num_steps)
        if state.step > self.num_steps:
            raise UserError(
                f"the checkpoint is at step {state.step:,} and the run ends at {self.num_steps:,}; "
                "raise train.epochs or train.steps, or choose another run_dir"
            )
        if state.best_by != self.best:
            state.forget_best()
        return state

    def fit(self, state: TrainState | None = None) -> TrainState:
        """Train from `state` (None: what `restore` finds) up to `num_steps`; returns the state at the end.

        Raises Diverged when the loss or a gradient is not finite; the last checkpoint stays as it was.
        """
        if state is None:
            state = self.restore()
        self._go_on_from(state)
        if self.evaluate_at_start and state.step == 0:
            self._evaluate_and_log(state)

        self.model.train()
        self._mark = time.perf_counter()
        for step_batch in self.train_loader.steps(start=state.step, stop=self.num_steps):
            report = self.train_step(step_batch)
            state.step += 1
            state.rows_seen += report.num_rows
            state.tokens_seen += report.num_tokens
            self.meter.add(report)
            self.console.advance_progress()

            last = state.step == self.num_steps
            log_due = last or _is_due(self.log_every, state.step)
            evaluation_due = self.evaluate_every is not None and (last or _is_due(self.evaluate_every, state.step))
            save_due = self.checkpoint_every is not None and (last or _is_due(self.checkpoint_every, state.step))
            if log_due or evaluation_due or save_due:
                self._fold()
            if log_due:
                self._log_training(state)
            if evaluation_due:
                save_due |= self._evaluate_and_log(state)
            if save_due:
                state.interval = self.meter.state_dict()
                self.checkpointer.save(state)
            if evaluation_due or save_due:
                self._mark = time.perf_counter()
        self._finish(state)
        return state

    def train_step(self, step_batch: StepBatch) -> StepReport:
        """One update, and the only place where weights change."""
        plan = step_batch.plan
        seed_everything(self.seed, "step", plan.step, self.accelerator.process_index)
        num_targets = self._count_targets(step_batch.microbatches)
        loss_sum = torch.zeros((), dtype=_sum_type(self.accelerator.device), device=self.accelerator.device)
        for position, microbatch in enumerate(step_batch.microbatches):
            last = position == len(step_batch.microbatches) - 1
            with nullcontext() if last else self.accelerator.no_sync(self.model):
                loss = self._loss_sum(microbatch)
                # Gradients are averaged over the processes; a sum over targets wants them added up.
                self.accelerator.backward(loss * (self.accelerator.num_processes / num_targets))
            loss_sum += loss.detach()
        names, grad_norm, grad_norms = self._clip_gradients()
        self.optimizer.step()
        lr = float(self.scheduler.get_last_lr()[0])
        if not isinstance(self.scheduler, ReduceLROnPlateau):
            self.scheduler.step()
        for parameter in self.parameters:
            parameter.grad = None
        return StepReport(
            step=plan.step + 1,
            loss_sum=loss_sum,
            num_targets=num_targets,
            grad_norm=grad_norm,
            grad_norms=grad_norms,
            names=names,
            lr=lr,
            num_rows=plan.num_rows,
            num_tokens=plan.num_tokens,
            num_padded_tokens=plan.num_padded_tokens,
            wait_seconds=step_batch.wait_seconds,
        )

    @torch.no_grad()
    def evaluate(self, loader: EvaluationLoader) -> dict[str, float]:
        """Mean loss over all targets, the metrics over all rows, and the number of rows scored: each row once."""
        self.bare_model.eval()
        sums = torch.zeros(2, dtype=_sum_type(self.accelerator.device), device=self.accelerator.device)
        judged: dict[str, list[Tensor]] = {"rows": [], "predictions": [], "references": []}
        for microbatch in self.console.follow(loader, doing="evaluating"):
            loss, outputs = self.task.loss_and_predict(self.bare_model, microbatch.batch)
            sums += torch.stack([loss.to(sums), sums.new_tensor(microbatch.num_targets)])
            judged["rows"].append(torch.tensor(microbatch.rows, device=self.accelerator.device))
            judged["predictions"].append(outputs["predictions"])
            judged["references"].append(outputs["references"])
        self.bare_model.train()

        loss_sum, num_targets = sum_over_processes(self.accelerator, sums).tolist()
        columns = {name: gather_rows(self.accelerator, tensors) for name, tensors in judged.items()}
        order = np.argsort(columns["rows"], kind="stable")
        assert len(order) == loader.num_rows, f"{len(order)} rows were scored of {loader.num_rows}"
        values: dict[str, float] = {"loss": loss_sum / max(num_targets, 1)}
        values |= compute_metrics(
            self.metrics, predictions=columns["predictions"][order], references=columns["references"][order]
        )
        return values | {"rows": len(order)}

    # ---------------------------------------------------------------------------------------------- parts of a step

    def _count_targets(self, microbatches: Sequence[Microbatch]) -> Tensor | int:
        """Targets of the whole update, over all processes: what the loss is divided by."""
        mine = sum(microbatch.num_targets for microbatch in microbatches)
        if self.accelerator.num_processes == 1:
            return max(mine, 1)
        counted = torch.tensor(float(mine), dtype=_sum_type(self.accelerator.device), device=self.accelerator.device)
        return sum_over_processes(self.accelerator, counted).clamp_(min=1)

    def _loss_sum(self, microbatch: Microbatch) -> Tensor:
        loss = self.task.loss(self.model, microbatch.batch)
        if loss.ndim != 0:
            raise UserError(
                f"the loss has shape {list(loss.shape)}; it must be one number, the sum over the targets: use .sum()"
            )
        return loss * 0.0 if microbatch.is_filler else loss

    def _clip_gradients(self) -> tuple[Sequence[str], Tensor, Tensor]:
        """Scale the gradients down to `max_grad_norm`.

        Returns the names `[P]` of the parameters that have one, the norm of all before, `[]`, and of each, `[P]`.
        """
        if self.accelerator.scaler is not None:
            self.accelerator.unscale_gradients(self.optimizer)
        gradients = [parameter.grad for parameter in self.parameters if parameter.grad is not None]
        names: Sequence[str] = self.names
        if len(gradients) < len(names):
            names = self._name_graded()
        # One norm a parameter, all in one call: the total comes from them, and a bad one can be named later.
        grad_norms = torch.stack(torch._foreach_norm(gradients))
        grad_norm = torch.linalg.vector_norm(grad_norms)
        if self.max_grad_norm is not None:
            torch._foreach_mul_(gradients, (self.max_grad_norm / (grad_norm + 1e-6)).clamp(max=1.0))
        return names, grad_norm, grad_norms

    def _name_graded(self) -> Sequence[str]:
        """Parameters that have a gradient; on several processes all must, or their reduction would never end."""
        graded = [
            (name, parameter.grad is not None) for name, parameter in zip(self.names, self.parameters, strict=True)
        ]
        without = [name for name, has_gradient in graded if not has_gradient]
        if self.accelerator.num_processes > 1:
            raise UserError(
                f"{len(without)} parameters get no gradient: {', '.join(without[:4])}, ...; "
                "freeze them (requires_grad_(False)) or train on one process"
            )
        return [name for name, has_gradient in graded if has_gradient]

    # -------------------------------------------------------------------------------------- what surrounds the steps

    def _go_on_from(self, state: TrainState) -> None:
        self.meter.load_state_dict(state.interval)
        if self.accelerator.is_main_process:
            self.metric_log.forget_after(state.step if state.step else -1)
        if state.step:
            self.console.say(f"resumed at step {state.step:,} of {self.num_steps:,}")
        if state.num_steps != self.num_steps:
            self.console.warn(
                f"the run was planned for {state.num_steps:,} steps: from here on the learning rate follows a schedule "
                f"of {self.num_steps:,}, which is not what a run of that length from its beginning would do"
            )
            state.num_steps = self.num_steps
        self.console.start_progress(total=self.num_steps, done=state.step)

    def _fold(self) -> None:
        """Bring the reports to the host, stop at the first that is not finite, and read the clock of the steps."""
        bad = self.meter.fold()
        now = time.perf_counter()
        self.meter.add_seconds(now - self._mark)
        self._mark = now
        if bad is not None:
            raise Diverged(self._describe_divergence(bad))

    def _describe_divergence(self, bad: NonFinite) -> str:
        rows = self.train_loader.plan.batch(bad.step - 1).tolist()
        shown = ", ".join(self.place_of(row) for row in rows[:8]) + (
            f" and {len(rows) - 8} more" if len(rows) > 8 else ""
        )
        first = "" if bad.parameter is None else f"; first bad gradient: {bad.parameter}"
        return (
            f"step {bad.step}: loss {bad.loss:g}, gradient norm {bad.grad_norm:g}{first}; rows of this step: {shown}; "
            "lower optimizer.lr, set train.max_grad_norm, or look at these rows"
        )

    def _log_training(self, state: TrainState) -> None:
        values = self.meter.read()
        sums = self.meter.state_dict()
        state.targets_seen += int(sums["targets"])
        state.train_seconds += sums["seconds"]
        self.meter.clear()
        self._record(state, values)
        self.console.tell_training({"step": state.step, "epoch": self._epoch(state)} | values)

    def _evaluate_and_log(self, state: TrainState) -> bool:
        """Score the validation split; true when the weights of this step are the best so far."""
        assert self.validation_loader is not None
        values = self.evaluate(self.validation_loader)
        self._record(state, {f"validation/{name}": value for name, value in values.items()})
        self.console.tell_evaluation(f"validation at step {state.step:,}, epoch {self._epoch(state):.4g}", values)
        if isinstance(self.scheduler, ReduceLROnPlateau) and state.step > 0:
            self.scheduler.step(values["loss"])
        if self.best is None:
            state.figures = values
            return False
        value = self._value_of_best(values)
        improved = math.isfinite(value) and (state.best_value is None or value > state.best_value)
        if state.step == 0 or not improved:
            return False
        state.best_by, state.best_value, state.best_step, state.figures = self.best, value, state.step, values
        return True

    def _value_of_best(self, values: dict[str, float]) -> float:
        """The figure that is to grow."""
        assert self.best is not None
        name = self.best.removeprefix("-")
        if name not in values:
            raise UserError(
                f"checkpoint.best: {self.best} is not among the figures of an evaluation: {', '.join(values)}"
            )
        return -values[name] if self.best.startswith("-") else values[name]

    def _finish(self, state: TrainState) -> None:
        """Take the best weights if there is a best, score the test split with them, write the totals and the model."""
        self.console.stop_progress()
        if state.best_step is not None and state.best_step != state.step:
            self.checkpointer.load_weights(self.bare_model, state.best_step)
            figure = state.figures[str(self.best).removeprefix("-")]
            self.console.say(f"the best weights are those of step {state.best_step:,}: {self.best} {figure:.4g}")
        if self.test_loader is not None:
            values = self.evaluate(self.test_loader)
            self._record(state, {f"test/{name}": value for name, value in values.items()})
            self.console.tell_evaluation("test, with the exported weights", values)
        self._record(state, self._totals(state))
        rate = state.rows_seen / max(state.train_seconds, 1e-9)
        self.console.say(
            f"trained {state.step:,} steps in {state.train_seconds:,.1f} seconds, {rate:,.4g} rows a second"
        )
        if self.export is not None and self.accelerator.is_main_process:
            self.export(self.bare_model, state)
        self.accelerator.wait_for_everyone()

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
        return state.step / self.train_loader.plan.steps_per_epoch


def _is_due(every: int, step: int) -> bool:
    return step % every == 0


def _sum_type(device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "mps" else torch.float64
