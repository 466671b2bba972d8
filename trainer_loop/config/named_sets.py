"""A split that is several sets by name, or a part of another."""

from collections.abc import Mapping
from typing import Any

QUERY = ("sql", "connection")  # of a database; no set has one of these names


def name_sets(split: str, spec: Any) -> dict[str, Any]:
    """`{validation: spec}`, or where the spec names several sets `{validation.matched: ..., ...}`; none for None."""
    if isinstance(spec, Mapping) and not is_query(spec):
        return {f"{split}.{name}": one for name, one in spec.items()}
    return {} if spec is None else {split: spec}


def is_query(spec: Any) -> bool:
    """Whether a spec is a query of a database: `{sql: ..., connection: ...}`."""
    return isinstance(spec, Mapping) and any(part in spec for part in QUERY)


def parse_set(name: str) -> tuple[str, str]:
    """The split and the name of a set; that of a split which has only one is the empty text.

    >>> parse_set("validation.matched"), parse_set("validation")
    (('validation', 'matched'), ('validation', ''))
    """
    split, _, part = name.partition(".")
    return split, part


def read_fold(value: str) -> tuple[int, int]:
    """Of `data.fold` the number of the part, from 1, and how many parts there are.

    >>> read_fold("2/5")
    (2, 5)
    """
    part, parts = value.split("/")
    return int(part), int(parts)
