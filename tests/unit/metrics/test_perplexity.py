import math
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer_loop.metrics.shipped.perplexity import perplexity


def compute(predictions: list[float], references: list[int]) -> float:
    return perplexity(np.array(predictions, dtype=float), np.array(references, dtype=int))


def test_a_model_that_guesses_among_k_tokens_has_perplexity_k() -> None:
    targets = np.array([3, 1, 20])
    assert perplexity(targets * math.log(50), targets) == pytest.approx(50.0, rel=1e-12)


def test_targets_weigh_and_not_rows() -> None:
    assert compute([9.0, 0.0], [3, 6]) == pytest.approx(math.e)  # the mean of the rows' own would be (e**3 + 1) / 2


def test_a_row_without_targets_changes_nothing() -> None:
    assert compute([2.0, 0.0], [4, 0]) == compute([2.0], [4])


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 1e4), st.integers(1, 100)), min_size=2, max_size=20), st.randoms())
def test_the_order_of_the_rows_does_not_change_a_digit(rows: list[tuple[float, int]], random: Random) -> None:
    shuffled = list(rows)
    random.shuffle(shuffled)
    results = []
    for order in (rows, shuffled):
        losses, counts = zip(*order, strict=True)
        results.append(compute(list(losses), list(counts)))
    assert results[0] == results[1]


def test_a_mean_too_large_for_a_float_is_infinite() -> None:
    assert compute([1000.0], [1]) == math.inf


@pytest.mark.parametrize("counts", [[], [0, 0]])
def test_no_targets_are_an_error(counts: list[int]) -> None:
    with pytest.raises(ValueError, match="perplexity needs a target"):
        compute([0.0] * len(counts), counts)
    assert compute([0.0], [1]) == 1.0
