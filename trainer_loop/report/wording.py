"""Formats numbers and names for reports."""

import json
import math
from typing import Any

from trainer_loop.config.named_sets import parse_set

_LONGEST_VALUE = 400  # characters of a value in a table


def title_of(name: str) -> str:
    """Return the title of a set: `test hard` for `test.hard`."""
    return " ".join(filter(None, parse_set(name)))


def is_count(metric: str) -> bool:
    """Return whether a metric counts what is in the data, such as the entities of a type."""
    return metric.partition("/")[0].endswith("support")


def spell_metric(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.5g}"


def spell_interval(low: float, high: float) -> str:
    """Format an interval with two digits of its width; `low < high`.

    >>> spell_interval(0.59381, 0.71829), spell_interval(24.8469, 26.1268), spell_interval(0.0002288, 0.001394)
    ('0.59 to 0.72', '24.8 to 26.1', '0.0002 to 0.0014')
    """
    digits = max(0, 1 - math.floor(math.log10(high - low)))
    return f"{low:.{digits}f} to {high:.{digits}f}"


def spell_seconds(seconds: float) -> str:
    """Format a duration: `1 h 2 min`, `3 min 20 s`, `4.2 s`."""
    if seconds >= 3600:
        return f"{int(seconds // 3600):,} h {int(seconds % 3600 // 60)} min"
    return f"{int(seconds // 60)} min {int(seconds % 60)} s" if seconds >= 60 else f"{seconds:.1f} s"


def spell_bytes(count: int) -> str:
    return f"{count / 2**30:,.2f} GB" if count >= 2**30 else f"{count / 2**20:,.1f} MB"


def spell_value(value: Any) -> str:
    """Format the value of a config key; only the start of a long one.

    >>> spell_value(["a", None]), spell_value("x" * 500)[397:]
    ('["a", null]', 'xxx... (500 characters)')
    """
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= _LONGEST_VALUE else f"{text[:_LONGEST_VALUE]}... ({len(text):,} characters)"
