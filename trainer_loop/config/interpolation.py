r"""`${another.key}` and `${oc.env:NAME}` in the texts of a config: what they may be, how long they get, what they read.

OmegaConf resolves them, and knows more of them: `oc.coerce` imports a module that a text names, and `oc.decode` runs
whatever a text holds. So only these two are let through.
"""

import functools
import re
from collections.abc import Iterator, Mapping
from typing import Any

from trainer_loop.config.secrets import FromEnvironment

Path = tuple[str, ...]  # of a value in the tree of a config: ("log", "tracker_args", "wandb", "tags", "0")

_LONGEST = 100_000  # characters that the texts of one key may come to
_BEGINNING = re.compile(r"(\\*)\$\{\s*([^${}:\s]*)\s*(:?)")
_KEY = re.compile(r"\.*[^.\[\]]+(?:\.[^.\[\]]+|\[[^.\[\]]+\])*")


class Interpolations:
    """The interpolations in a tree of plain values, as they were written."""

    def __init__(self, tree: Mapping[str, Any]):
        self._tree = tree
        self._measured: dict[Path, tuple[int, bool]] = {}

    def find_fault(self, value: Any, path: Path) -> str | None:
        """What is wrong with the interpolations in a value; None leaves the rest to OmegaConf."""
        for text in _texts(value):
            for name, is_call in _references(text):
                if is_call and name != "oc.env":
                    return f"${{{name}:...}} is not allowed; write ${{another.key}} or ${{oc.env:NAME}}"
                if not is_call and not _KEY.fullmatch(name):
                    return "what follows ${ is no key; write ${another.key}, or \\${ for a plain ${"
        try:
            length, _ = self._measure(value, path, above=())
        except RecursionError:
            return "it refers to others that refer to others too often"
        return None if length <= _LONGEST else f"it would have {length:,} characters, and at most {_LONGEST:,} may be"

    def name_sources(self, value: Any, written: Any, path: Path) -> Any:
        """A resolved value, in which each text that comes from the environment knows how it was written."""
        if isinstance(value, dict):
            return {
                key: self.name_sources(item, _below(written, key), (*path, str(key))) for key, item in value.items()
            }
        if isinstance(value, list):
            return [self.name_sources(item, _below(written, at), (*path, str(at))) for at, item in enumerate(value)]
        if isinstance(value, str) and isinstance(written, str) and self._measure(written, path, above=())[1]:
            return FromEnvironment(value, written)
        return value

    def _measure(self, value: Any, path: Path, *, above: tuple[Path, ...]) -> tuple[int, bool]:
        """How many characters a value comes to, and whether the environment has a part in it."""
        if path in self._measured:
            return self._measured[path]
        if path in above:  # OmegaConf finds that it refers to itself
            return 0, False
        parts = [(0, False)]
        if isinstance(value, Mapping):
            parts += [self._measure(item, (*path, str(key)), above=above) for key, item in value.items()]
        elif isinstance(value, list):
            parts += [self._measure(item, (*path, str(at)), above=above) for at, item in enumerate(value)]
        elif isinstance(value, str):
            parts.append((len(value), False))
            for name, is_call in _references(value):
                target = _resolve_path(name, path)
                found = functools.reduce(_below, target, self._tree)
                parts.append((0, True) if is_call else self._measure(found, target, above=(*above, path)))
        measured = sum(length for length, _ in parts), any(reads for _, reads in parts)
        self._measured[path] = measured
        return measured


def _references(text: str) -> Iterator[tuple[str, bool]]:
    """What stands after every `${` that is not escaped, and whether a colon follows, which makes it a call."""
    for match in _BEGINNING.finditer(text):
        if len(match[1]) % 2 == 0:
            yield match[2], bool(match[3])


def _resolve_path(name: str, path: Path) -> Path:
    """The path that a reference means: from the top, or where it begins with dots from where it stands."""
    dots = len(name) - len(name.lstrip("."))
    parts = tuple(part for part in re.split(r"[.\[\]]+", name) if part)
    return (*path[: len(path) - dots], *parts) if dots else parts


def _below(value: Any, key: Any) -> Any:
    """What a mapping or list holds there; below a text that stands for a whole mapping, the text for that part."""
    if isinstance(value, Mapping):
        return value.get(key, next((item for other, item in value.items() if str(other) == key), None))
    if isinstance(value, list):
        return value[int(key)] if str(key).isdecimal() and int(key) < len(value) else None
    is_reference = isinstance(value, str) and value.startswith("${") and value.endswith("}")
    return f"{value[:-1]}.{key}}}" if is_reference else None


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, (Mapping, list)):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from _texts(item)
