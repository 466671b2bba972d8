"""Build the model of a `ModelPlan`: load it, move it to its device, run a few trial rows, add its adapter."""

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

_METHODS_WITH_FORWARD = ("loss", "predict", "loss_and_predict")  # methods of a task that call its model


@dataclass(frozen=True)
class RowsToRead:
    """Lengths of the rows that a model will read."""

    max_length: int  # upper limit, in tokens
    lengths: np.ndarray | None  # `[N]`: tokens of each training row; None: the rows are streamed
    pads: bool  # some batches hold more than one row

    @property
    def longest(self) -> int:
        """Tokens of the longest training row, or `max_length` if the rows are streamed."""
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
    """Build the model on its device, before accelerate prepares it.

    Args:
        compute_type: type of matrix multiplications.
        compiles: compile the whole model here. Layers of a sharded model are compiled later.
        console: prints what the trial rows showed, such as frozen parameters.

    Returns:
        The model, and the names of its modules in the order of their first calls.

    Raises:
        UserError: the model cannot be loaded, or fails on rows of the tokenizer.
    """
    old_vocab_size = getattr(find_text_config(config), "vocab_size", None)  # before embeddings are added
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
        new_tokens=[] if old_vocab_size is None else range(old_vocab_size, num_tokens),
        idle_layers=reach.idle,
    )
    return adapted, [f"base_model.model.{name}" if name else "base_model.model" for name in reach.calls]


def _add_end_tokens(model: Any, tokens: Sequence[int]) -> None:
    """Add end tokens to the generation config, which is exported with the model."""
    end_tokens = list_ids(model.generation_config.eos_token_id)
    model.generation_config.eos_token_id = sorted({*end_tokens, *tokens})


def make_plain_model(dotted: str, overrides: Mapping[str, Any], *, seed: int) -> nn.Module:
    """Make a model that is not from transformers with the factory at a dotted path. The seed determines its weights."""
    factory: Any = locate(dotted, place="model.type")
    seed_everything(seed, "model")
    model = factory(**overrides)
    if not isinstance(model, nn.Module):
        raise UserError(f"model.type: {dotted} makes a {type(model).__name__}; it must make an nn.Module")
    return model


def _try_out(
    model: nn.Module, task: Task, rows: RowsToRead, new_weights: Collection[str], console: Console, *, packs: bool
) -> Reach:
    """Run trial rows through the model: choose the padding side, freeze unused parameters, return the parts in use."""
    if not task.is_tried or not any(map(is_shipped, type(task).__mro__)):
        return Reach()  # a custom task may use its model in any way
    made_up = _make_up_rows(model, task, rows)
    if made_up and not packs:
        trial = try_padding(model, task, made_up)
        task.use_padding(trial.side)
        if rows.pads and not trial.is_harmless:
            console.warn(trial.describe(type(model).__name__))
    if not made_up or _has_own_loss(task):  # a custom loss may use more of the model than the logits
        return Reach()
    reach = _find_reach(model, task, made_up, rows)
    if (line := freeze_unused(model, reach, new_weights=new_weights)) is not None:
        console.say(line)
    return reach


def _make_up_rows(model: nn.Module, task: Task, rows: RowsToRead) -> list[dict[str, Any]]:
    """Return trial rows: short ones, or rows as long as the training rows if the model fails on short ones."""
    if rows.lengths is None:
        return make_rows(task, model, max_length=rows.max_length)
    sorted_lengths = np.sort(rows.lengths)
    special = task.tokenizer.num_special_tokens_to_add()
    longer = [max(1, int(sorted_lengths[place]) - special) for place in (0, len(sorted_lengths) // 2, -1)]
    return make_answerable_rows(task, model, max_length=rows.max_length, longer=longer)


def _has_own_loss(task: Task) -> bool:
    """Return whether a subclass of a shipped task overrides a method that calls the model."""
    return not is_shipped(type(task)) and any(name in vars(type(task)) for name in _METHODS_WITH_FORWARD)


def _find_reach(model: nn.Module, task: Task, made_up: Sequence[Mapping[str, Any]], rows: RowsToRead) -> Reach:
    """Return the parts of the model that affect its answers, tested also with a row as long as the longest."""
    device = next(model.parameters()).device
    reach = find_reach(model, pad_rows(task, made_up, device))
    if reach.unused or reach.idle:  # some parts are used for long rows only
        row = make_row(task, rows.longest, max_length=rows.max_length)
        reach = reach.without(find_reach(model, pad_rows(task, row, device)))
    return reach
