"""Being asked to stop: by SIGTERM, SIGUSR1, SIGHUP, Ctrl-C, or because the time that was given is over."""

import contextlib
import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator

from trainer_loop.errors import Preempted

_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP)
# A launcher passes the terminal's Ctrl-C on to processes that got it from the terminal already.
_SECONDS_OF_ONE_CTRL_C = 1.0
_LEFT_AT_ONCE = 130
_PR_SET_PDEATHSIG = 1
_END = b"\0"  # no signal has this number


class Preemption:
    """Whether this process was asked to stop.

    Until `hold` a signal ends the process at once, with 75: there is nothing to save yet. From then on `requested` is
    set, and who holds must look at it. A second Ctrl-C ends the process at once at any time.
    """

    def __init__(self) -> None:
        self.started = time.monotonic()
        self._reason: str | None = None
        self._deadline: float | None = None
        self._held = False
        self._first_ctrl_c: float | None = None

    def defer_signals(self, *, max_minutes: float | None = None) -> None:
        """From now on a request waits to be seen. max_minutes: counted from the start of the process."""
        self._held = True
        self._deadline = None if max_minutes is None else self.started + 60 * max_minutes

    @property
    def signalled(self) -> bool:
        """Whether a signal asked, which whatever else is under way may have got, too."""
        return self._reason is not None

    @property
    def requested(self) -> bool:
        return self.signalled or (self._deadline is not None and time.monotonic() >= self._deadline)

    @property
    def reason(self) -> str:
        """What asked, for a person; another process was asked where this one was not."""
        if self._reason is not None:
            return self._reason
        if self.requested:
            return "train.max_time_minutes is over"
        return "another process was asked to stop"

    def request(self, reason: str) -> None:
        """Ask from within the process."""
        self._reason = self._reason or reason

    def receive(self, number: int) -> None:
        """Take a signal in; called outside the main thread, which may be waiting for another process."""
        if number == signal.SIGINT:
            now = time.monotonic()
            if self._first_ctrl_c is not None and now - self._first_ctrl_c > _SECONDS_OF_ONE_CTRL_C:
                _leave("left at once; the same command goes on from the last checkpoint", _LEFT_AT_ONCE)
            self._first_ctrl_c = self._first_ctrl_c or now
        name = "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
        self.request(name)
        if not self._held:
            _leave(f"preempted by {name} before training; the same command begins again", Preempted.exit_code)


@contextlib.contextmanager
def forking_workers() -> Iterator[None]:
    """Around the start of processes that load data: signals wait there until `leave_signals_to_the_parent`."""
    global _workers_are_born
    _workers_are_born = True
    try:
        yield
    finally:
        _workers_are_born = False


def leave_signals_to_the_parent(_worker: int) -> None:
    """For processes that load data: who stops a job signals all of its processes, and the parent still needs them."""
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    _unblock()  # what came in since the fork is dropped


@contextlib.contextmanager
def catch_signals() -> Iterator[Preemption]:
    """Turn the signals that ask to stop into a Preemption, until the block ends.

    A thread of its own takes them in, because Python runs no handler while the main thread waits in C. Outside the
    main thread no signal is caught.
    """
    preemption = Preemption()
    if threading.current_thread() is not threading.main_thread():
        yield preemption
        return
    receiver, sender = os.pipe()
    os.set_blocking(sender, False)
    caught = [number for number in _SIGNALS if not (number == signal.SIGHUP and _is_ignored(number))]
    before = {number: signal.signal(number, _do_nothing) for number in caught}
    wakeup_before = signal.set_wakeup_fd(sender, warn_on_full_buffer=False)
    _forget_in_forks()
    if "TORCHELASTIC_RUN_ID" in os.environ:
        _stop_when_the_launcher_dies()
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


def _is_ignored(number: int) -> bool:
    """As `nohup` does it, so that a run outlives its terminal."""
    return signal.getsignal(number) is signal.SIG_IGN


def _stop_when_the_launcher_dies() -> None:
    """Or its processes would train on, alone, beside those that a second launcher starts. Linux only."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _listen(receiver: int, preemption: Preemption) -> None:
    while _END not in (numbers := os.read(receiver, 64)):
        for number in numbers:
            if number in _SIGNALS:
                preemption.receive(number)


def _leave(line: str, code: int) -> None:
    """End the process from outside the main thread, wherever that stands."""
    try:
        if int(os.environ.get("RANK", 0)) == 0:
            sys.stdout.flush()
            print(line, file=sys.stderr, flush=True)
    finally:  # also where nobody reads it any more
        os._exit(code)


def _do_nothing(_number: int, _frame: object) -> None:
    """A handler must be set for the signal to be passed on."""


_forks_forget = False
_workers_are_born = False


def _forget_in_forks() -> None:
    """Worker processes end as their parent says, and must not write into its pipe when they are told to."""
    global _forks_forget
    if not _forks_forget:
        os.register_at_fork(before=_block, after_in_parent=_unblock, after_in_child=_reset_in_child)
        _forks_forget = True


def _block() -> None:
    """A child that is told to end before it has forgotten would take it for a request to its parent."""
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)


def _unblock() -> None:
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)


def _reset_in_child() -> None:
    if signal.getsignal(signal.SIGTERM) is _do_nothing:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        for number in (signal.SIGINT, signal.SIGHUP):  # the terminal tells all processes, and the parent decides
            signal.signal(number, signal.SIG_IGN)
    if not _workers_are_born:
        _unblock()
