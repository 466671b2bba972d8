"""`python -m trainer_loop.compare runs/a runs/b`: compare runs, as tables and as a page.

Shows keys that differ, metrics, time, memory and curves. If the runs predict the same rows, it also shows whether
differences are significant, and the rows on which the runs disagree. Runs that differ only in their seed share a
column, with mean and standard deviation.
"""

from pathlib import Path

from trainer_loop.cli.arguments import output_file
from trainer_loop.cli.command import run_command
from trainer_loop.errors import UserError, under
from trainer_loop.record.run_dir import describe_refusal, write_text
from trainer_loop.runtime.imports import importing_torch
from trainer_loop.runtime.streams import put_out

_USAGE = """\
python -m trainer_loop.compare RUN_DIRECTORY RUN_DIRECTORY ... [html=compare.html]

  html=   the page to write, default compare.html in this folder"""


def main(argv: list[str] | None = None) -> int:
    """Print the tables and write the page; returns the exit code."""
    return run_command(argv, f"{_USAGE}\n\n{__doc__}\n", lambda arguments: _compare(*_read_arguments(arguments)))


def _read_arguments(arguments: list[str]) -> tuple[list[Path], Path]:
    pages = [argument.removeprefix("html=") for argument in arguments if argument.startswith("html=")]
    roots = [Path(argument).expanduser() for argument in arguments if not argument.startswith("html=")]
    if len(pages) > 1 or "" in pages:
        raise UserError("html= is given once, with the name of a file, such as html=compare.html")
    page = pages[0] if pages else "compare.html"
    with under(f"html={page}: "):
        return roots, output_file(page)


def _compare(roots: list[Path], page: Path) -> None:
    with importing_torch():  # takes seconds
        from trainer_loop.report.run_comparison import compare_runs, draw_table

    tables, notes, text = compare_runs(roots)
    for lines in [*map(draw_table, tables), *([notes] if notes else [])]:
        put_out("\n".join(lines) + "\n\n")
    try:
        write_text(page, text, shared=True)
    except OSError as error:
        raise UserError(f"html: {describe_refusal(error, page)}") from error
    put_out(f"written to {page}\n")
