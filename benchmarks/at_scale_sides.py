"""The processes of the benchmark `at_scale`."""

import math
import time
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.peak_memory import PeakMemory
from benchmarks.workplace import MINILM
from trainer_loop.data.batch_plan import BatchPlan, StepPlan
from trainer_loop.data.cut import Limits
from trainer_loop.parallel.plan import ShardingPlan
from trainer_loop.parallel.sharding import shard_model
from trainer_loop.runtime.budget import choose_microbatch_tokens, choose_token_budget

_STEPS = 8  # that are planned at least
_WRITTEN = 10_000_000  # lengths at a time
_STEPS_LOOKED_AT = 4000
_GROUP_AT = {"allreduce_": 1, "_allgather_base_": 2, "_reduce_scatter_base_": 2}  # place among the arguments


def time_plan(num_processes: int, rows_a_process: int, packed: bool) -> dict[str, float]:
    """Milliseconds of a processor to plan a step, how even it is, and its passes that count nothing."""
    batch_size = num_processes * rows_a_process
    limits = _limits_of_a_gpu(num_processes, packed=packed)
    plan = BatchPlan(_draw_lengths(_STEPS * batch_size, seed=0), limits, batch_size=batch_size, seed=0)
    plan.batch(0)  # the order of the epoch is another matter
    began = time.process_time()
    steps = [plan.step(step) for step in range(plan.steps_per_epoch)]
    seconds = time.process_time() - began
    passes = [max(len(share.microbatches) for share in step.shares) * num_processes for step in steps]
    own = [sum(len(share.microbatches) for share in step.shares) for step in steps]
    return {
        "milliseconds": 1000 * seconds / len(steps),
        "busiest": float(np.mean([_find_busiest(step) for step in steps])),
        "dummies": 1 - sum(own) / sum(passes),
        "padding": 1 - sum(step.num_tokens for step in steps) / sum(step.num_padded_tokens for step in steps),
    }


def _find_busiest(step: StepPlan) -> float:
    return max(share.num_padded_tokens for share in step.shares) * len(step.shares) / step.num_padded_tokens


def count_exchanges(num_processes: int, per_machine: int, passes: int) -> dict[str, dict[str, float]]:
    """What process 0 of so many exchanges in a step, of which the other processes are not there, by sharding."""
    num_machines = max(num_processes // per_machine, 1)
    kinds = {
        "zero2": ShardingPlan("zero2"),
        "full": ShardingPlan("full"),
        "full, replicate=auto": ShardingPlan("full", num_machines),
    }
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=num_processes)
    counted = {kind: _count(num_processes // plan.num_replicas, plan, passes=passes) for kind, plan in kinds.items()}
    dist.destroy_process_group()
    return counted


def _count(num_parts: int, plan: ShardingPlan, *, passes: int) -> dict[str, float]:
    from transformers import AutoConfig, AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_config(AutoConfig.for_model(MINILM.type, **MINILM.fields))
    sharded = shard_model(model, plan, device=torch.device("cpu"))
    shapes = [parameter.shape for parameter in model.parameters()]
    with _Exchanges() as exchanges:
        for number in range(passes):
            with sharded.synchronising(number == passes - 1):
                model(input_ids=torch.ones(1, 8, dtype=torch.long)).logits.sum().backward()
        sharded.combine_norms(torch.zeros(len(shapes)))
    held = sum(-(-shape[0] // num_parts) * num_parts * math.prod(shape[1:]) for shape in shapes)
    return {
        "exchanges": exchanges.count,
        "megabytes": exchanges.sent_bytes / 2**20,
        "messages": exchanges.messages,
        "padding": held / sum(map(math.prod, shapes)) - 1,
    }


class _Exchanges(TorchDispatchMode):
    """Counts the calls of collective operations, and what each would send in a ring."""

    def __init__(self) -> None:
        super().__init__()
        self.count, self.messages, self.sent_bytes = 0, 0, 0.0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "c10d":
            whole = max(leaf.numel() * leaf.element_size() for leaf in tree_leaves(args) if isinstance(leaf, Tensor))
            operation = func.__name__.removesuffix(".default")
            size = dist.ProcessGroup.unbox(args[_GROUP_AT[operation]]).size()
            rounds = 2 if operation == "allreduce_" else 1
            self.count += 1
            self.messages += rounds * (size - 1)
            self.sent_bytes += rounds * (size - 1) / size * whole
        return func(*args, **(kwargs or {}))


def write_lengths(path: str, count: int) -> None:
    """Lengths of so many rows, a part at a time."""
    drawn = _draw_lengths(min(_WRITTEN, count), seed=0)
    lengths = np.lib.format.open_memmap(path, "w+", np.int32, (count,))
    for start in range(0, count, _WRITTEN):
        lengths[start : start + _WRITTEN] = drawn[: count - start]


def plan_rows(path: str, batch_size: int) -> dict[str, float]:
    """Seconds of a processor to plan steps of an epoch of the rows whose lengths are in a file, and memory for it."""
    with PeakMemory() as before:
        time.sleep(0.1)
    lengths = np.load(path, mmap_mode="r")
    with PeakMemory() as memory:
        began = time.process_time()
        plan = BatchPlan(lengths, _limits_of_a_gpu(8, packed=False), batch_size=batch_size, seed=0)
        plan.step(3 * plan.steps_per_epoch)
        first = time.process_time()
        plan.step(3 * plan.steps_per_epoch + plan.steps_per_epoch // 2)
        other = time.process_time()
        time.sleep(0.1)  # memory is looked at now and then
    _check_that_no_row_repeats(plan)
    return {
        "first_seconds": first - began,
        "other_seconds": other - first,
        "megabytes": (memory.of_its_own - before.of_its_own) / 2**20,
    }


def _check_that_no_row_repeats(plan: BatchPlan) -> None:
    first = 3 * plan.steps_per_epoch
    stride = max(plan.steps_per_epoch // _STEPS_LOOKED_AT, 1)
    rows = np.concatenate([plan.batch(step) for step in range(first, first + plan.steps_per_epoch, stride)])
    assert len(np.unique(rows)) == len(rows), "an epoch has each row once"


def _limits_of_a_gpu(num_processes: int, *, packed: bool) -> Limits:
    return Limits(
        num_processes,
        max_tokens=choose_token_budget("cuda", training=True),
        microbatch_tokens=choose_microbatch_tokens("cuda"),
        packed=packed,
    )


def _draw_lengths(count: int, *, seed: int) -> np.ndarray:
    """Tokens of rows, as of texts: most are short, and some are cut at 2,048."""
    return np.random.default_rng(seed).lognormal(5.3, 0.6, count).clip(10, 2048).astype(np.int32)
