"""Runs one side of a benchmark in its own Python process, so that threads, precision and memory are its own."""

import importlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

_LINES_OF_FAILURE = 60  # a launcher adds many lines


def call(
    function: str,
    arguments: Mapping[str, Any],
    *,
    launcher: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
) -> Any:
    """Call `package.module:function` in a new process.

    Args:
        function: the function.
        arguments: its arguments; they and the result are plain JSON.
        launcher: words between `python -m` and this module, such as those of accelerate; the result is that of process
            0.
        environment: environment variables of the process.

    Raises:
        RuntimeError: the process failed; the message has the end of its output.
    """
    with tempfile.TemporaryDirectory() as directory:
        result = Path(directory) / "result.json"
        words = [sys.executable, "-m", *launcher, *(("-m",) if launcher else ()), __name__]
        done = subprocess.run(
            [*words, function, json.dumps(arguments), str(result)],
            env={**os.environ, "PYTHONPATH": module_path(), **(environment or {})},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        if done.returncode != 0 or not result.exists():
            ending = "\n".join(done.stdout.splitlines()[-_LINES_OF_FAILURE:])
            raise RuntimeError(f"{function} ended with exit code {done.returncode}:\n{ending}")
        return json.loads(result.read_text(encoding="utf-8"))


def module_path() -> str:
    """The path on which a child finds the benchmarks, whatever its current directory."""
    paths = [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    return os.pathsep.join(path for path in paths if path)


def main() -> None:
    function, arguments, path = sys.argv[1:]
    module, name = function.split(":")
    result = getattr(importlib.import_module(module), name)(**json.loads(arguments))
    if int(os.environ.get("RANK", 0)) == 0:
        Path(path).write_text(json.dumps(result), encoding="utf-8")


if __name__ == "__main__":
    main()
