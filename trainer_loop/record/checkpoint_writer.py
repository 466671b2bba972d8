"""Writes checkpoints: beside, flushed, sealed, renamed; then removes those that are no longer kept."""

import contextlib
import errno
import os
import shutil
import uuid
from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from trainer_loop.record.checkpoint_files import (
    MANIFEST,
    WEIGHTS,
    compute_checksum,
    list_checkpoints,
    point,
    read_run,
    read_seal,
    refuse_stranger,
    seal,
)
from trainer_loop.record.logs import Console
from trainer_loop.record.run_dir import RunDir, explain_disk_error, flush, is_disk_error, remove, write_json
from trainer_loop.record.run_lock import RunDirInUse
from trainer_loop.record.snapshot import Snapshot

_ROOM = 1.05  # times the last checkpoint's size must be free


class Saved(NamedTuple):
    """How a save ended."""

    fault: str | None  # what the disk refused; None: the checkpoint is complete
    seal: str | None = None


@dataclass(eq=False, repr=False)
class CheckpointWriter:
    """Writes the checkpoints of one run, and keeps its folder in order.

    Args:
        gather: returns the values of all processes that write, process 0's first, on each of them.
        is_main_process: this is process 0, which begins a checkpoint and seals it.
    """

    run_dir: RunDir
    console: Console
    _: KW_ONLY
    gather: Callable[[Any], list[Any]]
    is_main_process: bool
    keep_last: int = 2

    def __post_init__(self) -> None:
        self.num_bytes = 0  # of the last checkpoint
        self._links_left: set[str] = set()  # names of links that a folder keeps from being made

    def write(self, files: Snapshot, *, step: int, best_step: int | None, facts: Mapping[str, Any]) -> Saved:
        """Save the files of all processes as the checkpoint of a step. All processes that write call this.

        files: those of this process, by name. facts: the manifest, without its files.
        """
        target = self.run_dir.checkpoint(step)
        # A process that is left over from an earlier save must not find this one.
        temporary = target.with_name(f".{target.name}-{self.gather(uuid.uuid4().hex[:8])[0]}.tmp")
        _, fault = self._do(temporary, self.is_main_process, lambda: self._begin(temporary))
        listed: dict[str, Any] = {}
        if fault is None:
            written, fault = self._do(temporary, True, lambda: _write_files(files, temporary))
            listed = {name: file for of_process in written for name, file in (of_process or {}).items()}
        seals: list[str | None] = [None]
        if fault is None:
            manifest = {**facts, "files": dict(sorted(listed.items()))}
            seals, fault = self._do(
                temporary, self.is_main_process, lambda: self._complete(temporary, target, manifest)
            )
        if self.is_main_process and fault is not None:
            shutil.rmtree(temporary, ignore_errors=True)
        elif self.is_main_process:
            self.num_bytes = sum(file["bytes"] for file in listed.values())
            self._clear_up(target, facts["run"], is_best=best_step == step, best_step=best_step)
        return Saved(fault, seals[0])

    def _do(self, temporary: Path, has_work: bool, work: Callable[[], Any]) -> tuple[list[Any], str | None]:
        """Do a part of a save; returns the results of all processes, and what the disk refused to the first of them.

        Raises RunDirInUse on all processes where one does.
        """
        result, fault, in_use = None, None, None
        try:
            result = work() if has_work else None
        except RunDirInUse as error:
            in_use = error.problems
        except (OSError, SafetensorError, RuntimeError) as error:
            if not is_disk_error(error) and temporary.is_dir():  # where it was removed, torch has words of its own
                raise
            fault = explain_disk_error(error, self.run_dir.checkpoints)
        answers = self.gather((result, fault, in_use))
        for *_, problems in answers:
            if problems:
                raise RunDirInUse(problems)
        return [result for result, *_ in answers], next((fault for _, fault, _ in answers if fault), None)

    def _begin(self, temporary: Path) -> None:
        self.run_dir.checkpoints.mkdir(parents=True, exist_ok=True)
        self.remove_left_overs()
        self._ensure_room()
        temporary.mkdir()

    def _ensure_room(self) -> None:
        """Raises OSError where less is free than the last checkpoint took: half a checkpoint fills the disk for all."""
        free = shutil.disk_usage(self.run_dir.checkpoints).free
        if free < self.num_bytes * _ROOM:
            raise OSError(
                errno.ENOSPC, f"{free / 2**20:,.0f} MB are free and the last one took {self.num_bytes / 2**20:,.0f} MB"
            )

    def _complete(self, temporary: Path, target: Path, manifest: Mapping[str, Any]) -> str | None:
        """Seal a checkpoint, all files of which are written, and give it its name; returns its seal."""
        for name, file in manifest["files"].items():
            if (temporary / name).stat().st_size != file["bytes"]:
                raise OSError(errno.ESTALE, f"{name} is not as it was written")
        (temporary / MANIFEST).write_text(seal(manifest), encoding="utf-8")
        flush([temporary / MANIFEST, temporary])
        sealed = read_seal(temporary)
        refuse_stranger(self.run_dir, manifest["run"])  # it may have begun while files were written
        os.replace(temporary, target)
        flush([target.parent])
        return sealed

    # -------------------------------------------------------------------------------------------- the folder of them

    def _clear_up(self, target: Path, run: str, *, is_best: bool, best_step: int | None) -> None:
        self.link("latest", target)
        if is_best:
            self.link("best", target)
        with contextlib.suppress(OSError):  # one that cannot be removed is tried again after the next save
            flush([target.parent])
            self.rotate(run, best_step)

    def link(self, name: str, target: Path) -> None:
        """Let a link mean a checkpoint. Links are for people: one that cannot be made ends nothing."""
        link = self.run_dir.checkpoints / name
        with contextlib.suppress(OSError):  # a disk that is full or read-only
            if not point(link, target) and name not in self._links_left:
                self._links_left.add(name)
                self.console.warn(f"{link} is a folder and stays as it is; it does not mean {target.name}")

    def remove_left_overs(self) -> None:
        """What a run that was killed in the middle of a save has left."""
        for left_over in self.run_dir.checkpoints.glob(".step-*.tmp"):
            remove(left_over)

    def rotate(self, run: str, best_step: int | None) -> None:
        """Only after a complete save: of the checkpoints of this run keep the newest `keep_last`, and the best."""
        own = [path for path in list_checkpoints(self.run_dir) if read_run(path) in (None, run)]
        for path in own[: -self.keep_last]:
            if best_step is None or path != self.run_dir.checkpoint(best_step):
                doomed = path.with_name(f".{path.name}.tmp")  # a kill in the middle must not leave half a checkpoint
                os.replace(path, doomed)
                remove(doomed)


def _write_files(files: Snapshot, directory: Path) -> dict[str, dict[str, Any]]:
    """Write files and flush them; returns the size and the checksum of each."""
    for name, content in files.items():
        if name.endswith(".json"):
            write_json(directory / name, content)
        elif name.endswith(".safetensors"):
            save_file(content, directory / name, metadata={"format": "pt"} if name == WEIGHTS else None)
        else:
            torch.save(content, directory / name)
    paths = [directory / name for name in files]
    listed = {path.name: {"bytes": path.stat().st_size, "crc32": compute_checksum(path)} for path in paths}
    flush(paths)
    return listed
