"""Packed rows: rows one after another without padding, with attention only inside each row.

A packed batch has `input_ids` and `position_ids` `[1, T]`, where T counts the tokens of all rows; `row_lengths`, a
tuple of B integers; and `row_ends`, their cumulative sums from 0, `[B + 1]`. The model passes `row_lengths` and
`row_ends` to its attention as keyword arguments.
"""

from functools import partial
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import repeat_kv

from trainer_loop.data.loader import move_batch
from trainer_loop.errors import UserError, in_one_line
from trainer_loop.models.config import find_text_config, first_position
from trainer_loop.ops.attention import attend, can_exchange_attention, cast_as_autocast, takes_causal
from trainer_loop.runtime.randomness import evaluating
from trainer_loop.tasks.task import pack_rows

ATTENTION = "trainer_loop_packed"  # name of the attention implementation in transformers

_PROBE = (7, 4, 2)  # tokens of each trial row
_WIDEST_HEAD = 256  # widest head that flash attention supports
_TOLERANCE = 1e-4  # relative to the largest output


def use_packing(model: PreTrainedModel, *, rows_at_head: bool) -> None:
    """Change a model so that it accepts only packed batches. Its parameters and their names do not change.

    Runs trial rows through the model, packed and one by one, and compares the outputs.

    Args:
        rows_at_head: the head takes rows `[B, T, D]`, as a classifier does; false: single tokens.

    Raises:
        UserError: the model does not support packing.
    """
    name, config = type(model).__name__, model.config
    if not can_exchange_attention(model):
        raise _refusal(f"the attention of {name} cannot be exchanged")
    if _has_sliding_window(config):
        raise _refusal(f"{name} attends within a sliding window")
    stacks = [stack for stack in ("encoder", "transformer") if hasattr(model.base_model, stack)]
    if rows_at_head and not stacks:
        raise _refusal(f"the head of {name} does not follow a stack of layers of its own")

    try:
        with torch.no_grad(), evaluating(model):
            rows = _probe_rows(model)
            alone = [model(input_ids=torch.tensor([row["input_ids"]], device=model.device)).logits[0] for row in rows]
            AttentionInterface.register(ATTENTION, attend_rows)  # no mask function: none is needed
            model.set_attn_implementation(ATTENTION)
            if (first := first_position(model)) > 0:
                model.register_forward_pre_hook(partial(_shift_positions, first), with_kwargs=True)
            if rows_at_head:
                getattr(model.base_model, stacks[0]).register_forward_hook(_unpack, with_kwargs=True)
            logits = model(**move_batch(pack_rows(rows), model.device)).logits
            packed = logits if rows_at_head else logits[0].split(_PROBE)
    except (TypeError, ValueError, RuntimeError, KeyError, IndexError) as error:
        raise _refusal(f"{name} takes no packed rows: {in_one_line(error, at_most=120)}") from error
    expected, actual = (torch.cat([output.flatten() for output in outputs]) for outputs in (alone, packed))
    largest, difference = float(expected.abs().max()), float((expected - actual).abs().max())
    if largest == 0:
        raise _refusal(f"{name} answers nothing but zeros, so packing cannot be tried")
    if not difference <= _TOLERANCE * largest:  # nan counts as a difference
        raise _refusal(f"{name} gives other results for packed rows, by {difference:.2g}")


def attend_rows(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    row_lengths: tuple[int, ...] | None = None,
    row_ends: Tensor | None = None,
    **others: Any,  # transformers passes all keyword arguments of its models
) -> tuple[Tensor, None]:
    """Apply `attend` within each row of a packed batch: B is 1, T counts the tokens of all rows, without a mask."""
    if row_lengths is None or row_ends is None or attention_mask is not None:
        raise ValueError("a packed model takes only packed batches")
    query, key, value = cast_as_autocast(query, key, value)
    if not _can_use_flash(query, key, value, dropout=dropout):
        attended = [
            attend(module, *row, None, dropout=dropout, scaling=scaling, is_causal=is_causal, **others)[0]  # type: ignore[misc, call-arg]
            for row in zip(*(tensor.split(row_lengths, dim=2) for tensor in (query, key, value)), strict=True)
        ]
        return torch.cat(attended, dim=1), None
    # One call of torch's flash attention for all rows, which may have different lengths.
    from torch.nn.attention.varlen import varlen_attn

    repeats, longest = query.shape[1] // key.shape[1], max(row_lengths)
    query, key, value = (
        tensor[0].transpose(0, 1).contiguous() for tensor in (query, repeat_kv(key, repeats), repeat_kv(value, repeats))
    )
    window = (-1, 0) if takes_causal(module, is_causal) else (-1, -1)
    output = varlen_attn(query, key, value, row_ends, row_ends, longest, longest, scale=scaling, window_size=window)
    assert isinstance(output, Tensor)
    return output[None], None


def _can_use_flash(query: Tensor, key: Tensor, value: Tensor, *, dropout: float) -> bool:
    return (
        query.is_cuda
        and dropout == 0
        and query.dtype in (torch.bfloat16, torch.float16)
        and query.dtype == key.dtype == value.dtype
        and key.shape == value.shape
        and query.shape[-1] == key.shape[-1] <= _WIDEST_HEAD
    )


def _has_sliding_window(config: Any) -> bool:
    kinds = getattr(config, "layer_types", None)
    if kinds is not None:
        return any(kind != "full_attention" for kind in kinds)
    return getattr(config, "sliding_window", None) is not None and getattr(config, "use_sliding_window", True)


def _shift_positions(
    first: int, _model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Any, dict[str, Any]]:
    """Add the first position to the position ids, for models whose positions start after the padding index."""
    return args, kwargs | {"position_ids": kwargs["position_ids"] + first}


def _unpack(stack: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
    """Pad the last hidden states `[1, T, D]` to `[B, T of the longest row, D]` for the head."""
    rows = output.last_hidden_state[0].split(kwargs["row_lengths"])
    output.last_hidden_state = pad_sequence(rows, batch_first=True)
    return output


def _probe_rows(model: PreTrainedModel) -> list[dict[str, list[int]]]:
    """Return trial rows whose tokens are not padding."""
    padding = getattr(find_text_config(model.config), "pad_token_id", None)
    tokens = (token for token in range(sum(_PROBE) + 1) if token != padding)
    return [{"input_ids": list(islice(tokens, length))} for length in _PROBE]


def _refusal(reason: str) -> UserError:
    return UserError(f"model.packing: {reason}; set model.packing=false")
