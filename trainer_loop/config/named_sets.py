"""Names of splits: several sets of one split, and parts of the training split."""

from collections.abc import Mapping
from typing import Any

QUERY = ("sql", "connection")  # keys of a database query; sets cannot have these names


def name_sets(split: str, spec: Any) -> dict[str, Any]:
    """Return the sets of a split by name: `{validation: spec}`, or `{validation.matched: ..., ...}` for several."""
    if isinstance(spec, Mapping) and not is_query(spec):
        return {f"{split}.{name}": one for name, one in spec.items()}
    return {} if spec is None else {split: spec}


def is_query(spec: Any) -> bool:
    """Return whether a spec is a database query: `{sql: ..., connection: ...}`."""
    return isinstance(spec, Mapping) and any(part in spec for part in QUERY)


def parse_set(name: str) -> tuple[str, str]:
    """Split the name of a set into split and set. A single set has the empty string as its name.

    >>> parse_set("validation.matched"), parse_set("validation")
    (('validation', 'matched'), ('validation', ''))
    """
    split, _, part = name.partition(".")
    return split, part


def read_fold(value: str) -> tuple[int, int]:
    """Parse `data.fold`. Returns the number of the part, from 1, and the number of parts.

    >>> read_fold("2/5")
    (2, 5)
    """
    part, parts = value.split("/")
    return int(part), int(parts)
