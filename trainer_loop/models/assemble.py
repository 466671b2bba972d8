"""From a `ModelPlan` to the model that learns: made, put on its device, tried on a few rows, given its adapter."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PretrainedConfig

from trainer_loop.components import locate
from trainer_loop.errors import UserError
from trainer_loop.models.config import count_tokens, find_text_config, list_ids
from trainer_loop.models.embedding_noise import use_embedding_noise
from trainer_loop.models.loading import make_model
from trainer_loop.models.packing import use_packing
from trainer_loop.models.plan import ModelPlan
from trainer_loop.models.trials import (
    Reach,
    find_reach,
    freeze_unused,
    make_answerable_rows,
    make_row,
    make_rows,
    pad_rows,
    try_padding,
)
from trainer_loop.ops.attention import describe_attention_dropout, use_attention
from trainer_loop.ops.cpu_kernels import use_cpu_modules
from trainer_loop.record.logs import Console
from trainer_loop.runtime.compiler import compile_model
from trainer_loop.runtime.host import expect_many_shapes
from trainer_loop.runtime.randomness import seed_everything
from trainer_loop.tasks.find import is_shipped
from trainer_loop.tasks.task import Task

_WAYS_TO_COMPUTE = ("loss", "predict", "loss_and_predict")  # methods of a task that call its model


@dataclass(frozen=True)
class RowsToRead:
    """What is known of the rows that a model is going to read.

    max_length: tokens of the longest that may come. lengths: `[N]` tokens of the training rows; None: they are
    streamed. pads: some batches hold more than one row.
    """

    max_length: int
    lengths: np.ndarray | None
    pads: bool

    @property
    def longest(self) -> int:
        """Tokens of the longest training row, as far as they are known."""
        return self.max_length if self.lengths is None else int(self.lengths.max())


def assemble_model(
    plan: ModelPlan,
    config: PretrainedConfig,
    *,
    task: Task,
    tokenizer: Any,
    device: torch.device,
    compute_type: torch.dtype,
    seed: int,
    rows: RowsToRead,
    compiles: bool,
    console: Console,
) -> tuple[nn.Module, Sequence[str]]:
    """The model on its device, before accelerate prepares it, and the names of its modules in the order of their calls.

    Args:
        compute_type: what matrices are multiplied in.
        compiles: the whole model is compiled; layers of a sharded one are later, as `plan` says.
        console: gets lines about what was found out.

    Raises:
        UserError: the model cannot be loaded, or cannot answer rows of the tokenizer.
    """
    num_known = getattr(find_text_config(config), "vocab_size", None)  # before embeddings are added
    num_tokens = 0 if tokenizer is None else count_tokens(tokenizer)
    model, new_weights = make_model(
        plan, config, model_class=str(task.auto_model), num_tokens=num_tokens, compute_type=compute_type, seed=seed
    )
    if new_weights:
        console.say(f"model: {len(new_weights)} weights are new: {', '.join(new_weights[:6])}")
    if task.end_tokens:
        _add_end_tokens(model, task.end_tokens)
    model = model.to(device)
    if plan.attention == "auto" and not plan.compile:
        use_attention(model)
    if device.type == "cpu":
        expect_many_shapes()
        use_cpu_modules(model)
        if (cost := describe_attention_dropout(model, max_length=rows.max_length)) is not None:
            console.say(cost)
    reach = _try_out(model, task, rows, new_weights, console, packs=plan.packing)
    if compiles:
        compile_model(model)
    if plan.packing:
        use_packing(model, rows_at_head=task.rows_at_head)
    if plan.neftune_alpha is not None:
        use_embedding_noise(model, alpha=plan.neftune_alpha)
    if plan.adapter is None:
        return model, reach.calls
    adapted = plan.adapter.add_to(
        model,
        task_type=task.peft_type,
        seed=seed,
        new_weights=new_weights,
        new_tokens=[] if num_known is None else range(num_known, num_tokens),
        idle_layers=reach.idle,
    )
    return adapted, [f"base_model.model.{name}" if name else "base_model.model" for name in reach.calls]


def _add_end_tokens(model: Any, tokens: Sequence[int]) -> None:
    """Let a model stop at these tokens too, here and where its export is loaded."""
    known = list_ids(model.generation_config.eos_token_id)
    model.generation_config.eos_token_id = sorted({*known, *tokens})


def make_plain_model(dotted: str, overrides: Mapping[str, Any], *, seed: int) -> nn.Module:
    """A model that is not of transformers, made by what is at a dotted path; its weights are a function of the seed."""
    factory: Any = locate(dotted, place="model.type")
    seed_everything(seed, "model")
    model = factory(**overrides)
    if not isinstance(model, nn.Module):
        raise UserError(f"model.type: {dotted} makes a {type(model).__name__}; it must make an nn.Module")
    return model


def _try_out(
    model: nn.Module, task: Task, rows: RowsToRead, new_weights: Collection[str], console: Console, *, packs: bool
) -> Reach:
    """Answer made-up rows: the task pads on the best side, and what takes no part is frozen. What takes part."""
    if not task.is_tried or not any(map(is_shipped, type(task).__mro__)):
        return Reach()  # what a task asks of its model that is not of the package is not known
    made_up = _make_up_rows(model, task, rows)
    if made_up and not packs:
        trial = try_padding(model, task, made_up)
        task.use_padding(trial.side)
        if rows.pads and not trial.is_harmless:
            console.warn(trial.describe(type(model).__name__))
    if not made_up or _has_own_loss(task):  # which may reach more than the logits do
        return Reach()
    reach = _find_reach(model, task, made_up, rows)
    if (line := freeze_unused(model, reach, new_weights=new_weights)) is not None:
        console.say(line)
    return reach


def _make_up_rows(model: nn.Module, task: Task, rows: RowsToRead) -> list[dict[str, Any]]:
    """Rows to try the model on: short ones, or, where it cannot answer those, some as long as the data has."""
    if rows.lengths is None:
        return make_rows(task, model, max_length=rows.max_length)
    ordered = np.sort(rows.lengths)
    special = task.tokenizer.num_special_tokens_to_add()
    own = [max(1, int(ordered[place]) - special) for place in (0, len(ordered) // 2, -1)]
    return make_answerable_rows(task, model, max_length=rows.max_length, longer=own)


def _has_own_loss(task: Task) -> bool:
    """Whether a shipped task was changed where it calls its model."""
    return not is_shipped(type(task)) and any(name in vars(type(task)) for name in _WAYS_TO_COMPUTE)


def _find_reach(model: nn.Module, task: Task, made_up: Sequence[Mapping[str, Any]], rows: RowsToRead) -> Reach:
    """What of the model takes part in its answers, also to a row as long as the longest."""
    device = next(model.parameters()).device
    reach = find_reach(model, pad_rows(task, made_up, device))
    if reach.unused or reach.idle:  # some parts are for long rows only
        row = make_row(task, rows.longest, max_length=rows.max_length)
        reach = reach.without(find_reach(model, pad_rows(task, row, device)))
    return reach
