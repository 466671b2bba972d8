"""A model and its passes in shapes alone: the memory that they would take, without taking it.

Weights are torch's fake tensors, which have a shape, a type and a device. The batch keeps its numbers, so what follows
from it alone, such as a mask of attention, is known where a model looks at it.
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

_MOST_NUMBERS = 2**20  # of a constant that is made for real, so that it is known
_NOT_COUNTED = {  # by torch's counter, which knows the attention of GPUs
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda query, key, value, *_, **__: sdpa_flop_count(
        query, key, value
    ),
}


@dataclass(eq=False)
class Outline:
    """A model without numbers, and what learns with it. averages: of the weights."""

    model: nn.Module
    optimizer: Optimizer | None = None
    averages: Sequence[Tensor] = ()
    fakes: FakeTensorMode = field(default_factory=lambda: FakeTensorMode(allow_non_fake_inputs=True))

    @property
    def state(self) -> list[Tensor]:
        """Of the optimizer, once `update` or `measure_update` was called."""
        of_weights = [] if self.optimizer is None else self.optimizer.state.values()
        return [value for state in of_weights for value in state.values() if isinstance(value, Tensor)]

    def cast_weights(self, dtype: torch.dtype) -> None:
        """Give the weights another type."""
        with self.fakes:
            for weight in self.model.parameters():
                if weight.is_floating_point():
                    weight.grad, weight.data = None, weight.data.to(dtype)


def outline_model(model: nn.Module, device: torch.device) -> Outline:
    """A copy of a model, in training, whose floating-point weights and buffers are fake tensors on `device`."""
    outline, device = Outline(model), name_device(device)
    memo: dict[int, Any] = {}  # what `deepcopy` takes in the place of each tensor
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
    """The device of fake tensors: to them, cpu and cpu:0 are two."""
    return torch.device("cpu") if device.type == "cpu" else device


def measure_pass(outline: Outline, loss_of: Callable[[], Tensor], *, has_gradients: bool) -> int:
    """Bytes of the tensors that a forward and a backward pass make, at most at once.

    Args:
        loss_of: calls the model of the outline.
        has_gradients: there are gradients of an earlier pass, which are not counted; else those of this one are.
    """
    weights = list(outline.model.parameters())
    with outline.fakes:
        for weight in weights:
            weight.grad = torch.empty_like(weight) if has_gradients and weight.requires_grad else None
    device_type = weights[0].device.type
    # As in a step, what autocast makes of the weights stays until the end.
    with MemoryCounter(outline.fakes) as counter, torch.autocast(device_type, enabled=False):
        loss_of().backward()
    return counter.peak


def count_flops(outline: Outline, loss_of: Callable[[], Tensor]) -> int:
    """Floating-point operations of the matrix products and convolutions of a forward pass.

    A multiplication and an addition are two. loss_of: calls the model of the outline.
    """
    with MemoryCounter(outline.fakes):
        loss_of()  # what is done once, such as looking for the head, does not count
        with FlopCounterMode(display=False, custom_mapping=_NOT_COUNTED) as counter:
            loss_of()
    return int(counter.get_total_flops())


def measure_update(outline: Outline) -> int:
    """Bytes of the tensors that an update of the optimizer makes beside its state, at most at once."""
    update(outline)  # makes the state
    return update(outline)


def update(outline: Outline) -> int:
    """An update of the optimizer. Returns the bytes of the tensors that it makes, at most at once."""
    assert outline.optimizer is not None
    with outline.fakes:
        for weight in outline.model.parameters():
            weight.grad = torch.empty_like(weight) if weight.requires_grad else None
    with MemoryCounter(outline.fakes) as counter:
        outline.optimizer.step()
    return counter.peak


class MemoryCounter(TorchDispatchMode):
    """Counts the bytes of tensors that are made in its block. `peak`: the most that were alive at once.

    Args:
        fakes: what depends on its tensors, and large constants, are made in shapes alone; None: nothing is.
    """

    def __init__(self, fakes: FakeTensorMode | None = None):
        super().__init__()
        self.fakes = fakes
        self.alive = self.peak = 0
        self._storages: dict[int, weakref.ref[torch.UntypedStorage]] = {}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        are_fake = any(isinstance(tensor, FakeTensor) for tensor in given) if given else _is_large(args, kwargs)
        if self.fakes is None or not are_fake:
            made = function(*args, **kwargs)
        elif function is torch.ops.aten.equal.default:
            return False  # nobody knows the numbers of both
        else:
            if function is torch.ops.aten.index.Tensor:
                args = (args[0], [place for index in args[1] for place in _find_places(index)])
            with self.fakes:
                made = function(*args, **kwargs)
        known = {id(tensor.untyped_storage()) for tensor in given if tensor.layout is torch.strided}
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor) and tensor.layout is torch.strided:
                storage = tensor.untyped_storage()
                if id(storage) not in known and id(storage) not in self._storages:  # it is no view
                    self._count(storage)
        return made

    def _count(self, storage: torch.UntypedStorage) -> None:
        number, size = id(storage), storage.nbytes()

        def forget(_: Any) -> None:
            del self._storages[number]
            self.alive -= size

        self._storages[number] = weakref.ref(storage, forget)
        self.alive += size
        self.peak = max(self.peak, self.alive)


def _is_large(args: Any, kwargs: Any) -> bool:
    """Whether an operation without tensors makes a large one, of numbers that nobody looks at."""
    size = args[0] if args and isinstance(args[0], (list, tuple)) else ()
    dtype = kwargs.get("dtype") or torch.get_default_dtype()
    return bool(dtype.is_floating_point and prod(size) > _MOST_NUMBERS)


def _find_places(index: Tensor | None) -> Sequence[Tensor | None]:
    """An index; in the place of a mask whose values are known, the places that it chooses, one tensor a dimension."""
    if index is None or index.dtype not in (torch.bool, torch.uint8) or isinstance(index, FakeTensor):
        return [index]
    return torch.nonzero(index, as_tuple=True)
