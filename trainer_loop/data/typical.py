"""A microbatch that stands for all rows of a run: without padding, and as long as the row of an average token."""

from contextlib import closing
from dataclasses import replace

import numpy as np

from trainer_loop.data.loader import Microbatch, StepLoader, TrainLoader
from trainer_loop.data.stream import StreamLoader

_MOST_ROWS = 262_144  # looked at
_ROWS_OF_STREAM = 64  # likewise, the first ones


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
