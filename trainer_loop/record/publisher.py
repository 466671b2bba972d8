"""Pushes of one run: its checkpoints during training, and the exported model at the end. None delays the run."""

import atexit
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from trainer_loop.record.hub_access import explain_failure, status_of
from trainer_loop.record.hub_push import Pushed
from trainer_loop.record.logs import Console
from trainer_loop.record.state import TrainState

if TYPE_CHECKING:
    from torch import nn

    from trainer_loop.record.checkpoint import AveragedWeights


_SECONDS_TO_LEAVE = 5.0  # for a running push when the run is asked to stop
_SECONDS_BETWEEN_LOOKS = 0.1


@dataclass(frozen=True)
class _Job:
    """One planned push."""

    what: str  # what is pushed, in words
    prepare: Callable[[], Path]  # returns the folder; called in the thread
    is_last: bool = False


class Publisher:
    """Pushes folders one at a time, in a thread that ends with the process.

    A failed push costs one warning for each kind of failure; it never ends the run.

    Args:
        push: pushes a folder; its second argument says in words what is pushed.
        snapshot: copies the weights of a model in training (or the averaged weights) and returns a function that writes
            the copy into a folder. None: nothing is pushed before the end.
        model: the folder of the exported model.
        scratch: a folder for pushes during training; it is removed afterwards.
        console: gets the messages about pushes, only from the thread of the run.
        again: the command that pushes the exported model.
    """

    def __init__(
        self,
        push: Callable[[Path, str], Pushed],
        *,
        snapshot: "Callable[[nn.Module, TrainState, AveragedWeights | None], Callable[[Path], None]] | None",
        model: Path,
        scratch: Path,
        console: Console,
        again: str,
    ):
        self._push = push
        self._snapshot = snapshot
        self._model = model
        self._scratch = scratch
        self._console = console
        self._again = again
        self._lock = threading.Lock()
        self._writing = threading.Lock()  # held while a snapshot is written
        self._next: _Job | None = None  # the push after the running one
        self._running = False
        self._unsaid: list[str] = []
        self._failed: set[tuple[type, int | None]] = set()  # kinds that were reported
        self._fault: Exception | None = None  # error of the push of the exported model

    def offer(self, model: "nn.Module", state: TrainState, averaged_weights: "AveragedWeights | None") -> None:
        """Push the weights of this step during training. It replaces weights of earlier steps that still wait."""
        self.tell()
        if self._snapshot is None:
            return
        what = f"the weights of step {state.step:,}"
        try:
            write = self._snapshot(model, state, averaged_weights)
        except Exception as error:  # noqa: BLE001 - a failed copy, such as without memory, must not end the training
            self._warn_once(error, what)
            return

        def prepare() -> Path:
            with self._writing:
                write(self._scratch)
            return self._scratch

        self._submit(_Job(what, prepare))

    def finish(self, *, is_stopped: Callable[[], bool]) -> None:
        """Push the exported model after a running push, and wait for it unless the run is asked to stop."""
        self._submit(_Job("the trained model", lambda: self._model, is_last=True))
        done = self._wait(is_stopped)
        self.tell()
        if not done:
            self._console.warn(f"the push of the model was left unfinished; it is pushed by {self._again}")
        elif self._fault is not None:
            self._console.warn(
                f"the model was not pushed: {explain_failure(self._fault)}; it is in {self._model}, and is pushed by "
                f"{self._again}"
            )

    def leave(self) -> None:
        """Give a running push a few seconds before a stopped run ends.

        If the push is cut off, the repository keeps its state.
        """
        with self._lock:
            self._next = None
        until = time.monotonic() + _SECONDS_TO_LEAVE
        done = self._wait(lambda: time.monotonic() >= until)
        self.tell()
        if not done:
            self._console.say("a push to the hub was cut off; the next checkpoint is pushed when the run goes on")

    def tell(self) -> None:
        """Report the results of pushes since the last call."""
        with self._lock:
            unsaid, self._unsaid = self._unsaid, []
        for line in unsaid:
            self._console.say(line)

    def _submit(self, job: _Job) -> None:
        with self._lock:
            self._next = job
            if self._running:
                return
            self._running = True
        # A daemon thread, so the process never waits for the hub. But Python aborts if it ends while a thread is in the
        # code of torch or safetensors, so the end of the process waits until the snapshot is written.
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
                self._say(self._push(folder, what).describe(what))
            except Exception as error:  # noqa: BLE001 - no error of a push may end the training
                if is_last:
                    self._fault = error
                else:
                    self._warn_once(error, what)
            finally:
                shutil.rmtree(self._scratch, ignore_errors=True)

    def _take(self) -> _Job | None:
        with self._lock:
            job, self._next = self._next, None
            self._running = job is not None
        if job is None:
            atexit.unregister(self._writing.acquire)
        return job

    def _warn_once(self, error: Exception, what: str) -> None:
        kind = (type(error), status_of(error))
        if kind not in self._failed:
            self._failed.add(kind)
            self._say(
                f"warning: {what} were not pushed: {explain_failure(error)}; training goes on, and the next "
                "checkpoint is tried again"
            )

    def _say(self, line: str) -> None:
        with self._lock:
            self._unsaid.append(line)

    def _wait(self, is_over: Callable[[], bool]) -> bool:
        """Wait until no push is running; false if `is_over` became true before."""
        while self._running:
            if is_over():
                return False
            time.sleep(_SECONDS_BETWEEN_LOOKS)
        return True
