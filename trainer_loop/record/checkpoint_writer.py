"""Writes checkpoints: into a temporary directory that is flushed, sealed and renamed; then removes old checkpoints."""

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
    make_link,
    read_run,
    read_seal,
    refuse_other_run,
    seal,
)
from trainer_loop.record.logs import Console
from trainer_loop.record.run_dir import RunDir, explain_disk_error, flush, is_disk_error, remove, write_json
from trainer_loop.record.run_lock import RunDirInUse
from trainer_loop.record.snapshot import Snapshot

_ROOM = 1.05  # the free space must be the size of the last checkpoint times this


class SaveResult(NamedTuple):
    """Result of a save."""

    fault: str | None  # the error of the disk; None: the checkpoint is complete
    seal: str | None = None


@dataclass(eq=False, repr=False)
class CheckpointWriter:
    """Writes the checkpoints of one run, updates the links `latest` and `best`, and removes old checkpoints.

    Args:
        gather: Returns the values of all processes that write, in the order of the processes, on each of them.
        is_main_process: True on process 0, which creates the directory of a checkpoint and seals it.
    """

    run_dir: RunDir
    console: Console
    _: KW_ONLY
    gather: Callable[[Any], list[Any]]
    is_main_process: bool
    keep_last: int = 2

    def __post_init__(self) -> None:
        self.num_bytes = 0  # of the last checkpoint
        self._reported_links: set[str] = set()  # links that a folder blocks, once that was reported

    def write(self, files: Snapshot, *, step: int, best_step: int | None, facts: Mapping[str, Any]) -> SaveResult:
        """Save the files of all processes as the checkpoint of a step. All processes that write call this.

        Args:
            files: The files of this process, by name.
            facts: The manifest without its list of files.
        """
        target = self.run_dir.checkpoint(step)
        # The name is random, because a process that still runs from an earlier save must not find this directory.
        temporary = target.with_name(f".{target.name}-{self.gather(uuid.uuid4().hex[:8])[0]}.tmp")
        _, fault = self._run_part(temporary, self.is_main_process, lambda: self._start(temporary))
        listed: dict[str, Any] = {}
        if fault is None:
            written, fault = self._run_part(temporary, True, lambda: _write_files(files, temporary))
            listed = {name: file for process_files in written for name, file in (process_files or {}).items()}
        seals: list[str | None] = [None]
        if fault is None:
            manifest = {**facts, "files": dict(sorted(listed.items()))}
            seals, fault = self._run_part(
                temporary, self.is_main_process, lambda: self._complete(temporary, target, manifest)
            )
        if self.is_main_process and fault is not None:
            shutil.rmtree(temporary, ignore_errors=True)
        elif self.is_main_process:
            self.num_bytes = sum(file["bytes"] for file in listed.values())
            self._clear_up(target, facts["run"], is_best=best_step == step, best_step=best_step)
        return SaveResult(fault, seals[0])

    def _run_part(self, temporary: Path, has_work: bool, work: Callable[[], Any]) -> tuple[list[Any], str | None]:
        """Run a part of a save; returns the results of all processes and the first disk error, or None.

        Raises:
            RunDirInUse: On all processes, if it was raised on one.
        """
        result, fault, in_use = None, None, None
        try:
            result = work() if has_work else None
        except RunDirInUse as error:
            in_use = error.problems
        except (OSError, SafetensorError, RuntimeError) as error:
            if not is_disk_error(error) and temporary.is_dir():  # torch has other errors for a removed one
                raise
            fault = explain_disk_error(error, self.run_dir.checkpoints)
        answers = self.gather((result, fault, in_use))
        for *_, problems in answers:
            if problems:
                raise RunDirInUse(problems)
        return [result for result, *_ in answers], next((fault for _, fault, _ in answers if fault), None)

    def _start(self, temporary: Path) -> None:
        self.run_dir.checkpoints.mkdir(parents=True, exist_ok=True)
        self.remove_left_overs()
        self._ensure_room()
        temporary.mkdir()

    def _ensure_room(self) -> None:
        """Raise OSError if less is free than the last checkpoint took, before a partial one fills the disk for all."""
        free = shutil.disk_usage(self.run_dir.checkpoints).free
        if free < self.num_bytes * _ROOM:
            raise OSError(
                errno.ENOSPC, f"{free / 2**20:,.0f} MB are free and the last one took {self.num_bytes / 2**20:,.0f} MB"
            )

    def _complete(self, temporary: Path, target: Path, manifest: Mapping[str, Any]) -> str | None:
        """Seal the checkpoint, after all its files are written, and rename it; returns its seal."""
        for name, file in manifest["files"].items():
            if (temporary / name).stat().st_size != file["bytes"]:
                raise OSError(errno.ESTALE, f"{name} is not as it was written")
        (temporary / MANIFEST).write_text(seal(manifest), encoding="utf-8")
        flush([temporary / MANIFEST, temporary])
        sealed = read_seal(temporary)
        refuse_other_run(self.run_dir, manifest["run"])  # another run may have started while files were written
        os.replace(temporary, target)
        flush([target.parent])
        return sealed

    # ------------------------------------------------------------------------------------ the folder of checkpoints

    def _clear_up(self, target: Path, run: str, *, is_best: bool, best_step: int | None) -> None:
        self.link("latest", target)
        if is_best:
            self.link("best", target)
        with contextlib.suppress(OSError):  # a checkpoint that cannot be removed is tried again after the next save
            flush([target.parent])
            self.rotate(run, best_step)

    def link(self, name: str, target: Path) -> None:
        """Link to a checkpoint. An error is ignored, because links are only for users."""
        link = self.run_dir.checkpoints / name
        with contextlib.suppress(OSError):  # a disk that is full or read-only
            if not make_link(link, target) and name not in self._reported_links:
                self._reported_links.add(name)
                self.console.warn(f"{link} is a folder and stays as it is; it is no link to {target.name}")

    def remove_left_overs(self) -> None:
        """Remove the temporary directories of runs that were killed during a save."""
        for left_over in self.run_dir.checkpoints.glob(".step-*.tmp"):
            remove(left_over)

    def rotate(self, run: str, best_step: int | None) -> None:
        """Remove all checkpoints of this run but the newest `keep_last` and the best. Call it after a complete save."""
        checkpoints = [path for path in list_checkpoints(self.run_dir) if read_run(path) in (None, run)]
        for path in checkpoints[: -self.keep_last]:
            if best_step is None or path != self.run_dir.checkpoint(best_step):
                # Rename first, because a kill during the removal must not leave a partial checkpoint.
                temporary = path.with_name(f".{path.name}.tmp")
                os.replace(path, temporary)
                remove(temporary)


def _write_files(files: Snapshot, directory: Path) -> dict[str, dict[str, Any]]:
    """Write files and flush them; returns the size and the checksum of each, by name."""
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
