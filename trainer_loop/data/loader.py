"""From a plan to batches on the device, step by step for training, microbatch by microbatch for evaluation."""

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

Batch = dict[str, Any]  # tensors, and what the model takes as plain numbers
Collate = Callable[[list[dict[str, Any]]], Batch]
Count = Callable[[Batch], int]


class RowSource(Protocol):
    """Encoded rows, found by index: a datasets.Dataset, a list, a torch Dataset."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, Any]: ...


@dataclass
class Microbatch:
    """The rows of one forward and backward pass on this process."""

    rows: Rows  # indices into the split; of a stream numbers in the epoch
    batch: Batch  # what the task sees, on the device
    num_targets: float  # times the weight; counted on the host, so that the device is not waited for
    is_dummy: bool = False  # stands in for an idle process so that it joins the reduction
    weight: float = 1.0  # of all its rows, see `data.weight`; that of a dummy is 0
    source: str | None = None  # of all its rows, where there is a mixture
    num_tokens: int = 0  # without padding, where a source is named

    def pin_memory(self) -> "Microbatch":
        """Called by DataLoader where copies to the device are to overlap."""
        self.batch = {
            name: value.pin_memory() if isinstance(value, Tensor) else value for name, value in self.batch.items()
        }
        return self

    def to(self, device: torch.device) -> "Microbatch":
        self.batch = move_batch(self.batch, device)
        return self


@dataclass
class StepBatch:
    """What this process does in one update; the numbers are of its own rows, without a dummy microbatch."""

    step: int  # from 0
    microbatches: list[Microbatch]
    num_rows: int
    num_tokens: int  # without padding
    num_padded_tokens: int
    wait_seconds: float = 0.0  # how long the loop stood still for it

    def pin_memory(self) -> "StepBatch":
        self.microbatches = [microbatch.pin_memory() for microbatch in self.microbatches]
        return self

    def to(self, device: torch.device) -> "StepBatch":
        self.microbatches = [microbatch.to(device) for microbatch in self.microbatches]
        return self


class StepLoader(Protocol):
    """What the training loop asks for its batches."""

    @property
    def sources(self) -> Sequence[str]:
        """Names of the sources that the rows are drawn from by weight; empty where there is one."""

    @property
    def steps_per_epoch(self) -> int | None:
        """Updates of one pass over the rows; None where nobody has counted them."""

    def steps(self, *, start: int, stop: int) -> Iterator[StepBatch]:
        """Updates start, start + 1, ..., stop - 1."""

    def count_epochs(self, step: int) -> float | None:
        """Passes over the rows that `step` updates make; None where the rows have no epochs."""

    def origins(self, step: int) -> list[str]:
        """Where the rows of update `step` (from 0) stand in the user's data."""

    def dummy_microbatch(self, step: int) -> Microbatch:
        """One row of update `step`, for a process that must join the reduction without a microbatch of its own."""

    def cut_smaller(self, step: int) -> StepBatch | None:
        """Update `step` again, in microbatches of half the size, which all later ones keep; None: of one row each.

        Called by all processes, which must come to the same size.
        """

    @property
    def max_tokens(self) -> int | None:
        """Padded tokens of a microbatch at most."""

    def limit_tokens(self, max_tokens: int) -> None:
        """From now on no microbatch has more padded tokens than this."""

    def state_dict(self) -> dict[str, Any] | None:
        """What must be saved to find the next update again, as plain JSON; None where its number is enough."""

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


def count_epochs(step: int, *, num_rows: int, batch_size: int) -> float:
    """Passes over the rows that `step` updates make: the last update of an epoch has the rows that are left.

    >>> count_epochs(7, num_rows=64, batch_size=5), count_epochs(13, num_rows=64, batch_size=5)
    (0.546875, 1.0)
    """
    whole, rest = divmod(step, math.ceil(num_rows / batch_size))
    return (whole * num_rows + min(rest * batch_size, num_rows)) / num_rows


def read_rows(source: RowSource, rows: Rows) -> list[dict[str, Any]]:
    """The rows at these indices, in this order."""
    read_many = getattr(source, "__getitems__", None)
    return list(read_many(rows)) if read_many is not None else [source[row] for row in rows]


def add_draws(rows: Sequence[Mapping[str, Any]], numbers: Rows, *seed: int | str) -> list[dict[str, Any]]:
    """The rows, each with a seed of its own as `draw`: a function of `seed` and the number of the row."""
    return [{**row, "draw": derive_seed(*seed, number)} for row, number in zip(rows, numbers, strict=True)]


def weigh(microbatch: Microbatch, weight: float) -> Microbatch:
    """The microbatch whose rows all have this weight: it enters both the sum of the loss and the count of targets."""
    return replace(microbatch, num_targets=microbatch.num_targets * weight, weight=weight)


def as_dummy(microbatch: Microbatch) -> Microbatch:
    """The microbatch in the place of one that a process does not have; it counts nothing."""
    return replace(weigh(microbatch, 0.0), is_dummy=True)


def add_partners(
    rows: Sequence[Mapping[str, Any]], numbers: Rows, source: RowSource, *seed: int | str
) -> list[dict[str, Any]]:
    """The rows, each with a row of the source to be mixed with, and with one seed for all; see `Task.mixes`.

    Neither depends on the other rows, so the mixture is the same in every microbatch and process.
    """
    partners = read_rows(source, [derive_seed(*seed, "partner", number) % len(source) for number in numbers])
    mixing = derive_seed(*seed, "mixing")
    return [{**row, "partner": partner, "mixing": mixing} for row, partner in zip(rows, partners, strict=True)]


@dataclass(frozen=True)
class _Collator(Dataset[Microbatch]):
    """Reads rows and makes a microbatch of them, on the CPU; an index is an array of row indices.

    draws: `collate` chooses at random, by the `draw` of each row. mixes: it mixes the rows of a training step.
    """

    source: RowSource
    collate: Collate
    count: Count
    draws: bool
    mixes: bool = False

    def make(self, rows: Rows, *seed: int | str) -> Microbatch:
        """seed: what the draws depend on beside the row; nothing in an evaluation, which is the same each time."""
        read = read_rows(self.source, rows)
        read = add_draws(read, rows, *seed) if self.draws else read
        batch = self.collate(add_partners(read, rows, self.source, *seed) if self.mixes else read)
        return Microbatch(rows, batch, self.count(batch))

    def __getitem__(self, rows: np.ndarray) -> Microbatch:
        return self.make(rows.tolist())


@dataclass(eq=False)
class TrainLoader(Dataset[StepBatch]):
    """The updates of this process, from any step on, with their batches on `device`; see `StepLoader`.

    Item k is update k, collated on the CPU. weights: `[N]` of the rows; None: 1. sources: names of the sources of the
    plan's mixture, where each is logged. Rows of one group of the plan have one weight and one source.
    origin_of: row index -> where that row stands in the user's data.
    """

    plan: BatchPlan
    rows: RowSource
    _: KW_ONLY
    weights: np.ndarray | None = None
    sources: Sequence[str] = ()
    collate: Collate
    count: Count
    device: torch.device
    process_index: int = 0
    num_workers: int = 0
    draws: bool = False
    mixes: bool = False
    origin_of: Callable[[int], str] = str

    def __getitem__(self, step: int) -> StepBatch:
        share = self.plan.step(step).shares[self.process_index]
        # A collate that augments at random must do the same when the step is repeated.
        seed_everything(self.plan.seed, "collate", step, self.process_index)
        # The reduction of gradients waits for every process: an idle one goes through the motions with one row.
        microbatches = [self.make_microbatch(rows, step) for rows in share.microbatches] or [self._make_dummy(step)]
        return StepBatch(step, microbatches, share.num_rows, share.num_tokens, share.num_padded_tokens)

    def make_microbatch(self, rows: Rows, step: int) -> Microbatch:
        collator = _Collator(self.rows, self.collate, self.count, self.draws, self.mixes)
        made = collator.make(rows, self.plan.seed, "collate", step)
        if self.sources:
            assert self.plan.mixture is not None, "it has sources"
            source = self.sources[self.plan.mixture.sources[rows[0]]]
            made = replace(made, source=source, num_tokens=int(self.plan.count_tokens(rows).sum()))
        return made if self.weights is None else weigh(made, float(self.weights[rows[0]]))

    def _make_dummy(self, step: int) -> Microbatch:
        rows = self.plan.batch(step)
        shortest = int(rows[self.plan.count_tokens(rows).argmin()])
        return as_dummy(self.make_microbatch([shortest], step))

    @property
    def steps_per_epoch(self) -> int:
        return self.plan.steps_per_epoch

    def steps(self, *, start: int, stop: int) -> Iterator[StepBatch]:
        """Updates start, start + 1, ..., stop - 1. Finding the first costs the same for any `start`."""
        step = start
        while step < stop:
            plan = self.plan
            batches = _iterate(self, range(step, stop), self.num_workers, self.device)
            while step < stop and self.plan is plan:  # else it was cut anew, also for what workers have prepared
                asked = time.perf_counter()
                step_batch = next(batches).to(self.device)
                step_batch.wait_seconds = time.perf_counter() - asked
                step += 1
                yield step_batch

    def count_epochs(self, step: int) -> float:
        return count_epochs(step, num_rows=len(self.plan.lengths), batch_size=self.plan.batch_size)

    def origins(self, step: int) -> list[str]:
        return [self.origin_of(row) for row in self.plan.batch(step).tolist()]

    def dummy_microbatch(self, step: int) -> Microbatch:
        return self._make_dummy(step).to(self.device)

    def cut_smaller(self, step: int) -> StepBatch | None:
        planned = self.plan.step(step).microbatches
        half = halve_dearest(planned, self.plan.widths(self.plan.batch(step)), packed=self.plan.limits.packed)
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
        """The number of the step is the whole position."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        raise UserError(
            "data.streaming: the checkpoint is of a run that streamed its rows, and these would begin anew; set "
            "data.streaming=true, or choose another run_dir"
        )


class KeptRows(NamedTuple):
    """Numbers, from 0, of the rows that were kept of those that were given; the others had no text."""

    numbers: np.ndarray
    num_given: int

    def spread(self, output: np.ndarray) -> np.ndarray:
        """An output of the rows that were kept, `[N, ...]`, in their places; others have NaN, -1, None or false."""
        if len(output) != len(self.numbers):  # not one a row
            return output
        missing = {"O": None, "b": False}.get(output.dtype.kind, -1)
        filled = np.full((self.num_given, *output.shape[1:]), missing, dtype=output.dtype)
        if np.issubdtype(output.dtype, np.floating):
            filled[:] = np.nan
        filled[self.numbers] = output
        return filled


@dataclass(eq=False)
class EvaluationLoader:
    """Every row of a split once, over all processes; iterating gives the microbatches of this one.

    limits: what a microbatch may hold, and how many processes share the rows. raw: what the rows were made of, for a
    task that merges them. kept: which of the rows that were given these are; None: all.
    """

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
    raw: RawRows | None = None
    kept: KeptRows | None = None

    def __post_init__(self) -> None:
        self.num_rows = len(self.lengths)
        self._cut = cut_evaluation(self.lengths, self.limits)[self.process_index]
        self._collator = _Collator(self.source, self.collate, self.count, self.draws)

    def __len__(self) -> int:
        """Microbatches of this process."""
        return len(self._cut)

    def __iter__(self) -> Iterator[Microbatch]:
        for microbatch in _iterate(self._collator, self._cut, self.num_workers, self.device):
            yield microbatch.to(self.device)

    def halve(self, microbatch: Microbatch) -> list[Microbatch]:
        """Its rows again, in two: for one that did not fit into memory."""
        middle = len(microbatch.rows) // 2
        halves = microbatch.rows[:middle], microbatch.rows[middle:]
        return [self._collator.make(rows).to(self.device) for rows in halves]


def move_batch(batch: Batch, device: torch.device) -> Batch:
    """The batch on the device; the copy overlaps with work there when the memory is pinned."""
    if device.type == "cpu":
        return batch
    return {
        name: value.to(device, non_blocking=True) if isinstance(value, Tensor) else value
        for name, value in batch.items()
    }


_T = TypeVar("_T", StepBatch, Microbatch)


def _iterate(dataset: Dataset[_T], indices: Sequence[Any], num_workers: int, device: torch.device) -> Iterator[_T]:
    """The items at these indices: made by the worker processes of a DataLoader, or here where there are none."""
    if num_workers == 0:  # a DataLoader would do no more, in twenty microseconds an item
        items = (dataset[index] for index in indices)
        return (item.pin_memory() for item in items) if device.type == "cuda" else items
    loader: DataLoader[_T] = DataLoader(
        dataset,
        batch_size=None,  # an item is a whole step already, and stays as it is
        sampler=indices,
        num_workers=num_workers,
        pin_memory=device.type == "cuda",
        worker_init_fn=leave_signals_to_the_parent,
    )
    with forking_workers():
        return iter(loader)
