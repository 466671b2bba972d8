"""Cut batches into microbatches and deal these to the processes, many batches at a time. Arrays only, and no torch.

The rows of a batch are sorted by length and cut into consecutive microbatches, each as wide as its longest row. The
cheapest cut is found exactly, by dynamic programming over the rows of all batches at once. While they are cut, the
batches S stand in the last dimension of every array: one step of that programme is one pass over adjacent numbers.
"""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_NEVER = 2**62  # the cost of a microbatch that breaks a limit, and of a cut that leaves a process idle
# What a microbatch may cost, in even parts of the work of a batch, where several processes share that.
_PARTS = (1.5, 1.3, 1.2, 1.1, 1.0, 0.75, 0.5, 0.375, 0.25)
# From so many processes on each gets equally many microbatches: some would have one more after a cut by parts, and the
# others wait, or go through dummy microbatches.
_MANY_PROCESSES = 8
_EXACTNESS = 256  # how many times smaller than the dearest microbatch the difference from the least possible one is
_SHARES_A_BATCH = 16  # from which on batches are dealt one after the other


def widen(lengths: np.ndarray, *, step: int, longest: int) -> np.ndarray:
    """How wide a batch is whose longest row has so many tokens: the next multiple, but at most `longest` for it.

    >>> widen(np.array([5, 18, 23]), step=16, longest=20).tolist()
    [16, 20, 23]
    """
    return np.minimum(-(-lengths // step) * step, np.maximum(lengths, longest))


@dataclass(frozen=True)
class Limits:
    """What a microbatch may hold, what one more of them costs, and how many processes share them."""

    num_processes: int = 1
    max_tokens: int | None = None  # padded tokens of one at most; only a single row may exceed it. None: no limit
    per_device: int | None = None  # rows of one at most. None: no limit
    microbatch_tokens: int | None = None  # what one more costs, in tokens. None: as few as the limits allow
    packed: bool = False  # its rows stand one after the other, and none is padded
    width_step: int = 1  # tokens: one that is not packed is as wide as the next multiple
    longest: int = 0  # but no wider than this because of it, and its longest row
    row_step: int = 1  # where it costs little, its rows are a multiple of this

    def pad(self, lengths: np.ndarray) -> np.ndarray:
        """How wide a microbatch is whose longest row has so many tokens, of each of the lengths."""
        if self.packed or self.width_step == 1:
            return lengths
        return widen(lengths, step=self.width_step, longest=self.longest)


@dataclass(frozen=True)
class Cut:
    """S batches of at most B rows, each cut into at most M microbatches."""

    order: np.ndarray  # [S, B] places of the rows in their batch; a microbatch is a run of these, longest row first
    # [S, M, 5] of every microbatch: where it begins, where it stops, its process, its tokens without padding, and with.
    # Dearest first, as they are run; where a batch has fewer than M, empty ones follow.
    microbatches: np.ndarray


def cut_batches(lengths: np.ndarray, limits: Limits, *, groups: np.ndarray | None = None) -> Cut:
    """Cut and deal batches.

    lengths: tokens of their rows, `[B, S]`; 0 where a batch has no more rows. groups: a number for each row, `[B, S]`;
    a microbatch has rows of one group only.
    """
    order, group_ends = np.argsort(-lengths, axis=0, kind="stable"), None
    if groups is not None:
        groups = np.where(lengths > 0, groups, groups.max() + 1)  # rows that are not there stay the last ones
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
    dearest_first = np.argsort(-costs, axis=0, kind="stable")
    costs, begins, stops, tokens, padded_tokens = (
        np.take_along_axis(array, dearest_first, axis=0) for array in (costs, begins, stops, tokens, padded_tokens)
    )
    most_items = None
    if limits.num_processes >= _MANY_PROCESSES:
        most_items = -(-(stops > begins).sum(axis=0) // limits.num_processes)
    owners, _ = deal(costs, limits.num_processes, most_items=most_items)
    microbatches = np.stack([begins, stops, owners, tokens, padded_tokens])
    # From here on each batch is read for itself.
    return Cut(np.ascontiguousarray(order.T), np.ascontiguousarray(microbatches.transpose(2, 1, 0)))


def _find_group_ends(groups: np.ndarray) -> np.ndarray:
    """Where the group of each row ends, `[B, S]`. groups: `[B, S]`, ascending."""
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
    """Where a microbatch that begins at each row must stop, `[B, S]`. A single row is never too much.

    lengths: `[B, S]`, descending in each group, then 0. most_tokens, most_rows: of a microbatch, `[S]`, below the
    limits. group_ends: where the group of each row ends, `[B, S]`; None: all rows are of one group.
    """
    most_tokens = np.minimum(most_tokens, limits.max_tokens or _NEVER)
    most_rows = np.minimum(most_rows, limits.per_device or len(lengths))
    sizes = np.minimum(most_tokens // np.maximum(lengths, 1), most_rows)
    ends = np.arange(len(lengths))[:, None] + np.maximum(sizes, 1)
    return ends if group_ends is None else np.minimum(ends, group_ends)


def _cut_cheapest(
    lengths: np.ndarray, ends: np.ndarray, overhead: int, *, row_step: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """Begins and stops `[M, S]` of the cut whose padded tokens, and `overhead` for each microbatch, are least.

    A microbatch that begins at no multiple of `row_step` costs the overhead twice.

    lengths: `[B, S]`, descending up to each of the ends, then 0. ends: see `_find_ends`.
    """
    num_rows, num_batches = lengths.shape
    # Ends ascend, so the microbatches that may still grow by a row are the last ones: those from `first` on.
    first = np.searchsorted(ends.max(axis=1), np.arange(1, num_rows + 1)).tolist()

    # Cost and begin in one number: the least one tells both, and of equal costs the longest microbatch is taken.
    scale = 1 << num_rows.bit_length()
    scaled = lengths * scale
    grown = np.empty_like(lengths)  # [j]: the cheapest cut of the rows before j, and a microbatch from j to row i
    begin_of = np.empty_like(lengths)  # [i]: of the last microbatch in the cheapest cut of the rows up to i
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
    """From the last microbatch of each batch to its first."""
    batches = np.arange(len(num_rows))
    begins, stops = [], [num_rows]
    while stops[-1].any():
        begins.append(np.where(stops[-1] > 0, begin_of[stops[-1] - 1, batches], 0))
        stops.append(begins[-1])
    return np.stack(begins), np.stack(stops[:-1])


def _cut_evenly(lengths: np.ndarray, limits: Limits, group_ends: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Begins and stops `[M, S]`: of some cuts into ever smaller microbatches the one whose busiest process does least.

    No process is idle while there are rows for it.
    """
    num_rows, num_batches = (lengths > 0).sum(axis=0), lengths.shape[1]
    even_part = lengths.sum(axis=0) / limits.num_processes
    no_limit = np.full(num_batches, _NEVER)
    # All are tried at once, side by side. The last one surely has a microbatch for every process.
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
    """Begins and stops `[M, S]` of the cut into as few microbatches as the limits allow, the same number a process.

    Of these cuts it is one whose dearest microbatch costs least, nearly.
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
    for batch, of_batch in enumerate(ends):
        stops[: len(of_batch), batch] = of_batch
        begins[: len(of_batch), batch] = [0, *of_batch[:-1]]
    return begins, stops


def _cut_batch_equally(widths: Sequence[int], limits: Limits, group_ends: Sequence[int] | None) -> list[int]:
    """Where the microbatches of one batch end; see `_cut_equally`. widths: of its rows, descending in each group."""
    num_rows = len(widths)
    most_rows = limits.per_device or num_rows

    def fill(most_tokens: int) -> list[int]:
        ends, begin = [], 0
        while begin < num_rows:
            end = begin + max(min(most_tokens // widths[begin], most_rows), 1)
            begin = min(end, num_rows if group_ends is None else group_ends[begin])
            ends.append(begin)
        return ends

    most = min(limits.max_tokens or _NEVER, max(widths) * num_rows)
    ends = fill(most)
    wanted = min(-(-len(ends) // limits.num_processes) * limits.num_processes, num_rows)
    least = sum(widths) // wanted
    while most - least > least // _EXACTNESS + 1:  # the fewer tokens a microbatch may have, the more there are
        middle = (least + most) // 2
        filled = fill(middle)
        if len(filled) <= wanted:
            ends, most = filled, middle
        else:
            least = middle
    return _halve_dearest_until(wanted, ends, widths)


def _halve_dearest_until(wanted: int, ends: list[int], widths: Sequence[int]) -> list[int]:
    """The ends of as many microbatches as are wanted, made by cutting the dearest one in two again and again."""
    begins = [0, *ends[:-1]]
    heap = [(-widths[begin] * (end - begin), begin, end) for begin, end in zip(begins, ends, strict=True)]
    heap = [one for one in heap if one[2] - one[1] > 1]
    heapq.heapify(heap)
    ends = list(ends)
    while len(ends) < wanted:
        _, begin, end = heapq.heappop(heap)
        middle = (begin + end) // 2
        ends.append(middle)
        for first, last in ((begin, middle), (middle, end)):
            if last - first > 1:
                heapq.heappush(heap, (-widths[first] * (last - first), first, last))
    return sorted(ends)


def _pack(lengths: np.ndarray, limits: Limits) -> np.ndarray:
    """The microbatch of every row, `[B, S]`: rows stand in it one after the other, and none is padded.

    As few microbatches as the limits allow, in a multiple of the processes where there are rows for it, and even.
    lengths: `[B, S]`, descending, then 0; the rows that are not there get a microbatch after all others.
    """
    num_rows, num_tokens = (lengths > 0).sum(axis=0), lengths.sum(axis=0)
    budget, most_rows = limits.max_tokens or _NEVER, limits.per_device or len(lengths)
    fewest = np.maximum(-(-num_tokens // budget), -(-num_rows // most_rows))
    wanted = np.minimum(-(-fewest // limits.num_processes) * limits.num_processes, num_rows)
    while True:
        bins, load = deal(lengths, wanted, most_items=most_rows)
        # Row m was the first of microbatch m, and a single row is never too much.
        overfull = (load > np.maximum(lengths[: len(load)], budget)).any(axis=0)
        if not overfull.any():
            return np.where(lengths > 0, bins, len(lengths))
        wanted = np.where(overfull, np.minimum(wanted + limits.num_processes, num_rows), wanted)


def _find_runs(bins: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Begins and stops `[M, S]` of the runs of 0, 1, ... in ascending `bins`, `[B, S]`; B is no run."""
    num_batches = bins.shape[1]
    num_runs = bins.max(where=bins < len(bins), initial=0) + 1
    of_batch = bins * num_batches + np.arange(num_batches)
    sizes = np.bincount(of_batch[bins < len(bins)], minlength=num_runs * num_batches).reshape(num_runs, num_batches)
    stops = sizes.cumsum(axis=0)
    return stops - sizes, stops


def deal(
    costs: np.ndarray, num_shares: int | np.ndarray, *, most_items: int | np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Give every item, dearest first, to the share with the least work so far: its number `[M, S]`, the work `[K, S]`.

    costs: `[M, S]`, descending. num_shares: K, or as many as each batch has, `[S]`. most_items: of one share,
    in all batches or in each, `[S]`. Who gets an item that costs 0 means nothing.
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
    """As `deal`, batch by batch: quicker where there are many shares and few batches."""
    num_batches = costs.shape[1]
    owners = np.zeros_like(costs)
    work = np.zeros((int(np.max(num_shares)), num_batches), dtype=np.int64)
    counts = np.broadcast_to(num_shares, num_batches).tolist()
    limits = np.broadcast_to(len(costs) if most_items is None else most_items, num_batches).tolist()
    for batch, (count, limit) in enumerate(zip(counts, limits, strict=True)):
        shares = [(0, share, 0) for share in range(count)]  # their work, number and items; the least one first
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
    """Tokens of each microbatch without padding, `[M, S]`."""
    before = np.zeros((len(lengths) + 1, lengths.shape[1]), dtype=np.int64)
    lengths.cumsum(axis=0, out=before[1:])
    tokens: np.ndarray = np.take_along_axis(before, stops, axis=0) - np.take_along_axis(before, begins, axis=0)
    return tokens


def _count_padded_tokens(widths: np.ndarray, begins: np.ndarray, stops: np.ndarray) -> np.ndarray:
    """Tokens of each microbatch with padding, `[M, S]`: all its rows are as wide as the first."""
    first: np.ndarray = np.take_along_axis(widths, np.minimum(begins, len(widths) - 1), axis=0)
    return first * (stops - begins)


def _add_overhead(padded_tokens: np.ndarray, lengths: np.ndarray, limits: Limits) -> np.ndarray:
    """The cost of each microbatch, `[M, S]`; 0 where there is none."""
    return padded_tokens + np.where(padded_tokens > 0, _overhead(lengths, limits), 0)


def _overhead(lengths: np.ndarray, limits: Limits) -> int:
    """What one more microbatch costs, in tokens; where that is not limited, more than any padding."""
    if limits.microbatch_tokens is not None:
        return limits.microbatch_tokens
    return int(lengths.max()) * len(lengths)
