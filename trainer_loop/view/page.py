"""Writes the view of the data, for a terminal and as a self-contained page."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from trainer_loop.data.wording import plural
from trainer_loop.errors import printable
from trainer_loop.report import page
from trainer_loop.report.charts import draw_histogram
from trainer_loop.report.page import Card, Cards, Charts, Lines, Section
from trainer_loop.view.duplicates import Duplicates
from trainer_loop.view.rows import Token

_COLOURS = {"special": "\x1b[35m", "padding": "\x1b[2m", "cut": "\x1b[31;9m", "target": "\x1b[32m"}
_MARKS = {"special": ("", ""), "padding": ("", ""), "cut": ("~~", "~~"), "target": ("«", "»")}


@dataclass(frozen=True)
class View:
    """The view of the data of a config."""

    title: str
    lines: Sequence[str]  # as reported before training
    lengths: Mapping[str, np.ndarray]  # tokens of each row, by split
    duplicates: Sequence[Duplicates]
    rows: Mapping[str, Sequence[Card]]  # by split


def describe_duplicates(duplicates: Duplicates) -> str:
    """Describe duplicates in one line."""
    where = f"in {duplicates.first}" if duplicates.first != duplicates.second else "above it in the same split"
    shown = "; ".join(f"{other} = {one}" for one, other in duplicates.pairs)
    how = "case and spaces do not count" if duplicates.near is None else f"{duplicates.near:g} or more of it is alike"
    return f"{duplicates.second}: {plural(duplicates.count, 'row')} whose text a row {where} has too ({how}): {shown}"


def write_text(view: View, *, colours: bool) -> str:
    """Return the rows for a terminal. colours: use escape sequences; else targets are in « », and cut tokens in ~~."""
    lines = [describe_duplicates(duplicates) for duplicates in view.duplicates]
    for split, rows in view.rows.items():
        for row in rows:
            lines += ["", f"{split}: {row.head}"]
            lines += ["  " + "|".join(_spell(token, colours=colours) for token in tokens) for tokens in row.sequences]
            lines += [f"  {name}: {value}" for name, value in row.facts.items()]
    return "\n".join(lines)


def write_page(view: View) -> str:
    """Return the page, in the style of the report of a run."""
    duplicate_lines = [describe_duplicates(duplicates) for duplicates in view.duplicates]
    charts = [draw_histogram(f"Tokens of a row: {split}", lengths, "tokens") for split, lengths in view.lengths.items()]
    return page.write_page(
        view.title,
        [
            Section("Summary", [Lines(view.lines)]),
            Section("Tokens per row", [Charts(charts)] if charts else []),
            Section("Duplicates", [Lines(duplicate_lines or ["None."])]),
            *(Section(f"Rows of {split}", [Cards("", rows)]) for split, rows in view.rows.items()),
        ],
    )


def _spell(token: Token, *, colours: bool) -> str:
    kind = "target" if token.target is not None else token.kind
    text = printable(token.text.replace("\n", "⏎")) + (f"→{token.target}" if token.target else "")
    if kind == "text":
        return text
    if colours:
        return f"{_COLOURS[kind]}{text}\x1b[0m"
    start, end = _MARKS[kind]
    return f"{start}{text}{end}"
