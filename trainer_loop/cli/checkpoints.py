"""`python -m trainer_loop.checkpoints RUN`: every checkpoint of a run, verified: step, size, figures, what is wrong."""

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
    """Print the table; 0 where every checkpoint is complete, 2 where one is not or there is none."""
    return run_command(argv, f"{_USAGE}\n\n{__doc__}\n", _list, prints_result=True)


def _list(arguments: list[str]) -> int:
    if len(arguments) != 1:
        raise UserError(f"{len(arguments)} arguments were given; the form is: {_USAGE}")
    lines, complete = describe_checkpoints(Path(arguments[0].removeprefix("run_dir=")))
    put_out("".join(f"{printable(line)}\n" for line in lines))
    return 0 if complete else UserError.exit_code


def describe_checkpoints(root: Path) -> tuple[list[str], bool]:
    """A line per checkpoint, oldest first, and whether all are complete. Raises UserError where `root` holds none."""
    run_dir = RunDir(root)
    paths = list_checkpoints(run_dir) if run_dir.exists() else []
    aside = list_set_aside(run_dir) if run_dir.exists() else []
    if not paths and not aside:
        there = "holds no checkpoint" if run_dir.exists() else "is no directory"
        raise UserError(f"{root} {there}; name the run_dir of a run, such as runs/imdb")
    figures = _read_figures(run_dir.metrics)
    marked = _find_marked(run_dir, paths)
    lines = [f"{'step':>10}  {'size':>10}  checkpoint"]
    faults = {path: find_fault(path) for path in paths}
    for path, fault in faults.items():
        step = int(path.name.removeprefix("step-"))
        mark = ", ".join(name for name, which in marked.items() if which == path)
        size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
        parts = ["complete" if fault is None else f"DAMAGED: {fault}", mark, figures.get(step, "")]
        lines.append(f"{step:>10,}  {size / 2**20:>7,.1f} MB  " + "; ".join(filter(None, parts)))
    lines += [f"set aside: {path.name}, which was damaged; delete it when it is of no use" for path in aside]
    return lines, not any(faults.values())


def _find_marked(run_dir: RunDir, paths: list[Path]) -> dict[str, Path]:
    """The newest and the best: where the links point, or what the newest state says where a copy has none."""
    marked = dict(zip(["latest"], reversed(paths), strict=False))
    try:
        step = read_json_object(marked["latest"] / STATE)["best_step"] if marked else None
    except (OSError, ValueError, KeyError):  # damaged, which is told of it
        step = None
    if isinstance(step, int):
        marked["best"] = run_dir.checkpoint(step)
    for name in ("latest", "best"):
        link = run_dir.checkpoints / name
        if link.is_symlink():
            marked[name] = run_dir.checkpoints / link.readlink().name
    return marked


def _read_figures(metrics: Path) -> Mapping[int, str]:
    """The validation figures of every step that was evaluated, in a few words."""
    try:
        rows = read_metrics(metrics)
    except OSError:
        return {}
    figures: dict[int, str] = {}
    for row in rows:
        shown = [
            f"{name.removeprefix('validation/')} {value:.4g}"
            for name, value in row.items()
            if name.startswith("validation/") and name != "validation/rows" and isinstance(value, (int, float))
        ]
        if shown:
            figures[row["step"]] = ", ".join(shown)
    return figures
