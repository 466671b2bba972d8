"""Pushes of one run: its checkpoints during training, and the exported model at the end. They do not delay the run."""

import atexit
import shutil
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass
from pathlib import Path

from trainer_loop.record.hub_access import explain_failure, status_of
from trainer_loop.record.hub_push import PushResult
from trainer_loop.record.logs import Console

_SECONDS_TO_LEAVE = 5.0  # for a running push when the run is asked to stop
_SECONDS_BETWEEN_LOOKS = 0.1


@dataclass(frozen=True)
class _Job:
    """One planned push."""

    what: str  # name of what is pushed, such as `the trained model`
    prepare: Callable[[], Path]  # called in the thread; returns the folder to push
    is_last: bool = False


@dataclass(eq=False, repr=False)
class Publisher:
    """Pushes folders one at a time, in a daemon thread.

    A failed push costs one warning for each kind of failure; it never ends the run.
    """

    push: Callable[[Path, str], PushResult]  # (folder, `_Job.what`)
    _: KW_ONLY
    model: Path  # the folder of the exported model
    scratch: Path  # temporary folder for pushes during training; it is removed after each
    console: Console  # only the thread of the run writes to it
    command: str  # pushes the exported model

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._writing = threading.Lock()  # held while a snapshot is written
        self._next: _Job | None = None  # the push after the running one
        self._is_running = False
        self._unreported: deque[str] = deque()  # lines for the console
        self._failed: set[tuple[type, int | None]] = set()  # kinds of failures that were reported
        self._fault: Exception | None = None  # error of the push of the exported model

    def offer(self, step: int, snapshot: Callable[[], Callable[[Path], None]]) -> None:
        """Push the weights of this step during training. They replace those of earlier steps that still wait.

        Args:
            snapshot: Copies the weights and returns a function that writes the copy into a folder.
        """
        self.report()
        what = f"the weights of step {step:,}"
        try:
            write = snapshot()
        except Exception as error:  # noqa: BLE001 - a failed copy, such as out of memory, must not end the training
            self._warn_once(error, what)
            return

        def prepare() -> Path:
            with self._writing:
                write(self.scratch)
            return self.scratch

        self._submit(_Job(what, prepare))

    def finish(self, *, is_stopped: Callable[[], bool]) -> None:
        """Push the exported model after a running push, and wait for it unless the run is asked to stop."""
        self._submit(_Job("the trained model", lambda: self.model, is_last=True))
        done = self._wait(is_stopped)
        self.report()
        if not done:
            self.console.warn(f"the push of the model was left unfinished; it is pushed by {self.command}")
        elif self._fault is not None:
            self.console.warn(
                f"the model was not pushed: {explain_failure(self._fault)}; it is in {self.model}, and is pushed by "
                f"{self.command}"
            )

    def leave(self) -> None:
        """Give a running push some seconds before a stopped run ends; an interrupted push changes nothing."""
        with self._lock:
            self._next = None
        until = time.monotonic() + _SECONDS_TO_LEAVE
        done = self._wait(lambda: time.monotonic() >= until)
        self.report()
        if not done:
            self.console.say("a push to the hub was cut off; the next checkpoint is pushed when the run goes on")

    def report(self) -> None:
        """Report the results of pushes since the last call."""
        while self._unreported:
            self.console.say(self._unreported.popleft())

    def _submit(self, job: _Job) -> None:
        with self._lock:
            self._next = job
            if self._is_running:
                return
            self._is_running = True
        # The process never waits for the hub, because the thread is a daemon. But Python aborts if it ends while a
        # thread runs code of torch or safetensors, so the end waits until the snapshot is written.
        atexit.register(self._writing.acquire)
        threading.Thread(target=self._work, name="push to the hub", daemon=True).start()

    def _work(self) -> None:
        while (job := self._take()) is not None:
            what, is_last, prepare = job.what, job.is_last, job.prepare
            del job
            self._fault = None
            try:
                folder = prepare()
                del prepare  # frees the copy of the weights
                self._unreported.append(self.push(folder, what).describe(what))
            except Exception as error:  # noqa: BLE001 - no error of a push may end the training
                if is_last:
                    self._fault = error
                else:
                    self._warn_once(error, what)
            finally:
                shutil.rmtree(self.scratch, ignore_errors=True)

    def _take(self) -> _Job | None:
        with self._lock:
            job, self._next = self._next, None
            self._is_running = job is not None
        if job is None:
            atexit.unregister(self._writing.acquire)
        return job

    def _warn_once(self, error: Exception, what: str) -> None:
        kind = (type(error), status_of(error))
        if kind not in self._failed:
            self._failed.add(kind)
            self._unreported.append(
                f"warning: {what} were not pushed: {explain_failure(error)}; training goes on, and the next "
                "checkpoint is tried again"
            )

    def _wait(self, is_over: Callable[[], bool]) -> bool:
        """Wait until no push is running; returns False if `is_over` became true before."""
        while self._is_running:
            if is_over():
                return False
            time.sleep(_SECONDS_BETWEEN_LOOKS)
        return True
