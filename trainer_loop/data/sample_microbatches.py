"""Microbatches that stand for all of a run: the largest, which take the most memory, and one with average work."""

from contextlib import closing
from dataclasses import dataclass, replace

import numpy as np

from trainer_loop.data.batch_plan import BatchPlan, Rows
from trainer_loop.data.loader import Microbatch, StepLoader, TrainLoader
from trainer_loop.data.stream_loader import StreamLoader

_MOST_ROWS = 262_144  # looked at, of the first epoch
_ROWS_OF_STREAM = 64  # likewise, the first ones


@dataclass(frozen=True)
class Largest:
    """What a plan asks of memory.

    microbatches: rows of the one with the most padded tokens, and of the one with the most pairs of tokens in a row;
    often these are one. Most of a model's memory grows with tokens, that of some kinds of attention with pairs.
    accumulates: some steps have several microbatches on a process.
    """

    microbatches: list[Rows]
    accumulates: bool


def find_largest(plan: BatchPlan) -> Largest:
    """Look through the steps of the first epoch, or of a long one through some, and at the longest row.

    >>> from trainer_loop.data.cut import Limits
    >>> plan = BatchPlan([5] * 8 + [20], Limits(max_tokens=40), batch_size=9, seed=0)
    >>> [plan.lengths[rows].tolist() for rows in find_largest(plan).microbatches]
    [[5, 5, 5, 5, 5, 5, 5, 5], [20]]
    """
    shares = [share for step in plan.sample(max(1, _MOST_ROWS // plan.batch_size)) for share in step.shares]
    microbatches = [rows for share in shares for rows in share.microbatches]
    microbatches.append([int(plan.lengths.argmax())])
    sizes = np.array(
        [_count(plan.limits.pad(plan.count_tokens(rows)), packed=plan.limits.packed) for rows in microbatches]
    )
    chosen = dict.fromkeys(sizes.argmax(axis=0).tolist())
    return Largest([microbatches[number] for number in chosen], any(len(share.microbatches) > 1 for share in shares))


def _count(widths: np.ndarray, *, packed: bool) -> tuple[int, int]:
    """Tokens of a microbatch, and pairs of tokens of one row. widths: of its rows, the longest first."""
    if packed:
        return int(widths.sum()), int((widths**2).sum())
    return len(widths) * int(widths[0]), len(widths) * int(widths[0]) ** 2


def take_typical(loader: StepLoader) -> tuple[Microbatch, int]:
    """The microbatch, and its tokens: of a stream one row, else the same row twice, for layers that want several."""
    if isinstance(loader, TrainLoader):
        plan = loader.plan
        rows = np.arange(0, len(plan.lengths), -(-len(plan.lengths) // _MOST_ROWS))
        row = int(rows[find_typical(plan.count_tokens(rows))])
        return loader.make_microbatch([row, row], 0), 2 * plan.widths([row])[row]
    assert isinstance(loader, StreamLoader)
    row_by_row = replace(loader, batch_size=loader.limits.num_processes, shuffle_rows=_ROWS_OF_STREAM)
    with closing(row_by_row.steps(start=0, stop=_ROWS_OF_STREAM)) as steps:  # type: ignore[type-var] # a generator
        taken = list(steps)
    step_batch = taken[find_typical(np.array([step_batch.num_tokens for step_batch in taken]))]
    return step_batch.microbatches[0], step_batch.num_padded_tokens


def find_typical(lengths: np.ndarray) -> int:
    """The place of the row that is closest to the mean length of the row that a token is in.

    The work of a row grows with its tokens and with their pairs, so a row of this length has the work per token that
    all rows have on average.

    >>> find_typical(np.array([1, 1, 1, 1, 20, 24]))
    4
    """
    return int(np.abs(lengths - (lengths**2).sum() / lengths.sum()).argmin())
