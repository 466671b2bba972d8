"""Shards a model over the processes: each holds a part of the weights, gradients and optimizer state.

This uses torch's `fully_shard` (FSDP2). A parameter becomes a DTensor, of which each process holds some rows. Before a
layer runs, its weights are gathered from all processes; after its backward pass each process keeps its part of the
summed gradients.
"""

import contextlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, Protocol

import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from torch.distributed.fsdp._fully_shard._fsdp_collectives import DefaultAllGather, DefaultReduceScatter
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._dtensor_spec import DTensorSpec, TensorMeta
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset
from torch.optim import Optimizer

from trainer_loop.errors import UserError, refuse
from trainer_loop.parallel.on_demand import MemoryOnDemand, replace_parameters
from trainer_loop.parallel.plan import ShardingPlan

SHARDED_CLASS = "FSDP"  # prefix that `fully_shard` adds to the name of a class
# Optimizers that update each element of a parameter by its own gradient only, so parts are updated as a whole would be.
EXACT_OPTIMIZERS = (torch.optim.AdamW, torch.optim.Adam, torch.optim.SGD, torch.optim.Adagrad, torch.optim.RMSprop)
FUSED_ON_PARTS = (torch.optim.AdamW, torch.optim.Adam)  # torch has no other fused kernels for DTensors
_REPLICAS, _PARTS = "replicas", "parts"  # dimensions of the mesh


@dataclass(eq=False)
class ShardedModel:
    """A model whose parameters are sharded over the processes. Every process creates one."""

    model: Any  # an nn.Module after `fully_shard`, which makes it an FSDPModule
    mesh: DeviceMesh  # 2-dimensional: the processes of one row hold the parts of one copy
    plan: ShardingPlan
    is_alone: bool = False  # no process waits for another, see `alone`
    used: set[str] = field(default_factory=set)  # names of parameters that got a gradient in this step, on this process

    def __post_init__(self) -> None:
        # Each module gathers its own weights. The first is the model, which gathers the weights outside the others.
        self.modules: list[Any] = [module for module in self.model.modules() if isinstance(module, FSDPModule)]

    @property
    def num_layers(self) -> int:
        """Number of modules that gather their own weights, without the model itself."""
        return len(self.modules) - 1

    def synchronising(self, is_last: bool) -> AbstractContextManager[None]:
        """Prepare the exchange of one microbatch; use it around the passes.

        All processes need the same number of microbatches in a step, unless weights are gathered once per step.
        """
        if self.plan.reduces_once:
            self.model.set_requires_gradient_sync(is_last)
            if is_last:
                self._fill_missing_gradients()
        if self.is_alone:  # `set_requires_gradient_sync` has reset this
            self.model.set_requires_all_reduce(False)
        if self.plan.gathers_once:
            self.model.set_reshard_after_backward(is_last)
        return nullcontext()

    def _fill_missing_gradients(self) -> None:
        """Set missing accumulated gradients to zeros if other parameters of the same exchange have accumulated some.

        Accumulated gradients have the reduction type. A gradient that first appears in the last microbatch would have
        the type of the weights, but an exchange needs one type.
        """
        for group in self._groups():
            trainable = [parameter for parameter in group.fsdp_params if parameter.sharded_param.requires_grad]
            accumulated = [parameter.unsharded_accumulated_grad for parameter in trainable]
            template = next((gradient for gradient in accumulated if gradient is not None), None)
            for parameter in trainable:
                if template is not None and parameter.unsharded_accumulated_grad is None:
                    parameter.unsharded_accumulated_grad = template.new_zeros(parameter._orig_size)

    def _groups(self) -> Iterator[Any]:
        """Yield torch's groups of parameters that are exchanged together."""
        for module in self.modules:
            yield from fully_shard.state(module)._fsdp_param_groups  # type: ignore[attr-defined]

    def watch_gradients(self) -> None:
        """From now on, record in `used` which parameters get a gradient. Call this after freezing parameters."""
        # Otherwise the first module that runs would become the root. An encoder-decoder runs its encoder first.
        fully_shard.state(self.model)._lazy_init()  # type: ignore[attr-defined]
        names: dict[nn.Module, str] = {module: name for name, module in self.model.named_modules()}
        for module in self.modules:
            module.unshard()
            for name, parameter in module.named_parameters(prefix=names[module]):
                if parameter.requires_grad and not isinstance(parameter, DTensor):  # others are still sharded
                    parameter.register_post_accumulate_grad_hook(lambda _, name=name: self.used.add(name))  # type: ignore[misc]
            module.reshard()

    @contextlib.contextmanager
    def gathered(self) -> Iterator[None]:
        """Keep the whole model on every process inside the block, so that processes may run different passes.

        All processes must enter it together. Do not change the weights inside it.
        """
        for module in self.modules:
            module.set_reshard_after_forward(False, recurse=False)
            module.unshard()
        if self.plan.offloads and self.mesh.device_type != "cpu":  # the host memory must not change while it is copied
            torch.accelerator.synchronize()
        try:
            yield
        finally:
            self.prepare_for_training()
            for module in self.modules:
                module.reshard()

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Run passes without other processes inside the block. They take the usual memory and may fail at any point.

        The gradients are meaningless, because nothing is exchanged.
        """
        self._exchange_by(_NoAllGather(), _NoReduceScatter())
        self.is_alone = True
        self.model.set_requires_all_reduce(False)
        try:
            yield
        finally:
            self.is_alone = False
            self.model.reset_iter_state()
            self.model.set_requires_all_reduce(True)
            for parameter in chain.from_iterable(group.fsdp_params for group in self._groups()):
                parameter.unsharded_accumulated_grad = None  # `reset_iter_state` does not reset this
                if hasattr(parameter, "_unsharded_param"):  # it was gathered before
                    parameter._unsharded_param.grad = None
            self.prepare_for_training()
            self.used.clear()

    @property
    def innermost(self) -> list[nn.Module]:
        """The sharded modules without sharded modules inside: the layers; if there are none, the model."""
        return [
            module
            for module in self.modules
            if not any(isinstance(inner, FSDPModule) for inner in module.modules() if inner is not module)
        ]

    def combine_norms(self, norms: Tensor) -> Tensor:
        """Compute the L2 norms of whole tensors, `[P]`, from the norms of this process's parts."""
        squares = norms.double().square().to(self.mesh.device_type)
        dist.all_reduce(squares, group=self.mesh.get_group(_PARTS))
        return squares.sqrt().to(norms)

    def prepare_for_training(self) -> None:
        """Let each module free its weights between forward and backward, unless weights are gathered once per step."""
        if dist.get_backend(self.mesh.get_group(_PARTS)) == "gloo":
            self._exchange_by(_GlooAllGather(), _GlooReduceScatter())
        else:
            self._exchange_by(DefaultAllGather(), DefaultReduceScatter())
        for module in self.modules:
            module.set_reshard_after_forward(not self.plan.gathers_once and module is not self.model, recurse=False)

    def _exchange_by(self, all_gather: DefaultAllGather, reduce_scatter: DefaultReduceScatter) -> None:
        for module in self.modules:
            module.set_custom_all_gather(all_gather)
            module.set_custom_reduce_scatter(reduce_scatter)


class _GlooAllGather(DefaultAllGather):
    """Broadcasts each part into its place. gloo's all-gather makes a copy, which costs more than the exchange."""

    def __call__(
        self, output_tensor: Tensor, input_tensor: Tensor, group: dist.ProcessGroup, async_op: bool = False
    ) -> None:
        parts = output_tensor.chunk(group.size())
        if parts[group.rank()].data_ptr() != input_tensor.data_ptr():  # else the input is a view of the output
            parts[group.rank()].copy_(input_tensor)
        works = [dist.broadcast(part, group=group, group_src=index, async_op=True) for index, part in enumerate(parts)]
        for work in works:
            work.wait()


class _GlooReduceScatter(DefaultReduceScatter):
    """Sums in place, and keeps the part of this process. gloo's reduce-scatter in torch sums a copy."""

    def __call__(  # type: ignore[override] # there is nothing to wait for
        self, output_tensor: Tensor, input_tensor: Tensor, group: dist.ProcessGroup, op: Any, async_op: bool = False
    ) -> None:
        dist.all_reduce(input_tensor, op=op, group=group)
        output_tensor.copy_(input_tensor.chunk(group.size())[group.rank()])


class _NoAllGather(DefaultAllGather):
    """Uses the part of this process in place of the parts of other processes."""

    def __call__(
        self, output_tensor: Tensor, input_tensor: Tensor, group: dist.ProcessGroup, async_op: bool = False
    ) -> None:
        for part in output_tensor.chunk(group.size()):
            if part.data_ptr() != input_tensor.data_ptr():  # else the input is a view of the output
                part.copy_(input_tensor)


class _NoReduceScatter(DefaultReduceScatter):
    """Uses gradients of this process in place of the sum."""

    def __call__(  # type: ignore[override] # there is nothing to wait for
        self, output_tensor: Tensor, input_tensor: Tensor, group: dist.ProcessGroup, op: Any, async_op: bool = False
    ) -> None:
        output_tensor.copy_(input_tensor[: len(output_tensor)])


def shard_model(
    model: nn.Module,
    plan: ShardingPlan,
    *,
    device: torch.device,
    compute_type: torch.dtype = torch.float32,
    memory: MemoryOnDemand | None = None,
) -> ShardedModel:
    """Shard a model over all processes, in place. Call this before creating the optimizer.

    Args:
        compute_type: type of matrix products.
        memory: the context in which the model was created, if its weights are not in memory.
    """
    num_processes, num_replicas = dist.get_world_size(), plan.num_replicas
    assert num_processes % num_replicas == 0, "it was checked"
    _check_parameters(model)
    if not plan.gathers_once:
        _refuse_batch_norm(model)
    parts = None if memory is None else memory.take_parts(model, to=torch.device("cpu") if plan.offloads else device)
    for tensor in chain(model.buffers(), () if parts is not None else model.parameters()):
        dist.broadcast(tensor.detach(), src=0)
    mesh = init_device_mesh(
        device.type, (num_replicas, num_processes // num_replicas), mesh_dim_names=(_REPLICAS, _PARTS)
    )
    # Gather weights in 16 bits. Otherwise autocast would keep a 16-bit copy of all weights until the backward pass.
    gathered_type = None if plan.gathers_once or compute_type == torch.float32 else compute_type
    is_wide = any(parameter.dtype == torch.float64 for parameter in model.parameters())
    policy = MixedPrecisionPolicy(gathered_type, None if is_wide else plan.gradient_type, cast_forward_inputs=False)
    _check_layers(model, plan.layers)
    # With one copy of the model, a mesh of one dimension saves the second reduction.
    shard_mesh = mesh if num_replicas > 1 else mesh[_PARTS]
    offload_policy = CPUOffloadPolicy(pin_memory=device.type != "cpu") if plan.offloads else OffloadPolicy()
    for module in (*find_layers(model, plan.layers), model):
        fully_shard(module, mesh=shard_mesh, mp_policy=policy, offload_policy=offload_policy)
    if parts is not None:
        _set_parts(model, parts)
    sharded = ShardedModel(model, mesh, plan)
    sharded.prepare_for_training()
    # A process that does not use a parameter must contribute zeros. Otherwise the exchange would mix up gradients.
    sharded.model.set_reduce_scatter_unused_params(True)
    return sharded


def prepare(accelerator: Accelerator, model: nn.Module, optimizer: Optimizer) -> tuple[nn.Module, Any]:
    """Prepare the model and the optimizer by accelerate: for data parallelism, unless the model is sharded."""
    if isinstance(model, FSDPModule):
        return (
            accelerator.prepare_model(model, device_placement=False, evaluation_mode=True),
            accelerator.prepare_optimizer(optimizer, device_placement=False),
        )
    return accelerator.prepare(model, optimizer)  # type: ignore[no-any-return]


def check_optimizer_class(kind: Any) -> None:
    """Raise UserError for an optimizer that may update parts of parameters differently from whole parameters."""
    if kind not in EXACT_OPTIMIZERS:
        allowed = ", ".join(exact.__name__ for exact in EXACT_OPTIMIZERS)
        name = getattr(kind, "__name__", kind)
        raise UserError(f"parallel.shard: {name} may need whole parameters; optimizers allowed with shards: {allowed}")


def check_optimizer(optimizer: Optimizer) -> None:
    """Raise UserError for an optimizer that cannot update parts of parameters."""
    check_optimizer_class(type(optimizer))
    if optimizer.defaults.get("fused") and type(optimizer) not in FUSED_ON_PARTS:
        raise UserError(f"optimizer.args.fused: true: not for a {type(optimizer).__name__} with shards; leave it out")


def _check_parameters(model: nn.Module) -> None:
    """Raise UserError for parameters that cannot be sharded."""
    problems = []
    dtypes: dict[torch.dtype, str] = {}
    for name, parameter in model.named_parameters():
        faults = {
            "is a single number; give it the shape [1]": parameter.ndim == 0,
            "has no numbers; remove it from the model": parameter.numel() == 0,
            "is not contiguous in memory; make it so": not parameter.is_contiguous(),
        }
        problems += [f"parallel.shard: {name} {fault}, or set it to none" for fault, is_so in faults.items() if is_so]
        if parameter.requires_grad:
            dtypes.setdefault(parameter.dtype, name)
    if len(dtypes) > 1:
        types = ", ".join(f"{name} is {dtype}" for dtype, name in dtypes.items())
        problems.append(
            f"parallel.shard: parameters that learn have several types: {types}; give them one, or set it to none"
        )
    refuse(problems)


def _refuse_batch_norm(model: nn.Module) -> None:
    """Raise UserError for BatchNorm layers: their statistics would include the rows of dummy microbatches."""
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            raise UserError(
                f"parallel.shard: full: {name} is a {type(module).__name__}, and processes with less to do run it on "
                "rows that count nothing; set parallel.shard=zero2"
            )


def _check_layers(model: nn.Module, names: Sequence[str]) -> None:
    classes = dict.fromkeys(type(module).__name__ for module in model.modules())
    if unknown := [name for name in names if name not in classes]:
        raise UserError(
            f"parallel.layers: {', '.join(unknown)}: the model has no such module; its classes are {', '.join(classes)}"
        )


def find_layers(model: nn.Module, names: Sequence[str] = ()) -> list[nn.Module]:
    """Find the modules to shard separately: those of the classes `names`, inner modules first.

    Without names, the classes are those in `_no_split_modules` of the model. A module that shares a parameter with the
    rest of the model is left out, because tied weights must be gathered together.
    """
    if not names:
        names = list(
            chain.from_iterable(getattr(module, "_no_split_modules", None) or () for module in model.modules())
        )
    chosen = [module for module in model.modules() if type(module).__name__ in names and module is not model]
    uses, own_uses = _count_uses(model), {module: _count_uses(module) for module in reversed(chosen)}
    return [module for module, own in own_uses.items() if own and own.items() <= uses.items()]


def _count_uses(module: nn.Module) -> Counter[nn.Parameter]:
    return Counter(parameter for _, parameter in module.named_parameters(remove_duplicate=False))


def _set_parts(model: nn.Module, parts: dict[str, Tensor]) -> None:
    """Set the weights of a sharded model on the meta device. `parts` has this process's part of each, by name."""
    filled: dict[nn.Parameter, nn.Parameter] = {}
    for name, parameter in model.named_parameters():
        part = parts.pop(name)
        assert isinstance(parameter, DTensor)
        assert part.shape == parameter.to_local().shape, name
        filled[parameter] = nn.Parameter(_as_whole(part, parameter), parameter.requires_grad)
    replace_parameters(model, filled)


# ---------------------------------------------------------------------------------------------- tensors and their parts


class WholeTensor(Protocol):
    """A tensor in memory, or one in files that is read in parts."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __getitem__(self, place: Any) -> Tensor: ...


@dataclass(frozen=True)
class Place:
    """The part of every tensor that a process holds."""

    index: int
    num_parts: int
    is_copy: bool  # an earlier process holds the same part


def is_sharded(model: nn.Module) -> bool:
    """Whether each process holds only a part of the model's weights."""
    return isinstance(model, FSDPModule)


def is_spread(tensor: Tensor) -> bool:
    """Whether each process holds only a part of the tensor."""
    return isinstance(tensor, DTensor)


def find_place(tensor: DTensor) -> Place:
    """Return which part of a tensor this process holds. The tensor is sharded by rows, as `fully_shard` does."""
    *replicas, index = tensor.device_mesh.get_coordinate() or ()
    assert tensor.placements[-1].is_shard(0), "rows are shared out over the last dimension of the mesh"
    return Place(index, tensor.device_mesh.size(-1), is_copy=any(replicas))


def local_part(tensor: Tensor) -> Tensor:
    """Return this process's part of a tensor, which shares its memory; a plain tensor is returned whole."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def take_part(whole: WholeTensor, like: DTensor) -> Tensor:
    """Return the part of a whole tensor that corresponds to this process's part of `like`."""
    shape, offsets = compute_local_shape_and_global_offset(like.shape, like.device_mesh, like.placements)
    region = tuple(slice(offset, offset + size) for offset, size in zip(offsets, shape, strict=True))
    return whole[region]


@torch.no_grad()
def copy_into(target: Tensor, whole: WholeTensor) -> None:
    """Copy the values of a whole tensor into a tensor of the same shape, or into this process's part of it."""
    if whole.shape != target.shape:
        raise ValueError(f"a tensor of shape {list(whole.shape)} is given, and one of {list(target.shape)} is needed")
    local_part(target).copy_(take_part(whole, target) if isinstance(target, DTensor) else whole[...])


def as_part(whole: WholeTensor, like: Tensor) -> Tensor:
    """Shard a whole tensor over the processes as `like` is; if `like` is a plain tensor, return it whole."""
    if not isinstance(like, DTensor):
        return whole if isinstance(whole, Tensor) else whole[...].clone()
    return _as_whole(take_part(whole, like).to(like.to_local().device, copy=True), like)


def _as_whole(part: Tensor, like: DTensor) -> DTensor:
    """Return a tensor that is sharded as `like` is; `part`, on any device, is this process's part of it."""
    meta = TensorMeta(like.shape, like.stride(), part.dtype)
    return DTensor(part.detach(), DTensorSpec(like.device_mesh, like.placements, meta), requires_grad=False)  # type: ignore[call-arg]


@torch.no_grad()
def swap_values(weight: nn.Parameter, values: Tensor) -> Tensor:
    """Replace the values of a parameter by others that are sharded alike; return the previous values."""
    before = weight.detach()
    if isinstance(weight, DTensor):  # setting `data` would not change the tensor that `fully_shard` gathers
        before = before.clone()
        weight.copy_(values)
    else:
        before, weight.data = weight.data, values
    return before


def spread_state(state: Mapping[str, Any], optimizer: Any) -> dict[str, Any]:
    """Return the whole state of an optimizer with its tensors sharded like the parameters of the same shape."""
    parameters = list(chain.from_iterable(group["params"] for group in optimizer.param_groups))
    return {
        **state,
        "state": {
            number: {
                name: as_part(value, parameters[number])
                if getattr(value, "shape", None) == parameters[number].shape
                else value
                for name, value in parameter_state.items()
            }
            for number, parameter_state in state["state"].items()
        },
    }


def copy_whole(model: nn.Module, weights: Mapping[str, Tensor]) -> nn.Module:
    """Return an unsharded copy of a sharded model with these whole weights, by name. The copy cannot be run."""
    modules = [module for module in model.modules() if isinstance(module, FSDPModule)]
    sharded_classes = [type(module) for module in modules]
    memo: dict[int, Any] = {  # `deepcopy` uses these in place of copies
        id(parameter): nn.Parameter(weights[name], requires_grad=False)
        for name, parameter in model.named_parameters(remove_duplicate=False)
    }
    for module in modules:  # the hooks of the copy keep using the state of the original model
        state = fully_shard.state(module)  # type: ignore[attr-defined]
        memo[id(state)] = state
    try:
        for module in modules:
            module.__class__ = type(module).__bases__[1]  # the class that `fully_shard` made cannot be copied
        return deepcopy(model, memo)
    finally:
        for module, sharded_class in zip(modules, sharded_classes, strict=True):
            module.__class__ = sharded_class


def gather_tensor(tensor: Tensor) -> Tensor:
    """Gather a whole tensor on the device of every process. All processes must call this. A plain tensor is whole."""
    if not isinstance(tensor, DTensor):
        return tensor
    return _as_whole(tensor.to_local().to(tensor.device_mesh.device_type), tensor).full_tensor()
