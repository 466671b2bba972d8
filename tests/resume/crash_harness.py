"""Processes that begin where the imports are done: each is forked from this one and runs the command of driver.py.

Requests come as lines of JSON on standard input, answers go to standard output: `{"pid": ...}` once a process was
started, `{"pid": ..., "status": ...}` once it has ended. When standard input ends, whatever still runs is killed.
"""

import atexit
import contextlib
import gc
import importlib
import json
import os
import select
import signal
import sys
import threading
import traceback
from pathlib import Path
from typing import Any

import driver

import trainer_loop.assembly  # noqa: F401 - and with it nearly all that a run imports


def serve() -> dict[str, Any] | None:
    """Until standard input ends; returns in every process that is started, with the request it was started by."""
    receiver, sender = os.pipe()
    os.set_blocking(receiver, False)
    os.set_blocking(sender, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(sender, warn_on_full_buffer=False)
    running: set[int] = set()
    unread = b""
    while True:
        ready, _, _ = select.select([0, receiver], [], [])
        if receiver in ready:
            os.read(receiver, 4096)
            _reap(running)
        if 0 not in ready:
            continue
        block = os.read(0, 1 << 16)
        if not block:
            for pid in running:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(pid, signal.SIGKILL)
            return None
        *lines, unread = (unread + block).split(b"\n")
        for line in lines:
            request = json.loads(line)
            if "preload" in request:
                _preload(request["preload"])
                continue
            gc.freeze()  # or every child would copy the pages of all that is imported, when it ends
            pid = os.fork()
            if pid == 0:
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                os.close(receiver)
                os.close(sender)
                return request
            with contextlib.suppress(PermissionError, ProcessLookupError):
                os.setpgid(pid, pid)  # it does so itself too: whoever reads the answer may kill the group
            running.add(pid)
            _answer({"pid": pid})


def _reap(running: set[int]) -> None:
    for pid in list(running):
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            running.remove(pid)
            _answer({"pid": pid, "status": os.waitstatus_to_exitcode(status)})


def _answer(answer: dict[str, Any]) -> None:
    os.write(1, json.dumps(answer).encode() + b"\n")


def _preload(names: list[str]) -> None:
    for name in names:
        with contextlib.suppress(Exception):  # what only seems to be a module
            importlib.import_module(name)
    _answer({"preloaded": len(names)})


def become(request: dict[str, Any]) -> int:
    """The command, in a process and a process group of its own."""
    os.setpgid(0, 0)
    for number, path, flags in [
        (0, os.devnull, os.O_RDONLY),
        (1, request["out"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC),
        (2, request["err"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC),
    ]:
        opened = os.open(path, flags, 0o644)
        os.dup2(opened, number)
        os.close(opened)
    os.chdir(request["directory"])
    sys.path.insert(0, request["directory"])  # as `python -m` does
    os.environ.update(request["environment"])
    sys.argv = ["driver.py", *request["arguments"]]
    known = set(sys.modules)
    code = driver.main()
    if request["learn"]:
        Path(request["learn"]).write_text(json.dumps(sorted(set(sys.modules) - known)))
    return code


def end(code: int) -> None:
    """As the interpreter ends, but for taking every module apart, which costs half a second here."""
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except OSError:
        code = 120
    os._exit(code)


if __name__ == "__main__":
    born_by = serve()
    if born_by is not None:
        try:
            exit_code = become(born_by)
        except BaseException:  # noqa: BLE001 - as the interpreter does it
            traceback.print_exc()
            exit_code = 1
        end(exit_code)
