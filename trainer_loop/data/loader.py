"""From a plan to batches on the device: a DataLoader over steps for training, one over microbatches for evaluation."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from trainer_loop.data.batch_plan import BatchPlan, Rows, StepPlan, cut_evaluation
from trainer_loop.runtime.randomness import seed_everything

Batch = dict[str, Tensor]
Collate = Callable[[list[dict[str, Any]]], Batch]
Count = Callable[[Batch], int]


class RowSource(Protocol):
    """Encoded rows, found by index: a datasets.Dataset, a list, a torch Dataset."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, Any]: ...


@dataclass
class Microbatch:
    """The rows of one forward and backward pass on this process."""

    rows: Rows  # indices into the split
    batch: Batch  # what the task sees, on the device
    num_targets: int  # counted on the host, so that the device is not waited for
    is_filler: bool = False  # stands in for an idle process so that it joins the reduction; its loss counts nothing

    def pin_memory(self) -> "Microbatch":
        """Called by DataLoader where copies to the device are to overlap."""
        self.batch = {name: tensor.pin_memory() for name, tensor in self.batch.items()}
        return self


@dataclass
class StepBatch:
    """What this process does in one update."""

    plan: StepPlan
    microbatches: list[Microbatch]
    wait_seconds: float = 0.0  # how long the loop stood still for it

    def pin_memory(self) -> "StepBatch":
        """Called by DataLoader where copies to the device are to overlap."""
        self.microbatches = [microbatch.pin_memory() for microbatch in self.microbatches]
        return self


def read_rows(source: RowSource, rows: Rows) -> list[dict[str, Any]]:
    """The rows at these indices, in this order."""
    read_many = getattr(source, "__getitems__", None)
    return list(read_many(rows)) if read_many is not None else [source[row] for row in rows]


class _Steps(Dataset[StepBatch]):
    """Item k is update k of this process, collated on the CPU."""

    def __init__(self, plan: BatchPlan, source: RowSource, collate: Collate, count: Count, process_index: int):
        self.plan = plan
        self.source = source
        self.collate = collate
        self.count = count
        self.process_index = process_index

    def __getitem__(self, step: int) -> StepBatch:
        plan = self.plan.step(step)
        # A collate that augments at random must do the same when the step is repeated.
        seed_everything(self.plan.seed, "collate", step, self.process_index)
        mine = plan.microbatches[self.process_index]
        if not mine:
            # The reduction of gradients waits for every process: an idle one goes through the motions with one row.
            first = next(microbatch for process in plan.microbatches for microbatch in process)
            return StepBatch(plan, [self._collate(first[-1:], is_filler=True)])
        return StepBatch(plan, [self._collate(rows, is_filler=False) for rows in mine])

    def _collate(self, rows: Rows, *, is_filler: bool) -> Microbatch:
        batch = self.collate(read_rows(self.source, rows))
        return Microbatch(rows, batch, 0 if is_filler else self.count(batch), is_filler)


class TrainLoader:
    """The updates of this process, from any step on, with their batches on `device`."""

    def __init__(
        self,
        plan: BatchPlan,
        source: RowSource,
        *,
        collate: Collate,
        count: Count,
        device: torch.device,
        process_index: int = 0,
        num_workers: int = 0,
    ):
        self.plan = plan
        self.device = device
        self.num_workers = num_workers
        self._steps = _Steps(plan, source, collate, count, process_index)

    def steps(self, *, start: int, stop: int) -> Iterator[StepBatch]:
        """Updates start, start + 1, ..., stop - 1. Finding the first costs the same for any `start`."""
        loader: DataLoader[StepBatch] = _make_loader(self._steps, range(start, stop), self.num_workers, self.device)
        batches = iter(loader)
        while True:
            asked = time.perf_counter()
            step_batch = next(batches, None)
            if step_batch is None:
                return
            for microbatch in step_batch.microbatches:
                microbatch.batch = move_batch(microbatch.batch, self.device)
            step_batch.wait_seconds = time.perf_counter() - asked
            yield step_batch


class _Microbatches(Dataset[Microbatch]):
    """Item i is the i-th evaluation microbatch of this process."""

    def __init__(self, cut: list[Rows], source: RowSource, collate: Collate, count: Count):
        self.cut = cut
        self.source = source
        self.collate = collate
        self.count = count

    def __getitem__(self, index: int) -> Microbatch:
        rows = self.cut[index]
        batch = self.collate(read_rows(self.source, rows))
        return Microbatch(rows, batch, self.count(batch))


class EvaluationLoader:
    """Every row of a split once, over all processes; iterating gives the microbatches of this one."""

    def __init__(
        self,
        source: RowSource,
        lengths: Sequence[int] | np.ndarray,
        *,
        collate: Collate,
        count: Count,
        device: torch.device,
        num_processes: int = 1,
        process_index: int = 0,
        max_tokens: int | None = None,
        per_device: int | None = None,
        num_workers: int = 0,
    ):
        self.num_rows = len(lengths)
        self.device = device
        self.num_workers = num_workers
        cut = cut_evaluation(lengths, num_processes=num_processes, max_tokens=max_tokens, per_device=per_device)
        self._microbatches = _Microbatches(cut[process_index], source, collate, count)

    def __len__(self) -> int:
        """Microbatches of this process."""
        return len(self._microbatches.cut)

    def __iter__(self) -> Iterator[Microbatch]:
        for microbatch in _make_loader(self._microbatches, range(len(self)), self.num_workers, self.device):
            microbatch.batch = move_batch(microbatch.batch, self.device)
            yield microbatch


def move_batch(batch: Batch, device: torch.device) -> Batch:
    """The batch on the device; the copy overlaps with work there when the memory is pinned."""
    if device.type == "cpu":
        return batch
    return {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}


def _make_loader(dataset: Dataset[Any], indices: range, num_workers: int, device: torch.device) -> DataLoader[Any]:
    return DataLoader(
        dataset,
        batch_size=None,  # an item is a whole step already
        sampler=indices,
        num_workers=num_workers,
        collate_fn=_as_it_is,
        pin_memory=device.type == "cuda",
    )


def _as_it_is(item: Any) -> Any:
    return item
