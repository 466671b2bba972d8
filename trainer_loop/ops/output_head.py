"""Applies the output head of a language model to a few tokens at a time, so logits `[B, T, V]` are never held at once.

The whole model runs, with all wrappers, but its head returns its input, the hidden states. The logits are computed from
these, chunk by chunk.
"""

import contextlib
import math
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.distributed.fsdp import FSDPModule
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from trainer_loop.runtime.memory import is_out_of_memory
from trainer_loop.runtime.randomness import evaluating, keeping_random_state

LossFunction = Callable[[Tensor, Tensor], Tensor]
Forward = Callable[..., Tensor]

# Logits in one chunk: 128 and 512 MiB in fp32. Small chunks are slower: each adds to the gradient of the whole weight.
_MOST_LOGITS = {"cpu": 2**25, "cuda": 2**27}


class OutputHead:
    """The last linear layer of a model: `logits = hidden states @ weight.T + bias`.

    Args:
        dtype: type of the matrix product; None for the type of the weight.
    """

    def __init__(self, linear: nn.Linear, dtype: torch.dtype | None):
        self.linear = linear
        self.dtype = dtype
        self._without_parameters: dict[LossFunction, bool] = {}  # see `_depends_on_logits_alone`

    @contextlib.contextmanager
    def returning_hidden_states(self) -> Iterator[None]:
        """Make the model return hidden states `[B, T, D]` instead of logits inside the block."""
        self.linear.forward = lambda input: input  # type: ignore[method-assign]
        try:
            yield
        finally:
            del self.linear.forward

    def chunks(self, hidden: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """Yield slices of the N tokens of hidden states `[N, D]`, and their logits `[chunk, V]` in float32 or wider."""
        for rows in _split(hidden, self.linear.out_features):
            yield rows, _compute_logits(hidden[rows], self.linear.weight, self.linear.bias, self.dtype)

    def try_loss(self, loss_function: LossFunction) -> None:
        """Test a loss function on two artificial tokens, once. The result decides how `loss` computes gradients."""
        if torch.is_grad_enabled() and self.dtype != torch.float16:
            self._depends_on_logits_alone(loss_function)

    def loss(self, hidden: Tensor, targets: Tensor, loss_function: LossFunction) -> Tensor:
        """Compute the sum of a loss over N tokens, `[]`, chunk by chunk. It can be differentiated.

        Args:
            hidden: hidden states `[N, D]`.
            targets: `[N]`.
            loss_function: takes logits `[n, V]` and targets `[n]`, and returns a sum.
        """
        weight, bias = self.linear.weight, self.linear.bias
        if torch.is_grad_enabled() and self.dtype != torch.float16 and self._depends_on_logits_alone(loss_function):
            loss: Tensor = _LossInChunks.apply(hidden, weight, bias, targets, loss_function, self.dtype)
            return loss

        # In fp16, small gradients would become zero without the loss scale, which only the backward pass knows. A loss
        # function with trainable weights also needs the usual backward pass.
        def compute(states: Tensor, chunk_targets: Tensor) -> Tensor:
            return loss_function(_compute_logits(states, weight, bias, self.dtype), chunk_targets)

        chunks = _split(hidden, self.linear.out_features)
        losses = [checkpoint(compute, hidden[rows], targets[rows], use_reentrant=False) for rows in chunks]
        return torch.stack(losses).sum()

    def _depends_on_logits_alone(self, loss_function: LossFunction) -> bool:
        """Whether the loss function has no trainable weights. Tested once per function, on logits of two tokens."""
        if loss_function not in self._without_parameters:
            weight = self.linear.weight
            dtype = torch.promote_types(weight.dtype, torch.float32)
            logits = torch.zeros(2, len(weight), dtype=dtype, device=weight.device, requires_grad=True)
            with keeping_random_state(weight.device):  # a resumed run repeats this test
                loss = loss_function(logits, torch.arange(2, device=weight.device))
            self._without_parameters[loss_function] = all(leaf is logits for leaf in find_leaves(loss.grad_fn))
        return self._without_parameters[loss_function]


class NoOutputHead:
    """Replaces `OutputHead` if the model changes its logits after the head; the model returns all logits at once."""

    def returning_hidden_states(self) -> contextlib.AbstractContextManager[None]:
        """Does nothing."""
        return contextlib.nullcontext()

    def chunks(self, logits: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """Yield all logits `[N, V]` in one chunk."""
        yield slice(None), logits

    def try_loss(self, loss_function: LossFunction) -> None:
        """Does nothing."""

    def loss(self, logits: Tensor, targets: Tensor, loss_function: LossFunction) -> Tensor:
        """Compute the loss of all logits `[N, V]` at once."""
        return loss_function(logits, targets)


_HEADS: weakref.WeakKeyDictionary[nn.Module, OutputHead | NoOutputHead] = weakref.WeakKeyDictionary()


def find_output_head(model: nn.Module, run: Callable[[Forward], Tensor]) -> OutputHead | NoOutputHead:
    """Return the head of a model, which may be wrapped for data parallelism. The result is cached for each model.

    Args:
        run: calls a forward pass on a few tokens and returns its logits, or hidden states, `[B, T, ...]`.
    """
    bare = model.module if isinstance(model, DistributedDataParallel) else model
    if bare not in _HEADS:
        _HEADS[bare] = _look_for_head(bare, run)
    return _HEADS[bare]


def _look_for_head(model: nn.Module, run: Callable[[Forward], Tensor]) -> OutputHead | NoOutputHead:
    """Find the head if the model returns its output unchanged. A test run detects a cap or a scale behind the head."""
    find = getattr(model, "get_output_embeddings", None)
    layer = find() if callable(find) else None
    if type(layer) is not nn.Linear or "forward" in vars(layer) or layer._forward_hooks or layer._forward_pre_hooks:
        return NoOutputHead()
    call = model if isinstance(model, FSDPModule) else model.forward  # the hooks that gather the weights are needed
    for width in (layer.in_features, layer.out_features):  # hidden states pass through unchanged, and so do logits
        artificial = _ArtificialLayer(width)
        layer.forward = artificial  # type: ignore[method-assign]
        try:
            with torch.no_grad(), evaluating(model):
                returned = run(call)
        except RuntimeError as error:  # the code behind the head needs another shape
            if is_out_of_memory(error):
                raise
            return NoOutputHead()
        finally:
            del layer.forward
        if len(artificial.numbers) != 1 or not torch.equal(returned.float(), artificial.numbers[0].float()):
            return NoOutputHead()
    return OutputHead(layer, artificial.dtype)


class _ArtificialLayer:
    """Replaces a layer: returns large artificial values `[..., width]` and records the type that autocast would use."""

    def __init__(self, width: int):
        self.width = width
        self.numbers: list[Tensor] = []
        self.dtype: torch.dtype | None = None

    def __call__(self, input: Tensor) -> Tensor:
        kind, shape = input.device.type, (*input.shape[:-1], self.width)
        if torch.is_autocast_enabled(kind):
            self.dtype = torch.get_autocast_dtype(kind)
        self.numbers.append(torch.linspace(-1000, 1000, math.prod(shape)).to(input).view(shape))
        return self.numbers[-1]


def _split(hidden: Tensor, vocabulary: int) -> list[slice]:
    """Split `[N, D]` into slices whose logits are few enough; one empty slice if there are no tokens."""
    size = max(1, _MOST_LOGITS.get(hidden.device.type, _MOST_LOGITS["cuda"]) // vocabulary)
    return [slice(start, start + size) for start in range(0, max(len(hidden), 1), size)]


def _compute_logits(hidden: Tensor, weight: Tensor, bias: Tensor | None, dtype: torch.dtype | None) -> Tensor:
    dtype = dtype or weight.dtype
    logits = F.linear(hidden.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype))
    return logits if dtype.itemsize > 4 else logits.float()


class _LossInChunks(torch.autograd.Function):
    """Computes the gradients together with the logits of a chunk, so logits are neither kept nor computed again."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        loss_function: LossFunction,
        dtype: torch.dtype | None,
    ) -> Tensor:
        wants_hidden, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        grad_hidden = torch.empty_like(hidden) if wants_hidden else None
        grad_weight = torch.zeros_like(weight) if wants_weight else None
        grad_bias = torch.zeros_like(bias) if bias is not None and wants_bias else None
        cast_weight = weight.to(dtype or weight.dtype)  # once, instead of once per chunk
        losses = []
        for rows in _split(hidden, len(weight)):
            states = hidden[rows].to(cast_weight.dtype)
            logits = _compute_logits(states, cast_weight, bias, dtype)
            loss, grad_logits = _differentiate(loss_function, logits, targets[rows])
            losses.append(loss)
            if grad_bias is not None:
                grad_bias += grad_logits.sum(dim=0)
            grad_logits = grad_logits.to(cast_weight.dtype)
            if grad_hidden is not None:
                grad_hidden[rows] = grad_logits @ cast_weight
            if grad_weight is not None and cast_weight.dtype == weight.dtype:
                grad_weight.addmm_(grad_logits.T, states)
            elif grad_weight is not None:
                grad_weight += grad_logits.T @ states
        ctx.gradients = (grad_hidden, grad_weight, grad_bias)
        return torch.stack(losses).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor | None, ...]:
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None:
            raise RuntimeError("the gradients of this loss were handed out already; compute the loss again")
        return *(None if gradient is None else gradient.mul_(grad_loss) for gradient in gradients), None, None, None


def _differentiate(loss_function: LossFunction, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the loss of a chunk and its gradient with respect to the logits `[chunk, V]`."""
    logits.requires_grad_()
    with torch.enable_grad():
        loss = loss_function(logits, targets)
    gradient = torch.autograd.grad(loss, logits, allow_unused=True)[0] if loss.requires_grad else None
    # A loss may be constant on a chunk without targets.
    return loss.detach(), torch.zeros_like(logits) if gradient is None else gradient


def find_leaves(node: Any) -> Iterator[Tensor]:
    """Yield the trainable tensors from which a result was computed. `node` is the `grad_fn` of the result."""
    seen, waiting = set(), [node]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            yield node.variable
        waiting += [following for following, _ in node.next_functions]
