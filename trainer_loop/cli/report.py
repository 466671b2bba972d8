"""`python -m trainer_loop.report runs/imdb`: write report.html of a run, which needs nothing else to be read.

It is made of the files in the run directory, also while the run is under way, and of runs that ended without one. What
is not there is left out.
"""

import sys
from pathlib import Path

from trainer_loop.errors import UserError
from trainer_loop.record.run_dir import RunDir, describe_refusal
from trainer_loop.runtime.host import prepare_environment
from trainer_loop.runtime.imports import importing_torch
from trainer_loop.runtime.quiet import quieten_loggers
from trainer_loop.runtime.streams import put_out, report, safe_streams

_USAGE = "python -m trainer_loop.report RUN_DIRECTORY"


def main(argv: list[str] | None = None) -> int:
    """Write the page; returns the exit code."""
    arguments = sys.argv[1:] if argv is None else argv
    if {"-h", "--help"} & set(arguments):
        put_out(f"{_USAGE}\n\n{__doc__}\n")
        return 0
    prepare_environment()
    quieten_loggers()
    with safe_streams():
        try:
            if len(arguments) != 1:
                raise UserError(f"{len(arguments)} arguments were given; the form is: {_USAGE}")
            put_out(f"written to {_write(Path(arguments[0].removeprefix('run_dir=')).expanduser())}\n")
        except UserError as error:
            report(error)
            return error.exit_code
    return 0


def _write(root: Path) -> Path:
    with importing_torch():  # seconds
        from trainer_loop.report.run_report import write_report

    try:
        return write_report(root)
    except OSError as error:
        raise UserError(describe_refusal(error, RunDir(root).report)) from error
