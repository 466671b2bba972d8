"""Values of columns, one by one."""

from typing import Any

import pytest

from trainer_loop.data.values import find_fault

TEXT = "Ada came late. Ada left."


def spans(*pairs: tuple[Any, Any]) -> dict[str, list[Any]]:
    return {"text": [text for text, _ in pairs], "answer_start": [start for _, start in pairs]}


@pytest.mark.parametrize("value", [spans(), spans(("Ada", 0)), spans(("Ada", 15), ("late. Ada", 9))])
def test_spans_that_stand_where_they_say_are_right(value: Any):
    assert find_fault(value, "spans", TEXT) is None


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (spans(("Ada", 14)), "has 'Ada' at character 14, where ' Ad' is; the text has it at 15"),
        (spans(("Ada", 0), ("Bob", 0)), "has 'Bob' at character 0, where 'Ada' is; the text has it nowhere"),
        (spans(("Ada", 99)), "has 'Ada' at character 99, where no text is; the text has it at 15"),
        (spans(("Ada", -1)), "has 'Ada' at character -1, where no text is; the text has it at 0"),
        (spans(("", 0)), "has the text '' at 0; it needs a text and the number of its character"),
        (spans(("Ada", "0")), "has the text 'Ada' at '0'; it needs a text and the number of its character"),
        ({"text": ["Ada"]}, "holds no {"),
        ({"text": ["Ada"], "answer_start": []}, "holds no {"),
        ("Ada", "holds no {"),
    ],
)
def test_spans_that_are_wrong_are_told_with_the_nearest_place(value: Any, told: str):
    assert str(find_fault(value, "spans", TEXT)).startswith(told)
