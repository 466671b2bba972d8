"""JSON that something has happened to is told from what was written, in one way."""

from dataclasses import dataclass, field
from typing import Any

import pytest

from trainer_loop.runtime.plain_json import check_fields, parse_json

DEEP = "[" * 100_000 + "]" * 100_000


@dataclass
class Part:
    name: str
    size: int | None = None


@dataclass
class Facts:
    step: int
    name: str | None = None
    rate: float = 0.0
    figures: dict[str, float] = field(default_factory=dict)
    anything: dict[str, Any] | None = None
    columns: dict[str, str | list[str]] = field(default_factory=dict)
    parts: list[Part] = field(default_factory=list)


@pytest.mark.parametrize(
    "text", ["", "{", "nothing", DEEP, '{"a": ' * 100_000, "9" * 5000, "[" + "9" * 5000 + "]", b"\xff\xfe"]
)
def test_what_is_no_json_is_a_value_error_however_it_is_not(text):
    with pytest.raises(ValueError, match=r"\S"):
        parse_json(text)


@pytest.mark.parametrize(
    "values",
    [
        {"step": 0},
        {"step": 1, "name": None, "rate": 2, "figures": {"loss": 0.5, "rows": 3}, "anything": {"a": [1, {}]}},
        {"step": 1, "columns": {"text": "body", "label": ["a", "b"]}},
        {"step": 1, "anything": None, "rate": float("nan")},
        {"step": 1, "parts": [{"name": "a"}, {"name": "b", "size": 2}]},
    ],
)
def test_what_was_written_is_taken(values):
    check_fields(Facts, values)
    Facts(**values)


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({}, "step is missing"),
        ({"step": -1}, "step is -1"),
        ({"step": 1.0}, "step is 1.0"),
        ({"step": True}, "step is True"),
        ({"step": "1"}, "step is '1'"),
        ({"step": 10**30}, "step is 1000"),  # no float, and no size, is so large
        ({"step": 1, "rate": 10**400}, "rate is 1000"),
        ({"step": 1, "pace": 3}, "pace is unknown"),
        ({"step": 1, "parts": [{"size": 2}]}, "parts is [{'size': 2}]"),
        ({"step": 1, "parts": ["a"]}, "parts is ['a']"),
        ({"step": 1, "name": 3}, "name is 3"),
        ({"step": 1, "rate": "fast"}, "rate is 'fast'"),
        ({"step": 1, "rate": None}, "rate is None"),
        ({"step": 1, "figures": []}, "figures is []"),
        ({"step": 1, "figures": {"loss": "low"}}, "figures is {'loss': 'low'}"),
        ({"step": 1, "columns": {"a": ["b", 3]}}, "columns is {'a': ['b', 3]}"),
        ({"step": 1, "anything": "x" * 99}, "anything is 'xxxx"),
        ({f"key {n}": n for n in range(9)}, "key 0 is unknown, key 1 is unknown, key 2 is unknown, key 3"),
    ],
)
def test_what_was_not_is_named_with_its_value(values, told):
    with pytest.raises(ValueError, match="^" + told.replace("[", r"\[").replace("{", r"\{")) as caught:
        check_fields(Facts, values)
    assert len(str(caught.value)) < 200
