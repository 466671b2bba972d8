"""Saves and loads checkpoints. They are verified before they are loaded."""

import contextlib
import os
import uuid
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from copy import deepcopy
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Protocol

from accelerate import Accelerator
from safetensors import SafetensorError
from torch import nn
from torch.optim.lr_scheduler import LRScheduler

from trainer_loop.errors import UserError, in_one_line, refuse
from trainer_loop.optim.averages import AveragedWeights
from trainer_loop.parallel.processes import announce_fault, broadcast, make_gather, on_process_0, sum_on_hosts
from trainer_loop.parallel.sharding import copy_into, spread_state
from trainer_loop.record.checkpoint_choice import choose_checkpoint, find_wrong_run, is_in
from trainer_loop.record.checkpoint_files import (
    AVERAGES,
    MANIFEST,
    OPTIMIZER,
    REGISTERED,
    SCALER,
    SCHEDULER,
    STATE,
    WEIGHTS,
    describe_changes,
    find_changes,
    find_fault,
    list_checkpoints,
    read_seal,
    refuse_other_run,
    set_aside,
)
from trainer_loop.record.checkpoint_parts import CheckpointReader, StoredTensor, split_snapshot
from trainer_loop.record.checkpoint_writer import CheckpointWriter
from trainer_loop.record.logs import Console
from trainer_loop.record.run_dir import (
    RunDir,
    package_versions,
    read_json_object,
    remove,
)
from trainer_loop.record.snapshot import HostMemory, Snapshot, select_saved
from trainer_loop.record.state import TrainState
from trainer_loop.runtime.memory import is_out_of_memory
from trainer_loop.runtime.stopwatch import Stopwatch

# Errors that torch, safetensors and optimizers raise for files with unexpected content.
_UNFIT = (RuntimeError, ValueError, LookupError, TypeError, AttributeError, EOFError, UnpicklingError, SafetensorError)


class Stateful(Protocol):
    """State that a custom loop keeps from step to step; it consists of tensors, numbers, texts and containers."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> Any: ...


@dataclass(eq=False, repr=False)
class Checkpointer:
    """Saves and loads the checkpoints of one run. All processes load.

    Process 0 writes. If the model is sharded, each process writes its part.

    Frozen parameters are not saved: they have the values of the base model, which the run facts identify.
    """

    run_dir: RunDir
    _: KW_ONLY
    accelerator: Accelerator
    scheduler: LRScheduler
    console: Console
    run_facts: dict[str, Any]  # what decides the updates (rows, seed, model, ...); they must match
    config: dict[str, Any] = field(default_factory=dict)  # every key of the run; changes are reported on resume
    replanned: Sequence[str] = ()  # keys of `config` that are applied again after a restore
    resume_anyway: Sequence[str] = ()  # names in `run_facts` that may differ
    averaged_weights: AveragedWeights | None = None
    keep_last: int = 2
    is_sharded: bool = False  # the model is spread over the processes
    background: bool = False  # write in a thread, from a copy of the state in host memory
    stopwatch: Stopwatch = field(default_factory=Stopwatch)

    def __post_init__(self) -> None:
        self.run = uuid.uuid4().hex[:16]  # identity of the run, stored in every checkpoint
        self.changes: dict[str, tuple[Any, Any]] = {}  # key -> its value in the loaded checkpoint, and its value now
        self.fault: str | None = None  # error of the last save; None: the checkpoint is complete
        self._failing = False
        self._saving: Future[None] | None = None
        self._host_memory = HostMemory()  # for snapshots that are written in the background
        self._registered: dict[str, Stateful] = {}
        self._seals: dict[int, str | None] = {}  # step -> seal of the checkpoint that this process saved or loaded
        self._writer = CheckpointWriter(
            self.run_dir,
            self.console,
            gather=make_gather(self.accelerator) if self.is_sharded else lambda value: [value],
            is_main_process=self.accelerator.is_main_process,
            keep_last=self.keep_last,
        )

    def register_for_checkpoint(self, name: str, part: Stateful) -> None:
        """Save and restore `part` too, under this name, from now on."""
        assert name not in self._registered, f"{name} is registered already"
        self._registered[name] = part

    # ------------------------------------------------------------------------------------------------------ saving

    def save(self, state: TrainState) -> None:
        """Save a checkpoint. All processes call this. A disk error is reported and stored in `fault`.

        Without shards no process waits for another.
        """
        with self.stopwatch.measuring("checkpoints"):
            self._save(state)

    def _save(self, state: TrainState) -> None:
        self._join()  # a background save may still write the copy, which must not change
        if self.is_sharded:
            is_needed = on_process_0(self.accelerator, lambda: self._prepare_target(state.step))
        else:
            is_needed = self.accelerator.is_main_process and self._prepare_target(state.step)
        if not is_needed:
            return
        files = self._take_snapshot(state)
        if self.is_sharded:
            files = split_snapshot(files)
        if self.background:
            executor = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
            self._saving = executor.submit(self._write, self._host_memory.copy(files), deepcopy(state))
            executor.shutdown(wait=False)  # its thread ends with this save
        else:
            self._write(files, state)
            self._report_fault()

    def _prepare_target(self, step: int) -> bool:
        """Return whether this step must be saved; another checkpoint with the same name is set aside."""
        self.ensure_own_directory()
        target = self.run_dir.checkpoint(step)
        if not os.path.lexists(target):
            return True
        if self._seals.get(step, "") == read_seal(target):
            return False  # it has these weights: they were loaded from it, or saved at this step before
        self.console.warn(set_aside(target, fault="it was not saved by this run"))
        return True

    def check(self) -> None:
        """Raise or report an error of a background save, once the save has ended. It does not wait."""
        if self._saving is not None and self._saving.done():
            self._join()

    def finish(self) -> None:
        """Wait for a background save, on all processes."""
        self._join()
        self.accelerator.wait_for_everyone()

    def mark_best(self, step: int) -> bool:
        """Point `best` at the checkpoint of this step. Returns False on all processes if it was not saved."""
        self._join()
        saved = self.run_dir.checkpoint(step).is_dir()
        if self.accelerator.is_main_process and saved:
            self._writer.link("best", self.run_dir.checkpoint(step))
        return bool(broadcast(self.accelerator, saved))

    def ensure_own_directory(self) -> None:
        """Raise RunDirInUse on process 0 if another run has started in this run directory since this one started."""
        if self.accelerator.is_main_process:
            refuse_other_run(self.run_dir, self.run)

    def end_run(self) -> None:
        """Warn if the last checkpoint is missing. Called before the export. Raises RunDirInUse."""
        if self.fault is not None:
            self.console.warn(f"the last checkpoint is missing: {self.fault}")
        self.ensure_own_directory()

    def describe_newest(self) -> str:
        """Return text that says from which checkpoint a restarted run would continue."""
        saved = list_checkpoints(self.run_dir)
        failed = "" if self.fault is None else "the last save failed; "
        return failed + (f"saved in {saved[-1]}" if saved else "nothing is saved")

    def _join(self) -> None:
        if self._saving is not None:
            saving, self._saving = self._saving, None
            saving.result()
            self._report_fault()

    def _report_fault(self) -> None:
        """Report once when saves start to fail, and once when they work again."""
        if self.fault is not None and not self._failing:
            self.console.warn(f"{self.fault}; training goes on, and saves are tried again")
        if self.fault is None and self._failing:
            self.console.say("checkpoints can be saved again")
        self._failing = self.fault is not None

    def _take_snapshot(self, state: TrainState) -> Snapshot:
        """Collect the state of all components. Tensors are not copied."""
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
        if self._registered:
            snapshot[REGISTERED] = {name: part.state_dict() for name, part in self._registered.items()}
        return snapshot | {STATE: state.state_dict()}

    def _write(self, files: Snapshot, state: TrainState) -> None:
        """Write the files; sets `fault` to the error of the disk, or to None if the checkpoint is complete."""
        facts = {
            "run": self.run,
            "step": state.step,
            "num_processes": self.accelerator.num_processes,
            "plan": self.run_facts,
            "config": self.config,
            "versions": package_versions(),
        }
        result = self._writer.write(files, step=state.step, best_step=state.best_step, facts=facts)
        self.fault = None
        if result.fault is None:
            self._seals[state.step] = result.seal
        else:
            saved = list_checkpoints(self.run_dir)
            newest = f"the newest is {saved[-1].name}" if saved else "there is none yet"
            self.fault = f"the checkpoint of step {state.step:,} could not be saved: {result.fault}; {newest}"

    # ----------------------------------------------------------------------------------------------------- loading

    def load(self, resume: str) -> TrainState | None:
        """Restore model, optimizer and schedule, and return the state to continue from; None for a new run.

        All processes call this. See `choose_checkpoint` for `resume`.

        Raises:
            UserError: Also for a checkpoint of another run.
        """
        if self.is_sharded:
            self._check_shared_disk()
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
        is_own = is_in(self.run_dir, path)  # then this run has saved it
        if is_own:
            self.run = manifest.get("run") or self.run
            self._seals[manifest["step"]] = read_seal(path)
        self._compare(path, manifest)
        self._restore(path)
        state = TrainState.from_dict(read_json_object(path / STATE))
        best = self.run_dir.checkpoint(state.best_step or 0)
        if not is_own:  # the best weights lie in another run directory
            state.forget_best()
        elif state.best_step is not None and not best.is_dir():
            self.console.warn(f"{best}, which held the best weights, is gone: the search for the best begins anew")
            state.forget_best()
        if is_own and self.accelerator.is_main_process:
            self._tidy_up(path, state)
        self._writer.num_bytes = sum(file["bytes"] for file in manifest["files"].values())
        saved_by = manifest["num_processes"]
        if saved_by != self.accelerator.num_processes:
            self.console.say(
                f"saved by {saved_by} processes, resumed by {self.accelerator.num_processes}: "
                "the same rows in the same steps"
            )
        return state

    def load_weights(self, model: nn.Module, step: int) -> str | None:
        """Load only the weights of a checkpoint, on all processes; returns its fault, or None for success."""
        self.finish()
        path = self.run_dir.checkpoint(step)
        if fault := on_process_0(self.accelerator, lambda: find_fault(path) or find_wrong_run(path, self.run)):
            return f"{path}: {fault}"
        try:
            reader = CheckpointReader(path)
            _load_weights(reader.tensors(WEIGHTS), model)  # of this run, so its names fit
            averages = reader.tensors(AVERAGES)
            if self.averaged_weights is not None and averages:
                self.averaged_weights.copy_to_model(averages)
        except (OSError, SafetensorError) as error:  # it was removed or changed after the check
            message = f"{path} cannot be read: {in_one_line(error)}; the same command goes on from the last checkpoint"
            announce_fault(self.accelerator, message)
            raise UserError(message) from error
        return None

    def _check_shared_disk(self) -> None:
        """Raise UserError if a process does not see what process 0 writes: its part would be written elsewhere."""

        def write_mark() -> str:
            self.run_dir.make()
            mark = self.run_dir.root / f".seen-by-all-{self.run}"
            with contextlib.suppress(OSError):  # a full or read-only disk is reported by the save
                mark.touch()
            return mark.name if mark.exists() else ""

        name = on_process_0(self.accelerator, write_mark)
        num_blind = int(sum_on_hosts(self.accelerator, [bool(name) and not (self.run_dir.root / name).exists()])[0])
        if name and self.accelerator.is_main_process:
            remove(self.run_dir.root / name)
        if num_blind:
            raise UserError(
                f"run_dir: {self.run_dir.root}: {num_blind} of {self.accelerator.num_processes} processes do not see "
                "what process 0 writes there, and each writes its part of a checkpoint; choose a directory on a file "
                "system that all machines share"
            )

    def _compare(self, path: Path, manifest: Mapping[str, Any]) -> None:
        """Report every key that changed, with its effect. Raises UserError for a key that must not change."""
        changed = find_changes(manifest["plan"], self.run_facts)
        in_config = find_changes(manifest["config"], self.config)
        # Rows and tokens are compared by hashes; the config keys say what changed.
        keys = dict.fromkeys(("data", "tokens"), in_config)
        problems = [
            f"{path} was made by another run ({describe_changes({name: both, **keys.get(name, {})})}); choose another "
            f"run_dir, give the config it was made with, or resume with resume_anyway=[{name}]"
            for name, both in changed.items()
            if name not in self.resume_anyway
        ]
        refuse(problems)
        self.changes = changed | in_config
        for name, (old, new) in self.changes.items():
            if name in changed:
                effect = "allowed by resume_anyway"
            else:
                effect = "planned anew from here on" if name in self.replanned else "no update depends on it"
            self.console.say(f"changed since the checkpoint: {name} was {old} and is {new}: {effect}")

    def _restore(self, path: Path) -> None:
        """Load every file of a verified checkpoint. Raises UserError if a file does not fit this run."""
        model, scaler = self.accelerator.unwrap_model(self.accelerator._models[0]), self.accelerator.scaler
        try:
            reader = CheckpointReader(path)
            _check_weights(reader.tensors(WEIGHTS), model)
            _load_weights(reader.tensors(WEIGHTS), model)
            if "optimizer.name" not in self.changes:  # another optimizer cannot use the state
                optimizer = self.accelerator._optimizers[0]
                saved = reader.load(OPTIMIZER, mmap=self.is_sharded)
                is_spread = self.is_sharded or reader.has_parts
                optimizer.load_state_dict(spread_state(saved, optimizer) if is_spread else saved)
            if "scheduler.name" not in self.changes:
                self.scheduler.load_state_dict(reader.load(SCHEDULER))
            if scaler is not None and (path / SCALER).exists():
                scaler.load_state_dict(reader.load(SCALER))
            averages = reader.tensors(AVERAGES)
            if self.averaged_weights is not None and averages:
                self.averaged_weights.load_state_dict(averages)
            elif self.averaged_weights is not None:
                self.averaged_weights.restart()
                self.console.warn(f"{path} has no averaged weights: the average begins at its weights")
            self._load_registered(reader.load_whole(REGISTERED) if (path / REGISTERED).exists() else {})
        except OSError as error:
            raise UserError(f"{path} cannot be read: {error.strerror or in_one_line(error)}") from error
        except _UNFIT as error:
            if is_out_of_memory(error):
                raise
            raise UserError(
                f"{path} does not fit this model and optimizer: {in_one_line(error)}; "
                "choose another run_dir or give the config it was made with"
            ) from error

    def _load_registered(self, saved: Mapping[str, Any]) -> None:
        if missing := sorted(set(saved) ^ set(self._registered)):
            names = ", ".join(missing)
            raise ValueError(f"only one of the two runs, the one that saved it and this one, registered {names}")
        for name, part in self._registered.items():
            part.load_state_dict(saved[name])

    def _tidy_up(self, path: Path, state: TrainState) -> None:
        """Repair the links, and remove files that a kill during a save, or a damaged checkpoint, has left behind."""
        self._writer.link("latest", path)
        if state.best_step is not None:
            self._writer.link("best", self.run_dir.checkpoint(state.best_step))
        with contextlib.suppress(OSError):  # a disk that is read-only
            self._writer.remove_left_overs()
            self._writer.rotate(self.run, state.best_step)


def _check_weights(stored: Mapping[str, StoredTensor], model: nn.Module) -> None:
    """Raise ValueError if a checkpoint does not have exactly the weights that this model needs."""
    expected = select_saved(model)
    if missing := sorted(expected.keys() - stored.keys()):
        raise ValueError(f"it has no weights {', '.join(missing[:3])}")
    if surplus := sorted(stored.keys() - expected.keys()):
        raise ValueError(f"the model has no weights {', '.join(surplus[:3])} that learn")
    for name, tensor in expected.items():
        if stored[name].shape != tensor.shape:
            raise ValueError(f"{name} has the shape {list(stored[name].shape)}, in the model {list(tensor.shape)}")


def _load_weights(stored: Mapping[str, StoredTensor], model: nn.Module) -> None:
    tensors = model.state_dict()
    for name in select_saved(model):
        copy_into(tensors[name], stored[name])
