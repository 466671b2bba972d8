"""The loop of this project put together from plain parts, without a config."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler

from trainer_loop import TrainingLoop
from trainer_loop.data.batch_plan import BatchPlan
from trainer_loop.data.loader import TrainLoader
from trainer_loop.parallel.processes import make_accelerator
from trainer_loop.record.checkpoint import Checkpointer
from trainer_loop.record.logs import Console, MetricLog
from trainer_loop.record.run_dir import RunDir
from trainer_loop.tasks.task import Task


def make_plain_loop(
    folder: Path,
    *,
    task: Task,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    schedule: LRScheduler,
    rows: Sequence[dict[str, Any]],
    plan: BatchPlan,
    console: Console,
    max_grad_norm: float | None,
    log_every: int,
) -> TrainingLoop:
    """A loop over one epoch of `plan`, which writes into `folder`. Called by every process of a group."""
    accelerator = make_accelerator(precision="no")
    run_dir = RunDir(folder)
    prepared: Any = accelerator.prepare(model, optimizer)
    return TrainingLoop(
        accelerator=accelerator,
        task=task,
        model=prepared[0],
        optimizer=prepared[1],
        scheduler=schedule,
        train_loader=TrainLoader(
            plan,
            rows,
            collate=task.collate,
            count=task.count,
            device=accelerator.device,
            process_index=accelerator.process_index,
        ),
        num_steps=plan.steps_per_epoch,
        seed=plan.seed,
        checkpointer=Checkpointer(run_dir, accelerator=accelerator, scheduler=schedule, console=console, plan={}),
        console=console,
        metric_log=MetricLog(run_dir.metrics),
        max_grad_norm=max_grad_norm,
        log_every=log_every,
    )
