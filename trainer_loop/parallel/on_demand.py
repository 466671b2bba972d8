"""Makes a model without memory for all of its weights.

transformers and peft make, load, initialise and try a model as on one process, with the same operations and random
numbers. Meanwhile a weight has memory for all of its numbers only from when an operation of torch uses them until
the next one uses others. What was loaded is then read from its file again. Of what was made here each process keeps its
part, and the processes send each other their parts.
"""

import os
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_module_registration_hook,
    register_module_parameter_registration_hook,
)
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from trainer_loop.runtime.host import return_pages

_ONE_AT_A_TIME = "HF_DEACTIVATE_ASYNC_LOAD"  # transformers' threads would cast all weights in advance
_HALF = (torch.bfloat16, torch.float16)
_NUM_SAMPLED = 1024  # numbers of each loaded weight at its begin and its end, for a checksum
_aten = torch.ops.aten
_OVERWRITES = (
    *(_aten.normal_.default, _aten.uniform_.default, _aten.zero_.default, _aten.copy_.default),
    *(_aten.fill_.Scalar, _aten.fill_.Tensor),
)


@dataclass(eq=False)
class _Weight:
    """A tensor whose memory comes and goes.

    whole: has no memory while the weight is not here. source: what it is a copy of; None after it was written to. part:
    that of this process, while there is neither memory nor a source.
    """

    whole: Tensor
    source: Tensor | None = None
    part: Tensor | None = None


class MemoryOnDemand(TorchDispatchMode):
    """Until the block ends, weights of models that are made in it have memory while they are used.

    All processes enter it together, and do the same in it.

    Args:
        index, num_parts: this process keeps part `index` of so many of each weight, cut as `fully_shard` does.
        send: gives a tensor the values that it has on the process with part n.
    """

    def __init__(self, *, index: int, num_parts: int, send: Callable[[Tensor, int], None]):
        super().__init__()
        self._index, self._num_parts, self._send = index, num_parts, send
        self._weights: dict[int, _Weight] = {}  # by their storages
        self._here: set[_Weight] = set()  # those with memory
        self._exits: list[Callable[[], Any]] = []
        self.checksum = 0  # of the files whose parts were taken: all processes must have the same

    def __enter__(self) -> "MemoryOnDemand":
        before = os.environ.get(_ONE_AT_A_TIME)
        os.environ[_ONE_AT_A_TIME] = "1"
        self._exits = [
            register_module_parameter_registration_hook(self._note_parameter).remove,
            register_module_module_registration_hook(self._note_module).remove,
            lambda: os.environ.pop(_ONE_AT_A_TIME) if before is None else os.environ.update({_ONE_AT_A_TIME: before}),
        ]
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        for leave in self._exits:
            leave()

    def take_parts(self, model: nn.Module, *, to: torch.device) -> dict[str, Tensor]:
        """This process's part of each parameter by its name, on this device, tied ones once.

        Call it after the block. The parameters are on the meta device afterwards.
        """
        for buffer in model.buffers():  # one that is loaded may be cast, or moved, when it is used
            if (weight := self._find(buffer)) is not None:
                if weight not in self._here:
                    self._fill(weight)
                self._here.remove(weight)
                del self._weights[buffer.untyped_storage()._cdata]
        self._make_room()
        parts = {}
        empty: dict[nn.Parameter, nn.Parameter] = {}
        for name, parameter in model.named_parameters():
            self.checksum = self._sample(parameter.data, self.checksum)
            part = self._take_part(parameter.data)
            parts[name] = part if part.device.type == to.type else part.to(to)  # cpu:0 would be a copy of cpu
            empty[parameter] = nn.Parameter(torch.empty_like(parameter, device="meta"), parameter.requires_grad)
            weight = self._find(parameter)
            if weight in self._here:
                self._free(weight)
        replace_parameters(model, empty)
        self._weights.clear()
        self._here.clear()
        return parts

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is _aten._to_copy.default and self._can_wait(args[0], kwargs):
            return self._copy_later(args[0], kwargs)
        if func is not _aten.detach.default:  # `weight.data.normal_()` needs no numbers
            self._bring(func, args, kwargs)
        return func(*args, **kwargs)

    # --------------------------------------------------------------------------------------- which weights there are

    def _note_parameter(self, _module: nn.Module, _name: str, parameter: nn.Parameter | None) -> None:
        if parameter is not None:
            self._track(parameter)

    def _note_module(self, _module: nn.Module, _name: str, child: nn.Module | None) -> None:
        for parameter in () if child is None else child.parameters():  # a copy of a module has registered none
            self._track(parameter)

    def _track(self, parameter: nn.Parameter) -> None:
        """Let the memory of a parameter be freed, unless it is a part of other memory, as of a file's."""
        whole = parameter.data
        if not _has_memory(whole) or whole.ndim == 0 or not whole.is_contiguous() or self._find(whole) is not None:
            return
        storage = whole.untyped_storage()
        if storage.resizable() and storage.nbytes() == whole.nbytes:
            self._make_room()
            self._here.add(self._add(_Weight(whole)))

    def _add(self, weight: _Weight) -> _Weight:
        self._weights[weight.whole.untyped_storage()._cdata] = weight
        return weight

    def _find(self, tensor: Tensor) -> _Weight | None:
        return self._weights.get(tensor.untyped_storage()._cdata) if _has_memory(tensor) else None

    def _can_wait(self, tensor: Tensor, options: dict[str, Any]) -> bool:
        """Whether a tensor is a weight that is cast while it is loaded, or moved to another device."""
        if not _has_memory(tensor) or tensor.ndim == 0 or not tensor.is_contiguous():
            return False
        device = torch.device(options.get("device") or tensor.device)
        moves = device != tensor.device and device.type != "meta"
        # Or of an array: these are neither of 16 bits nor parameters.
        is_of_file = not tensor.untyped_storage().resizable()
        if moves:
            return isinstance(tensor, nn.Parameter) and (is_of_file or self._find(tensor) is not None)
        return is_of_file and tensor.dtype in _HALF and not isinstance(tensor, nn.Parameter)

    def _copy_later(self, source: Tensor, options: dict[str, Any]) -> Tensor:
        """A copy without memory, which is made when it is used."""
        device = torch.device(options.get("device") or source.device)
        if device.type == source.device.type == "cpu" and options.get("dtype") in (None, source.dtype):
            return source.detach()  # from cpu to cpu:0
        whole = torch.empty_like(source, dtype=options.get("dtype"), device=options.get("device"))
        whole.untyped_storage().resize_(0)
        return self._add(_Weight(whole.data, source.detach())).whole

    # -------------------------------------------------------------------------------------------- memory and numbers

    def _bring(self, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> None:
        """Give memory to the weights that an operation uses."""
        declared = {argument.name: argument for argument in func._schema.arguments}
        needs: dict[_Weight, bool] = {}  # whether their numbers count
        written = []
        for name, value in {**dict(zip(declared, args, strict=False)), **kwargs}.items():
            for tensor in tree_leaves(value):
                weight = self._find(tensor) if isinstance(tensor, Tensor) else None
                if weight is None:
                    continue
                alias = declared[name].alias_info
                is_written = alias is not None and alias.is_write
                written += [weight] if is_written else []
                is_lost = is_written and func in _OVERWRITES and tensor.numel() == weight.whole.numel()
                needs[weight] = needs.get(weight, False) or not is_lost
        missing = {weight: counts for weight, counts in needs.items() if weight not in self._here}
        if missing:
            self._make_room(keep=needs)
        for weight, counts in missing.items():
            self._fill(weight, counts=counts)
        for weight in written:
            weight.source = None

    def _make_room(self, *, keep: Collection[_Weight] = ()) -> None:
        """Free the weights that are here, except those to keep."""
        for weight in self._here.difference(keep):
            self._free(weight)

    def _free(self, weight: _Weight) -> None:
        if weight.source is None:
            for index, part in enumerate(self._cuts(weight.whole)):
                if index != self._index and part.device.type == "cpu":  # or a copy would add to the whole
                    return_pages(part.data_ptr(), part.nbytes)
            weight.part = self._cut(weight.whole).clone()
        weight.whole.untyped_storage().resize_(0)
        self._here.remove(weight)

    def _fill(self, weight: _Weight, *, counts: bool = True) -> None:
        """Give a weight its memory and, if they count, its numbers."""
        weight.whole.untyped_storage().resize_(weight.whole.nbytes)
        self._here.add(weight)
        if not counts:
            weight.part = None
            return
        if weight.source is None:
            self._join(weight)
            return
        below = self._find(weight.source)
        if below is not None and below not in self._here:
            self._fill(below)
        weight.whole.copy_(weight.source)
        if below is not None:
            self._free(below)

    def _join(self, weight: _Weight) -> None:
        """Put a weight together from the parts of all processes."""
        assert weight.part is not None
        self._cut(weight.whole).copy_(weight.part)
        weight.part = None
        for index, part in enumerate(self._cuts(weight.whole)):
            if part.numel():
                self._send(part, index)

    def _take_part(self, tensor: Tensor) -> Tensor:
        """The part of this process, in memory of its own."""
        weight = self._find(tensor)
        if weight is None or weight in self._here:
            return self._cut(tensor).clone()
        if (tensor.shape, tensor.stride()) != (weight.whole.shape, weight.whole.stride()):
            self._fill(weight)  # for it is a view of it, such as a third of what the file has as one
            return self._cut(tensor).clone()
        if weight.source is None:
            assert weight.part is not None
            return weight.part
        return self._take_part(weight.source).to(tensor.device, tensor.dtype)

    def _cut(self, whole: Tensor) -> Tensor:
        return next(part for index, part in enumerate(self._cuts(whole)) if index == self._index)

    def _cuts(self, whole: Tensor) -> Iterator[Tensor]:
        """Parts of a tensor in the order of the processes, as `fully_shard` cuts it: the last ones may be empty."""
        size = -(-len(whole) // self._num_parts)
        for index in range(self._num_parts):
            yield whole[index * size : (index + 1) * size]

    def _sample(self, tensor: Tensor, checksum: int) -> int:
        """Add some numbers of a weight to a checksum, if it comes from a file."""
        weight = self._find(tensor)
        if weight is not None:
            return checksum if weight.source is None else self._sample(weight.source, checksum)
        if tensor.untyped_storage().resizable():
            return checksum
        numbers = tensor.flatten()
        for some in (numbers[:_NUM_SAMPLED], numbers[-_NUM_SAMPLED:]):
            checksum = zlib.crc32(some.view(torch.uint8).numpy().tobytes(), checksum)
        return checksum


def _has_memory(tensor: Tensor) -> bool:
    return tensor.layout is torch.strided and tensor.device.type != "meta"


def replace_parameters(model: nn.Module, by: Mapping[nn.Parameter, nn.Parameter]) -> None:
    """Give a model other parameters in the places of its own."""
    for module in model.modules():
        for name, own in module._parameters.items():
            if own is not None:
                module._parameters[name] = by[own]
