"""The loaders of a run: batches of the training rows, and the sets that are evaluated."""

import math
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator

from trainer_loop.config.fields import Config
from trainer_loop.config.named_sets import parse_set
from trainer_loop.data.batch_plan import BatchPlan
from trainer_loop.data.cut import Limits
from trainer_loop.data.given_rows import take_rows
from trainer_loop.data.loader import EvaluationLoader, StepLoader, TrainLoader
from trainer_loop.data.mixture import Mixture
from trainer_loop.data.run_data import RunData
from trainer_loop.data.stream import StreamLoader
from trainer_loop.data.tokens import TokenisedSplit
from trainer_loop.errors import UserError
from trainer_loop.plan import RunPlan
from trainer_loop.record.logs import Console
from trainer_loop.runtime.budget import choose_microbatch_tokens, choose_shape_steps, choose_token_budget

_WORKERS_BESIDE_A_GPU = 2
_WINDOW = 32  # batches whose rows are sorted together where the config names no number


def make_train_loader(config: Config, plan: RunPlan, accelerator: Accelerator) -> TrainLoader | StreamLoader:
    """The training rows, in memory or streamed, as the batches of this process."""
    limits = Limits(
        accelerator.num_processes,
        max_tokens=_token_budget(config.batch.max_tokens, plan, accelerator.device, training=True),
        per_device=config.batch.per_device,
        **_choose_shapes(config, plan, accelerator),
    )
    if limits.width_step > 1:  # rows of every split are padded alike
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
    mixture, weights = make_mixture(config, plan, train), find_weights(config, train)
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


def _choose_shapes(config: Config, plan: RunPlan, accelerator: Accelerator) -> dict[str, Any]:
    """The fields of `Limits` that depend on the device, the task, and whether rows are packed."""
    device_type, precision = accelerator.device.type, accelerator.mixed_precision
    width_step, row_step = choose_shape_steps(device_type, precision=precision) if plan.task.may_widen else (1, 1)
    return {
        "microbatch_tokens": choose_microbatch_tokens(device_type, precision=precision),
        "packed": config.model.packing,
        "width_step": width_step,
        "longest": config.data.max_length,
        "row_step": row_step,
    }


def make_mixture(config: Config, plan: RunPlan, train: TokenisedSplit) -> Mixture | None:
    """How the rows of an epoch are drawn; None: each once."""
    if config.data.sampling == "balanced":
        labels, names = np.asarray(train.rows["label"]), plan.inputs.label_names
        assert names is not None, "the task has labels"
        present, numbers = np.unique(labels, return_inverse=True)
        return Mixture([names[label] for label in present], [1.0] * len(present), numbers, title="balanced classes")
    if not config.data.mixture:
        return None
    names = [str(entry["name"]) for entry in config.data.mixture]
    weights = [float(entry["weight"]) for entry in config.data.mixture]
    return Mixture(names, weights, train.origins.source_of_rows)


def _group_rows(mixture: Mixture | None, weights: np.ndarray | None) -> np.ndarray | None:
    """`[N]` a number for each row: rows of one source and one weight have the same; None: all rows."""
    given = ([] if mixture is None else [mixture.sources]) + ([] if weights is None else [weights])
    return np.unique(np.stack(given, axis=1), axis=0, return_inverse=True)[1] if given else None


def find_weights(config: Config, train: TokenisedSplit) -> np.ndarray | None:
    """`[N]` the factors of the losses of the rows; None: 1 for each."""
    of_sources = np.array([float(entry.get("loss_weight", 1)) for entry in config.data.mixture])
    weights = train.weights
    if (of_sources != 1).any():
        weights = of_sources[train.origins.source_of_rows] * (1 if weights is None else weights)
    if weights is None:
        return None
    if not weights.any():
        raise UserError("data.mixture: all rows have a weight of 0, by loss_weight and data.weight; one must have more")
    return None if (weights == 1).all() else weights


def make_evaluation_loader(
    config: Config,
    plan: RunPlan,
    accelerator: Accelerator,
    split: TokenisedSplit,
    *,
    labelled: bool = True,
    num_workers: int = 0,
) -> EvaluationLoader:
    """labelled: its targets are counted, and its rows shared by the processes; else each process has all of them."""
    limits = Limits(
        accelerator.num_processes if labelled else 1,
        max_tokens=_token_budget(config.evaluate.max_tokens, plan, accelerator.device, training=False),
        per_device=config.evaluate.per_device or _rows_judged_at_once(config, plan, accelerator),
        **_choose_shapes(config, plan, accelerator),
    )
    return EvaluationLoader(
        split.rows,
        split.lengths,
        limits,
        collate=plan.task.collate,
        count=plan.task.count if labelled else lambda batch: 0,
        device=accelerator.device,
        process_index=accelerator.process_index if labelled else 0,
        num_workers=num_workers,
        draws=plan.task.draws,
        raw=split.raw,
    )


class ConfiguredData(RunData):
    """Evaluation sets of a config; it also says how in-memory rows are encoded."""

    def __init__(
        self, config: Config, plan: RunPlan, accelerator: Accelerator, console: Console, train_loader: StepLoader
    ):
        loaders: dict[str, dict[str, EvaluationLoader]] = {"validation": {}, "test": {}}
        for name, rows in plan.inputs.splits.items():
            split, part = parse_set(name)
            if split != "train":
                workers = _num_workers(config, accelerator)
                loaders[split][part] = make_evaluation_loader(config, plan, accelerator, rows, num_workers=workers)
        super().__init__(train_loader, validation=loaders["validation"], test=loaders["test"])
        self._config, self._plan, self._accelerator, self._console = config, plan, accelerator, console

    def load_rows(self, rows: Any, *, labelled: bool) -> EvaluationLoader:
        task, inputs, kept = self._plan.task, self._plan.inputs, None
        if inputs.data is not None:
            split, kept = inputs.data.encode_rows(
                rows, task, inputs.processor, labelled=labelled, say=self._console.say
            )
        else:
            split = take_rows(rows, name="rows", place="rows")
        loader = make_evaluation_loader(self._config, self._plan, self._accelerator, split, labelled=labelled)
        loader.kept = kept
        return loader


def _batch_size(config: Config, num_processes: int) -> int:
    batch = config.batch
    if batch.size is not None:
        return batch.size
    assert batch.per_device is not None and batch.accumulate is not None
    return batch.per_device * batch.accumulate * num_processes


def _rows_judged_at_once(config: Config, plan: RunPlan, accelerator: Accelerator) -> int | None:
    """Rows without tokens have no budget of them: as many as training has in one microbatch. None: a budget says it."""
    if plan.task.has_tokens:
        return None
    return config.batch.per_device or math.ceil(
        _batch_size(config, accelerator.num_processes) / accelerator.num_processes
    )


def _num_workers(config: Config, accelerator: Accelerator) -> int:
    """Processes that prepare batches: beside a GPU they are ready when it is; on a CPU they would take its cores."""
    if config.data.num_workers != "auto":
        return int(config.data.num_workers)
    return 0 if accelerator.device.type == "cpu" else _WORKERS_BESIDE_A_GPU


def _token_budget(setting: Any, plan: RunPlan, device: torch.device, *, training: bool) -> int | None:
    """Padded tokens of one microbatch at most; None: no limit."""
    if setting != "auto":
        return setting  # type: ignore[no-any-return]
    if not plan.task.has_tokens:
        return None  # its rows have no tokens: batch.per_device limits them
    logits_per_token = plan.task.logits_per_token(plan.inputs.model_config)
    return choose_token_budget(device.type, training=training, logits_per_token=logits_per_token)
