"""Creates a model without memory for all of its weights.

transformers and peft create, load, initialise and test a model as on one process, with the same operations and random
numbers. Meanwhile, a whole weight is in memory only while torch operations use it; it is freed when an operation needs
another weight. A weight that was loaded from a file is read from the file again at its next use. Of a weight that was
initialised here, each process keeps its part, and the processes send each other their parts at the next use.
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

_NO_LOADING_THREADS = "HF_DEACTIVATE_ASYNC_LOAD"  # transformers' threads would cast all weights in advance
_HALF = (torch.bfloat16, torch.float16)
_NUM_SAMPLED = 1024  # values at the start and at the end of each loaded weight that enter the checksum
_aten = torch.ops.aten
_OVERWRITES = (
    *(_aten.normal_.default, _aten.uniform_.default, _aten.zero_.default, _aten.copy_.default),
    *(_aten.fill_.Scalar, _aten.fill_.Tensor),
)


@dataclass(eq=False)
class _Weight:
    """A tensor whose memory is freed and allocated again."""

    whole: Tensor  # its storage is empty while the weight is not in memory
    source: Tensor | None = None  # the tensor of which this is an unchanged copy; None once the weight was written
    part: Tensor | None = None  # the part of this process; only while the weight has neither memory nor a source


class MemoryOnDemand(TorchDispatchMode):
    """Inside the block, weights of new models are in memory only while torch operations use them.

    All processes must enter it together and run the same operations in it.

    Args:
        index: index of the part of each weight that this process keeps.
        num_parts: number of parts of each weight, cut as `fully_shard` does.
        send: `send(tensor, n)` copies the values of `tensor` from the process with part `n` to all processes.
    """

    def __init__(self, *, index: int, num_parts: int, send: Callable[[Tensor, int], None]):
        super().__init__()
        self._index, self._num_parts, self._send = index, num_parts, send
        self._weights: dict[int, _Weight] = {}  # by storage
        self._in_memory: set[_Weight] = set()
        self._exits: list[Callable[[], Any]] = []
        self.checksum = 0  # of the weights taken from files: must be equal on all processes

    def __enter__(self) -> "MemoryOnDemand":
        before = os.environ.get(_NO_LOADING_THREADS)
        os.environ[_NO_LOADING_THREADS] = "1"
        self._exits = [
            register_module_parameter_registration_hook(self._track_parameter).remove,
            register_module_module_registration_hook(self._track_module).remove,
            lambda: (
                os.environ.pop(_NO_LOADING_THREADS)
                if before is None
                else os.environ.update({_NO_LOADING_THREADS: before})
            ),
        ]
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        for undo in self._exits:
            undo()

    def take_parts(self, model: nn.Module, *, to: torch.device) -> dict[str, Tensor]:
        """Take this process's part of each parameter out of the model. Call this after the block.

        Afterwards the parameters are on the meta device.

        Returns:
            The parts on device `to`, by parameter name; a tied parameter is listed once.
        """
        for buffer in model.buffers():  # a loaded buffer may still wait for a cast or a move
            if (weight := self._find(buffer)) is not None:
                if weight not in self._in_memory:
                    self._fill(weight)
                self._in_memory.remove(weight)
                del self._weights[buffer.untyped_storage()._cdata]
        self._free_all()
        parts = {}
        empty: dict[nn.Parameter, nn.Parameter] = {}
        for name, parameter in model.named_parameters():
            self.checksum = self._sample(parameter.data, self.checksum)
            part = self._take_part(parameter.data)
            parts[name] = part if part.device.type == to.type else part.to(to)  # cpu:0 would be a copy of cpu
            empty[parameter] = nn.Parameter(torch.empty_like(parameter, device="meta"), parameter.requires_grad)
            weight = self._find(parameter)
            if weight in self._in_memory:
                self._free(weight)
        replace_parameters(model, empty)
        self._weights.clear()
        self._in_memory.clear()
        return parts

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is _aten._to_copy.default and self._can_wait(args[0], kwargs):
            return self._copy_later(args[0], kwargs)
        if func is not _aten.detach.default:  # `weight.data` does not read the values
            self._load_arguments(func, args, kwargs)
        return func(*args, **kwargs)

    # ---------------------------------------------------------------------------------------------- tracking of weights

    def _track_parameter(self, _module: nn.Module, _name: str, parameter: nn.Parameter | None) -> None:
        if parameter is not None:
            self._track(parameter)

    def _track_module(self, _module: nn.Module, _name: str, child: nn.Module | None) -> None:
        for parameter in () if child is None else child.parameters():  # a copied module did not register them
            self._track(parameter)

    def _track(self, parameter: nn.Parameter) -> None:
        """Track a parameter, so that its memory can be freed, unless it is a view of other memory, such as a file."""
        whole = parameter.data
        if not _has_memory(whole) or whole.ndim == 0 or not whole.is_contiguous() or self._find(whole) is not None:
            return
        storage = whole.untyped_storage()
        if storage.resizable() and storage.nbytes() == whole.nbytes:
            self._free_all()
            self._in_memory.add(self._add(_Weight(whole)))

    def _add(self, weight: _Weight) -> _Weight:
        self._weights[weight.whole.untyped_storage()._cdata] = weight
        return weight

    def _find(self, tensor: Tensor) -> _Weight | None:
        return self._weights.get(tensor.untyped_storage()._cdata) if _has_memory(tensor) else None

    def _can_wait(self, tensor: Tensor, options: dict[str, Any]) -> bool:
        """Whether a copy can wait for its first use: it casts a weight of a file, or moves a weight to a device."""
        if not _has_memory(tensor) or tensor.ndim == 0 or not tensor.is_contiguous():
            return False
        device = torch.device(options.get("device") or tensor.device)
        moves = device != tensor.device and device.type != "meta"
        # Tensors of NumPy arrays are not resizable either, but they are neither parameters nor 16-bit floats.
        is_of_file = not tensor.untyped_storage().resizable()
        if moves:
            return isinstance(tensor, nn.Parameter) and (is_of_file or self._find(tensor) is not None)
        return is_of_file and tensor.dtype in _HALF and not isinstance(tensor, nn.Parameter)

    def _copy_later(self, source: Tensor, options: dict[str, Any]) -> Tensor:
        """Return a copy without memory. Its values are copied when it is used."""
        device = torch.device(options.get("device") or source.device)
        if device.type == source.device.type == "cpu" and options.get("dtype") in (None, source.dtype):
            return source.detach()  # from cpu to cpu:0
        whole = torch.empty_like(source, dtype=options.get("dtype"), device=options.get("device"))
        whole.untyped_storage().resize_(0)
        return self._add(_Weight(whole.data, source.detach())).whole

    # --------------------------------------------------------------------------------------------- memory and values

    def _load_arguments(self, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> None:
        """Allocate and fill the weights that an operation uses."""
        declared = {argument.name: argument for argument in func._schema.arguments}
        needs: dict[_Weight, bool] = {}  # whether the operation reads their values
        written = []
        for name, value in {**dict(zip(declared, args, strict=False)), **kwargs}.items():
            for tensor in tree_leaves(value):
                weight = self._find(tensor) if isinstance(tensor, Tensor) else None
                if weight is None:
                    continue
                alias = declared[name].alias_info
                is_written = alias is not None and alias.is_write
                written += [weight] if is_written else []
                is_overwritten = is_written and func in _OVERWRITES and tensor.numel() == weight.whole.numel()
                needs[weight] = needs.get(weight, False) or not is_overwritten
        missing = {weight: is_read for weight, is_read in needs.items() if weight not in self._in_memory}
        if missing:
            self._free_all(keep=needs)
        for weight, is_read in missing.items():
            self._fill(weight, is_read=is_read)
        for weight in written:
            weight.source = None

    def _free_all(self, *, keep: Collection[_Weight] = ()) -> None:
        """Free all weights in memory except `keep`."""
        for weight in self._in_memory.difference(keep):
            self._free(weight)

    def _free(self, weight: _Weight) -> None:
        if weight.source is None:
            for index, part in enumerate(self._cuts(weight.whole)):
                if index != self._index and part.device.type == "cpu":  # else the clone below would raise the peak
                    return_pages(part.data_ptr(), part.nbytes)
            weight.part = self._cut(weight.whole).clone()
        weight.whole.untyped_storage().resize_(0)
        self._in_memory.remove(weight)

    def _fill(self, weight: _Weight, *, is_read: bool = True) -> None:
        """Allocate the memory of a weight and, if its values will be read, fill it."""
        weight.whole.untyped_storage().resize_(weight.whole.nbytes)
        self._in_memory.add(weight)
        if not is_read:
            weight.part = None
            return
        if weight.source is None:
            self._join(weight)
            return
        source = self._find(weight.source)
        if source is not None and source not in self._in_memory:
            self._fill(source)
        weight.whole.copy_(weight.source)
        if source is not None:
            self._free(source)

    def _join(self, weight: _Weight) -> None:
        """Join the parts of all processes to the whole weight."""
        assert weight.part is not None
        self._cut(weight.whole).copy_(weight.part)
        weight.part = None
        for index, part in enumerate(self._cuts(weight.whole)):
            if part.numel():
                self._send(part, index)

    def _take_part(self, tensor: Tensor) -> Tensor:
        """Return the part of this process in separate memory."""
        weight = self._find(tensor)
        if weight is None or weight in self._in_memory:
            return self._cut(tensor).clone()
        if (tensor.shape, tensor.stride()) != (weight.whole.shape, weight.whole.stride()):
            self._fill(weight)  # `tensor` is a view, such as the query matrix of a joined query-key-value matrix
            return self._cut(tensor).clone()
        if weight.source is None:
            assert weight.part is not None
            return weight.part
        return self._take_part(weight.source).to(tensor.device, tensor.dtype)

    def _cut(self, whole: Tensor) -> Tensor:
        return next(part for index, part in enumerate(self._cuts(whole)) if index == self._index)

    def _cuts(self, whole: Tensor) -> Iterator[Tensor]:
        """Yield the parts of a tensor in process order, cut as `fully_shard` does: the last ones may be empty."""
        size = -(-len(whole) // self._num_parts)
        for index in range(self._num_parts):
            yield whole[index * size : (index + 1) * size]

    def _sample(self, tensor: Tensor, checksum: int) -> int:
        """Add some values of a weight to a checksum if the weight comes from a file."""
        weight = self._find(tensor)
        if weight is not None:
            return checksum if weight.source is None else self._sample(weight.source, checksum)
        if tensor.untyped_storage().resizable():
            return checksum
        values = tensor.flatten()
        for sample in (values[:_NUM_SAMPLED], values[-_NUM_SAMPLED:]):
            checksum = zlib.crc32(sample.view(torch.uint8).numpy().tobytes(), checksum)
        return checksum


def _has_memory(tensor: Tensor) -> bool:
    return tensor.layout is torch.strided and tensor.device.type != "meta"


def replace_parameters(model: nn.Module, by: Mapping[nn.Parameter, nn.Parameter]) -> None:
    """Replace each parameter of a model by its value in `by`, in place."""
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[name] = by[parameter]
