"""The processes of a run and their devices: makes the Accelerator and exchanges values between processes."""

import contextlib
import functools
import hashlib
import json
import os
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from trainer_loop.errors import ProcessLost, UserError, in_one_line
from trainer_loop.runtime.host import choose_threads, keep_freed_memory

if TYPE_CHECKING:  # torch and accelerate take seconds to import; a config error is reported before that
    import numpy as np
    import torch
    from accelerate import Accelerator


_T = TypeVar("_T")
_DATA_PARALLEL = ("NO", "MULTI_CPU", "MULTI_GPU", "MULTI_XPU", "MULTI_NPU", "MULTI_MLU", "MULTI_HPU")


def process_index_from_environment() -> int:
    """Rank of this process as set by the launcher; available before torch is imported."""
    return int(os.environ.get("RANK", 0))


def choose_precision(requested: str) -> str:
    """Resolve `auto` and check that the hardware supports the precision.

    Args:
        requested: auto, no, bf16 or fp16. `auto` is bf16 if the hardware has bf16 matrix products, otherwise fp16 on a
            GPU with tensor cores, otherwise no.

    Raises:
        UserError: the hardware does not support the requested precision.
    """
    import torch

    cuda = torch.cuda.is_available()
    if requested == "auto":
        if cuda:
            major, _ = torch.cuda.get_device_capability()
            return "bf16" if major >= 8 else "fp16" if major >= 7 else "no"
        return "bf16" if _cpu_has_bf16() else "no"
    if requested == "fp16" and not cuda:
        raise UserError("train.precision: fp16 needs a GPU and none was found; allowed here: auto, no, bf16")
    if requested == "bf16" and cuda and not torch.cuda.is_bf16_supported():
        raise UserError("train.precision: this GPU has no bf16; allowed here: auto, no, fp16")
    return requested


def _cpu_has_bf16() -> bool:
    import torch

    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("amx_bf16") or capabilities.get("avx512_bf16"))


def make_accelerator(
    *,
    precision: str,
    tf32: bool = True,
    trackers: Sequence[str] = (),
    project_dir: str | None = None,
    timeout_minutes: float = 30.0,
    threads: int | str = "auto",
) -> "Accelerator":
    """Make the Accelerator of this process. It joins the process group if a launcher started several processes.

    Args:
        precision: no, bf16 or fp16, see `choose_precision`.
        tf32: whether a GPU may use TF32 for fp32 matrix products.
        trackers: names of trackers.
        project_dir: directory of the trackers' files.
        timeout_minutes: time that a process waits for the others.
        threads: threads of a CPU process, see `choose_threads`.

    Raises:
        UserError: accelerate did not join all launched processes, or uses something other than data parallelism.
    """
    import torch
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState
    from accelerate.utils import DistributedDataParallelKwargs, GradientAccumulationPlugin, InitProcessGroupKwargs

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
    launched = int(os.environ.get("WORLD_SIZE", 1))
    if launched != accelerator.num_processes:
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
        if (count := choose_threads(threads)) is not None:
            torch.set_num_threads(count)
    return accelerator


def _join_after_restart(timeout: timedelta) -> None:
    """After a restart by the launcher, use keys in the store that the dead processes did not use.

    The launcher's store outlives the processes. With accelerate's default rendezvous, new processes would read the
    addresses of dead ones.
    """
    attempt = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0))
    if attempt == 0 or int(os.environ.get("WORLD_SIZE", 1)) == 1:
        return
    import torch
    import torch.distributed

    rank, num_processes = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    kept_by_launcher = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    store = torch.distributed.TCPStore(
        os.environ["MASTER_ADDR"],
        int(os.environ["MASTER_PORT"]),
        num_processes,
        is_master=rank == 0 and not kept_by_launcher,
        timeout=timeout,
    )
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
    assert device is not None
    torch.distributed.init_process_group(
        torch.distributed.get_default_backend_for_device(device),
        store=torch.distributed.PrefixStore(f"attempt/{attempt}", store),
        rank=rank,
        world_size=num_processes,
        timeout=timeout,
    )


def sum_on_hosts(accelerator: "Accelerator", values: Sequence[float]) -> list[float]:
    """Sums of a few numbers over all processes, on every process. They travel between hosts, so no device waits."""
    if accelerator.num_processes == 1:
        return list(values)
    import torch
    import torch.distributed

    summed = torch.tensor(values, dtype=torch.float64)
    torch.distributed.all_reduce(summed, group=_host_group(accelerator.init_handler.timeout))
    return summed.tolist()  # type: ignore[no-any-return]


@functools.cache
def _host_group(timeout: timedelta) -> "torch.distributed.ProcessGroup | None":
    """A gloo group of all processes; None means the default group, if that already uses gloo."""
    import torch.distributed

    if torch.distributed.get_backend() == "gloo":
        return None
    return torch.distributed.new_group(backend="gloo", timeout=timeout)


def broadcast(accelerator: "Accelerator", value: Any) -> Any:
    """The value of process 0, on every process."""
    if accelerator.num_processes == 1:
        return value
    from accelerate.utils import broadcast_object_list

    return broadcast_object_list([value])[0]


def on_process_0(accelerator: "Accelerator", work: Callable[[], _T]) -> _T:
    """Run a function on process 0 only.

    Args:
        accelerator: the Accelerator of this process.
        work: the function.

    Returns:
        Its result, on every process.

    Raises:
        UserError: `work` raised it on process 0; it is raised on every process.
    """
    value: Any = None
    refused: UserError | None = None
    if accelerator.is_main_process:
        try:
            value = work()
        except UserError as error:
            refused = error
    value, problems = broadcast(accelerator, (value, refused and refused.problems))
    if problems:
        raise refused or UserError(problems)
    return value  # type: ignore[no-any-return]


def gather_rows(accelerator: "Accelerator", parts: "Sequence[torch.Tensor | Sequence[torch.Tensor]]") -> "np.ndarray":
    """The rows of all processes, see `join_rows`; a process may have none."""
    import numpy as np
    from accelerate.utils import gather_object

    gathered = gather_object([join_rows(parts) if parts else None])
    return np.concatenate([rows for rows in gathered if rows is not None])


def join_rows(parts: "Sequence[torch.Tensor | Sequence[torch.Tensor]]") -> "np.ndarray":
    """The rows of several batches, each a tensor or a list of one tensor for each row.

    Returns:
        An array `[rows, ...]`; of lists an array `[rows]` of arrays.
    """
    import numpy as np
    import torch

    if isinstance(parts[0], torch.Tensor):
        return _widen(torch.cat([part for part in parts if isinstance(part, torch.Tensor)]).cpu()).numpy()
    rows = [row for part in parts for row in part]
    values = _widen(torch.cat(rows).cpu()).numpy()  # one copy from the device
    joined = np.empty(len(rows), dtype=object)
    for number, row in enumerate(np.split(values, np.cumsum([len(row) for row in rows])[:-1])):
        joined[number] = row
    return joined


def _widen(tensor: "torch.Tensor") -> "torch.Tensor":
    """Cast bfloat16 to float32, because NumPy has no bfloat16."""
    import torch

    return tensor.float() if tensor.dtype == torch.bfloat16 else tensor


def is_reduction_complete(model: "torch.nn.Module") -> bool:
    """Whether DistributedDataParallel has reduced all gradients of the last backward pass; true for other modules."""
    from torch.nn.parallel import DistributedDataParallel

    if not isinstance(model, DistributedDataParallel):
        return True
    try:
        model._check_reducer_finalized()
    except RuntimeError:
        return False
    return True


def average_gradients(accelerator: "Accelerator", parameters: "Sequence[torch.Tensor]") -> None:
    """Average gradients over all processes, including parameters that only some processes used.

    A parameter without a gradient on any process keeps none. All processes must call this.
    """
    if accelerator.num_processes == 1:
        return
    import torch
    import torch.distributed

    used = torch.tensor([parameter.grad is not None for parameter in parameters], dtype=torch.float64)
    torch.distributed.all_reduce(used, group=_host_group(accelerator.init_handler.timeout))
    for parameter, is_used in zip(parameters, used.tolist(), strict=True):
        if is_used:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            torch.distributed.all_reduce(parameter.grad)
            parameter.grad /= accelerator.num_processes


def share_buffers(accelerator: "Accelerator", model: "torch.nn.Module") -> None:
    """Copy the persistent buffers of process 0 to all processes, such as the running means of a BatchNorm.

    The buffers depend on the rows of each process, so they differ. All processes must call this.
    """
    if accelerator.num_processes == 1:
        return
    import torch.distributed

    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            if name not in module._non_persistent_buffers_set and (
                buffer.is_floating_point() or buffer.dtype == torch.int64
            ):
                torch.distributed.broadcast(buffer, src=0)


def assert_same_on_all_processes(accelerator: "Accelerator", value: Any, *, what: str) -> None:
    """Check that all processes hold the same value. All processes must call this.

    Args:
        accelerator: the Accelerator of this process.
        value: plain JSON.
        what: name of the value for the user.

    Raises:
        UserError: a process holds another value; raised on every process.
    """
    if accelerator.num_processes == 1:
        return
    from accelerate.utils import gather_object

    digest = hashlib.blake2b(json.dumps(value, sort_keys=True, default=str).encode(), digest_size=8).hexdigest()
    digests = gather_object([digest])
    if len(set(digests)) > 1:
        unlike = [str(rank) for rank, other in enumerate(digests) if other != digests[0]]
        raise UserError(
            f"{what} of process {', '.join(unlike)} is not that of process 0: all processes must see the same files, "
            "and a function that returns rows must return them in the same order everywhere"
        )


def announce(accelerator: "Accelerator", notice: str) -> None:
    """Publish a notice that the other processes can read without waiting for anyone."""
    if accelerator.num_processes > 1:
        _store().set(notice, "1")


@contextlib.contextmanager
def watch_for(accelerator: "Accelerator", notice: str) -> Iterator[Callable[[], bool]]:
    """Yield a function that says, at once, whether any process has published this notice.

    A separate thread checks twice a second, because the store has no timeout if its machine cannot be reached.
    """
    if accelerator.num_processes == 1:
        yield lambda: False
        return
    seen, over = threading.Event(), threading.Event()
    store = _store()

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


def _store() -> "torch.distributed.Store":
    """The key-value store through which the processes found each other."""
    from torch.distributed.distributed_c10d import _get_default_store

    return _get_default_store()


def find_lost_processes(error: BaseException) -> ProcessLost | None:
    """The error to report if `error` means that another process is gone; None for any other error.

    Every running process announces itself in the store. The report names those that do not within a few seconds.
    """
    import torch.distributed

    if not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return None
    told = str(error)
    of_gloo = isinstance(error, RuntimeError) and _GLOO.match(told) is not None
    if not of_gloo and not isinstance(error, torch.distributed.DistError):
        return None
    answers: list[str] = []
    asking = threading.Thread(target=lambda: answers.append(_find_silent()), daemon=True)
    asking.start()
    asking.join(_SECONDS_TO_ANSWER + 1)  # a request to the store has no timeout if its machine cannot be reached
    who = answers[0] if answers else _STORE_LOST
    return ProcessLost(f"{who} ({_shorten_cause(told)}); the same command goes on from the last checkpoint")


def _find_silent() -> str:
    """The processes that do not announce within a few seconds that they still run, as text."""
    import torch.distributed

    try:
        store, num_processes = _store(), torch.distributed.get_world_size()
        store.set(f"running/{torch.distributed.get_rank()}", "1")
        time.sleep(_SECONDS_TO_ANSWER)
        silent = [str(rank) for rank in range(num_processes) if not store.check([f"running/{rank}"])]
    except RuntimeError:
        return _STORE_LOST
    return f"process {', '.join(silent)} no longer answers" if silent else "the connection to a process broke"


_GLOO = re.compile(r"\[[^\]]*gloo/[^\]]*\]|Gloo connectFullMesh")  # start of gloo's connection errors
_SECONDS_TO_ANSWER = 3.0
_STORE_LOST = "process 0, or its machine, no longer answers"  # process 0, or the launcher beside it, runs the store


def _shorten_cause(told: str) -> str:
    """Remove the position in the C++ code that gloo puts first."""
    return in_one_line(RuntimeError(told.rpartition("] ")[2] if told.startswith("[") else told), at_most=120)


def leave_process_group() -> None:
    """Leave the process group before the process ends, in every case: otherwise gloo aborts the process."""
    import torch.distributed

    _host_group.cache_clear()
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
