"""Loaders: batches on the device, by step for training and by microbatch for evaluation."""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, replace
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from trainer_loop.data.batch_plan import BatchPlan, Rows, cut_evaluation, halve_dearest
from trainer_loop.data.cut import Limits
from trainer_loop.data.split import RawRows
from trainer_loop.errors import UserError
from trainer_loop.runtime.preempt import forking_workers, leave_signals_to_the_parent
from trainer_loop.runtime.randomness import derive_seed, seed_everything

Batch = dict[str, Any]  # tensors, and plain numbers that the model takes
Collate = Callable[[list[dict[str, Any]]], Batch]
Count = Callable[[Batch], int]


class RowSource(Protocol):
    """Encoded rows with access by index: a datasets.Dataset, a list, a torch Dataset."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, Any]: ...


@dataclass
class Microbatch:
    """The rows of one forward and backward pass on this process."""

    rows: Rows  # indices into the split; for a stream, numbers in the epoch
    batch: Batch  # the input of the task, on the device
    num_targets: float  # times the weight; counted on the CPU, so that the device is not synchronised
    is_dummy: bool = False  # lets a process without rows take part in the gradient reduction
    weight: float = 1.0  # of each of its rows, see `data.weight`; 0 for a dummy
    source: str | None = None  # the mixture's source of all its rows; None without a mixture
    num_tokens: int = 0  # without padding; only set with a source

    def pin_memory(self) -> "Microbatch":
        """Pin the tensors. DataLoader calls this, so that copies to the device can overlap with work."""
        self.batch = {
            name: value.pin_memory() if isinstance(value, Tensor) else value for name, value in self.batch.items()
        }
        return self

    def to(self, device: torch.device) -> "Microbatch":
        self.batch = move_batch(self.batch, device)
        return self


@dataclass
class StepBatch:
    """The work of this process in one update. The counts are of its own rows, without a dummy microbatch."""

    step: int  # from 0
    microbatches: list[Microbatch]
    num_rows: int
    num_tokens: int  # without padding
    num_padded_tokens: int
    wait_seconds: float = 0.0  # how long the loop waited for this batch

    def pin_memory(self) -> "StepBatch":
        self.microbatches = [microbatch.pin_memory() for microbatch in self.microbatches]
        return self

    def to(self, device: torch.device) -> "StepBatch":
        self.microbatches = [microbatch.to(device) for microbatch in self.microbatches]
        return self


class StepLoader(Protocol):
    """The interface between the training loop and its batches."""

    @property
    def sources(self) -> Sequence[str]:
        """Names of the sources of a mixture; empty without a mixture."""

    @property
    def steps_per_epoch(self) -> int | None:
        """Updates of one pass over the rows; None if the rows were not counted."""

    def steps(self, *, start: int, stop: int) -> Iterator[StepBatch]:
        """Iterate over the updates start, start + 1, ..., stop - 1."""

    def count_epochs(self, step: int) -> float | None:
        """Return the number of passes over the rows after `step` updates; None if the rows have no epochs."""

    def origins(self, step: int) -> list[str]:
        """Return the places of the rows of update `step` (from 0) in the user's data."""

    def dummy_microbatch(self, step: int) -> Microbatch:
        """Return one row of update `step`, for a process that must join the reduction without a microbatch."""

    def cut_smaller(self, step: int) -> StepBatch | None:
        """Return update `step` again, in microbatches of half the size. Later updates use the smaller size too.

        Returns None if each microbatch has one row already. All processes call this and must find the same size.
        """

    @property
    def max_tokens(self) -> int | None:
        """Most padded tokens of a microbatch; None: no limit."""

    def limit_tokens(self, max_tokens: int) -> None:
        """Limit the padded tokens of all later microbatches to `max_tokens`."""

    def state_dict(self) -> dict[str, Any] | None:
        """Return the position of the next update as plain JSON; None if the step number is enough."""

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


def count_epochs(step: int, *, num_rows: int, batch_size: int) -> float:
    """Return the number of passes over the rows after `step` updates. An epoch's last update has the remaining rows.

    >>> count_epochs(7, num_rows=64, batch_size=5), count_epochs(13, num_rows=64, batch_size=5)
    (0.546875, 1.0)
    """
    whole, rest = divmod(step, math.ceil(num_rows / batch_size))
    return (whole * num_rows + min(rest * batch_size, num_rows)) / num_rows


def read_rows(source: RowSource, rows: Rows) -> list[dict[str, Any]]:
    """Return the rows at these indices, in this order."""
    read_many = getattr(source, "__getitems__", None)
    return list(read_many(rows)) if read_many is not None else [source[row] for row in rows]


def add_draws(rows: Sequence[Mapping[str, Any]], numbers: Rows, *seed: int | str) -> list[dict[str, Any]]:
    """Return the rows, each with its own random seed `draw`: a hash of `seed` and the number of the row."""
    return [{**row, "draw": derive_seed(*seed, number)} for row, number in zip(rows, numbers, strict=True)]


def weigh(microbatch: Microbatch, weight: float) -> Microbatch:
    """Return the microbatch with this weight for its rows. It scales the loss sum and the number of targets."""
    return replace(microbatch, num_targets=microbatch.num_targets * weight, weight=weight)


def as_dummy(microbatch: Microbatch) -> Microbatch:
    """Return the microbatch as a dummy: weight 0 and no targets."""
    return replace(weigh(microbatch, 0.0), is_dummy=True)


def add_partners(
    rows: Sequence[Mapping[str, Any]], numbers: Rows, source: RowSource, *seed: int | str
) -> list[dict[str, Any]]:
    """Return the rows, each with a `partner` row to mix with and the common seed `mixing`; see `Task.mixes`.

    Neither depends on the other rows, so the result is the same in every microbatch and process.
    """
    partners = read_rows(source, [derive_seed(*seed, "partner", number) % len(source) for number in numbers])
    mixing = derive_seed(*seed, "mixing")
    return [{**row, "partner": partner, "mixing": mixing} for row, partner in zip(rows, partners, strict=True)]


@dataclass(frozen=True)
class _Collator(Dataset[Microbatch]):
    """Reads rows and collates them to a microbatch on the CPU. An index is an array of row indices."""

    source: RowSource
    collate: Collate
    count: Count
    draws: bool  # `collate` uses the random seed `draw` of each row
    mixes: bool = False  # `collate` mixes each row with its `partner`

    def make(self, rows: Rows, *seed: int | str) -> Microbatch:
        """Collate these rows. The random seeds depend on `seed` and the row; evaluation passes no `seed`."""
        examples = read_rows(self.source, rows)
        examples = add_draws(examples, rows, *seed) if self.draws else examples
        batch = self.collate(add_partners(examples, rows, self.source, *seed) if self.mixes else examples)
        return Microbatch(rows, batch, self.count(batch))

    def __getitem__(self, rows: np.ndarray) -> Microbatch:
        return self.make(rows.tolist())


@dataclass(eq=False)
class TrainLoader(Dataset[StepBatch]):
    """Loads the updates of this process, from any step on, to `device`; see `StepLoader`.

    Item k is update k, collated on the CPU. All rows in a group of the plan have the same weight and the same source.
    """

    plan: BatchPlan
    rows: RowSource
    _: KW_ONLY
    weights: np.ndarray | None = None  # [N] of the rows; None: 1 for each
    sources: Sequence[str] = ()  # names of the sources of the plan's mixture, if losses are logged by source
    collate: Collate
    count: Count
    device: torch.device
    process_index: int = 0
    num_workers: int = 0
    draws: bool = False
    mixes: bool = False
    origin_of: Callable[[int], str] = str  # row index -> its place in the user's data

    def __getitem__(self, step: int) -> StepBatch:
        share = self.plan.step(step).shares[self.process_index]
        # A collate with random augmentation must give the same result when the step is repeated.
        seed_everything(self.plan.seed, "collate", step, self.process_index)
        # The gradient reduction waits for every process, so a process without rows runs a dummy microbatch.
        microbatches = [self.make_microbatch(rows, step) for rows in share.microbatches] or [self._make_dummy(step)]
        return StepBatch(step, microbatches, share.num_rows, share.num_tokens, share.num_padded_tokens)

    def make_microbatch(self, rows: Rows, step: int) -> Microbatch:
        collator = _Collator(self.rows, self.collate, self.count, self.draws, self.mixes)
        microbatch = collator.make(rows, self.plan.seed, "collate", step)
        if self.sources:
            assert self.plan.mixture is not None, "it has sources"
            source = self.sources[self.plan.mixture.sources[rows[0]]]
            microbatch = replace(microbatch, source=source, num_tokens=int(self.plan.count_tokens(rows).sum()))
        return microbatch if self.weights is None else weigh(microbatch, float(self.weights[rows[0]]))

    def _make_dummy(self, step: int) -> Microbatch:
        rows = self.plan.batch(step)
        shortest = int(rows[self.plan.count_tokens(rows).argmin()])
        return as_dummy(self.make_microbatch([shortest], step))

    @property
    def steps_per_epoch(self) -> int:
        return self.plan.steps_per_epoch

    def steps(self, *, start: int, stop: int) -> Iterator[StepBatch]:
        """Iterate over the updates start, start + 1, ..., stop - 1. The start-up time is the same for any `start`."""
        step = start
        while step < stop:
            plan = self.plan
            batches = _iterate(self, range(step, stop), self.num_workers, self.device)
            while step < stop and self.plan is plan:  # a new plan also replaces the batches that workers prefetched
                start_time = time.perf_counter()
                step_batch = next(batches).to(self.device)
                step_batch.wait_seconds = time.perf_counter() - start_time
                step += 1
                yield step_batch

    def count_epochs(self, step: int) -> float:
        return count_epochs(step, num_rows=len(self.plan.lengths), batch_size=self.plan.batch_size)

    def origins(self, step: int) -> list[str]:
        return [self.origin_of(row) for row in self.plan.batch(step).tolist()]

    def dummy_microbatch(self, step: int) -> Microbatch:
        return self._make_dummy(step).to(self.device)

    def cut_smaller(self, step: int) -> StepBatch | None:
        microbatches = self.plan.step(step).microbatches
        half = halve_dearest(microbatches, self.plan.widths(self.plan.batch(step)), packed=self.plan.limits.packed)
        if half is None:
            return None
        self.limit_tokens(half)
        return self[step].to(self.device)

    @property
    def max_tokens(self) -> int | None:
        return self.plan.limits.max_tokens

    def limit_tokens(self, max_tokens: int) -> None:
        self.plan = self.plan.with_budget(min(max_tokens, self.max_tokens or max_tokens))

    def state_dict(self) -> None:
        """Return None: the step number is enough to find the next update."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        raise UserError(
            "data.streaming: the checkpoint is of a run that streamed its rows, and these would begin anew; set "
            "data.streaming=true, or choose another run_dir"
        )


class KeptRows(NamedTuple):
    """The input rows that have a text; the others were dropped."""

    numbers: np.ndarray  # of the kept rows among the input rows, from 0
    num_given: int  # number of input rows

    def spread(self, output: np.ndarray) -> np.ndarray:
        """Return outputs for all input rows from those of the kept rows, `[N, ...]`.

        A dropped row gets NaN, -1 (integers), None (objects) or False (booleans).
        """
        if len(output) != len(self.numbers):  # not one output per row
            return output
        missing = {"O": None, "b": False}.get(output.dtype.kind, -1)
        filled = np.full((self.num_given, *output.shape[1:]), missing, dtype=output.dtype)
        if np.issubdtype(output.dtype, np.floating):
            filled[:] = np.nan
        filled[self.numbers] = output
        return filled


@dataclass(eq=False)
class EvaluationLoader:
    """Loads every row of a split once, over all processes. Iteration gives the microbatches of this process."""

    source: RowSource
    lengths: Sequence[int] | np.ndarray
    limits: Limits
    _: KW_ONLY
    collate: Collate
    count: Count
    device: torch.device
    process_index: int = 0
    num_workers: int = 0
    draws: bool = False
    raw: RawRows | None = None  # the rows before encoding, for a task that merges encoded rows
    kept: KeptRows | None = None  # the input rows that were kept; None: all

    def __post_init__(self) -> None:
        self.num_rows = len(self.lengths)
        self._cut = cut_evaluation(self.lengths, self.limits)[self.process_index]
        self._collator = _Collator(self.source, self.collate, self.count, self.draws)

    def __len__(self) -> int:
        """Return the number of microbatches of this process."""
        return len(self._cut)

    def __iter__(self) -> Iterator[Microbatch]:
        for microbatch in _iterate(self._collator, self._cut, self.num_workers, self.device):
            yield microbatch.to(self.device)

    def halve(self, microbatch: Microbatch) -> list[Microbatch]:
        """Return the rows of `microbatch` in two smaller ones. Used when it does not fit into memory."""
        middle = len(microbatch.rows) // 2
        halves = microbatch.rows[:middle], microbatch.rows[middle:]
        return [self._collator.make(rows).to(self.device) for rows in halves]


def move_batch(batch: Batch, device: torch.device) -> Batch:
    """Return the batch on the device. If the memory is pinned, the copy overlaps with work on the device."""
    if device.type == "cpu":
        return batch
    return {
        name: value.to(device, non_blocking=True) if isinstance(value, Tensor) else value
        for name, value in batch.items()
    }


_T = TypeVar("_T", StepBatch, Microbatch)


def _iterate(dataset: Dataset[_T], indices: Sequence[Any], num_workers: int, device: torch.device) -> Iterator[_T]:
    """Iterate over the items at these indices, with DataLoader workers if `num_workers` > 0."""
    if num_workers == 0:  # a DataLoader would give the same items and cost 20 microseconds for each
        items = (dataset[index] for index in indices)
        return (item.pin_memory() for item in items) if device.type == "cuda" else items
    loader: DataLoader[_T] = DataLoader(
        dataset,
        batch_size=None,  # an item is a whole step already
        sampler=indices,
        num_workers=num_workers,
        pin_memory=device.type == "cuda",
        worker_init_fn=leave_signals_to_the_parent,
    )
    with forking_workers():
        return iter(loader)
