"""The run directory: its paths, functions to write its files, and the record of the environment."""

import contextlib
import errno
import functools
import json
import os
import platform
import re
import shutil
import sys
import uuid
from collections.abc import Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from trainer_loop.config.named_sets import parse_set
from trainer_loop.config.secrets import mask_arguments
from trainer_loop.errors import UserError, in_one_line, refuse
from trainer_loop.runtime.plain_json import parse_json

EXPORT_RECORD = "trainer_loop.json"  # in model/: the task, the step and the settings of the training
SEARCH_PAGE = "search.html"  # in the directory of a search: its results

_PACKAGES = (
    *("trainer_loop", "torch", "accelerate", "transformers", "datasets", "evaluate", "tokenizers", "safetensors"),
    "numpy",
)
_REMEDIES = {
    errno.ENOSPC: "make room, and give the same command again",
    errno.EDQUOT: "make room, and give the same command again",
    errno.EROFS: "make it writable, and give the same command again",
    errno.EACCES: "change its permissions, and give the same command again",
    errno.EPERM: "change its permissions, and give the same command again",
    errno.EISDIR: "a folder is in its place: rename it",
    errno.EEXIST: "a file is in its place: rename it",
    errno.ENOTDIR: "a file is in the place of a folder on this path: rename it",
    errno.ENAMETOOLONG: "choose a shorter name",
}
# Parts of messages of torch, safetensors and tokenizers for errors of the file system.
_DISK_ERROR_TEXTS = (
    *("No space left", "PytorchStreamWriter", "unexpected pos", "Read-only file system", "file write failed"),
    *("I/O error", "No such file or directory"),
)


class RunDir:
    """The files and folders of one run, which lie in the directory `root`."""

    def __init__(self, root: str | Path):
        self.root = Path(root)
        self.config = self.root / "config.yaml"
        self.environment = self.root / "environment.json"
        self.metrics = self.root / "metrics.jsonl"
        self.log = self.root / "train.log"
        self.status = self.root / "status.json"  # how the last command ended, because a launcher may change exit codes
        self.lock = self.root / ".lock"  # see `RunLock`
        self.checkpoints = self.root / "checkpoints"
        self.model = self.root / "model"
        self.predictions = self.root / "predictions"  # of test sets; those of validation sets are in a subfolder
        self.profile = self.root / "profile"
        self.onnx = self.root / "onnx"
        self.report = self.root / "report.html"
        self.report_facts = self.root / "report.json"

    def exists(self) -> bool:
        """Return whether the run directory exists."""
        try:
            return self.root.is_dir()
        except OSError:  # for example, the name is too long
            return False

    def make(self) -> list[Path]:
        """Create the directory if it does not exist; returns the created folders, deepest first."""
        try:
            missing = [path for path in (self.root, *self.root.parents) if not path.exists()]
            self.root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"run_dir: {describe_refusal(error, self.root)}, or choose another") from error
        return missing

    def check(self) -> None:
        """Raise UserError if a folder has the name of a file of the run, or a file the name of a folder."""
        files = [self.lock, self.config, self.environment, self.status, self.metrics, self.log]
        files += [self.report, self.report_facts]
        folders = (self.checkpoints, self.model, self.predictions, self.profile)
        wrong = [(path, "a folder, in the place of a file") for path in files if path.is_dir()]
        wrong += [(path, "a file, in the place of a folder") for path in folders if path.is_file()]
        refuse([f"run_dir: {path} is {what}; rename it" for path, what in wrong])

    def predictions_of(self, name: str) -> Path:
        """Return the path of the predictions of a set, such as `test`, `test.hard` or `validation`."""
        split, part = parse_set(name)
        folder = self.predictions if split == "test" else self.predictions / split
        return folder / f"{part or split}.jsonl"

    def list_predictions(self) -> dict[str, Path]:
        """List the existing files of predictions, by the names of their sets."""
        tests, others = sorted(self.predictions.glob("*.jsonl")), sorted(self.predictions.glob("*/*.jsonl"))
        by_split = [("test", path) for path in tests] + [(path.parent.name, path) for path in others]
        return {split if path.stem == split else f"{split}.{path.stem}": path for split, path in by_split}

    def checkpoint(self, step: int) -> Path:
        """Return the directory of the checkpoint of a step."""
        return self.checkpoints / checkpoint_name(step)


def checkpoint_name(step: int) -> str:
    """Return the name of the checkpoint directory of a step."""
    return f"step-{step:08d}"


def read_json_object(path: Path) -> dict[str, Any]:
    """Read a JSON file. Raises OSError if it cannot be read, ValueError if it is not a JSON object in UTF-8."""
    value = parse_json(path.read_bytes().decode())
    if not isinstance(value, dict):
        raise ValueError(f"it holds a {type(value).__name__}, not an object")
    return value


def write_json(path: Path, value: Any) -> None:
    """Write a value as JSON, see `write_text`."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str, *, shared: bool = False) -> None:
    """Write a temporary file and rename it, so that readers never see a partial file.

    Args:
        shared: Other processes may write this file at the same time. A kill may then leave the temporary file.
    """
    temporary = path.with_name(f".{path.name}{f'-{uuid.uuid4().hex[:8]}' if shared else ''}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def remove(path: Path) -> None:
    """Remove a file, a folder or a link (not its target). Errors of the file system are ignored."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)


def is_disk_error(error: Exception) -> bool:
    """Return whether this is an error of the file system; torch, safetensors and tokenizers raise other classes."""
    return _find_errno(error) is not None or any(text in str(error) for text in _DISK_ERROR_TEXTS)


def _find_errno(error: Exception) -> int | None:
    if isinstance(error, OSError):
        return error.errno or 0
    match = re.search(r"\(os error (\d+)\)", str(error))  # in messages of libraries written in Rust
    return None if match is None else int(match[1])


def describe_refusal(error: OSError, path: Path) -> str:
    """Return cause and remedy: `runs/imdb/config.yaml cannot be written: No space left on device; make room, ...`."""
    return f"{path} cannot be written: {error.strerror or in_one_line(error)}; {find_remedy(error)}"


def find_remedy(error: Exception) -> str:
    """Return the remedy for an error of the file system."""
    return _REMEDIES.get(_find_errno(error) or 0, "see to it, and give the same command again")


def explain_disk_error(error: Exception, place: Path) -> str:
    """Return the cause, which torch and safetensors hide: `No space left on device (3 MB free in runs/imdb)`."""
    number = _find_errno(error)
    reason = error.strerror if isinstance(error, OSError) else number and os.strerror(number)
    cause = reason or "the file system refused"
    try:
        existing = next(path for path in (place, *place.absolute().parents) if path.is_dir())
        free = shutil.disk_usage(existing).free / 2**20
    except OSError:  # the place no longer exists or cannot be reached
        return f"{cause} ({place})"
    return f"{cause} ({free:,.1f} MB free in {place})"


def flush(paths: Iterable[Path]) -> None:
    """Flush files and folders to the disk: a rename must not reach the disk before the content."""
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def read_identity(run_dir: RunDir) -> str | None:
    """Return the identity of the last run that started in a directory; None if it is unknown."""
    try:
        run = read_json_object(run_dir.environment).get("run")
    except (OSError, ValueError):
        return None
    return run if isinstance(run, str) else None


def _name_program() -> list[str]:
    """Return the program as the user types it: `python -m trainer_loop.run` for our modules, else a path."""
    package, path = Path(__file__).parents[1], Path(sys.argv[0]).resolve()
    if not path.is_relative_to(package):
        return sys.argv[:1]
    module = ".".join((package.name, *path.relative_to(package).with_suffix("").parts))
    return ["python", "-m", module.removesuffix(".__main__")]


def describe_environment(*, run: str, device: str, num_processes: int, precision: str) -> dict[str, Any]:
    """Return identity, versions, hardware and command of this run."""
    import torch

    is_gpu = device.startswith("cuda")
    name = torch.cuda.get_device_name() if is_gpu else torch.cpu.get_capabilities().get("cpu_name")
    return {
        "run": run,
        "command": [*_name_program(), *mask_arguments(sys.argv[1:])],
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": device,
        "device_name": name,
        "num_processes": num_processes,
        "num_threads": torch.get_num_threads(),
        "precision": precision,
        "versions": package_versions(),
    }


@functools.cache
def package_versions() -> Mapping[str, str]:
    """Return the installed versions of the main packages."""
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:  # a source tree that was not installed
            versions[package] = "not installed"
    return versions
