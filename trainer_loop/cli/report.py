"""`python -m trainer_loop.report runs/imdb`: write report.html, a self-contained page about a run.

The report is made from the files in the run directory. It can be written while the run is still training, or after a
run that ended without a report. Parts without data are left out.
"""

from pathlib import Path

from trainer_loop.cli.command import run_command
from trainer_loop.errors import UserError
from trainer_loop.record.run_dir import RunDir, describe_refusal
from trainer_loop.runtime.imports import importing_torch
from trainer_loop.runtime.streams import put_out

_USAGE = "python -m trainer_loop.report RUN_DIRECTORY"


def main(argv: list[str] | None = None) -> int:
    """Write the page; returns the exit code."""
    return run_command(argv, f"{_USAGE}\n\n{__doc__}\n", _report)


def _report(arguments: list[str]) -> None:
    if len(arguments) != 1:
        raise UserError(f"{len(arguments)} arguments were given; the form is: {_USAGE}")
    put_out(f"written to {_write(Path(arguments[0].removeprefix('run_dir=')).expanduser())}\n")


def _write(root: Path) -> Path:
    with importing_torch():  # takes seconds
        from trainer_loop.report.run_report import write_report

    try:
        return write_report(root)
    except OSError as error:
        raise UserError(describe_refusal(error, RunDir(root).report)) from error
