"""Assign rows to updates, processes and microbatches: pure functions of lengths, seed and step. No torch.

The epoch's order is a hash of (seed, epoch). Consecutive runs of `batch_size` rows are its batches; only this decides
the optimizer's updates. Inside a batch the rows are sorted by length, cut into microbatches with little padding, and
dealt to the processes; see cut.py. The loss is a sum over targets, so the cut does not change it.
"""

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from trainer_loop.data.cut import Limits, cut_batches, deal
from trainer_loop.data.mixture import Mixture
from trainer_loop.data.permutation import MANY_ROWS, Order, shuffle
from trainer_loop.runtime.randomness import derive_seed

Rows = list[int]

_PLANNED_ROWS = 65_536  # rows that are cut together, so that many steps share the cost of the NumPy calls
_FILLED_ROWS = 1024  # above this number of rows, filling each microbatch is as good as the cheapest cut
_NO_LIMITS = Limits()
_STEP = 8  # tokens; lengths that round up to the same multiple count as nearly equal


@dataclass(frozen=True)
class Share:
    """The work of one process in one update."""

    microbatches: list[Rows]  # row indices, the longest row of each first
    num_rows: int
    num_tokens: int  # without padding
    num_padded_tokens: int  # the tokens that the device computes


@dataclass(frozen=True)
class StepPlan:
    """One update over all processes."""

    step: int
    epoch: int
    shares: list[Share]  # one for each process

    @property
    def microbatches(self) -> list[list[Rows]]:
        """`[process][microbatch][row]`"""
        return [share.microbatches for share in self.shares]

    @property
    def num_tokens(self) -> int:
        return sum(share.num_tokens for share in self.shares)

    @property
    def num_padded_tokens(self) -> int:
        return sum(share.num_padded_tokens for share in self.shares)


class BatchPlan:
    """All updates of a run, found by index: `plan.step(k)` costs the same for every k.

    Up to `MANY_ROWS` rows the order of an epoch is an array. With more rows, each step computes its part of the order.

    Args:
        lengths: Tokens of each row, `[N]`. The array may be memory-mapped; it is not copied.
        limits: The limits of a microbatch, and the number of processes.
        batch_size: Rows of one update over all processes.
        window: Number of consecutive batches whose rows are sorted by length together. None: a plain shuffle.
        mixture: Draws the rows of an epoch. None: each row once.
        groups: A number for each row, `[N]`; a microbatch has rows of one group only. None: one group.

    >>> plan = BatchPlan([30, 4, 28, 5, 6, 31, 7, 29], Limits(max_tokens=64), batch_size=4, seed=0)
    >>> plan.steps_per_epoch
    2
    >>> [plan.lengths[rows].tolist() for rows in plan.step(0).microbatches[0]]  # of the only process
    [[31, 28], [7, 6]]
    """

    def __init__(
        self,
        lengths: Sequence[int] | np.ndarray,
        limits: Limits = _NO_LIMITS,
        *,
        batch_size: int,
        seed: int,
        window: int | None = None,
        mixture: Mixture | None = None,
        groups: np.ndarray | None = None,
    ):
        assert len(lengths) > 0 and batch_size > 0 and limits.num_processes > 0
        self.lengths = np.asarray(lengths)
        self.batch_size = batch_size
        self.seed = seed
        self.window = window
        self.mixture = mixture
        self.groups = groups
        self.limits = limits
        self._order: tuple[int, Order] | None = None  # of the last requested epoch
        self._block: _Block | None = None  # the steps around the last requested one

    @property
    def steps_per_epoch(self) -> int:
        """Updates of one epoch. The last one has the remaining rows."""
        return math.ceil(len(self.lengths) / self.batch_size)

    def count_tokens(self, rows: np.ndarray | Rows | slice) -> np.ndarray:
        """Return the tokens of these rows, `[n]`, at least 1 each."""
        tokens: np.ndarray = np.maximum(self.lengths[rows], 1).astype(np.int64)
        return tokens

    def all_tokens(self) -> Iterator[np.ndarray]:
        """Iterate over the tokens of all rows, many rows at a time."""
        for start in range(0, len(self.lengths), _PLANNED_ROWS):
            yield self.count_tokens(slice(start, start + _PLANNED_ROWS))

    def widths(self, rows: np.ndarray | Rows) -> dict[int, int]:
        """Return, for each of these rows, the width of a microbatch whose longest row it is."""
        rows = np.asarray(rows)
        return dict(zip(rows.tolist(), self.limits.pad(self.count_tokens(rows)).tolist(), strict=True))

    def with_budget(self, max_tokens: int) -> "BatchPlan":
        """Return a plan of the same updates whose microbatches have at most `max_tokens` padded tokens."""
        plan = copy.copy(self)
        plan.limits = replace(self.limits, max_tokens=max_tokens)
        plan._block = None
        return plan

    def epoch_of(self, step: int) -> int:
        """Return the epoch of update `step`, both from 0."""
        return step // self.steps_per_epoch

    def batch(self, step: int) -> np.ndarray:
        """Return the rows of update `step` (from 0) over all processes, in the epoch's order, `[<= batch_size]`."""
        epoch = self.epoch_of(step)
        start = (step - epoch * self.steps_per_epoch) * self.batch_size
        return self._order_rows(epoch)[start : start + self.batch_size]

    def step(self, step: int) -> StepPlan:
        """Return update `step` (from 0), cut and dealt. The steps around it are planned too, at little extra cost."""
        if self._block is None or step not in self._block.steps:
            # A block stays in one epoch, because only one order is kept.
            first = self.epoch_of(step) * self.steps_per_epoch
            num_steps = max(_PLANNED_ROWS // self.batch_size, 1)
            start = first + (step - first) // num_steps * num_steps
            self._block = self._plan(range(start, min(start + num_steps, first + self.steps_per_epoch)))
        return self._read(self._block, step)

    def sample(self, num_steps: int) -> list[StepPlan]:
        """Return about `num_steps` steps, spread evenly over the first epoch."""
        steps = range(0, self.steps_per_epoch, math.ceil(self.steps_per_epoch / num_steps))
        block = self._plan(steps)
        return [self._read(block, step) for step in steps]

    def _plan(self, steps: range) -> "_Block":
        batches = [self.batch(step) for step in steps]
        # One column is one batch. A batch with fewer rows than the others ends with lengths of 0.
        rows = np.zeros((max(map(len, batches)), len(batches)), dtype=np.int64)
        lengths = np.zeros_like(rows)
        for column, batch in enumerate(batches):
            rows[: len(batch), column] = batch
            lengths[: len(batch), column] = self.count_tokens(batch)
        groups = None if self.groups is None else np.where(lengths > 0, self.groups[rows], 0)
        cut = cut_batches(lengths, self.limits, groups=groups)
        return _Block(steps, np.take_along_axis(rows.T, cut.order, axis=1), cut.microbatches)

    def _read(self, block: "_Block", step: int) -> StepPlan:
        index = block.steps.index(step)
        shares = _read_shares(block.rows[index], block.microbatches[index], self.limits.num_processes)
        return StepPlan(step, self.epoch_of(step), shares)

    def _order_rows(self, epoch: int) -> Order:
        if self._order is None or self._order[0] != epoch:
            if self.mixture is not None:
                order = self.mixture.draw(seed=self.seed, epoch=epoch)
            else:
                order = shuffle(len(self.lengths), self.seed, "order", epoch)
            if self.window is not None:
                order = self._sort_in_windows(order, self.window, epoch)
            self._order = epoch, order
        return self._order[1]

    def _sort_in_windows(self, order: Order, window: int, epoch: int) -> Order:
        """Sort the rows of `window` consecutive batches by length, split them into batches, and shuffle these.

        A batch then has rows of similar length: less padding, but no longer a uniform sample of the data. An incomplete
        last batch of an epoch keeps its rows.
        """
        size, full = window * self.batch_size, len(self.lengths) // self.batch_size * self.batch_size
        if len(self.lengths) > MANY_ROWS:
            return _Windows(order, size, full, self._sort_window, (self.seed, "window", epoch))
        assert isinstance(order, np.ndarray), "an order of few rows is an array"
        generator = _generator(self.seed, "window", epoch)
        for start in range(0, full, size):
            window_rows = slice(start, min(start + size, full))
            order[window_rows] = self._sort_window(order[window_rows], generator)
        return order

    def _sort_window(self, rows: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        batches = rows[np.argsort(self.count_tokens(rows), kind="stable")].reshape(-1, self.batch_size)
        sorted_rows: np.ndarray = generator.permutation(batches).ravel()
        return sorted_rows


@dataclass
class _Windows:
    """An order that sorts a window when one of its batches is requested, and caches the last window."""

    rows: Order  # the order before sorting
    size: int  # rows of a window
    full: int  # number of rows in complete batches; an incomplete batch may follow
    sort: Callable[[np.ndarray, np.random.Generator], np.ndarray]
    seed: tuple[int | str, ...]
    _sorted: tuple[int, np.ndarray] | None = field(default=None, init=False)  # start and rows of the last window

    def __getitem__(self, batch: slice) -> np.ndarray:
        if batch.start >= self.full:
            return self.rows[batch]
        start = batch.start // self.size * self.size
        if self._sorted is None or self._sorted[0] != start:
            rows = self.rows[start : min(start + self.size, self.full)]
            self._sorted = start, self.sort(rows, _generator(*self.seed, start))
        return self._sorted[1][batch.start - start : batch.stop - start]


@dataclass(frozen=True)
class _Block:
    """S steps that are cut together."""

    steps: range
    rows: np.ndarray  # [S, B] in the order of the microbatches
    microbatches: np.ndarray  # [S, M, 5] see `Cut`


def _read_shares(rows: np.ndarray, microbatches: np.ndarray, num_processes: int) -> list[Share]:
    """Return the share of each process. `rows` are `[B]`, in the order of the `microbatches` `[M, 5]`; see `Cut`."""
    ordered = rows.tolist()
    dealt: list[list[Rows]] = [[] for _ in range(num_processes)]
    sums = [[0, 0, 0] for _ in range(num_processes)]
    for begin, stop, process, tokens, padded_tokens in microbatches.tolist():
        if begin == stop:
            break
        dealt[process].append(ordered[begin:stop])
        sums[process][0] += stop - begin
        sums[process][1] += tokens
        sums[process][2] += padded_tokens
    return [Share(mine, *counts) for mine, counts in zip(dealt, sums, strict=True)]


def cut_batch(
    rows: Rows, lengths: Sequence[int] | np.ndarray, limits: Limits, *, groups: np.ndarray | None = None
) -> list[Share]:
    """Cut the rows of one batch into microbatches and deal them to the processes, as `BatchPlan` does.

    If there are fewer rows than processes, some processes get no microbatch.

    Args:
        lengths: Tokens of these rows, at least 1 each.
        groups: Groups of these rows; see `BatchPlan`.
    """
    column = None if groups is None else groups[:, None]
    cut = cut_batches(np.asarray(lengths, dtype=np.int64)[:, None], limits, groups=column)
    return _read_shares(np.asarray(rows)[cut.order[0]], cut.microbatches[0], limits.num_processes)


def halve_dearest(
    microbatches: list[list[Rows]], lengths: Sequence[int] | Mapping[int, int] | np.ndarray, *, packed: bool = False
) -> int | None:
    """Return half the padded tokens of the largest microbatch of an update; None if each microbatch has one row.

    Args:
        microbatches: `[process][microbatch][row]`.
        lengths: Tokens of each row, indexed by its number.
    """
    costs = [
        sum(int(lengths[row]) for row in microbatch) if packed else len(microbatch) * int(lengths[microbatch[0]])
        for process in microbatches
        for microbatch in process
        if len(microbatch) > 1
    ]
    return max(costs) // 2 if costs else None


def cut_evaluation(lengths: Sequence[int] | np.ndarray, limits: Limits) -> list[list[np.ndarray]]:
    """Cut all rows for evaluation, each once: `[process][microbatch][row]`, the most expensive microbatch first.

    The rows of a microbatch are an array, which takes a quarter of the memory of Python integers.
    """
    lengths = np.maximum(np.asarray(lengths, dtype=np.int64), 1)
    if len(lengths) > _FILLED_ROWS:
        return _cut_many(lengths, limits)
    dealt = cut_batch(list(range(len(lengths))), lengths, limits)
    return [[np.array(rows) for rows in share.microbatches] for share in dealt]


def _cut_many(lengths: np.ndarray, limits: Limits) -> list[list[np.ndarray]]:
    """Fill each microbatch up to the limits, with rows of nearly equal length.

    Rows whose lengths round up to the same multiple of `_STEP` are interleaved, so that each microbatch gets one of the
    longest rows. Nearly all of these microbatches then have the same shape. This saves time and memory, because matrix
    kernels are compiled and cached for each shape.
    """
    order = np.argsort(-lengths, kind="stable")
    ordered = lengths[order]
    widths = limits.pad(ordered)
    ascending = -ordered
    total = ordered.cumsum()
    budget, most_rows = limits.max_tokens or int(total[-1]) * len(order), limits.per_device or len(order)
    microbatches: list[np.ndarray] = []
    start = 0
    while start < len(order):
        width, before = int(widths[start]), int(total[start] - ordered[start])
        if limits.packed:
            fitting, num_alike = int(np.searchsorted(total, before + budget, "right")) - start, 1
        else:
            shorter = (int(ordered[start]) - 1) // _STEP * _STEP
            fitting, num_alike = budget // width, int(np.searchsorted(ascending, -shorter)) - start
        size = max(1, min(fitting, most_rows))
        count = max(1, num_alike // size)
        stop = min(start + count * size, len(order))
        if ordered[stop - 1] == ordered[start]:  # all are equally long, and reading adjacent rows is faster
            microbatches += [order[first : min(first + size, stop)] for first in range(start, stop, size)]
        else:
            microbatches += [order[first:stop:count] for first in range(start, start + count)]
        start = stop
    padded = limits.pad(lengths)
    costs = [int(lengths[rows].sum() if limits.packed else padded[rows[0]] * len(rows)) for rows in microbatches]
    by_cost = np.argsort([-cost for cost in costs], kind="stable")
    owners, _ = deal(np.array(costs)[by_cost, None], limits.num_processes)
    dealt: list[list[np.ndarray]] = [[] for _ in range(limits.num_processes)]
    for index, (owner,) in zip(by_cost.tolist(), owners.tolist(), strict=True):
        dealt[owner].append(microbatches[index])
    return dealt


def _generator(*parts: int | str) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(derive_seed(*parts)))
