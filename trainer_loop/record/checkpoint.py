"""Checkpoints: written beside, flushed, renamed, verified before they are loaded."""

import contextlib
import errno
import os
import shutil
import uuid
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from accelerate.utils import load
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, load_model, save_file
from torch import nn
from torch.optim.lr_scheduler import LRScheduler

from trainer_loop.errors import UserError, in_one_line, refuse
from trainer_loop.optim.ema import Ema
from trainer_loop.optim.schedule_free import ScheduleFreeAverages
from trainer_loop.parallel.processes import broadcast, on_process_0, sum_on_hosts
from trainer_loop.parallel.sharding import copy_into, gather, spread_state
from trainer_loop.record.checkpoint_choice import choose_checkpoint, find_stranger, is_in
from trainer_loop.record.checkpoint_files import (
    AVERAGES,
    KEPT,
    MANIFEST,
    OPTIMIZER,
    SCALER,
    SCHEDULER,
    STATE,
    WEIGHTS,
    compute_checksum,
    find_changes,
    find_fault,
    list_checkpoints,
    point,
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
    read_json_object,
    remove,
    write_json,
)
from trainer_loop.record.run_lock import RunDirInUse
from trainer_loop.record.snapshot import HostMemory, Snapshot, select_saved
from trainer_loop.record.state import TrainState
from trainer_loop.runtime.memory import is_out_of_memory

AveragedWeights = Ema | ScheduleFreeAverages  # evaluated and exported in place of the weights

_ROOM = 1.05  # times the last checkpoint's size must be free
# What torch, safetensors and optimizers raise for files that are not what they expect.
_UNFIT = (RuntimeError, ValueError, LookupError, TypeError, AttributeError, EOFError, UnpicklingError, SafetensorError)


class Stateful(Protocol):
    """What a loop of one's own keeps from step to step; its state is made of tensors, numbers, texts and containers."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> Any: ...


@dataclass(eq=False, repr=False)
class Checkpointer:
    """Saves and loads the checkpoints of one run. Process 0 writes; all processes load.

    Parameters that do not learn are not saved: they are those the model began with, which the run facts identify.
    """

    run_dir: RunDir
    _: KW_ONLY
    accelerator: Accelerator
    scheduler: LRScheduler
    console: Console
    run_facts: dict[str, Any]  # what decides the updates (rows, seed, model, ...); a checkpoint with others is refused
    config: dict[str, Any] = field(default_factory=dict)  # every key of the run, to tell what changed since
    replanned: Sequence[str] = ()  # keys of `config` that take effect on what was restored
    resume_anyway: Sequence[str] = ()  # names in `run_facts` that may differ
    averaged_weights: AveragedWeights | None = None
    keep_last: int = 2
    is_sharded: bool = False  # the model is spread over the processes
    background: bool = False  # write beside training, from a copy of the state in host memory

    def __post_init__(self) -> None:
        self.run = uuid.uuid4().hex[:16]  # which run this is: every checkpoint tells whose it is
        self.changes: dict[str, tuple[Any, Any]] = {}  # key -> its value in the loaded checkpoint, and its value now
        self.fault: str | None = None  # of the last save; None: it was complete
        self._failing = False
        self._saving: Future[None] | None = None
        self._host_memory = HostMemory()  # for the snapshots that are written beside training
        self._bytes = 0  # of the last checkpoint
        self._kept: dict[str, Stateful] = {}
        self._seals: dict[int, str | None] = {}  # step -> seal of the checkpoint that this process saved or loaded
        self._links_left: set[str] = set()  # names of links that a folder keeps from being made

    def register_for_checkpoint(self, name: str, part: Stateful) -> None:
        """From now on `part` is saved and restored too, by this name."""
        assert name not in self._kept, f"{name} is kept already"
        self._kept[name] = part

    # ------------------------------------------------------------------------------------------------------ saving

    def save(self, state: TrainState) -> None:
        """Save a checkpoint. All processes call this and none waits. What the disk refuses is reported; see `fault`."""
        self._join()  # the copy that a save beside training still writes must not change
        gathered = self._gather_snapshot(state) if self.is_sharded else None
        if not self.accelerator.is_main_process:
            return
        self.ensure_own_directory()
        target = self.run_dir.checkpoint(state.step)
        if os.path.lexists(target):
            if self._seals.get(state.step, "") == read_seal(target):
                return  # these very weights: loaded at the start, or saved at this step; metrics are evaluated again
            self.console.warn(set_aside(target, fault="it was not saved by this run"))
        snapshot = self._take_snapshot(state) if gathered is None else gathered
        if self.background:
            copied = self._host_memory.copy(snapshot) if gathered is None else gathered
            executor = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
            self._saving = executor.submit(self._write, copied, target)
            executor.shutdown(wait=False)  # its thread ends with this save
        else:
            self._write(snapshot, target)
            self._tell()

    def check(self) -> None:
        """Raise or tell what went wrong in a save beside training, once it is over; costs nothing else."""
        if self._saving is not None and self._saving.done():
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
        """Raise RunDirInUse on process 0 where another run wrote its identity into environment.json when it began."""
        if self.accelerator.is_main_process and read_identity(self.run_dir) not in (None, self.run):
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

    def _link(self, name: str, target: Path) -> None:
        """Let a link mean a checkpoint. Links are for people: one that cannot be made ends nothing."""
        link = self.run_dir.checkpoints / name
        with contextlib.suppress(OSError):  # a disk that is full or read-only
            if not point(link, target) and name not in self._links_left:
                self._links_left.add(name)
                self.console.warn(f"{link} is a folder and stays as it is; it does not mean {target.name}")

    def _join(self) -> None:
        if self._saving is not None:
            saving, self._saving = self._saving, None
            saving.result()
            self._tell()

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
        snapshot: dict[str, Any] = {
            WEIGHTS: select_saved(self.accelerator.unwrap_model(model)),
            OPTIMIZER: optimizer.state_dict(),
            SCHEDULER: self.scheduler.state_dict(),
        }
        if self.accelerator.scaler is not None:
            snapshot[SCALER] = self.accelerator.scaler.state_dict()
        if self.averaged_weights is not None:
            averages = self.averaged_weights.state_dict()
            snapshot[AVERAGES] = {name: average.contiguous() for name, average in averages.items()}
        if self._kept:
            snapshot[KEPT] = {name: part.state_dict() for name, part in self._kept.items()}
        return snapshot | {STATE: state.state_dict()}

    def _gather_snapshot(self, state: TrainState) -> Snapshot | None:
        """A copy of the state of everything, on process 0. All processes take part."""
        is_kept = self.accelerator.is_main_process
        snapshot = gather(self._take_snapshot(state), keeps=is_kept)
        return self._host_memory.copy(snapshot) if is_kept and self.background else snapshot

    def _write(self, snapshot: Snapshot, target: Path) -> None:
        """Sets `fault` to what the disk refused, to None where the checkpoint is complete."""
        temporary, state = target.with_name(f".{target.name}.tmp"), snapshot[STATE]
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
                f"the checkpoint of step {state['step']:,} could not be saved: "
                f"{explain_disk_error(error, self.run_dir.checkpoints)}; {kept}"
            )
        else:
            self._link("latest", target)
            if state["best_step"] == state["step"]:
                self._link("best", target)
            with contextlib.suppress(OSError):  # one that cannot be removed is tried again after the next save
                flush([target.parent])
                self._rotate(state)

    def _remove_left_overs(self) -> None:
        """What a run that was killed in the middle of a save has left."""
        for left_over in self.run_dir.checkpoints.glob(".step-*.tmp"):
            remove(left_over)

    def _write_files(self, snapshot: Snapshot, directory: Path) -> None:
        for name, content in snapshot.items():
            if name == STATE:
                write_json(directory / name, content)
            elif name in (WEIGHTS, AVERAGES):
                save_file(content, directory / name, metadata={"format": "pt"} if name == WEIGHTS else None)
            else:
                torch.save(content, directory / name)
        step = snapshot[STATE]["step"]
        files: dict[str, dict[str, Any]] = {
            file.name: {"bytes": file.stat().st_size, "crc32": compute_checksum(file)}
            for file in sorted(directory.iterdir())
        }
        self._bytes = sum(file["bytes"] for file in files.values())
        manifest = {
            "run": self.run,
            "step": step,
            "num_processes": self.accelerator.num_processes,
            "plan": self.run_facts,
            "config": self.config,
            "versions": package_versions(),
            "files": files,
        }
        (directory / MANIFEST).write_text(seal(manifest), encoding="utf-8")
        self._seals[step] = read_seal(directory)

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

        Called by all processes; see `choose_checkpoint`. Raises UserError also for a checkpoint of another run.
        """
        path = on_process_0(self.accelerator, lambda: choose_checkpoint(self.run_dir, resume, self.console))
        if path is None:
            return None
        if sum_on_hosts(self.accelerator, [not (path / MANIFEST).is_file()])[0]:
            raise UserError(
                f"{path} is not seen by every process; run_dir must lie on a file system that all of them share"
            )
        try:
            manifest = read_json_object(path / MANIFEST)
        except (OSError, ValueError) as error:
            raise UserError(f"{path / MANIFEST} cannot be read: {in_one_line(error)}") from error
        is_own = is_in(self.run_dir, path)  # and so this run is the one that saved it
        if is_own:
            self.run = manifest.get("run") or self.run
            self._seals[manifest["step"]] = read_seal(path)
        self._compare(path, manifest)
        self._restore(path)
        state = TrainState.from_dict(read_json_object(path / STATE))
        best = self.run_dir.checkpoint(state.best_step or 0)
        if not is_own:  # the weights of the best lie in another run directory
            state.forget_best()
        elif state.best_step is not None and not best.is_dir():
            self.console.warn(f"{best}, which held the best weights, is gone: the search for the best begins anew")
            state.forget_best()
        if is_own and self.accelerator.is_main_process:
            self._tidy_up(path, state)
        self._bytes = sum(file["bytes"] for file in manifest["files"].values())
        saved_by = manifest["num_processes"]
        if saved_by != self.accelerator.num_processes:
            self.console.say(
                f"saved by {saved_by} processes, resumed by {self.accelerator.num_processes}: "
                "the same rows in the same steps"
            )
        return state

    def load_weights(self, model: nn.Module, step: int) -> str | None:
        """Load only the weights of a checkpoint, on all processes; returns what is wrong with it, None for success."""
        self.finish()
        path = self.run_dir.checkpoint(step)
        if fault := on_process_0(self.accelerator, lambda: find_fault(path) or find_stranger(path, self.run)):
            return f"{path}: {fault}"
        self._load_weights(model, path)  # its names are those of the newest, which fitted
        if self.averaged_weights is not None and (path / AVERAGES).exists():
            self.averaged_weights.copy_to_model(load_file(path / AVERAGES))
        return None

    def _compare(self, path: Path, manifest: Mapping[str, Any]) -> None:
        """Tell every key that changed and what follows from it. Raises UserError where it must not change."""
        changed = find_changes(manifest["plan"], self.run_facts)
        problems = [
            f"{path} was made by another run ({name} was {old} and is {new}); choose another run_dir, give the config "
            f"it was made with, or go on all the same with resume_anyway=[{name}]"
            for name, (old, new) in changed.items()
            if name not in self.resume_anyway
        ]
        refuse(problems)
        self.changes = changed | find_changes(manifest["config"], self.config)
        for name, (old, new) in self.changes.items():
            if name in changed:
                effect = "going on all the same"
            else:
                effect = "planned anew from here on" if name in self.replanned else "no update depends on it"
            self.console.say(f"changed since the checkpoint: {name} was {old} and is {new}: {effect}")

    def _restore(self, path: Path) -> None:
        """Load every file of a verified checkpoint. Raises UserError where one does not fit this run."""
        model, scaler = self.accelerator.unwrap_model(self.accelerator._models[0]), self.accelerator.scaler
        try:
            _check_names(path, model)
            self._load_weights(model, path)
            if "optimizer.name" not in self.changes:  # the state of another one means nothing to this one
                optimizer = self.accelerator._optimizers[0]
                saved = load(path / OPTIMIZER, map_location="cpu", mmap=self.is_sharded)  # of parts, parts are read
                optimizer.load_state_dict(spread_state(saved, optimizer) if self.is_sharded else saved)
            if "scheduler.name" not in self.changes:
                self.scheduler.load_state_dict(torch.load(path / SCHEDULER, weights_only=True))
            if scaler is not None and (path / SCALER).exists():
                scaler.load_state_dict(torch.load(path / SCALER, weights_only=True))
            if self.averaged_weights is not None and (path / AVERAGES).exists():
                self.averaged_weights.load_state_dict(load_file(path / AVERAGES))
            elif self.averaged_weights is not None:
                self.averaged_weights.restart()
                self.console.warn(f"{path} has no averaged weights: the average begins at its weights")
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

    def _load_weights(self, model: nn.Module, path: Path) -> None:
        if not self.is_sharded:
            load_model(model, path / WEIGHTS, strict=False)
            return
        with safe_open(path / WEIGHTS, framework="pt") as file:
            tensors = model.state_dict()
            for name in select_saved(model):
                copy_into(tensors[name], file.get_slice(name))

    def _load_kept(self, path: Path) -> None:
        saved = torch.load(path / KEPT, weights_only=True) if (path / KEPT).exists() else {}
        if unlike := sorted(set(saved) ^ set(self._kept)):
            raise ValueError(f"{', '.join(unlike)} is kept by one of the two, the run that saved it and this one")
        for name, part in self._kept.items():
            part.load_state_dict(saved[name])

    def _tidy_up(self, path: Path, state: TrainState) -> None:
        """Mend the links and remove what a kill in the middle of a save, or a checkpoint set aside, has left behind."""
        self._link("latest", path)
        if state.best_step is not None:
            self._link("best", self.run_dir.checkpoint(state.best_step))
        with contextlib.suppress(OSError):  # a disk that is read-only
            self._remove_left_overs()
            self._rotate(state.state_dict())


def _check_names(path: Path, model: nn.Module) -> None:
    """Raises ValueError where a checkpoint has not the weights that this model wants of it."""
    wanted = set(select_saved(model))
    with safe_open(path / WEIGHTS, framework="pt") as file:
        saved = set(file.keys())
    if missing := sorted(wanted - saved):
        raise ValueError(f"it has no weights {', '.join(missing[:3])}")
    if surplus := sorted(saved - wanted):
        raise ValueError(f"the model has no weights {', '.join(surplus[:3])} that learn")
