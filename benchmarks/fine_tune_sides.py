"""The sides of fine_tune: each trains one epoch and returns its model."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    TrainerCallback,
    get_linear_schedule_with_warmup,
)

from benchmarks.our_run import imdb_words
from benchmarks.peer_trainer import make_trainer, tokenise
from benchmarks.watch import Watch


@dataclass(frozen=True)
class Wanted:
    """The work of a side.

    Attributes:
        attention_dropout: whether the model keeps its own attention dropout.
        precision: the value of `auto` on this machine.
    """

    model: str
    train: str
    held_out: str
    folder: str
    max_length: int
    batch_size: int
    attention_dropout: bool
    precision: str

    @property
    def attention_dropout_of_model(self) -> float:
        """Attention dropout in the config of the model."""
        config = json.loads((Path(self.model) / "config.json").read_text(encoding="utf-8"))
        return float(config["attention_probs_dropout_prob"])

    @property
    def overrides(self) -> dict[str, float]:
        """Fields of the model config that the config of trainer_loop sets."""
        return {} if self.attention_dropout else {"attention_probs_dropout_prob": 0.0}

    def our_words(self) -> list[str]:
        return imdb_words(
            model=self.model,
            train=self.train,
            held_out=self.held_out,
            folder=self.folder,
            max_length=self.max_length,
            batch_size=self.batch_size,
            attention_dropout=self.attention_dropout_of_model if self.attention_dropout else None,
        )


class _Reached(Exception):
    """Raised when the target is reached in the middle of the run."""


def train_with_ours(wanted: Wanted, watch: Watch) -> nn.Module:
    """Train with the command, and the watch around each step."""
    from trainer_loop import TrainingLoop
    from trainer_loop.cli.run import main

    train_step = TrainingLoop.train_step
    loops: list[TrainingLoop] = []

    def watched(loop: TrainingLoop, step_batch: Any) -> Any:
        loops[:] = [loop]
        watch.begin_step()
        for microbatch in step_batch.microbatches:
            watch.see(microbatch.batch)
        report = train_step(loop, step_batch)
        if watch.end_step(loop.bare_model):
            raise _Reached
        return report

    TrainingLoop.train_step = watched
    try:
        code = main(wanted.our_words())
        assert code == 0, f"the command ended with exit code {code}"
    except _Reached:
        pass
    return loops[0].bare_model


def train_bare(wanted: Wanted, watch: Watch) -> nn.Module:
    """Train with a loop written by hand; only the cut into microbatches comes from trainer_loop's plan."""
    from trainer_loop import build, load_config
    from trainer_loop.config.load import split_arguments

    name, overrides, _ = split_arguments(wanted.our_words())
    loader: Any = build(load_config(name, overrides)).data.train
    steps = [loader.plan.step(step).microbatches[0] for step in range(loader.plan.steps_per_epoch)]

    tokenizer = AutoTokenizer.from_pretrained(wanted.model)
    rows = tokenise(wanted.train, tokenizer, wanted.max_length)
    collate = DataCollatorWithPadding(tokenizer)
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
    assert device is not None
    model = AutoModelForSequenceClassification.from_pretrained(wanted.model, dtype=torch.float32, **wanted.overrides)
    model.to(device).train()
    groups = [
        {"params": [weight for weight in model.parameters() if weight.ndim >= 2], "weight_decay": 0.01},
        {"params": [weight for weight in model.parameters() if weight.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=5e-5, fused=True)
    schedule = get_linear_schedule_with_warmup(optimizer, -(-len(steps) // 10), len(steps))
    batches = iter(DataLoader(rows, batch_sampler=[part for step in steps for part in step], collate_fn=collate))
    assert wanted.precision in ("no", "bf16"), "fp16 would need a loss scaler"
    torch.manual_seed(0)
    for parts in steps:
        watch.begin_step()
        num_rows = sum(len(part) for part in parts)
        for _ in parts:
            batch = {name: tensor.to(device) for name, tensor in next(batches).items()}
            watch.see(batch)
            labels = batch.pop("labels")
            with torch.autocast(device.type, dtype=torch.bfloat16, enabled=wanted.precision == "bf16"):
                logits = model(**batch).logits
            loss = nn.functional.cross_entropy(logits.float(), labels, reduction="sum") / num_rows
            loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        watch.end_step(model)
    return model


def train_as_tutorial(wanted: Wanted, watch: Watch) -> nn.Module:
    return _train_with_trainer(wanted, watch, precision="no", group_by_length=False, overrides={})


def train_with_best_trainer(wanted: Wanted, watch: Watch) -> nn.Module:
    return _train_with_trainer(
        wanted, watch, precision=wanted.precision, group_by_length=True, overrides=wanted.overrides
    )


def _train_with_trainer(
    wanted: Wanted, watch: Watch, *, precision: str, group_by_length: bool, overrides: dict[str, float]
) -> nn.Module:
    trainer = make_trainer(
        model=wanted.model,
        train=wanted.train,
        held_out=None,
        folder=wanted.folder,
        max_length=wanted.max_length,
        batch_size=wanted.batch_size,
        precision=precision,
        group_by_length=group_by_length,
        overrides=overrides,
    )
    collate = trainer.data_collator

    def seen(features: list[dict[str, Any]]) -> dict[str, Tensor]:
        batch = collate(features)
        watch.see(batch)
        return batch

    trainer.data_collator = seen
    trainer.add_callback(Watching(watch))
    trainer.train()
    return trainer.model


class Watching(TrainerCallback):
    """A callback that puts the watch around each step."""

    def __init__(self, watch: Watch):
        self.watch = watch

    def on_step_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        self.watch.begin_step()

    def on_step_end(self, args: Any, state: Any, control: Any, *, model: nn.Module, **given: Any) -> None:
        if self.watch.end_step(model):
            control.should_training_stop = True
