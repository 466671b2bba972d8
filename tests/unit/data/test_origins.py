import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from trainer_loop.data.origins import Origins


def test_rows_of_one_origin_are_counted_from_one():
    origins = Origins.of("reviews.csv row", 3)
    assert [origins.place(row) for row in range(len(origins))] == [f"reviews.csv row {n}" for n in (1, 2, 3)]


def test_numbers_can_be_given():
    origins = Origins.of("notes.txt line", np.array([2, 5]))
    assert origins.place(1) == "notes.txt line 5"


@given(sizes=st.lists(st.integers(1, 5), min_size=1, max_size=4), data=st.data())
def test_joined_and_selected_rows_keep_their_places(sizes: list[int], data: st.DataObject):
    joined = Origins.join([Origins.of(f"{part}.csv row", size) for part, size in enumerate(sizes)])
    expected = [f"{part}.csv row {n}" for part, size in enumerate(sizes) for n in range(1, size + 1)]
    assert [joined.place(row) for row in range(len(joined))] == expected

    chosen = data.draw(st.lists(st.integers(0, len(expected) - 1), max_size=8))
    twice = Origins.join([joined, joined]).select(np.array(chosen, dtype=np.int64) + len(expected))
    assert [twice.place(row) for row in range(len(twice))] == [expected[row] for row in chosen]
