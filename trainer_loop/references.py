"""What a task wants to know of its rows from the model as it is before the first update, computed once and kept."""

import hashlib
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import datasets
import numpy as np
import torch
from accelerate import Accelerator
from torch import nn

from trainer_loop.data.fingerprint import digest
from trainer_loop.data.loader import EvaluationLoader
from trainer_loop.data.row_cache import load_or_make, load_rows
from trainer_loop.data.tokens import TokenisedSplit
from trainer_loop.data.wording import plural
from trainer_loop.parallel.processes import gather_columns, sum_on_hosts
from trainer_loop.runtime.host import expand_home
from trainer_loop.tasks.task import Task

COLUMN = "reference"
_READ_ROWS = 1000  # at a time


def add_references(
    splits: Mapping[str, TokenisedSplit],
    task: Task,
    model: nn.Module,
    accelerator: Accelerator,
    *,
    make_loader: Callable[[TokenisedSplit], EvaluationLoader],
    cache_dir: str | Path | None,
    say: Callable[[str], None],
) -> dict[str, TokenisedSplit]:
    """The splits with a column `reference`, what `task.refer` returns for each row.

    Values are kept under a key of the weights, the encoded rows and the precision, so that a resumed run reads the same
    numbers. All processes call it, with the model as it is before the first update.
    """
    weights = _digest_weights(model)
    cache = expand_home(
        cache_dir or os.environ.get("TRAINER_LOOP_CACHE") or "~/.cache/trainer_loop", place="data.cache_dir"
    )
    found = {}
    for name, split in splits.items():
        parts = (weights, _digest_rows(split.rows), str(accelerator.mixed_precision), repr(task.settings()))
        folder = cache / f"reference-{digest(*(part.encode() for part in parts))}"
        kept = load_rows(folder)
        (missing,) = sum_on_hosts(accelerator, [kept is None])
        if missing or kept is None:
            say(f"{name}: computing what the model before the first update answers to {plural(len(split.rows), 'row')}")
            values = _refer(task, model, accelerator, make_loader(split))
            kept = load_or_make(folder, partial(_write, values))
        found[name] = replace(split, rows=datasets.concatenate_datasets([split.rows, kept], axis=1))
    return found


@torch.no_grad()
def _refer(task: Task, model: nn.Module, accelerator: Accelerator, loader: EvaluationLoader) -> np.ndarray:
    """`[N, K]` of all rows, on every process."""
    was_training = model.training
    model.eval()
    columns: dict[str, list[torch.Tensor]] = {}
    for microbatch in loader:
        columns.setdefault("numbers", []).append(torch.tensor(microbatch.rows))
        columns.setdefault("values", []).append(task.refer(model, microbatch.batch).double())
    model.train(was_training)
    gathered = gather_columns(accelerator, columns)
    values: np.ndarray = gathered["values"][np.argsort(gathered["numbers"], kind="stable")]
    assert len(values) == loader.num_rows, f"{len(values)} of {loader.num_rows} rows have a reference"
    return values


def _write(values: np.ndarray, path: str) -> None:
    features = datasets.Features({COLUMN: datasets.List(datasets.Value("float64"))})
    with datasets.arrow_writer.ArrowWriter(features=features, path=path) as writer:
        for row in values.tolist():
            writer.write({COLUMN: row})
        writer.finalize()


def _digest_rows(rows: datasets.Dataset) -> str:
    hasher = hashlib.blake2b(digest_size=16)
    for table in rows.with_format("arrow").iter(batch_size=_READ_ROWS):
        for batch in table.combine_chunks().to_batches():
            hasher.update(batch.serialize())
    return hasher.hexdigest()


def _digest_weights(model: nn.Module) -> str:
    hasher = hashlib.blake2b(digest_size=16)
    for name, tensor in model.state_dict().items():
        hasher.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        hasher.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return hasher.hexdigest()
