"""`python -m trainer_loop.checkpoints RUN`: verify the checkpoints of a run; list step, size, metrics and damage."""

from collections.abc import Mapping
from pathlib import Path

from trainer_loop.cli.command import run_command
from trainer_loop.errors import UserError, printable
from trainer_loop.record.checkpoint_files import STATE, find_fault, list_checkpoints, list_set_aside
from trainer_loop.record.logs import read_metrics
from trainer_loop.record.run_dir import RunDir, read_json_object
from trainer_loop.runtime.streams import put_out

_USAGE = "python -m trainer_loop.checkpoints RUN_DIRECTORY"


def main(argv: list[str] | None = None) -> int:
    """Print the table. Returns 0 if all checkpoints are complete, 2 if one is not or there is none."""
    return run_command(argv, f"{_USAGE}\n\n{__doc__}\n", _list, prints_result=True)


def _list(arguments: list[str]) -> int:
    if len(arguments) != 1:
        raise UserError(f"{len(arguments)} arguments were given; the form is: {_USAGE}")
    lines, complete = describe_checkpoints(Path(arguments[0].removeprefix("run_dir=")))
    put_out("".join(f"{printable(line)}\n" for line in lines))
    return 0 if complete else UserError.exit_code


def describe_checkpoints(root: Path) -> tuple[list[str], bool]:
    """Return one line for each checkpoint, oldest first, and whether all are complete.

    Raises:
        UserError: `root` has no checkpoints.
    """
    run_dir = RunDir(root)
    paths = list_checkpoints(run_dir) if run_dir.exists() else []
    aside = list_set_aside(run_dir) if run_dir.exists() else []
    if not paths and not aside:
        there = "holds no checkpoint" if run_dir.exists() else "is no directory"
        raise UserError(f"{root} {there}; name the run_dir of a run, such as runs/imdb")
    metrics = _read_validation_metrics(run_dir.metrics)
    links = _find_links(run_dir, paths)
    lines = [f"{'step':>10}  {'size':>10}  checkpoint"]
    faults = {path: find_fault(path) for path in paths}
    for path, fault in faults.items():
        step = int(path.name.removeprefix("step-"))
        marks = ", ".join(name for name, target in links.items() if target == path)
        size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
        parts = ["complete" if fault is None else f"DAMAGED: {fault}", marks, metrics.get(step, "")]
        lines.append(f"{step:>10,}  {size / 2**20:>7,.1f} MB  " + "; ".join(filter(None, parts)))
    lines += [f"set aside: {path.name}, which was damaged; delete it if you do not need it" for path in aside]
    return lines, not any(faults.values())


def _find_links(run_dir: RunDir, paths: list[Path]) -> dict[str, Path]:
    """Return the checkpoints `latest` and `best`: the targets of the links, else what the newest state says."""
    links = dict(zip(["latest"], reversed(paths), strict=False))
    try:
        step = read_json_object(links["latest"] / STATE)["best_step"] if links else None
    except (OSError, ValueError, KeyError):  # damaged; `find_fault` reports it
        step = None
    if isinstance(step, int):
        links["best"] = run_dir.checkpoint(step)
    for name in ("latest", "best"):
        link = run_dir.checkpoints / name
        if link.is_symlink():
            links[name] = run_dir.checkpoints / link.readlink().name
    return links


def _read_validation_metrics(file: Path) -> Mapping[int, str]:
    """Return the validation metrics of each evaluated step as text."""
    try:
        rows = read_metrics(file)
    except OSError:
        return {}
    metrics: dict[int, str] = {}
    for row in rows:
        shown = [
            f"{name.removeprefix('validation/')} {value:.4g}"
            for name, value in row.items()
            if name.startswith("validation/") and name != "validation/rows" and isinstance(value, (int, float))
        ]
        if shown:
            metrics[row["step"]] = ", ".join(shown)
    return metrics
