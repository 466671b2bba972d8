"""The training loop of this project made from plain parts, without a config."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler

from trainer_loop import TrainingLoop
from trainer_loop.data.batch_plan import BatchPlan
from trainer_loop.data.loader import TrainLoader
from trainer_loop.data.run_data import RunData
from trainer_loop.engine import Engine
from trainer_loop.evaluation import Evaluator
from trainer_loop.options import LoopOptions
from trainer_loop.parallel.processes import make_accelerator
from trainer_loop.record.checkpoint import Checkpointer
from trainer_loop.record.logs import Console, MetricLog
from trainer_loop.record.recorder import Recorder
from trainer_loop.record.run_dir import RunDir
from trainer_loop.record.run_output import RunOutput
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
    """A loop over one epoch of `plan` that writes into `folder`. All processes of a group must call this."""
    accelerator = make_accelerator(precision="no")
    run_dir = RunDir(folder)
    prepared: Any = accelerator.prepare(model, optimizer)
    engine = Engine(
        accelerator=accelerator, model=prepared[0], optimizer=prepared[1], scheduler=schedule, seed=plan.seed
    )
    train = TrainLoader(
        plan,
        rows,
        collate=task.collate,
        count=task.count,
        device=accelerator.device,
        process_index=accelerator.process_index,
    )
    return TrainingLoop(
        task=task,
        engine=engine,
        data=RunData(train),
        evaluator=Evaluator(
            accelerator=accelerator,
            task=task,
            model=engine.bare_model,
            metrics=(),
            averaged_weights=None,
            seed=plan.seed,
            console=console,
            preemption=engine.preemption,
        ),
        checkpointer=Checkpointer(run_dir, accelerator=accelerator, scheduler=schedule, console=console, run_facts={}),
        record=Recorder(accelerator=accelerator, console=console, metric_log=MetricLog(run_dir.metrics)),
        output=RunOutput(),
        options=LoopOptions(num_steps=plan.steps_per_epoch, max_grad_norm=max_grad_norm, log_every=log_every),
    )
