"""Which checkpoint a run resumes from, where there are several, damaged ones, or those of another run."""

from pathlib import Path

from trainer_loop.errors import UserError
from trainer_loop.record.checkpoint_files import find_fault, list_checkpoints, read_run, read_seal, set_aside
from trainer_loop.record.logs import Console
from trainer_loop.record.run_dir import RunDir, read_identity


def choose_checkpoint(run_dir: RunDir, resume: str, console: Console) -> Path | None:
    """The verified checkpoint to resume from; None for a new run. Damaged ones are set aside with a warning.

    resume: auto (the newest complete checkpoint), never, or the path of a checkpoint. Raises UserError where this one
    or all are damaged, or where resuming would lose one.
    """
    own = list_checkpoints(run_dir)
    if resume == "never":
        if own:
            raise UserError(
                f"resume: never, but {run_dir.root} holds {own[-1].name}; "
                "choose another run_dir, delete it, or set resume=auto"
            )
        return None
    if resume != "auto" and (not own or is_in(run_dir, Path(resume))):
        return _verify(Path(resume), run_dir, own)
    # Also where `resume` names another run's checkpoint: the same command, started again, goes on from its own.
    return _choose_newest(run_dir, own, console)


def is_in(run_dir: RunDir, checkpoint: Path) -> bool:
    """Whether a checkpoint lies in this run directory."""
    return checkpoint.parent.resolve() == run_dir.checkpoints.resolve()


def find_stranger(checkpoint: Path, run: str | None) -> str | None:
    """A message where the checkpoint says that another run than `run` saved it."""
    saved_by = read_run(checkpoint)
    return None if saved_by in (None, run) else f"it is of run {saved_by}, and not of this one"


def _verify(path: Path, run_dir: RunDir, own: list[Path]) -> Path:
    """The checkpoint that the config names. own: those of this run directory."""
    if fault := find_fault(path):
        raise UserError(f"resume: {path}: {fault}; allowed: auto, never, or the path of a complete checkpoint")
    if own and read_seal(path) == read_seal(own[-1]):
        return own[-1]  # `latest`, which is a folder where links were copied as what they point at
    if own and path.resolve() != own[-1].resolve():
        raise UserError(
            f"resume: {path}: {run_dir.root} holds {own[-1].name}, which would be lost; "
            "choose another run_dir for the new branch, or set resume=auto"
        )
    return path.resolve()  # `latest` is a link that will point elsewhere


def _choose_newest(run_dir: RunDir, own: list[Path], console: Console) -> Path | None:
    faults = {path: fault for path in reversed(own) if (fault := find_fault(path))}
    faults |= _find_strangers(run_dir, [path for path in own if path not in faults])
    whole = [path for path in own if path not in faults]
    if faults and not whole:
        told = [f"{path}: {fault}" for path, fault in faults.items()]
        raise UserError([*told, f"{run_dir.root} holds no complete checkpoint; delete it to begin anew"])
    for path, fault in faults.items():
        console.warn(set_aside(path, fault=fault))
    return whole[-1] if whole else None


def _find_strangers(run_dir: RunDir, paths: list[Path]) -> dict[Path, str]:
    """What is wrong with the checkpoints of another run, where those of two runs lie side by side."""
    runs = {path: run for path in paths if (run := read_run(path)) is not None}
    if len(set(runs.values())) < 2:
        return {}
    this_run = read_identity(run_dir)
    if this_run not in runs.values():
        told = ", ".join(f"{path.name} of run {run}" for path, run in runs.items())
        where = f"{run_dir.checkpoints} holds checkpoints of several runs"
        raise UserError(f"{where}: {told}; move those of the others away")
    return {path: stranger for path in runs if (stranger := find_stranger(path, this_run))}
