"""One side of a benchmark in a Python process of its own: threads, precision and memory of another cannot leak in."""

import importlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

_LINES_OF_FAILURE = 60  # a launcher adds many of its own


def call(
    function: str,
    arguments: Mapping[str, Any],
    *,
    launcher: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
) -> Any:
    """What `package.module:function` returns in a process of its own; arguments and result are plain JSON.

    launcher: words between `python -m` and this module, such as accelerate's; the result is that of process 0.
    Raises RuntimeError with the end of its output where the process fails.
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
    """Where a child finds these benchmarks, wherever it is started."""
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
