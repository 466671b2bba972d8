"""The largest microbatches of a run: those that take the most memory."""

from dataclasses import dataclass

import numpy as np

from trainer_loop.data.batch_plan import BatchPlan, Rows

_MOST_ROWS = 262_144  # looked at, of the first epoch


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
