"""Runs a model on fake tensors to measure the memory and computations of its passes, without using that memory.

The weights are torch's fake tensors, which have only a shape, a type and a device. The batch keeps its values. So a
tensor that depends on the batch alone, such as an attention mask, has values that the code of the model can read.
"""

import copy
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import chain
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.optim import Optimizer
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

_MOST_NUMBERS = 2**20  # elements of a constant that is still computed with real values
_NOT_COUNTED = {  # attention on CPUs, which torch's counter lacks
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda query, key, value, *_, **__: sdpa_flop_count(
        query, key, value
    ),
}


@dataclass(eq=False)
class Outline:
    """A model with fake weights, its optimizer and its averaged weights."""

    model: nn.Module
    optimizer: Optimizer | None = None
    averages: Sequence[Tensor] = ()
    fakes: FakeTensorMode = field(default_factory=lambda: FakeTensorMode(allow_non_fake_inputs=True))

    @property
    def state(self) -> list[Tensor]:
        """The tensors of the optimizer state; empty before a call of `update` or `measure_update`."""
        states = [] if self.optimizer is None else self.optimizer.state.values()
        return [value for state in states for value in state.values() if isinstance(value, Tensor)]

    def cast_weights(self, dtype: torch.dtype) -> None:
        """Cast the floating-point weights to `dtype`, and drop their gradients."""
        with self.fakes:
            for weight in self.model.parameters():
                if weight.is_floating_point():
                    weight.grad, weight.data = None, weight.data.to(dtype)


def outline_model(model: nn.Module, device: torch.device) -> Outline:
    """Copy a model, in training mode, with fake tensors on `device` as its floating-point weights and buffers."""
    outline, device = Outline(model), name_device(device)
    memo: dict[int, Any] = {}  # `deepcopy` uses these in place of copies
    with outline.fakes:
        for tensor in chain(model.parameters(), model.buffers()):
            memo[id(tensor)] = tensor.to(device)
            if tensor.is_floating_point():
                fake = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=device)
                is_weight = isinstance(tensor, nn.Parameter)
                memo[id(tensor)] = nn.Parameter(fake, tensor.requires_grad) if is_weight else fake
    outline.model = copy.deepcopy(model, memo).train()
    return outline


def name_device(device: torch.device) -> torch.device:
    """Return the device for fake tensors, which treat cpu and cpu:0 as two devices."""
    return torch.device("cpu") if device.type == "cpu" else device


def measure_pass(outline: Outline, loss_of: Callable[[], Tensor], *, has_gradients: bool) -> int:
    """Return the peak bytes of the tensors that a forward and a backward pass create.

    Args:
        loss_of: computes the loss with the model of the outline.
        has_gradients: gradients of an earlier pass exist, and are not counted. Otherwise those of this pass are.
    """
    weights = list(outline.model.parameters())
    with outline.fakes:
        for weight in weights:
            weight.grad = torch.empty_like(weight) if has_gradients and weight.requires_grad else None
    device_type = weights[0].device.type
    # As in a step, the casts of the weights by autocast are kept until the end.
    with MemoryCounter(outline.fakes) as counter, torch.autocast(device_type, enabled=False):
        loss_of().backward()
    return counter.peak


def count_flops(outline: Outline, loss_of: Callable[[], Tensor]) -> int:
    """Count the floating-point operations of the matrix products and convolutions of a forward pass.

    A multiplication and an addition count as two. `loss_of` computes the loss with the model of the outline.
    """
    with MemoryCounter(outline.fakes):
        loss_of()  # one-time work, such as finding the output head, must not count
        with FlopCounterMode(display=False, custom_mapping=_NOT_COUNTED) as counter:
            loss_of()
    return int(counter.get_total_flops())


def measure_update(outline: Outline) -> int:
    """Return the peak bytes of the temporary tensors of an optimizer update, without its state."""
    update(outline)  # creates the state
    return update(outline)


def update(outline: Outline) -> int:
    """Run an update of the optimizer; return the peak bytes of the tensors that it creates."""
    assert outline.optimizer is not None
    with outline.fakes:
        for weight in outline.model.parameters():
            weight.grad = torch.empty_like(weight) if weight.requires_grad else None
    with MemoryCounter(outline.fakes) as counter:
        outline.optimizer.step()
    return counter.peak


class MemoryCounter(TorchDispatchMode):
    """Counts the bytes of the tensors created in its block: `alive` at this time, and `peak`.

    Args:
        fakes: mode of the fake tensors. Results of fake tensors, and large constants, are fake too. None: all are real.
    """

    def __init__(self, fakes: FakeTensorMode | None = None):
        super().__init__()
        self.fakes = fakes
        self.alive = self.peak = 0
        self._storages: dict[int, weakref.ref[torch.UntypedStorage]] = {}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        are_fake = any(isinstance(tensor, FakeTensor) for tensor in inputs) if inputs else _is_large(args, kwargs)
        if self.fakes is None or not are_fake:
            outputs = function(*args, **kwargs)
        elif function is torch.ops.aten.equal.default:
            return False  # fake tensors have no values to compare
        else:
            if function is torch.ops.aten.index.Tensor:
                args = (args[0], [place for index in args[1] for place in _find_places(index)])
            with self.fakes:
                outputs = function(*args, **kwargs)
        input_storages = {id(tensor.untyped_storage()) for tensor in inputs if tensor.layout is torch.strided}
        for tensor in tree_leaves(outputs):
            if isinstance(tensor, Tensor) and tensor.layout is torch.strided:
                storage = tensor.untyped_storage()
                if id(storage) not in input_storages and id(storage) not in self._storages:  # it is no view
                    self._count(storage)
        return outputs

    def _count(self, storage: torch.UntypedStorage) -> None:
        number, size = id(storage), storage.nbytes()

        def forget(_: Any) -> None:
            del self._storages[number]
            self.alive -= size

        self._storages[number] = weakref.ref(storage, forget)
        self.alive += size
        self.peak = max(self.peak, self.alive)


def _is_large(args: Any, kwargs: Any) -> bool:
    """Whether an operation without input tensors creates a large floating-point tensor."""
    size = args[0] if args and isinstance(args[0], (list, tuple)) else ()
    dtype = kwargs.get("dtype") or torch.get_default_dtype()
    return bool(dtype.is_floating_point and prod(size) > _MOST_NUMBERS)


def _find_places(index: Tensor | None) -> Sequence[Tensor | None]:
    """Replace a mask with known values by the positions that it selects, one tensor per dimension."""
    if index is None or index.dtype not in (torch.bool, torch.uint8) or isinstance(index, FakeTensor):
        return [index]
    return torch.nonzero(index, as_tuple=True)
