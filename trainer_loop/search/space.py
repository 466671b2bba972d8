"""`search.space`: the config keys that are searched, and their values."""

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from yaml.nodes import MappingNode, Node, SequenceNode

from trainer_loop.config.load import read_config
from trainer_loop.config.schema import KEYS, SECTIONS
from trainer_loop.config.values import read, shown
from trainer_loop.config.yaml_core import STR, compose, core_tag, plain
from trainer_loop.errors import UserError, suggest
from trainer_loop.migrate.translations import describe_unknown

_PARTS = ("low", "high", "log", "step")
_WHOLE = ("integer", "token_limit", "auto_or_count", "auto_or_positive")  # kinds of keys
_TEXTS = ("text", "texts", "splits")  # kinds of keys whose text is not parsed on the command line
_NOT_SEARCHED = ("run_dir", "resume", "resume_anyway", "dry_run")
_FORMS = "write [16, 32] for choices, {low: 1e-5, high: 1e-3, log: true} or {low: 1, high: 9, step: 2} for a range"
_MOST_COMBINATIONS = 100_000


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, both included; integers if `low`, `high` and `step` are integers."""

    low: float
    high: float
    log: bool = False
    step: float | None = None

    @property
    def is_whole(self) -> bool:
        return all(isinstance(number, int) for number in (self.low, self.high, self.step or 1))

    @property
    def ends(self) -> list[Any]:
        return [self.low, self.high]

    @property
    def grid(self) -> list[Any] | None:
        """All values; None for a range that cannot be counted."""
        step = self.step or (1 if self.is_whole and not self.log else None)
        if step is None:
            return None
        count = math.floor((self.high - self.low) / step + 1e-9) + 1
        return [self.low + number * step for number in range(min(count, _MOST_COMBINATIONS + 1))]


@dataclass(frozen=True)
class Choices:
    """Values of any type. Lists and mappings are stored as JSON, which the command line takes."""

    values: tuple[Any, ...]

    @property
    def ends(self) -> list[Any]:
        return list(self.values)

    @property
    def grid(self) -> list[Any] | None:
        return list(self.values)


Space = Mapping[str, Range | Choices]


def read_space(text: str) -> tuple[dict[str, Range | Choices], list[str]]:
    """Read `search.space=text`, a mapping or a YAML file with one; returns the space and all problems.

    >>> read_space("{optimizer.lr: {low: 1e-5, high: 1e-3, log: true}, batch.size: [16, 32]}")[0]
    {'optimizer.lr': Range(low=1e-05, high=0.001, log=True, step=None), 'batch.size': Choices(values=(16, 32))}
    """
    file = None if text.startswith("{") else text
    if file is not None:
        try:
            text = Path(file).read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is no text in UTF-8"
            return {}, [f"search.space: {shown(file)} is neither a mapping nor a file that can be read: {reason}"]
    node, faults = compose(text)
    problems = [f"search.space: {f'{file}:{fault.line}: ' if file else ''}{fault.problem}" for fault in faults]
    if not isinstance(node, MappingNode) and not faults:
        problems.append("search.space: it names no key; such as {optimizer.lr: {low: 1e-5, high: 1e-3, log: true}}")
    space: dict[str, Range | Choices] = {}
    if isinstance(node, MappingNode):
        _read_entries(node, "", space, problems)
    return space, problems


def _read_entries(node: MappingNode, prefix: str, space: dict[str, Range | Choices], problems: list[str]) -> None:
    for key, value in node.value:
        name = prefix + key.value
        holds_keys = isinstance(value, MappingNode) and not {part.value for part, _ in value.value} & set(_PARTS)
        if holds_keys and (name in SECTIONS or _is_in_mapping(name)):
            _read_entries(value, name + ".", space, problems)
            continue
        try:
            if name not in KEYS and not _is_in_mapping(name):
                raise UserError(describe_unknown(name))
            if name in _NOT_SEARCHED:
                raise UserError(f"{name} is set by the search itself; leave it out")
            space[name] = _read_entry(name, value)
        except UserError as error:
            problems += [f"search.space: {problem}" for problem in error.problems]


def _is_in_mapping(name: str) -> bool:
    """Return whether a name is a key of a mapping with free keys, such as model.overrides."""
    parts = name.split(".")
    prefixes = (".".join(parts[:count]) for count in range(1, len(parts) + 1))
    return any(prefix in KEYS and KEYS[prefix].kind == "mapping" for prefix in prefixes)


def _read_entry(name: str, node: Node) -> Range | Choices:
    if isinstance(node, SequenceNode):
        values = [read(item, KEYS[name]) if name in KEYS else plain(item) for item in node.value]
        if not values:
            raise UserError(f"{name} has no value to choose from; {_FORMS}")
        spelled = [spell(name, value) if isinstance(value, list | dict) else value for value in values]
        twice = [value for place, value in enumerate(values) if value in values[:place]]
        if twice:
            raise UserError(f"{name} has {shown(twice[0])} twice; leave one out")
        return Choices(tuple(spelled))
    if not isinstance(node, MappingNode):
        raise UserError(f"{name} is {shown(plain(node))}; {_FORMS}")
    parts: dict[str, Any] = {key.value: plain(value) for key, value in node.value}
    if unknown := [part for part in parts if part not in _PARTS]:
        raise UserError(f"{name}: {unknown[0]} is none of {', '.join(_PARTS)}{suggest(unknown[0], _PARTS)}; {_FORMS}")
    return _read_range(name, parts)


def _read_range(name: str, parts: dict[str, Any]) -> Range:
    problems = []
    for part in ("low", "high", "step"):
        value = parts.get(part)
        if value is None and part == "step":
            continue
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            problems.append(f"{name}: {part} is {shown(value)}; it must be a number")
        elif name in KEYS and KEYS[name].kind in _WHOLE:
            if not float(value).is_integer():
                problems.append(f"{name}: {part} is {value}; it must be a whole number")
            parts[part] = int(value)
        elif name in KEYS and KEYS[name].kind == "number":
            parts[part] = float(value)
    if not isinstance(parts.get("log", False), bool):
        problems.append(f"{name}: log is {shown(parts['log'])}; it must be true or false")
    if problems:
        raise UserError(problems)
    parameter = Range(parts["low"], parts["high"], parts.get("log", False), parts.get("step"))
    if parameter.low >= parameter.high:
        raise UserError(f"{name}: low is {parameter.low} and high is {parameter.high}; low must be below high")
    if parameter.log and parameter.low <= 0:
        raise UserError(f"{name}: low is {parameter.low}; with log: true it must be above 0")
    if parameter.step is not None and (parameter.log or parameter.step <= 0):
        raise UserError(f"{name}: step is {parameter.step}; it must be above 0, and excludes log: true")
    return parameter


def spell(name: str, value: object) -> str:
    """Format a value for the command line, as the part after `name=`."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list | dict):
        return json.dumps(value, ensure_ascii=False)
    if not isinstance(value, str) or (name in KEYS and KEYS[name].kind in _TEXTS):
        return str(value)
    is_plain = core_tag(value) == STR and value[:1] not in ("[", "{", '"', "'")
    return value if is_plain else json.dumps(value, ensure_ascii=False)


def spell_values(space: Space, values: Mapping[str, Any]) -> list[str]:
    """Return the values of a trial as `key=value` arguments."""
    return [
        # A text that starts with a bracket is a list or mapping in JSON.
        f"{name}={value if isinstance(value, str) and value[:1] in ('[', '{') else spell(name, value)}"
        for name, value in ((name, values[name]) for name in space)
    ]


def check_space(space: Space, path: str | None, overrides: Sequence[str]) -> list[str]:
    """Check the config with the values of the space; returns its problems.

    One key at a time takes the ends of its range, or all its choices; the others have their first value.
    """
    first = {name: parameter.ends[0] for name, parameter in space.items()}
    first_problems = read_config(path, [*overrides, *spell_values(space, first)]).problems
    problems = [_name_space(problem, space) for problem in first_problems]
    for name, parameter in space.items():
        for value in parameter.ends[1:]:
            reading = read_config(path, [*overrides, *spell_values(space, first | {name: value})])
            problems += [_name_space(problem, space) for problem in reading.problems if problem not in first_problems]
    return list(dict.fromkeys(problems))


def _name_space(problem: str, space: Space) -> str:
    """Turn a problem of the command line into one of the space, if it names a key of the space."""
    message = problem.removeprefix("command line: ")
    return f"search.space: {message}" if any(message.startswith(name) for name in space) else problem


def list_grid(space: Space) -> list[dict[str, Any]]:
    """List all combinations of the values. Raises UserError for a range without steps, or too many combinations."""
    grids = {name: parameter.grid for name, parameter in space.items()}
    if problems := [
        f"search.space: {name}: search.sampler=grid tries all values; give this range a step, or write a list"
        for name, values in grids.items()
        if values is None
    ]:
        raise UserError(problems)
    count = math.prod(len(values or ()) for values in grids.values())
    if count > _MOST_COMBINATIONS:
        raise UserError(f"search.space: {count:,} combinations are too many for search.sampler=grid; use tpe or random")
    return [
        dict(zip(grids, values, strict=True)) for values in itertools.product(*(grids[name] or () for name in grids))
    ]
