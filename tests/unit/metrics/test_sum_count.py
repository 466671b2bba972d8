import math

from hypothesis import given
from hypothesis import strategies as st

from trainer_loop.metrics.sum_count import SumCount

# Sums of multiples of 1/8 below 2**40 are exact in float64, so grouping must not change a single bit of them.
exact = st.builds(SumCount, st.integers(-(2**40), 2**40).map(lambda eighths: eighths / 8), st.integers(0, 10**6))
anything = st.builds(SumCount, st.floats(-1e6, 1e6), st.integers(0, 10**6))


@given(exact, exact, exact)
def test_merge_is_associative(a: SumCount, b: SumCount, c: SumCount) -> None:
    assert a.merge(b).merge(c) == a.merge(b.merge(c))


@given(anything, anything)
def test_merge_is_commutative(a: SumCount, b: SumCount) -> None:
    assert a.merge(b) == b.merge(a)


@given(anything)
def test_the_empty_one_changes_nothing(a: SumCount) -> None:
    assert SumCount().merge(a) == a == a.merge(SumCount())


@given(st.lists(st.lists(st.floats(-1e3, 1e3), max_size=8), max_size=6))
def test_parts_of_any_size_give_the_mean_of_all(parts: list[list[float]]) -> None:
    merged = SumCount()
    for part in parts:
        merged = merged.merge(SumCount(sum(part), len(part)))
    values = [value for part in parts for value in part]
    if values:
        assert math.isclose(merged.compute(), math.fsum(values) / len(values), rel_tol=1e-9, abs_tol=1e-9)
    else:
        assert math.isnan(merged.compute())


def test_a_mean_of_parts_of_unlike_size_weighs_by_count() -> None:
    assert SumCount(10.0, 1).merge(SumCount(2.0, 3)).compute() == 3.0


def test_nothing_counted_is_nan() -> None:
    assert math.isnan(SumCount(0.0, 0).compute())
