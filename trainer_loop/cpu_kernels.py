"""What torch does slowly on a CPU, done faster there: attention in bf16 and dropout, both as transformers calls them.

torch's flash attention for CPUs is no faster in bf16 than in fp32, and takes no dropout: with dropout it computes whole
matrices of scores in fp32 and draws a random number for each at six nanoseconds. Scores in bf16, a few megabytes at a
time, with 16 random bits each, take a third to a fifth of the time at the lengths of most texts.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

ATTENTION = "trainer_loop_cpu"  # its name among transformers' attention implementations

_BYTES_AT_A_TIME = 8 * 2**20  # scores that are made, used and left while they are in the cache
_MOST_BYTES_A_ROW = 16 * 2**20  # of scores: from there on torch's flash attention is faster
_LEVELS = 2**15  # of a random number
# How transformers' configs call the dropout of attention.
_DROPOUT_FIELDS = ("attention_probs_dropout_prob", "attention_dropout", "attn_pdrop", "attn_dropout")


def use_cpu_kernels(model: PreTrainedModel, *, attention: bool = True) -> bool:
    """Let a model on a CPU attend and drop out by the functions of this file; its parameters and names stay.

    attention: whether its attention is ours to choose. Returns whether it was.
    """
    for module in model.modules():
        if type(module) is nn.Dropout:
            module.__class__ = CpuDropout
    if not attention or model.config._attn_implementation != "sdpa" or not model._can_set_attn_implementation():
        return False
    AttentionInterface.register(ATTENTION, attend)
    AttentionMaskInterface.register(ATTENTION, sdpa_mask)
    model.set_attn_implementation(ATTENTION)
    return True


def describe_attention_dropout(model: PreTrainedModel, *, max_length: int) -> str | None:
    """What dropout inside attention costs on this CPU, and the key that changes it; None where there is none.

    max_length: tokens of the longest row.
    """
    field = next((name for name in _DROPOUT_FIELDS if getattr(model.config, name, 0)), None)
    if field is None:
        return None
    heads = getattr(model.config, "num_attention_heads", 1)
    ours = model.config._attn_implementation == ATTENTION and _fits(heads, max_length, bytes_each=2)
    cost = "up to a fifth of the speed" if ours else "about half of the speed: torch has no fast attention with it"
    return f"attention dropout {getattr(model.config, field):g} costs {cost}; model.overrides.{field}=0.0 leaves it out"


class CpuDropout(nn.Dropout):
    """Dropout whose random numbers have 15 bits; their seed is drawn from torch's generator."""

    def forward(self, input: Tensor) -> Tensor:
        if not self.training or self.p in (0.0, 1.0) or input.device.type != "cpu" or torch.compiler.is_compiling():
            return super().forward(input)
        level, share = _quantise(self.p)
        kept = (_draw(input.numel()) >= level).view(input.shape)
        return input * kept.to(input.dtype).mul_(1 / (1 - share))


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **others: Any,  # transformers passes whatever its models were given
) -> tuple[Tensor, None]:
    """Attention of query `[B, H, T, D]` over key and value `[B, K, T, D]`, K a divisor of H: `[B, T, H, D]`.

    attention_mask: `[B or 1, 1, T, T]`, true where a query may look. What this file does not do faster goes to torch.
    """
    causal = attention_mask is None and (getattr(module, "is_causal", True) if is_causal is None else is_causal)
    if not _is_faster_here(query, key, attention_mask, dropout, others):
        return sdpa_attention_forward(
            module,
            query,
            key,
            value,
            attention_mask,
            dropout=dropout,
            scaling=scaling,
            is_causal=is_causal,
            **others,
        )
    repeats = query.shape[1] // key.shape[1]
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    attended = _Attention.apply(
        query, repeat_kv(key, repeats), repeat_kv(value, repeats), attention_mask, causal, scale, dropout
    )
    return attended.transpose(1, 2).contiguous(), None


def _is_faster_here(query: Tensor, key: Tensor, mask: Tensor | None, dropout: float, others: dict[str, Any]) -> bool:
    _, heads, length, _ = query.shape
    return (
        query.device.type == "cpu"
        and not torch.compiler.is_compiling()
        and (query.dtype == torch.bfloat16 or (query.dtype == torch.float32 and dropout > 0))
        and length > 1
        and key.shape[2] == length
        and (mask is None or mask.dtype == torch.bool)
        and _fits(heads, length, bytes_each=query.element_size())
        and not any(others.get(name) is not None for name in ("position_bias", "softcap", "cache", "s_aux"))
    )


def _fits(heads: int, length: int, *, bytes_each: int) -> bool:
    return heads * length**2 * bytes_each <= _MOST_BYTES_A_ROW


class _Attention(torch.autograd.Function):
    """softmax(scale * Q K^T) V, a few rows at a time; the probabilities are kept for the backward pass.

    A probability that was dropped is kept with its sign turned: both it and the mask are needed again.
    """

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        causal: bool,
        scale: float,
        dropout: float,
    ) -> Tensor:
        rows, heads, length, width = query.shape
        flat = (rows * heads, length, width)
        query, key, value = query.reshape(flat), key.reshape(flat), value.reshape(flat)
        if causal:
            mask = torch.ones(1, 1, length, length, dtype=torch.bool).tril_()
        step = heads * max(1, _BYTES_AT_A_TIME // (heads * length**2 * query.element_size()))
        attended = torch.empty_like(query)
        kept: list[Tensor] = []
        level, share = _quantise(dropout)
        with torch.autocast("cpu", enabled=False):  # softmax would go to fp32
            for start in range(0, rows * heads, step):
                part = slice(start, start + step)
                scores = _bmm(query[part], key[part].transpose(1, 2), scale)
                if mask is not None:
                    _hide(scores, mask, heads, part)
                probabilities = torch.softmax(scores, dim=-1)
                if level:
                    _turn_sign_of_dropped(probabilities, level)
                    torch.bmm(probabilities.clamp_min(0), value[part], out=attended[part])
                else:
                    torch.bmm(probabilities, value[part], out=attended[part])
                if any(ctx.needs_input_grad):
                    kept.append(probabilities)
            if level:
                attended.mul_(1 / (1 - share))
        if any(ctx.needs_input_grad):
            ctx.save_for_backward(query, key, value, attended, *kept)
            ctx.settings = scale, share, step, (rows, heads, length, width)
        return attended.view(rows, heads, length, width)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, attended, *kept = ctx.saved_tensors
        scale, share, step, shape = ctx.settings
        grad = grad.reshape(query.shape)
        of_rows = (grad * attended).sum(dim=-1, keepdim=True)  # sum over keys of probability times its gradient
        grad_query, grad_key, grad_value = (torch.empty_like(query) for _ in range(3))
        for start, probabilities in zip(range(0, len(query), step), kept, strict=True):
            part = slice(start, start + step)
            grad_scores = torch.bmm(grad[part], value[part].transpose(1, 2))
            if share:
                used = probabilities.clamp_min(0)
                torch.baddbmm(
                    grad_value[part],
                    used.transpose(1, 2),
                    grad[part],
                    beta=0,
                    alpha=1 / (1 - share),
                    out=grad_value[part],
                )
                grad_scores.mul_(used).mul_(1 / (1 - share)).sub_(probabilities.abs().mul_(of_rows[part]))
            else:
                torch.bmm(probabilities.transpose(1, 2), grad[part], out=grad_value[part])
                grad_scores.sub_(of_rows[part]).mul_(probabilities)
            torch.baddbmm(grad_query[part], grad_scores, key[part], beta=0, alpha=scale, out=grad_query[part])
            torch.baddbmm(
                grad_key[part], grad_scores.transpose(1, 2), query[part], beta=0, alpha=scale, out=grad_key[part]
            )
        return grad_query.view(shape), grad_key.view(shape), grad_value.view(shape), None, None, None, None


def _bmm(left: Tensor, right: Tensor, scale: float) -> Tensor:
    """scale * left @ right, scaled before it is rounded."""
    product = left.new_empty(len(left), left.shape[1], right.shape[2])
    return torch.baddbmm(product, left, right, beta=0, alpha=scale)


def _hide(scores: Tensor, mask: Tensor, heads: int, part: slice) -> None:
    """Scores `[rows * H, T, T]` where the mask `[B or 1, 1, T, T]` is false become the least there is."""
    by_row = scores.view(-1, heads, *scores.shape[1:])
    if len(mask) > 1:
        mask = mask[part.start // heads : part.start // heads + len(by_row)]
    by_row.masked_fill_(~mask, torch.finfo(scores.dtype).min)


def _quantise(dropout: float) -> tuple[int, float]:
    """The level below which a random number drops, and the share that this drops: within 2^-16 of `dropout`."""
    level = round(dropout * _LEVELS)
    return level, level / _LEVELS


def _turn_sign_of_dropped(probabilities: Tensor, level: int) -> None:
    if probabilities.dtype == torch.bfloat16:
        below = _draw(probabilities.numel()).sub_(level).bitwise_and_(-_LEVELS)  # the sign bit where it is below
        probabilities.view(torch.int16).bitwise_or_(below.view(probabilities.shape))
    else:
        kept = (_draw(probabilities.numel()) >= level).view(probabilities.shape)
        probabilities.mul_(kept.to(probabilities.dtype).mul_(2).sub_(1))


def _draw(count: int) -> Tensor:
    """Random numbers from 0 to 2^15 - 1, `[count]` int16: a function of torch's generator."""
    seed = int(torch.randint(2**62, (), device="cpu"))
    generator = np.random.Generator(np.random.SFC64(seed))
    words = generator.integers(-(2**63), 2**63, size=-(-count // 4), dtype=np.int64)
    return torch.from_numpy(words).view(torch.int16)[:count].bitwise_and_(_LEVELS - 1)
