"""Requests to stop: SIGTERM, SIGUSR1, SIGHUP, Ctrl-C, or the end of the allowed time."""

import contextlib
import ctypes
import functools
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator

from trainer_loop.errors import Preempted
from trainer_loop.runtime.host import process_index_from_environment

_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP)
# A launcher passes on the Ctrl-C of a terminal to processes that already received it from the terminal.
_SECONDS_OF_ONE_CTRL_C = 1.0
_CODE_OF_SECOND_CTRL_C = 130  # exit code after a second Ctrl-C
_PR_SET_PDEATHSIG = 1
_END = b"\0"  # no signal has this number


class Preemption:
    """Records requests to stop this process.

    Before `defer_signals`, a signal ends the process at once with exit code 75, because there is nothing to save yet.
    After `defer_signals`, a signal only sets `requested`, which the caller must check. A second Ctrl-C always ends the
    process at once.
    """

    def __init__(self) -> None:
        self.started = time.monotonic()
        self._reason: str | None = None
        self._deadline: float | None = None
        self._deferred = False
        self._first_ctrl_c: float | None = None

    def defer_signals(self, *, max_minutes: float | None = None) -> None:
        """From now on, signals set `requested` instead of ending the process. So does `max_minutes` after its start."""
        self._deferred = True
        self._deadline = None if max_minutes is None else self.started + 60 * max_minutes

    @property
    def signalled(self) -> bool:
        """Whether a signal arrived. Other code that is running may have received the same signal."""
        return self._reason is not None

    @property
    def requested(self) -> bool:
        """Whether this process should stop, because of a signal or the time limit."""
        return self.signalled or (self._deadline is not None and time.monotonic() >= self._deadline)

    @property
    def reason(self) -> str:
        """The reason for the request, as text; another process was asked to stop if this one was not."""
        own = "train.max_time_minutes is over" if self.requested else "another process was asked to stop"
        return self._reason or own

    def receive(self, number: int) -> None:
        """Handle a signal. Called outside the main thread, which may be waiting for another process."""
        if number == signal.SIGINT:
            now = time.monotonic()
            if self._first_ctrl_c is not None and now - self._first_ctrl_c > _SECONDS_OF_ONE_CTRL_C:
                _leave("left at once; the same command goes on from the last checkpoint", _CODE_OF_SECOND_CTRL_C)
            self._first_ctrl_c = self._first_ctrl_c or now
        name = "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
        self._reason = self._reason or name
        if not self._deferred:
            _leave(f"preempted by {name} before training; the same command begins again", Preempted.exit_code)


@contextlib.contextmanager
def forking_workers() -> Iterator[None]:
    """Start data workers inside this block: signals are blocked in them until `leave_signals_to_the_parent`."""
    global _starts_workers
    _starts_workers = True
    try:
        yield
    finally:
        _starts_workers = False


def leave_signals_to_the_parent(_worker: int) -> None:
    """Ignore signals in a data worker. A scheduler signals all processes of a job; the parent needs its workers."""
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    _unblock()  # drops signals that arrived since the fork


@contextlib.contextmanager
def catch_signals() -> Iterator[Preemption]:
    """Turn stop signals into a Preemption until the block ends.

    A separate thread receives the signals, because Python runs no handler while the main thread waits in C code.
    Outside the main thread, no signal is caught.
    """
    preemption = Preemption()
    if threading.current_thread() is not threading.main_thread():
        yield preemption
        return
    receiver, sender = os.pipe()
    os.set_blocking(sender, False)
    # `nohup` ignores SIGHUP, so that a run survives its terminal.
    ignored = {signal.SIGHUP} if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else set()
    caught = [number for number in _SIGNALS if number not in ignored]
    before = {number: signal.signal(number, _do_nothing) for number in caught}
    wakeup_before = signal.set_wakeup_fd(sender, warn_on_full_buffer=False)
    _forget_in_forks()
    if "TORCHELASTIC_RUN_ID" in os.environ and sys.platform == "linux":
        # Get SIGTERM if the launcher dies. Otherwise orphans would keep training beside processes of a new launcher.
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    thread = threading.Thread(target=_listen, args=(receiver, preemption), name="signals", daemon=True)
    thread.start()
    try:
        yield preemption
    finally:
        signal.set_wakeup_fd(wakeup_before)
        for number, handler in before.items():
            signal.signal(number, handler)
        os.write(sender, _END)
        thread.join()
        os.close(sender)
        os.close(receiver)


def _listen(receiver: int, preemption: Preemption) -> None:
    while _END not in (numbers := os.read(receiver, 64)):
        for number in numbers:
            if number in _SIGNALS:
                preemption.receive(number)


def _leave(line: str, code: int) -> None:
    """End the process from outside the main thread, whatever the main thread is doing."""
    try:
        if process_index_from_environment() == 0:
            sys.stdout.flush()
            print(line, file=sys.stderr, flush=True)
    finally:  # also if standard error is closed
        os._exit(code)


def _do_nothing(_number: int, _frame: object) -> None:
    """Python passes a signal to the wakeup descriptor only if a handler is set."""


_starts_workers = False
_block = functools.partial(signal.pthread_sigmask, signal.SIG_BLOCK, _SIGNALS)
_unblock = functools.partial(signal.pthread_sigmask, signal.SIG_UNBLOCK, _SIGNALS)


@functools.cache
def _forget_in_forks() -> None:
    """Keep forked workers from writing into the parent's pipe when they receive a signal. One call is enough.

    A signal to a child that still has the parent's pipe would look like a request to the parent. So signals are blocked
    during a fork.
    """
    os.register_at_fork(before=_block, after_in_parent=_unblock, after_in_child=_reset_in_child)


def _reset_in_child() -> None:
    if signal.getsignal(signal.SIGTERM) is _do_nothing:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        for number in (signal.SIGINT, signal.SIGHUP):  # the terminal signals all processes, and the parent decides
            signal.signal(number, signal.SIG_IGN)
    if not _starts_workers:
        _unblock()
