r"""Checks the interpolations `${another.key}` and `${oc.env:NAME}` in a config, which OmegaConf resolves.

OmegaConf also has interpolations that can run code: `oc.coerce` imports a module by name, and `oc.decode` evaluates a
text. Therefore only these two are allowed.
"""

import functools
import re
from collections.abc import Iterator, Mapping
from typing import Any

from trainer_loop.config.secrets import FromEnvironment

Path = tuple[str, ...]  # path of a value in the config tree: ("log", "tracker_args", "wandb", "tags", "0")

_LONGEST = 100_000  # maximum total length of the resolved texts of one key, in characters
_BEGINNING = re.compile(r"(\\*)\$\{\s*([^${}:\s]*)\s*(:?)")
_KEY = re.compile(r"\.*[^.\[\]]+(?:\.[^.\[\]]+|\[[^.\[\]]+\])*")


class Interpolations:
    """The interpolations in a tree of plain values that is not resolved yet."""

    def __init__(self, tree: Mapping[str, Any]):
        self._tree = tree
        self._measured: dict[Path, tuple[int, bool]] = {}

    def find_fault(self, value: Any, path: Path) -> str | None:
        """Return what is wrong with the interpolations in a value, or None. OmegaConf checks the rest."""
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
        """Replace each text of a resolved value that comes from the environment by a `FromEnvironment`."""
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
        """Return the resolved length of a value, in characters, and whether it reads environment variables."""
        if path in self._measured:
            return self._measured[path]
        if path in above:  # a reference to itself, which OmegaConf reports
            return 0, False
        parts = [(0, False)]
        if isinstance(value, Mapping):
            parts += [self._measure(item, (*path, str(key)), above=above) for key, item in value.items()]
        elif isinstance(value, list):
            parts += [self._measure(item, (*path, str(at)), above=above) for at, item in enumerate(value)]
        elif isinstance(value, str):
            parts.append((len(value), False))
            for name, is_call in _references(value):
                target_path = _resolve_path(name, path)
                target = functools.reduce(_below, target_path, self._tree)
                parts.append((0, True) if is_call else self._measure(target, target_path, above=(*above, path)))
        total = sum(length for length, _ in parts), any(reads for _, reads in parts)
        self._measured[path] = total
        return total


def _references(text: str) -> Iterator[tuple[str, bool]]:
    """Yield the name after every `${` that is not escaped, and whether a colon follows it, which makes it a call."""
    for match in _BEGINNING.finditer(text):
        if len(match[1]) % 2 == 0:
            yield match[2], bool(match[3])


def _resolve_path(name: str, path: Path) -> Path:
    """Return the path of a reference. A reference with leading dots is relative to `path`."""
    dots = len(name) - len(name.lstrip("."))
    parts = tuple(part for part in re.split(r"[.\[\]]+", name) if part)
    return (*path[: len(path) - dots], *parts) if dots else parts


def _below(value: Any, key: Any) -> Any:
    """Return the item of a mapping or list, or None. If `value` is a reference to a mapping, extend the reference."""
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
