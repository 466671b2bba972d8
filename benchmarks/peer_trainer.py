"""A plain script with transformers.Trainer, like in a tutorial; the other benchmarks use its Trainer.

It imports nothing of this project, so that it starts like a user's own script.
"""

import argparse
import time
from collections.abc import Callable, Mapping
from typing import Any

import datasets
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, Trainer, TrainingArguments


def make_trainer(
    *,
    model: str,
    train: str | None,
    held_out: str | None,
    folder: str,
    max_length: int,
    batch_size: int = 32,
    evaluation_batch_size: int = 8,
    precision: str = "no",
    group_by_length: bool = False,
    overrides: Mapping[str, Any] | None = None,
    epochs: float = 1,
    max_steps: int = -1,
    logging_steps: int = 10,
    compute_metrics: Callable[[Any], dict[str, float]] | None = None,
) -> Trainer:
    """A Trainer over parquet files with `text` and `label`; learning rate and schedule are those of configs/imdb.yaml.

    Args:
        precision: no, bf16 or fp16.
        overrides: fields of the model config.
        folder: folder for the files of the Trainer.
    """
    tokenizer = AutoTokenizer.from_pretrained(model)
    rows = {
        name: tokenise(path, tokenizer, max_length) for name, path in (("train", train), ("eval", held_out)) if path
    }
    arguments = TrainingArguments(
        output_dir=folder,
        num_train_epochs=epochs,
        max_steps=max_steps,
        per_device_train_batch_size=batch_size,
        per_device_eval_batch_size=evaluation_batch_size,
        learning_rate=5e-5,
        weight_decay=0.01,
        warmup_steps=0.1,  # below 1, a share of all steps
        bf16=precision == "bf16",
        fp16=precision == "fp16",
        train_sampling_strategy="group_by_length" if group_by_length else "random",
        logging_steps=logging_steps,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        use_cpu=not torch.accelerator.is_available(),
    )
    return Trainer(
        model=AutoModelForSequenceClassification.from_pretrained(model, dtype=torch.float32, **(overrides or {})),
        args=arguments,
        train_dataset=rows.get("train"),
        eval_dataset=rows.get("eval"),
        processing_class=tokenizer,
        compute_metrics=compute_metrics,
    )


def tokenise(path: str, tokenizer: Any, max_length: int) -> datasets.Dataset:
    """The rows of a parquet file as input of the model, kept in the cache of `datasets`."""
    rows = datasets.load_dataset("parquet", data_files=path, split="train")
    began = time.perf_counter()
    encoded = rows.map(
        lambda batch: tokenizer(batch["text"], truncation=True, max_length=max_length),
        batched=True,
        remove_columns=["text"],
    )
    print(f"{len(encoded)} rows tokenised in {time.perf_counter() - began:.2f} s", flush=True)
    return encoded


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("--model", "--train", "--folder"):
        parser.add_argument(name, required=True)
    parser.add_argument("--max-length", type=int, default=512)
    parser.add_argument("--max-steps", type=int, default=-1)
    parser.add_argument("--batch-size", type=int, default=32)
    given = parser.parse_args()
    trainer = make_trainer(
        model=given.model,
        train=given.train,
        held_out=None,
        folder=given.folder,
        max_length=given.max_length,
        batch_size=given.batch_size,
        max_steps=given.max_steps,
        logging_steps=1,
    )
    trainer.train()


if __name__ == "__main__":
    main()
