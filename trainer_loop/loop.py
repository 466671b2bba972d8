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
from trainer_loop.resume import is_evaluation_pending, restore_run, take_weights_to_export, warn_of_checkpoints
from trainer_loop.selection import is_out_of_patience, judge
from trainer_loop.tasks.losses import refuse_wrong_loss
from trainer_loop.tasks.task import Batch, Task


class TrainingLoop:
    """Trains, evaluates, saves and exports one model; every process of a run has one.

    A subclass overrides `loss_sum`, `accumulate_gradients` or `train_step`; see docs/customise.md.
    """

    extra_metrics: tuple[str, ...] = ()  # names that a subclass passes to `log_metric`

    def __init__(
        self,
        *,
        task: Task,  # what is learnt: the loss, its targets, predictions
        engine: Engine,  # model, optimizer and schedule, and how an update runs on this hardware
        data: RunData,  # loaders of training, validation and test rows
        evaluator: Evaluator,  # scores and predicts rows with the engine's model
        checkpointer: Checkpointer,  # saves and restores the run
        record: Recorder,  # metrics, on the console and in files
        output: RunOutput,  # what the run leaves behind: predictions, the exported model
        options: LoopOptions,  # how long the run is, and what happens when
    ):
        assert data.validation or not (options.evaluate_every or options.evaluate_at_start), "no validation set"
        self.task, self.engine, self.data, self.evaluator = task, engine, data, evaluator
        self.checkpointer, self.record, self.output, self.options = checkpointer, record, output, options
        self.accelerator, self.console, self.preemption = engine.accelerator, record.console, engine.preemption
        self.model, self.bare_model = engine.model, engine.bare_model  # with and without DDP's wrapper
        self.optimizer, self.scheduler = engine.optimizer, engine.scheduler
        record.declare_metrics((*self.extra_metrics, *task.extra_metrics), sources=data.train.sources)
        self._weight = 1.0  # of the current microbatch
        self._weights_meant = False  # they were restored or trained, or a warning said that they are not

    def train_step(self, step_batch: StepBatch) -> StepReport:
        """One update, and the only place where weights change."""
        num_targets = self.count_targets(step_batch)  # of all processes: one denominator for the whole update
        while (loss_sum := self.accumulate_gradients(step_batch, num_targets)) is None:
            step_batch = self.cut_smaller(step_batch.step)  # some process ran out of memory
        gradients = self.clip_gradients(step_batch.step)
        if skipped := self.options.skip_nonfinite and self.engine.is_nonfinite_anywhere(loss_sum, gradients.norm):
            self.engine.skip_update()
        else:
            self.engine.update_weights()  # the optimizer, then the average of the weights
        self.clear_gradients()
        return self.report_step(step_batch, loss_sum, num_targets, gradients, skipped=skipped)

    def accumulate_gradients(self, step_batch: StepBatch, num_targets: float) -> Tensor | None:
        """Forward and backward over all microbatches; the sum of their losses on this process, `[]`.

        None, on every process, where one of them ran out of memory; there are no gradients then.
        """
        engine, step, train = self.engine, step_batch.step, self.data.train
        loss_sum = engine.begin_step(step)  # zero; all randomness follows from (seed, step, process)
        with engine.catching_out_of_memory(step, max_tokens=train.max_tokens):
            for position, microbatch in enumerate(step_batch.microbatches, start=1):
                with engine.synchronising(position == len(step_batch.microbatches)):
                    loss = self._compute_loss(microbatch)
                    # Gradients are averaged over the processes; a sum over targets wants them added up.
                    engine.backward(loss, self.accelerator.num_processes / num_targets)
                loss_sum += loss.detach()
        return engine.settle(step, loss_sum, loss_of=self._compute_loss, loader=train)

    def loss_sum(self, batch: Batch) -> Tensor:
        """The loss of one microbatch in training, **summed** over its targets, `[]`: the first thing to override.

        The weights must stay as they are in it: what was made of them in one microbatch serves the others too.
        """
        return self.task.loss(self.model, batch)

    def _compute_loss(self, microbatch: Microbatch) -> Tensor:
        self._weight = microbatch.weight
        with self.task.logging_to(self.log_metric):
            loss = self.loss_sum(microbatch.batch)
        own = type(self).loss_sum is not TrainingLoop.loss_sum
        refuse_wrong_loss(loss, of=type(self).loss_sum if own else type(self.task).loss)
        loss = loss if microbatch.weight == 1.0 else loss * microbatch.weight
        self.record.log_source(microbatch, loss)
        return loss

    def report_step(
        self, step_batch: StepBatch, loss_sum: Tensor, num_targets: float, gradients: Gradients, skipped: bool = False
    ) -> StepReport:
        """Move the schedule on, and say what was done. loss_sum: over the targets of this process, `[]`."""
        self._weight = 1.0
        logged = self.record.take_step_metrics()
        return self.engine.report_step(step_batch, loss_sum, num_targets, gradients, skipped=skipped, logged=logged)

    # ---------------------------------------------------------------------------- for a step of your own to call

    def count_targets(self, step_batch: StepBatch) -> float:
        """Targets of the whole update, over all processes, by the weights of the rows: what the loss is divided by."""
        return self.engine.count_targets(step_batch, self.data.train)

    def clip_gradients(self, step: int) -> Gradients:
        """Clip as the options say, without what is frozen at step `step` (from 0); returns the norms before."""
        return self.engine.clip(step, self.options.max_grad_norm, self.options.max_grad_value)

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Add the gradients of `parameters` up over all processes, for a step that calls `bare_model`."""
        self.engine.sum_gradients(parameters)

    def clear_gradients(self) -> None:
        self.engine.clear_gradients()

    def cut_smaller(self, step: int) -> StepBatch:
        """Step `step` (from 0) again, in smaller microbatches, which all later steps keep."""
        self.record.take_step_metrics()  # of the pass that failed
        step_batch = self.data.cut_smaller(step)
        self.console.warn(self.data.describe_cut(step))
        return step_batch

    def log_metric(self, name: str, value: Tensor, *, count: float = 1) -> None:
        """Log a number of this step: metrics.jsonl gets its mean since the row before, over all processes.

        name: in the class's `extra_metrics`, or given to `self.record.declare_metrics` where it depends on the model.
        value: `[]`, a sum over `count`; it stays on its device.
        """
        if self._weight:
            self.record.log_metric(name, value * self._weight, count=count * self._weight)

    def register_for_checkpoint(self, name: str, part: Stateful) -> None:
        """Let each checkpoint hold what a subclass keeps besides: a module, an optimizer, a queue."""
        self.checkpointer.register_for_checkpoint(name, part)
        self.engine.tries_largest = False  # a pass may change it

    # -------------------------------------------------------------------------------------------------- the run

    def fit(self, state: TrainState | None = None) -> TrainState:
        """Train from `state` (None: what `restore` finds) up to the last step; returns the state at the end.

        Raises Diverged when the loss or a gradient is not finite, and Preempted, after a save, when asked to stop.
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
            if save:  # before the evaluation, which may be long, or fail
                self._save(state)
            if stop:
                self._leave(state)
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
        """Where the run stands: at the checkpoint that `options.resume` names, or at its beginning."""
        self._weights_meant = True
        return restore_run(self.checkpointer, self.engine, self.data, self.options, self.console)

    def evaluate(self, rows: EvaluationLoader | Any) -> Metrics:
        """Mean loss over all targets, the metrics over all rows, and the number of rows scored: each row once.

        rows: a loader, or rows as `build` takes them, with their labels. Raises Preempted if any process is to stop.
        """
        return self.evaluator.score(self._load_rows(rows, labelled=True)).metrics

    def predict(self, rows: Any) -> dict[str, np.ndarray]:
        """What the task predicts of each row, in the order of the rows: its outputs `[N, ...]` by their names.

        rows: as `build` takes them; they need no labels. All processes call this, with all of them. With
        `data.missing=drop` a row without a text has NaN, -1 for integers, None for lists, or false for truth values.
        """
        return self.evaluator.predict(self._load_rows(rows, labelled=False))

    def _load_rows(self, rows: Any, *, labelled: bool) -> EvaluationLoader:
        self._weights_meant = self._weights_meant or warn_of_checkpoints(self.checkpointer.run_dir, self.console)
        return rows if isinstance(rows, EvaluationLoader) else self.data.load_rows(rows, labelled=labelled)

    # ------------------------------------------------------------------------------------- what surrounds the steps

    def _begin(self, state: TrainState) -> TrainState:
        self._weights_meant = True
        self.output.begin_run(self.checkpointer.run, step=state.step)
        self.preemption.defer_signals()
        pending = is_evaluation_pending(state, self.options)
        self.record.begin(state, num_steps=self.options.num_steps, evaluation_pending=pending)
        if pending:
            self._evaluate_and_select(state)
        # Not before: a start that only finishes an evaluation would never get further, however often it is made.
        self.preemption.defer_signals(max_minutes=self.options.max_minutes)
        self.engine.begin_training(self.data, loss_of=self._compute_loss, warn=self.console.warn)
        self.record.restart_clock()
        return state

    def _save(self, state: TrainState) -> None:
        state.interval, state.schedule_step = self.record.state_dict(), self.engine.schedule_step
        state.max_tokens, state.stream = self.data.max_tokens, self.data.train.state_dict()
        self.checkpointer.save(state)

    def _leave(self, state: TrainState) -> NoReturn:
        """All processes end here, with one complete checkpoint."""
        self.checkpointer.finish()
        self.output.leave()
        self.console.stop_progress()
        where = "nothing is saved yet" if state.step == 0 else self.checkpointer.describe_newest()
        raise Preempted(
            f"preempted at step {state.step:,} of {self.options.num_steps:,} by {self.preemption.reason}; {where}: "
            "the same command goes on from there"
        )

    def _evaluate_and_select(self, state: TrainState) -> None:
        """Score the validation sets, and do what follows from their metrics."""
        metrics = self._score(self.data.validation, state, saves=state.step > 0)
        state.evaluated_step, epoch = state.step, self.data.train.count_epochs(state.step)
        self.record.log_validation(metrics, self.evaluator.samples, step=state.step, epoch=epoch)
        if state.step > 0:
            self.engine.follow_evaluation(metrics, self.options.plateau_metric)
            self._select(state, metrics)
        elif self.options.best is None:
            state.metrics = metrics
        if state.metrics is metrics:  # of the weights that would be exported
            self.output.write_validation(self.evaluator.scores, step=state.step)

    def _select(self, state: TrainState, metrics: Metrics) -> None:
        """Keep the weights of this step where they are the best so far, and count evaluations for early stopping."""
        best, patience_by = self.options.best, self.options.patience_metric
        verdict = judge(metrics, state, self.options)
        if (waited := verdict.patience) is not None:
            state.count_evaluation(is_better=waited.is_better, patience_by=patience_by, value=waited.value)
        if best is None or verdict.best is None:
            state.metrics = metrics
        elif verdict.best.is_better:
            before = state.take_best(best, verdict.best.value, metrics)
            self._save(state)
            if not self.checkpointer.mark_best(state.step):
                state.put_back_best(before)
                self.console.warn(f"the weights of step {state.step:,} are the best so far and could not be saved")

    def _score(self, sets: Loaders, state: TrainState, *, saves: bool, output: RunOutput | None = None) -> Metrics:
        """The metrics of some sets. saves: what was trained is saved where they cannot be scored to the end."""
        try:
            return self.evaluator.score_sets(sets, output, tunes=output is None)
        except Exception as error:
            if saves and self.engine.can_save_after(error):
                self._save(state)
            if isinstance(error, Preempted):
                self._leave(state)
            raise

    def _finish(self, state: TrainState) -> None:
        """Take the best weights if there is a best, score the test sets with them, write the totals and the model."""
        self.console.stop_progress()
        self.checkpointer.finish()
        self.model.eval()  # whoever goes on with it wants it without dropout
        self.record.report_early_stop(state, self.options.num_steps, self.options.patience_metric or self.options.best)
        share_buffers(self.accelerator, self.bare_model)
        saves = take_weights_to_export(state, self.engine, self.checkpointer, self.options.best, self.console)
        if self.task.tunes:  # by the weights that are exported
            self._score(self.data.validation, state, saves=saves)
        epoch = self.data.train.count_epochs(state.step)
        if self.data.test:
            metrics = self._score(self.data.test, state, saves=saves, output=self.output)
            self.record.log_test(metrics, self.evaluator.samples, step=state.step, epoch=epoch)
        self.record.log_totals(state, epoch=epoch)
        self.checkpointer.end_run()
        self.output.export(self.bare_model, state)
        self.accelerator.wait_for_everyone()
        self.output.publish(self.preemption)  # not before: nobody waits for an upload
