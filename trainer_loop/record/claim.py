"""Who works in a run directory, and how the last one there ended: `.lock` and `status.json`."""

import contextlib
import fcntl
import os
import socket
import time
from typing import IO

from trainer_loop.errors import UserError
from trainer_loop.record.run_dir import RunDir, read_json, write_json

_SECONDS_TO_WAIT = 10.0  # one that was just told to stop may still be saving


class RunDirInUse(UserError):
    """Another process trains in the run directory."""


class RunClaim:
    """One process's claim on a run directory; where it is not enabled (not process 0, or a dry run) it does nothing."""

    def __init__(self, run_dir: RunDir, *, enabled: bool):
        self.run_dir = run_dir
        self.enabled = enabled
        self._lock: IO[str] | None = None

    def take(self) -> None:
        """Keep others out until `release`, or the end of this process. A directory that is not there is free.

        Raises RunDirInUse.
        """
        if not self.enabled or self._lock is not None or not self.run_dir.root.is_dir():
            return
        try:
            lock = self.run_dir.lock.open("a+", encoding="utf-8")
        except OSError:  # a directory that cannot be written is told of when it is
            return
        until = time.monotonic() + _SECONDS_TO_WAIT
        while not _try_to_lock(lock):
            if time.monotonic() > until:
                lock.seek(0)
                raise RunDirInUse(
                    f"run_dir: {self.run_dir.root} is in use by {lock.read().strip() or 'another process'}; "
                    "wait for it, stop it, or choose another"
                )
            time.sleep(0.2)
        lock.truncate(0)
        lock.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        lock.flush()
        self._lock = lock

    def release(self) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def begin(self) -> None:
        """The run is under way: how the one before has ended no longer holds."""
        if self.enabled:
            self.run_dir.status.unlink(missing_ok=True)

    def end(self, ended: str, *, exit_code: int, step: int | None) -> None:
        """For scripts, since a launcher may not pass an exit code on. Only in a directory that a run has made.

        step: None where this command has trained nothing.
        """
        if not self.enabled or not self.run_dir.root.is_dir():
            return
        with contextlib.suppress(OSError):  # a disk that is full has been told of already
            before = read_json(self.run_dir.status) if self.run_dir.status.exists() else {}
            status = {"ended": ended, "exit_code": exit_code, "step": before.get("step") if step is None else step}
            if status != before:
                write_json(self.run_dir.status, status)


def _try_to_lock(file: IO[str]) -> bool:
    """A lock of the process: the kernel drops it with the process, and workers that are forked do not hold it."""
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError:  # a file system without locks
        return True
    return True
