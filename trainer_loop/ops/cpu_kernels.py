"""What torch does slowly on a CPU, done faster there: attention in bf16, dropout, and gradients of embeddings.

torch's flash attention for CPUs is no faster in bf16 than in fp32, and takes no dropout: with dropout it computes whole
matrices of scores in fp32 and draws a random number for each at six nanoseconds. Scores in bf16, a few megabytes at a
time, with 16 random bits each, take a third to a fifth of the time at the lengths of most texts.

The gradient of an embedding is as large as its whole vocabulary, of which a microbatch has a few hundred words.
"""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

_BYTES_AT_A_TIME = 8 * 2**20  # scores that are made, used and left while they are in the cache
_MOST_BYTES_A_ROW = 16 * 2**20  # of scores: from there on torch's flash attention is faster
_VECTOR = 32  # scores in bf16 that softmax takes at once with AVX-512; what is left over of a row it takes one by one
_FEW_LEFT = 12  # fewer than these take less time than what would fill the vector
_LEVELS = 2**15  # of a random number


def use_cpu_modules(model: nn.Module) -> None:
    """Let a model drop out and embed by the functions of this file; its parameters and names stay."""
    for module in model.modules():
        if type(module) is nn.Dropout:
            module.__class__ = CpuDropout
        elif type(module) is nn.Embedding:
            module.__class__ = CpuEmbedding


class CpuDropout(nn.Dropout):
    """Dropout whose random numbers have 15 bits; their seed is drawn from torch's generator."""

    def forward(self, input: Tensor) -> Tensor:
        if not self.training or self.p in (0.0, 1.0) or input.device.type != "cpu" or torch.compiler.is_compiling():
            return super().forward(input)
        level, share = _quantise(self.p)
        kept = (_draw(input.numel()) >= level).view(input.shape)
        return input * kept.to(input.dtype).mul_(1 / (1 - share))


class CpuEmbedding(nn.Embedding):
    """An embedding that adds to a gradient only for the tokens of its input, once there is a gradient to add to."""

    def forward(self, input: Tensor) -> Tensor:
        is_plain = self.max_norm is None and not self.scale_grad_by_freq and not self.sparse
        learns = self.weight.requires_grad and torch.is_grad_enabled()
        is_worth_it = input.device.type == "cpu" and input.numel() < self.num_embeddings
        if not (is_plain and learns and is_worth_it) or torch.compiler.is_compiling():
            return super().forward(input)
        embedded: Tensor = _Embedding.apply(self.weight, input, self.padding_idx)
        return embedded


def attend_on_cpu(
    query: Tensor, key: Tensor, value: Tensor, *, mask: Tensor | None, causal: bool, scale: float, dropout: float
) -> Tensor:
    """softmax(scale * Q K^T) V of `[B, H, T, D]` each, with dropout of the probabilities: `[B, H, T, D]`.

    mask: `[B or 1, 1, T, T]`, true where a query may look. causal: it may look at itself and back; without a mask.
    """
    attended: Tensor = _Attention.apply(query, key, value, mask, causal, scale, dropout)
    return attended


def is_faster_on_cpu(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, *, dropout: float) -> bool:
    """Whether `attend_on_cpu` takes these, and less time than torch."""
    _, heads, length, _ = query.shape
    return (
        query.device.type == "cpu"
        and not torch.compiler.is_compiling()
        and (query.dtype == torch.bfloat16 or (query.dtype == torch.float32 and dropout > 0))
        and dropout < 1
        and query.dtype == key.dtype == value.dtype
        and length > 1
        and key.shape == value.shape
        and key.shape[2:] == query.shape[2:]
        and (mask is None or mask.dtype == torch.bool)
        and fits_on_cpu(heads, length, bytes_each=query.element_size())
    )


def fits_on_cpu(heads: int, length: int, *, bytes_each: int) -> bool:
    """Whether the scores of a row are few enough."""
    return heads * length**2 * bytes_each <= _MOST_BYTES_A_ROW


class _Embedding(torch.autograd.Function):
    """Its gradient is dense where the weight has none yet, and sparse where torch only has to add it to one."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, input: Tensor, padding_idx: int | None) -> Tensor:
        ctx.weight = weight
        ctx.padding_idx = padding_idx
        ctx.save_for_backward(input)
        return F.embedding(input, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (input,) = ctx.saved_tensors
        weight, padding_idx = ctx.weight, ctx.padding_idx
        if weight.grad is None or weight.grad.is_sparse:
            padding = -1 if padding_idx is None else padding_idx
            return torch.ops.aten.embedding_dense_backward(grad, input, len(weight), padding, False), None, None
        tokens, grads = input.flatten(), grad.reshape(-1, grad.shape[-1])
        if padding_idx is not None:
            others = tokens != padding_idx
            tokens, grads = tokens[others], grads[others]
        return torch.sparse_coo_tensor(tokens[None], grads, weight.shape, check_invariants=False), None, None


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
        query = query.reshape(rows * heads, length, width)
        key, value = _pad_keys(key), _pad_keys(value)
        if causal:
            mask = torch.ones(1, 1, length, length, dtype=torch.bool).tril_()
        hidden = None if mask is None else _find_hidden(mask, query.dtype)
        step = heads * max(1, _BYTES_AT_A_TIME // (heads * length * key.shape[1] * query.element_size()))
        attended = torch.empty_like(query)
        kept: list[Tensor] = []
        learns = any(ctx.needs_input_grad)
        level, share = _quantise(dropout)
        with torch.autocast("cpu", enabled=False):  # softmax would go to fp32
            for start in range(0, rows * heads, step):
                part = slice(start, start + step)
                scores = query.new_empty(len(query[part]), length, key.shape[1])
                _multiply(query[part], key[part].transpose(1, 2), scale, out=scores)
                scores[..., length:] = -torch.inf
                if hidden is not None:
                    _hide(scores[..., :length], hidden, heads, part)
                probabilities = torch.softmax(scores, dim=-1)
                if level:
                    _turn_sign_of_dropped(probabilities, level)
                    torch.bmm(probabilities.clamp_min(0), value[part], out=attended[part])
                else:
                    torch.bmm(probabilities, value[part], out=attended[part])
                if learns:
                    kept.append(probabilities)
            if level:
                attended.mul_(1 / (1 - share))
        if learns:
            ctx.save_for_backward(query, key, value, attended if share else None, *kept)
            ctx.settings = scale, share, step, (rows, heads, length, width)
        return attended.view(rows, heads, length, width)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, attended, *kept = ctx.saved_tensors
        scale, share, step, shape = ctx.settings
        rows, heads, length, width = shape
        grad = grad.reshape(query.shape)
        # Sums over keys of a probability times its gradient, without a look at those that were dropped.
        of_rows = None if attended is None else (grad * attended).sum(dim=-1, keepdim=True)
        grad_query, grad_key, grad_value = (torch.empty_like(tensor) for tensor in (query, key, value))
        for start, probabilities in zip(range(0, len(query), step), kept, strict=True):
            part = slice(start, start + step)
            grad_scores = torch.bmm(grad[part], value[part].transpose(1, 2))
            if of_rows is not None:
                used = probabilities.clamp_min(0)
                _multiply(used.transpose(1, 2), grad[part], 1 / (1 - share), out=grad_value[part])
                grad_scores.mul_(used).mul_(1 / (1 - share)).sub_(probabilities.abs().mul_(of_rows[part]))
            else:
                torch.bmm(probabilities.transpose(1, 2), grad[part], out=grad_value[part])
                grad_scores = torch._softmax_backward_data(grad_scores, probabilities, -1, probabilities.dtype)
            _multiply(grad_scores, key[part], scale, out=grad_query[part])
            _multiply(grad_scores.transpose(1, 2), query[part], scale, out=grad_key[part])
        grad_key, grad_value = (grad.view(rows, heads, -1, width)[:, :, :length] for grad in (grad_key, grad_value))
        return grad_query.view(shape), grad_key, grad_value, None, None, None, None


def _pad_keys(keys: Tensor) -> Tensor:
    """Keys or values `[B, H, T, D]` as `[B * H, P, D]`: zeros follow them where the softmax of P scores is faster."""
    rows, heads, length, width = keys.shape
    left = length % _VECTOR
    if keys.dtype != torch.bfloat16 or left < _FEW_LEFT:
        return keys.reshape(rows * heads, length, width)
    padded = keys.new_empty(rows, heads, length - left + _VECTOR, width)
    padded[:, :, :length] = keys
    padded[:, :, length:] = 0
    return padded.flatten(0, 1)


def _multiply(left: Tensor, right: Tensor, scale: float, *, out: Tensor) -> None:
    """out = scale * left @ right, scaled before it is rounded."""
    torch.baddbmm(out, left, right, beta=0, alpha=scale, out=out)


def _find_hidden(mask: Tensor, dtype: torch.dtype) -> list[int] | Tensor:
    """What a mask `[B or 1, 1, T, T]` hides: from which key on, by row, or else what to add to scores `[..., T, T]`."""
    keys = mask[:, 0, 0]
    same_for_all_queries = mask.stride(2) == 0
    if same_for_all_queries and not bool((keys[:, 1:] & ~keys[:, :-1]).any()):
        return keys.sum(dim=-1).tolist()  # type: ignore[no-any-return]
    least = torch.finfo(dtype).min / 2  # so that no score makes it infinite, and every one is lost in its rounding
    return torch.zeros(mask.shape, dtype=dtype).masked_fill_(~mask, least)


def _hide(scores: Tensor, hidden: list[int] | Tensor, heads: int, part: slice) -> None:
    """Scores `[rows * H, T, T]` that a mask hides become the least there are: to fill some beats adding to all."""
    by_row = scores.view(-1, heads, *scores.shape[1:])
    if len(hidden) > 1:
        first = part.start // heads
        hidden = hidden[first : first + len(by_row)]
    if isinstance(hidden, Tensor):
        by_row.add_(hidden)
        return
    least = torch.finfo(scores.dtype).min / 2
    for row, end in zip(by_row, hidden if len(hidden) == len(by_row) else hidden * len(by_row), strict=True):
        row[:, :, end:] = least


def _quantise(dropout: float) -> tuple[int, float]:
    """The level below which a random number drops, and the share that this drops: within 2^-16 of `dropout`."""
    level = min(round(dropout * _LEVELS), _LEVELS - 1)
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
