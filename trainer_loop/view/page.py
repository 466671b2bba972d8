"""What was found out about the data, on a terminal and as a page that stands alone."""

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
    """What is shown of the data of a config.

    title: what it is of. lines: what is reported before training. lengths: tokens of each row, by split. rows: by
    split.
    """

    title: str
    lines: Sequence[str]
    lengths: Mapping[str, np.ndarray]
    duplicates: Sequence[Duplicates]
    rows: Mapping[str, Sequence[Card]]


def describe_duplicates(found: Duplicates) -> str:
    """A line for a person."""
    where = f"in {found.first}" if found.first != found.second else "above it in the same split"
    shown = "; ".join(f"{other} = {one}" for one, other in found.pairs)
    how = "case and spaces do not count" if found.near is None else f"{found.near:g} or more of it is alike"
    return f"{found.second}: {plural(found.count, 'row')} whose text a row {where} has too ({how}): {shown}"


def write_text(view: View, *, colours: bool) -> str:
    """The rows for a terminal. colours: by escape sequences; else targets stand in « », and what was cut in ~~."""
    lines = [describe_duplicates(found) for found in view.duplicates]
    for split, rows in view.rows.items():
        for row in rows:
            lines += ["", f"{split}: {row.head}"]
            lines += ["  " + "|".join(_spell(token, colours=colours) for token in tokens) for tokens in row.sequences]
            lines += [f"  {name}: {value}" for name, value in row.facts.items()]
    return "\n".join(lines)


def write_page(view: View) -> str:
    """The page, in the form of a report of a run."""
    duplicates = [describe_duplicates(found) for found in view.duplicates]
    charts = [draw_histogram(f"Tokens of a row: {split}", lengths, "tokens") for split, lengths in view.lengths.items()]
    return page.write_page(
        view.title,
        [
            Section("Summary", [Lines(view.lines)]),
            Section("Tokens per row", [Charts(charts)] if charts else []),
            Section("Duplicates", [Lines(duplicates or ["None."])]),
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
    begin, end = _MARKS[kind]
    return f"{begin}{text}{end}"
