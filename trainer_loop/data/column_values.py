"""Values of columns that are neither texts nor single labels: what is wrong with one, in memory and in a stream."""

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
