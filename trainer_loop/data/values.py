"""Single values of raw rows: find faults and holes, and convert them."""

import math
import re
from collections.abc import Iterator, Mapping
from decimal import Decimal
from typing import Any

from trainer_loop.data import images
from trainer_loop.data.columns import JoinedKind, Kind
from trainer_loop.data.conversations import find_fault_of_messages, find_fault_of_tools, lacks_answer
from trainer_loop.data.text_format import is_encodable
from trainer_loop.data.wording import enumerate_some, plural, shorten

KINDS_OF_TEXTS: tuple[Kind, ...] = ("text", "words", "choices", "conversation", "prompt", "answer")
_NUMBER = re.compile(r"\s*[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?\s*", re.ASCII)
_FLAGS = {"0": False, "1": True, "0.0": False, "1.0": True, "false": False, "true": True}


def find_fault(value: Any, kind: Kind | JoinedKind, per: Any, *, num_numbers: int | None = None) -> str | None:
    """Return the fault of a value that is not null, as the end of a sentence; None if it has none.

    Args:
        value: The value of one row.
        kind: Kind of the column.
        per: Value of the same row in the column that `Column.per` names; None if there is no such column.
        num_numbers: Count of numbers that the first training row has in this column; None: any.
    """
    match kind:
        case "words":
            return _find_fault_of_texts(value, "word")
        case "number" | "weight":
            return _find_fault_of_number(value, at_least=0.0 if kind == "weight" else -math.inf)
        case "numbers" | "joined_numbers":
            fault = _find_fault_of_parts(value) if kind == "joined_numbers" else _find_fault_of_numbers(value)
            return fault or _find_fault_of_count(value, num_numbers)
        case "choices":
            return _find_fault_of_choices(value)
        case "choice":
            return _find_fault_of_choice(value, per)
        case "classes":
            return _find_fault_of_list(value, per)
        case "joined_classes":
            return find_fault_of_flags(value)
        case "spans":
            return _find_fault_of_spans(value, per)
        case "image":
            return _find_fault_of_image(value)
        case "conversation" | "prompt" | "answer":
            return find_fault_of_messages(value, kind)
        case "tools":
            return find_fault_of_tools(value)
        case _:
            return None


def is_hole(value: Any, kind: Kind | JoinedKind) -> bool:
    """Whether a value is missing: null, a conversation without its last answer, or a joined value without a part."""
    if kind in ("joined_classes", "joined_numbers"):
        return any(map(is_nothing, value.values()))
    return value is None or (kind == "conversation" and lacks_answer(value))


def list_texts(value: Any) -> Iterator[str]:
    """Yield the texts of a value of `KINDS_OF_TEXTS`: the contents of messages, and choices without their labels.

    >>> list(list_texts([{"role": "user", "content": "Hello"}])), list(list_texts({"text": ["a", "b"], "label": ["A"]}))
    (['Hello'], ['a', 'b'])
    """
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        yield from list_texts(value.get("content", value.get("text")))
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from list_texts(part)


def read_choices(value: Any) -> list[str]:
    """Return the texts of a value of kind `choices`."""
    return list(value["text"] if isinstance(value, Mapping) else value)


def find_choice(value: Any, choices: Any) -> int | None:
    """Return the index of the choice that a value names; None if it names no choice.

    If the choices have labels, the value is a label. Else it is the text of a choice, its index, or its letter (A is
    the first). A value that is the text of one choice and the index or letter of another names none.

    Args:
        value: A number or a text.
        choices: A value of kind `choices`.

    >>> find_choice("B", ["yes", "no"]), find_choice("no", ["yes", "no"]), find_choice("1", ["yes", "no"])
    (1, 1, 1)
    """
    labels = choices.get("label") if isinstance(choices, Mapping) else None
    if labels:
        spelled = [str(label) for label in labels]
        return spelled.index(str(value)) if spelled.count(str(value)) == 1 else None
    texts = read_choices(choices)
    by_text = texts.index(value) if texts.count(value) == 1 else None
    by_index = _find_index(value, len(texts))
    if by_text is not None and by_index is not None and by_text != by_index:
        return None
    return by_index if by_text is None else by_text


def _find_index(value: Any, count: int) -> int | None:
    """Return the index of the choice for a number or a letter; None if there is none. `count` is that of choices."""
    text = str(value).strip() if isinstance(value, str) or type(value) is int else ""
    if len(text) == 1 and text.isascii() and text.isalpha():
        index = ord(text.upper()) - ord("A")
    else:
        index = int(text) if text.isascii() and text.isdigit() else -1
    return index if 0 <= index < count else None


def read_numbers(value: Any) -> float | list[float] | None:
    """Convert a value of kind `numbers` without a fault to a number, or to a list if there are several.

    >>> read_numbers("4.5"), read_numbers([1, 2]), read_numbers({"valence": "1", "arousal": 2})
    (4.5, [1.0, 2.0], [1.0, 2.0])
    """
    if not isinstance(value, (list, tuple, Mapping)):
        return read_number(value)
    numbers = [read_number(part) or 0.0 for part in (value.values() if isinstance(value, Mapping) else value)]
    return numbers if len(numbers) > 1 else numbers[0]


def count_numbers(value: Any) -> int:
    """Return the count of numbers in a value of kind `numbers`."""
    return len(value) if isinstance(value, (list, tuple, Mapping)) else 1


def _find_fault_of_numbers(value: Any) -> str | None:
    if not isinstance(value, (list, tuple)):
        return _find_fault_of_number(value)
    if not value:
        return "has no numbers"
    return next((fault for fault in map(_find_fault_of_number, value) if fault is not None), None)


def _find_fault_of_parts(value: Mapping[str, Any]) -> str | None:
    """Return the fault of a joined value whose parts must be numbers."""
    for name, part in value.items():
        if is_nothing(part):
            return f"has nothing in {name!r}"
        if (fault := _find_fault_of_number(part)) is not None:
            return f"{fault}, in {name!r},"
    return None


def _find_fault_of_count(value: Any, expected: int | None) -> str | None:
    if expected is None or count_numbers(value) == expected:
        return None
    return f"has {plural(count_numbers(value), 'number')} where the first training row has {expected}"


def _find_fault_of_number(value: Any, *, at_least: float = -math.inf) -> str | None:
    number = read_number(value)
    if number is None:
        return f"holds {shorten(value)}, which is no number"
    if not math.isfinite(number):
        return f"holds {number}, which is not finite"
    return None if number >= at_least else f"holds {number:g}, which is below {at_least:g}"


def _find_fault_of_choice(value: Any, choices: Any) -> str | None:
    if choices is None or _find_fault_of_choices(choices) is not None or find_choice(value, choices) is not None:
        return None
    texts, labels = read_choices(choices), choices.get("label") if isinstance(choices, Mapping) else None
    if not labels and texts.count(value) == 1:
        return (
            f"holds {shorten(value)}, which is the text of one choice and the place of another; write the choices as "
            '{"text": [...], "label": [...]}'
        )
    forms = f"a number from 0 to {len(texts) - 1}, a letter from A, or the text of one"
    allowed = enumerate_some([str(label) for label in labels]) if labels else forms
    return f"holds {shorten(value)}, which is none of the {len(texts)} choices; allowed: {allowed}"


def _find_fault_of_choices(value: Any) -> str | None:
    texts = value.get("text") if isinstance(value, Mapping) else value
    labels = value.get("label") if isinstance(value, Mapping) else None
    if isinstance(texts, (list, tuple)) and isinstance(labels, (list, tuple)) and len(texts) != len(labels):
        return f"has {len(texts)} texts and {len(labels)} labels"
    return _find_fault_of_texts(texts, "choice", at_least=2)


def _find_fault_of_texts(value: Any, noun: str, *, at_least: int = 1) -> str | None:
    """`noun` is the word for one of the texts in messages."""
    if not isinstance(value, (list, tuple)):
        return f"holds no list of {noun}s but {shorten(value)}"
    if len(value) < at_least:
        return f"has no {noun}s" if at_least == 1 else f"has {len(value)} {noun}s where it needs {at_least}"
    wrong = next((text for text in value if not isinstance(text, str) or not text or text.isspace()), noun)
    if not isinstance(wrong, str):
        return f"holds {shorten(wrong)} among its {noun}s, which is no text"
    if not wrong or wrong.isspace():
        return f"has an empty {noun}"
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
    starts = [match.start() for match in re.finditer(re.escape(span), text)]
    nearest = min(starts, key=lambda position: abs(position - start), default=None)
    present = shorten(text[start : start + len(span)]) if 0 <= start < len(text) else "no text"
    return f"{present} is" + ("; the text has it nowhere" if nearest is None else f"; the text has it at {nearest}")


def _find_fault_of_list(value: Any, per: Any) -> str | None:
    if not isinstance(value, (list, tuple)):
        return f"holds no list of labels but {shorten(value)}"
    if isinstance(per, (list, tuple)) and len(value) != len(per):
        return f"has {len(value)} labels for {len(per)} words"
    return "has a label that is null" if any(label is None for label in value) else None


def is_nothing(value: Any) -> bool:
    """Whether a value is missing: null, NaN, or a blank text."""
    return value is None or is_nan(value) or (isinstance(value, str) and not value.strip())


def find_fault_of_flags(value: Mapping[str, Any]) -> str | None:
    """Return the fault of a joined value that holds a flag for each label; None if it has none."""
    for name, flag in value.items():
        if is_nothing(flag):
            return f"has nothing in {name!r}"
        if _read_flag(flag) is None:
            return f"has {shorten(flag)} in {name!r}, which is none of 0, 1, true and false,"
    return None


def list_flagged(value: Mapping[str, Any]) -> list[str]:
    """Return the labels whose flag is set in a joined value without a fault.

    >>> list_flagged({"toxic": "1", "obscene": False, "threat": 1.0})
    ['toxic', 'threat']
    """
    return [name for name, flag in value.items() if _read_flag(flag)]


def _read_flag(value: Any) -> bool | None:
    """Convert a flag to a bool; None if it is not a flag."""
    if isinstance(value, str):
        return _FLAGS.get(value.strip().lower())
    return bool(value) if value in (0, 1) else None


def is_nan(value: object) -> bool:
    """Whether a value is NaN. pandas writes missing values as NaN, in columns of texts too."""
    return isinstance(value, float) and math.isnan(value)


def read_number(value: Any) -> float | None:
    """Convert a value of kind `number`, or a text of one as in CSV files, to float; None if it is not a number.

    >>> read_number("4.5"), read_number(3), read_number("many"), read_number(True)
    (4.5, 3.0, None, None)
    """
    if isinstance(value, bool) or (isinstance(value, str) and not _NUMBER.fullmatch(value)):
        return None
    return float(value) if isinstance(value, (int, float, str, Decimal)) else None
