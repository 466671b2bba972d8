"""The loop of this project over the tiny classifier, with everything on that a real run has on."""

from pathlib import Path
from typing import Any

from torch import Tensor, nn

from benchmarks import tiny_classifier as tiny
from trainer_loop.data.batch_plan import BatchPlan
from trainer_loop.data.loader import TrainLoader
from trainer_loop.loop import TrainingLoop
from trainer_loop.record.checkpoint import Checkpointer
from trainer_loop.record.logs import Console, MetricLog
from trainer_loop.record.run_dir import RunDir
from trainer_loop.runtime.distributed import make_accelerator
from trainer_loop.tasks.losses import cross_entropy
from trainer_loop.tasks.task import Batch


class TinyTask:
    """See trainer_loop.tasks.task.Task; a row is one target."""

    def __init__(self, collate: tiny.Collate):
        self.collate = collate

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
    accelerator = make_accelerator(precision="no")
    run_dir = RunDir(folder)
    task = TinyTask(collate)
    model = tiny.TinyClassifier()
    raw_optimizer = tiny.make_optimizer(model)
    schedule = tiny.make_schedule(raw_optimizer, plan.steps_per_epoch)
    prepared: Any = accelerator.prepare(model, raw_optimizer)
    console = Console()
    return TrainingLoop(
        accelerator=accelerator,
        task=task,
        model=prepared[0],
        optimizer=prepared[1],
        scheduler=schedule,
        train_loader=TrainLoader(plan, rows, collate=collate, count=task.count, device=accelerator.device),
        num_steps=plan.steps_per_epoch,
        seed=plan.seed,
        checkpointer=Checkpointer(run_dir, accelerator=accelerator, scheduler=schedule, console=console, plan={}),
        console=console,
        metric_log=MetricLog(run_dir.metrics),
        max_grad_norm=tiny.MAX_NORM,
        log_every=log_every,
    )
