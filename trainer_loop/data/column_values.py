"""Values of columns that are neither texts nor single labels: what is wrong with one, in memory and in a stream."""

from collections.abc import Mapping
from typing import Any

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
        case "number":
            is_number = isinstance(value, (int, float)) and not isinstance(value, bool) and value == value
            return None if is_number else f"holds no number but {shorten(value)}"
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


def _find_fault_of_list(value: Any, per: Any) -> str | None:
    if not isinstance(value, (list, tuple)):
        return f"holds no list of labels but {shorten(value)}"
    if isinstance(per, (list, tuple)) and len(value) != len(per):
        return f"has {len(value)} labels for {len(per)} words"
    return "has a label that is null" if any(label is None for label in value) else None


def _find_fault_of_spans(value: Any, per: Any) -> str | None:
    texts = value.get("text") if isinstance(value, Mapping) else None
    starts = value.get("answer_start") if isinstance(value, Mapping) else None
    if not (isinstance(texts, list) and isinstance(starts, list) and len(texts) == len(starts)):
        return f'holds no spans but {shorten(value)}; spans are {{"text": [...], "answer_start": [...]}}'
    for text, start in zip(texts, starts, strict=True):
        if not isinstance(text, str) or not isinstance(start, int):
            return f"holds the span {shorten(text)} at {shorten(start)}; a span is a text and a whole number"
        if isinstance(per, str) and per[start : start + len(text)] != text:
            return (
                f"says that {shorten(text)} begins at {start}, where {shorten(per[start : start + len(text)])} stands"
            )
    return None


def _find_fault_of_image(value: Any) -> str | None:
    if isinstance(value, (str, bytes)) or hasattr(value, "convert"):  # a path, bytes, or an image of PIL
        return None
    if isinstance(value, Mapping) and (value.get("bytes") is not None or value.get("path")):
        return None
    return f"holds no image but {shorten(value)}; an image is its bytes, the path of its file, or an image of PIL"
