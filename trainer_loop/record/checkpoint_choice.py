"""Chooses the checkpoint that a run resumes from, if there are several, damaged ones, or ones of another run."""

from pathlib import Path

from trainer_loop.errors import UserError
from trainer_loop.record.checkpoint_files import find_fault, list_checkpoints, read_run, read_seal, set_aside
from trainer_loop.record.logs import Console
from trainer_loop.record.run_dir import RunDir, read_identity


def choose_checkpoint(run_dir: RunDir, resume: str, console: Console) -> Path | None:
    """Return the verified checkpoint to resume from; None for a new run. Damaged ones are set aside with a warning.

    Args:
        resume: auto (the newest complete checkpoint), never, or the path of a checkpoint.

    Raises:
        UserError: The named checkpoint or all checkpoints are damaged, or resuming would lose a checkpoint.
    """
    checkpoints = list_checkpoints(run_dir)
    if resume == "never":
        if checkpoints:
            raise UserError(
                f"resume: never, but {run_dir.root} holds {checkpoints[-1].name}; "
                "choose another run_dir, delete it, or set resume=auto"
            )
        return None
    if resume != "auto" and (not checkpoints or is_in(run_dir, Path(resume))):
        return _verify(Path(resume), run_dir, checkpoints)
    # This includes a `resume` that names another run's checkpoint: when the same command is started again, the run
    # resumes from the checkpoints of this run.
    return _choose_newest(run_dir, checkpoints, console)


def is_in(run_dir: RunDir, checkpoint: Path) -> bool:
    """Return whether a checkpoint lies in this run directory."""
    return checkpoint.parent.resolve() == run_dir.checkpoints.resolve()


def find_wrong_run(checkpoint: Path, run: str | None) -> str | None:
    """Return a message if the checkpoint was saved by another run than `run`, else None."""
    saved_by = read_run(checkpoint)
    return None if saved_by in (None, run) else f"it is of run {saved_by}, and not of this one"


def _verify(path: Path, run_dir: RunDir, checkpoints: list[Path]) -> Path:
    """Return the checkpoint that the config names, if it may be used. checkpoints: of this run directory."""
    if fault := find_fault(path):
        raise UserError(f"resume: {path}: {fault}; allowed: auto, never, or the path of a complete checkpoint")
    if checkpoints and read_seal(path) == read_seal(checkpoints[-1]):
        return checkpoints[-1]  # `latest` is a folder if the copy of a run directory followed links
    if checkpoints and path.resolve() != checkpoints[-1].resolve():
        raise UserError(
            f"resume: {path}: {run_dir.root} holds {checkpoints[-1].name}, which would be lost; "
            "choose another run_dir for the new branch, or set resume=auto"
        )
    return path.resolve()  # `latest` is a link that will point elsewhere


def _choose_newest(run_dir: RunDir, checkpoints: list[Path], console: Console) -> Path | None:
    faults = {path: fault for path in reversed(checkpoints) if (fault := find_fault(path))}
    faults |= _find_wrong_runs(run_dir, [path for path in checkpoints if path not in faults])
    whole = [path for path in checkpoints if path not in faults]
    if faults and not whole:
        messages = [f"{path}: {fault}" for path, fault in faults.items()]
        raise UserError([*messages, f"{run_dir.root} holds no complete checkpoint; delete it to begin anew"])
    for path, fault in faults.items():
        console.warn(set_aside(path, fault=fault))
    return whole[-1] if whole else None


def _find_wrong_runs(run_dir: RunDir, paths: list[Path]) -> dict[Path, str]:
    """Return a message for each checkpoint of another run, where checkpoints of several runs lie side by side."""
    runs = {path: run for path in paths if (run := read_run(path)) is not None}
    if len(set(runs.values())) < 2:
        return {}
    this_run = read_identity(run_dir)
    if this_run not in runs.values():
        names = ", ".join(f"{path.name} of run {run}" for path, run in runs.items())
        where = f"{run_dir.checkpoints} holds checkpoints of several runs"
        raise UserError(f"{where}: {names}; move those of the others away")
    return {path: message for path in runs if (message := find_wrong_run(path, this_run))}
