"""Reading JSON files that this project wrote and that may have been damaged since."""

import dataclasses
import json
import types
from collections.abc import Mapping
from typing import Any, TypeGuard, Union, get_args, get_origin, get_type_hints


def parse_json(text: str | bytes) -> Any:
    """Parse JSON. Raises ValueError if the text is not JSON, or is nested too deeply."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def is_number(value: object) -> TypeGuard[float]:
    """Whether the value is a float or a 64-bit integer. Arithmetic with floats would fail for larger integers."""
    if isinstance(value, int) and not isinstance(value, bool):
        return abs(value) < 2**63
    return isinstance(value, float)


def is_count(value: object) -> TypeGuard[int]:
    """Whether the value is an integer of at least 0."""
    return isinstance(value, int) and is_number(value) and value >= 0


def check_fields(kind: type, values: Mapping[str, Any]) -> None:
    """Raise ValueError, in one line, for unknown, missing or ill-typed arguments of a dataclass in `values`."""
    if problems := _list_problems(kind, values):
        raise ValueError(", ".join(problems[:4]) + (f" and {len(problems) - 4} more" if len(problems) > 4 else ""))


def _list_problems(kind: type, values: Mapping[str, Any]) -> list[str]:
    hints = get_type_hints(kind)
    fields = {field.name: field for field in dataclasses.fields(kind)}
    problems = [f"{name} is unknown" for name in values if name not in fields]
    for name, field in fields.items():
        has_default = field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING
        if name not in values:
            problems += [] if has_default else [f"{name} is missing"]
        elif not _fits(values[name], hints[name]):
            text = repr(values[name])
            problems.append(f"{name} is {text if len(text) <= 40 else text[:37] + '...'}")
    return problems


def _fits(value: object, hint: Any) -> bool:
    """Whether a JSON value has the type of a type hint. An int is a count or a position, so it is never negative."""
    origin = get_origin(hint)
    if hint is Any:
        return True
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return isinstance(value, dict) and not _list_problems(hint, value)
    if origin in (Union, types.UnionType):
        return any(_fits(value, option) for option in get_args(hint))
    if origin is dict:
        return isinstance(value, dict) and all(_fits(item, get_args(hint)[1]) for item in value.values())
    if origin is list:
        return isinstance(value, list) and all(_fits(item, get_args(hint)[0]) for item in value)
    if isinstance(value, bool) or hint is bool:
        return hint is bool and isinstance(value, bool)
    if hint is int:
        return is_count(value)
    return is_number(value) if hint is float else isinstance(value, hint)
