"""Cut batches into microbatches and deal these to the processes, many batches at a time. NumPy only, no torch.

The rows of a batch are sorted by length and cut into consecutive microbatches, each as wide as its longest row. Dynamic
programming over the rows finds the exact cheapest cut, for all batches at once. The batches S are the last dimension of
every array, so that each step of the dynamic programme reads adjacent numbers.
"""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_NEVER = 2**62  # the cost of a microbatch that breaks a limit, and of a cut that leaves a process idle
# With a few processes, cuts with these limits of a microbatch are compared, as fractions of the work of one process.
_PARTS = (1.5, 1.3, 1.2, 1.1, 1.0, 0.75, 0.5, 0.375, 0.25)
# From this number of processes on, each process gets the same number of microbatches. Else some would have one more,
# and the others would wait or run dummy microbatches.
_MANY_PROCESSES = 8
_EXACTNESS = 256  # the search for the smallest largest microbatch stops within 1/256 of its size
_SHARES_A_BATCH = 16  # with more shares per batch than this, batches are dealt one after the other


def widen(lengths: np.ndarray, *, step: int, longest: int) -> np.ndarray:
    """Round lengths up to a multiple of `step`. Rounding does not exceed `longest`.

    >>> widen(np.array([5, 18, 23]), step=16, longest=20).tolist()
    [16, 20, 23]
    """
    return np.minimum(-(-lengths // step) * step, np.maximum(lengths, longest))


@dataclass(frozen=True)
class Limits:
    """The limits of a microbatch, its fixed cost, and the number of processes."""

    num_processes: int = 1
    max_tokens: int | None = None  # most padded tokens of a microbatch; one row alone may exceed it. None: no limit
    per_device: int | None = None  # most rows of a microbatch. None: no limit
    microbatch_tokens: int | None = None  # fixed cost of a microbatch, in tokens. None: as few microbatches as possible
    packed: bool = False  # rows are concatenated without padding
    width_step: int = 1  # tokens; the width of a microbatch is rounded up to a multiple, unless it is packed
    longest: int = 0  # rounding up to a multiple of `width_step` does not exceed this
    row_step: int = 1  # prefer numbers of rows that are a multiple of this, if it costs little

    def pad(self, lengths: np.ndarray) -> np.ndarray:
        """Return, for each length, the width of a microbatch whose longest row has this many tokens."""
        if self.packed or self.width_step == 1:
            return lengths
        return widen(lengths, step=self.width_step, longest=self.longest)


@dataclass(frozen=True)
class Cut:
    """S batches of at most B rows, each cut into at most M microbatches."""

    order: np.ndarray  # [S, B] indices of the rows in their batch; a microbatch is a run of these, longest row first
    # [S, M, 5] for each microbatch: start and stop in `order`, process, tokens without padding, tokens with padding.
    # The most expensive is first, and runs first. A batch with fewer than M microbatches ends with empty ones.
    microbatches: np.ndarray


def cut_batches(lengths: np.ndarray, limits: Limits, *, groups: np.ndarray | None = None) -> Cut:
    """Cut batches into microbatches and deal them to the processes.

    Args:
        lengths: Tokens of the rows, `[B, S]`; 0 after the last row of a batch.
        groups: A number for each row, `[B, S]`; a microbatch has rows of one group only.
    """
    order, group_ends = np.argsort(-lengths, axis=0, kind="stable"), None
    if groups is not None:
        groups = np.where(lengths > 0, groups, groups.max() + 1)  # positions without a row stay last
        order = np.lexsort((-lengths, groups), axis=0)
        group_ends = _find_group_ends(np.take_along_axis(groups, order, axis=0))
    lengths = np.take_along_axis(lengths, order, axis=0)
    widths = limits.pad(lengths)
    if limits.packed and group_ends is None:
        bins = _pack(lengths, limits)
        by_bin = np.argsort(bins, axis=0, kind="stable")
        order, lengths, bins = (np.take_along_axis(array, by_bin, axis=0) for array in (order, lengths, bins))
        begins, stops = _find_runs(bins)
    elif limits.num_processes == 1:
        ends = _find_ends(widths, limits, group_ends=group_ends)
        begins, stops = _cut_cheapest(widths, ends, _overhead(widths, limits), row_step=limits.row_step)
    elif limits.num_processes < _MANY_PROCESSES:
        begins, stops = _cut_evenly(widths, limits, group_ends)
    else:
        begins, stops = _cut_equally(widths, limits, group_ends)
    tokens = _count_tokens(lengths, begins, stops)
    padded_tokens = tokens if limits.packed else _count_padded_tokens(widths, begins, stops)
    costs = _add_overhead(padded_tokens, widths, limits)
    by_cost = np.argsort(-costs, axis=0, kind="stable")
    costs, begins, stops, tokens, padded_tokens = (
        np.take_along_axis(array, by_cost, axis=0) for array in (costs, begins, stops, tokens, padded_tokens)
    )
    most_items = None
    if limits.num_processes >= _MANY_PROCESSES:
        most_items = -(-(stops > begins).sum(axis=0) // limits.num_processes)
    owners, _ = deal(costs, limits.num_processes, most_items=most_items)
    microbatches = np.stack([begins, stops, owners, tokens, padded_tokens])
    # Each batch is contiguous from here on, because batches are read one at a time.
    return Cut(np.ascontiguousarray(order.T), np.ascontiguousarray(microbatches.transpose(2, 1, 0)))


def _find_group_ends(groups: np.ndarray) -> np.ndarray:
    """Return the end of the group of each row, `[B, S]`. The groups `[B, S]` are ascending."""
    num_rows = len(groups)
    is_last = np.ones(groups.shape, dtype=np.bool_)
    is_last[:-1] = groups[1:] != groups[:-1]
    ends = np.where(is_last, np.arange(1, num_rows + 1)[:, None], num_rows)
    return np.minimum.accumulate(ends[::-1], axis=0)[::-1]


def _find_ends(
    lengths: np.ndarray,
    limits: Limits,
    *,
    most_tokens: int | np.ndarray = _NEVER,
    most_rows: int | np.ndarray = _NEVER,
    group_ends: np.ndarray | None = None,
) -> np.ndarray:
    """Return the latest stop of a microbatch that starts at each row, `[B, S]`. One row is always allowed.

    Args:
        lengths: `[B, S]`, descending in each group, then 0.
        most_tokens: Most padded tokens of a microbatch, `[S]`, besides `limits.max_tokens`.
        most_rows: Most rows of a microbatch, `[S]`, besides `limits.per_device`.
        group_ends: End of the group of each row, `[B, S]`; None: all rows are in one group.
    """
    most_tokens = np.minimum(most_tokens, limits.max_tokens or _NEVER)
    most_rows = np.minimum(most_rows, limits.per_device or len(lengths))
    sizes = np.minimum(most_tokens // np.maximum(lengths, 1), most_rows)
    ends = np.arange(len(lengths))[:, None] + np.maximum(sizes, 1)
    return ends if group_ends is None else np.minimum(ends, group_ends)


def _cut_cheapest(
    lengths: np.ndarray, ends: np.ndarray, overhead: int, *, row_step: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """Return begins and stops `[M, S]` of the cut with the fewest padded tokens plus `overhead` per microbatch.

    A microbatch that starts at a row that is not a multiple of `row_step` costs the overhead twice.

    Args:
        lengths: `[B, S]`, descending up to each of the ends, then 0.
        ends: See `_find_ends`.
    """
    num_rows, num_batches = lengths.shape
    # The ends ascend, so the microbatches that may still grow by a row are those from `first` on.
    first = np.searchsorted(ends.max(axis=1), np.arange(1, num_rows + 1)).tolist()

    # One integer has the cost in its high bits and the begin in its low bits. So one minimum finds both, and of equal
    # costs it takes the longest microbatch.
    scale = 1 << num_rows.bit_length()
    scaled = lengths * scale
    grown = np.empty_like(lengths)  # [j]: cost of the cheapest cut of the rows before j, plus a microbatch from j to i
    begin_of = np.empty_like(lengths)  # [i]: begin of the last microbatch in the cheapest cut of the rows up to i
    cheapest = np.zeros(num_batches, dtype=np.int64)
    for row in range(num_rows):
        grown[row] = cheapest + (overhead * (1 if row % row_step == 0 else 2) * scale + row)
        growing = slice(first[row], row + 1)
        grown[growing] += scaled[growing]
        np.copyto(grown[growing], _NEVER, where=ends[growing] <= row)
        cheapest = grown[growing].min(axis=0)
        begin_of[row] = cheapest & (scale - 1)
        cheapest -= begin_of[row]
    return _trace_back(begin_of, (lengths > 0).sum(axis=0))


def _trace_back(begin_of: np.ndarray, num_rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return begins and stops `[M, S]`, from the last microbatch of each batch to its first."""
    batches = np.arange(len(num_rows))
    begins, stops = [], [num_rows]
    while stops[-1].any():
        begins.append(np.where(stops[-1] > 0, begin_of[stops[-1] - 1, batches], 0))
        stops.append(begins[-1])
    return np.stack(begins), np.stack(stops[:-1])


def _cut_evenly(lengths: np.ndarray, limits: Limits, group_ends: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Try cuts with decreasing microbatch sizes; return begins and stops `[M, S]` of the one with the best balance.

    The best balance has the least work on the busiest process. If a batch has enough rows, no process is idle.
    """
    num_rows, num_batches = (lengths > 0).sum(axis=0), lengths.shape[1]
    even_part = lengths.sum(axis=0) / limits.num_processes
    no_limit = np.full(num_batches, _NEVER)
    # All cuts are computed at once, side by side. The last one always has a microbatch for every process.
    most_tokens = np.concatenate([*((even_part * part).astype(np.int64) for part in _PARTS), no_limit])
    most_rows = np.concatenate([*[no_limit] * len(_PARTS), np.maximum(num_rows // limits.num_processes, 1)])
    lengths, num_rows = np.tile(lengths, len(_PARTS) + 1), np.tile(num_rows, len(_PARTS) + 1)
    group_ends = None if group_ends is None else np.tile(group_ends, len(_PARTS) + 1)
    ends = _find_ends(lengths, limits, most_tokens=most_tokens, most_rows=most_rows, group_ends=group_ends)
    begins, stops = _cut_cheapest(lengths, ends, _overhead(lengths, limits), row_step=limits.row_step)

    count = _count_tokens if limits.packed else _count_padded_tokens
    padded_tokens = count(lengths, begins, stops)
    costs = -np.sort(-_add_overhead(padded_tokens, lengths, limits), axis=0)
    _, work = deal(costs, limits.num_processes)
    is_idle = (stops > begins).sum(axis=0) < np.minimum(num_rows, limits.num_processes)
    busiest = np.where(is_idle, _NEVER, work.max(axis=0)).reshape(-1, num_batches)
    chosen = busiest.argmin(axis=0) * num_batches + np.arange(num_batches)
    return begins[:, chosen], stops[:, chosen]


def _cut_equally(widths: np.ndarray, limits: Limits, group_ends: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Cut into as few microbatches as the limits allow, the same number per process; return begins and stops `[M, S]`.

    Of these cuts, the most expensive microbatch of the returned one is nearly the cheapest possible.
    """
    num_rows = (widths > 0).sum(axis=0).tolist()
    ends = [
        _cut_batch_equally(
            widths[:count, batch].tolist(), limits, None if group_ends is None else group_ends[:count, batch].tolist()
        )
        for batch, count in enumerate(num_rows)
    ]
    stops = np.zeros((max(map(len, ends)), len(ends)), dtype=np.int64)
    begins = np.zeros_like(stops)
    for batch, batch_ends in enumerate(ends):
        stops[: len(batch_ends), batch] = batch_ends
        begins[: len(batch_ends), batch] = [0, *batch_ends[:-1]]
    return begins, stops


def _cut_batch_equally(widths: Sequence[int], limits: Limits, group_ends: Sequence[int] | None) -> list[int]:
    """Return the ends of the microbatches of one batch; see `_cut_equally`. `widths` descend in each group."""
    num_rows = len(widths)
    most_rows = limits.per_device or num_rows

    def fill(budget: int) -> list[int]:
        ends, begin = [], 0
        while begin < num_rows:
            end = begin + max(min(budget // widths[begin], most_rows), 1)
            begin = min(end, num_rows if group_ends is None else group_ends[begin])
            ends.append(begin)
        return ends

    most_tokens = min(limits.max_tokens or _NEVER, max(widths) * num_rows)
    ends = fill(most_tokens)
    num_microbatches = min(-(-len(ends) // limits.num_processes) * limits.num_processes, num_rows)
    least = sum(widths) // num_microbatches
    while most_tokens - least > least // _EXACTNESS + 1:  # fewer tokens per microbatch means more microbatches
        middle = (least + most_tokens) // 2
        filled = fill(middle)
        if len(filled) <= num_microbatches:
            ends, most_tokens = filled, middle
        else:
            least = middle
    return _halve_dearest_until(num_microbatches, ends, widths)


def _halve_dearest_until(num_microbatches: int, ends: list[int], widths: Sequence[int]) -> list[int]:
    """Cut the most expensive microbatch in two until there are `num_microbatches`; return the ends of all."""
    begins = [0, *ends[:-1]]
    heap = [(-widths[begin] * (end - begin), begin, end) for begin, end in zip(begins, ends, strict=True)]
    heap = [item for item in heap if item[2] - item[1] > 1]
    heapq.heapify(heap)
    ends = list(ends)
    while len(ends) < num_microbatches:
        _, begin, end = heapq.heappop(heap)
        middle = (begin + end) // 2
        ends.append(middle)
        for first, last in ((begin, middle), (middle, end)):
            if last - first > 1:
                heapq.heappush(heap, (-widths[first] * (last - first), first, last))
    return sorted(ends)


def _pack(lengths: np.ndarray, limits: Limits) -> np.ndarray:
    """Return the microbatch of each row, `[B, S]`; the rows of a microbatch are concatenated without padding.

    There are as few microbatches as the limits allow, of similar size. Their number is a multiple of the number of
    processes if there are enough rows. `lengths` are `[B, S]`, descending, then 0; a position without a row gets B.
    """
    num_rows, num_tokens = (lengths > 0).sum(axis=0), lengths.sum(axis=0)
    budget, most_rows = limits.max_tokens or _NEVER, limits.per_device or len(lengths)
    fewest = np.maximum(-(-num_tokens // budget), -(-num_rows // most_rows))
    num_microbatches = np.minimum(-(-fewest // limits.num_processes) * limits.num_processes, num_rows)
    while True:
        bins, load = deal(lengths, num_microbatches, most_items=most_rows)
        # Row m is the first of microbatch m, and one row is always allowed.
        overfull = (load > np.maximum(lengths[: len(load)], budget)).any(axis=0)
        if not overfull.any():
            return np.where(lengths > 0, bins, len(lengths))
        num_microbatches = np.where(
            overfull, np.minimum(num_microbatches + limits.num_processes, num_rows), num_microbatches
        )


def _find_runs(bins: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return begins and stops `[M, S]` of the runs of 0, 1, ... in ascending `bins`, `[B, S]`. B marks no row."""
    num_batches = bins.shape[1]
    num_runs = bins.max(where=bins < len(bins), initial=0) + 1
    flat = bins * num_batches + np.arange(num_batches)
    sizes = np.bincount(flat[bins < len(bins)], minlength=num_runs * num_batches).reshape(num_runs, num_batches)
    stops = sizes.cumsum(axis=0)
    return stops - sizes, stops


def deal(
    costs: np.ndarray, num_shares: int | np.ndarray, *, most_items: int | np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Give every item, in order of cost, to the share with the least work so far.

    Args:
        costs: `[M, S]`, descending. The share of an item that costs 0 is arbitrary.
        num_shares: K, or the number of each batch, `[S]`.
        most_items: Most items of one share, for all batches or for each, `[S]`.

    Returns:
        The share of each item, `[M, S]`, and the work of each share, `[K, S]`.
    """
    num_items, num_batches = costs.shape
    if np.max(num_shares) > _SHARES_A_BATCH * num_batches:
        return _deal_one_by_one(costs, num_shares, most_items=most_items)
    numbers = np.arange(np.max(num_shares))[:, None]
    work = np.where(numbers < num_shares, np.zeros((1, num_batches), dtype=np.int64), _NEVER)
    items = np.zeros_like(work)
    owners = np.empty_like(costs)
    batches = np.arange(num_batches)
    for item in range(num_items):
        owners[item] = work.argmin(axis=0)
        chosen = owners[item], batches
        work[chosen] += costs[item]
        if most_items is not None:
            items[chosen] += 1
            work[chosen] += np.where(items[chosen] == most_items, _NEVER, 0)
    return owners, work % _NEVER


def _deal_one_by_one(
    costs: np.ndarray, num_shares: int | np.ndarray, *, most_items: int | np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """Do the same as `deal`, batch by batch. This is faster for many shares and few batches."""
    num_batches = costs.shape[1]
    owners = np.zeros_like(costs)
    work = np.zeros((int(np.max(num_shares)), num_batches), dtype=np.int64)
    counts = np.broadcast_to(num_shares, num_batches).tolist()
    limits = np.broadcast_to(len(costs) if most_items is None else most_items, num_batches).tolist()
    for batch, (count, limit) in enumerate(zip(counts, limits, strict=True)):
        shares = [(0, share, 0) for share in range(count)]  # work, number and items of each; a heap
        dealt, done_by = list[int](), [0] * count
        for cost in costs[: np.count_nonzero(costs[:, batch]), batch].tolist():
            done, share, items = shares[0]
            dealt.append(share)
            done_by[share] = done + cost
            if items + 1 == limit:
                heapq.heappop(shares)
            else:
                heapq.heapreplace(shares, (done + cost, share, items + 1))
        owners[: len(dealt), batch], work[:count, batch] = dealt, done_by
    return owners, work


def _count_tokens(lengths: np.ndarray, begins: np.ndarray, stops: np.ndarray) -> np.ndarray:
    """Return the tokens of each microbatch without padding, `[M, S]`."""
    before = np.zeros((len(lengths) + 1, lengths.shape[1]), dtype=np.int64)
    lengths.cumsum(axis=0, out=before[1:])
    tokens: np.ndarray = np.take_along_axis(before, stops, axis=0) - np.take_along_axis(before, begins, axis=0)
    return tokens


def _count_padded_tokens(widths: np.ndarray, begins: np.ndarray, stops: np.ndarray) -> np.ndarray:
    """Return the tokens of each microbatch with padding, `[M, S]`: all its rows are as wide as the first."""
    first: np.ndarray = np.take_along_axis(widths, np.minimum(begins, len(widths) - 1), axis=0)
    return first * (stops - begins)


def _add_overhead(padded_tokens: np.ndarray, lengths: np.ndarray, limits: Limits) -> np.ndarray:
    """Return the cost of each microbatch, `[M, S]`; 0 for an empty one."""
    return padded_tokens + np.where(padded_tokens > 0, _overhead(lengths, limits), 0)


def _overhead(lengths: np.ndarray, limits: Limits) -> int:
    """Return the fixed cost of a microbatch, in tokens. Without `microbatch_tokens` it exceeds any padding."""
    if limits.microbatch_tokens is not None:
        return limits.microbatch_tokens
    return int(lengths.max()) * len(lengths)
