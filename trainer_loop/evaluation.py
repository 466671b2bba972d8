"""Judging a model on rows that it does not learn from: each row once, on any number of processes."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from trainer_loop.data.loader import EvaluationLoader
from trainer_loop.errors import Preempted
from trainer_loop.metrics.named_metric import NamedMetric, compute_metrics
from trainer_loop.optim.ema import Ema
from trainer_loop.optim.schedule_free import ScheduleFreeAverages
from trainer_loop.record.logs import Console
from trainer_loop.runtime.distributed import announce, broadcast, gather_rows, sum_on_hosts, watch_for
from trainer_loop.runtime.preempt import Preemption
from trainer_loop.runtime.randomness import seed_everything
from trainer_loop.tasks.task import Task

_PREEMPTED = "preempted"  # the notice that tells the other processes in the middle of an evaluation


@dataclass(frozen=True)
class Scores:
    """How the rows of a set were judged, in their order."""

    figures: dict[str, float]  # the mean loss, the metrics, and the number of rows
    predictions: np.ndarray  # [N, ...]
    references: np.ndarray  # [N, ...]


class Evaluator:
    """Scores sets of rows and predicts them; every process of a run has one.

    model: not wrapped for data parallelism, for the processes have unlike numbers of batches. averages: of its
    weights, which are judged in their place.
    """

    def __init__(
        self,
        *,
        accelerator: Accelerator,
        task: Task,
        model: nn.Module,
        metrics: Sequence[NamedMetric],
        averages: Ema | ScheduleFreeAverages | None,
        seed: int,
        console: Console,
        preemption: Preemption,
    ):
        self.accelerator = accelerator
        self.task = task
        self.model = model
        self.metrics = metrics
        self.averages = averages
        self.seed = seed
        self.console = console
        self.preemption = preemption

    @torch.no_grad()
    def score(self, loader: EvaluationLoader) -> Scores:
        """Judge each row once. Raises Preempted on every process where one was asked to stop before it was through."""
        seed_everything(self.seed, "evaluate", self.accelerator.process_index)
        loss_sum = zero_sum(self.accelerator.device)
        rows: list[int] = []
        judged: dict[str, list[Tensor]] = {"predictions": [], "references": []}
        num_targets = 0
        stopped = False
        with self._evaluating(), watch_for(self.accelerator, _PREEMPTED) as is_told_to_stop:
            for microbatch in self.console.follow(loader, doing="evaluating"):
                if stopped := self._is_stopping(is_told_to_stop):
                    break
                loss, outputs = self.task.loss_and_predict(self.model, microbatch.batch)
                loss_sum += loss
                num_targets += microbatch.num_targets
                rows += microbatch.rows
                for name, tensors in judged.items():
                    tensors.append(outputs[name])

        total, targets, any_stopped = sum_on_hosts(self.accelerator, [float(loss_sum), num_targets, stopped])
        if any_stopped:
            raise Preempted("preempted in the middle of an evaluation")
        columns = {name: gather_rows(self.accelerator, tensors) for name, tensors in judged.items()}
        order = np.argsort(gather_rows(self.accelerator, [torch.tensor(rows, dtype=torch.int64)]), kind="stable")
        assert len(order) == loader.num_rows, f"{len(order)} rows were scored of {loader.num_rows}"
        values: dict[str, float] = {"loss": total / max(targets, 1)}
        predictions, references = columns["predictions"][order], columns["references"][order]
        values |= compute_metrics(self.metrics, predictions=predictions, references=references)
        # What follows from them must follow on every process, also where a metric draws at random.
        figures = broadcast(self.accelerator, values | {"rows": len(order)})
        return Scores(figures, predictions, references)

    @torch.no_grad()
    def predict(self, loader: EvaluationLoader) -> dict[str, np.ndarray]:
        """What the task predicts of each row of this process's loader, in their order: `[N, ...]` by name of output."""
        seed_everything(self.seed, "predict", self.accelerator.process_index)
        numbers: list[int] = []
        columns: dict[str, list[Tensor]] = {}
        with self._evaluating():
            for microbatch in loader:
                numbers += microbatch.rows
                outputs: Mapping[str, Tensor | None] = self.task.predict(self.model, microbatch.batch)
                for name, output in outputs.items():
                    if output is None:  # references of rows without labels
                        continue
                    columns.setdefault(name, []).append(output.cpu())
        order = np.argsort(numbers, kind="stable")
        return {name: torch.cat(outputs).numpy()[order] for name, outputs in columns.items()}

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        """The model as it is judged: without dropout, and with the averages for its weights where there are any."""
        self.model.eval()
        with nullcontext() if self.averages is None else self.averages.in_place():
            yield
        self.model.train()

    def _is_stopping(self, is_told_to_stop: Callable[[], bool]) -> bool:
        """Whether to stop in the middle of what the processes do each for itself, without waiting for another."""
        if self.preemption.requested:
            announce(self.accelerator, _PREEMPTED)
            return True
        return is_told_to_stop()


def zero_sum(device: torch.device) -> Tensor:
    """Zero, `[]`, to which the losses of many microbatches can be added."""
    return torch.zeros((), dtype=torch.float32 if device.type == "mps" else torch.float64, device=device)
