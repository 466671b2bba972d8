"""Checkpoints around `accelerator.save_state`: written beside, flushed, renamed, verified before they are loaded."""

import contextlib
import os
import shutil
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from torch.optim.lr_scheduler import LRScheduler

from trainer_loop.errors import UserError, in_one_line
from trainer_loop.record.logs import Console
from trainer_loop.record.run_dir import RunDir, package_versions, read_json, write_json
from trainer_loop.record.state import TrainState
from trainer_loop.runtime.distributed import agree

_MANIFEST = "manifest.json"
_STATE = "state.json"
_SCHEDULER = "scheduler.bin"
_SCALER = "scaler.bin"


class Checkpointer:
    """Saves and finds the checkpoints of one run.

    plan: what decides the updates (rows, seed, model, optimizer, ...), as plain JSON; a checkpoint of another plan is
    refused.
    """

    def __init__(
        self,
        run_dir: RunDir,
        *,
        accelerator: Accelerator,
        scheduler: LRScheduler,
        console: Console,
        plan: Mapping[str, Any],
        keep_last: int = 2,
    ):
        self.run_dir = run_dir
        self.accelerator = accelerator
        self.scheduler = scheduler
        self.console = console
        self.plan = dict(plan)
        self.keep_last = keep_last
        accelerator.register_save_state_pre_hook(_drop_wrapper_prefix)
        accelerator.register_load_state_pre_hook(_unwrap_models)

    def save(self, state: TrainState) -> Path:
        """One complete checkpoint of `state.step`; called by all processes. Returns its directory."""
        target = self.run_dir.checkpoint(state.step)
        temporary = target.with_name(f".{target.name}.tmp")
        if self.accelerator.is_main_process:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
        self.accelerator.wait_for_everyone()
        with self._without_scaler() as scaler:
            self.accelerator.save_state(str(temporary))
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            torch.save(self.scheduler.state_dict(), temporary / _SCHEDULER)
            if scaler is not None:
                torch.save(scaler.state_dict(), temporary / _SCALER)
            write_json(temporary / _STATE, state.state_dict())
            write_json(temporary / _MANIFEST, self._describe(temporary, state))
            _flush(temporary)
            # A damaged checkpoint of this very step may stand there, passed over when the run went on.
            shutil.rmtree(target, ignore_errors=True)
            os.replace(temporary, target)
            _point(self.run_dir.checkpoints / "latest", target)
            if state.best_step == state.step:
                _point(self.run_dir.checkpoints / "best", target)
            self._rotate(state)
        self.accelerator.wait_for_everyone()
        return target

    def load(self, resume: str) -> TrainState | None:
        """The state to go on from, with model, optimizer and schedule restored; None for a new run.

        resume: auto (the newest complete checkpoint), never, or the path of a checkpoint. Called by all processes.
        Raises UserError where a checkpoint asked for is not complete, or does not belong to this run.
        """
        path = self._choose(resume)
        agree(self.accelerator, None if path is None else path.name, what="the newest complete checkpoint")
        if path is None:
            return None
        self._refuse_other_plan(path)
        try:
            with self._without_scaler() as scaler:
                self.accelerator.load_state(str(path))
            self.scheduler.load_state_dict(torch.load(path / _SCHEDULER, weights_only=True))
            if scaler is not None and (path / _SCALER).exists():
                scaler.load_state_dict(torch.load(path / _SCALER, weights_only=True))
        except (RuntimeError, ValueError, KeyError, UnpicklingError) as error:
            raise UserError(
                f"{path} does not fit this model and optimizer: {in_one_line(error)}; "
                "choose another run_dir or give the config it was made with"
            ) from error
        state = TrainState.from_dict(read_json(path / _STATE))
        if not self._is_own(path):  # the weights of the best lie in another run directory
            state.forget_best()
        return state

    def load_weights(self, model: nn.Module, step: int) -> None:
        """Only the model's weights, from the checkpoint of `step`."""
        from safetensors.torch import load_model

        fault = find_fault(self.run_dir.checkpoint(step))
        if fault:
            raise UserError(f"{self.run_dir.checkpoint(step)}, which holds the best weights: {fault}")
        load_model(model, self.run_dir.checkpoint(step) / "model.safetensors", device=str(self.accelerator.device))

    @contextlib.contextmanager
    def _without_scaler(self) -> Iterator[Any]:
        """Keep the loss scaler from accelerate, whose processes would all write the same file of it at once."""
        scaler, self.accelerator.scaler = self.accelerator.scaler, None
        try:
            yield scaler
        finally:
            self.accelerator.scaler = scaler

    def _choose(self, resume: str) -> Path | None:
        own = list_checkpoints(self.run_dir)
        if resume == "never":
            if own:
                raise UserError(
                    f"resume: never, but {self.run_dir.root} holds {own[-1].name}; "
                    "choose another run_dir, delete it, or set resume=auto"
                )
            return None
        if resume != "auto" and (not own or self._is_own(Path(resume))):
            return self._choose_path(Path(resume), own)
        # Also where `resume` names another run's checkpoint: the same command, started again, goes on from its own.
        return self._choose_newest(own)

    def _choose_newest(self, own: list[Path]) -> Path | None:
        faults = []
        for path in reversed(own):
            fault = find_fault(path)
            if not fault:
                return path
            self.console.warn(f"{path}: {fault}; it is passed over")
            faults.append(f"{path}: {fault}")
        if faults:
            raise UserError([*faults, f"{self.run_dir.root} holds no complete checkpoint; delete it to begin anew"])
        return None

    def _choose_path(self, path: Path, own: list[Path]) -> Path:
        fault = find_fault(path)
        if fault:
            raise UserError(f"resume: {path}: {fault}; allowed: auto, never, or the path of a complete checkpoint")
        if own and path.resolve() != own[-1].resolve():
            raise UserError(
                f"resume: {path}: {self.run_dir.root} holds {own[-1].name}, which would be lost; "
                "choose another run_dir for the new branch, or set resume=auto"
            )
        return path

    def _is_own(self, path: Path) -> bool:
        return path.parent.resolve() == self.run_dir.checkpoints.resolve()

    def _refuse_other_plan(self, path: Path) -> None:
        changes = describe_changes(read_json(path / _MANIFEST)["plan"], self.plan)
        if changes:
            raise UserError(
                f"{path} was made by another run ({changes}); "
                "choose another run_dir or give the config it was made with"
            )

    def _describe(self, directory: Path, state: TrainState) -> dict[str, Any]:
        return {
            "step": state.step,
            "num_processes": self.accelerator.num_processes,
            "plan": self.plan,
            "versions": package_versions(),
            "files": {
                file.name: {"bytes": file.stat().st_size, "crc32": _checksum(file)}
                for file in sorted(directory.iterdir())
                if file.name != _MANIFEST
            },
        }

    def _rotate(self, state: TrainState) -> None:
        """Only after a complete save: keep the newest `keep_last`, and the best.

        What stands past this step is damaged and was passed over when the run went on: it goes first.
        """
        own = list_checkpoints(self.run_dir)
        newest = own.index(self.run_dir.checkpoint(state.step)) + 1
        for path in own[newest:] + own[: max(newest - self.keep_last, 0)]:
            if state.best_step is None or path != self.run_dir.checkpoint(state.best_step):
                shutil.rmtree(path)


def list_checkpoints(run_dir: RunDir) -> list[Path]:
    """Checkpoint directories, oldest step first; not verified."""
    return sorted(path for path in run_dir.checkpoints.glob("step-*") if path.is_dir())


def find_fault(path: Path) -> str | None:
    """What is wrong with a checkpoint, or None: every file of its manifest has its size and checksum."""
    if not path.is_dir():
        return "is no directory"
    try:
        manifest = read_json(path / _MANIFEST)
        files = manifest["files"].items()
    except (OSError, ValueError, KeyError):
        return f"{_MANIFEST} is missing or damaged"
    for name, expected in files:
        file = path / name
        if not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size != expected["bytes"]:
            return f"{name} has {file.stat().st_size} bytes instead of {expected['bytes']}"
        if _checksum(file) != expected["crc32"]:
            return f"{name} was altered: its checksum differs"
    return None


def describe_changes(made_with: Mapping[str, Any], plan: Mapping[str, Any]) -> str:
    """`seed was 42 and is 1, ...` for what differs between two plans, or nothing."""
    return ", ".join(
        f"{name} was {made_with.get(name)} and is {plan[name]}" for name in plan if made_with.get(name) != plan[name]
    )


def _checksum(path: Path) -> str:
    value = 0
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            value = zlib.crc32(block, value)
    return f"{value:08x}"


def _flush(directory: Path) -> None:
    """To the disk itself, files first: a rename must not be on disk before what it names."""
    for path in [*directory.iterdir(), directory, directory.parent]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _point(link: Path, target: Path) -> None:
    """Make `link` a relative symbolic link to its neighbour `target`, in one instant."""
    temporary = link.with_name(f".{link.name}.tmp")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(target.name)
    os.replace(temporary, link)


def _drop_wrapper_prefix(models: list[nn.Module], weights: list[dict[str, Any]], _directory: str) -> None:
    """Weights are saved under the model's own names, so that one process can load what two have saved."""
    for model, state in zip(models, weights, strict=False):
        if isinstance(model, nn.parallel.DistributedDataParallel):
            nn.modules.utils.consume_prefix_in_state_dict_if_present(state, "module.")


def _unwrap_models(models: list[nn.Module], _directory: str) -> None:
    models[:] = [model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model for model in models]
