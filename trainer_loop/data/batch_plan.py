"""Which rows stand in which update, process and microbatch: pure functions of lengths, seed and step. No torch.

The epoch's order is a hash of (seed, epoch); consecutive runs of `batch_size` rows are its batches, and that alone
decides what the optimizer sees. Inside a batch the rows are sorted by length, cut into microbatches of few padded
tokens and dealt to the processes; see cut.py. A loss that is a sum cannot feel the cut, so padding disappears for
free.
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

_PLANNED_ROWS = 65_536  # cut together: enough that the cost of calling NumPy is shared by many steps
_FILLED_ROWS = 1024  # from which on a cut row by row gains nothing over one that fills each microbatch
_NO_LIMITS = Limits()
_STEP = 8  # tokens, to whose multiples lengths are rounded up to find those that are nearly the same


@dataclass(frozen=True)
class Share:
    """What one process does in one update."""

    microbatches: list[Rows]  # row indices, the longest row of each first
    num_rows: int
    num_tokens: int  # without padding
    num_padded_tokens: int  # what the device computes


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

    Up to `MANY_ROWS` rows the order of an epoch is an array. Of more rows it is computed as far as a step needs it.

    lengths: tokens of each row, `[N]`; it may be mapped from a file, and is not copied. limits: what a microbatch may
    hold, and how many processes share an update.
    batch_size: rows of one update over all processes.
    window: batches whose rows are sorted by length among each other; None: batches are a plain shuffle.
    mixture: draws the rows of an epoch; None: each row once.
    groups: `[N]` a number for each row; rows of unlike groups share no microbatch. None: any rows may.

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
        self._order: tuple[int, Order] | None = None  # of the epoch asked for last
        self._block: _Block | None = None  # the steps around the one asked for last

    @property
    def steps_per_epoch(self) -> int:
        """Updates of one epoch; the last one holds what rows are left."""
        return math.ceil(len(self.lengths) / self.batch_size)

    def count_tokens(self, rows: np.ndarray | Rows | slice) -> np.ndarray:
        """Tokens of these rows, `[n]`, at least 1 each."""
        counted: np.ndarray = np.maximum(self.lengths[rows], 1).astype(np.int64)
        return counted

    def all_tokens(self) -> Iterator[np.ndarray]:
        """Tokens of all rows, a part at a time."""
        for start in range(0, len(self.lengths), _PLANNED_ROWS):
            yield self.count_tokens(slice(start, start + _PLANNED_ROWS))

    def widths(self, rows: np.ndarray | Rows) -> dict[int, int]:
        """How wide a microbatch is whose longest row is this one, for each of these rows."""
        rows = np.asarray(rows)
        return dict(zip(rows.tolist(), self.limits.pad(self.count_tokens(rows)).tolist(), strict=True))

    def with_budget(self, max_tokens: int) -> "BatchPlan":
        """The same updates, cut into microbatches of at most so many padded tokens."""
        plan = copy.copy(self)
        plan.limits = replace(self.limits, max_tokens=max_tokens)
        plan._block = None
        return plan

    def epoch_of(self, step: int) -> int:
        """The epoch that update `step` belongs to, both from 0."""
        return step // self.steps_per_epoch

    def batch(self, step: int) -> np.ndarray:
        """Rows of update `step` (from 0) over all processes, in the order of the epoch, `[<= batch_size]`."""
        epoch = self.epoch_of(step)
        start = (step - epoch * self.steps_per_epoch) * self.batch_size
        return self._order_rows(epoch)[start : start + self.batch_size]

    def step(self, step: int) -> StepPlan:
        """Update `step` (from 0), cut and dealt. It is planned with those around it, which costs little more."""
        if self._block is None or step not in self._block.steps:
            # All of one epoch, whose order is at hand.
            first = self.epoch_of(step) * self.steps_per_epoch
            num_steps = max(_PLANNED_ROWS // self.batch_size, 1)
            start = first + (step - first) // num_steps * num_steps
            self._block = self._plan(range(start, min(start + num_steps, first + self.steps_per_epoch)))
        return self._read(self._block, step)

    def sample(self, num_steps: int) -> list[StepPlan]:
        """At most about so many steps, spread over the first epoch."""
        steps = range(0, self.steps_per_epoch, math.ceil(self.steps_per_epoch / num_steps))
        block = self._plan(steps)
        return [self._read(block, step) for step in steps]

    def _plan(self, steps: range) -> "_Block":
        batches = [self.batch(step) for step in steps]
        # One column is one batch; where it has fewer rows than the others, lengths of 0 follow.
        rows = np.zeros((max(map(len, batches)), len(batches)), dtype=np.int64)
        lengths = np.zeros_like(rows)
        for column, batch in enumerate(batches):
            rows[: len(batch), column] = batch
            lengths[: len(batch), column] = self.count_tokens(batch)
        groups = None if self.groups is None else np.where(lengths > 0, self.groups[rows], 0)
        cut = cut_batches(lengths, self.limits, groups=groups)
        return _Block(steps, np.take_along_axis(rows.T, cut.order, axis=1), cut.microbatches)

    def _read(self, block: "_Block", step: int) -> StepPlan:
        place = block.steps.index(step)
        shares = _read_shares(block.rows[place], block.microbatches[place], self.limits.num_processes)
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
        """Sort the rows of `window` consecutive batches by length, and shuffle the batches that come of it.

        Batches then hold rows of like length: less padding, but no longer a plain sample of the data. The last batch
        of an epoch, where it is not full, stays one.
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
    """An order whose windows are sorted when a batch of them is asked for; the last one is kept.

    rows: before. size: rows of a window. full: where the batch begins that is not full. seed: parts of it.
    """

    rows: Order
    size: int
    full: int
    sort: Callable[[np.ndarray, np.random.Generator], np.ndarray]
    seed: tuple[int | str, ...]
    _sorted: tuple[int, np.ndarray] | None = field(default=None, init=False)  # where the last one begins, its rows

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
    """S steps that were cut together."""

    steps: range
    rows: np.ndarray  # [S, B] in the order of the microbatches
    microbatches: np.ndarray  # [S, M, 5] see `Cut`


def _read_shares(rows: np.ndarray, microbatches: np.ndarray, num_processes: int) -> list[Share]:
    """What each process does in one batch. rows: `[B]`, in the order of its microbatches, `[M, 5]`; see `Cut`."""
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

    lengths: tokens of these rows, at least 1 each. groups: of these rows, see `BatchPlan`. With fewer rows than
    processes some get none.
    """
    of_rows = None if groups is None else groups[:, None]
    cut = cut_batches(np.asarray(lengths, dtype=np.int64)[:, None], limits, groups=of_rows)
    return _read_shares(np.asarray(rows)[cut.order[0]], cut.microbatches[0], limits.num_processes)


def halve_dearest(
    microbatches: list[list[Rows]], lengths: Sequence[int] | Mapping[int, int] | np.ndarray, *, packed: bool = False
) -> int | None:
    """Padded tokens that cut the dearest microbatch of an update in two; None where each has one row.

    microbatches: `[process][microbatch][row]`. lengths: tokens of each row, found by its number.
    """
    costs = [
        sum(int(lengths[row]) for row in microbatch) if packed else len(microbatch) * int(lengths[microbatch[0]])
        for process in microbatches
        for microbatch in process
        if len(microbatch) > 1
    ]
    return max(costs) // 2 if costs else None


def cut_evaluation(lengths: Sequence[int] | np.ndarray, limits: Limits) -> list[list[np.ndarray]]:
    """Cut all rows for evaluation, each once: `[process][microbatch][row]`, dearest microbatch first.

    The rows of a microbatch are an array: of a large set they take a fourth of the memory that numbers of Python take.
    """
    lengths = np.maximum(np.asarray(lengths, dtype=np.int64), 1)
    if len(lengths) > _FILLED_ROWS:
        return _cut_many(lengths, limits)
    dealt = cut_batch(list(range(len(lengths))), lengths, limits)
    return [[np.array(rows) for rows in share.microbatches] for share in dealt]


def _cut_many(lengths: np.ndarray, limits: Limits) -> list[list[np.ndarray]]:
    """Microbatches as full as the limits allow, of rows of nearly one length.

    Rows whose lengths end at the same multiple of `_STEP` are shared out so that each microbatch has one of the longest
    of them: nearly all are of one shape then. For every shape code is compiled, and kept, to multiply its matrices.
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
        if ordered[stop - 1] == ordered[start]:  # neighbours are read faster
            microbatches += [order[first : min(first + size, stop)] for first in range(start, stop, size)]
        else:
            microbatches += [order[first:stop:count] for first in range(start, start + count)]
        start = stop
    padded = limits.pad(lengths)
    costs = [int(lengths[rows].sum() if limits.packed else padded[rows[0]] * len(rows)) for rows in microbatches]
    dearest_first = np.argsort([-cost for cost in costs], kind="stable")
    owners, _ = deal(np.array(costs)[dearest_first, None], limits.num_processes)
    dealt: list[list[np.ndarray]] = [[] for _ in range(limits.num_processes)]
    for index, (owner,) in zip(dearest_first.tolist(), owners.tolist(), strict=True):
        dealt[owner].append(microbatches[index])
    return dealt


def _generator(*parts: int | str) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(derive_seed(*parts)))
