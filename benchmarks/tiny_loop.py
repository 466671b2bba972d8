"""The loop of this project over the tiny classifier, with everything that a real run uses."""

from pathlib import Path

from torch import Tensor, nn

from benchmarks import tiny_classifier as tiny
from benchmarks.plain_loop import make_plain_loop
from trainer_loop import TrainingLoop
from trainer_loop.data.batch_plan import BatchPlan
from trainer_loop.record.logs import Console
from trainer_loop.tasks.losses import cross_entropy
from trainer_loop.tasks.task import Batch, Task


class TinyTask(Task):
    """A task whose rows are one target each."""

    def __init__(self, collate: tiny.Collate):
        self._collate = collate

    def collate(self, rows: list[tiny.Row]) -> Batch:
        return self._collate(rows)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        return cross_entropy(model(batch["features"]).logits, batch["labels"])

    def count(self, batch: Batch) -> int:
        return len(batch["labels"])

    def predict(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        return {"predictions": model(batch["features"]).logits.argmax(dim=-1), "references": batch["labels"]}

    def loss_and_predict(self, model: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        return self.loss(model, batch), self.predict(model, batch)


def make_loop(
    folder: Path, rows: list[tiny.Row], plan: BatchPlan, collate: tiny.Collate, *, log_every: int
) -> TrainingLoop:
    """A loop over one epoch of `plan`."""
    model = tiny.TinyClassifier()
    optimizer = tiny.make_optimizer(model)
    return make_plain_loop(
        folder,
        task=TinyTask(collate),
        model=model,
        optimizer=optimizer,
        schedule=tiny.make_schedule(optimizer, plan.steps_per_epoch),
        rows=rows,
        plan=plan,
        console=Console(),
        max_grad_norm=tiny.MAX_NORM,
        log_every=log_every,
    )
