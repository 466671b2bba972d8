"""What a loop costs over a bare PyTorch loop, in milliseconds per step: a tiny model, one thread, one process.

    python -m benchmarks.loop_overhead

All sides train the same model on the same batches in the same order, with the same fused AdamW, linear schedule and
clipping of the gradient norm. Each side runs in a process of its own, and all must end at the same loss. The bare loop,
Fabric and accelerate do nothing else; the others log the loss every 10 steps. trainer_loop also computes its metrics
and keeps its exact data state.
"""

import importlib.util
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader

from benchmarks import tiny_classifier as tiny
from benchmarks.arguments import add_size, make_parser
from benchmarks.fresh_process import call
from benchmarks.measure import compare, publish, take_turns
from benchmarks.same_work import find_differences, tell_differences
from trainer_loop.data.batch_plan import BatchPlan

_TOLERANCE = 1e-3  # of the final loss; the order of some sums differs
_SEED = 7
_LOG_EVERY = 10
_WARM = 0.1  # share of the steps that is not timed

Rows = list[tiny.Row]


def main(argv: list[str] | None = None) -> int:
    parser = make_parser(__doc__, rounds=7)
    add_size(parser, "--steps", 2000, "updates of every side")
    add_size(parser, "--batch-size", 8, "rows of an update")
    options = parser.parse_args(argv)
    sides = {name: side for name, side in SIDES.items() if _is_installed(name)}
    outcomes = take_turns(
        {name: lambda name=name: _call(name, options.steps, options.batch_size) for name in sides},
        rounds=options.rounds,
    )
    if differences := find_differences(outcomes, equal=["updates", "rows"], close={"loss": _TOLERANCE}):
        tell_differences(differences)
        return 1
    figures = {name: [1000 * result["seconds"] for result in results] for name, results in outcomes.items()}
    over = {
        name: [mine - bare for mine, bare in zip(values, figures["bare PyTorch"], strict=True)]
        for name, values in figures.items()
        if name != "bare PyTorch"
    }
    comparisons = [
        compare("a step", "milliseconds", figures, base="bare PyTorch"),
        compare("a step, over bare PyTorch", "milliseconds", over, notes=_missing()),
    ]
    settings = {"steps": options.steps, "batch_size": options.batch_size, "rounds": options.rounds, "threads": 1}
    publish("loop_overhead", comparisons, settings=settings, folder=options.results)
    return 0


def run_side(*, side: str, steps: int, batch_size: int) -> dict[str, Any]:
    """Train on one side; returns seconds per step, and the values that must be the same on all sides."""
    rows = tiny.make_rows(steps * batch_size)
    plan = _plan(len(rows), batch_size)
    order = [row for step in range(steps) for row in plan.batch(step).tolist()]
    collate = tiny.Collate()
    model = SIDES[side]([rows[row] for row in order], collate, batch_size)
    warm = int(_WARM * steps)
    return {
        "seconds": (collate.times[-1] - collate.times[warm]) / (steps - 1 - warm),
        "updates": len(collate.times),
        "rows": hash(tuple(collate.rows)),
        "loss": tiny.score(model, rows),
    }


# ---------------------------------------------------------------------------------------------- the sides, one by one


def _train_bare(rows: Rows, collate: tiny.Collate, batch_size: int) -> nn.Module:
    model = tiny.TinyClassifier()
    optimizer = tiny.make_optimizer(model)
    loader: DataLoader[Any] = DataLoader(rows, batch_size=batch_size, collate_fn=collate)
    schedule = tiny.make_schedule(optimizer, len(loader))
    model.train()
    for batch in loader:
        loss = tiny.mean_loss(model(batch["features"]), batch["labels"])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), tiny.MAX_NORM)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    return model


def _train_with_fabric(rows: Rows, collate: tiny.Collate, batch_size: int) -> nn.Module:
    from lightning.fabric import Fabric

    fabric = Fabric(accelerator="cpu", devices=1)
    fabric.launch()
    bare = tiny.TinyClassifier()
    model, optimizer = fabric.setup(bare, tiny.make_optimizer(bare))
    loader = fabric.setup_dataloaders(DataLoader(rows, batch_size=batch_size, collate_fn=collate))
    schedule = tiny.make_schedule(optimizer, len(loader))
    model.train()
    for batch in loader:
        loss = tiny.mean_loss(model(batch["features"]), batch["labels"])
        fabric.backward(loss)
        fabric.clip_gradients(model, optimizer, max_norm=tiny.MAX_NORM, error_if_nonfinite=False)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    return bare


def _train_with_accelerate(rows: Rows, collate: tiny.Collate, batch_size: int) -> nn.Module:
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    bare = tiny.TinyClassifier()
    raw_optimizer = tiny.make_optimizer(bare)
    loader: DataLoader[Any] = DataLoader(rows, batch_size=batch_size, collate_fn=collate)
    model, optimizer, loader, schedule = accelerator.prepare(
        bare, raw_optimizer, loader, tiny.make_schedule(raw_optimizer, len(loader))
    )
    model.train()
    for batch in loader:
        loss = tiny.mean_loss(model(batch["features"]), batch["labels"])
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(model.parameters(), tiny.MAX_NORM)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    return bare


def _train_with_lightning(rows: Rows, collate: tiny.Collate, batch_size: int) -> nn.Module:
    import lightning
    from lightning.pytorch.loggers import CSVLogger

    loader: DataLoader[Any] = DataLoader(rows, batch_size=batch_size, collate_fn=collate)

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = tiny.TinyClassifier()

        def training_step(self, batch: dict[str, torch.Tensor], index: int) -> torch.Tensor:
            loss = tiny.mean_loss(self.model(batch["features"]), batch["labels"])
            self.log("loss", loss)
            return loss

        def configure_optimizers(self) -> Any:
            optimizer = tiny.make_optimizer(self.model)
            schedule = tiny.make_schedule(optimizer, len(loader))
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    module = Module()
    with tempfile.TemporaryDirectory() as directory:
        lightning.Trainer(
            accelerator="cpu",
            devices=1,
            max_epochs=1,
            gradient_clip_val=tiny.MAX_NORM,
            log_every_n_steps=_LOG_EVERY,
            logger=CSVLogger(directory),
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        ).fit(module, loader)
    return module.model


def _train_with_pytorch_accelerated(rows: Rows, collate: tiny.Collate, batch_size: int) -> nn.Module:
    from pytorch_accelerated import Trainer
    from pytorch_accelerated.callbacks import TerminateOnNaNCallback

    class InOrder(Trainer):
        def calculate_train_batch_loss(self, batch: dict[str, torch.Tensor]) -> dict[str, Any]:
            output = self.model(batch["features"])
            loss = self.loss_func(output, batch["labels"])
            return {"loss": loss, "model_outputs": output, "batch_size": len(batch["labels"])}

        def _clip_gradients(self) -> None:  # by norm as on the other sides; its default clips values
            self._accelerator.clip_grad_norm_(self.model.parameters(), tiny.MAX_NORM)

    model = tiny.TinyClassifier()
    steps = len(rows) // batch_size
    InOrder(model, tiny.mean_loss, tiny.make_optimizer(model), callbacks=(TerminateOnNaNCallback,)).train(
        rows,
        num_epochs=1,
        per_device_batch_size=batch_size,
        gradient_clip_value=tiny.MAX_NORM,
        create_scheduler_fn=lambda optimizer: tiny.make_schedule(optimizer, steps),
        train_dataloader_kwargs={"shuffle": False, "num_workers": 0},
        collate_fn=collate,
    )
    return model


def _train_with_trainer(rows: Rows, collate: tiny.Collate, batch_size: int) -> nn.Module:
    from transformers import Trainer, TrainingArguments

    class WithOurLoss(Trainer):
        def compute_loss(self, model: nn.Module, inputs: dict[str, torch.Tensor], **options: Any) -> torch.Tensor:
            return tiny.mean_loss(model(inputs["features"]), inputs["labels"])

    model = tiny.TinyClassifier()
    with tempfile.TemporaryDirectory() as directory:
        arguments = TrainingArguments(
            output_dir=directory,
            num_train_epochs=1,
            per_device_train_batch_size=batch_size,
            train_sampling_strategy="sequential",
            learning_rate=tiny.LR,
            weight_decay=0.01,
            max_grad_norm=tiny.MAX_NORM,
            logging_steps=_LOG_EVERY,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            use_cpu=True,
            remove_unused_columns=False,
        )
        optimizer = tiny.make_optimizer(model)
        schedule = tiny.make_schedule(optimizer, len(rows) // batch_size)
        WithOurLoss(
            model=model,
            args=arguments,
            train_dataset=rows,
            data_collator=collate,
            optimizers=(optimizer, schedule),
        ).train()
    return model


def _train_with_ours(rows: Rows, collate: tiny.Collate, batch_size: int) -> nn.Module:
    from benchmarks.tiny_loop import make_loop

    with tempfile.TemporaryDirectory() as directory:
        plan = _plan(len(rows), batch_size)
        by_number = sorted(rows, key=lambda row: row["row"])  # the loop has a plan, which shuffles
        loop = make_loop(Path(directory), by_number, plan, collate, log_every=_LOG_EVERY)
        loop.fit()
        return loop.bare_model


SIDES: dict[str, Callable[[Rows, tiny.Collate, int], nn.Module]] = {
    "bare PyTorch": _train_bare,
    "trainer_loop": _train_with_ours,
    "Fabric": _train_with_fabric,
    "accelerate": _train_with_accelerate,
    "Lightning Trainer": _train_with_lightning,
    "pytorch-accelerated": _train_with_pytorch_accelerated,
    "transformers.Trainer": _train_with_trainer,
}


def _plan(num_rows: int, batch_size: int) -> BatchPlan:
    return BatchPlan([1] * num_rows, batch_size=batch_size, seed=_SEED)


_PACKAGES = {"Fabric": "lightning", "Lightning Trainer": "lightning", "pytorch-accelerated": "pytorch_accelerated"}


def _is_installed(side: str) -> bool:
    return side not in _PACKAGES or importlib.util.find_spec(_PACKAGES[side]) is not None


def _missing() -> list[str]:
    return [f"{side} is left out: {_PACKAGES[side]} is not installed" for side in SIDES if not _is_installed(side)]


def _call(side: str, steps: int, batch_size: int) -> dict[str, Any]:
    arguments = {"side": side, "steps": steps, "batch_size": batch_size}
    one_thread = {"OMP_NUM_THREADS": "1"}
    return call(f"{__spec__.name}:run_side", arguments, environment=one_thread)


if __name__ == "__main__":
    sys.exit(main())
