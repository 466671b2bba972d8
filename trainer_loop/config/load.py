r"""The config: defaults, then YAML files, then `key=value` arguments; every problem of all of them at once.

`${run_dir}` stands for the value of another key, `${oc.env:HOME}` for an environment variable, `\${` for a plain `${`.
No other interpolations are allowed.
Mappings such as model.overrides are merged key by key over the layers; everything else is replaced.
"""

import copy
import dataclasses
import functools
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar, get_type_hints

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import GrammarParseError, OmegaConfBaseException

from trainer_loop.config.checks import conflicts, unusable_paths
from trainer_loop.config.fields import Config
from trainer_loop.config.find import find_config
from trainer_loop.config.interpolation import Interpolations
from trainer_loop.config.schema import KEYS, SECTIONS, value_of
from trainer_loop.config.secrets import FromEnvironment, find_connections, find_secrets, name_sources
from trainer_loop.config.sources import COMMAND_LINE, Entry, Layer, command_line_layer, file_layers
from trainer_loop.config.values import expects, judge, shown
from trainer_loop.config.yaml_core import dump
from trainer_loop.errors import UserError, printable
from trainer_loop.migrate.translations import TRANSLATIONS, meant_keys

DEFAULT_CONFIG = "quickstart.yaml"

# A key -> the key that excludes it, and its value when neither of them is given.
_FALLBACKS: dict[str, tuple[str, Any]] = {"batch.size": ("batch.accumulate", 32), "train.epochs": ("train.steps", 3.0)}

_QUERIED = ("splits", "named_splits", "mixture")  # kinds of keys that may hold a query of a database
_HEAD = "# Every key of this run; the same run again: config=<this file>\n"
_T = TypeVar("_T")


def load_config(path: str | None = None, overrides: Sequence[str] = ()) -> Config:
    """The config of a YAML file and `key=value` overrides; raises UserError with all of its problems.

    Examples:
        >>> load_config("imdb.yaml", ["train.epochs=1"]).train.epochs
        1.0
    """
    reading = read_config(path, overrides)
    if reading.problems:
        raise UserError(reading.problems)
    return reading.config


@dataclasses.dataclass(frozen=True)
class Reading:
    """A config and its problems, each in one line."""

    config: Config  # a key that is wrong has its default
    key_problems: list[str]  # names that are no keys, and values of the wrong type
    conflicts: list[str]  # keys that contradict each other

    @property
    def problems(self) -> list[str]:
        return self.key_problems + self.conflicts


def read_config(path: str | None, overrides: Sequence[str]) -> Reading:
    """Read the layers of a config and find every problem of them.

    `path` is looked for by `find_config`; None: only the defaults and the overrides. Raises UserError where nothing
    can go on: a name in it is longer than any file's.
    """
    try:
        layers = [] if path is None else file_layers(find_config(path))
    except UserError as error:
        layers = [Layer(problems=error.problems, is_readable=False)]
    layers.append(command_line_layer(overrides))
    tree, given, unreadable = _merge(layers)
    values, unresolved = _resolve(tree, given)
    config = _construct(Config, values)
    problems = [problem for layer in layers for problem in layer.problems]
    reading = Reading(config, [printable(told) for told in [*problems, *unreadable, *unresolved.values()]], [])

    if all(layer.is_readable for layer in layers):
        source = COMMAND_LINE if path is None else str(path)
        unusable = list(unusable_paths(config))
        for keys, problem in [*unusable, *conflicts(config)]:
            if not unresolved.keys() & set(keys):
                place = next((given[key].place for key in keys if key in given), source)
                reading.conflicts.append(printable(f"{place}: {problem}"))
        if unusable:
            raise UserError(reading.problems)
    return reading


@functools.cache  # a copy takes a fifth of the time
def _make_defaults() -> DictConfig:
    tree: DictConfig = OmegaConf.structured(Config)
    for section in ("", *SECTIONS):  # frozen dataclasses make a read-only tree
        OmegaConf.set_readonly(OmegaConf.select(tree, section), False)
    return tree


def _merge(layers: Iterable[Layer]) -> tuple[DictConfig, dict[str, Entry], list[str]]:
    """The layers over the defaults; the last entry of every key that was given; what is no interpolation."""
    tree = _make_defaults().copy()
    given: dict[str, Entry] = {}
    problems = []
    for entry in (entry for layer in layers for entry in layer.entries):
        merges = isinstance(KEYS[entry.name].default, dict) and bool(entry.value)
        try:
            OmegaConf.update(tree, entry.name, entry.value, merge=merges)
            given[entry.name] = entry
        except GrammarParseError:
            told = f"{entry.name} is {shown(entry.value)}, which begins ${{ but is no interpolation"
            problems.append(f"{entry.place}: {told}; write ${{another.key}}, or \\${{ for a plain ${{")
    return tree, given, problems


def _resolve(tree: DictConfig, given: Mapping[str, Entry]) -> tuple[dict[str, Any], dict[str, str]]:
    """The value of every key, interpolations resolved, and a problem for each that has none or a wrong one."""
    for name, (other, fallback) in _FALLBACKS.items():
        if all(part not in given or given[part].value is None for part in (name, other)):
            OmegaConf.update(tree, name, fallback)
    written: Any = OmegaConf.to_container(tree, resolve=False)
    interpolations = Interpolations(written)
    values: dict[str, Any] = {}
    problems: dict[str, str] = {}
    for name, key in KEYS.items():
        path = tuple(name.split("."))
        as_written = functools.reduce(lambda below, part: below[part], path, written)
        reason = interpolations.find_fault(as_written, path)
        problem: str | None = None
        if reason is None:
            try:
                value = OmegaConf.select(tree, name)
                value = OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
                values[name] = interpolations.name_sources(value, as_written, path)
                problem = judge(values[name], key)
            except (OmegaConfBaseException, RecursionError) as error:
                reason = "it refers to itself" if isinstance(error, RecursionError) else _explain(error)
        if reason is not None:
            problem = f"{name} is {shown(given[name].value)}; allowed: {expects(key)}; {reason}"
        if problem:
            values[name] = copy.copy(key.default)
            problems[name] = f"{given[name].place}: {problem}"
    for name, (other, fallback) in _FALLBACKS.items():
        if values[name] is None and values[other] is None:
            values[name] = fallback
    return values, problems


def _explain(error: OmegaConfBaseException) -> str:
    """What OmegaConf found, and what to do about a variable that is not set."""
    told = str(error).partition("\n")[0]
    missing = re.search(r"Environment variable '([^']*)' not found", told)
    return told if missing is None else f"{missing[1]} is not set: export {missing[1]}=..."


def _construct(kind: type[_T], values: Mapping[str, Any], *, prefix: str = "") -> _T:
    """A dataclass of fields.py from the values of the keys below `prefix`."""
    hints = get_type_hints(kind)
    arguments = {}
    for field in dataclasses.fields(kind):  # type: ignore[arg-type]
        name = prefix + field.name
        is_section = name in SECTIONS
        arguments[field.name] = _construct(hints[field.name], values, prefix=name + ".") if is_section else values[name]
    return kind(**arguments)


def spell_config(config: Config) -> str:
    """YAML that reads as an equal config.

    What came from the environment is written as `${oc.env:NAME}`, and what looks like a secret, too.
    """
    return _HEAD + dump(escaped(_without_secrets(config, "")))


def _without_secrets(value: Any, name: str) -> Any:
    """The value of a key or section as plain values; secrets are looked for in free mappings and in queries."""
    if dataclasses.is_dataclass(value):
        return {
            field.name: _without_secrets(getattr(value, field.name), f"{name}.{field.name}".removeprefix("."))
            for field in dataclasses.fields(value)
        }
    kind = KEYS[name].kind
    return (
        find_secrets(value, name) if kind == "mapping" else find_connections(value, name) if kind in _QUERIED else value
    )


def escaped(value: Any) -> Any:
    r"""A `${` that is part of a text becomes `\${`, so that it is not resolved again; sources are as they were."""
    if isinstance(value, dict):
        return {key: escaped(item) for key, item in value.items()}
    if isinstance(value, list):
        return [escaped(item) for item in value]
    if isinstance(value, FromEnvironment):
        return value.source
    return re.sub(r"(\\*)\$\{", r"\1\1\\${", value) if isinstance(value, str) else value


def values_of(config: Config) -> dict[str, Any]:
    """Every key by its dotted name, with its value."""
    return {name: value_of(config, name) for name in KEYS}


def public_values(config: Config) -> dict[str, Any]:
    """As `values_of`, for whatever is written down or sent: secrets and texts from the environment by their sources.

    A key that updates depend on has a checksum of such a text beside, by which a resumed run sees a change.
    """
    return {
        name: name_sources(_without_secrets(value, name), with_digest=KEYS[name].on_resume != "free")
        for name, value in values_of(config).items()
    }


def flatten(config: Config) -> dict[str, str | int | float | bool]:
    """Like `public_values`, with what is no single value as text. What trackers show of a run."""
    values = public_values(config).items()
    return {name: value if isinstance(value, (str, int, float)) else str(value) for name, value in values}


def split_arguments(arguments: Sequence[str]) -> tuple[str | None, list[str], str | None]:
    """Command line -> (the name after `config=`, the `key=value` overrides, what help is asked about).

    `--help` and `-h` may be followed by a key or by `task.name=NAME`; the empty text asks for help about everything.

    No argument at all means the embedded default. Raises UserError for arguments of another form, with the right one.
    """
    if not arguments:
        return DEFAULT_CONFIG, [], None
    asked = next((place for place, argument in enumerate(arguments) if argument in ("--help", "-h")), None)
    if asked is not None:
        following = next(iter(arguments[asked + 1 :]), "")
        is_key = "=" not in following or following.startswith("task.name=")
        return None, [], following if is_key and not following.startswith("-") else ""
    config: str | None = None
    overrides: list[str] = []
    problems: list[str] = []
    waiting = list(arguments)
    while waiting:
        argument = waiting.pop(0)
        name, equals, value = argument.partition("=")
        if not equals or not name or name.startswith("-"):
            is_pair = not equals and waiting and "=" not in waiting[0] and not waiting[0].startswith("--")
            given = [argument, waiting.pop(0)] if is_pair and not _is_config_file(argument) else [argument]
            value = given[1] if len(given) == 2 else value
            problems.append(
                f"{COMMAND_LINE}: {' '.join(given)}: arguments are key=value; write {_spelled(name, value)}"
            )
        elif name != "config":
            overrides.append(argument)
        elif not value or config is not None:
            first = f"config={config} was given before; " if config else ""
            problems.append(f"{COMMAND_LINE}: {argument}: {first}write one file, such as config=imdb.yaml")
        else:
            config = value
    if problems:
        raise UserError([printable(problem) for problem in problems])
    return config, overrides, None


def _is_config_file(word: str) -> bool:
    return word.endswith((".yaml", ".yml"))


def _spelled(name: str, value: str) -> str:
    """What was meant by `--name value`, as `key=value`."""
    name = name.lstrip("-").replace("-", "_")
    if _is_config_file(name) or name in ("config", "config_file"):
        return f"config={value or (name if _is_config_file(name) else 'imdb.yaml')}"
    keys = [name] if name in KEYS else [key for key in meant_keys(name) if key in KEYS]
    if not keys:
        return "it as in train.epochs=3; --help lists all keys"
    note = TRANSLATIONS.get(name, (None, ""))[1]
    missing = "true" if KEYS[keys[0]].kind == "true_or_false" else "..."
    return f"{keys[0]}={value or missing}" + (f" ({note})" if note else "")
