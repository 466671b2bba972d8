"""Pushes of one run: beside training at its checkpoints, and the exported model at its end. None holds the run up."""

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


_SECONDS_TO_LEAVE = 5.0  # what a push that is under way is given when the run is asked to stop
_SECONDS_BETWEEN_LOOKS = 0.1


@dataclass(frozen=True)
class _Job:
    """One push to be made."""

    what: str  # in words
    prepare: Callable[[], Path]  # gives the folder; called in the thread
    is_last: bool = False


class Publisher:
    """Pushes folders, one at a time, in a thread that ends with the process.

    A push that fails costs a warning, one for each kind of failure, and never the run.

    Args:
        push: a folder and what it is, in words -> what came of it.
        snapshot: copies the weights of a model in training (its averages in their place), and gives what writes them
            into a folder; None: nothing is pushed before the end.
        model: the folder that the run exports at its end.
        scratch: a folder for what is pushed during training; it is removed afterwards.
        console: told of pushes when the run looks at them, never from the thread.
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
        self._next: _Job | None = None  # what to push after the push under way
        self._running = False
        self._unsaid: list[str] = []
        self._failed: set[tuple[type, int | None]] = set()  # kinds that were told
        self._fault: Exception | None = None  # of the push of the exported model

    def offer(self, model: "nn.Module", state: TrainState, averaged_weights: "AveragedWeights | None") -> None:
        """Push the weights of this step beside training; those of an earlier step that still wait are dropped."""
        self.tell()
        if self._snapshot is None:
            return
        what = f"the weights of step {state.step:,}"
        try:
            write = self._snapshot(model, state, averaged_weights)
        except Exception as error:  # noqa: BLE001 - no memory for a copy must not end the training
            self._warn_once(error, what)
            return

        def prepare() -> Path:
            with self._writing:
                write(self._scratch)
            return self._scratch

        self._submit(_Job(what, prepare))

    def finish(self, *, is_stopped: Callable[[], bool]) -> None:
        """Push the exported model, after what is under way, and wait for it unless the run is asked to stop."""
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
        """Before the end of a run that was asked to stop; the hub keeps what it has where a push is cut off."""
        with self._lock:
            self._next = None
        until = time.monotonic() + _SECONDS_TO_LEAVE
        done = self._wait(lambda: time.monotonic() >= until)
        self.tell()
        if not done:
            self._console.say("a push to the hub was cut off; the next checkpoint is pushed when the run goes on")

    def tell(self) -> None:
        """Say what came of pushes since the last call."""
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
        # A daemon: the process ends without waiting for it, whatever the hub does. But Python would abort where it
        # ends while another thread is in the code of torch or safetensors.
        atexit.register(self._writing.acquire)
        threading.Thread(target=self._work, name="push to the hub", daemon=True).start()

    def _work(self) -> None:
        while (job := self._take()) is not None:
            what, is_last, prepare = job.what, job.is_last, job.prepare
            del job
            self._fault = None
            try:
                folder = prepare()
                del prepare  # and with it the copy of the weights
                self._say(self._push(folder, what).describe(what))
            except Exception as error:  # noqa: BLE001 - whatever fails here must not end the training
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
        """Whether nothing is under way any more before `is_over`."""
        while self._running:
            if is_over():
                return False
            time.sleep(_SECONDS_BETWEEN_LOOKS)
        return True
