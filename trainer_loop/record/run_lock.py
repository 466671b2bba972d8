"""Who works in a run directory, and how the last one there ended: `.lock` and `status.json`."""

import contextlib
import fcntl
import os
import socket
import time
from pathlib import Path
from typing import IO

from trainer_loop.errors import UserError
from trainer_loop.record.run_dir import RunDir, describe_refusal, read_json_object, write_json

_SECONDS_TO_WAIT = 10.0  # one that was just told to stop may still be saving


class RunDirInUse(UserError):
    """Another process trains in the run directory."""


class RunLock:
    """One process's claim on a run directory; where it is not enabled (not process 0, or a dry run) it does nothing.

    Only once it is taken does what is read in the directory hold: nobody else changes it.
    """

    def __init__(self, run_dir: RunDir, *, enabled: bool):
        self.run_dir = run_dir
        self.enabled = enabled
        self._lock: IO[bytes] | None = None
        self._refusal: str | None = None  # why the lock could not be opened
        self._made: list[Path] = []  # folders made by `make`, the deepest first, while nothing is in them
        self._has_begun = False

    def acquire(self) -> None:
        """Keep others out until `release`, or the end of this process. A directory that is not there is not made.

        Raises:
            RunDirInUse: another process has it, and keeps it for some seconds more.
        """
        until = time.monotonic() + _SECONDS_TO_WAIT
        while self.enabled and self._lock is None and self._refusal is None and self.run_dir.exists():
            try:
                lock = self.run_dir.lock.open("a+b", buffering=0)
            except OSError as error:
                if self.run_dir.exists():  # else who made the directory has just removed it again
                    self._refusal = describe_refusal(error, self.run_dir.lock)  # see `begin`: a finished run is read
            else:
                self._try(lock, until=until)

    def _try(self, lock: IO[bytes], *, until: float) -> None:
        """Keep the lock if nobody has it. until: when waiting for its holder ends."""
        if not _try_to_lock(lock):
            lock.seek(0)
            holder = lock.read(200).decode(errors="replace").strip() or "another process"
            lock.close()
            if time.monotonic() > until:
                raise RunDirInUse(
                    f"run_dir: {self.run_dir.root} is in use by {holder}; wait for it, stop it, or choose another"
                )
            time.sleep(0.2)
        elif not _is_at(lock, self.run_dir.lock):
            lock.close()  # who had it has removed it
        else:
            self._lock = lock
            with contextlib.suppress(OSError):  # on a full disk: it is locked all the same
                lock.truncate(0)
                lock.write(f"process {os.getpid()} on {socket.gethostname()}\n".encode())

    def make(self) -> None:
        """Take the directory, and make it first where it is not there.

        Raises:
            RunDirInUse: another process has it.
            UserError: it cannot be made, or holds what stands in the way of a run.
        """
        while self.enabled and self._lock is None and self._refusal is None:
            self._made = self.run_dir.make() or self._made
            self.acquire()
        if self.enabled:
            self.run_dir.check()

    def begin(self) -> None:
        """The run is under way: how the one before has ended no longer holds.

        Raises:
            UserError: the directory cannot be written.
        """
        if not self.enabled:
            return
        if self._refusal is not None:
            raise UserError(f"run_dir: {self._refusal}")
        try:
            self.run_dir.status.unlink(missing_ok=True)
        except OSError as error:
            raise UserError(f"run_dir: {describe_refusal(error, self.run_dir.status)}") from error
        self._has_begun = True

    def end(self, ended: str, *, exit_code: int, step: int | None) -> None:
        """For scripts, since a launcher may not pass an exit code on. Only in a directory that a run has made.

        step: None where this command has trained nothing.
        """
        if not self.enabled or not self.run_dir.exists() or (self._made and not self._has_begun):
            return
        with contextlib.suppress(OSError):  # a disk that is full has been told of already
            try:
                before = read_json_object(self.run_dir.status)
            except (OSError, ValueError):  # there is none, or it is damaged
                before = {}
            status = {"ended": ended, "exit_code": exit_code, "step": before.get("step") if step is None else step}
            if status != before:
                write_json(self.run_dir.status, status)

    def release(self) -> None:
        """Let others in. A directory that was made for a run that never began is removed again."""
        if self._lock is None:
            return
        if self._made and not self._has_begun:
            with contextlib.suppress(OSError):  # something else is in it by now
                self.run_dir.lock.unlink(missing_ok=True)
                for folder in self._made:
                    folder.rmdir()
        self._lock.close()
        self._lock = None


def _is_at(file: IO[bytes], path: Path) -> bool:
    """Whether an open file is still the one that its path names."""
    try:
        there = path.stat()
    except OSError:
        return False
    return os.path.samestat(there, os.fstat(file.fileno()))


def _try_to_lock(file: IO[bytes]) -> bool:
    """A lock of the process: the kernel drops it with the process, and workers that are forked do not hold it."""
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError:  # a file system without locks
        return True
    return True
