"""From a `ModelPlan` to the model that learns: made, put on its device, tried on a few rows, given its adapter."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PretrainedConfig

from trainer_loop.components import locate
from trainer_loop.errors import UserError
from trainer_loop.models.config import count_tokens, find_text_config
from trainer_loop.models.embedding_noise import use_embedding_noise
from trainer_loop.models.loading import make_model
from trainer_loop.models.packing import use_packing
from trainer_loop.models.plan import ModelPlan
from trainer_loop.models.trials import (
    Reach,
    can_answer,
    find_reach,
    freeze_unused,
    make_row,
    make_rows,
    pad_rows,
    try_padding,
)
from trainer_loop.ops.attention import describe_attention_dropout, use_attention
from trainer_loop.ops.cpu_kernels import use_cpu_modules
from trainer_loop.runtime.compiler import compile_model
from trainer_loop.runtime.host import expect_many_shapes
from trainer_loop.runtime.randomness import seed_everything
from trainer_loop.tasks.find import is_shipped
from trainer_loop.tasks.task import Task

Say = Callable[[str], None]

_WAYS_TO_COMPUTE = ("loss", "predict", "loss_and_predict")  # methods of a task that call its model


def assemble_model(
    plan: ModelPlan,
    config: PretrainedConfig,
    *,
    task: Task,
    tokenizer: Any,
    device: torch.device,
    compute_type: torch.dtype,
    seed: int,
    max_length: int,
    lengths: np.ndarray | None,
    pads: bool,
    compiles: bool,
    say: Say,
    warn: Say,
) -> tuple[nn.Module, Sequence[str]]:
    """The model on its device, before accelerate prepares it, and the names of its modules in the order of their calls.

    Args:
        compute_type: what matrices are multiplied in.
        lengths: `[N]` tokens of the training rows; None: they are streamed.
        pads: some batches hold more than one row.
        compiles: the whole model is compiled; layers of a sharded one are later, as `plan` says.
        say, warn: for lines about what was found out.

    Raises:
        UserError: the model cannot be loaded, or cannot answer rows of the tokenizer.
    """
    num_known = getattr(find_text_config(config), "vocab_size", None)  # before embeddings are added
    num_tokens = 0 if tokenizer is None else count_tokens(tokenizer)
    model, new_weights = make_model(
        plan, config, model_class=str(task.auto_model), num_tokens=num_tokens, compute_type=compute_type, seed=seed
    )
    if new_weights:
        say(f"model: {len(new_weights)} weights are new: {', '.join(new_weights[:6])}")
    if task.end_tokens:
        _add_end_tokens(model, task.end_tokens)
    model = model.to(device)
    if plan.attention == "auto" and not plan.compile:
        use_attention(model)
    if device.type == "cpu":
        expect_many_shapes()
        use_cpu_modules(model)
        if (cost := describe_attention_dropout(model, max_length=max_length)) is not None:
            say(cost)
    reach = Reach()
    if task.is_tried and any(map(is_shipped, type(task).__mro__)):  # what another task asks of its model is not known
        rows = _choose_rows(model, task, lengths, max_length=max_length)
        if rows and not plan.packing:
            _choose_padding_side(model, task, rows, warn=warn if pads else None)
        if rows and not _has_own_loss(task):  # which may reach more than the logits do
            longest = max_length if lengths is None else int(lengths.max())
            reach = _find_reach(model, task, rows, longest=longest, max_length=max_length)
            if (line := freeze_unused(model, reach, new_weights=new_weights)) is not None:
                say(line)
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
    own = model.generation_config.eos_token_id
    known = [] if own is None else [own] if isinstance(own, int) else list(own)
    model.generation_config.eos_token_id = sorted({*known, *tokens})


def make_plain_model(dotted: str, overrides: Mapping[str, Any], *, seed: int) -> nn.Module:
    """A model that is not of transformers, made by what is at a dotted path; its weights are a function of the seed."""
    factory: Any = locate(dotted, place="model.type")
    seed_everything(seed, "model")
    model = factory(**overrides)
    if not isinstance(model, nn.Module):
        raise UserError(f"model.type: {dotted} makes a {type(model).__name__}; it must make an nn.Module")
    return model


def _choose_rows(model: nn.Module, task: Task, lengths: np.ndarray | None, *, max_length: int) -> list[dict[str, Any]]:
    """Made-up rows to try the model on: short ones, or, where it cannot answer those, some as long as the data has."""
    rows = make_rows(task, model, max_length=max_length)
    if not rows or lengths is None or can_answer(model, task, rows[:1]):
        return rows
    ordered = np.sort(lengths)
    special = task.tokenizer.num_special_tokens_to_add()
    own = [max(1, int(ordered[place]) - special) for place in (0, len(ordered) // 2, -1)]
    return make_rows(task, model, max_length=max_length, lengths=own)


def _choose_padding_side(model: nn.Module, task: Task, rows: Sequence[Mapping[str, Any]], *, warn: Say | None) -> None:
    """Let the task pad on the side that changes answers least; warn where even that changes them."""
    trial = try_padding(model, task, rows)
    task.use_padding(trial.side)
    if warn is not None and not trial.is_harmless:
        warn(trial.describe(type(model).__name__))


def _has_own_loss(task: Task) -> bool:
    """Whether a shipped task was changed where it calls its model."""
    return not is_shipped(type(task)) and any(name in vars(type(task)) for name in _WAYS_TO_COMPUTE)


def _find_reach(
    model: nn.Module, task: Task, rows: Sequence[Mapping[str, Any]], *, longest: int, max_length: int
) -> Reach:
    """What of the model takes part in its answers, also to a row as long as the longest."""
    device = next(model.parameters()).device
    reach = find_reach(model, pad_rows(task, rows, device))
    if reach.unused or reach.idle:  # some parts are for long rows only
        row = make_row(task, longest, max_length=max_length)
        reach = reach.without(find_reach(model, pad_rows(task, row, device)))
    return reach
