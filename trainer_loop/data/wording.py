"""Parts of messages: lists of limited length, suggestions, plurals and shortened values."""

import difflib
from collections.abc import Iterable, Sequence

from trainer_loop.errors import cut_short

_LONGEST_NAME = 60  # of a column, in characters


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """Return `; did you mean 'text'?` for the choice most similar to the word, or an empty text."""
    by_lower = {choice.lower(): choice for choice in choices}
    nearest = difflib.get_close_matches(word.lower(), by_lower, n=1, cutoff=0.6)
    return f"; did you mean {by_lower[nearest[0]]!r}?" if nearest else ""


def enumerate_some(items: Sequence[str], *, total: int | None = None, at_most: int = 5) -> str:
    """Return a list such as `a, b, c and 7 more`. `total` is the count of all items if `items` are only the first."""
    shown = items[:at_most]
    num_hidden = (len(items) if total is None else total) - len(shown)
    return ", ".join(shown) + (f" and {num_hidden:,} more" if num_hidden else "")


def enumerate_names(names: Sequence[str], *, at_most: int = 10) -> str:
    """Return a list of columns. Long names are cut, and control characters are escaped."""
    shown = [cut_short(name, at_most=_LONGEST_NAME) for name in names[:at_most]]
    plain = [name if name.isprintable() else repr(name)[1:-1] for name in shown]
    return enumerate_some(plain, total=len(names), at_most=at_most)


def plural(number: int, noun: str) -> str:
    """Return text such as `1 row` or `2,000 rows`."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def shorten(value: object, *, at_most: int = 60) -> str:
    """Return the repr of a value, cut to `at_most` characters."""
    try:
        text = repr(value)
    except RecursionError:
        text = f"a deeply nested {type(value).__name__}"
    return cut_short(text, at_most=at_most)
