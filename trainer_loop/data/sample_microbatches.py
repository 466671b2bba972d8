"""Representative microbatches of a run: the largest, which need the most memory, and one with average work."""

from contextlib import closing
from dataclasses import dataclass, replace

import numpy as np

from trainer_loop.data.batch_plan import BatchPlan, Rows
from trainer_loop.data.loader import Microbatch, StepLoader, TrainLoader
from trainer_loop.data.stream_loader import StreamLoader

_MOST_ROWS = 262_144  # rows of the first epoch that are examined
_ROWS_OF_STREAM = 64  # first rows of a stream that are examined


@dataclass(frozen=True)
class Largest:
    """The microbatches of a plan that need the most memory.

    Most of a model's memory grows with the number of tokens, that of some attention kernels with the pairs of tokens.
    """

    microbatches: list[Rows]  # with the most padded tokens, and with the most pairs of tokens; often the same one
    accumulates: bool  # some steps have several microbatches on a process


def find_largest(plan: BatchPlan) -> Largest:
    """Find the largest microbatches in the steps of the first epoch (a sample of a long one) and in the longest row.

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
    """Return the tokens of a microbatch, and the pairs of tokens in the same row. `widths`: longest row first."""
    if packed:
        return int(widths.sum()), int((widths**2).sum())
    return len(widths) * int(widths[0]), len(widths) * int(widths[0]) ** 2


def take_typical(loader: StepLoader) -> tuple[Microbatch, int]:
    """Return a microbatch with average work, and its tokens.

    It has one row of a stream, or the same row of a split twice, because some layers need more than one row.
    """
    if isinstance(loader, TrainLoader):
        plan = loader.plan
        rows = np.arange(0, len(plan.lengths), -(-len(plan.lengths) // _MOST_ROWS))
        row = int(rows[find_typical(plan.count_tokens(rows))])
        return loader.make_microbatch([row, row], 0), 2 * plan.widths([row])[row]
    assert isinstance(loader, StreamLoader)
    row_by_row = replace(loader, batch_size=loader.limits.num_processes, shuffle_rows=_ROWS_OF_STREAM)
    with closing(row_by_row.steps(start=0, stop=_ROWS_OF_STREAM)) as steps:  # type: ignore[type-var] # a generator
        step_batches = list(steps)
    step_batch = step_batches[find_typical(np.array([step_batch.num_tokens for step_batch in step_batches]))]
    return step_batch.microbatches[0], step_batch.num_padded_tokens


def find_typical(lengths: np.ndarray) -> int:
    """Return the index of the row whose length is closest to the token-weighted mean length.

    That mean is the average over tokens of the length of their row. The work of a row grows with its tokens and with
    the pairs of its tokens, so a row of this length has the average work per token.

    >>> find_typical(np.array([1, 1, 1, 1, 20, 24]))
    4
    """
    return int(np.abs(lengths - (lengths**2).sum() / lengths.sum()).argmin())
