"""The run directory: the only place that spells a path, and the record of what the run ran on."""

import json
import os
import platform
import shutil
import sys
from collections.abc import Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from trainer_loop.errors import UserError

_PACKAGES = (
    "trainer_loop",
    "torch",
    "accelerate",
    "transformers",
    "datasets",
    "evaluate",
    "tokenizers",
    "safetensors",
    "numpy",
)


class RunDir:
    """Everything one run leaves behind, by name."""

    def __init__(self, root: str | Path):
        self.root = Path(root)

    @property
    def config(self) -> Path:
        return self.root / "config.yaml"

    @property
    def environment(self) -> Path:
        return self.root / "environment.json"

    @property
    def metrics(self) -> Path:
        return self.root / "metrics.jsonl"

    @property
    def log(self) -> Path:
        return self.root / "train.log"

    @property
    def status(self) -> Path:
        """How the last command on this run ended, for scripts: a launcher may not pass an exit code on."""
        return self.root / "status.json"

    @property
    def lock(self) -> Path:
        """Held by the process that trains here."""
        return self.root / ".lock"

    @property
    def checkpoints(self) -> Path:
        return self.root / "checkpoints"

    @property
    def model(self) -> Path:
        return self.root / "model"

    @property
    def export_record(self) -> Path:
        """Written with the exported model: what it was trained for, and at which step."""
        return self.model / EXPORT_RECORD

    @property
    def predictions(self) -> Path:
        return self.root / "predictions"

    def make(self) -> None:
        """Raises UserError where it is not there and cannot be made."""
        try:
            self.root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"run_dir: {self.root} cannot be written: {error.strerror}; choose another") from error

    def checkpoint(self, step: int) -> Path:
        return self.checkpoints / f"step-{step:08d}"


EXPORT_RECORD = "trainer_loop.json"


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write beside and rename, so that a reader never sees half a file."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def is_disk_error(error: Exception) -> bool:
    """Whether the file system refused; torch and safetensors have words of their own for it."""
    if isinstance(error, OSError):
        return True
    signs = ("No space left", "PytorchStreamWriter", "unexpected pos", "Read-only file system", "file write failed")
    return any(sign in str(error) for sign in (*signs, "I/O error", "No such file or directory"))


def explain_disk_error(error: Exception, place: Path) -> str:
    """`No space left on device (3 MB free in runs/imdb)`: what the writers of torch and safetensors hide."""
    existing = next(path for path in (place, *place.absolute().parents) if path.is_dir())
    free = shutil.disk_usage(existing).free / 2**20
    cause = error.strerror if isinstance(error, OSError) and error.strerror else "the file system refused"
    return f"{cause} ({free:,.1f} MB free in {place})"


def flush(paths: Iterable[Path]) -> None:
    """To the disk itself: a rename must not be on disk before what it names."""
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def describe_environment(*, device: str, num_processes: int, precision: str) -> dict[str, Any]:
    """Versions, hardware and command of this run, for whoever reads its numbers later."""
    import torch

    return {
        "command": sys.argv,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": device,
        "device_name": torch.cuda.get_device_name()
        if device.startswith("cuda")
        else torch.cpu.get_capabilities().get("cpu_name"),
        "num_processes": num_processes,
        "num_threads": torch.get_num_threads(),
        "precision": precision,
        "versions": package_versions(),
    }


def package_versions() -> Mapping[str, str]:
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:  # run from a source tree that was never installed
            versions[package] = "not installed"
    return versions
