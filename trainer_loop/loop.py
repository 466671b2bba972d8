"""The training loop. READ THIS FIRST: what an update is, and what happens between two updates."""

from collections.abc import Iterable
from typing import Any, NoReturn

import numpy as np
from torch import Tensor, nn

from trainer_loop.data.loader import EvaluationLoader, Microbatch, StepBatch
from trainer_loop.data.run_data import Loaders, RunData
from trainer_loop.engine import Engine
from trainer_loop.errors import Preempted
from trainer_loop.evaluation import Evaluator, Metrics
from trainer_loop.metrics.meter import Gradients, StepReport
from trainer_loop.options import LoopOptions
from trainer_loop.parallel.processes import share_buffers
from trainer_loop.record.checkpoint import Checkpointer, Stateful
from trainer_loop.record.recorder import Recorder
from trainer_loop.record.run_output import RunOutput
from trainer_loop.record.state import TrainState
from trainer_loop.resume import is_evaluation_pending, load_weights_to_export, restore_run, warn_if_not_restored
from trainer_loop.selection import is_out_of_patience, select
from trainer_loop.tasks.losses import refuse_wrong_loss
from trainer_loop.tasks.task import Batch, Task


class TrainingLoop:
    """Trains, evaluates, saves and exports one model. Every process of a run creates one.

    To customise it, override `loss_sum`, `accumulate_gradients` or `train_step` in a subclass; see docs/customise.md.
    """

    extra_metrics: tuple[str, ...] = ()  # names that a subclass passes to `log_metric`

    def __init__(
        self,
        *,
        task: Task,  # computes loss, target count and predictions of a batch
        engine: Engine,  # holds model, optimizer and scheduler, and runs an update on this hardware
        data: RunData,  # loaders of the training, validation and test rows
        evaluator: Evaluator,  # scores and predicts rows with the engine's model
        checkpointer: Checkpointer,  # saves and restores the run
        record: Recorder,  # writes metrics to the console and to files
        output: RunOutput,  # writes predictions, the exported model and the report
        options: LoopOptions,  # number of steps, intervals, clipping, early stopping
    ):
        assert data.validation or not (options.evaluate_every or options.evaluate_at_start), "no validation set"
        self.task, self.engine, self.data, self.evaluator = task, engine, data, evaluator
        self.checkpointer, self.record, self.output, self.options = checkpointer, record, output, options
        self.accelerator, self.console, self.preemption = engine.accelerator, record.console, engine.preemption
        self.model, self.bare_model = engine.model, engine.bare_model  # with and without DDP's wrapper
        self.optimizer, self.scheduler = engine.optimizer, engine.scheduler
        record.declare_metrics((*self.extra_metrics, *task.extra_metrics), sources=data.train.sources)
        self._weight = 1.0  # row weight of the current microbatch
        self._weights_checked = False  # true: weights are restored or trained, or the user was warned that they are not

    def train_step(self, step_batch: StepBatch) -> StepReport:
        """Run one update. Only this method changes weights."""
        num_targets = self.count_targets(step_batch)  # over all processes: one denominator for the whole update
        while (loss_sum := self.accumulate_gradients(step_batch, num_targets)) is None:
            step_batch = self.cut_smaller(step_batch.step)  # a process ran out of memory
        gradients = self.clip_gradients(step_batch.step)
        if skipped := self.options.skip_nonfinite and self.engine.is_nonfinite_anywhere(loss_sum, gradients.norm):
            self.engine.skip_update()
        else:
            self.engine.update_weights()  # optimizer step, then the moving average of the weights
        self.clear_gradients()
        return self.report_step(step_batch, loss_sum, num_targets, gradients, skipped=skipped)

    def accumulate_gradients(self, step_batch: StepBatch, num_targets: float) -> Tensor | None:
        """Run forward and backward over all microbatches; return the sum of their losses on this process, `[]`.

        If any process runs out of memory, return None on every process; there are no gradients then.
        """
        engine, step, train = self.engine, step_batch.step, self.data.train
        loss_sum = engine.begin_step(step)  # returns zero, and seeds all generators with (seed, step, process)
        with engine.catching_out_of_memory(step, max_tokens=train.max_tokens):
            for position, microbatch in enumerate(step_batch.microbatches, start=1):
                with engine.synchronising(position == len(step_batch.microbatches)):
                    loss = self._compute_loss(microbatch)
                    # Gradients are averaged over processes. The factor num_processes turns the mean into a sum.
                    engine.backward(loss, self.accelerator.num_processes / num_targets)
                loss_sum += loss.detach()
        return engine.settle(step, loss_sum, loss_of=self._compute_loss, loader=train)

    def loss_sum(self, batch: Batch) -> Tensor:
        """Return the training loss of one microbatch, **summed** over its targets, `[]`. Override this first.

        Do not change the weights here: the other microbatches of the step reuse tensors computed from them.
        """
        return self.task.loss(self.model, batch)

    def _compute_loss(self, microbatch: Microbatch) -> Tensor:
        self._weight = microbatch.weight
        with self.task.logging_to(self.log_metric):
            loss = self.loss_sum(microbatch.batch)
        is_overridden = type(self).loss_sum is not TrainingLoop.loss_sum
        refuse_wrong_loss(loss, of=type(self).loss_sum if is_overridden else type(self.task).loss)
        loss = loss if microbatch.weight == 1.0 else loss * microbatch.weight
        self.record.log_source(microbatch, loss)
        return loss

    def report_step(
        self, step_batch: StepBatch, loss_sum: Tensor, num_targets: float, gradients: Gradients, skipped: bool = False
    ) -> StepReport:
        """Step the scheduler and return the report of this update. `loss_sum` covers the targets of this process."""
        self._weight = 1.0
        logged = self.record.take_step_metrics()
        return self.engine.report_step(step_batch, loss_sum, num_targets, gradients, skipped=skipped, logged=logged)

    # ------------------------------------------------------------------------------ for a custom `train_step` to call

    def count_targets(self, step_batch: StepBatch) -> float:
        """Return the denominator of the loss: the targets of the update over all processes, each times its weight."""
        return self.engine.count_targets(step_batch, self.data.train)

    def clip_gradients(self, step: int) -> Gradients:
        """Clip the gradients of the parameters that train at `step` (from 0); return the norms before clipping."""
        return self.engine.clip(step, self.options.max_grad_norm, self.options.max_grad_value)

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Sum the gradients of `parameters` over all processes. A step that calls `bare_model` needs this."""
        self.engine.sum_gradients(parameters)

    def clear_gradients(self) -> None:
        self.engine.clear_gradients()

    def cut_smaller(self, step: int) -> StepBatch:
        """Return the batch of `step` (from 0) in smaller microbatches. Later steps use the smaller size too."""
        self.record.take_step_metrics()  # drops those of the failed pass
        step_batch = self.data.cut_smaller(step)
        self.console.warn(self.data.describe_cut(step))
        return step_batch

    def log_metric(self, name: str, value: Tensor, *, count: float = 1) -> None:
        """Log a metric of this step; metrics.jsonl gets its mean over all processes since the previous row.

        `name` is an entry of `extra_metrics`, or was passed to `self.record.declare_metrics`. `value` is the sum over
        `count` elements, `[]`; it stays on its device.
        """
        if self._weight:
            self.record.log_metric(name, value * self._weight, count=count * self._weight)

    def register_for_checkpoint(self, name: str, part: Stateful) -> None:
        """Save `part` (a module, an optimizer, a queue) in each checkpoint under `name`, and restore it on resume."""
        self.checkpointer.register_for_checkpoint(name, part)
        self.engine.tries_largest = False  # a trial pass could change the part

    # -------------------------------------------------------------------------------------------------- the run

    def fit(self, state: TrainState | None = None) -> TrainState:
        """Train from `state` (None: from `restore()`) to the last step; return the final state.

        Raises Diverged if the loss or a gradient is not finite, and Preempted, after a save, if asked to stop.
        """
        state = self._begin(self.restore() if state is None else state)
        options, train = self.options, self.data.train
        stop_at = state.step if is_out_of_patience(state, options.patience) else options.num_steps
        for step_batch in train.steps(start=state.step, stop=stop_at):
            self.record.add(self.train_step(step_batch))
            state.step += 1
            self.checkpointer.check()
            due, stop = options.due(state.step), self.engine.stop_requested
            save = due.save or stop
            if due.log or save:
                self.record.flush(train)  # raises Diverged
            if due.log:
                self.record.log_training(state, epoch=train.count_epochs(state.step))
            if save or due.evaluate:
                share_buffers(self.accelerator, self.bare_model)
            if save:  # before the evaluation, which may take long or fail
                self._save(state)
            if stop:
                self._raise_preempted(state)
            if due.evaluate:
                self._evaluate_and_select(state)
            if save and state.step < options.num_steps:
                self.output.offer_weights(self.bare_model, state, self.engine.averaged_weights)
            if save or due.evaluate:
                self.record.restart_clock()
            if is_out_of_patience(state, options.patience):
                self._save(state)
                break
        self._finish(state)
        return state

    def restore(self) -> TrainState:
        """Load the checkpoint that `options.resume` selects. Returns its state, or the initial one if there is none."""
        self._weights_checked = True
        return restore_run(self.checkpointer, self.engine, self.data, self.options, self.console)

    def evaluate(self, rows: EvaluationLoader | Any) -> Metrics:
        """Score each row once; return the mean loss over targets, the metrics, and the number of rows.

        `rows` is a loader, or labelled rows as `build` takes them. Raises Preempted if any process was asked to stop.
        """
        return self.evaluator.score(self._load_rows(rows, labelled=True)).metrics

    def predict(self, rows: Any) -> dict[str, np.ndarray]:
        """Return the outputs of the task by name, `[N, ...]`, in the order of the rows.

        `rows` are as `build` takes them; labels are optional. All processes must call this with all rows. With
        `data.missing=drop` a row without a text gets NaN, -1 (integers), None (lists) or False (booleans).
        """
        return self.evaluator.predict(self._load_rows(rows, labelled=False))

    def _load_rows(self, rows: Any, *, labelled: bool) -> EvaluationLoader:
        self._weights_checked = self._weights_checked or warn_if_not_restored(self.checkpointer.run_dir, self.console)
        return rows if isinstance(rows, EvaluationLoader) else self.data.load_rows(rows, labelled=labelled)

    # ------------------------------------------------------------------------------ before, between and after the steps

    def _begin(self, state: TrainState) -> TrainState:
        self._weights_checked = True
        self.output.begin_run(self.checkpointer.run, step=state.step)
        self.preemption.defer_signals()
        pending = is_evaluation_pending(state, self.options)
        self.record.begin(state, num_steps=self.options.num_steps, evaluation_pending=pending)
        if pending:
            self._evaluate_and_select(state)
        # The time limit starts after this evaluation. Else a run that is limited to less would never train a step.
        self.preemption.defer_signals(max_minutes=self.options.max_minutes)
        self.engine.begin_training(self.data, loss_of=self._compute_loss, warn=self.console.warn)
        self.record.restart_clock()
        return state

    def _save(self, state: TrainState) -> None:
        state.interval, state.schedule_step = self.record.state_dict(), self.engine.schedule_step
        state.max_tokens, state.stream = self.data.max_tokens, self.data.train.state_dict()
        self.checkpointer.save(state)

    def _raise_preempted(self, state: TrainState) -> NoReturn:
        """Wait until the checkpoint is complete, then raise Preempted on all processes."""
        self.checkpointer.finish()
        self.output.leave()
        self.console.stop_progress()
        where = "nothing is saved yet" if state.step == 0 else self.checkpointer.describe_newest()
        raise Preempted(
            f"preempted at step {state.step:,} of {self.options.num_steps:,} by {self.preemption.reason}; {where}: "
            "the same command goes on from there"
        )

    def _evaluate_and_select(self, state: TrainState) -> None:
        """Score the validation sets; update scheduler, best weights and early stopping from the metrics."""
        metrics = self._score(self.data.validation, state, save_on_error=state.step > 0)
        state.evaluated_step, epoch = state.step, self.data.train.count_epochs(state.step)
        self.record.log_validation(metrics, self.evaluator.samples, step=state.step, epoch=epoch)
        previous_best = None
        if state.step > 0:
            self.engine.follow_evaluation(metrics, self.options.plateau_metric)
            previous_best = select(state, metrics, self.options)
        elif self.options.best is None:
            state.metrics = metrics
        if state.metrics is metrics:  # these weights would be exported now
            # Before the save: a run that resumes from it does not evaluate this step again.
            self.output.write_validation(self.evaluator.scores, step=state.step)
        if previous_best is not None:
            self._save(state)
            if not self.checkpointer.mark_best(state.step):
                state.put_back_best(previous_best)
                self.output.withdraw_validation()
                self.console.warn(f"the weights of step {state.step:,} are the best so far and could not be saved")

    def _score(self, sets: Loaders, state: TrainState, save_on_error: bool, output: RunOutput | None = None) -> Metrics:
        """Return the metrics of `sets`. With `save_on_error`, save a checkpoint if scoring fails or is interrupted."""
        try:
            return self.evaluator.score_sets(sets, output, tunes=output is None)
        except Exception as error:
            if save_on_error and self.engine.can_save_after(error):
                self._save(state)
            if isinstance(error, Preempted):
                self._raise_preempted(state)
            raise

    def _finish(self, state: TrainState) -> None:
        """Load the best weights if the run selects them, score the test sets, log the totals, export the model."""
        self.console.stop_progress()
        self.checkpointer.finish()
        self.model.eval()  # for code that uses the model after `fit`
        self.record.report_early_stop(state, self.options.num_steps, self.options.patience_metric or self.options.best)
        share_buffers(self.accelerator, self.bare_model)
        is_last = load_weights_to_export(state, self.engine, self.checkpointer, self.options.best, self.console)
        if self.task.tunes:  # with the exported weights
            self._score(self.data.validation, state, save_on_error=is_last)
        epoch = self.data.train.count_epochs(state.step)
        if self.data.test:
            metrics = self._score(self.data.test, state, save_on_error=is_last, output=self.output)
            self.record.log_test(metrics, self.evaluator.samples, step=state.step, epoch=epoch)
        self.record.log_totals(state, epoch=epoch)
        self.checkpointer.end_run()
        self.output.export(self.bare_model, state)
        self.accelerator.wait_for_everyone()
        self.output.publish(self.preemption)  # last, so that no process waits for an upload
