"""The sides of the benchmark of tasks: each trains one epoch and is scored on held-out rows."""

import json
import tempfile
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import datasets
import torch
import transformers
from torch import Tensor, nn
from transformers import (
    AutoTokenizer,
    DataCollatorForSeq2Seq,
    DataCollatorForTokenClassification,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
)

from benchmarks.fine_tune_sides import Watching
from benchmarks.tasks_rows import MAX_LENGTH, TAGS, TASK_NAMES
from benchmarks.watch import Watch
from trainer_loop import TrainingLoop, build, load_config
from trainer_loop.parallel.processes import choose_precision
from trainer_loop.record.logs import Console
from trainer_loop.tasks.find import load_task

_LEARNING_RATE = 5e-4


@dataclass(frozen=True)
class Work:
    """What a side trains: a name of TASK_NAMES, the folder of `prepare`, and the rows of an update."""

    task: str
    folder: Path
    batch_size: int

    def make_loop(self, run_dir: str) -> TrainingLoop:
        name = TASK_NAMES[self.task]
        words = [
            f"task.name={name}",
            f"model.name={self.folder / 'model'}",
            f"data.train={self.folder / 'train.jsonl'}",
            f"data.validation={self.folder / 'held_out.jsonl'}",
            f"data.max_length={MAX_LENGTH}",
            f"batch.size={self.batch_size}",
            "batch.order=window",  # as Trainer groups rows by length
            "train={epochs: 1}",
            f"optimizer={{name: adamw, lr: {_LEARNING_RATE}, weight_decay: 0.01}}",
            "scheduler={name: linear, warmup: 0.1}",
            "evaluate.every=never",
            "checkpoint.every=never",
            f"run_dir={run_dir}",
        ]
        if self.task == "tags":
            words.append(f"data.label_names={json.dumps(TAGS)}")
        if self.task == "seq2seq":
            words.append("evaluate.generate.max_new_tokens=1")  # the loss alone is compared
        return build(load_config(None, words), console=Console(enabled=False))


class _Counter:
    """Counts what a device computes, padding included."""

    def __init__(self, watch: Watch):
        self.watch = watch
        self.computed = 0

    def see(self, batch: dict[str, Any]) -> None:
        self.watch.see(batch)
        self.computed += batch["input_ids"].numel()


def train_with_ours(work: Work) -> dict[str, Any]:
    watch = Watch()
    counter = _Counter(watch)
    train_step = TrainingLoop.train_step

    def watched(loop: TrainingLoop, step_batch: Any) -> Any:
        watch.begin_step()
        for microbatch in step_batch.microbatches:
            counter.see(microbatch.batch)
        report = train_step(loop, step_batch)
        watch.end_step(loop.bare_model)
        return report

    TrainingLoop.train_step = watched  # type: ignore[method-assign]
    with tempfile.TemporaryDirectory() as run_dir:
        loop = work.make_loop(f"{run_dir}/run")
        loop.fit()
        return _describe(watch, counter, loop)


def train_with_peer(work: Work) -> dict[str, Any]:
    """Trainer on the rows that trainer_loop encodes; SFTTrainer for chat, if it is installed."""
    watch = Watch()
    counter = _Counter(watch)
    with tempfile.TemporaryDirectory() as folder:
        loop: Any = work.make_loop(f"{folder}/run")
        rows = _as_trainer_rows(work.task, loop.data.train.rows)
        trainer = _make_trainer(work, rows, folder)
        collate = trainer.data_collator

        def seen(features: list[dict[str, Any]]) -> dict[str, Tensor]:
            batch = collate(features)
            counter.see(batch)
            return batch  # type: ignore[no-any-return]

        trainer.data_collator = seen
        trainer.add_callback(Watching(watch))
        trainer.train()
        loop.bare_model.load_state_dict(trainer.model.state_dict())
        return _describe(watch, counter, loop)


def _describe(watch: Watch, counter: _Counter, loop: TrainingLoop) -> dict[str, Any]:
    (held_out,) = loop.data.validation.values()
    loss = loop.evaluate(held_out)["loss"]
    return watch.outcome() | {"padding": 1 - watch.tokens / counter.computed, "loss": loss}


def _as_trainer_rows(task: str, rows: datasets.Dataset) -> datasets.Dataset:
    """The columns that the model of transformers takes."""
    names = {"spans": {"start": "start_positions", "end": "end_positions"}}.get(task, {"labels": "labels"})
    kept = {name: name for name in ("input_ids", "token_type_ids") if name in rows.column_names} | names
    made = rows.select_columns(list(kept)).rename_columns({old: new for old, new in kept.items() if old != new})
    return made.map(lambda row: {"attention_mask": [1] * len(row["input_ids"])})


def _make_trainer(work: Work, rows: datasets.Dataset, folder: str) -> Trainer:
    tokenizer = AutoTokenizer.from_pretrained(work.folder / "model")
    auto = getattr(transformers, str(load_task(TASK_NAMES[work.task]).auto_model))
    model: nn.Module = auto.from_pretrained(work.folder / "model", dtype=torch.float32)
    collators: dict[str, Any] = {
        "tags": DataCollatorForTokenClassification(tokenizer),
        "spans": DataCollatorWithPadding(tokenizer),
        "seq2seq": DataCollatorForSeq2Seq(tokenizer, model=model),
        "chat": DataCollatorForSeq2Seq(tokenizer),
    }
    settings: dict[str, Any] = {
        "output_dir": folder,
        "num_train_epochs": 1,
        "per_device_train_batch_size": work.batch_size,
        "learning_rate": _LEARNING_RATE,
        "weight_decay": 0.01,
        "warmup_steps": 0.1,  # below 1, a share of all steps
        "bf16": choose_precision("auto") == "bf16",
        "train_sampling_strategy": "group_by_length",
        "logging_steps": 10,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "use_cpu": not torch.accelerator.is_available(),
        "remove_unused_columns": False,
    }
    if work.task == "chat" and find_spec("trl") is not None:
        return _make_sft_trainer(settings, model, rows, tokenizer, collators["chat"])
    arguments = TrainingArguments(**settings)
    return Trainer(
        model=model,
        args=arguments,
        train_dataset=rows,
        data_collator=collators[work.task],
        processing_class=tokenizer,
    )


def _make_sft_trainer(
    settings: dict[str, Any], model: nn.Module, rows: datasets.Dataset, tokenizer: Any, collate: Any
) -> Trainer:
    from trl import SFTConfig, SFTTrainer

    arguments = SFTConfig(**settings, max_length=None, gradient_checkpointing=False)
    return SFTTrainer(  # type: ignore[no-any-return]
        model=model, args=arguments, train_dataset=rows, data_collator=collate, processing_class=tokenizer
    )
