"""What was found out about the data, on a terminal and as a page that stands alone."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

from trainer_loop.data.wording import plural
from trainer_loop.errors import printable
from trainer_loop.view.duplicates import Duplicates
from trainer_loop.view.rows import Token, ViewedRow

_BARS = 20
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 70em; margin: 2em auto; padding: 0 1em; color: #1a1a1a; }
h2 { margin-top: 2em; border-bottom: 1px solid #ccc; }
.row { border: 1px solid #ddd; border-radius: 6px; padding: .6em 1em; margin: .8em 0; }
.origin { color: #555; font-size: .9em; }
.tokens { font-family: ui-monospace, monospace; line-height: 2; white-space: pre-wrap; overflow-wrap: anywhere; }
.tokens span { border: 1px solid #e3e3e3; border-radius: 3px; padding: 1px 1px; }
.special { background: #e8e8f4; color: #4a4a8a; }
.target { background: #d5efd5; }
.padding { background: #f4f4f4; color: #aaa; }
.cut { background: #fbe3dd; color: #9a3412; text-decoration: line-through; }
.name { font-size: .75em; color: #196619; vertical-align: sub; }
.bars { display: flex; align-items: flex-end; height: 90px; gap: 2px; margin: .5em 0 0; }
.bars div { background: #7a9cc6; flex: 1; min-height: 1px; }
.ends { display: flex; justify-content: space-between; color: #555; font-size: .85em; }
table { border-collapse: collapse; } td, th { padding: .1em 1em .1em 0; text-align: left; vertical-align: top; }
"""
_LEGEND = (
    '<p class="tokens"><span>text</span> <span class="special">special token</span> '
    '<span class="target">learned</span> <span class="padding">padding</span> <span class="cut">cut off</span></p>'
)
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
    rows: Mapping[str, Sequence[ViewedRow]]


def describe_duplicates(found: Duplicates) -> str:
    """A line for a person."""
    where = f"in {found.first}" if found.first != found.second else "above it in the same split"
    shown = "; ".join(f"{other} = {one}" for one, other in found.pairs)
    return f"{found.second}: {plural(found.count, 'row')} that a row {where} has too: {shown}"


def write_text(view: View, *, colours: bool) -> str:
    """The rows for a terminal. colours: by escape sequences; else targets stand in « », and what was cut in ~~."""
    lines = [describe_duplicates(found) for found in view.duplicates]
    for split, rows in view.rows.items():
        for row in rows:
            lines += ["", f"{split}: {row.origin}"]
            lines += ["  " + "|".join(_spell(token, colours=colours) for token in tokens) for tokens in row.sequences]
            lines += [f"  {name}: {value}" for name, value in row.facts.items()]
    return "\n".join(lines)


def write_page(view: View) -> str:
    """The page, without scripts and without anything that is loaded from elsewhere."""
    parts = [
        "<!doctype html>",
        f'<html lang="en"><head><meta charset="utf-8"><title>{escape(view.title)}</title>',
        f"<style>{_STYLE}</style></head>",
        f"<body><h1>{escape(view.title)}</h1>",
        "<h2>Summary</h2><ul>",
        *(f"<li>{escape(line)}</li>" for line in view.lines),
        "</ul>",
    ]
    if view.lengths:
        parts.append("<h2>Tokens per row</h2>")
        parts += [_draw_lengths(split, lengths) for split, lengths in view.lengths.items()]
    parts.append("<h2>Duplicates</h2>")
    parts += [f"<p>{escape(describe_duplicates(found))}</p>" for found in view.duplicates] or ["<p>None.</p>"]
    for split, rows in view.rows.items():
        parts.append(f"<h2>Rows of {escape(split)}</h2>{_LEGEND}")
        parts += [_draw_row(row) for row in rows]
    return "\n".join([*parts, "</body></html>", ""])


def _draw_lengths(split: str, lengths: np.ndarray) -> str:
    counts, edges = np.histogram(lengths, bins=_BARS)
    most = max(int(counts.max()), 1)
    bars = "".join(
        f'<div style="height:{100 * count / most:.1f}%" '
        f'title="{plural(int(count), "row")} of {low:.0f} to {high:.0f}"></div>'
        for count, low, high in zip(counts, edges, edges[1:], strict=False)
    )
    ends = f'<div class="ends"><span>{edges[0]:.0f}</span><span>{edges[-1]:.0f}</span></div>'
    return f'<h3>{escape(split)}</h3><div class="bars">{bars}</div>{ends}'


def _draw_row(row: ViewedRow) -> str:
    tokens = "".join(f'<p class="tokens">{"".join(map(_draw_token, sequence))}</p>' for sequence in row.sequences)
    facts = "".join(f"<tr><th>{escape(name)}</th><td>{escape(value)}</td></tr>" for name, value in row.facts.items())
    return f'<div class="row"><div class="origin">{escape(row.origin)}</div>{tokens}<table>{facts}</table></div>'


def _draw_token(token: Token) -> str:
    kinds = " ".join([token.kind] * (token.kind != "text") + ["target"] * (token.target is not None))
    name = f'<span class="name">{escape(token.target)}</span>' if token.target else ""
    return f'<span class="{kinds}">{escape(token.text)}</span>{name}' if kinds else f"<span>{escape(token.text)}</span>"


def _spell(token: Token, *, colours: bool) -> str:
    kind = "target" if token.target is not None else token.kind
    text = printable(token.text.replace("\n", "⏎")) + (f"→{token.target}" if token.target else "")
    if kind == "text":
        return text
    if colours:
        return f"{_COLOURS[kind]}{text}\x1b[0m"
    begin, end = _MARKS[kind]
    return f"{begin}{text}{end}"
