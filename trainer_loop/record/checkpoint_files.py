"""A checkpoint on disk: its files, the manifest that seals them, where it lies, and what is wrong with it."""

import errno
import json
import os
import re
import shutil
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trainer_loop.record.run_dir import RunDir

MANIFEST = "manifest.json"
STATE = "state.json"
SCHEDULER = "scheduler.bin"  # this and the next: as accelerate calls them
SCALER = "scaler.bin"
AVERAGES = "averages.safetensors"
KEPT = "kept.bin"  # what a loop of one's own keeps besides
_ALWAYS = {"model.safetensors", "optimizer.bin", SCHEDULER, STATE}
_LOADED = {*_ALWAYS, SCALER, AVERAGES, KEPT}
_NAME = re.compile(r"step-\d+")
_DAMAGED = ".damaged"


def list_checkpoints(run_dir: RunDir) -> list[Path]:
    """Checkpoint directories, oldest step first; not verified."""
    paths = run_dir.checkpoints.glob("step-*")
    return sorted(path for path in paths if _NAME.fullmatch(path.name) and path.is_dir())


def list_set_aside(run_dir: RunDir) -> list[Path]:
    """Damaged checkpoints that were renamed so that nothing goes on from them."""
    return sorted(run_dir.checkpoints.glob(f"step-*{_DAMAGED}"))


def set_aside(path: Path) -> Path:
    """Rename a damaged checkpoint, so that nothing goes on from it; one set aside before it makes way."""
    target = path.with_name(path.name + _DAMAGED)
    shutil.rmtree(target, ignore_errors=True)
    os.replace(path, target)
    return target


def find_fault(path: Path) -> str | None:
    """What is wrong with a checkpoint, or None: every file of its manifest has its size and checksum."""
    if not path.is_dir():
        return "is no directory"
    try:
        manifest = open_sealed(path / MANIFEST)
        files = manifest["files"].items()
    except (OSError, ValueError, KeyError, AttributeError):
        return f"{MANIFEST} is missing or damaged"
    names = {name for name, _ in files}
    unlisted = {file.name for file in path.iterdir() if file.name in _LOADED} - names
    if unlisted or not names >= _ALWAYS or any(Path(name).name != name for name in names):
        return f"{MANIFEST} does not list what a checkpoint consists of"
    for name, expected in files:
        file = path / name
        if not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size != expected["bytes"]:
            return f"{name} has {file.stat().st_size} bytes instead of {expected['bytes']}"
        if compute_checksum(file) != expected["crc32"]:
            return f"{name} was altered: its checksum differs"
    return None


def find_changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """What each name was and is, for those that differ. Values are compared as JSON has them."""
    now = json.loads(json.dumps(now))
    return {name: (before.get(name), value) for name, value in now.items() if before.get(name) != value}


def describe_changes(changes: Mapping[str, tuple[Any, Any]]) -> str:
    """`seed was 42 and is 1, ...`"""
    return ", ".join(f"{name} was {old} and is {new}" for name, (old, new) in changes.items())


def seal(manifest: Mapping[str, Any]) -> str:
    """As JSON with a checksum over the text itself, so that no byte of it can change unseen."""
    text = json.dumps(manifest, indent=2, sort_keys=True)
    return json.dumps({**manifest, "crc32": f"{zlib.crc32(text.encode()):08x}"}, indent=2, sort_keys=True)


def open_sealed(path: Path) -> dict[str, Any]:
    """Raises ValueError where it is not as it was sealed."""
    text = path.read_text(encoding="utf-8")
    manifest = json.loads(text)
    if not isinstance(manifest, dict):
        raise ValueError("no manifest")
    manifest.pop("crc32", None)
    if seal(manifest) != text:
        raise ValueError("altered")
    return manifest


def compute_checksum(path: Path) -> str:
    value = 0
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            value = zlib.crc32(block, value)
    return f"{value:08x}"


def point(link: Path, target: Path) -> None:
    """Make `link` a relative symbolic link to its neighbour `target`, in one instant."""
    temporary = link.with_name(f".{link.name}.tmp")
    temporary.unlink(missing_ok=True)
    try:
        temporary.symlink_to(target.name)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP):
            raise
        return  # a file system without links: they are for people, nothing here follows them
    os.replace(temporary, link)
