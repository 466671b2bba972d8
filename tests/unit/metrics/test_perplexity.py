import math
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer_loop.metrics.perplexity import Perplexity

METRIC = Perplexity()


def test_a_model_that_guesses_among_k_tokens_has_perplexity_k() -> None:
    targets = np.array([3, 1, 20])
    result = METRIC.compute(predictions=targets * math.log(50), references=targets)
    assert result == {"perplexity": pytest.approx(50.0, rel=1e-12)}


def test_targets_weigh_and_not_rows() -> None:
    result = METRIC.compute(predictions=[9.0, 0.0], references=[3, 6])
    assert result["perplexity"] == pytest.approx(math.e)  # the mean of the rows' own would be (e**3 + 1) / 2


def test_a_row_without_targets_changes_nothing() -> None:
    assert METRIC.compute(predictions=[2.0, 0.0], references=[4, 0]) == METRIC.compute(
        predictions=[2.0], references=[4]
    )


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 1e4), st.integers(1, 100)), min_size=2, max_size=20), st.randoms())
def test_the_order_of_the_rows_does_not_change_a_digit(rows: list[tuple[float, int]], random: Random) -> None:
    shuffled = list(rows)
    random.shuffle(shuffled)
    results = []
    for order in (rows, shuffled):
        losses, counts = zip(*order, strict=True)
        results.append(METRIC.compute(predictions=list(losses), references=list(counts)))
    assert results[0] == results[1]


def test_a_mean_too_large_for_a_float_is_infinite() -> None:
    assert METRIC.compute(predictions=[1000.0], references=[1]) == {"perplexity": math.inf}


@pytest.mark.parametrize("counts", [[], [0, 0]])
def test_no_targets_are_an_error(counts: list[int]) -> None:
    with pytest.raises(ValueError, match="perplexity needs a target"):
        METRIC.compute(predictions=[0.0] * len(counts), references=counts)
    assert METRIC.compute(predictions=[0.0], references=[1]) == {"perplexity": 1.0}
