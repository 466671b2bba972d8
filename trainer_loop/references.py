"""Computes references: values per row that a task needs from the model before training. They are cached on disk."""

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import datasets
import numpy as np
import torch
import transformers
from torch import nn

from trainer_loop.components import full_name
from trainer_loop.data.fingerprint import digest
from trainer_loop.data.loader import EvaluationLoader
from trainer_loop.data.row_cache import load_or_make, load_rows
from trainer_loop.data.split import TokenisedSplit
from trainer_loop.data.tokenise import read_code
from trainer_loop.data.wording import plural
from trainer_loop.errors import UserError, in_one_line
from trainer_loop.evaluation import Evaluator
from trainer_loop.parallel.processes import sum_on_hosts
from trainer_loop.parallel.sharding import SHARDED_CLASS, gather_tensor
from trainer_loop.runtime.host import expand_home

COLUMN = "reference"
_FORMAT = 1  # of the cached files
_READ_ROWS = 1000  # rows read at a time


def add_references(
    splits: Mapping[str, TokenisedSplit],
    evaluator: Evaluator,
    *,
    make_loader: Callable[[TokenisedSplit], EvaluationLoader],
    cache_dir: str | Path | None,
    say: Callable[[str], None],
) -> dict[str, TokenisedSplit]:
    """Return the splits with a column `reference`, which holds the result of `task.refer` for each row.

    The key of the cache covers all inputs of the values, so a resumed run reads the same numbers. All processes must
    call this before the first update.

    Raises:
        UserError: if the cache cannot be written.
    """
    model = _digest_model(evaluator.model)
    cache = expand_home(
        cache_dir or os.environ.get("TRAINER_LOOP_CACHE") or "~/.cache/trainer_loop", place="data.cache_dir"
    )
    extended = {}
    for name, split in splits.items():
        key = {
            "format": _FORMAT,
            "libraries": [torch.__version__, transformers.__version__],
            "model": model,
            "rows": _digest_rows(split.rows),
            "precision": str(evaluator.accelerator.mixed_precision),
            "task": [full_name(type(evaluator.task)), read_code(evaluator.task), evaluator.task.settings()],
        }
        folder = cache / f"reference-{digest(json.dumps(key, sort_keys=True).encode())}"
        cached = load_rows(folder)
        (missing,) = sum_on_hosts(evaluator.accelerator, [cached is None])
        if missing or cached is None:
            say(f"{name}: computing what the model before the first update answers to {plural(len(split.rows), 'row')}")
            values = evaluator.refer(make_loader(split))
            try:
                cached = load_or_make(folder, partial(_write, values))
            except OSError as error:
                message = f"data.cache_dir={cache} cannot be used: {in_one_line(error)}; name another"
                raise UserError(message) from error
        extended[name] = replace(split, rows=datasets.concatenate_datasets([split.rows, cached], axis=1))
    return extended


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


def _digest_model(model: nn.Module) -> str:
    """Hash the weights of a model, its modules and its configs."""
    hasher = hashlib.blake2b(digest_size=16)
    configs = [getattr(model, "config", None), *getattr(model, "peft_config", {}).values()]
    for config in configs:
        hasher.update(json.dumps(config.to_dict(), sort_keys=True, default=str).encode() if config is not None else b"")
    hasher.update(str(model).replace(SHARDED_CLASS, "").encode())  # the same model, sharded or not
    for name, tensor in model.state_dict().items():
        hasher.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        hasher.update(gather_tensor(tensor.detach()).cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return hasher.hexdigest()
