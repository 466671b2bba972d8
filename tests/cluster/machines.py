"""Simulated machines, each with separate network and processes, and functions that read files of a run."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]

_NAMESPACES = ["unshare", "--net", "--mount", "--pid", "--fork", "--kill-child"]

# Ends with its standard input. So if the tests are killed, everything inside the machine ends too.
_INIT = """
set -e
read -r pid _ </proc/self/stat
mount -t proc proc /proc
mount -t tmpfs tmpfs /run
ip link set lo up
{setup}
echo "$pid"
cat
true
"""


def require(*programs: str) -> None:
    """Skip the test if it cannot run here; fail it if TRAINER_LOOP_REQUIRE_CLUSTER_TESTS=1."""
    missing = [program for program in programs if shutil.which(program, path=_path()) is None]
    if missing:
        reason = f"not installed: {', '.join(missing)} (Debian: apt-get install slurm-wlm munge iproute2)"
    elif os.geteuid() != 0:
        reason = "needs root, to make network namespaces"
    elif subprocess.run([*_NAMESPACES, "true"], capture_output=True).returncode:
        reason = "needs the right to make network namespaces (in a container: --privileged)"
    else:
        return
    if os.environ.get("TRAINER_LOOP_REQUIRE_CLUSTER_TESTS") == "1":
        pytest.fail(reason)
    pytest.skip(reason)


def _path() -> str:
    return f"{Path(sys.executable).parent}:{os.environ['PATH']}:/usr/sbin:/sbin"


class Machine:
    """Separate namespaces for network, mounts and processes. All processes inside end when it is switched off.

    Args:
        directory: working directory of commands.
        setup: shell commands to run inside before all others.
    """

    def __init__(self, directory: Path, *, setup: str = "", environment: dict[str, str] | None = None):
        self.directory = directory
        self.environment = {**os.environ, "PATH": _path(), "OMP_NUM_THREADS": "1", **(environment or {})}
        with tempfile.TemporaryFile("w+") as stderr:
            self._init = subprocess.Popen(
                [*_NAMESPACES, "bash", "-c", _INIT.format(setup=setup)],
                env=self.environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
            )
            assert self._init.stdout is not None
            first_line = self._init.stdout.readline()
            if not first_line:
                self._init.communicate()
                stderr.seek(0)
                raise RuntimeError(f"the machine does not start: {stderr.read()}")
        self.pid = int(first_line)

    def start(self, *command: str | Path, output: Path) -> subprocess.Popen[str]:
        """Start a command, with its output appended to the file `output`."""
        with output.open("a") as stdout:
            return subprocess.Popen(
                self._inside(command),
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=subprocess.STDOUT,
                text=True,
            )

    def run(self, *command: str | Path) -> str:
        result = subprocess.run(
            self._inside(command),
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert result.returncode == 0, f"{command}: {result.stdout}{result.stderr}"
        return result.stdout

    def switch_off(self) -> None:
        if self._init.returncode is not None:  # it is already off
            return
        os.kill(self.pid, signal.SIGKILL)  # the first process inside; with it all others end
        self._init.communicate()

    def _inside(self, command: tuple[str | Path, ...]) -> list[str]:
        enter = ["nsenter", "--target", str(self.pid), "--net", "--mount", "--pid", "--"]
        return [*enter, "env", f"--chdir={self.directory}", *map(str, command)]


def wait_until(
    condition: Callable[[], Any], what: str, *, output: Path | None = None, seconds: float = 300, every: float = 0.05
) -> None:
    """Check the condition every `every` seconds; fail after `seconds`, with the content of `output`."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            text = output.read_text() if output is not None and output.exists() else ""
            pytest.fail(f"waited {seconds:g} seconds in vain for: {what}\n{text}")
        time.sleep(every)


def count_steps(run: Path) -> int:
    """Return the last step in metrics.jsonl; 0 if there is none yet."""
    with suppress(FileNotFoundError, IndexError):
        return int(json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])["step"])
    return 0


def read_status(run: Path) -> dict[str, Any]:
    return dict(json.loads((run / "status.json").read_text()))


def read_weights(run: Path) -> bytes:
    return (run / "model" / "model.safetensors").read_bytes()
