"""What the commands that show something share: help, the environment, and how errors end them."""

import sys
from collections.abc import Callable

from trainer_loop.errors import UserError
from trainer_loop.runtime.host import prepare_environment
from trainer_loop.runtime.quiet import quieten_loggers
from trainer_loop.runtime.streams import put_out, report, safe_streams

STOPPED = 130  # as shells say of Ctrl-C


def run_command(argv: list[str] | None, help_text: str, work: Callable[[list[str]], None]) -> int:
    """Do the work of a command, or print its help; returns the exit code.

    argv: its arguments; None: those of this process. work: gets them; a UserError of it is told in lines.
    """
    arguments = sys.argv[1:] if argv is None else argv
    if {"-h", "--help"} & set(arguments):
        put_out(help_text)
        return 0
    prepare_environment()
    quieten_loggers()
    with safe_streams():
        try:
            work(arguments)
        except UserError as error:
            report(error)
            return error.exit_code
        except KeyboardInterrupt:
            print("stopped", file=sys.stderr)
            return STOPPED
    return 0
