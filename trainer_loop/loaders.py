"""Creates the loaders of a run: the training rows in batches, and the evaluation sets."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
from accelerate import Accelerator

from trainer_loop.config.fields import Config
from trainer_loop.config.named_sets import parse_set
from trainer_loop.data.batch_plan import BatchPlan
from trainer_loop.data.cut import Limits
from trainer_loop.data.given_rows import take_rows
from trainer_loop.data.loader import EvaluationLoader, StepLoader, TrainLoader
from trainer_loop.data.mixture import Mixture
from trainer_loop.data.run_data import RunData
from trainer_loop.data.split import TokenisedSplit
from trainer_loop.data.stream_loader import StreamLoader
from trainer_loop.errors import UserError
from trainer_loop.plan import RunPlan
from trainer_loop.record.logs import Console
from trainer_loop.runtime.budget import choose_microbatch_tokens, choose_shape_steps, choose_token_budget

_WORKERS_BESIDE_A_GPU = 2
_WINDOW = 32  # batches whose rows are sorted together, unless the config sets a number


def make_train_loader(plan: RunPlan, accelerator: Accelerator) -> TrainLoader | StreamLoader:
    """Create the loader of this process's batches of training rows, in memory or streamed."""
    config, limits = plan.config, _choose_limits(plan, accelerator, training=True)
    if limits.width_step > 1:  # rows of all splits are padded to multiples of it
        plan.task.use_widths(limits.width_step, longest=limits.longest)
    batch_size = _batch_size(config, accelerator.num_processes)
    process: dict[str, Any] = {
        "collate": plan.task.collate,
        "count": plan.task.count,
        "draws": plan.task.draws,
        "device": accelerator.device,
        "process_index": accelerator.process_index,
    }
    sources = [str(entry["name"]) for entry in config.data.mixture]
    if plan.inputs.stream is not None:
        return StreamLoader(
            plan.inputs.stream.rows,
            limits,
            encode=plan.inputs.stream.encode,
            batch_size=batch_size,
            shuffle_rows=config.data.shuffle_rows,
            seed=config.seed,
            num_rows=plan.inputs.stream.num_rows,
            sources=sources,
            **process,
        )
    train = plan.inputs.splits["train"]
    mixture, weights = make_mixture(plan, train), find_weights(config, train)
    window = (config.batch.window or _WINDOW) if config.batch.order == "window" else None  # None: a plain shuffle
    return TrainLoader(
        BatchPlan(
            train.lengths,
            limits,
            batch_size=batch_size,
            seed=config.seed,
            window=window,
            mixture=mixture,
            groups=_group_rows(mixture if sources else None, weights),
        ),
        train.rows,
        num_workers=_num_workers(config, accelerator),
        weights=weights,
        sources=sources,
        origin_of=train.origins.place,
        mixes=plan.task.mixes,
        **process,
    )


def _choose_limits(plan: RunPlan, accelerator: Accelerator, *, training: bool) -> Limits:
    """Choose the limits of microbatches, for training or for evaluation."""
    config, task = plan.config, plan.task
    device_type, precision = accelerator.device.type, accelerator.mixed_precision
    section = config.batch if training else config.evaluate
    max_tokens, per_device = section.max_tokens, section.per_device
    if max_tokens == "auto" and task.has_tokens:
        logits_per_token = task.logits_per_token(plan.inputs.model_config)
        max_tokens = choose_token_budget(device_type, training=training, logits_per_token=logits_per_token)
    elif max_tokens == "auto":
        max_tokens = None  # only `per_device` limits rows without tokens
    if per_device is None and not training and not task.has_tokens:  # as in training
        num_processes = accelerator.num_processes
        per_device = config.batch.per_device or math.ceil(_batch_size(config, num_processes) / num_processes)
    width_step, row_step = choose_shape_steps(device_type, precision=precision) if task.may_widen else (1, 1)
    return Limits(
        accelerator.num_processes,
        max_tokens=max_tokens,
        per_device=per_device,
        microbatch_tokens=choose_microbatch_tokens(device_type, precision=precision),
        packed=config.model.packing,
        width_step=width_step,
        longest=config.data.max_length,
        row_step=row_step,
    )


def make_mixture(plan: RunPlan, train: TokenisedSplit) -> Mixture | None:
    """Create the mixture from which the rows of an epoch are drawn; None if each row is used once."""
    entries = plan.config.data.mixture
    if plan.config.data.sampling == "balanced":
        labels, names = np.asarray(train.rows["label"]), plan.inputs.label_names
        assert names is not None, "the task has labels"
        classes, numbers = np.unique(labels, return_inverse=True)
        return Mixture([names[label] for label in classes], [1.0] * len(classes), numbers, title="balanced classes")
    if not entries:
        return None
    names, weights = [str(entry["name"]) for entry in entries], [float(entry["weight"]) for entry in entries]
    return Mixture(names, weights, train.origins.source_of_rows)


def _group_rows(mixture: Mixture | None, weights: np.ndarray | None) -> np.ndarray | None:
    """Return a group number per row, `[N]`: rows of the same source and weight form a group. None: a single group."""
    columns = ([] if mixture is None else [mixture.sources]) + ([] if weights is None else [weights])
    return np.unique(np.stack(columns, axis=1), axis=0, return_inverse=True)[1] if columns else None


def find_weights(config: Config, train: TokenisedSplit) -> np.ndarray | None:
    """Return the factor of each row's loss, `[N]`; None if all factors are 1."""
    source_weights = np.array([float(entry.get("loss_weight", 1)) for entry in config.data.mixture])
    weights = train.weights
    if (source_weights != 1).any():
        weights = source_weights[train.origins.source_of_rows] * (1 if weights is None else weights)
    if weights is None:
        return None
    if not weights.any():
        raise UserError("data.mixture: all rows have a weight of 0, by loss_weight and data.weight; one must have more")
    return None if (weights == 1).all() else weights


def make_evaluation_loader(
    plan: RunPlan, accelerator: Accelerator, split: TokenisedSplit, *, labelled: bool = True, num_workers: int = 0
) -> EvaluationLoader:
    """Create the loader of a set that is evaluated or predicted.

    Args:
        labelled: count targets, and distribute the rows over the processes. Otherwise each process has all rows.
    """
    limits = _choose_limits(plan, accelerator, training=False)
    return EvaluationLoader(
        split.rows,
        split.lengths,
        limits if labelled else replace(limits, num_processes=1),
        collate=plan.task.collate,
        count=plan.task.count if labelled else lambda batch: 0,
        device=accelerator.device,
        process_index=accelerator.process_index if labelled else 0,
        num_workers=num_workers,
        draws=plan.task.draws,
        raw=split.raw,
    )


class ConfiguredData(RunData):
    """The training and evaluation sets of a config. It also encodes in-memory rows."""

    def __init__(self, plan: RunPlan, accelerator: Accelerator, console: Console, train_loader: StepLoader):
        loaders: dict[str, dict[str, EvaluationLoader]] = {"validation": {}, "test": {}}
        for name, rows in plan.inputs.splits.items():
            split, part = parse_set(name)
            if split != "train":
                workers = _num_workers(plan.config, accelerator)
                loaders[split][part] = make_evaluation_loader(plan, accelerator, rows, num_workers=workers)
        super().__init__(train_loader, validation=loaders["validation"], test=loaders["test"])
        self._plan, self._accelerator, self._console = plan, accelerator, console

    def load_rows(self, rows: Any, *, labelled: bool) -> EvaluationLoader:
        task, inputs, kept = self._plan.task, self._plan.inputs, None
        if inputs.data is not None:
            split, kept = inputs.data.encode_rows(
                rows, task, inputs.processor, labelled=labelled, say=self._console.say
            )
        else:
            split = take_rows(rows, name="rows", place="rows")
        loader = make_evaluation_loader(self._plan, self._accelerator, split, labelled=labelled)
        loader.kept = kept
        return loader


def _batch_size(config: Config, num_processes: int) -> int:
    batch = config.batch
    if batch.size is not None:
        return batch.size
    assert batch.per_device is not None and batch.accumulate is not None
    return batch.per_device * batch.accumulate * num_processes


def _num_workers(config: Config, accelerator: Accelerator) -> int:
    """Return the number of worker processes that prepare batches. On a CPU they would compete with training."""
    if config.data.num_workers != "auto":
        return int(config.data.num_workers)
    return 0 if accelerator.device.type == "cpu" else _WORKERS_BESIDE_A_GPU
