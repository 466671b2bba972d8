"""The run lock (`.lock`) and the status of the last command (`status.json`) of a run directory."""

import contextlib
import fcntl
import os
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from trainer_loop.errors import UserError
from trainer_loop.record.run_dir import RunDir, describe_refusal, read_json_object, write_json
from trainer_loop.runtime.plain_json import check_fields

_SECONDS_TO_WAIT = 10.0  # a process that was just asked to stop may still be saving


class RunDirInUse(UserError):
    """Another process trains, or another run has started, in the run directory."""


class RunLock:
    """The run lock: only one process works in a run directory.

    Base decisions on the directory only while the lock is held: before that, another process may change it.
    """

    def __init__(self, run_dir: RunDir, *, enabled: bool):
        self.run_dir = run_dir
        self.enabled = enabled  # False on processes other than 0 and in a dry run: no method does anything
        self._lock: IO[bytes] | None = None
        self._refusal: str | None = None  # why the lock could not be opened
        self._created: list[Path] = []  # folders created by `make`, deepest first
        self._has_started = False

    def acquire(self) -> None:
        """Take the lock until `release` or the end of this process. A missing run directory is not created."""
        until = time.monotonic() + _SECONDS_TO_WAIT
        while self.enabled and self._lock is None and self._refusal is None and self.run_dir.exists():
            try:
                lock = self.run_dir.lock.open("a+b", buffering=0)
            except OSError as error:
                if self.run_dir.exists():  # otherwise another process has just removed the directory
                    # `begin` reports it: a finished run is only read.
                    self._refusal = describe_refusal(error, self.run_dir.lock)
            else:
                self._try(lock, until=until)

    def _try(self, lock: IO[bytes], *, until: float) -> None:
        """Keep the open lock file if no other process holds the lock. until: the time when the waiting ends."""
        if not try_to_lock(lock):
            lock.seek(0)
            holder = lock.read(200).decode(errors="replace").strip() or "another process"
            lock.close()
            if time.monotonic() > until:
                raise RunDirInUse(
                    f"run_dir: {self.run_dir.root} is in use by {holder}; wait for it, stop it, or choose another"
                )
            time.sleep(0.2)
        elif not _is_at(lock, self.run_dir.lock):
            lock.close()  # the last holder has removed the file
        else:
            self._lock = lock
            with contextlib.suppress(OSError):  # a full disk does not affect the lock
                lock.truncate(0)
                lock.write(f"process {os.getpid()} on {socket.gethostname()}\n".encode())

    def make(self) -> None:
        """Create the run directory if it is missing, and take the lock. Raises UserError if it is unfit for a run."""
        while self.enabled and self._lock is None and self._refusal is None:
            self._created = self.run_dir.make() or self._created
            self.acquire()
        if self.enabled:
            self.run_dir.check()

    def begin(self) -> None:
        """Remove the status of the last command. Raises UserError if the directory cannot be written."""
        if not self.enabled:
            return
        if self._refusal is not None:
            raise UserError(f"run_dir: {self._refusal}")
        try:
            self.run_dir.status.unlink(missing_ok=True)
        except OSError as error:
            raise UserError(f"run_dir: {describe_refusal(error, self.run_dir.status)}") from error
        self._has_started = True

    def end(self, ended: str, *, exit_code: int, step: int | None) -> None:
        """Write status.json, if a run has created the directory. step: the last; None: this command did not train."""
        if not self.enabled or not self.run_dir.exists() or (self._created and not self._has_started):
            return
        with contextlib.suppress(OSError):  # a full disk was already reported
            try:
                before = read_status(self.run_dir)
            except (OSError, ValueError):  # missing or damaged
                before = {}
            status = {"ended": ended, "exit_code": exit_code, "step": before.get("step") if step is None else step}
            if status != before:
                write_json(self.run_dir.status, status)

    def release(self) -> None:
        """Release the lock. A directory is removed if it was created for a run that did not start."""
        if self._lock is None:
            return
        if self._created and not self._has_started:
            with contextlib.suppress(OSError):  # the folder is no longer empty
                self.run_dir.lock.unlink(missing_ok=True)
                for folder in self._created:
                    folder.rmdir()
        self._lock.close()
        self._lock = None


@dataclass
class _Status:
    """The content of status.json."""

    exit_code: int
    ended: str = ""
    step: int | None = None


def read_status(run_dir: RunDir) -> dict[str, Any]:
    """Read status.json. Raises OSError if it cannot be read, ValueError if `RunLock.end` did not write it."""
    status = read_json_object(run_dir.status)
    check_fields(_Status, status)
    return status


def _is_at(file: IO[bytes], path: Path) -> bool:
    """Return whether an open file is still the file at this path."""
    with contextlib.suppress(OSError):
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    return False


def try_to_lock(file: IO[bytes]) -> bool:
    """Take a POSIX record lock: the kernel releases it with the process, and forked workers do not inherit it."""
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:  # other errors come from a file system without locks
        return not isinstance(error, BlockingIOError | PermissionError)
    return True
