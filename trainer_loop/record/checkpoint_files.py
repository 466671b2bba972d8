"""A checkpoint on disk: its files, its sealed manifest, its name, and the check for damage."""

import errno
import json
import os
import re
import zlib
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer_loop.config.secrets import find_secrets, name_sources
from trainer_loop.errors import in_one_line
from trainer_loop.record.run_dir import RunDir, checkpoint_name, read_identity, read_json_object, remove
from trainer_loop.record.run_lock import RunDirInUse
from trainer_loop.record.state import TrainState
from trainer_loop.runtime.plain_json import check_fields, parse_json

MANIFEST = "manifest.json"
STATE = "state.json"
WEIGHTS = "model.safetensors"  # accelerate uses this name and the next three
OPTIMIZER = "optimizer.bin"
SCHEDULER = "scheduler.bin"
SCALER = "scaler.bin"
AVERAGES = "averages.safetensors"
REGISTERED = "kept.bin"  # the state that a custom loop registered for checkpoints
INDEX = "parts.json"  # index of the files with parts of tensors, see checkpoint_parts.py
_ALWAYS = {OPTIMIZER, SCHEDULER, STATE}
_LOADED = {*_ALWAYS, WEIGHTS, SCALER, AVERAGES, REGISTERED, INDEX}
_PART = re.compile(r"part-([0-9]{5})-of-([0-9]{5})\.safetensors")
_NAME = re.compile(r"step-([0-9]+)")
_DAMAGED = ".damaged"


def part_name(index: int, num_parts: int) -> str:
    """Return the name of the file with one part of all sharded tensors. index: from 0."""
    return f"part-{index + 1:05d}-of-{num_parts:05d}.safetensors"


def list_checkpoints(run_dir: RunDir) -> list[Path]:
    """List the checkpoint directories, lowest step first. They are not verified."""
    paths = run_dir.checkpoints.glob("step-*")
    by_step = [(step, path) for path in paths if (step := named_step(path)) is not None and path.is_dir()]
    return [path for _, path in sorted(by_step)]


def named_step(path: Path) -> int | None:
    """Return the step in the name of a checkpoint directory; None for another name, such as `latest`."""
    match = _NAME.fullmatch(path.name)
    return None if match is None else int(match[1])


def list_set_aside(run_dir: RunDir) -> list[Path]:
    """List the damaged checkpoints that were renamed, so that no run resumes from them."""
    return sorted(run_dir.checkpoints.glob(f"step-*{_DAMAGED}"))


def set_aside(path: Path, *, fault: str) -> str:
    """Rename a damaged checkpoint, so that no run resumes from it; returns the text of a warning."""
    target = path.with_name(path.name + _DAMAGED)
    try:
        remove(target)
        os.replace(path, target)
    except OSError as error:
        return f"{path}: {fault}; it cannot be set aside: {error.strerror}"
    return f"{path}: {fault}; it is set aside as {target.name}"


def find_fault(path: Path) -> str | None:
    """Return the first fault of a checkpoint; None if every file of its manifest has the right size and checksum.

    A directory that is named after a step must hold the checkpoint of this step.
    """
    if not path.is_dir():
        return "is no directory"
    try:
        manifest = open_sealed(path / MANIFEST)
        check_fields(_Manifest, manifest)
        files = {name: _File(**facts) for name, facts in manifest["files"].items()}
    except (OSError, ValueError, TypeError):
        return f"{MANIFEST} is missing or damaged"
    try:
        return _find_wrong_file(path, files) or _find_wrong_step(path, manifest["step"])
    except OSError as error:
        return f"{Path(error.filename or path).name} cannot be read: {error.strerror}"


def _find_wrong_file(path: Path, files: Mapping[str, "_File"]) -> str | None:
    present = {file.name for file in path.iterdir()}
    unlisted = {name for name in present if name in _LOADED or _PART.fullmatch(name)} - files.keys()
    if unlisted or not files.keys() >= _list_required(files) or any(Path(name).name != name for name in files):
        return f"{MANIFEST} does not list what a checkpoint consists of"
    with ThreadPoolExecutor() as threads:  # computes checksums in parallel
        faults = threads.map(lambda name: _find_wrong_content(path / name, files[name]), files)
        return next(filter(None, faults), None)


def _list_required(files: Iterable[str]) -> set[str]:
    """Return the names of the files that a checkpoint with these files must have."""
    counts = [int(match[2]) for name in files if (match := _PART.fullmatch(name))]
    if not counts:
        return {*_ALWAYS, WEIGHTS}
    return {*_ALWAYS, INDEX, *(part_name(index, max(counts)) for index in range(max(counts)))}


def _find_wrong_content(file: Path, expected: "_File") -> str | None:
    if not file.is_file():
        return f"{file.name} is missing"
    if file.stat().st_size != expected.bytes:
        return f"{file.name} has {file.stat().st_size} bytes instead of {expected.bytes}"
    if compute_checksum(file) != expected.crc32:
        return f"{file.name} was altered: its checksum differs"
    return None


@dataclass(frozen=True)
class _Manifest:
    """The content of `manifest.json` without its own checksum."""

    step: int
    num_processes: int
    plan: dict[str, Any]
    config: dict[str, Any]
    versions: dict[str, Any]
    files: dict[str, dict[str, Any]]
    run: str | None = None  # identity of the run that saved it; earlier versions did not write it


@dataclass(frozen=True)
class _File:
    bytes: int
    crc32: str


def _find_wrong_step(path: Path, step: int) -> str | None:
    """Return a message if the name of the directory, the manifest and the state name different steps."""
    try:
        state = TrainState.from_dict(read_json_object(path / STATE))
    except ValueError as error:
        return f"{STATE} is no state of a run: {in_one_line(error)}"
    if state.step != step:
        return f"{STATE} is of step {state.step:,}, and {MANIFEST} of step {step:,}"
    if named_step(path) is not None and path.name != checkpoint_name(step):
        return f"it is the checkpoint of step {step:,}, under another name; it belongs into {checkpoint_name(step)}"
    return None


def read_run(path: Path) -> str | None:
    """Return the identity of the run that saved a checkpoint; None if the checkpoint has none."""
    try:
        run = open_sealed(path / MANIFEST).get("run")
    except (OSError, ValueError):
        return None
    return run if isinstance(run, str) else None


def refuse_other_run(run_dir: RunDir, run: str) -> None:
    """Raise RunDirInUse if another run has written its identity into environment.json since this run started."""
    if read_identity(run_dir) not in (None, run):
        raise RunDirInUse(
            f"run_dir: another run has begun in {run_dir.root}, and this one ends without writing there; "
            "give each a run_dir of its own"
        )


def read_seal(path: Path) -> str | None:
    """Return a checksum that identifies a checkpoint; None if its manifest cannot be read."""
    try:
        return compute_checksum(path / MANIFEST)
    except OSError:
        return None


def find_changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return the old and the new value of each name whose value changed. Values are compared as JSON."""
    now = json.loads(json.dumps(now))
    before = use_current_names(before, now)
    before = {name: _without_secrets(value, name) for name, value in before.items()}
    return {name: (before.get(name), value) for name, value in now.items() if before.get(name) != value}


def use_current_names(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of an earlier run under current names: version 0.1 had a config key for each column."""
    if "data.columns" in before or "data.columns" not in now:
        return dict(before)
    columns = {role: before.get(f"data.{role}") for role in now["data.columns"]}
    old_keys = ("data.text", "data.text_pair", "data.label")
    others = {name: value for name, value in before.items() if name not in old_keys}
    return others | {"data.columns": columns}


def _without_secrets(value: Any, name: str) -> Any:
    """Replace secrets in a value whose keys are free names: earlier versions stored them there."""
    is_free = isinstance(value, Mapping) and name.endswith((".args", "_args", ".overrides"))
    return name_sources(find_secrets(value, name), with_digest=False) if is_free else value


def describe_changes(changes: Mapping[str, tuple[Any, Any]]) -> str:
    """Return the changes as text: `seed was 42 and is 1, ...`."""
    return ", ".join(f"{name} was {old} and is {new}" for name, (old, new) in changes.items())


def seal(manifest: Mapping[str, Any]) -> str:
    """Return the manifest as JSON with a checksum over its own text, so that every change is detected."""
    text = json.dumps(manifest, indent=2, sort_keys=True)
    return json.dumps({**manifest, "crc32": f"{zlib.crc32(text.encode()):08x}"}, indent=2, sort_keys=True)


def open_sealed(path: Path) -> dict[str, Any]:
    """Read a sealed manifest.

    Raises:
        OSError: It cannot be read.
        ValueError: It was changed since it was sealed.
    """
    text = path.read_bytes().decode()
    manifest = parse_json(text)
    if not isinstance(manifest, dict):
        raise ValueError("no manifest")
    manifest.pop("crc32", None)
    try:
        if seal(manifest) != text:
            raise ValueError("altered")
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    return manifest


def compute_checksum(path: Path) -> str:
    """Return the CRC-32 of a file as eight hexadecimal digits."""
    value = 0
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            value = zlib.crc32(block, value)
    return f"{value:08x}"


def make_link(link: Path, target: Path) -> bool:
    """Make `link` a relative symbolic link to its neighbour `target`, atomically. The link is only for users.

    A copy of a run directory may have a folder in the place of the link. A folder that is a copy of a neighbouring
    checkpoint is removed. If it is any other folder, it stays, and this function returns False.
    """
    temporary = link.with_name(f".{link.name}.tmp")
    remove(temporary)
    if link.is_dir() and not link.is_symlink():
        if not _is_copy(link):
            return False
        remove(link)
    try:
        temporary.symlink_to(target.name)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP):
            raise
        return True  # the file system has no links
    os.replace(temporary, link)
    return True


def _is_copy(folder: Path) -> bool:
    """Return whether a folder is a copy of the neighbouring checkpoint of the same step."""
    try:
        original = folder.with_name(checkpoint_name(open_sealed(folder / MANIFEST)["step"]))
        return (original / MANIFEST).read_bytes() == (folder / MANIFEST).read_bytes()
    except (OSError, ValueError, KeyError, TypeError):
        return False
