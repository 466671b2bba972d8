"""Predicts the rows of several requests together. Only the thread of the batcher uses the model."""

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

Row = Mapping[str, Any]
# (rows, their names in errors, a function to call before each forward pass) -> a prediction for each row
Predict = Callable[[Sequence[Row], Sequence[str], Callable[[], None]], list[dict[str, Any]]]


class Abandoned(Exception):
    """No client waits for these predictions any more."""


@dataclass
class Job:
    """The rows of one request. names: of the rows, for errors. answer: their predictions."""

    rows: Sequence[Row]
    names: Sequence[str]
    answer: "Future[list[dict[str, Any]]]" = field(default_factory=Future)
    arrived: float = field(default_factory=time.monotonic)
    is_abandoned: bool = False

    def abandon(self) -> None:
        """Mark that no client waits for the answer any more."""
        self.is_abandoned = True
        self.answer.cancel()


class Batcher:
    """Collects jobs for a few milliseconds and predicts them together.

    Args:
        predict: Predicts rows, see `Predict`. It is called only in the thread of the batcher.
        batch_rows: Rows that are predicted together; a job with more rows is predicted alone.
        seconds: The longest time that a job waits for others.
        report: Called with the number of rows and the seconds of each batch.
    """

    def __init__(
        self, predict: Predict, *, batch_rows: int, seconds: float, report: Callable[[int, float], None]
    ) -> None:
        self._predict = predict
        self._batch_rows = batch_rows
        self._seconds = seconds
        self._report = report
        self._jobs: deque[Job] = deque()
        self._changed = threading.Condition()
        self._is_closed = False
        self._thread = threading.Thread(target=self._work, name="model", daemon=True)
        self._thread.start()

    def submit(self, job: Job) -> None:
        """Add a job to the queue."""
        with self._changed:
            assert not self._is_closed, "requests must be refused before the batcher is closed"
            self._jobs.append(job)
            self._changed.notify()

    def close(self) -> None:
        """Answer the queued jobs, and end the thread."""
        with self._changed:
            self._is_closed = True
            self._changed.notify()
        self._thread.join()

    def _work(self) -> None:
        while (jobs := self._take()) is not None:
            start = time.monotonic()
            self._run(jobs)
            if jobs:
                self._report(sum(len(job.rows) for job in jobs), time.monotonic() - start)

    def _take(self) -> list[Job] | None:
        """Wait until a batch is full, or its first job has waited long enough; returns its jobs, None after the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._jobs or self._is_closed)
            if not self._jobs:
                return None
            left = self._jobs[0].arrived + self._seconds - time.monotonic()
            self._changed.wait_for(lambda: self._is_full() or self._is_closed, timeout=left)
            jobs: list[Job] = []
            room = self._batch_rows
            while self._jobs and (not jobs or len(self._jobs[0].rows) <= room):
                job = self._jobs.popleft()
                if job.answer.set_running_or_notify_cancel():  # False: it was abandoned in the queue
                    jobs.append(job)
                    room -= len(job.rows)
            return jobs

    def _is_full(self) -> bool:
        return sum(len(job.rows) for job in self._jobs) >= self._batch_rows

    def _run(self, jobs: Sequence[Job]) -> None:
        """Predict the jobs together; if that fails, each alone, so that a bad row fails only its own request."""

        def check() -> None:
            if all(job.is_abandoned for job in jobs):
                raise Abandoned

        rows = [row for job in jobs for row in job.rows]
        names = [name for job in jobs for name in job.names]
        try:
            predicted = self._predict(rows, names, check) if rows else []
        except BaseException as error:  # noqa: BLE001 - the error is the answer to the request
            if len(jobs) == 1:
                jobs[0].answer.set_exception(_as_exception(error))
                return
            predicted = None
        if predicted is None:  # outside the handler, which holds the memory of the failed pass
            for job in jobs:
                self._run([job])
            return
        for job in jobs:
            job.answer.set_result(predicted[: len(job.rows)])
            del predicted[: len(job.rows)]


def _as_exception(error: BaseException) -> Exception:
    """Wrap an error for the event loop: a panic of tokenizers, or `sys.exit` of a model, is no `Exception`."""
    if isinstance(error, Exception):
        return error
    wrapped = RuntimeError(f"{type(error).__name__}: {error}")
    wrapped.__cause__ = error
    return wrapped
