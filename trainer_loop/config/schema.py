"""A flat view of the dataclasses in fields.py: all keys by full dotted name."""

import functools
import types
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from typing import Any, get_type_hints

from trainer_loop.config.fields import RUN, Config

_KIND_OF_TYPE: dict[Any, str] = {str: "text", bool: "true_or_false", int: "integer", float: "number"}
_KIND_OF_TYPE |= {dict[str, Any]: "mapping", list[str]: "texts"}
_KIND_OF_TYPE |= {hint | None: kind for hint, kind in _KIND_OF_TYPE.items()}


@dataclass(frozen=True)
class Key:
    """One key of the config, as fields.py declares it, with its full name such as `train.epochs`."""

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


def _walk(kind: type[Any], prefix: str, on_resume: Mapping[str, str]) -> Iterator[tuple[str, str | Key]]:
    """Yield (name, comment) of each section and (name, key) of each key, in the order of fields.py."""
    hints = get_type_hints(kind)
    for field in fields(kind):
        name, metadata = prefix + field.name, dict(field.metadata)
        hint = hints[field.name]
        if is_dataclass(hint):
            yield name, metadata["comment"]
            yield from _walk(hints[field.name], name + ".", metadata["on_resume"])
        else:
            metadata["kind"] = metadata["kind"] or _KIND_OF_TYPE[hint]
            nullable = isinstance(hint, types.UnionType) or field.default is None or metadata["kind"] == "token_limit"
            default = field.default if field.default_factory is MISSING else field.default_factory()
            yield name, Key(name=name, nullable=nullable, default=default, on_resume=on_resume[field.name], **metadata)


_ENTRIES = dict(_walk(Config, "", RUN.metadata["on_resume"]))
KEYS: dict[str, Key] = {name: entry for name, entry in _ENTRIES.items() if isinstance(entry, Key)}
SECTIONS: dict[str, str] = {name: entry for name, entry in _ENTRIES.items() if isinstance(entry, str)}

# Facts of a run that a checkpoint is compared by, for the keys whose policy is `by content`.
RESUME_FACTS = ("data", "tokens", "data.label_names", "batch.size", "frozen_weights", "unfreezing")
MUST_NOT_CHANGE = (*RESUME_FACTS, *(name for name, key in KEYS.items() if key.on_resume == "refused"))


def value_of(config: Config, name: str) -> Any:
    """Return the value of a key by its dotted name."""
    return functools.reduce(getattr, name.split("."), config)


def keys_of(section: str) -> list[Key]:
    """Return the keys directly in a section. The empty name means the config itself."""
    return [key for key in KEYS.values() if key.name.rpartition(".")[0] == section]
