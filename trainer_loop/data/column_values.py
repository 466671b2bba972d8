"""Values of columns that are neither texts nor single labels: what is wrong with one, in memory and in a stream."""

import re
from collections.abc import Mapping
from typing import Any

from trainer_loop.data import images
from trainer_loop.data.columns import Kind
from trainer_loop.data.values import is_encodable
from trainer_loop.data.wording import shorten


def find_fault(value: Any, kind: Kind, per: Any) -> str | None:
    """What is wrong with a value that is not null, as the rest of a sentence; None: nothing.

    Args:
        value: The value of one row.
        kind: What the column holds.
        per: The value of the column that this one belongs to; None if it belongs to none.
    """
    match kind:
        case "words":
            return _find_fault_of_words(value)
        case "classes":
            return _find_fault_of_list(value, per)
        case "spans":
            return _find_fault_of_spans(value, per)
        case "image":
            return _find_fault_of_image(value)
        case _:
            return None


def _find_fault_of_words(value: Any) -> str | None:
    if not isinstance(value, (list, tuple)):
        return f"holds no list of words but {shorten(value)}"
    if not value:
        return "has no words"
    wrong = next((word for word in value if not isinstance(word, str) or not word or word.isspace()), "a word")
    if not isinstance(wrong, str):
        return f"holds {shorten(wrong)} among its words, which is no text"
    if not wrong or wrong.isspace():
        return "has an empty word"
    return None if all(map(is_encodable, value)) else "holds half of a surrogate pair, which is no character,"


def _find_fault_of_image(value: Any) -> str | None:
    try:
        return images.explain_fault(*images.read_source(value), decodes=False)
    except ValueError as error:
        return str(error)


def _find_fault_of_spans(value: Any, text: Any) -> str | None:
    texts, starts = (value.get(name) if isinstance(value, Mapping) else None for name in ("text", "answer_start"))
    if not isinstance(texts, (list, tuple)) or not isinstance(starts, (list, tuple)) or len(texts) != len(starts):
        return f'holds no {{"text": [...], "answer_start": [...]}} but {shorten(value)}'
    for span, start in zip(texts, starts, strict=True):
        if not isinstance(span, str) or not span or type(start) is not int:
            return f"has the text {shorten(span)} at {shorten(start)}; it needs a text and the number of its character"
        if isinstance(text, str) and (start < 0 or text[start : start + len(span)] != span):
            return f"has {shorten(span)} at character {start}, where {_describe_place(text, span, start)}"
    return None


def _describe_place(text: str, span: str, start: int) -> str:
    """What stands there instead, and where the text is that was looked for."""
    places = [found.start() for found in re.finditer(re.escape(span), text)]
    nearest = min(places, key=lambda place: abs(place - start), default=None)
    there = shorten(text[start : start + len(span)]) if 0 <= start < len(text) else "no text"
    return f"{there} is" + ("; the text has it nowhere" if nearest is None else f"; the text has it at {nearest}")


def _find_fault_of_list(value: Any, per: Any) -> str | None:
    if not isinstance(value, (list, tuple)):
        return f"holds no list of labels but {shorten(value)}"
    if isinstance(per, (list, tuple)) and len(value) != len(per):
        return f"has {len(value)} labels for {len(per)} words"
    return "has a label that is null" if any(label is None for label in value) else None
