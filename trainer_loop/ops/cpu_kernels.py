"""Faster CPU versions of operations that are slow in torch: attention in bf16, dropout, gradients of embeddings.

torch's flash attention for CPUs is no faster in bf16 than in fp32, and does not support dropout or a trainable bias.
With these, torch computes whole matrices of scores in fp32, and for dropout it draws a random number for each score,
which takes six nanoseconds. This module computes scores in bf16, a few megabytes at a time, with 16 random bits each.
This takes a third to a fifth of the time for the lengths of most texts.

torch's gradient of an embedding is as large as the whole vocabulary, but a microbatch contains only a few hundred
different tokens.
"""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

_BYTES_AT_A_TIME = 8 * 2**20  # scores computed and used while they are in the cache
_MOST_BYTES_A_ROW = 16 * 2**20  # of scores; with more, torch's flash attention is faster
_VECTOR_SIZE = 32  # bf16 scores in one AVX-512 step of softmax; the remainder of a row is processed one by one
_LEAST_REMAINDER_TO_PAD = 12  # a smaller remainder is faster without padding
_LEVELS = 2**15  # number of values of a random number


def use_cpu_modules(model: nn.Module) -> None:
    """Use the dropout and the embedding of this module in a model; its parameters and names do not change."""
    for module in model.modules():
        if type(module) is nn.Dropout:
            module.__class__ = CpuDropout
        elif type(module) is nn.Embedding:
            module.__class__ = CpuEmbedding


class CpuDropout(nn.Dropout):
    """Dropout with random numbers of 15 bits; their seed is drawn from torch's generator."""

    def forward(self, input: Tensor) -> Tensor:
        if not self.training or self.p in (0.0, 1.0) or input.device.type != "cpu" or torch.compiler.is_compiling():
            return super().forward(input)
        level, share = _quantise(self.p)
        kept = (_draw_ints(input.numel()) >= level).view(input.shape)
        return input * kept.to(input.dtype).mul_(1 / (1 - share))


class CpuEmbedding(nn.Embedding):
    """An embedding that updates an existing gradient only for the tokens of its input."""

    def forward(self, input: Tensor) -> Tensor:
        is_plain = self.max_norm is None and not self.scale_grad_by_freq and not self.sparse
        needs_gradient = self.weight.requires_grad and torch.is_grad_enabled()
        is_faster = input.device.type == "cpu" and input.numel() < self.num_embeddings
        if not (is_plain and needs_gradient and is_faster) or torch.compiler.is_compiling():
            return super().forward(input)
        embedded: Tensor = _Embedding.apply(self.weight, input, self.padding_idx)
        return embedded


def is_faster_on_cpu(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, bias: Tensor | None, *, causal: bool, dropout: float
) -> bool:
    """Whether `CpuAttention` supports these tensors and is faster than torch."""
    rows, heads, num_queries, width = query.shape
    num_keys = key.shape[2]
    is_plain = bias is None and num_queries == num_keys
    is_faster_in_fp32 = dropout > 0 and is_plain  # with a bias, or in cross-attention, the gain is small
    return (
        query.device.type == "cpu"
        and not torch.compiler.is_compiling()
        and (query.dtype == torch.bfloat16 or (query.dtype == torch.float32 and is_faster_in_fp32))
        and dropout < 1
        and query.dtype == key.dtype == value.dtype
        and num_queries > 1
        and key.shape == value.shape
        and key.shape[::3] == (rows, width)
        and (num_queries == num_keys or not causal)
        and (mask is None or mask.dtype == torch.bool)
        and (bias is None or bias.shape == (1, heads, num_queries, num_keys))
        and fits_on_cpu(heads, num_queries * num_keys, bytes_each=query.element_size())
    )


def fits_on_cpu(heads: int, scores: int, *, bytes_each: int) -> bool:
    """Whether the scores of all heads of a row fit into the memory for which `CpuAttention` is faster."""
    return heads * scores * bytes_each <= _MOST_BYTES_A_ROW


class _Embedding(torch.autograd.Function):
    """The gradient is dense if the weight has no gradient yet; it is sparse if torch can add it to a dense one."""

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


class CpuAttention(torch.autograd.Function):
    """softmax(scale * Q K^T + bias) V, `[B, H, T, D]` like query, with dropout of the probabilities.

    `key` and `value` are `[B, H, K, D]`. `mask` `[B or 1, 1, T, K]` is true where a query may attend to a key; None for
    all keys. `bias` is `[1, H, T, K]`. With `causal`, a query attends only to itself and earlier keys, K is T, and the
    mask must be None. The probabilities are kept for the backward pass, which needs their values and the dropout mask:
    a dropped probability has a negative sign.
    """

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        bias: Tensor | None,
        causal: bool,
        scale: float,
        dropout: float,
    ) -> Tensor:
        rows, heads, length, width = query.shape
        num_keys = key.shape[2]
        query = query.reshape(rows * heads, length, width)
        key, value = _pad_keys(key), _pad_keys(value)
        if causal:
            mask = torch.ones(1, 1, length, num_keys, dtype=torch.bool).tril_()
        hidden = None if mask is None else _find_hidden(mask, query.dtype)
        added = None if bias is None else bias.to(query.dtype, memory_format=torch.contiguous_format)
        step = heads * max(1, _BYTES_AT_A_TIME // (heads * length * key.shape[1] * query.element_size()))
        attended = torch.empty_like(query)
        kept: list[Tensor] = []
        needs_gradient = any(ctx.needs_input_grad)
        level, share = _quantise(dropout)
        with torch.autocast("cpu", enabled=False):  # autocast would compute softmax in fp32
            for start in range(0, rows * heads, step):
                part = slice(start, start + step)
                scores = query.new_empty(len(query[part]), length, key.shape[1])
                _multiply(query[part], key[part].transpose(1, 2), scale, out=scores)
                scores[..., num_keys:] = -torch.inf
                if added is not None:
                    scores.view(-1, heads, length, key.shape[1])[..., :num_keys].add_(added)
                if hidden is not None:
                    _hide(scores[..., :num_keys], hidden, heads, part)
                probabilities = torch.softmax(scores, dim=-1)
                if level:
                    _negate_dropped(probabilities, level)
                    torch.bmm(probabilities.clamp_min(0), value[part], out=attended[part])
                else:
                    torch.bmm(probabilities, value[part], out=attended[part])
                if needs_gradient:
                    kept.append(probabilities)
            if level:
                attended.mul_(1 / (1 - share))
        if needs_gradient:
            ctx.save_for_backward(query, key, value, attended if share else None, *kept)
            ctx.settings = scale, share, step, (rows, heads, length, width), num_keys
            ctx.bias_type = bias.dtype if bias is not None and ctx.needs_input_grad[4] else None
        return attended.view(rows, heads, length, width)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, attended, *kept = ctx.saved_tensors
        scale, share, step, shape, num_keys = ctx.settings
        rows, heads, length, width = shape
        grad = grad.reshape(query.shape)
        # Sums over keys of probability times gradient; dropped probabilities contribute nothing.
        row_sums = None if attended is None else (grad * attended).sum(dim=-1, keepdim=True)
        grad_query, grad_key, grad_value = (torch.empty_like(tensor) for tensor in (query, key, value))
        grad_bias = None if ctx.bias_type is None else torch.zeros(heads, length, key.shape[1])
        for start, probabilities in zip(range(0, len(query), step), kept, strict=True):
            part = slice(start, start + step)
            grad_scores = torch.bmm(grad[part], value[part].transpose(1, 2))
            if row_sums is not None:
                used = probabilities.clamp_min(0)
                _multiply(used.transpose(1, 2), grad[part], 1 / (1 - share), out=grad_value[part])
                grad_scores.mul_(used).mul_(1 / (1 - share)).sub_(probabilities.abs().mul_(row_sums[part]))
            else:
                torch.bmm(probabilities.transpose(1, 2), grad[part], out=grad_value[part])
                grad_scores = torch._softmax_backward_data(grad_scores, probabilities, -1, probabilities.dtype)
            _multiply(grad_scores, key[part], scale, out=grad_query[part])
            _multiply(grad_scores.transpose(1, 2), query[part], scale, out=grad_key[part])
            if grad_bias is not None:
                grad_bias += grad_scores.view(-1, *grad_bias.shape).sum(dim=0, dtype=grad_bias.dtype)
        grad_key, grad_value = (grad.view(rows, heads, -1, width)[:, :, :num_keys] for grad in (grad_key, grad_value))
        grad_bias = None if grad_bias is None else grad_bias[None, ..., :num_keys].to(ctx.bias_type)
        return grad_query.view(shape), grad_key, grad_value, None, grad_bias, None, None, None


def _pad_keys(keys: Tensor) -> Tensor:
    """Reshape `[B, H, T, D]` to `[B * H, P, D]`, with zeros at the end if a softmax over P scores is faster."""
    rows, heads, length, width = keys.shape
    remainder = length % _VECTOR_SIZE
    if keys.dtype != torch.bfloat16 or remainder < _LEAST_REMAINDER_TO_PAD:
        return keys.reshape(rows * heads, length, width)
    padded = keys.new_empty(rows, heads, length - remainder + _VECTOR_SIZE, width)
    padded[:, :, :length] = keys
    padded[:, :, length:] = 0
    return padded.flatten(0, 1)


def _multiply(left: Tensor, right: Tensor, scale: float, *, out: Tensor) -> None:
    """out = scale * left @ right; the product is scaled before it is rounded."""
    torch.baddbmm(out, left, right, beta=0, alpha=scale, out=out)


def _find_hidden(mask: Tensor, dtype: torch.dtype) -> list[int] | Tensor:
    """Return the first hidden key of each row; for other masks, a tensor to add to the scores `[..., T, K]`."""
    keys = mask[:, 0, 0]
    same_for_all_queries = mask.stride(2) == 0
    if same_for_all_queries and not bool((keys[:, 1:] & ~keys[:, :-1]).any()):
        return keys.sum(dim=-1).tolist()  # type: ignore[no-any-return]
    lowest = torch.finfo(dtype).min / 2  # low enough to absorb every score, and no score makes the sum infinite
    return torch.zeros(mask.shape, dtype=dtype).masked_fill_(~mask, lowest)


def _hide(scores: Tensor, hidden: list[int] | Tensor, heads: int, part: slice) -> None:
    """Set scores `[rows * H, T, K]` that the mask hides to the lowest value. Filling a part is faster than adding."""
    row_scores = scores.view(-1, heads, *scores.shape[1:])
    if len(hidden) > 1:
        first = part.start // heads
        hidden = hidden[first : first + len(row_scores)]
    if isinstance(hidden, Tensor):
        row_scores.add_(hidden)
        return
    lowest = torch.finfo(scores.dtype).min / 2
    for row, end in zip(
        row_scores, hidden if len(hidden) == len(row_scores) else hidden * len(row_scores), strict=True
    ):
        row[:, :, end:] = lowest


def _quantise(dropout: float) -> tuple[int, float]:
    """Return the level below which a random number drops, and the share that is dropped: within 2^-16 of `dropout`."""
    level = min(round(dropout * _LEVELS), _LEVELS - 1)
    return level, level / _LEVELS


def _negate_dropped(probabilities: Tensor, level: int) -> None:
    """Make a random share of the probabilities negative, in place."""
    if probabilities.dtype == torch.bfloat16:
        below = _draw_ints(probabilities.numel()).sub_(level).bitwise_and_(-_LEVELS)  # sign bit if below the level
        probabilities.view(torch.int16).bitwise_or_(below.view(probabilities.shape))
    else:
        kept = (_draw_ints(probabilities.numel()) >= level).view(probabilities.shape)
        probabilities.mul_(kept.to(probabilities.dtype).mul_(2).sub_(1))


def _draw_ints(count: int) -> Tensor:
    """Draw random integers from 0 to 2^15 - 1, `[count]` int16, with a seed from torch's generator."""
    seed = int(torch.randint(2**62, (), device="cpu"))
    generator = np.random.Generator(np.random.SFC64(seed))
    words = generator.integers(-(2**63), 2**63, size=-(-count // 4), dtype=np.int64)
    return torch.from_numpy(words).view(torch.int16)[:count].bitwise_and_(_LEVELS - 1)
