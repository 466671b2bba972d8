"""Which rows stand in which update, process and microbatch: pure functions of lengths, seed and step. No torch.

The epoch's permutation is a hash of (seed, epoch); consecutive runs of `batch_size` rows are its batches, and that
alone decides what the optimizer sees. Inside a batch the rows are sorted by length, cut into microbatches of few
padded tokens and dealt to the processes. A loss that is a sum cannot feel the cut, so padding disappears for free.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from trainer_loop.runtime.randomness import derive_seed

Rows = list[int]


@dataclass(frozen=True)
class StepPlan:
    """One update: for every process its microbatches, each a list of row indices, longest row first."""

    step: int
    epoch: int
    microbatches: list[list[Rows]]  # [process][microbatch][row]
    num_rows: int
    num_tokens: int  # without padding
    num_padded_tokens: int  # what the device computes


class BatchPlan:
    """All updates of a run, found by index: `plan.step(k)` costs the same for every k.

    lengths: tokens of each row, `[N]`. batch_size: rows of one update over all processes.
    max_tokens: padded tokens of one microbatch at most; only a single row may exceed it. None: no limit.
    per_device: rows of one microbatch at most. None: no limit.
    """

    def __init__(
        self,
        lengths: Sequence[int] | np.ndarray,
        *,
        batch_size: int,
        seed: int,
        num_processes: int = 1,
        max_tokens: int | None = None,
        per_device: int | None = None,
    ):
        assert len(lengths) > 0 and batch_size > 0 and num_processes > 0
        self.lengths = np.maximum(np.asarray(lengths, dtype=np.int64), 1)
        self.batch_size = batch_size
        self.seed = seed
        self.num_processes = num_processes
        self.max_tokens = max_tokens
        self.per_device = per_device
        self._permutation: tuple[int, np.ndarray] | None = None  # of the epoch asked for last

    @property
    def steps_per_epoch(self) -> int:
        """Updates of one epoch; the last one holds what rows are left."""
        return math.ceil(len(self.lengths) / self.batch_size)

    def with_budget(self, max_tokens: int) -> "BatchPlan":
        """The same updates, cut into microbatches of at most so many padded tokens."""
        return BatchPlan(
            self.lengths,
            batch_size=self.batch_size,
            seed=self.seed,
            num_processes=self.num_processes,
            max_tokens=max_tokens,
            per_device=self.per_device,
        )

    def halve_budget(self, step: int) -> int | None:
        """Padded tokens that cut the dearest microbatch of update `step` in two; None where each has one row."""
        return halve_dearest(self.step(step).microbatches, self.lengths)

    def epoch_of(self, step: int) -> int:
        """The epoch that update `step` belongs to, both from 0."""
        return step // self.steps_per_epoch

    def batch(self, step: int) -> np.ndarray:
        """Rows of update `step` (from 0) over all processes, in the order of the shuffle, `[<= batch_size]`."""
        epoch = self.epoch_of(step)
        start = (step - epoch * self.steps_per_epoch) * self.batch_size
        return self._permute(epoch)[start : start + self.batch_size]

    def step(self, step: int) -> StepPlan:
        """Update `step` (from 0), cut and dealt."""
        rows = self.batch(step)
        microbatches = cut_batch(
            rows.tolist(),
            self.lengths[rows].tolist(),
            num_processes=self.num_processes,
            max_tokens=self.max_tokens,
            per_device=self.per_device,
        )
        return StepPlan(
            step=step,
            epoch=self.epoch_of(step),
            microbatches=microbatches,
            num_rows=len(rows),
            num_tokens=int(self.lengths[rows].sum()),
            num_padded_tokens=sum(
                len(microbatch) * int(self.lengths[microbatch[0]]) for process in microbatches for microbatch in process
            ),
        )

    def _permute(self, epoch: int) -> np.ndarray:
        if self._permutation is None or self._permutation[0] != epoch:
            generator = np.random.Generator(np.random.Philox(derive_seed(self.seed, "order", epoch)))
            self._permutation = epoch, generator.permutation(len(self.lengths))
        return self._permutation[1]


def cut_batch(
    rows: Rows, lengths: Sequence[int], *, num_processes: int, max_tokens: int | None, per_device: int | None
) -> list[list[Rows]]:
    """Cut the rows of one batch into microbatches and deal them: `[process][microbatch][row]`.

    As few microbatches as the budget allows, rounded up to a multiple of `num_processes`, each as small as that
    number permits: padding is low and the processes have even work. With fewer rows than processes some get none.
    """
    order = sorted(range(len(rows)), key=lambda position: (-lengths[position], position))
    rows = [rows[position] for position in order]
    lengths = [lengths[position] for position in order]
    row_limit = per_device or len(rows)
    budget = max_tokens or lengths[0] * len(rows)

    fewest = len(_cut_sorted(lengths, budget, row_limit))
    wanted = math.ceil(fewest / num_processes) * num_processes
    # The smallest budget that still needs no more microbatches than wanted.
    low, high = min(lengths[0], budget), budget
    while low < high:
        middle = (low + high) // 2
        if len(_cut_sorted(lengths, middle, row_limit)) <= wanted:
            high = middle
        else:
            low = middle + 1
    sizes = _cut_sorted(lengths, low, row_limit)
    sizes = _split_largest(sizes, lengths, min(wanted, len(rows)))

    microbatches: list[Rows] = []
    costs: list[int] = []
    start = 0
    for size in sizes:
        microbatches.append(rows[start : start + size])
        costs.append(size * lengths[start])
        start += size
    return _deal(microbatches, costs, num_processes)


def halve_dearest(microbatches: list[list[Rows]], lengths: Sequence[int] | np.ndarray) -> int | None:
    """Padded tokens that cut the dearest microbatch of an update in two; None where each has one row.

    microbatches: `[process][microbatch][row]`. lengths: tokens of each row, found by its number.
    """
    costs = [
        len(microbatch) * int(lengths[microbatch[0]])
        for process in microbatches
        for microbatch in process
        if len(microbatch) > 1
    ]
    return max(costs) // 2 if costs else None


def cut_evaluation(
    lengths: Sequence[int] | np.ndarray, *, num_processes: int, max_tokens: int | None, per_device: int | None
) -> list[list[Rows]]:
    """Cut all rows for evaluation, each once: `[process][microbatch][row]`, longest first."""
    lengths = np.maximum(np.asarray(lengths, dtype=np.int64), 1)
    order = np.argsort(-lengths, kind="stable")
    ordered = lengths[order]
    microbatches: list[Rows] = []
    costs: list[int] = []
    start = 0
    for size in _cut_sorted(ordered, max_tokens or int(lengths.max()) * len(lengths), per_device or len(lengths)):
        microbatches.append(order[start : start + size].tolist())
        costs.append(size * int(ordered[start]))
        start += size
    return _deal(microbatches, costs, num_processes)


def _cut_sorted(lengths: Sequence[int] | np.ndarray, budget: int, row_limit: int) -> list[int]:
    """Sizes of consecutive microbatches of descending lengths: the first row of each is its padded width."""
    sizes = []
    start = 0
    while start < len(lengths):
        size = min(max(1, budget // int(lengths[start])), row_limit, len(lengths) - start)
        sizes.append(size)
        start += size
    return sizes


def _split_largest(sizes: list[int], lengths: Sequence[int], wanted: int) -> list[int]:
    """Halve the microbatch that costs most until there are `wanted`, so that no process is idle needlessly."""
    while len(sizes) < wanted:
        starts = [sum(sizes[:index]) for index in range(len(sizes))]
        divisible = [index for index in range(len(sizes)) if sizes[index] > 1]
        largest = max(divisible, key=lambda index: sizes[index] * lengths[starts[index]])
        half = sizes[largest] // 2
        sizes = [*sizes[:largest], half, sizes[largest] - half, *sizes[largest + 1 :]]
    return sizes


def _deal(microbatches: list[Rows], costs: list[int], num_processes: int) -> list[list[Rows]]:
    """Give each microbatch, dearest first, to the process with the least work so far."""
    dealt: list[list[Rows]] = [[] for _ in range(num_processes)]
    work = [0] * num_processes
    for index in sorted(range(len(microbatches)), key=lambda index: (-costs[index], index)):
        process = min(range(num_processes), key=lambda process: (work[process], process))
        dealt[process].append(microbatches[index])
        work[process] += costs[index]
    return dealt
