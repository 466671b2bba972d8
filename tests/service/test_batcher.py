"""How jobs are collected, predicted together, and answered."""

import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError
from typing import Any

import pytest

from trainer_loop.service.batcher import Abandoned, Batcher, Job, Row


class Model:
    """Predicts the number of a row, in passes of one row, which a test can block. Rows 13 and 14 fail."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.started, self.may_continue = threading.Event(), threading.Event()
        self.may_continue.set()

    def predict(
        self, rows: Sequence[Row], names: Sequence[str], before_pass: Callable[[], None]
    ) -> list[dict[str, Any]]:
        assert len(rows) == len(names)
        self.batches.append([])
        for row in rows:
            self.started.set()
            assert self.may_continue.wait(10)
            before_pass()
            if row["number"] == 14:
                sys.exit("14")
            if row["number"] == 13:
                raise ValueError(f"{names[-1]} is unlucky")
            self.batches[-1].append(row["number"])
        return [dict(row) for row in rows]


@pytest.fixture
def model() -> Model:
    return Model()


@pytest.fixture
def reported() -> list[int]:
    return []


@pytest.fixture
def batcher(model: Model, reported: list[int]) -> Iterator[Batcher]:
    batcher = Batcher(model.predict, batch_rows=4, seconds=0.05, report=lambda rows, seconds: reported.append(rows))
    yield batcher
    model.may_continue.set()
    batcher.close()


def job_of(*numbers: int) -> Job:
    return Job([{"number": number} for number in numbers], [f"rows[{place}]" for place in range(len(numbers))])


def submit(batcher: Batcher, *jobs: Job) -> None:
    for job in jobs:
        batcher.submit(job)


def numbers_of(job: Job) -> list[int]:
    return [row["number"] for row in job.answer.result(timeout=10)]


def test_jobs_that_fit_are_predicted_together_and_each_gets_its_rows(
    batcher: Batcher, model: Model, reported: list[int]
):
    jobs = [job_of(1, 2), job_of(3), job_of(4, 5), job_of(6, 7, 8, 9, 10, 11)]
    submit(batcher, *jobs)
    assert [numbers_of(job) for job in jobs] == [[1, 2], [3], [4, 5], [6, 7, 8, 9, 10, 11]]
    assert model.batches == [[1, 2, 3], [4, 5], [6, 7, 8, 9, 10, 11]]
    batcher.close()
    assert reported == [3, 2, 6]


def test_an_error_is_reported_to_its_job_only(batcher: Batcher):
    good, bad, other = job_of(1), job_of(2, 13), job_of(3)
    submit(batcher, good, bad, other)
    assert (numbers_of(good), numbers_of(other)) == ([1], [3])
    with pytest.raises(ValueError, match=r"rows\[1\] is unlucky"):
        bad.answer.result(timeout=10)


def test_a_base_exception_does_not_end_the_thread_of_the_model(batcher: Batcher):
    bad, good, after = job_of(14), job_of(1), job_of(2)
    submit(batcher, bad, good)
    with pytest.raises(RuntimeError, match="SystemExit: 14"):
        bad.answer.result(timeout=10)
    assert numbers_of(good) == [1]
    submit(batcher, after)
    assert numbers_of(after) == [2]


def test_a_job_that_is_abandoned_in_the_queue_is_not_predicted(batcher: Batcher, model: Model):
    model.may_continue.clear()
    first, second, third = job_of(1, 2, 3, 4), job_of(5), job_of(6)
    submit(batcher, first, second, third)
    assert model.started.wait(10)
    second.abandon()
    model.may_continue.set()
    assert numbers_of(third) == [6]
    assert model.batches == [[1, 2, 3, 4], [6]]
    with pytest.raises(CancelledError):
        second.answer.result(timeout=0)


def test_an_abandoned_batch_ends_before_its_next_pass(batcher: Batcher, model: Model):
    model.may_continue.clear()
    one = job_of(1, 2, 3, 4)
    submit(batcher, one)
    assert model.started.wait(10)
    one.abandon()
    model.may_continue.set()
    with pytest.raises(Abandoned):
        one.answer.result(timeout=10)
    assert model.batches == [[]]


def test_jobs_that_wait_when_the_batcher_is_closed_are_answered(batcher: Batcher, model: Model):
    model.may_continue.clear()
    jobs = [job_of(1, 2, 3), job_of(4, 5, 6)]
    submit(batcher, *jobs)
    assert model.started.wait(10)
    threading.Timer(0.1, model.may_continue.set).start()
    batcher.close()
    assert [numbers_of(job) for job in jobs] == [[1, 2, 3], [4, 5, 6]]
