"""`python -m trainer_loop.checkpoints RUN`: every checkpoint of a run, verified: step, size, figures, what is wrong."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path

from trainer_loop.errors import UserError

_USAGE = "python -m trainer_loop.checkpoints RUN_DIRECTORY"


def main(argv: list[str] | None = None) -> int:
    """Print the table; 0 where every checkpoint is complete, 2 where one is not or there is none."""
    arguments = sys.argv[1:] if argv is None else argv
    if arguments in (["--help"], ["-h"]):
        print(f"{_USAGE}\n\n{__doc__}")
        return 0
    try:
        if len(arguments) != 1:
            raise UserError(f"{len(arguments)} arguments were given; the form is: {_USAGE}")
        lines, complete = describe_checkpoints(Path(arguments[0].removeprefix("run_dir=")))
    except UserError as error:
        for problem in error.problems:
            print(f"error: {problem}", file=sys.stderr)
        return error.exit_code
    print("\n".join(lines))
    return 0 if complete else UserError.exit_code


def describe_checkpoints(root: Path) -> tuple[list[str], bool]:
    """A line per checkpoint, oldest first, and whether all of them are complete.

    Raises UserError where `root` holds none.
    """
    from trainer_loop.record.checkpoint_files import find_fault, list_checkpoints, list_set_aside
    from trainer_loop.record.run_dir import RunDir

    run_dir = RunDir(root)
    paths = list_checkpoints(run_dir)
    aside = list_set_aside(run_dir)
    if not paths and not aside:
        there = "is no directory" if not root.is_dir() else "holds no checkpoint"
        raise UserError(f"{root} {there}; name the run_dir of a run, such as runs/imdb")
    figures = _read_figures(run_dir.metrics)
    marks = {link.resolve(): name for name in ("latest", "best") if (link := run_dir.checkpoints / name).exists()}
    both = (run_dir.checkpoints / "latest").resolve() == (run_dir.checkpoints / "best").resolve()
    lines = [f"{'step':>10}  {'size':>10}  checkpoint"]
    complete = True
    for path in paths:
        step = int(path.name.removeprefix("step-"))
        fault = find_fault(path)
        complete = complete and fault is None
        mark = "latest, best" if both and path.resolve() in marks else marks.get(path.resolve(), "")
        size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
        told = ["complete" if fault is None else f"DAMAGED: {fault}", mark, figures.get(step, "")]
        lines.append(f"{step:>10,}  {size / 2**20:>7,.1f} MB  " + "; ".join(filter(None, told)))
    lines += [f"set aside: {path.name}, which was damaged; delete it when it is of no use" for path in aside]
    return lines, complete


def _read_figures(metrics: Path) -> Mapping[int, str]:
    """The validation figures of every step that was evaluated, in a few words."""
    figures: dict[int, str] = {}
    if not metrics.exists():
        return figures
    for line in metrics.read_text(encoding="utf-8").splitlines():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:  # the last row, cut off by a kill
            continue
        told = [
            f"{name.removeprefix('validation/')} {value:.4g}"
            for name, value in row.items()
            if name.startswith("validation/") and name != "validation/rows" and value is not None
        ]
        if told:
            figures[row["step"]] = ", ".join(told)
    return figures


if __name__ == "__main__":
    sys.exit(main())
