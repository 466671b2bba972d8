"""The largest microbatches of a plan."""

import numpy as np
import pytest

from trainer_loop.data.batch_plan import BatchPlan
from trainer_loop.data.cut import Limits
from trainer_loop.data.sample_microbatches import find_largest


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("max_tokens", [None, 200, 60])
def test_no_microbatch_of_the_epoch_is_larger(max_tokens: int | None, packed: bool):
    lengths = np.random.default_rng(0).integers(1, 90, 300)
    plan = BatchPlan(lengths, Limits(2, max_tokens=max_tokens, packed=packed), batch_size=16, seed=3)

    def sizes(rows: list[int]) -> tuple[int, int]:
        of_rows = lengths[rows] if packed else np.full(len(rows), lengths[rows].max())
        return of_rows.sum(), (of_rows**2).sum()

    steps = [plan.step(step) for step in range(plan.steps_per_epoch)]
    all_sizes = [sizes(rows) for step in steps for process in step.microbatches for rows in process]
    largest = find_largest(plan)
    found = [sizes(rows) for rows in largest.microbatches]
    assert 1 <= len(found) <= 2
    assert tuple(map(max, zip(*found, strict=True))) == tuple(map(max, zip(*all_sizes, strict=True)))
    assert largest.accumulates == any(len(process) > 1 for step in steps for process in step.microbatches)
