"""The model spread over the processes: each holds a part of the weights, gradients and optimizer state.

torch's `fully_shard` (FSDP2) does the work. A parameter becomes a DTensor, of which this process has some rows. Before
a layer runs, its weights are gathered from all processes; after its backward pass each process keeps its part of the
sum of the gradients.
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

SHARDED_CLASS = "FSDP"  # what `fully_shard` puts before the name of a class
# They change each number of a parameter by its own gradient.
EXACT_OPTIMIZERS = (torch.optim.AdamW, torch.optim.Adam, torch.optim.SGD, torch.optim.Adagrad, torch.optim.RMSprop)
FUSED_ON_PARTS = (torch.optim.AdamW, torch.optim.Adam)  # of the others torch has no fused kernel for DTensors
_REPLICAS, _PARTS = "replicas", "parts"  # dimensions of the mesh


@dataclass(eq=False)
class ShardedModel:
    """A model whose parameters are spread over the processes; every process has one of these.

    Args:
        model: after `fully_shard`.
        mesh: 2-dimensional: processes of one row hold the parts of one copy.
    """

    model: Any  # an nn.Module that is an FSDPModule
    mesh: DeviceMesh
    plan: ShardingPlan
    is_alone: bool = False  # no process waits for another, see `alone`
    used: set[str] = field(default_factory=set)  # names of parameters that got a gradient in this step, on this process

    def __post_init__(self) -> None:
        # They are gathered each for itself; the first is the model, which gathers what is in none of the others.
        self.modules: list[Any] = [module for module in self.model.modules() if isinstance(module, FSDPModule)]

    @property
    def num_layers(self) -> int:
        """Modules that are gathered each for itself; the rest of the model is one more."""
        return len(self.modules) - 1

    def synchronising(self, is_last: bool) -> AbstractContextManager[None]:
        """Around one microbatch. All processes have equally many in a step, unless weights are gathered once."""
        if self.plan.reduces_once:
            self.model.set_requires_gradient_sync(is_last)
            if is_last:
                self._let_gradients_wait_alike()
        if self.is_alone:  # which the line above has reset
            self.model.set_requires_all_reduce(False)
        if self.plan.gathers_once:
            self.model.set_reshard_after_backward(is_last)
        return nullcontext()

    def _let_gradients_wait_alike(self) -> None:
        """Where some gradients of an exchange wait in the type in which they are added up, let zeros wait for the rest.

        One that first comes in the last microbatch would have the type of the weights, and an exchange has one type.
        """
        for group in self._groups():
            learning = [parameter for parameter in group.fsdp_params if parameter.sharded_param.requires_grad]
            waiting = [parameter.unsharded_accumulated_grad for parameter in learning]
            like = next((gradient for gradient in waiting if gradient is not None), None)
            for parameter in learning:
                if like is not None and parameter.unsharded_accumulated_grad is None:
                    parameter.unsharded_accumulated_grad = like.new_zeros(parameter._orig_size)

    def _groups(self) -> Iterator[Any]:
        """The parameters that are exchanged together, as torch keeps them."""
        for module in self.modules:
            yield from fully_shard.state(module)._fsdp_param_groups  # type: ignore[attr-defined]

    def watch_gradients(self) -> None:
        """From now on, `used` has the parameters that get a gradient. Call it when it is settled which ones learn."""
        # The first module that runs would become the root, and a model that writes runs its encoder first.
        fully_shard.state(self.model)._lazy_init()  # type: ignore[attr-defined]
        names: dict[nn.Module, str] = {module: name for name, module in self.model.named_modules()}
        for module in self.modules:
            module.unshard()
            for name, parameter in module.named_parameters(prefix=names[module]):
                if parameter.requires_grad and not isinstance(parameter, DTensor):  # those of other modules are parts
                    parameter.register_post_accumulate_grad_hook(lambda _, name=name: self.used.add(name))  # type: ignore[misc]
            module.reshard()

    @contextlib.contextmanager
    def gathered(self) -> Iterator[None]:
        """The whole model on every process until the block ends, in which processes need not run alike.

        All processes enter it together. The weights must stay as they are in it.
        """
        for module in self.modules:
            module.set_reshard_after_forward(False, recurse=False)
            module.unshard()
        if self.plan.offloads and self.mesh.device_type != "cpu":  # before host memory may change that is being copied
            torch.accelerator.synchronize()
        try:
            yield
        finally:
            self.prepare_for_training()
            for module in self.modules:
                module.reshard()

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Passes in this block take the memory that they always take, and wait for no process; gradients are garbage.

        They may fail at any point.
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
                parameter.unsharded_accumulated_grad = None  # what waited for its exchange is not reset
                if hasattr(parameter, "_unsharded_param"):  # it was gathered once
                    parameter._unsharded_param.grad = None
            self.prepare_for_training()
            self.used.clear()

    @property
    def innermost(self) -> list[nn.Module]:
        """The modules that are gathered each for itself and have none in them that is: the layers, if there are any."""
        return [
            module
            for module in self.modules
            if not any(isinstance(inner, FSDPModule) for inner in module.modules() if inner is not module)
        ]

    def add_up_norms(self, norms: Tensor) -> Tensor:
        """L2 norms of whole tensors `[P]`, from those of the parts of this process."""
        squares = norms.double().square().to(self.mesh.device_type)
        dist.all_reduce(squares, group=self.mesh.get_group(_PARTS))
        return squares.sqrt().to(norms)

    def prepare_for_training(self) -> None:
        """Let each module free its weights between its forward and its backward pass, where that is asked for."""
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
    """Sends each part to where it belongs. torch has gloo gather into a copy, which costs more than the exchange."""

    def __call__(
        self, output_tensor: Tensor, input_tensor: Tensor, group: dist.ProcessGroup, async_op: bool = False
    ) -> None:
        parts = output_tensor.chunk(group.size())
        if parts[group.rank()].data_ptr() != input_tensor.data_ptr():  # it lies in the output already
            parts[group.rank()].copy_(input_tensor)
        works = [dist.broadcast(part, group=group, group_src=index, async_op=True) for index, part in enumerate(parts)]
        for work in works:
            work.wait()


class _GlooReduceScatter(DefaultReduceScatter):
    """Adds up in place, and keeps the part of this process. torch has gloo add up a copy."""

    def __call__(  # type: ignore[override] # there is nothing to wait for
        self, output_tensor: Tensor, input_tensor: Tensor, group: dist.ProcessGroup, op: Any, async_op: bool = False
    ) -> None:
        dist.all_reduce(input_tensor, op=op, group=group)
        output_tensor.copy_(input_tensor.chunk(group.size())[group.rank()])


class _NoAllGather(DefaultAllGather):
    """Takes the part of this process for those of the others."""

    def __call__(
        self, output_tensor: Tensor, input_tensor: Tensor, group: dist.ProcessGroup, async_op: bool = False
    ) -> None:
        for part in output_tensor.chunk(group.size()):
            if part.data_ptr() != input_tensor.data_ptr():  # it lies in the output already
                part.copy_(input_tensor)


class _NoReduceScatter(DefaultReduceScatter):
    """Takes some gradient of this process for the sum."""

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
    """Spread a model over all processes, in place. Call it before the optimizer is made.

    Args:
        compute_type: what matrices are multiplied in.
        memory: what the model was made with, if it has none for its weights.
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
    # Autocast would keep a copy of all weights in 16 bits until the backward pass: let these travel instead.
    gathered_type = None if plan.gathers_once or compute_type == torch.float32 else compute_type
    is_wide = any(parameter.dtype == torch.float64 for parameter in model.parameters())
    policy = MixedPrecisionPolicy(gathered_type, None if is_wide else plan.gradient_type, cast_forward_inputs=False)
    _check_layers(model, plan.layers)
    # Where there is one copy, a mesh of one dimension saves the second reduction.
    used = mesh if num_replicas > 1 else mesh[_PARTS]
    place = CPUOffloadPolicy(pin_memory=device.type != "cpu") if plan.offloads else OffloadPolicy()
    for module in (*find_layers(model, plan.layers), model):
        fully_shard(module, mesh=used, mp_policy=policy, offload_policy=place)
    if parts is not None:
        _set_parts(model, parts)
    sharded = ShardedModel(model, mesh, plan)
    sharded.prepare_for_training()
    # A process whose rows do not use a parameter gives zeros, or the gradients of others would be taken for its own.
    sharded.model.set_reduce_scatter_unused_params(True)
    return sharded


def prepare(accelerator: Accelerator, model: nn.Module, optimizer: Optimizer) -> tuple[nn.Module, Any]:
    """The model and the optimizer as accelerate prepares them: for data parallelism, unless the model is sharded."""
    if isinstance(model, FSDPModule):
        return (
            accelerator.prepare_model(model, device_placement=False, evaluation_mode=True),
            accelerator.prepare_optimizer(optimizer, device_placement=False),
        )
    return accelerator.prepare(model, optimizer)  # type: ignore[no-any-return]


def check_optimizer_class(kind: Any) -> None:
    """Raise UserError for an optimizer that is not known to make the same update of parts as of whole parameters."""
    if kind not in EXACT_OPTIMIZERS:
        known = ", ".join(exact.__name__ for exact in EXACT_OPTIMIZERS)
        name = getattr(kind, "__name__", kind)
        raise UserError(f"parallel.shard: {name} may need whole parameters; optimizers allowed with shards: {known}")


def check_optimizer(optimizer: Optimizer) -> None:
    """Raise UserError for an optimizer that cannot update parts of parameters."""
    check_optimizer_class(type(optimizer))
    if optimizer.defaults.get("fused") and type(optimizer) not in FUSED_ON_PARTS:
        raise UserError(f"optimizer.args.fused: true: not for a {type(optimizer).__name__} with shards; leave it out")


def _check_parameters(model: nn.Module) -> None:
    """Raise UserError for parameters that cannot be spread."""
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
    """Raise UserError for layers that would average rows that count nothing."""
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            raise UserError(
                f"parallel.shard: full: {name} is a {type(module).__name__}, and processes with less to do run it on "
                "rows that count nothing; set parallel.shard=zero2"
            )


def _check_layers(model: nn.Module, names: Sequence[str]) -> None:
    known = dict.fromkeys(type(module).__name__ for module in model.modules())
    if unknown := [name for name in names if name not in known]:
        raise UserError(
            f"parallel.layers: {', '.join(unknown)}: the model has no such module; its classes are {', '.join(known)}"
        )


def find_layers(model: nn.Module, names: Sequence[str] = ()) -> list[nn.Module]:
    """The modules of these classes, inner ones first; of no names: those that the model says must not be split.

    A module that shares a parameter with the rest of the model is left out: tied weights are gathered together.
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
    """Give a sharded model without memory its weights. parts: this process's part of each by its name."""
    filled: dict[nn.Parameter, nn.Parameter] = {}
    for name, parameter in model.named_parameters():
        part = parts.pop(name)
        assert isinstance(parameter, DTensor)
        assert part.shape == parameter.to_local().shape, name
        filled[parameter] = nn.Parameter(_as_whole(part, parameter), parameter.requires_grad)
    replace_parameters(model, filled)


# ---------------------------------------------------------------------------------------------- tensors and their parts


class WholeTensor(Protocol):
    """A tensor, or a tensor of files that is read in parts."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __getitem__(self, place: Any) -> Tensor: ...


@dataclass(frozen=True)
class Place:
    """Which part of every tensor a process has."""

    index: int
    num_parts: int
    is_copy: bool  # another process has the same part, and comes first


def is_sharded(model: nn.Module) -> bool:
    """Whether the processes have parts of its weights."""
    return isinstance(model, FSDPModule)


def is_spread(tensor: Tensor) -> bool:
    """Whether the processes have parts of it."""
    return isinstance(tensor, DTensor)


def find_place(tensor: DTensor) -> Place:
    """Which part of a tensor this process has, where its rows are shared out as `fully_shard` does it."""
    *copies, index = tensor.device_mesh.get_coordinate() or ()
    assert tensor.placements[-1].is_shard(0), "rows are shared out over the last dimension of the mesh"
    return Place(index, tensor.device_mesh.size(-1), is_copy=any(copies))


def local_part(tensor: Tensor) -> Tensor:
    """The part that this process has of a tensor; they share memory. Of a plain tensor: all of it."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def take_part(whole: WholeTensor, like: DTensor) -> Tensor:
    """The part of a whole tensor that this process has of `like`."""
    shape, begins = compute_local_shape_and_global_offset(like.shape, like.device_mesh, like.placements)
    place = tuple(slice(begin, begin + size) for begin, size in zip(begins, shape, strict=True))
    return whole[place]


@torch.no_grad()
def copy_into(target: Tensor, whole: WholeTensor) -> None:
    """Set a tensor, or the part that this process has of it, to what it is in a whole one of the same shape."""
    if whole.shape != target.shape:
        raise ValueError(f"a tensor of shape {list(whole.shape)} is given, and one of {list(target.shape)} is needed")
    local_part(target).copy_(take_part(whole, target) if isinstance(target, DTensor) else whole[...])


def as_part(whole: WholeTensor, like: Tensor) -> Tensor:
    """A whole tensor, spread over the processes as `like` is; itself where that is a plain tensor."""
    if not isinstance(like, DTensor):
        return whole if isinstance(whole, Tensor) else whole[...].clone()
    return _as_whole(take_part(whole, like).to(like.to_local().device, copy=True), like)


def _as_whole(part: Tensor, like: DTensor) -> DTensor:
    """A tensor that is spread as `like` is, of which this process has this part, on any device."""
    meta = TensorMeta(like.shape, like.stride(), part.dtype)
    return DTensor(part.detach(), DTensorSpec(like.device_mesh, like.placements, meta), requires_grad=False)  # type: ignore[call-arg]


@torch.no_grad()
def swap_values(weight: nn.Parameter, values: Tensor) -> Tensor:
    """Give a parameter other values, spread alike; returns those that it had."""
    before = weight.detach()
    if isinstance(weight, DTensor):  # what `fully_shard` gathers is not what `data` would be set to
        before = before.clone()
        weight.copy_(values)
    else:
        before, weight.data = weight.data, values
    return before


def spread_state(state: Mapping[str, Any], optimizer: Any) -> dict[str, Any]:
    """The whole state of an optimizer, with tensors of the shapes of their parameters spread as those are."""
    parameters = list(chain.from_iterable(group["params"] for group in optimizer.param_groups))
    return {
        **state,
        "state": {
            number: {
                name: as_part(value, parameters[number])
                if getattr(value, "shape", None) == parameters[number].shape
                else value
                for name, value in of_parameter.items()
            }
            for number, of_parameter in state["state"].items()
        },
    }


def copy_whole(model: nn.Module, weights: Mapping[str, Tensor]) -> nn.Module:
    """A copy of a sharded model that is not sharded and has these weights, by name. It cannot be run."""
    modules = [module for module in model.modules() if isinstance(module, FSDPModule)]
    sharded_classes = [type(module) for module in modules]
    known: dict[int, Any] = {
        id(parameter): nn.Parameter(weights[name], requires_grad=False)
        for name, parameter in model.named_parameters(remove_duplicate=False)
    }
    for module in modules:  # the hooks of the copy stay tied to what the model has
        state = fully_shard.state(module)  # type: ignore[attr-defined]
        known[id(state)] = state
    try:
        for module in modules:
            module.__class__ = type(module).__bases__[1]  # that of `fully_shard` refuses to be copied
        return deepcopy(model, known)
    finally:
        for module, sharded_class in zip(modules, sharded_classes, strict=True):
            module.__class__ = sharded_class


def gather_tensor(tensor: Tensor) -> Tensor:
    """The whole of a tensor, on the device of every process; all of them call this. A plain tensor is whole."""
    if not isinstance(tensor, DTensor):
        return tensor
    return _as_whole(tensor.to_local().to(tensor.device_mesh.device_type), tensor).full_tensor()
