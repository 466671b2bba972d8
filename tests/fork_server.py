"""Python processes that start with the imports already done.

The imports of `python -m trainer_loop.run` take ten seconds. The fork server imports the same modules once. Each
process that a test starts here is a fork of the server, with its own command line, environment, directory, umask and
standard streams. It can be killed like any other process, and ends with an exit code or by a signal.

Four things differ from a process of the shell: it leads its own process group; it has the server's seed of `hash()`; it
does not clean up its modules at exit; and it is killed when the tests end. A test of process start, imports, memory or
launcher needs a real process.
"""

import atexit
import contextlib
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import threading
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

# Modules that the commands import, at the start or once they know the task and the model.
_MODULES = """
trainer_loop.cli.run trainer_loop.cli.predict trainer_loop.assembly trainer_loop.description trainer_loop.predictor
trainer_loop.tasks.sequence_classification trainer_loop.tasks.causal_lm trainer_loop.tasks.token_classification
transformers.models.bert.modeling_bert transformers.optimization peft sklearn.metrics torch.profiler
torch.utils.serialization trainer_loop.report.run_report trainer_loop.quickstart.reviews
""".split()  # noqa: SIM905

# Variables that no module reads at import. If another variable differs, the process needs another server.
_READ_LATE = {
    *("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"),
    *("TRAINER_LOOP_CACHE", "PYTEST_CURRENT_TEST", "TOKENIZERS_PARALLELISM", "ONEDNN_PRIMITIVE_CACHE_CAPACITY"),
    *("KMP_INIT_AT_FORK", "KMP_DUPLICATE_LIB_OK"),  # sklearn sets them, for another OpenMP than torch's
    *("FAULT", "FAULT_AT", "FAULT_RANK", "FAULT_ONCE", "RECORD", "START", "CLAIM_SECONDS"),  # of resume/driver.py
}
_LARGEST_REQUEST = 1 << 17  # bytes

_servers: dict[frozenset[tuple[str, str]], tuple[socket.socket, "subprocess.Popen[bytes]"]] = {}


# ------------------------------------------------------------------------------------------------ what tests call


class Process:
    """A started process, with the methods of `subprocess.Popen` that tests use."""

    def __init__(self, arguments: Sequence[str], status: socket.socket):
        self.args = list(arguments)
        self.returncode: int | None = None  # negative: the signal that ended it
        self._status = status
        self.pid = self._receive()

    def _receive(self) -> int:
        block = self._status.recv(64)
        assert block, "the fork server has ended"
        return int(block)

    def poll(self) -> int | None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Return the exit code. Raises subprocess.TimeoutExpired after `timeout` seconds."""
        if self.returncode is None:
            if not select.select([self._status], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(self.args, timeout or 0.0)
            self.returncode = self._receive()
            self._status.close()
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):  # it has ended, and its exit code has not arrived yet
                os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def kill_group(self) -> None:
        """Kill the process and all its children."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)


def start(
    arguments: Sequence[str],
    *,
    cwd: str | Path,
    stdout: IO[Any] | int,
    stderr: IO[Any] | int,
    env: dict[str, str] | None = None,
) -> Process:
    """Start `python` with these arguments, `-m module ...` or `file.py ...`; standard input is empty."""
    env = dict(os.environ) if env is None else env
    umask = os.umask(0)
    os.umask(umask)
    request = {"arguments": list(arguments), "cwd": str(cwd), "environment": env, "umask": umask}
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    streams = [stream if isinstance(stream, int) else stream.fileno() for stream in (stdout, stderr)]
    with theirs:
        socket.send_fds(_find_server(env), [json.dumps(request).encode()], [*streams, theirs.fileno()])
    return Process(arguments, ours)


def run(
    arguments: Sequence[str], *, cwd: str | Path, env: dict[str, str] | None = None, timeout: float = 300
) -> "subprocess.CompletedProcess[str]":
    """Like `subprocess.run` with capture_output and text. Returns when no process has the output open for writing."""
    (out, into_out), (err, into_err) = os.pipe(), os.pipe()
    try:
        process = start(arguments, cwd=cwd, env=env, stdout=into_out, stderr=into_err)
    finally:
        os.close(into_out)
        os.close(into_err)
    timer = threading.Timer(timeout, process.kill_group)
    timer.start()
    error_texts: list[str] = []
    with open(out) as output, open(err) as errors:  # noqa: PTH123 - they are file descriptors
        reader = threading.Thread(target=lambda: error_texts.append(errors.read()))
        reader.start()
        printed = output.read()
        reader.join()
    code = process.wait()
    timer.cancel()
    return subprocess.CompletedProcess(process.args, code, printed, error_texts[0])


def _find_server(env: dict[str, str]) -> socket.socket:
    """Return the server for processes with this environment; start it at the first call."""
    key = frozenset((name, value) for name, value in env.items() if name not in _READ_LATE)
    if key not in _servers:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            server = subprocess.Popen(
                [sys.executable, __file__, str(theirs.fileno())],
                env=dict(key),
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,  # Ctrl-C does not reach it; it ends when the tests close the socket
            )
        _servers[key] = ours, server
    return _servers[key][0]


@atexit.register
def _close() -> None:
    for channel, server in _servers.values():
        channel.close()
        server.wait(30)


# -------------------------------------------------------------------------------------------------- in the server


def serve(channel: socket.socket) -> dict[str, Any] | None:
    """Fork for each request until the channel is closed. Returns the request in the fork, None in the server."""
    running: dict[int, tuple[int, socket.socket]] = {}  # pidfd -> pid, where its exit code goes
    while True:
        for ready in select.select([channel, *running], [], [])[0]:
            if ready is not channel:
                pid, status = running.pop(ready)
                os.close(ready)
                _send(status, os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
                status.close()
                continue
            block, descriptors, _, _ = socket.recv_fds(channel, _LARGEST_REQUEST, 3)
            if not block:
                for pid, _ in running.values():
                    os.killpg(pid, signal.SIGKILL)
                return None
            status = socket.socket(fileno=descriptors.pop())
            assert _count_threads() == 1, "a fork has only one of several threads"
            gc.freeze()  # without this, garbage collection in a fork would copy the memory of all imports
            pid = os.fork()
            if pid == 0:
                os.setpgid(0, 0)
                for number, descriptor in enumerate(descriptors, start=1):
                    os.dup2(descriptor, number)
                for opened in (*running, *descriptors):
                    os.close(opened)
                for connection in (channel, status, *(connection for _, connection in running.values())):
                    connection.close()
                return dict(json.loads(block))
            with contextlib.suppress(PermissionError, ProcessLookupError):
                os.setpgid(pid, pid)  # also here, because the test may kill the group at once
            for descriptor in descriptors:
                os.close(descriptor)
            running[os.pidfd_open(pid)] = pid, status
            _send(status, pid)


def _count_threads() -> int:
    """Return the number of threads of this process, without that of pyarrow's allocator, which supports forks."""
    names = [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]
    return len(names) - names.count("jemalloc_bg_thd")


def _send(status: socket.socket, number: int) -> None:
    with contextlib.suppress(BrokenPipeError):  # the test no longer waits
        status.send(str(number).encode())


def become(request: dict[str, Any]) -> None:
    """Run the module or file of the request, as `python` does."""
    os.environ.clear()
    os.environ.update(request["environment"])
    os.umask(request["umask"])
    os.chdir(request["cwd"])
    for generator in (sys.modules["numpy"].random, sys.modules["torch"]):  # Python seeds its own at a fork
        generator.seed()
    first, *others = request["arguments"]
    if first == "-m":
        from trainer_loop.search_path import leave_out_current_directory

        module, *others = others
        sys.argv, sys.path[0] = ["-m"], request["cwd"]
        leave_out_current_directory()  # as in a process that imports trainer_loop now
        sys.argv = [module, *others]
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    else:
        sys.argv, sys.path[0] = [first, *others], str(Path(first).absolute().parent)
        runpy.run_path(first, run_name="__main__")


def end(error: BaseException | None) -> None:
    """End this process as Python does, without the clean-up of modules, which takes a second."""
    code = 0
    if isinstance(error, SystemExit):
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
        if isinstance(error.code, str):
            print(error.code, file=sys.stderr)
    elif error is not None:
        code = 1
        traceback.print_exception(error)
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except OSError:
        code = 120
    if isinstance(error, KeyboardInterrupt):
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    os._exit(code)


def main() -> None:
    channel = socket.socket(fileno=int(sys.argv[1]))
    from trainer_loop.runtime.imports import importing_torch

    with importing_torch():
        for name in _MODULES:
            importlib.import_module(name)
    # Results that every start would compute again: a large table, the defaults of a config, patterns that parse
    # versions, the template of the report, the reviews of the quickstart and of the examples.
    sys.modules["transformers.conversion_mapping"].get_checkpoint_conversion_mapping("bert")
    sys.modules["trainer_loop.config.load"].read_config(None, [])
    sys.modules["trainer_loop.record.run_dir"].package_versions()
    sys.modules["trainer_loop.report.page"].write_page("", [])
    sys.modules["trainer_loop.quickstart.reviews"].train()
    request = serve(channel)
    if request is None:
        return
    failure: BaseException | None = None
    try:
        become(request)
    except BaseException as error:  # noqa: BLE001 - as the interpreter does it
        failure = error
    end(failure)


if __name__ == "__main__":
    main()
