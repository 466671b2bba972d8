"""`python -m trainer_loop.data config=imdb.yaml rows=20 html=page.html`: the data as the model sees it.

Loads no weights. Shows rows token by token, with special tokens, learned tokens, padding, and text that was cut off.
Shows lengths, labels, weights and sources, duplicates within and across splits, and the file and line of each row.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from trainer_loop.cli.arguments import number, output_file, read_values, whole_number
from trainer_loop.cli.command import run_command
from trainer_loop.errors import UserError, refuse
from trainer_loop.runtime.imports import importing_torch
from trainer_loop.runtime.quiet import quieten_libraries
from trainer_loop.runtime.streams import put_out

if TYPE_CHECKING:  # importing them takes seconds
    from trainer_loop.config.fields import Config
    from trainer_loop.view.page import View

USAGE = """\
python -m trainer_loop.data config=imdb.yaml [rows=20] [html=page.html] [near=0.8] [key=value ...]

  config=, key=value  as for python -m trainer_loop.run
  rows=               number of rows to show of each split, spread evenly; default 5 (20 on a page)
  html=               write a self-contained page to this file
  near=               also find rows with similar texts: the least similarity, such as 0.8; needs pip install datasketch
"""
_READERS = {
    "rows": whole_number(1),
    "html": output_file,
    "near": number("a number above 0 and below 1, such as 0.8", above=0, below=1),
}


@dataclass(frozen=True)
class Request:
    """Arguments of the command."""

    config_arguments: Sequence[str]
    rows: int
    html: Path | None
    near: float | None


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    return run_command(argv, f"{USAGE}\n{__doc__}", lambda arguments: _show(read_request(arguments)))


def read_request(arguments: Sequence[str]) -> Request:
    """Read the arguments. Raises UserError with all problems of the keys of this command."""
    pairs = [argument.partition("=") for argument in arguments]
    config_arguments = ["".join(pair) for pair in pairs if not (pair[0] in _READERS and pair[1])]
    values, problems = read_values({name: text for name, _, text in pairs if name in _READERS and text}, _READERS)
    refuse(problems)
    html = values.get("html")
    return Request(config_arguments, values.get("rows", 20 if html else 5), html, values.get("near"))


def _show(request: Request) -> None:
    from trainer_loop.config.load import read_config, split_arguments

    name, overrides, _ = split_arguments(request.config_arguments)
    reading = read_config(name, overrides)
    if reading.key_problems:
        raise UserError(reading.problems)
    quieten_libraries()
    view = _view(reading.config, reading.conflicts, request)

    from trainer_loop.view.page import write_page, write_text

    if request.html is None:
        put_out(write_text(view, colours=sys.stdout.isatty()) + "\n")
        return
    try:
        request.html.write_text(write_page(view), encoding="utf-8")
    except OSError as error:
        raise UserError(f"html={request.html} cannot be written: {error.strerror}; name another file") from error
    put_out(f"written to {request.html}\n")


def _view(config: "Config", problems: Sequence[str], request: Request) -> "View":
    """Collect everything that is shown. Raises UserError with all problems of config and data."""
    with importing_torch():  # takes seconds
        from trainer_loop.description import describe_weights
        from trainer_loop.loaders import find_weights, make_mixture
        from trainer_loop.plan import Overrides, plan_run
    from trainer_loop.record.logs import Console
    from trainer_loop.view.duplicates import find_duplicates
    from trainer_loop.view.page import View
    from trainer_loop.view.rows import DrawnSplit, choose_rows, view_rows

    if config.data.streaming:  # the user can view the first rows of the stream instead
        raise UserError("data.streaming: a stream cannot be shown; set data.streaming=false data.limit.train=1000")

    class RecordingConsole(Console):
        """Console that also collects its lines for the page."""

        def say(self, line: str = "") -> None:
            lines.append(line)
            super().say(line)

    lines: list[str] = []
    console = RecordingConsole(enabled=True)
    plan = plan_run(config, Overrides(), problems=problems, console=console)
    inputs = plan.inputs
    if inputs.data is None:
        raise UserError(f"task.name: {config.task.name}: it takes rows as they are, so there is nothing to show")
    train = inputs.splits["train"]
    mixture, weights = make_mixture(plan, train), find_weights(config, train)
    if mixture is not None:
        console.say(mixture.describe())
    if weights is not None:
        console.say(describe_weights(weights))
    sources = [str(entry["name"]) for entry in config.data.mixture]
    splits = {name: DrawnSplit(split, sources) for name, split in inputs.splits.items()}
    splits["train"] = DrawnSplit(train, sources, mixture, weights)
    duplicates = find_duplicates(inputs.data.splits, inputs.data.columns, near=None)
    if request.near is not None:
        duplicates += find_duplicates(inputs.data.splits, inputs.data.columns, near=request.near)
    rows = {
        name: view_rows(splits[name], plan.task, choose_rows(len(split.rows), request.rows))
        for name, split in inputs.splits.items()
    }
    lengths = {name: split.lengths for name, split in inputs.splits.items() if plan.task.has_tokens}
    return View(f"Data of {config.run_dir}", lines, lengths, duplicates, rows)
