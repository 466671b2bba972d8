"""Creates the Accelerator and exchanges values between the processes of a run."""

import contextlib
import functools
import hashlib
import json
import os
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import (
    DistributedDataParallelKwargs,
    GradientAccumulationPlugin,
    InitProcessGroupKwargs,
    broadcast_object_list,
    gather_object,
)
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from trainer_loop.errors import ProcessLost, UserError, in_one_line
from trainer_loop.runtime.host import (
    choose_threads,
    count_launched_processes,
    keep_freed_memory,
    process_index_from_environment,
)

_T = TypeVar("_T")
_DATA_PARALLEL = ("NO", "MULTI_CPU", "MULTI_GPU", "MULTI_XPU", "MULTI_NPU", "MULTI_MLU", "MULTI_HPU")


def choose_precision(requested: str) -> str:
    """Resolve the precision `auto`, and check that the hardware supports any other.

    `auto` is bf16 if the hardware has bf16 matrix products, otherwise fp16 on a GPU with tensor cores, otherwise no.

    Args:
        requested: auto, no, bf16 or fp16.

    Raises:
        UserError: if the hardware does not support the requested precision.
    """
    cuda = torch.cuda.is_available()
    if requested == "auto":
        if cuda:
            major, _ = torch.cuda.get_device_capability()
            return "bf16" if major >= 8 else "fp16" if major >= 7 else "no"
        capabilities = torch.cpu.get_capabilities()
        return "bf16" if capabilities.get("amx_bf16") or capabilities.get("avx512_bf16") else "no"
    if requested == "fp16" and not cuda:
        raise UserError("train.precision: fp16 needs a GPU and none was found; allowed here: auto, no, bf16")
    if requested == "bf16" and cuda and not torch.cuda.is_bf16_supported():
        raise UserError("train.precision: this GPU has no bf16; allowed here: auto, no, fp16")
    return requested


def make_accelerator(
    *,
    precision: str,
    tf32: bool = True,
    trackers: Sequence[str] = (),
    project_dir: str | None = None,
    timeout_minutes: float = 30.0,
    threads: int | str = "auto",
    updates_on_host: bool = False,
) -> Accelerator:
    """Create the Accelerator of this process. It joins the process group if a launcher started several processes.

    Args:
        precision: no, bf16 or fp16, see `choose_precision`.
        tf32: whether a GPU may use TF32 for fp32 matrix products.
        project_dir: directory of the trackers' files.
        timeout_minutes: how long a process waits for the others.
        threads: threads of a process that computes on the CPU, see `choose_threads`.
        updates_on_host: the CPU updates the weights, also if the device is a GPU.

    Raises:
        UserError: if accelerate did not join all launched processes, or uses more than data parallelism.
    """
    if AcceleratorState._shared_state.get("_mixed_precision", precision) != precision:
        AcceleratorState._reset_state()  # one precision for a Python process, but a notebook makes many loops
    if torch.cuda.is_available():
        torch.set_float32_matmul_precision("high" if tf32 else "highest")
    _join_after_restart(timedelta(minutes=timeout_minutes))
    accelerator = Accelerator(
        # Without this, two processes on a machine without a GPU would not join.
        cpu=not torch.accelerator.is_available(),
        mixed_precision=precision,
        # The loop divides by the number of targets; ACCELERATE_GRADIENT_ACCUMULATION_STEPS must not divide again.
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
        kwargs_handlers=[
            # Processes may run different numbers of forward passes, so a pass must not broadcast buffers.
            DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True),
            InitProcessGroupKwargs(timeout=timedelta(minutes=timeout_minutes)),
        ],
        log_with=list(trackers) or None,
        project_dir=project_dir,
    )
    if (launched := count_launched_processes()) != accelerator.num_processes:
        raise UserError(
            f"WORLD_SIZE={launched} processes were launched but accelerate joined {accelerator.num_processes}: "
            "each would train alone; launch with `accelerate launch --multi_gpu --num_processes N`"
        )
    if accelerator.distributed_type not in _DATA_PARALLEL:
        raise UserError(
            f"accelerate was told to use {accelerator.distributed_type.value}; gradient norms and checkpoints here are "
            "those of data parallelism: launch with --multi_gpu, or with a file of launch/accelerate"
        )
    if accelerator.device.type == "cpu":
        keep_freed_memory()
    if (accelerator.device.type == "cpu" or updates_on_host) and (count := choose_threads(threads)) is not None:
        torch.set_num_threads(count)
    return accelerator


def _join_after_restart(timeout: timedelta) -> None:
    """After a restart by the launcher, use keys in the store that the dead processes did not use.

    The launcher's store outlives the processes. With accelerate's default rendezvous, new processes would read the
    addresses of dead ones.
    """
    attempt = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0))
    rank, num_processes = process_index_from_environment(), count_launched_processes()
    if attempt == 0 or num_processes == 1:
        return
    is_master = rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"  # else the launcher keeps it
    address = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = dist.TCPStore(*address, num_processes, is_master=is_master, timeout=timeout)
    device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    dist.init_process_group(
        dist.get_default_backend_for_device(device),
        store=dist.PrefixStore(f"attempt/{attempt}", store),
        rank=rank,
        world_size=num_processes,
        timeout=timeout,
    )


def sum_on_hosts(accelerator: Accelerator, values: Sequence[float]) -> list[float]:
    """Sum a few numbers over all processes; each process gets the sums. Only the hosts wait, not the devices."""
    if accelerator.num_processes == 1:
        return list(values)
    summed = torch.tensor(values, dtype=torch.float64)
    dist.all_reduce(summed, group=_host_group(accelerator.init_handler.timeout))
    return summed.tolist()  # type: ignore[no-any-return]


def make_gather(accelerator: Accelerator) -> Callable[[Any], list[Any]]:
    """Return a function that gathers the values of all processes on each of them.

    A thread may call the function during training, because it has its own process group. All processes must call this.
    """
    if accelerator.num_processes == 1:
        return lambda value: [value]
    group = dist.new_group(backend="gloo", timeout=accelerator.init_handler.timeout)

    def gather(value: Any) -> list[Any]:
        values: list[Any] = [None] * accelerator.num_processes
        dist.all_gather_object(values, value, group=group)
        return values

    return gather


@functools.cache
def _host_group(timeout: timedelta) -> "dist.ProcessGroup | None":
    """Return a gloo group of all processes; None means the default group, if that already uses gloo."""
    if dist.get_backend() == "gloo":
        return None
    return dist.new_group(backend="gloo", timeout=timeout)


def broadcast(accelerator: Accelerator, value: Any) -> Any:
    """Return the value of process 0 on every process."""
    return value if accelerator.num_processes == 1 else broadcast_object_list([value])[0]


def send_from(accelerator: Accelerator, tensor: Tensor, process: int) -> None:
    """Copy the values of a tensor, on any device, from one process to all others. All processes must call this."""
    group = _host_group(accelerator.init_handler.timeout) if tensor.device.type == "cpu" else None
    dist.broadcast(tensor, src=process, group=group)


def on_process_0(accelerator: Accelerator, work: Callable[[], _T]) -> _T:
    """Run `work` on process 0 only, and return its result, or raise its UserError, on every process."""
    value: Any = None
    user_error: UserError | None = None
    if accelerator.is_main_process:
        try:
            value = work()
        except UserError as error:
            user_error = error
    value, problems = broadcast(accelerator, (value, user_error and user_error.problems))
    if problems:
        raise user_error or UserError(problems)
    return value  # type: ignore[no-any-return]


def is_reduction_complete(model: nn.Module) -> bool:
    """Whether DistributedDataParallel has reduced all gradients of the last backward pass; true for other modules."""
    if not isinstance(model, DistributedDataParallel):
        return True
    try:
        model._check_reducer_finalized()
    except RuntimeError:
        return False
    return True


def sum_gradients(accelerator: Accelerator, parameters: Iterable[Tensor]) -> None:
    """Sum gradients over all processes; a missing gradient counts as zeros. All processes must call this."""
    for parameter in parameters if accelerator.num_processes > 1 else ():
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        dist.all_reduce(parameter.grad)


def average_gradients(accelerator: Accelerator, parameters: Sequence[Tensor]) -> None:
    """Average gradients over all processes, including parameters that only some processes used.

    A parameter without a gradient on any process keeps none. All processes must call this.
    """
    if accelerator.num_processes == 1:
        return
    counts = sum_on_hosts(accelerator, [parameter.grad is not None for parameter in parameters])
    used = [parameter for parameter, count in zip(parameters, counts, strict=True) if count]
    sum_gradients(accelerator, used)
    for parameter in used:
        parameter.grad /= accelerator.num_processes  # type: ignore[operator] # it has one now


def share_buffers(accelerator: Accelerator, model: nn.Module) -> None:
    """Copy the persistent buffers of process 0 to all processes, such as the running means of a BatchNorm.

    The buffers depend on the rows of each process, so they differ. All processes must call this.
    """
    if accelerator.num_processes == 1:
        return
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            if name not in module._non_persistent_buffers_set and (
                buffer.is_floating_point() or buffer.dtype == torch.int64
            ):
                dist.broadcast(buffer, src=0)


def assert_same_on_all_processes(accelerator: Accelerator, value: Any, *, what: str) -> None:
    """Raise UserError on every process if `value`, plain JSON, differs between processes. All must call this."""
    if accelerator.num_processes == 1:
        return
    digest = hashlib.blake2b(json.dumps(value, sort_keys=True, default=str).encode(), digest_size=8).hexdigest()
    digests = gather_object([digest])
    if len(set(digests)) > 1:
        outliers = [str(rank) for rank, other in enumerate(digests) if other != digests[0]]
        raise UserError(
            f"{what} of process {', '.join(outliers)} is not that of process 0: all processes must see the same files, "
            "and a function that returns rows must return them in the same order everywhere"
        )


def announce(accelerator: Accelerator, notice: str) -> None:
    """Publish a notice that the other processes can read without waiting for this one."""
    if accelerator.num_processes > 1:
        dist.distributed_c10d._get_default_store().set(notice, "1")


def announce_fault(accelerator: Accelerator, fault: str) -> None:
    """Publish why this process ends, so that other processes, which wait for it in an exchange, report the same."""
    if accelerator.num_processes > 1:
        dist.distributed_c10d._get_default_store().set(_FAULT, fault)


@contextlib.contextmanager
def watch_for(accelerator: Accelerator, notice: str) -> Iterator[Callable[[], bool]]:
    """Yield a function that returns, without waiting, whether any process has published this notice.

    A separate thread checks twice a second, because a request to the store has no timeout if its machine is down.
    """
    if accelerator.num_processes == 1:
        yield lambda: False
        return
    seen, over = threading.Event(), threading.Event()
    store = dist.distributed_c10d._get_default_store()

    def look() -> None:
        with contextlib.suppress(RuntimeError):  # the store is gone; the next collective reports it
            while not (over.wait(0.5) or seen.is_set()):
                if store.check([notice]):
                    seen.set()

    thread = threading.Thread(target=look, name=f"notice {notice}", daemon=True)
    thread.start()
    try:
        yield seen.is_set
    finally:
        over.set()
        thread.join(1.0)


def find_lost_processes(error: BaseException) -> UserError | None:
    """Return the error to report if `error` means that another process is gone; None for any other error.

    If a process has published a fault, that fault is returned. Otherwise every running process reports itself in the
    store, and the error names those that do not within a few seconds.
    """
    if not dist.is_initialized():
        return None
    message = str(error)
    is_from_gloo = isinstance(error, RuntimeError) and _GLOO.match(message) is not None
    if not is_from_gloo and not isinstance(error, dist.DistError):
        return None
    answers: list[str | UserError] = []
    thread = threading.Thread(target=lambda: answers.append(_find_silent()), daemon=True)
    thread.start()
    thread.join(_SECONDS_TO_ANSWER + 1)  # a request to the store has no timeout if its machine cannot be reached
    lost = answers[0] if answers else _STORE_LOST
    if isinstance(lost, UserError):
        return lost
    # gloo's messages start with a position in its C++ code.
    cause = message.rpartition("] ")[2] if message.startswith("[") else message
    short = in_one_line(RuntimeError(cause), at_most=120)
    return ProcessLost(f"{lost} ({short}); the same command goes on from the last checkpoint")


def _find_silent() -> str | UserError:
    """Describe the processes that do not report within a few seconds that they run; or return the published fault."""
    try:
        store, num_processes = dist.distributed_c10d._get_default_store(), dist.get_world_size()
        store.set(f"running/{dist.get_rank()}", "1")
        time.sleep(_SECONDS_TO_ANSWER)
        if store.check([_FAULT]):
            return UserError(store.get(_FAULT).decode())
        silent = [str(rank) for rank in range(num_processes) if not store.check([f"running/{rank}"])]
    except RuntimeError:
        return _STORE_LOST
    return f"process {', '.join(silent)} no longer answers" if silent else "the connection to a process broke"


_GLOO = re.compile(r"\[[^\]]*gloo/[^\]]*\]|Gloo connectFullMesh")  # start of gloo's connection errors
_SECONDS_TO_ANSWER = 3.0
_FAULT = "fault"
_STORE_LOST = (
    "process 0, or its machine, no longer answers"  # process 0, or the launcher on its machine, runs the store
)


def leave_process_group() -> None:
    """Leave the process group. Every process must do so before it ends: otherwise gloo aborts it."""
    _host_group.cache_clear()
    if dist.is_initialized():
        dist.destroy_process_group()
