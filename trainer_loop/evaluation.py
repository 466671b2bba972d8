"""Judging a model on rows that it does not learn from: each row once, on any number of processes."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import release_memory
from torch import Tensor, nn

from trainer_loop.components import locate_source
from trainer_loop.data.loader import EvaluationLoader, Microbatch
from trainer_loop.errors import Preempted, UserError
from trainer_loop.metrics.logged import LoggedMetrics
from trainer_loop.metrics.meter import zero_sum
from trainer_loop.metrics.named_metric import COLUMNS, NamedMetric, compute_metrics
from trainer_loop.optim.averages import AveragedWeights
from trainer_loop.parallel.processes import announce, broadcast, sum_on_hosts, watch_for
from trainer_loop.parallel.row_outputs import RowOutputs
from trainer_loop.parallel.sharding import ShardedModel
from trainer_loop.record.logs import Console
from trainer_loop.record.predictions import Sample, Scores
from trainer_loop.record.run_output import RunOutput
from trainer_loop.runtime.memory import is_out_of_memory
from trainer_loop.runtime.preempt import Preemption
from trainer_loop.runtime.randomness import evaluating, seed_everything
from trainer_loop.runtime.stopwatch import Stopwatch
from trainer_loop.tasks.merge import merge_outputs
from trainer_loop.tasks.task import Batch, Task

Metrics = dict[str, float]  # of an evaluation, by their names
_Answer = TypeVar("_Answer")
_PREEMPTED = "preempted"  # the notice that tells the other processes in the middle of an evaluation
_DETAIL = "detail: "  # before the names of what `Task.rate_rows` returns


@dataclass(eq=False, repr=False, kw_only=True)
class Evaluator:
    """Scores sets of rows and predicts them; every process of a run has one."""

    accelerator: Accelerator
    task: Task
    model: nn.Module  # not wrapped for data parallelism, for the processes have unlike numbers of batches
    metrics: Sequence[NamedMetric]
    averaged_weights: AveragedWeights | None  # of the model, scored in place of its weights
    sharded: ShardedModel | None = None  # the model, where it is spread over the processes
    seed: int
    console: Console
    preemption: Preemption
    num_samples: int = 0  # texts of each set that are kept as samples
    stopwatch: Stopwatch = field(default_factory=Stopwatch)

    def __post_init__(self) -> None:
        self.samples: dict[str, list[Sample]] = {}  # of the sets that were scored last
        self.scores: dict[str, Scores] = {}  # of the validation sets, as they were scored last
        # Outputs of the task that are kept of every row; whatever else it predicts is not.
        tuned_by = self.task.list_outputs() or () if self.task.tunes else ()
        compared = [name for metric in self.metrics for name in metric.columns]
        self._wanted = dict.fromkeys([*COLUMNS, *compared, *tuned_by])
        self._ran_out_of_memory = False  # and said so

    @torch.no_grad()
    def score(self, loader: EvaluationLoader, *, tunes: bool = False) -> Scores:
        """Judge each row once. Raises Preempted on every process where one was asked to stop before it was through.

        tunes: the task may choose something, such as a threshold, by these rows.
        """
        seed_everything(self.seed, "evaluate", self.accelerator.process_index)
        loss_sum, logged = zero_sum(self.accelerator.device), LoggedMetrics(self.task.extra_metrics)
        judged, num_targets, stopped = RowOutputs(), 0.0, False
        with self._evaluating(), watch_for(self.accelerator, _PREEMPTED) as is_told_to_stop:
            for microbatch in self.console.follow(loader, total=len(loader), doing="evaluating"):
                if stopped := self._is_stopping(is_told_to_stop):
                    break
                for part, (loss, outputs, parts_of_loss) in self._in_parts(loader, microbatch, self._judge):
                    loss_sum += loss
                    for name, (value, count) in parts_of_loss.items():
                        logged.add(name, value, count=count)
                    num_targets += part.num_targets
                    judged.add(part.rows, outputs if self.task.merges else self._select(outputs))

        sums = [float(loss_sum), num_targets, stopped, *logged.take_numbers()]
        total, targets, any_stopped, *numbers_logged = sum_on_hosts(self.accelerator, sums)
        if any_stopped:
            raise Preempted("preempted in the middle of an evaluation")
        outputs = judged.gather(loader.num_rows)
        details = {name: outputs.pop(name) for name in list(outputs) if name.startswith(_DETAIL)}
        columns, numbers = self._merge(outputs, loader)
        self._refuse_missing(columns)
        columns = self.task.tune(columns) if tunes else columns
        means = logged.compute_means(numbers_logged)
        metrics = compute_metrics(self.metrics, columns, taken=means)
        values = {"loss": total / max(targets, 1), **metrics, **means, "rows": len(numbers)}
        # What follows from them must follow on every process, also where a metric draws at random.
        return Scores(
            broadcast(self.accelerator, values),
            numbers,
            columns["predictions"],
            columns["references"],
            {name.removeprefix(_DETAIL): column for name, column in details.items()},
        )

    def score_sets(
        self, loaders: Mapping[str, EvaluationLoader], output: RunOutput | None = None, *, tunes: bool = False
    ) -> Metrics:
        """The metrics of several sets, by names such as `matched/accuracy`.

        output: gets the predictions of each. tunes: the task may choose something by the rows of the first set.
        """
        metrics: Metrics = {}
        self.samples, self.scores = {}, {}
        for number, (name, loader) in enumerate(loaders.items()):
            with self.stopwatch.measuring("evaluation"):
                scores = self.score(loader, tunes=tunes and number == 0)
            metrics |= {f"{name}/{metric}" if name else metric: value for metric, value in scores.metrics.items()}
            if self.task.generates and self.num_samples:
                self.samples[name] = scores.take_texts(self.num_samples)
            if output is None:
                self.scores[name] = scores
            else:
                output.write_predictions(name, scores)
        return metrics

    @torch.no_grad()
    def predict(self, loader: EvaluationLoader) -> dict[str, np.ndarray]:
        """What the task predicts of each row of this process's loader, in their order: `[N, ...]` by name of output.

        Where the loader was given fewer rows than there were, the others have NaN, -1 for integers, None for lists, or
        false for truth values.
        """
        seed_everything(self.seed, "predict", self.accelerator.process_index)
        outputs = RowOutputs()
        with self._evaluating():
            for microbatch in loader:
                for part, predicted_part in self._in_parts(loader, microbatch, self.task.predict):
                    outputs.add(part.rows, predicted_part)  # references of rows without labels are None
        predicted, _ = self._merge(outputs.join(), loader)
        kept = loader.kept
        return predicted if kept is None else {name: kept.spread(output) for name, output in predicted.items()}

    @torch.no_grad()
    def refer(self, loader: EvaluationLoader) -> np.ndarray:
        """What the task wants to know of each row from the model as it is, `[N, K]`, on every process."""
        references = RowOutputs()
        with self._evaluating():
            for microbatch in self.console.follow(loader, total=len(loader), doing="computing references"):
                for part, values in self._in_parts(loader, microbatch, self.task.refer):
                    references.add(part.rows, {"values": values.cpu().double()})
        return references.gather(loader.num_rows)["values"]

    def _judge(self, model: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Any], dict[str, tuple[Tensor, float]]]:
        """The loss and the outputs of a batch, and what the task logs: of a pass that fails, nothing."""
        logged = LoggedMetrics(self.task.extra_metrics)
        with self.task.logging_to(logged.add):
            loss, outputs = self.task.loss_and_predict(model, batch)
        return loss, outputs, logged.take()

    def _merge(
        self, columns: dict[str, np.ndarray], loader: EvaluationLoader
    ) -> tuple[dict[str, np.ndarray], Sequence[int]]:
        """The outputs of encoded rows, merged if the task merges them, and the number of the first row of each."""
        if not self.task.merges:
            return columns, range(loader.num_rows)
        if loader.raw is None:
            raise UserError(f"{locate_source(type(self.task).merge)} needs raw rows: let the task declare its columns")
        return merge_outputs(self.task, columns, sources=loader.raw.sources.tolist(), read=loader.raw.read)

    def _select(self, outputs: Mapping[str, Any]) -> dict[str, Any]:
        """What is kept of the outputs of a task that does not merge them, and how sure it is of each row."""
        self._refuse_missing(outputs)
        rated = self.task.rate_rows(outputs)
        return {name: outputs[name] for name in self._wanted} | {_DETAIL + name: rated[name] for name in rated}

    def _refuse_missing(self, outputs: Mapping[str, Any]) -> None:
        if missing := [name for name in self._wanted if name not in outputs]:
            method = type(self.task).merge if self.task.merges else type(self.task).predict
            raise UserError(
                f"{locate_source(method)} returns {', '.join(outputs)}; an evaluation needs {', '.join(missing)} too"
            )

    def _in_parts(
        self, loader: EvaluationLoader, microbatch: Microbatch, answer: Callable[[nn.Module, Batch], _Answer]
    ) -> Iterator[tuple[Microbatch, _Answer]]:
        """What the model answers: to the whole microbatch, or to halves of it where memory does not suffice."""
        answered = None
        try:
            answered = answer(self.model, microbatch.batch)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if len(microbatch.rows) == 1:
                raise UserError("evaluation: out of memory with one row a microbatch; lower data.max_length") from error
        if answered is not None:
            yield microbatch, answered
            return
        # Outside the handler, which holds on to the memory of the failed pass.
        release_memory()
        if not self._ran_out_of_memory:
            self._ran_out_of_memory = True
            self.console.warn(
                f"evaluation: out of memory with {len(microbatch.rows):,} rows a microbatch: its halves are judged one "
                "after the other; a smaller evaluate.max_tokens saves the attempt"
            )
        for half in loader.halve(microbatch):
            yield from self._in_parts(loader, half, answer)

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        """The model as it is judged: without dropout, and with the averages for its weights where there are any."""
        averaged = nullcontext() if self.averaged_weights is None else self.averaged_weights.in_place()
        with evaluating(self.model), averaged, nullcontext() if self.sharded is None else self.sharded.gathered():
            yield

    def _is_stopping(self, is_told_to_stop: Callable[[], bool]) -> bool:
        """Whether to stop in the middle of what the processes do each for itself, without waiting for another."""
        if self.preemption.requested:
            announce(self.accelerator, _PREEMPTED)
            return True
        return is_told_to_stop()
