"""Orders that are computed instead of held: every row once, by index alone, and no pattern in them."""

import tracemalloc
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer_loop.data import batch_plan, mixture, permutation
from trainer_loop.data.batch_plan import BatchPlan
from trainer_loop.data.cut import Limits
from trainer_loop.data.mixture import Mixture
from trainer_loop.data.permutation import Permutation

BILLION = 10**9


@pytest.fixture
def many(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any number of rows counts as many."""
    for module in (batch_plan, mixture, permutation):
        monkeypatch.setattr(module, "MANY_ROWS", 0)


@pytest.mark.parametrize("count", [*range(1, 130), 255, 256, 257, 4095, 4096, 4097, 100_003])
def test_each_number_stands_at_one_place(count: int):
    assert np.array_equal(np.sort(Permutation(count, 7, "order", count)[:]), np.arange(count))


@given(st.integers(1, 2**61), st.integers(0, 2**62), st.lists(st.integers(0, 2**61), min_size=1, max_size=50))
def test_a_number_depends_on_its_place_alone(count: int, seed: int, drawn: list[int]):
    order = Permutation(count, seed)
    places = np.array([place % count for place in drawn])
    found = order[places]
    assert found.min() >= 0
    assert found.max() < count
    assert len(np.unique(found)) == len(np.unique(places))
    for place, number in zip(places.tolist(), found.tolist(), strict=True):
        assert order[place : place + 1].tolist() == [number]


def test_the_order_is_the_same_everywhere():
    """A run continues on another machine, and with another version of NumPy."""
    assert Permutation(10, 0)[:].tolist() == [1, 6, 5, 9, 0, 7, 2, 3, 4, 8]
    assert Permutation(BILLION, 3, "order", 2)[BILLION - 3 : BILLION].tolist() == [727753497, 250619969, 829106553]


def test_seeds_epochs_and_counts_have_unlike_orders():
    first = Permutation(100_000, 0, "order", 0)[:]
    for other in (Permutation(100_000, 0, "order", 1), Permutation(100_000, 1, "order", 0)):
        assert (first == other[:]).sum() < 12  # one is expected
    assert (first == Permutation(100_001, 0, "order", 0)[:100_000]).sum() < 12


@pytest.mark.parametrize("count", [64, 65, 100, 1000])
def test_every_number_comes_to_every_place_equally_often(count: int):
    """Chi-square of the pairs of place and number, coarsened to 8 x 8 cells; five deviations from its mean."""
    cells = np.zeros((8, 8))
    for seed in range(2000):
        places = np.arange(0, count, max(count // 64, 1))
        np.add.at(cells, (places * 8 // count, Permutation(count, seed)[places] * 8 // count), 1)
    row_sums, column_sums = cells.sum(axis=1), cells.sum(axis=0)
    expected = np.outer(row_sums, column_sums) / cells.sum()
    chi_square = ((cells - expected) ** 2 / expected).sum()
    assert chi_square < 49 + 5 * np.sqrt(2 * 49)


def test_neighbours_are_not_related():
    """Of random numbers the correlation is within five deviations of 0, at any distance and in the lowest bits too."""
    numbers = Permutation(BILLION, 5)[:200_000]
    for distance in (1, 2, 3, 64, 1024):
        for values in (numbers, numbers % 8):
            assert abs(np.corrcoef(values[:-distance], values[distance:])[0, 1]) < 5 / np.sqrt(200_000)
    rising = sum(one < other for one, other in pairwise(numbers[:10_000].tolist()))
    assert abs(rising - 5000) < 150


@pytest.mark.usefixtures("many")
@pytest.mark.parametrize("window", [None, 1, 3])
@pytest.mark.parametrize("count", [1, 7, 40, 83])
def test_an_epoch_of_many_rows_holds_each_once_and_any_step_is_found_by_its_index(count: int, window: int | None):
    lengths = np.random.default_rng(count).integers(1, 600, count)
    plan = BatchPlan(lengths, Limits(3, max_tokens=900), batch_size=8, seed=4, window=window)
    for epoch in (0, 3):
        steps = range(epoch * plan.steps_per_epoch, (epoch + 1) * plan.steps_per_epoch)
        batches = [plan.batch(step) for step in steps]
        assert sorted(np.concatenate(batches).tolist()) == list(range(count))
        for step in reversed(steps):
            fresh = BatchPlan(lengths, Limits(1), batch_size=8, seed=4, window=window)
            assert fresh.batch(step).tolist() == batches[step - steps.start].tolist()
            assert sorted(batches[step - steps.start]) == sorted(
                row for share in plan.step(step).microbatches for rows in share for row in rows
            )


@pytest.mark.usefixtures("many")
def test_windows_of_many_rows_are_sorted_and_their_batches_shuffled():
    lengths = np.random.default_rng(0).integers(1, 512, 1007)
    shuffled = BatchPlan(lengths, batch_size=10, seed=0)
    plan = BatchPlan(lengths, batch_size=10, seed=0, window=8)
    for start in range(0, 100, 8):
        steps = range(start, min(start + 8, 100))
        after = [plan.batch(step) for step in steps]
        assert sorted(np.concatenate(after)) == sorted(np.concatenate([shuffled.batch(step) for step in steps]))
        spans = sorted((lengths[batch].min(), lengths[batch].max()) for batch in after)
        assert all(one[1] <= other[0] for one, other in pairwise(spans))
        shortest = [lengths[batch].min() for batch in after]
        assert shortest not in (sorted(shortest), sorted(shortest, reverse=True))
    assert plan.batch(100).tolist() == shuffled.batch(100).tolist()


@pytest.mark.usefixtures("many")
@settings(max_examples=30)
@given(
    st.lists(st.integers(1, 60), min_size=2, max_size=4),
    st.lists(st.floats(0.05, 5), min_size=4, max_size=4),
    st.booleans(),
)
def test_sources_of_many_rows_are_drawn_by_weight_and_their_rows_evenly(
    sizes: list[int], weights: list[float], is_mixed: bool
):
    sources = np.repeat(np.arange(len(sizes)), sizes)
    sources = np.random.default_rng(0).permutation(sources) if is_mixed else sources
    drawn_from = Mixture([f"source {number}" for number in range(len(sizes))], weights[: len(sizes)], sources)
    drawn = np.zeros(len(sources), dtype=np.int64)
    for epoch in range(4):
        order = drawn_from.draw(seed=1, epoch=epoch)
        rows = np.concatenate([order[start : min(start + 7, len(sources))] for start in range(0, len(sources), 7)])
        assert np.bincount(sources[rows], minlength=len(sizes)).tolist() == drawn_from.counts
        np.add.at(drawn, rows, 1)
    for number in range(len(sizes)):
        times = drawn[sources == number]
        assert times.max() - times.min() <= 1


def test_a_billion_rows_are_planned_in_little_memory(tmp_path: Path):
    """Their lengths are in a file, of which only what a step needs is read. It was not written to: it takes no disk."""
    lengths = np.lib.format.open_memmap(tmp_path / "length.npy", "w+", np.int32, (BILLION,))
    tracemalloc.start()
    for window in (None, 4):
        plan = BatchPlan(lengths, Limits(max_tokens=4096), batch_size=256, seed=0, window=window)
        last = 5 * plan.steps_per_epoch - 1
        for step in (0, last):
            rows = [row for share in plan.step(step).microbatches for rows in share for row in rows]
            assert len(set(rows)) == len(rows) == len(plan.batch(step))
        assert max(plan.widths(plan.batch(last)).values()) == 1
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 100e6
