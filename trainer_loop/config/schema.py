"""A flat view of the dataclasses in fields.py: every key by its full dotted name."""

import types
from collections.abc import Iterator
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from typing import Any, Union, get_args, get_origin, get_type_hints

from trainer_loop.config.fields import Config

_KIND_OF_TYPE = {
    str: "text",
    bool: "true_or_false",
    int: "integer",
    float: "number",
    dict[str, Any]: "mapping",
    list[str]: "texts",
}


@dataclass(frozen=True)
class Key:
    """One key of the config: what fields.py says about it, under its full name, such as `train.epochs`."""

    name: str
    kind: str  # a row of KINDS in values.py
    nullable: bool
    default: Any
    comment: str
    unit: str
    allowed: tuple[str, ...]
    at_least: float | None
    above: float | None
    below: float | None
    on_resume: str

    @property
    def last_part(self) -> str:
        return self.name.rpartition(".")[2]


def _default(field: Field[Any]) -> Any:
    return field.default if field.default_factory is MISSING else field.default_factory()


def _without_none(hint: Any) -> tuple[Any, bool]:
    """`int | None` -> (int, True); `int` -> (int, False)."""
    if get_origin(hint) not in (Union, types.UnionType):
        return hint, False
    (kind,) = [argument for argument in get_args(hint) if argument is not type(None)]
    return kind, True


def _walk(kind: type[Any], prefix: str) -> Iterator[tuple[str, str | Key]]:
    """(name, comment) of every section and (name, key) of every key, in the order of fields.py."""
    hints = get_type_hints(kind)
    for field in fields(kind):
        name, about = prefix + field.name, dict(field.metadata)
        hint, nullable = _without_none(hints[field.name])
        if is_dataclass(hint):
            yield name, about["comment"]
            yield from _walk(hints[field.name], name + ".")
        else:
            about["kind"] = about["kind"] or _KIND_OF_TYPE[hint]
            nullable = nullable or field.default is None or about["kind"] == "token_limit"
            yield name, Key(name=name, nullable=nullable, default=_default(field), **about)


KEYS: dict[str, Key] = {name: entry for name, entry in _walk(Config, "") if isinstance(entry, Key)}
SECTIONS: dict[str, str] = {name: entry for name, entry in _walk(Config, "") if isinstance(entry, str)}

# What a checkpoint is compared by beside the keys themselves: what came of the keys that are judged by content.
RESUME_FACTS = ("data", "tokens", "data.label_names", "batch.size", "frozen_weights", "unfreezing")
MUST_NOT_CHANGE = (*RESUME_FACTS, *(name for name, key in KEYS.items() if key.on_resume == "refused"))


def keys_of(section: str) -> list[Key]:
    """The keys directly in a section; of the config itself for the empty name."""
    return [key for key in KEYS.values() if key.name.rpartition(".")[0] == section]
