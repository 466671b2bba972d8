"""What a run writes as its config says, besides checkpoints and metrics: its description, predictions, the model."""

import functools
from collections.abc import Mapping
from typing import Any

import numpy as np
from accelerate import Accelerator
from torch import nn

from trainer_loop.config.fields import Config
from trainer_loop.config.load import flatten, public_values, spell_config
from trainer_loop.config.schema import KEYS
from trainer_loop.errors import UserError
from trainer_loop.plan import Overrides, RunPlan
from trainer_loop.publishing import describe_model, make_publisher
from trainer_loop.record.checkpoint import AveragedWeights
from trainer_loop.record.export import ExportRecord, export_model
from trainer_loop.record.logs import Console
from trainer_loop.record.predictions import write_predictions
from trainer_loop.record.run_dir import RunDir, describe_environment, describe_refusal, write_json, write_text
from trainer_loop.record.run_output import RunOutput
from trainer_loop.record.state import TrainState
from trainer_loop.record.trackers import is_own, start_trackers
from trainer_loop.runtime.preempt import Preemption

# Keys that may change on resume but not on a run that is complete, where they would have no effect; see `run`.
_LENGTH = ("train.epochs", "train.steps")
_TUNED = [name for name, key in KEYS.items() if key.on_resume == "planned anew" and name not in _LENGTH]
# The argument by which a tracker calls a run.
_NAME_OF_RUN = {"wandb": "name", "trackio": "name", "mlflow": "run_name", "swanlab": "experiment_name"}


class ConfiguredOutput(RunOutput):
    """Writes into the run directory of a config.

    Args:
        facts: what decides the updates, as plain JSON; the exported model has it.
        num_steps: updates of the whole run.
    """

    def __init__(
        self,
        config: Config,
        plan: RunPlan,
        overrides: Overrides,
        *,
        accelerator: Accelerator,
        console: Console,
        facts: Mapping[str, Any],
        num_steps: int,
    ):
        self.config, self.plan, self.overrides = config, plan, overrides
        self.accelerator, self.console = accelerator, console
        self.facts, self.num_steps = facts, num_steps
        self.run_dir = RunDir(config.run_dir)
        self.publisher = (
            make_publisher(config, plan, console, record_of=self.describe_export, card_of=self.describe_model)
            if accelerator.is_main_process
            else None
        )

    def begin_run(self, run: str) -> None:
        if self.accelerator.is_main_process:
            self._write_description(run)
            self.console.keep_in(self.run_dir.log)
        if self.config.log.trackers:
            self._start_trackers()

    def _write_description(self, run: str) -> None:
        self.run_dir.make()
        environment = describe_environment(
            run=run,
            device=str(self.accelerator.device),
            num_processes=self.accelerator.num_processes,
            precision=self.accelerator.mixed_precision,
        )
        for path, write in (
            (self.run_dir.config, functools.partial(write_text, text=spell_config(self.config))),
            (self.run_dir.environment, functools.partial(write_json, value=environment)),
        ):
            try:
                write(path)
            except OSError as error:
                raise UserError(f"run_dir: {describe_refusal(error, path)}") from error

    def _start_trackers(self) -> None:
        log = self.config.log
        named = {
            tracker: {_NAME_OF_RUN[tracker]: self.run_dir.root.name} if tracker in _NAME_OF_RUN else {}
            for tracker in log.trackers
        }
        start_trackers(
            self.accelerator,
            own=[name for name in log.trackers if is_own(name)],
            project=log.project,
            config=flatten(self.config),
            arguments={tracker: name | dict(log.tracker_args.get(tracker) or {}) for tracker, name in named.items()},
            warn=self.console.warn,
        )

    def write_predictions(self, name: str, predictions: np.ndarray, references: np.ndarray) -> None:
        if self.accelerator.is_main_process:
            write_predictions(
                self.run_dir.predictions / f"{name or 'test'}.jsonl",
                predictions=predictions,
                references=references,
                origin_of=self.plan.inputs.splits[f"test.{name}" if name else "test"].origins.place,
                label_names=self.plan.inputs.label_names,
            )

    def export(self, model: nn.Module, state: TrainState) -> None:
        if not self.accelerator.is_main_process:
            return
        record, adapter = self.describe_export(state), self.plan.model.adapter
        if adapter is not None:
            model = adapter.merge_into(model)
        export_model(self.run_dir, model, self.plan.inputs.tokenizer, record, card=self.describe_model(record))

    def describe_export(self, state: TrainState) -> ExportRecord:
        """What the model that is exported in this state says about itself."""
        config = self.config
        data = self.plan.inputs.data
        return ExportRecord(
            task=self.facts["task.name"],
            columns={} if data is None else dict(data.columns.names),
            max_length=config.data.max_length if self.plan.task.has_tokens else None,
            step=state.best_step or state.step,
            num_steps=self.num_steps,
            metrics=state.metrics,
            plan={**self.facts, **{name: value for name, value in public_values(config).items() if name in _TUNED}},
            evaluation=self._describe_evaluation(),
        )

    def _describe_evaluation(self) -> dict[str, Any] | None:
        """What `python -m trainer_loop.predict` needs to evaluate as the run did."""
        labels = self.plan.inputs.labels
        if labels is None:
            return None
        by_id = sorted(labels.ids.items(), key=lambda pair: pair[1])
        return {
            "values": [raw for raw, _ in by_id],
            "metrics": self.plan.metrics,
            "loss": {"name": self.config.loss.name, "args": self.config.loss.args},
        }

    def describe_model(self, record: ExportRecord) -> str:
        """The model card of what is exported."""
        return describe_model(self.config, self.plan, self.overrides, record)

    def offer_weights(self, model: nn.Module, state: TrainState, averaged_weights: AveragedWeights | None) -> None:
        if self.publisher is not None:
            self.publisher.offer(model, state, averaged_weights)

    def leave(self) -> None:
        if self.publisher is not None:
            self.publisher.leave()

    def publish(self, preemption: Preemption) -> None:
        if self.publisher is not None:
            self.publisher.finish(is_stopped=lambda: preemption.requested)
