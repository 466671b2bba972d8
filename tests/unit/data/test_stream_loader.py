"""Batches of a stream: every row once, the same on any number of processes, and from any step on."""

import json
import math
import threading
from itertools import chain

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from streams import collate, encode, make_loader, make_stream

from trainer_loop import UserError
from trainer_loop.data.stream_loader import Position, read_batches

SIZES = st.lists(st.integers(0, 12), min_size=1, max_size=4).filter(any)


def rows_of_steps(loader, *, start, stop):
    """The sorted numbers of the rows of every step of this process, without dummy microbatches."""
    return [
        sorted(row for microbatch in step.microbatches if not microbatch.is_dummy for row in microbatch.rows)
        for step in loader.steps(start=start, stop=stop)
    ]


def places_of_batches(stream, position=None, *, stop, **options):
    batches = read_batches(stream, position or Position(), **{"batch_size": 4, "shuffle_rows": 6, "seed": 7} | options)
    return [[row.place for row in next(batches).rows] for _ in range(stop)]


@settings(deadline=None)
@given(sizes=SIZES, batch_size=st.integers(1, 7), shuffle_rows=st.integers(1, 20), seed=st.integers(0, 3))
def test_an_epoch_has_each_row_once_and_never_mixes_with_the_next(sizes, batch_size, shuffle_rows, seed):
    total = sum(sizes)
    steps = math.ceil(total / batch_size)
    options = {"batch_size": batch_size, "shuffle_rows": shuffle_rows, "seed": seed}
    batches = places_of_batches(make_stream(sizes, seed=seed), stop=3 * steps, **options)
    every = sorted(f"shard{shard} row {row}" for shard, size in enumerate(sizes) for row in range(1, size + 1))
    for epoch in range(3):
        of_epoch = batches[epoch * steps : (epoch + 1) * steps]
        assert [len(batch) for batch in of_epoch] == [batch_size] * (steps - 1) + [total - batch_size * (steps - 1)]
        assert sorted(place for batch in of_epoch for place in batch) == every


@settings(deadline=None, max_examples=50)
@given(
    sizes=SIZES,
    batch_size=st.integers(1, 7),
    shuffle_rows=st.integers(1, 20),
    first=st.integers(0, 15),
    second=st.integers(0, 15),
)
def test_going_on_from_any_step_twice_gives_what_going_through_gives(sizes, batch_size, shuffle_rows, first, second):
    def make():
        return make_loader(sizes, batch_size=batch_size, shuffle_rows=shuffle_rows)

    def go_on(state, start, stop):
        loader = make()
        if state is not None:
            loader.load_state_dict(json.loads(state))
        steps = [
            [(m.rows, m.batch["input_ids"].tolist(), m.batch["labels"].tolist()) for m in step.microbatches]
            for step in loader.steps(start=start, stop=stop)
        ]
        return steps, json.dumps(loader.state_dict())

    stop = first + second + 10
    whole, last = go_on(None, 0, stop)
    begun, state = go_on(None, 0, first)
    resumed, state = go_on(state, first, first + second)
    again, state = go_on(state, first + second, stop)
    assert begun + resumed + again == whole
    assert state == last


@settings(deadline=None, max_examples=40)
@given(sizes=SIZES, batch_size=st.integers(1, 9), shuffle_rows=st.integers(1, 20))
def test_every_number_of_processes_has_the_same_rows_in_the_same_steps(sizes, batch_size, shuffle_rows):
    def rows_on(num_processes):
        loaders = [
            make_loader(
                sizes,
                batch_size=batch_size,
                shuffle_rows=shuffle_rows,
                num_processes=num_processes,
                process_index=index,
            )
            for index in range(num_processes)
        ]
        shares = [rows_of_steps(loader, start=0, stop=12) for loader in loaders]
        steps = [sorted(chain.from_iterable(step)) for step in zip(*shares, strict=True)]
        return steps, [loader.state_dict() for loader in loaders]

    alone, (state,) = rows_on(1)
    for num_processes in (2, 3):
        together, states = rows_on(num_processes)
        assert together == alone
        assert states == [state] * num_processes


def test_a_run_goes_on_with_the_same_rows_on_another_number_of_processes():
    whole = rows_of_steps(make_loader([20, 9]), start=0, stop=10)
    begun = make_loader([20, 9], num_processes=3, process_index=2)
    rows_of_steps(begun, start=0, stop=5)
    shares = []
    for index in range(2):
        loader = make_loader([20, 9], num_processes=2, process_index=index)
        loader.load_state_dict(begun.state_dict())
        shares.append(rows_of_steps(loader, start=5, stop=10))
    assert [sorted(one + other) for one, other in zip(*shares, strict=True)] == whole[5:]


def test_a_buffer_of_one_row_keeps_the_order_of_the_file_and_a_larger_one_does_not():
    in_order = [f"shard0 row {row}" for row in range(1, 31)]
    assert list(chain.from_iterable(places_of_batches(make_stream([30]), stop=8, shuffle_rows=1))) == in_order
    shuffled = list(chain.from_iterable(places_of_batches(make_stream([30]), stop=8, shuffle_rows=10)))
    assert shuffled != in_order
    for block in range(3):  # but rows stay within their block
        assert sorted(shuffled[10 * block : 10 * block + 10]) == sorted(in_order[10 * block : 10 * block + 10])


def test_epochs_and_seeds_differ_in_the_order_of_rows_and_of_shards():
    epochs = [places_of_batches(make_stream([5] * 6), Position(epoch), stop=8) for epoch in range(3)]
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]
    orders = [
        [
            origins[0].split()[0]
            for origins in places_of_batches(make_stream([4] * 6), Position(epoch), stop=6, shuffle_rows=1)
        ]
        for epoch in range(3)
    ]
    assert orders[0] != orders[1] != orders[2]
    assert epochs[0] != places_of_batches(make_stream([5] * 6, seed=8), stop=8, seed=8)


@pytest.mark.parametrize("step", [0, 3, 6])
def test_what_is_saved_is_the_step_the_loop_has_reached_and_not_what_was_read_ahead(step):
    read = []

    class Watched:
        def __init__(self, stream):
            self.stream = stream

        def read(self, epoch, mark=None):
            for row in self.stream.read(epoch, mark):
                read.append(row)
                yield row

    loader = make_loader([], stream=Watched(make_stream([200])), shuffle_rows=4)
    steps = loader.steps(start=0, stop=50)
    for _ in range(step + 1):
        next(steps)
    for _ in range(100):  # until the thread has made what it may
        if len(read) >= 4 * (step + 5):
            break
        threading.Event().wait(0.02)
    assert len(read) >= 4 * (step + 5)
    state = loader.state_dict()
    assert (state["step"], state["first"] + state["used"]) == (step + 1, 4 * (step + 1))
    steps.close()


def test_the_thread_ends_with_the_steps():
    steps = make_loader([50]).steps(start=0, stop=10)
    next(steps)
    assert any(thread.name.startswith("read-ahead") for thread in threading.enumerate())
    steps.close()
    assert not any(thread.name.startswith("read-ahead") for thread in threading.enumerate())


def test_going_on_reads_no_more_than_the_block_again_and_encodes_only_what_is_needed():
    loader = make_loader([1000], shuffle_rows=50, batch_size=8)
    rows_of_steps(loader, start=0, stop=100)
    encoded, read = [], []

    class Stream:
        def read(self, epoch, mark=None):
            for row in make_stream([1000]).read(epoch, mark):
                read.append(row.place)
                yield row

    def watch(rows):
        encoded.extend(row.place for row in rows)
        return encode(rows)

    again = make_loader([], stream=Stream(), encode=watch, shuffle_rows=50, batch_size=8)
    again.load_state_dict(loader.state_dict())
    next(steps := again.steps(start=100, stop=101))
    steps.close()
    assert len(encoded) == 8
    assert len(read) <= 100


@pytest.mark.parametrize(
    ("state", "told"),
    [
        ({}, "step is None"),
        ({"step": -1}, "step is -1"),
        ({"step": 1, "epoch": "first"}, "epoch is 'first'"),
        ({"step": 1, "start": 7}, "start is 7"),
        ({"step": 1, "place": 3}, "place is unknown"),
    ],
)
def test_a_place_that_is_none_is_told_in_one_line(state, told):
    with pytest.raises(UserError, match=f"the place in the stream where the run goes on is damaged: {told}"):
        make_loader([9]).load_state_dict(state)


def test_a_process_without_rows_gets_a_dummy_microbatch_of_the_batch_that_counts_nothing():
    loader = make_loader([9], num_processes=3, process_index=2, batch_size=4)
    *_, last = loader.steps(start=0, stop=3)  # one row for three processes
    (dummy_microbatch,) = last.microbatches
    assert dummy_microbatch.is_dummy
    assert (dummy_microbatch.num_targets, last.num_rows, last.num_tokens) == (0, 0, 0)
    assert loader.dummy_microbatch(2).rows == dummy_microbatch.rows


def test_microbatches_are_cut_by_the_budget_and_padded_to_their_longest_row():
    for step in make_loader([40], batch_size=20, max_tokens=12).steps(start=0, stop=2):
        assert len(step.microbatches) > 1
        for microbatch in step.microbatches:
            rows, width = microbatch.batch["input_ids"].shape
            assert rows * width <= 12
            assert (microbatch.batch["input_ids"] != 0).sum(dim=1).max() == width
        assert step.num_rows == 20
        assert step.num_padded_tokens == sum(m.batch["input_ids"].numel() for m in step.microbatches)
    for step in make_loader([40], batch_size=20, per_device=3).steps(start=0, stop=2):
        assert max(len(microbatch.rows) for microbatch in step.microbatches) == 3


@pytest.mark.parametrize("max_tokens", [None, 30])
def test_processes_come_to_the_same_smaller_size_until_each_microbatch_has_one_row(max_tokens):
    loaders = [
        make_loader([40], batch_size=10, num_processes=3, process_index=index, max_tokens=max_tokens)
        for index in range(3)
    ]
    steps = [loader.steps(start=0, stop=4) for loader in loaders]
    before = [next(one) for one in steps]
    sizes = []
    while (again := [loader.cut_smaller(0) for loader in loaders])[0] is not None:
        assert [step.num_rows for step in again] == [step.num_rows for step in before]
        sizes.append({loader.max_tokens for loader in loaders})
        assert len(sizes[-1]) == 1
    assert again == [None] * 3
    assert len(sizes) >= 2
    limits = [size for (size,) in sizes]
    assert limits == sorted(set(limits), reverse=True)
    for one in steps:  # what was read ahead is cut anew too
        for step in one:
            assert all(len(microbatch.rows) == 1 for microbatch in step.microbatches)


def test_a_limit_of_tokens_is_lowered_and_never_raised():
    loader = make_loader([40], max_tokens=30)
    for limit, expected in ((50, 30), (20, 20)):
        loader.limit_tokens(limit)
        assert loader.max_tokens == expected


def test_places_of_earlier_steps_are_read_again():
    loader = make_loader([11, 14], batch_size=3)
    expected = places_of_batches(make_stream([11, 14]), stop=9, batch_size=3)
    rows_of_steps(loader, start=0, stop=9)
    assert [loader.origins(step) for step in range(9)] == expected
    assert loader.origins(20) == ["no longer known"]


def test_epochs_are_counted_where_the_rows_are_and_else_when_they_are_over():
    counted, uncounted = make_loader([10], num_rows=10), make_loader([10])
    assert (counted.steps_per_epoch, uncounted.steps_per_epoch) == (3, None)
    for number, steps in enumerate(zip(*(one.steps(start=0, stop=7) for one in (counted, uncounted)), strict=True), 1):
        assert {step.step for step in steps} == {number - 1}
        assert counted.count_epochs(number) == (0.4, 0.8, 1.0, 1.4, 1.8, 2.0, 2.4)[number - 1]
        assert uncounted.count_epochs(number) == number // 3


def test_another_number_of_rows_than_was_counted_is_told():
    with pytest.raises(UserError, match="epoch 1 has 10 rows, and 12 were counted before training"):
        rows_of_steps(make_loader([10], num_rows=12), start=0, stop=9)


def test_a_stream_without_rows_is_told():
    with pytest.raises(UserError, match=r"data\.train has no rows"):
        rows_of_steps(make_loader([0, 0]), start=0, stop=1)


def test_a_task_that_splits_texts_without_saying_so_is_told():
    loader = make_loader([10], encode=lambda rows: [*encode(rows), *encode(rows[:1])])
    with pytest.raises(UserError, match="encode gave 5 rows for 4 texts"):
        next(loader.steps(start=0, stop=1))


def test_what_fails_ahead_is_told_when_the_loop_gets_there():
    def fail(rows):
        if any(row.place == "shard0 row 30" for row in rows):
            raise UserError("row 30 is bad")
        return encode(rows)

    loader = make_loader([40], shuffle_rows=1, encode=fail)
    done = []
    with pytest.raises(UserError, match="row 30 is bad"):
        done.extend(step.step for step in loader.steps(start=0, stop=10))
    assert done == list(range(7))


def test_what_a_collate_draws_at_random_is_the_same_when_the_step_is_repeated():
    def noisy(rows):
        return collate(rows) | {"noise": torch.rand(len(rows))}

    def draw(loader, start):
        torch.manual_seed(start)
        return [step.microbatches[0].batch["noise"] for step in loader.steps(start=start, stop=4)]

    whole = draw(make_loader([30], collate=noisy), 0)
    loader = make_loader([30], collate=noisy)
    list(loader.steps(start=0, stop=2))
    resumed = draw(loader, 2)
    assert all(torch.equal(one, other) for one, other in zip(whole[2:], resumed, strict=True))
