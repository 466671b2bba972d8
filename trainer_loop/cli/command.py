"""Runs the commands other than `run` and `search`: prints help, prepares the environment, and reports errors."""

import sys
from collections.abc import Callable
from contextlib import nullcontext

from trainer_loop.errors import UserError
from trainer_loop.runtime.host import prepare_environment
from trainer_loop.runtime.quiet import quieten_loggers
from trainer_loop.runtime.streams import fill_standard_descriptors, put_out, report, safe_streams

_STOPPED = 130  # exit code of shells after Ctrl-C


def run_command(
    argv: list[str] | None,
    help_text: str,
    work: Callable[[list[str]], int | None],
    *,
    prints_result: bool = False,
    when_stopped: str = "stopped",
) -> int:
    """Run a command, or print its help. Returns the exit code.

    Args:
        argv: The arguments; None: those of this process.
        work: Takes the arguments, and returns the exit code; None: 0. A UserError is reported line by line.
        prints_result: The output is the result of the command, so a failure to write it is an error.
        when_stopped: The line printed after Ctrl-C.
    """
    arguments = sys.argv[1:] if argv is None else argv
    prepare_environment()
    quieten_loggers()
    fill_standard_descriptors()
    asks_help = bool({"-h", "--help"} & set(arguments))
    with nullcontext() if prints_result or asks_help else safe_streams():
        try:
            if asks_help:
                put_out(help_text)
                return 0
            return work(arguments) or 0
        except UserError as error:
            report(error)
            return error.exit_code
        except KeyboardInterrupt:
            print(when_stopped, file=sys.stderr)
            return _STOPPED
