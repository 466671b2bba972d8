"""A split that is several sets by name."""

from collections.abc import Mapping
from typing import Any


def name_sets(split: str, spec: Any) -> dict[str, Any]:
    """`{validation: spec}`, or where the spec names several sets `{validation.matched: ..., ...}`; none for None."""
    if isinstance(spec, Mapping):
        return {f"{split}.{name}": one for name, one in spec.items()}
    return {} if spec is None else {split: spec}


def parse_set(name: str) -> tuple[str, str]:
    """The split and the name of a set; that of a split which has only one is the empty text.

    >>> parse_set("validation.matched"), parse_set("validation")
    (('validation', 'matched'), ('validation', ''))
    """
    split, _, part = name.partition(".")
    return split, part
