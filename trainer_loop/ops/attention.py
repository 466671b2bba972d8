"""Attention with the interface of transformers' models, used if `model.attention` is auto.

It differs from transformers' `sdpa` in two points. On a CPU, cpu_kernels.py computes the cases in which it is faster.
On a GPU, no mask is copied to the host to check whether it hides anything, because this would wait for the device.
"""

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import bidirectional_mask_function, causal_mask_function, sdpa_mask

from trainer_loop.ops.cpu_kernels import CpuAttention, fits_on_cpu, is_faster_on_cpu

ATTENTION = "trainer_loop"  # name of this attention implementation in transformers

# Names of attention dropout in transformers' configs.
_DROPOUT_FIELDS = ("attention_probs_dropout_prob", "attention_dropout", "attn_pdrop", "attn_dropout")
_HOST_DEVICES = ("cpu",)  # devices where a mask can be read without waiting, to see whether there is padding
_UNSUPPORTED = ("softcap", "cache", "s_aux")  # arguments that only transformers' function handles

_padded_on_the_right: ContextVar[bool] = ContextVar("padded_on_the_right", default=False)


def use_attention(model: PreTrainedModel) -> None:
    """Use the attention of this module if the model allows its attention to be replaced."""
    if can_exchange_attention(model):
        AttentionInterface.register(ATTENTION, attend)
        AttentionMaskInterface.register(ATTENTION, make_mask)
        model.set_attn_implementation(ATTENTION)


def can_exchange_attention(model: PreTrainedModel) -> bool:
    """Whether the attention of a model can be replaced: it is torch's, or it is already the one of this module."""
    return model.config._attn_implementation in ("sdpa", ATTENTION) and model._can_set_attn_implementation()


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    position_bias: Tensor | None = None,
    **others: Any,  # transformers passes all keyword arguments of its models
) -> tuple[Tensor, None]:
    """Compute the attention of queries over keys and values.

    Args:
        query: `[B, H, T, D]`. `key` and `value` are `[B, K, S, D]`; K divides H.
        attention_mask: `[B or 1, 1, T, S]`, true where a query may attend to a key; None for all keys.
        scaling: factor of the scores; None for `D ** -0.5`.
        is_causal: whether a query attends only to itself and earlier keys; None takes the value of the module.
        position_bias: `[1, H, T, S]`, added to the scores.

    Returns:
        The attention `[B, T, H, D]`, and None in the place of attention weights.
    """
    query, key, value = cast_as_autocast(query, key, value)
    is_plain = not any(others.get(name) is not None for name in _UNSUPPORTED)
    causal = attention_mask is None and takes_causal(module, is_causal)
    if not is_plain or not is_faster_on_cpu(
        query, key, value, attention_mask, position_bias, causal=causal, dropout=dropout
    ):
        options = {"dropout": dropout, "scaling": scaling, "is_causal": is_causal, "position_bias": position_bias}
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options, **others)  # type: ignore[no-any-return]
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    repeats = query.shape[1] // key.shape[1]
    key, value = repeat_kv(key, repeats), repeat_kv(value, repeats)
    if position_bias is not None and not position_bias.requires_grad and not bool(position_bias.any()):
        position_bias = None  # T5 passes zeros where it has none
    attended = CpuAttention.apply(query, key, value, attention_mask, position_bias, causal, scale, dropout)
    return attended.transpose(1, 2).contiguous(), None


def takes_causal(module: nn.Module, is_causal: bool | None) -> bool:
    """Whether a query attends only to itself and earlier keys; None takes the value of the module."""
    return getattr(module, "is_causal", True) if is_causal is None else is_causal


def cast_as_autocast(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Cast to autocast's type for attention: some models multiply queries and keys by fp32 rotations."""
    kind = tensors[0].device.type
    if not torch.is_autocast_enabled(kind):
        return tensors
    dtype = torch.get_autocast_dtype(kind)
    return tuple(tensor if tensor.dtype == torch.float64 else tensor.to(dtype) for tensor in tensors)


@contextlib.contextmanager
def padded_on_the_right() -> Iterator[None]:
    """Declare that masks passed to models inside the block hide only padding at the end of a row."""
    token = _padded_on_the_right.set(True)
    try:
        yield
    finally:
        _padded_on_the_right.reset(token)


def make_mask(
    *,
    attention_mask: Tensor | None = None,
    mask_function: Callable[..., Any] = causal_mask_function,
    allow_is_causal_skip: bool = True,
    allow_is_bidirectional_skip: bool = False,
    **others: Any,  # transformers passes the arguments of all its mask functions
) -> Tensor | None:
    """Return the mask `[B, 1, T, T]` of a batch with the `attention_mask` `[B, T]`; None if no mask is needed.

    A causal query never attends to padding behind its row. For other masks, only a CPU checks whether there is padding.
    """
    is_causal = mask_function is causal_mask_function and allow_is_causal_skip
    has_all_keys = others.get("local_size") is None and others["q_length"] == others["kv_length"]
    if is_causal and has_all_keys and _padded_on_the_right.get():
        return None
    can_read_mask = attention_mask is None or attention_mask.device.type in _HOST_DEVICES
    mask: Tensor | None = sdpa_mask(
        attention_mask=attention_mask,
        mask_function=mask_function,
        allow_is_causal_skip=allow_is_causal_skip and can_read_mask,
        allow_is_bidirectional_skip=allow_is_bidirectional_skip and can_read_mask,
        **others,
    )
    if mask is None or mask_function is not bidirectional_mask_function:
        return mask
    return mask[:, :, :1].expand_as(mask)  # stride 0 marks a mask that is the same for all queries


def describe_attention_dropout(model: PreTrainedModel, *, max_length: int) -> str | None:
    """Describe the cost of dropout inside attention on a CPU, and the key that changes it; None without dropout."""
    field = next((name for name in _DROPOUT_FIELDS if getattr(model.config, name, 0)), None)
    if field is None:
        return None
    heads = getattr(model.config, "num_attention_heads", 1)
    is_ours = model.config._attn_implementation == ATTENTION and fits_on_cpu(heads, max_length**2, bytes_each=2)
    cost = "up to a fifth of the speed" if is_ours else "about half of the speed: torch has no fast attention with it"
    return f"attention dropout {getattr(model.config, field):g} costs {cost}; model.overrides.{field}=0.0 leaves it out"
