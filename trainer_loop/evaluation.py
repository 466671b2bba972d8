"""Evaluates a model, each row once, on any number of processes."""

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

Metrics = dict[str, float]  # metrics of an evaluation by name
_Result = TypeVar("_Result")
_PREEMPTED = "preempted"  # notice to the other processes during an evaluation
_DETAIL = "detail: "  # prefix of the names that `Task.rate_rows` returns


@dataclass(eq=False, repr=False, kw_only=True)
class Evaluator:
    """Scores sets of rows and predicts them. Every process of a run creates one."""

    accelerator: Accelerator
    task: Task
    model: nn.Module  # not wrapped by DDP, because processes have different numbers of batches
    metrics: Sequence[NamedMetric]
    averaged_weights: AveragedWeights | None  # scored in place of the weights of the model
    sharded: ShardedModel | None = None  # the sharded model; None if every process has the whole model
    seed: int
    console: Console
    preemption: Preemption
    num_samples: int = 0  # number of texts of each set that are kept as samples
    stopwatch: Stopwatch = field(default_factory=Stopwatch)

    def __post_init__(self) -> None:
        self.samples: dict[str, list[Sample]] = {}  # by set, from the last `score_sets`
        self.scores: dict[str, Scores] = {}  # by validation set, from the last `score_sets`
        # Only these outputs of the task are kept for every row.
        tuned_by = self.task.list_outputs() or () if self.task.tunes else ()
        metric_columns = [name for metric in self.metrics for name in metric.columns]
        self._needed = dict.fromkeys([*COLUMNS, *metric_columns, *tuned_by])
        self._ran_out_of_memory = False  # and the user was warned

    @torch.no_grad()
    def score(self, loader: EvaluationLoader, *, tunes: bool = False) -> Scores:
        """Score each row once.

        Args:
            tunes: the task may choose settings, such as a threshold, by these rows.

        Raises:
            Preempted: on every process, if any was asked to stop before the end.
        """
        seed_everything(self.seed, "evaluate", self.accelerator.process_index)
        loss_sum, logged = zero_sum(self.accelerator.device), LoggedMetrics(self.task.extra_metrics)
        outputs_by_row, num_targets, stopped = RowOutputs(), 0.0, False
        with self._evaluating(), watch_for(self.accelerator, _PREEMPTED) as is_stop_announced:
            for microbatch in self.console.follow(loader, total=len(loader), doing="evaluating"):
                if stopped := self._is_stopping(is_stop_announced):
                    break
                for part, (loss, outputs, parts_of_loss) in self._in_parts(loader, microbatch, self._compute_outputs):
                    loss_sum += loss
                    for name, (value, count) in parts_of_loss.items():
                        logged.add(name, value, count=count)
                    num_targets += part.num_targets
                    outputs_by_row.add(part.rows, outputs if self.task.merges else self._select(outputs))

        sums = [float(loss_sum), num_targets, stopped, *logged.take_numbers()]
        total, targets, any_stopped, *logged_sums = sum_on_hosts(self.accelerator, sums)
        if any_stopped:
            raise Preempted("preempted in the middle of an evaluation")
        outputs = outputs_by_row.gather(loader.num_rows)
        details = {name: outputs.pop(name) for name in list(outputs) if name.startswith(_DETAIL)}
        columns, numbers = self._merge(outputs, loader)
        self._refuse_missing(columns)
        columns = self.task.tune(columns) if tunes else columns
        means = logged.compute_means(logged_sums)
        metrics = compute_metrics(self.metrics, columns, taken=means)
        values = {"loss": total / max(targets, 1), **metrics, **means, "rows": len(numbers)}
        # Later decisions must be the same on every process, also if a metric uses random numbers.
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
        """Score several sets; return their metrics by names such as `matched/accuracy`.

        Args:
            output: writes the predictions of each set.
            tunes: the task may choose settings by the rows of the first set.
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
        """Predict each row of this process's loader; return `[N, ...]` by name of output, in row order.

        If the loader left out some rows, these have NaN, -1 for integers, None for lists, or false for booleans.
        """
        seed_everything(self.seed, "predict", self.accelerator.process_index)
        outputs = RowOutputs()
        with self._evaluating():
            for microbatch in loader:
                for part, part_outputs in self._in_parts(loader, microbatch, self.task.predict):
                    outputs.add(part.rows, part_outputs)  # references of rows without labels are None
        predicted, _ = self._merge(outputs.join(), loader)
        kept = loader.kept
        return predicted if kept is None else {name: kept.spread(output) for name, output in predicted.items()}

    @torch.no_grad()
    def refer(self, loader: EvaluationLoader) -> np.ndarray:
        """Compute the references of the task for each row with the current model, `[N, K]`, on every process."""
        references = RowOutputs()
        with self._evaluating():
            for microbatch in self.console.follow(loader, total=len(loader), doing="computing references"):
                for part, values in self._in_parts(loader, microbatch, self.task.refer):
                    references.add(part.rows, {"values": values.cpu().double()})
        return references.gather(loader.num_rows)["values"]

    def _compute_outputs(
        self, model: nn.Module, batch: Batch
    ) -> tuple[Tensor, dict[str, Any], dict[str, tuple[Tensor, float]]]:
        """Compute the loss, the outputs and the logged metrics of a batch. A failed pass logs nothing."""
        logged = LoggedMetrics(self.task.extra_metrics)
        with self.task.logging_to(logged.add):
            loss, outputs = self.task.loss_and_predict(model, batch)
        return loss, outputs, logged.take()

    def _merge(
        self, columns: dict[str, np.ndarray], loader: EvaluationLoader
    ) -> tuple[dict[str, np.ndarray], Sequence[int]]:
        """Merge the outputs of encoded rows if the task merges them.

        Returns:
            The outputs, and for each the number of its first encoded row.
        """
        if not self.task.merges:
            return columns, range(loader.num_rows)
        if loader.raw is None:
            raise UserError(f"{locate_source(type(self.task).merge)} needs raw rows: let the task declare its columns")
        return merge_outputs(self.task, columns, sources=loader.raw.sources.tolist(), read=loader.raw.read)

    def _select(self, outputs: Mapping[str, Any]) -> dict[str, Any]:
        """Select the outputs to keep for a task that does not merge rows, and add its ratings of each row."""
        self._refuse_missing(outputs)
        ratings = self.task.rate_rows(outputs)
        return {name: outputs[name] for name in self._needed} | {_DETAIL + name: ratings[name] for name in ratings}

    def _refuse_missing(self, outputs: Mapping[str, Any]) -> None:
        if missing := [name for name in self._needed if name not in outputs]:
            method = type(self.task).merge if self.task.merges else type(self.task).predict
            raise UserError(
                f"{locate_source(method)} returns {', '.join(outputs)}; an evaluation needs {', '.join(missing)} too"
            )

    def _in_parts(
        self, loader: EvaluationLoader, microbatch: Microbatch, compute: Callable[[nn.Module, Batch], _Result]
    ) -> Iterator[tuple[Microbatch, _Result]]:
        """Yield results for the whole microbatch, or for its parts: it is halved until it fits into memory."""
        result = None
        try:
            result = compute(self.model, microbatch.batch)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if len(microbatch.rows) == 1:
                raise UserError("evaluation: out of memory with one row a microbatch; lower data.max_length") from error
        if result is not None:
            yield microbatch, result
            return
        # Outside the exception handler, which keeps the memory of the failed pass.
        release_memory()
        if not self._ran_out_of_memory:
            self._ran_out_of_memory = True
            self.console.warn(
                f"evaluation: out of memory with {len(microbatch.rows):,} rows a microbatch: its halves are judged one "
                "after the other; a smaller evaluate.max_tokens saves the attempt"
            )
        for half in loader.halve(microbatch):
            yield from self._in_parts(loader, half, compute)

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        """Prepare the model for evaluation inside the block: no dropout, averaged weights, gathered shards."""
        averaged = nullcontext() if self.averaged_weights is None else self.averaged_weights.in_place()
        with evaluating(self.model), averaged, nullcontext() if self.sharded is None else self.sharded.gathered():
            yield

    def _is_stopping(self, is_stop_announced: Callable[[], bool]) -> bool:
        """Whether to stop an evaluation, in which the processes do not wait for each other, before its end."""
        if self.preemption.requested:
            announce(self.accelerator, _PREEMPTED)
            return True
        return is_stop_announced()
