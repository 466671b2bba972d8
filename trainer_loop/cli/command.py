"""What the commands beside `run` and `search` share: help, the environment, and how errors end them."""

import sys
from collections.abc import Callable
from contextlib import nullcontext

from trainer_loop.errors import UserError
from trainer_loop.runtime.host import prepare_environment
from trainer_loop.runtime.quiet import quieten_loggers
from trainer_loop.runtime.streams import fill_standard_descriptors, put_out, report, safe_streams

_STOPPED = 130  # as shells say of Ctrl-C


def run_command(
    argv: list[str] | None,
    help_text: str,
    work: Callable[[list[str]], int | None],
    *,
    prints_result: bool = False,
    when_stopped: str = "stopped",
) -> int:
    """Do the work of a command, or print its help; returns the exit code.

    Args:
        argv: its arguments; None: those of this process.
        work: gets them, and returns the exit code; None for 0. A UserError of it is told in lines.
        prints_result: what it prints is its result, so output that cannot be written is an error.
        when_stopped: the line that answers Ctrl-C.
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
