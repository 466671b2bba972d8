"""Self-contained HTML pages: sections of blocks, written by page.html.j2 with the style of style.css."""

import functools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup, escape

from trainer_loop.report.charts import Chart, spell


@dataclass(frozen=True)
class Cell:
    """A cell that is more than a text or a number."""

    text: str
    kind: str  # classes of style.css: number, bar, shade, code, or text, which may be long and wide
    share: float = 0.0  # length of a bar, or depth of a shade, from 0 to 1
    title: str = ""
    link: str = ""  # target of a link


_LONG_WORD = 24  # characters; a longer word may be broken anywhere
Row = Sequence[str | float | Cell | None]


@dataclass(frozen=True)
class Table:
    """A table. heads: of the columns. rows: the first cell is the row's head. folded: it is collapsed at first."""

    caption: str
    heads: Sequence[str | Cell]
    rows: Sequence[Row]
    note: str = ""
    folded: bool = False

    def __post_init__(self) -> None:
        assert all(self.heads), "screen readers need the head of each column"


@dataclass(frozen=True)
class Lines:
    """Sentences, one per line. title: empty: the title of the section is enough."""

    lines: Sequence[str]
    title: str = ""


@dataclass(frozen=True)
class Facts:
    """Names and values, side by side."""

    values: Mapping[str, str]


@dataclass(frozen=True)
class Charts:
    """Figures, side by side."""

    charts: Sequence[Chart]


@dataclass(frozen=True)
class Card:
    """A row of the data."""

    head: str  # where the row stands in the data
    texts: Mapping[str, str]  # by name; a data URI of an image is shown as an image
    facts: Mapping[str, str] = field(default_factory=dict)
    sequences: Sequence[Sequence[Any]] = ()  # of tokens, each with `text`, `kind`, and `target`, which may be None


@dataclass(frozen=True)
class Cards:
    """Rows of the data. title: empty: the title of the section is enough."""

    title: str
    cards: Sequence[Card]
    note: str = ""


@dataclass(frozen=True)
class Code:
    """The text of a file, collapsed at first."""

    title: str
    text: str


Block = Table | Lines | Facts | Charts | Cards | Code


@dataclass(frozen=True)
class Section:
    """A part of a page. It is left out if it has no blocks."""

    title: str
    blocks: Sequence[Block]


def as_cell(value: str | float | Cell | None) -> Cell:
    """Convert a value to a cell. None becomes an empty number."""
    if isinstance(value, Cell):
        return value
    if isinstance(value, str):
        is_long = max(map(len, value.split()), default=0) > _LONG_WORD
        return Cell(value, " ".join(["text"] + ["long"] * is_long + ["wide"] * (len(value) > _LONG_WORD)))
    return Cell("" if value is None else f"{value:,}" if isinstance(value, int) else spell(value), "number")


def code(text: str) -> Cell:
    """Make a cell with a key or a value as it is written in a config."""
    return Cell(text, "code wide" if len(text) > _LONG_WORD else "code")


def number(text: object, *, share: float | None = None) -> Cell:
    """Make a cell with a number, optionally with a bar."""
    return Cell(str(text), "number") if share is None else Cell(str(text), "bar", min(max(share, 0.0), 1.0))


def write_page(title: str, sections: Sequence[Section], *, subtitle: str = "") -> str:
    """Return the page. It has no scripts and loads nothing from elsewhere. All texts are escaped."""
    shown = [section for section in sections if section.blocks]
    page = _load_template().render(title=title, subtitle=subtitle, sections=shown, style=read_style())
    return page.encode("utf-8", "replace").decode()  # the name of a folder may be invalid UTF-8


def _make_breakable(text: str) -> Markup:
    """Allow line breaks between the parts of a name."""
    return Markup(re.sub(r"([._])(?=[A-Za-z])", r"\1<wbr>", str(escape(text))))


@functools.cache
def read_style() -> str:
    return Path(__file__).with_name("style.css").read_text(encoding="utf-8")


@functools.cache
def _load_template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.tests["kind_of"] = lambda block, name: type(block).__name__ == name
    environment.filters["cell"] = as_cell
    environment.filters["breakable"] = _make_breakable
    return environment.get_template("page.html.j2")
