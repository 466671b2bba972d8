"""Checkpoints in accelerate's files: written beside, flushed, renamed, verified before they are loaded."""

import contextlib
import errno
import os
import shutil
import threading
import uuid
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from accelerate.checkpointing import save_accelerator_state
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, load_model, save_file
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler

from trainer_loop.errors import UserError, in_one_line
from trainer_loop.parallel.processes import broadcast, on_process_0, sum_on_hosts
from trainer_loop.record.checkpoint_files import (
    AVERAGES,
    KEPT,
    MANIFEST,
    SCALER,
    SCHEDULER,
    STATE,
    compute_checksum,
    find_changes,
    find_fault,
    list_checkpoints,
    point,
    read_run,
    read_seal,
    seal,
    set_aside,
)
from trainer_loop.record.logs import Console
from trainer_loop.record.run_dir import (
    RunDir,
    explain_disk_error,
    flush,
    is_disk_error,
    package_versions,
    read_identity,
    read_json,
    remove,
    write_json,
)
from trainer_loop.record.run_lock import RunDirInUse
from trainer_loop.record.state import TrainState
from trainer_loop.runtime.memory import is_out_of_memory

_ROOM = 1.05  # times the last checkpoint's size must be free
# What torch, safetensors and optimizers raise for files that are not what they expect.
_UNFIT = (RuntimeError, ValueError, LookupError, TypeError, AttributeError, EOFError, UnpicklingError, SafetensorError)


@dataclass(frozen=True)
class Snapshot:
    """All that one checkpoint holds; where it is written beside training, copies that training does not change."""

    state: dict[str, Any]
    weights: dict[str, Tensor]
    optimizer: dict[str, Any]
    scheduler: dict[str, Any]
    scaler: dict[str, Any] | None
    averaged_weights: dict[str, Tensor] | None
    kept: dict[str, Any]


class Stateful(Protocol):
    """What a loop of one's own keeps from step to step; its state is made of tensors, numbers, texts and containers."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> Any: ...


class AveragedWeights(Protocol):
    """An average of the weights that is exported in their place."""

    def state_dict(self) -> dict[str, Tensor]: ...

    def load_state_dict(self, averaged_weights: dict[str, Tensor]) -> None: ...

    def copy_to_model(self, averaged_weights: dict[str, Tensor] | None = None) -> None: ...

    def restart(self) -> None: ...


class _Saved:
    """What accelerate asks for its state when it saves."""

    def __init__(self, state: dict[str, Any]):
        self._state = state

    def state_dict(self) -> dict[str, Any]:
        return self._state


class Checkpointer:
    """Saves and finds the checkpoints of one run. Process 0 writes; all processes load.

    Parameters that do not learn are not saved: they are those the model began with, which the plan tells.

    plan: what decides the updates (rows, seed, model, optimizer, ...), as plain JSON; a checkpoint of another plan is
    refused, but for the names in `resume_anyway`. config: every key of the run, to tell what changed since; those in
    `replanned` take effect on what was restored.
    background: write beside training, from a copy of the state in host memory.
    """

    def __init__(
        self,
        run_dir: RunDir,
        *,
        accelerator: Accelerator,
        scheduler: LRScheduler,
        console: Console,
        plan: Mapping[str, Any],
        config: Mapping[str, Any] | None = None,
        replanned: Sequence[str] = (),
        resume_anyway: Sequence[str] = (),
        averaged_weights: AveragedWeights | None = None,
        keep_last: int = 2,
        background: bool = False,
    ):
        self.run_dir = run_dir
        self.accelerator = accelerator
        self.scheduler = scheduler
        self.console = console
        self.plan = dict(plan)
        self.config = dict(config or {})
        self.replanned = tuple(replanned)
        self.resume_anyway = tuple(resume_anyway)
        self.averaged_weights = averaged_weights
        self.keep_last = keep_last
        self.background = background
        self.changes: dict[str, tuple[Any, Any]] = {}  # key -> what it was and is, of the checkpoint that was loaded
        self.fault: str | None = None  # of the last save; None: it was complete
        self._failing = False
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None  # of the thread, until the loop asks
        self._copies: dict[tuple[int, ...], Tensor] = {}  # host memory of the last snapshot, used again
        self._bytes = 0  # of the last checkpoint
        self._kept: dict[str, Stateful] = {}
        self.run = uuid.uuid4().hex[:16]  # which run this is: every checkpoint tells whose it is
        self._seals: dict[int, str | None] = {}  # step -> what tells the checkpoint that this process saved or loaded
        self._links_left: set[str] = set()  # names of links that a folder keeps from being made
        accelerator.register_load_state_pre_hook(_unwrap_models)

    def register_for_checkpoint(self, name: str, part: Stateful) -> None:
        """From now on `part` is saved and restored too, by this name."""
        assert name not in self._kept, f"{name} is kept already"
        self._kept[name] = part

    # ------------------------------------------------------------------------------------------------------ saving

    def save(self, state: TrainState) -> None:
        """One complete checkpoint of `state.step`; called by all processes, none of which waits for another.

        What the disk refuses is told, and training goes on with the checkpoint before; see `fault`.
        """
        if not self.accelerator.is_main_process:
            return
        self._join()
        self.ensure_own_directory()
        target = self.run_dir.checkpoint(state.step)
        if os.path.lexists(target):
            if self._seals.get(state.step, "") == read_seal(target):
                return  # these very weights: the run stops where it has gone on from
            self._set_aside(target, fault="it was not saved by this run")
        if not self.background:
            self._write(self._take_snapshot(state), target)
            self._tell()
            return
        snapshot = self._copy(self._take_snapshot(state))
        self._thread = threading.Thread(target=self._write_beside, args=(snapshot, target), name="checkpoint")
        self._thread.start()

    def check(self) -> None:
        """Raise or tell what went wrong in a save beside training, once it is over; costs nothing else."""
        if self._thread is not None and not self._thread.is_alive():
            self._join()

    def finish(self) -> None:
        """Wait for the save that may still be under way, on all processes."""
        self._join()
        self.accelerator.wait_for_everyone()

    def mark_best(self, step: int) -> bool:
        """`best` points at the checkpoint of this step; False, on all processes, where it could not be saved."""
        self._join()
        saved = self.run_dir.checkpoint(step).is_dir()
        if self.accelerator.is_main_process and saved:
            self._link("best", self.run_dir.checkpoint(step))
        return bool(broadcast(self.accelerator, saved))

    def ensure_own_directory(self) -> None:
        """Raises RunDirInUse where another run has begun in this directory: what it saved must not be mixed with this.

        Only process 0 looks. Each run writes its identity into environment.json when it begins.
        """
        if not self.accelerator.is_main_process:
            return
        other = read_identity(self.run_dir)
        if other not in (None, self.run):
            raise RunDirInUse(
                f"run_dir: another run has begun in {self.run_dir.root}, and this one ends without writing there; "
                "give each a run_dir of its own"
            )

    def end_run(self) -> None:
        """Before the model is exported: a warning where the last checkpoint is missing. Raises RunDirInUse."""
        if self.fault is not None:
            self.console.warn(f"the last checkpoint is missing: {self.fault}")
        self.ensure_own_directory()

    def describe_newest(self) -> str:
        """Where a run that is started again goes on, for a person."""
        saved = list_checkpoints(self.run_dir)
        failed = "" if self.fault is None else "the last save failed; "
        return failed + (f"saved in {saved[-1]}" if saved else "nothing is saved")

    def _set_aside(self, path: Path, *, fault: str) -> None:
        try:
            told = f"it is set aside as {set_aside(path).name}"
        except OSError as error:
            told = f"it cannot be set aside: {error.strerror}"
        self.console.warn(f"{path}: {fault}; {told}")

    def _link(self, name: str, target: Path) -> None:
        """Let a link mean a checkpoint. Links are for people: one that cannot be made ends nothing."""
        link = self.run_dir.checkpoints / name
        with contextlib.suppress(OSError):  # a disk that is full or read-only
            if not point(link, target) and name not in self._links_left:
                self._links_left.add(name)
                self.console.warn(f"{link} is a folder and stays as it is; it does not mean {target.name}")

    def _join(self) -> None:
        if self._thread is None:
            return
        self._thread.join()
        self._thread = None
        error, self._error = self._error, None
        if error is not None:
            raise error
        self._tell()

    def _write_beside(self, snapshot: Snapshot, target: Path) -> None:
        try:
            self._write(snapshot, target)
        except BaseException as error:  # noqa: BLE001 - raised again in the loop's own thread
            self._error = error

    def _tell(self) -> None:
        """Once when saves begin to fail, and once when they work again."""
        if self.fault is not None and not self._failing:
            self.console.warn(f"{self.fault}; training goes on, and saves are tried again")
        if self.fault is None and self._failing:
            self.console.say("checkpoints can be saved again")
        self._failing = self.fault is not None

    def _take_snapshot(self, state: TrainState) -> Snapshot:
        """The state of everything, not copied yet."""
        (model,), (optimizer,) = self.accelerator._models, self.accelerator._optimizers
        scaler = self.accelerator.scaler
        return Snapshot(
            state=state.state_dict(),
            weights=_select_saved(self.accelerator.unwrap_model(model)),
            optimizer=optimizer.state_dict(),
            scheduler=self.scheduler.state_dict(),
            scaler=None if scaler is None else scaler.state_dict(),
            averaged_weights=None
            if self.averaged_weights is None
            else {name: average.contiguous() for name, average in self.averaged_weights.state_dict().items()},
            kept={name: part.state_dict() for name, part in self._kept.items()},
        )

    def _copy(self, snapshot: Snapshot) -> Snapshot:
        """In host memory. That of the snapshot before is used again: new memory would cost more than the copy."""
        used: dict[tuple[int, ...], Tensor] = {}

        def copy(value: Any, place: str) -> Any:
            if isinstance(value, Tensor):
                # Tied weights are one tensor in the copy too, or their file would hold them twice.
                key = (value.untyped_storage().data_ptr(), value.storage_offset(), *value.shape)
                if key not in used:
                    old = self._copies.get(key)
                    if old is None or old.dtype != value.dtype:
                        old = torch.empty_like(value, device="cpu", memory_format=torch.contiguous_format)
                    used[key] = old.copy_(value.detach())
                return used[key]
            if isinstance(value, dict):
                return {name: copy(item, f"{place}.{name}") for name, item in value.items()}
            if isinstance(value, (list, tuple)):
                return type(value)([copy(item, f"{place}.{index}") for index, item in enumerate(value)])
            return deepcopy(value)

        copied = Snapshot(**{name: copy(value, name) for name, value in vars(snapshot).items()})
        self._copies = used
        return copied

    def _write(self, snapshot: Snapshot, target: Path) -> None:
        """Sets `fault` to what the disk refused, to None where the checkpoint is complete."""
        temporary = target.with_name(f".{target.name}.tmp")
        self.fault = None
        try:
            self.run_dir.checkpoints.mkdir(parents=True, exist_ok=True)
            self._remove_left_overs()
            self._ensure_room()
            temporary.mkdir()
            self._write_files(snapshot, temporary)
            flush([*temporary.iterdir(), temporary])
            os.replace(temporary, target)
            flush([target.parent])
        except (OSError, SafetensorError, RuntimeError) as error:
            if not is_disk_error(error) and temporary.is_dir():  # where it was removed, torch has words of its own
                raise
            shutil.rmtree(temporary, ignore_errors=True)
            saved = list_checkpoints(self.run_dir)
            kept = f"the newest is {saved[-1].name}" if saved else "there is none yet"
            self.fault = (
                f"the checkpoint of step {snapshot.state['step']:,} could not be saved: "
                f"{explain_disk_error(error, self.run_dir.checkpoints)}; {kept}"
            )
        else:
            self._link("latest", target)
            if snapshot.state["best_step"] == snapshot.state["step"]:
                self._link("best", target)
            with contextlib.suppress(OSError):  # one that cannot be removed is tried again after the next save
                flush([target.parent])
                self._rotate(snapshot.state)

    def _remove_left_overs(self) -> None:
        """What a run that was killed in the middle of a save has left."""
        for left_over in self.run_dir.checkpoints.glob(".step-*.tmp"):
            remove(left_over)

    def _write_files(self, snapshot: Snapshot, directory: Path) -> None:
        save_accelerator_state(
            str(directory),
            [snapshot.weights],
            [_Saved(snapshot.optimizer)],
            [_Saved(snapshot.scheduler)],
            [],
            process_index=0,
            step=snapshot.state["step"],
        )
        # Generators are seeded from (seed, step): their states are needed by nobody, and a thread cannot read them.
        (directory / "random_states_0.pkl").unlink()
        # Of the loss scaler accelerate would write one file from all processes at once.
        if snapshot.scaler is not None:
            torch.save(snapshot.scaler, directory / SCALER)
        if snapshot.averaged_weights is not None:
            save_file(snapshot.averaged_weights, directory / AVERAGES)
        if snapshot.kept:
            torch.save(snapshot.kept, directory / KEPT)
        write_json(directory / STATE, snapshot.state)
        files: dict[str, dict[str, Any]] = {
            file.name: {"bytes": file.stat().st_size, "crc32": compute_checksum(file)}
            for file in sorted(directory.iterdir())
        }
        self._bytes = sum(file["bytes"] for file in files.values())
        manifest = {
            "run": self.run,
            "step": snapshot.state["step"],
            "num_processes": self.accelerator.num_processes,
            "plan": self.plan,
            "config": self.config,
            "versions": package_versions(),
            "files": files,
        }
        (directory / MANIFEST).write_text(seal(manifest), encoding="utf-8")
        self._seals[snapshot.state["step"]] = read_seal(directory)

    def _ensure_room(self) -> None:
        """Raises OSError where less is free than the last checkpoint took: half a checkpoint fills the disk for all."""
        free = shutil.disk_usage(self.run_dir.checkpoints).free
        if free < self._bytes * _ROOM:
            raise OSError(
                errno.ENOSPC, f"{free / 2**20:,.0f} MB are free and the last one took {self._bytes / 2**20:,.0f} MB"
            )

    def _rotate(self, state: Mapping[str, Any]) -> None:
        """Only after a complete save: keep the newest `keep_last`, and the best."""
        for path in list_checkpoints(self.run_dir)[: -self.keep_last]:
            if state["best_step"] is None or path != self.run_dir.checkpoint(state["best_step"]):
                doomed = path.with_name(f".{path.name}.tmp")  # a kill in the middle must not leave half a checkpoint
                os.replace(path, doomed)
                remove(doomed)

    # ----------------------------------------------------------------------------------------------------- loading

    def load(self, resume: str) -> TrainState | None:
        """The state to go on from, with model, optimizer and schedule restored; None for a new run.

        resume: auto (the newest complete checkpoint), never, or the path of a checkpoint. Called by all processes.
        Raises UserError where a checkpoint asked for is not complete, or does not belong to this run.
        """
        path = self._choose_together(resume)
        if path is None:
            return None
        manifest = self._recognise(path)
        self._compare(path, manifest)
        try:
            with self._without_scaler(), self._without_optimizer("optimizer.name" in self.changes):
                for model in self.accelerator._models:
                    _check_names(path, self.accelerator.unwrap_model(model))
                self.accelerator.load_state(str(path), strict=False)
            if "scheduler.name" not in self.changes:
                self.scheduler.load_state_dict(torch.load(path / SCHEDULER, weights_only=True))
            if self.accelerator.scaler is not None and (path / SCALER).exists():
                self.accelerator.scaler.load_state_dict(torch.load(path / SCALER, weights_only=True))
            if self.averaged_weights is not None:
                self._load_averaged_weights(path, self.averaged_weights)
            self._load_kept(path)
        except OSError as error:
            raise UserError(f"{path} cannot be read: {error.strerror or in_one_line(error)}") from error
        except _UNFIT as error:
            if is_out_of_memory(error):
                raise
            raise UserError(
                f"{path} does not fit this model and optimizer: {in_one_line(error)}; "
                "choose another run_dir or give the config it was made with"
            ) from error
        state = TrainState.from_dict(read_json(path / STATE))
        best = self.run_dir.checkpoint(state.best_step or 0)
        if not self._is_own(path):  # the weights of the best lie in another run directory
            state.forget_best()
        elif state.best_step is not None and not best.is_dir():
            self.console.warn(f"{best}, which held the best weights, is gone: the search for the best begins anew")
            state.forget_best()
        self._tidy_up(path, state)
        self._bytes = sum(file["bytes"] for file in manifest["files"].values())
        saved_by = manifest["num_processes"]
        if saved_by != self.accelerator.num_processes:
            self.console.say(
                f"saved by {saved_by} processes, resumed by {self.accelerator.num_processes}: "
                "the same rows in the same steps"
            )
        return state

    def _recognise(self, path: Path) -> dict[str, Any]:
        """The manifest of the checkpoint to go on from; where it lies in this directory, its run is this one."""
        try:
            manifest: dict[str, Any] = read_json(path / MANIFEST)
        except (OSError, ValueError) as error:
            raise UserError(f"{path / MANIFEST} cannot be read: {in_one_line(error)}") from error
        if self._is_own(path):
            self.run = manifest.get("run") or self.run
            self._seals[manifest["step"]] = read_seal(path)
        return manifest

    def load_weights(self, model: nn.Module, step: int) -> str | None:
        """Only the weights to export, from the checkpoint of `step`; called by all processes.

        Returns what is wrong with it, None where they were loaded.
        """
        self.finish()
        path = self.run_dir.checkpoint(step)
        fault = on_process_0(self.accelerator, lambda: find_fault(path) or self._find_stranger(path))
        if fault:
            return f"{path}: {fault}"
        load_model(model, path / "model.safetensors", strict=False)  # its names are those of the newest, which fitted
        if self.averaged_weights is not None and (path / AVERAGES).exists():
            self.averaged_weights.copy_to_model(load_file(path / AVERAGES))
        return None

    def _tidy_up(self, path: Path, state: TrainState) -> None:
        """Mend the links and remove what a kill in the middle of a save, or a checkpoint set aside, has left behind."""
        if not self.accelerator.is_main_process or not self._is_own(path):
            return
        self._link("latest", path)
        if state.best_step is not None and self.run_dir.checkpoint(state.best_step).is_dir():
            self._link("best", self.run_dir.checkpoint(state.best_step))
        with contextlib.suppress(OSError):  # a disk that is read-only
            self._remove_left_overs()
            self._rotate(state.state_dict())

    @contextlib.contextmanager
    def _without_scaler(self) -> Iterator[None]:
        """Keep the loss scaler from accelerate, which would insist on a file of its own for it."""
        scaler, self.accelerator.scaler = self.accelerator.scaler, None
        try:
            yield
        finally:
            self.accelerator.scaler = scaler

    @contextlib.contextmanager
    def _without_optimizer(self, other: bool) -> Iterator[None]:
        """The state of another optimizer means nothing to this one, which begins without."""
        optimizers = list(self.accelerator._optimizers)
        if other:
            self.accelerator._optimizers.clear()
        try:
            yield
        finally:
            self.accelerator._optimizers[:] = optimizers

    def _load_averaged_weights(self, path: Path, averaged_weights: AveragedWeights) -> None:
        if (path / AVERAGES).exists():
            averaged_weights.load_state_dict(load_file(path / AVERAGES))
        else:
            averaged_weights.restart()
            self.console.warn(f"{path} has no averaged weights: the average begins at its weights")

    def _load_kept(self, path: Path) -> None:
        saved = torch.load(path / KEPT, weights_only=True) if (path / KEPT).exists() else {}
        if unlike := sorted(set(saved) ^ set(self._kept)):
            raise ValueError(f"{', '.join(unlike)} is kept by one of the two, the run that saved it and this one")
        for name, part in self._kept.items():
            part.load_state_dict(saved[name])

    def _choose_together(self, resume: str) -> Path | None:
        """Process 0 verifies and chooses; the others must see what it chose."""
        chosen = on_process_0(self.accelerator, lambda: self._choose(resume))
        if chosen is None:
            return None
        blind = not (chosen / MANIFEST).is_file()
        if sum_on_hosts(self.accelerator, [blind])[0]:
            raise UserError(
                f"{chosen} is not seen by every process; run_dir must lie on a file system that all of them share"
            )
        return chosen

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
        faults = {path: fault for path in reversed(own) if (fault := find_fault(path))}
        faults |= self._find_strangers([path for path in own if path not in faults])
        whole = [path for path in own if path not in faults]
        if faults and not whole:
            told = [f"{path}: {fault}" for path, fault in faults.items()]
            raise UserError([*told, f"{self.run_dir.root} holds no complete checkpoint; delete it to begin anew"])
        for path, fault in faults.items():
            self._set_aside(path, fault=fault)
        return whole[-1] if whole else None

    def _find_stranger(self, path: Path) -> str | None:
        run = read_run(path)
        return None if run in (None, self.run) else f"it is of run {run}, and not of this one"

    def _find_strangers(self, paths: list[Path]) -> dict[Path, str]:
        """Checkpoints that another run has saved, where those of two runs lie side by side."""
        runs = {path: run for path in paths if (run := read_run(path)) is not None}
        if len(set(runs.values())) < 2:
            return {}
        own = read_identity(self.run_dir)
        if own not in runs.values():
            told = ", ".join(f"{path.name} of run {run}" for path, run in runs.items())
            raise UserError(
                f"{self.run_dir.checkpoints} holds checkpoints of several runs: {told}; move those of the others away"
            )
        return {path: f"it is of run {run}, and not of this one" for path, run in runs.items() if run != own}

    def _choose_path(self, path: Path, own: list[Path]) -> Path:
        fault = find_fault(path)
        if fault:
            raise UserError(f"resume: {path}: {fault}; allowed: auto, never, or the path of a complete checkpoint")
        if own and read_seal(path) == read_seal(own[-1]):
            return own[-1]  # `latest`, which is a folder where links were copied as what they point at
        if own and path.resolve() != own[-1].resolve():
            raise UserError(
                f"resume: {path}: {self.run_dir.root} holds {own[-1].name}, which would be lost; "
                "choose another run_dir for the new branch, or set resume=auto"
            )
        return path.resolve()  # `latest` is a link that will point elsewhere

    def _is_own(self, path: Path) -> bool:
        return path.parent.resolve() == self.run_dir.checkpoints.resolve()

    def _compare(self, path: Path, manifest: Mapping[str, Any]) -> None:
        """Tell every key that changed and what follows from it. Raises UserError where it must not change."""
        changed = find_changes(manifest["plan"], self.plan)
        problems = [
            f"{path} was made by another run ({name} was {old} and is {new}); choose another run_dir, give the config "
            f"it was made with, or go on all the same with resume_anyway=[{name}]"
            for name, (old, new) in changed.items()
            if name not in self.resume_anyway
        ]
        if problems:
            raise UserError(problems)
        self.changes = changed | find_changes(manifest["config"], self.config)
        for name, (old, new) in self.changes.items():
            if name in changed:
                effect = "going on all the same"
            else:
                effect = "planned anew from here on" if name in self.replanned else "no update depends on it"
            self.console.say(f"changed since the checkpoint: {name} was {old} and is {new}: {effect}")


def _select_saved(model: nn.Module) -> dict[str, Tensor]:
    """All that training may change: parameters that learn, and buffers; what has two names by the first of them."""
    frozen = {name for name, parameter in model.named_parameters(remove_duplicate=False) if not parameter.requires_grad}
    saved: dict[str, Tensor] = {}
    origins = set()
    for name, tensor in model.state_dict().items():
        place = (tensor.untyped_storage().data_ptr(), tensor.storage_offset(), tuple(tensor.shape))
        if name not in frozen and (place not in origins or not tensor.numel()):
            origins.add(place)
            saved[name] = tensor.contiguous()  # safetensors takes no other
    return saved


def _check_names(path: Path, model: nn.Module) -> None:
    """Raises ValueError where a checkpoint has not the weights that this model wants of it."""
    wanted = set(_select_saved(model))
    with safe_open(path / "model.safetensors", framework="pt") as file:
        saved = set(file.keys())
    if missing := sorted(wanted - saved):
        raise ValueError(f"it has no weights {', '.join(missing[:3])}")
    if surplus := sorted(saved - wanted):
        raise ValueError(f"the model has no weights {', '.join(surplus[:3])} that learn")


def _unwrap_models(models: list[nn.Module], _directory: str) -> None:
    models[:] = [model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model for model in models]
