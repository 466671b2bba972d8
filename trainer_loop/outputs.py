"""Writes the files of a run other than checkpoints and metrics: its description, predictions, report and model."""

import copy
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import KW_ONLY, asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator
from torch import Tensor, nn

from trainer_loop.config.load import flatten, public_values, spell_config
from trainer_loop.config.schema import KEYS
from trainer_loop.errors import UserError, in_one_line
from trainer_loop.optim.averages import AveragedWeights
from trainer_loop.parallel.sharding import copy_whole, is_sharded
from trainer_loop.plan import RunPlan
from trainer_loop.publishing import describe_model, gather_extra_files
from trainer_loop.record.export import ExportRecord, copy_weights, export_model, write_files
from trainer_loop.record.hub_access import push_command
from trainer_loop.record.hub_push import Files, PushResult, gather_run, push_files
from trainer_loop.record.logs import Console, read_metrics
from trainer_loop.record.predictions import Scores, write_predictions
from trainer_loop.record.publisher import Publisher
from trainer_loop.record.report_facts import ReportFacts
from trainer_loop.record.run_dir import (
    RunDir,
    describe_environment,
    describe_refusal,
    read_identity,
    remove,
    write_json,
    write_text,
)
from trainer_loop.record.run_output import RunOutput
from trainer_loop.record.state import TrainState
from trainer_loop.record.trackers import TrackedRun, is_custom, start_trackers
from trainer_loop.report.intervals import Intervals
from trainer_loop.report.rows import find_worst, spell_row
from trainer_loop.report.run_files import read_run
from trainer_loop.report.run_report import write_report
from trainer_loop.runtime.preempt import Preemption
from trainer_loop.runtime.stopwatch import Stopwatch

# Keys that may change on resume but not on a run that is complete, where they would have no effect; see `run`.
_LENGTH = ("train.epochs", "train.steps")
_TUNED = [name for name, key in KEYS.items() if key.on_resume == "planned anew" and name not in _LENGTH]
_SCRATCH = ".push"  # in the run directory, for pushes during training


@dataclass(eq=False, repr=False)
class ConfiguredOutput(RunOutput):
    """Writes into the run directory of a config, and pushes to the hub."""

    plan: RunPlan
    _: KW_ONLY
    accelerator: Accelerator
    console: Console
    facts: Mapping[str, Any]  # all inputs that determine the updates, as plain JSON; exported with the model
    num_steps: int  # of the whole run
    stopwatch: Stopwatch

    def __post_init__(self) -> None:
        self.config = self.plan.config
        self.run_dir = RunDir(self.config.run_dir)
        self.report_facts = ReportFacts(self.run_dir.report_facts, warn=self.console.warn)
        self.reports = self.config.report and self.accelerator.is_main_process
        self.publisher = None
        self._intervals: Intervals | None = None  # of the exported weights; cached, because they take seconds
        self._extra_files: Files = {}  # pushed with the model at the end
        hub = self.config.hub
        if hub.push is not None and hub.every != "never" and self.accelerator.is_main_process:
            # Saving changes the settings of a processor, and another thread may tokenise a stream with the run's one.
            self._processor = copy.deepcopy(self.plan.inputs.processor)
            self.publisher = Publisher(
                self._push,
                model=self.run_dir.model,
                scratch=self.run_dir.root / _SCRATCH,
                console=self.console,
                command=push_command(self.config.run_dir, hub.push),
            )

    def begin_run(self, run: str, *, step: int) -> None:
        self.stopwatch.begin_run()
        if self.accelerator.is_main_process:
            is_resumed = read_identity(self.run_dir) == run  # must precede `_write_description`
            self._write_description(run)
            self.console.log_to(self.run_dir.log)
            if self.config.log.trackers:
                self._start_trackers(run, is_resumed=is_resumed)
        if self.reports:
            self.report_facts.begin(
                run,
                step=step,
                task=self.facts["task.name"],
                outputs=self.plan.task.list_outputs(),
                label_names=self.plan.inputs.label_names,
                metrics=self.plan.metrics,
                plan=list(self.plan_lines),
                data={name: asdict(facts) for name, facts in self.plan.inputs.facts.items()},
            )
        elif self.accelerator.is_main_process:
            remove(self.run_dir.report_facts)  # an earlier start wrote it, about other weights

    def _write_description(self, run: str) -> None:
        self.run_dir.make()
        environment = describe_environment(
            run=run,
            device=str(self.accelerator.device),
            num_processes=self.accelerator.num_processes,
            precision=self.accelerator.mixed_precision,
        )
        path = self.run_dir.config
        try:
            write_text(path, spell_config(self.config))
            path = self.run_dir.environment
            write_json(path, environment)
        except OSError as error:
            raise UserError(f"run_dir: {describe_refusal(error, path)}") from error

    def _start_trackers(self, run: str, *, is_resumed: bool) -> None:
        log = self.config.log
        tracked = TrackedRun(
            project=log.project,
            name=log.name or self.run_dir.root.absolute().name,
            identity=run,
            config=flatten(self.config),
            is_resumed=is_resumed,
            logged=self._read_logged() if is_resumed else (),
            files=[self.run_dir.report] if self.config.report else [],
        )
        start_trackers(
            self.accelerator,
            tracked,
            custom=[name for name in log.trackers if is_custom(name)],
            arguments={tracker: log.tracker_args.get(tracker) or {} for tracker in log.trackers},
            warn=self.console.warn,
        )

    def _read_logged(self) -> list[dict[str, Any]]:
        try:
            return read_metrics(self.run_dir.metrics)
        except OSError:  # the next write reports the error
            return []

    def write_predictions(self, name: str, scores: Scores) -> None:
        if self.accelerator.is_main_process:
            self._write_rows(f"test.{name}" if name else "test", scores, step=None)

    def write_validation(self, scores: Mapping[str, Scores], *, step: int) -> None:
        for name, set_scores in scores.items() if self.reports else ():
            name = f"validation.{name}" if name else "validation"
            with self._only_warning(f"the report lacks the rows of {name}"):
                self._write_rows(name, set_scores, step=step)

    def withdraw_validation(self) -> None:
        if self.reports:
            self.report_facts.remove_sets("validation")

    def _write_rows(self, name: str, scores: Scores, *, step: int | None) -> None:
        """Write the predictions of the set `name`, and record the rows with the worst ones for the report."""
        split, task = self.plan.inputs.splits[name], self.plan.task
        if task.has_tokens:
            tokens = np.add.reduceat(split.lengths, scores.rows)
            scores = replace(scores, details={**scores.details, "tokens": tokens})
        path, names = self.run_dir.predictions_of(name), self.plan.inputs.label_names
        write_predictions(path, scores, origin_of=split.origins.place, label_names=names)
        if self.reports:
            with self._only_warning(f"the report lacks the worst rows of {name}"):
                kinds = task.list_outputs() or {}
                worst = find_worst(kinds, scores.predictions, scores.references, scores.details)
                worst_rows = [{"row": row, "inputs": spell_row(split, scores.rows[row], task)} for row in worst]
                self.report_facts.add_set(name, {"step": step, "worst": worst_rows})

    def write_report(self, ended: str) -> None:
        if not self.reports:
            return
        if self.report_facts.values:  # otherwise this command did not train
            self.report_facts.end(ended, self.stopwatch.seconds)
        root = self.run_dir.root
        hint = f"python -m trainer_loop.report {root} tries again"
        with self._only_warning(f"{self.run_dir.report} was not written ({hint})"):
            write_report(root, self._intervals if ended == "finished" else None)

    @contextmanager
    def _only_warning(self, consequence: str) -> Iterator[None]:
        """Turn any error in the block into a warning, so that the run continues.

        Args:
            consequence: start of the warning.
        """
        try:
            yield
        except Exception as error:  # noqa: BLE001 # the code of a task may raise any error
            self.console.warn(f"{consequence}: {type(error).__name__}: {in_one_line(error)}")

    def export(self, model: nn.Module, state: TrainState) -> None:
        with self.stopwatch.measuring("export"):
            self._export(model, state)
        self.write_report("finished")

    def _export(self, model: nn.Module, state: TrainState) -> None:
        weights = copy_weights(model, copy=self.accelerator.is_main_process) if is_sharded(model) else None
        if not self.accelerator.is_main_process:
            return
        record, adapter = self._describe_export(state), self.plan.model.adapter
        if record.tuned:
            self.console.say(f"task.args, as the run chose them: {json.dumps(record.tuned)}")
        if adapter is not None and adapter.merge and weights is not None:
            model, weights = copy_whole(model, weights), None
        if adapter is not None:
            model = adapter.merge_into(model)
        card = describe_model(self.plan, record, intervals=self._find_intervals())
        export_model(self.run_dir, model, self.plan.inputs.processor, record, card=card, weights=weights)

    def _find_intervals(self) -> Intervals:
        """Compute the intervals of the metrics of all sets from the predictions that were written for the report."""
        if self.reports:
            with self._only_warning("the model card lacks intervals of the metrics"):
                self._intervals = read_run(self.run_dir.root).find_intervals()
        return self._intervals or {}

    def _describe_export(self, state: TrainState) -> ExportRecord:
        """Return the record that is exported with the model of this state."""
        config = self.config
        data = self.plan.inputs.data
        return ExportRecord(
            task=self.facts["task.name"],
            columns={} if data is None else data.columns.given,
            max_length=config.data.max_length if self.plan.task.has_tokens else None,
            step=state.best_step or state.step,
            num_steps=self.num_steps,
            metrics=state.metrics,
            plan={
                **self.facts,
                **{name: value for name, value in public_values(config).items() if name in _TUNED},
            },
            evaluation=self._describe_evaluation(),
            tuned=self.plan.task.tuned,
        )

    def _describe_evaluation(self) -> dict[str, Any] | None:
        """Return the settings that `python -m trainer_loop.predict` needs to evaluate as the run did."""
        labels = self.plan.inputs.labels
        if not any(column.target for column in self.plan.task.columns.values()):
            return None
        by_id = [] if labels is None else sorted(labels.ids.items(), key=lambda pair: pair[1])
        return {
            "values": [raw for raw, _ in by_id],
            "metrics": self.plan.metrics,
            "loss": {
                "name": self.config.loss.name,
                "args": {} if self.plan.loss is None else self.plan.loss.args,
            },
            "generate": vars(self.config.evaluate.generate),
        }

    def _push(self, folder: Path, what: str) -> PushResult:
        extra_files = self._extra_files if folder == self.run_dir.model else {}
        files, hub = gather_run(folder, self.run_dir.config, extra_files), self.config.hub
        return push_files(files, str(hub.push), private=hub.private, message=f"Upload {what}")

    def _take_snapshot(
        self, model: nn.Module, state: TrainState, weights: Mapping[str, Tensor]
    ) -> Callable[[Path], None]:
        record, processor = self._describe_export(_without_other_metrics(state)), self._processor
        card = describe_model(self.plan, record)
        return lambda folder: write_files(folder, model, processor, record, card=card, weights=weights)

    def offer_weights(self, model: nn.Module, state: TrainState, averaged_weights: AveragedWeights | None) -> None:
        if self.config.hub.every != "checkpoint":
            return

        def copy_trained() -> dict[str, Tensor]:
            averages = None if averaged_weights is None else averaged_weights.state_dict()
            return copy_weights(model, averages, copy=self.publisher is not None)

        gathered = copy_trained() if is_sharded(model) else None  # all processes must take part
        if self.publisher is not None:
            self.publisher.offer(state.step, lambda: self._take_snapshot(model, state, gathered or copy_trained()))

    def leave(self) -> None:
        self.write_report("preempted")
        if self.publisher is not None:
            self.publisher.leave()

    def publish(self, preemption: Preemption) -> None:
        if self.publisher is not None:
            self._extra_files, notes = gather_extra_files(
                self.run_dir, with_report=self.reports, intervals=self._intervals
            )
            for note in notes:
                self.console.warn(note)
            self.publisher.finish(is_stopped=lambda: preemption.requested)


def _without_other_metrics(state: TrainState) -> TrainState:
    """Return the state with metrics only if they belong to the current weights. The best weights are pushed later."""
    state = copy.copy(state)
    if state.evaluated_step != state.step or state.best_step not in (None, state.step):
        state.metrics = {}
    state.best_step = None
    return state
