r"""Loads a config from defaults, YAML files and `key=value` arguments, and reports all their problems together.

`${run_dir}` is replaced by the value of another key, `${oc.env:HOME}` by an environment variable, `\${` by a plain
`${`. No other interpolations are allowed. A later layer wins: mappings such as model.overrides are merged key by key,
and all other values are replaced.
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
from trainer_loop.config.values import check_value, expects, shown
from trainer_loop.config.yaml_core import dump
from trainer_loop.errors import UserError, printable
from trainer_loop.migrate.translations import TRANSLATIONS, meant_keys

DEFAULT_CONFIG = "quickstart.yaml"

# A key -> the key that excludes it, and its default if neither of them is given.
_FALLBACKS: dict[str, tuple[str, Any]] = {"batch.size": ("batch.accumulate", 32), "train.epochs": ("train.steps", 3.0)}

_QUERY_KINDS = ("splits", "named_splits", "mixture")  # kinds of keys that may hold a query of a database
_HEAD = "# Every key of this run; the same run again: config=<this file>\n"
_T = TypeVar("_T")


def load_config(path: str | None = None, overrides: Sequence[str] = ()) -> Config:
    """Load a config from a YAML file and `key=value` overrides. Raises UserError with all its problems.

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

    config: Config  # keys with problems have their default
    key_problems: list[str]  # unknown keys, and values of a wrong type
    conflicts: list[str]  # keys that contradict each other

    @property
    def problems(self) -> list[str]:
        return self.key_problems + self.conflicts


def read_config(path: str | None, overrides: Sequence[str]) -> Reading:
    """Read the layers of a config and collect their problems.

    Args:
        path: The name of a config, see `find_config`; None: only defaults and overrides.

    Raises:
        UserError: A path in the config is longer than a file system allows. The other problems are included.
    """
    try:
        layers = [] if path is None else file_layers(find_config(path))
    except UserError as error:
        layers = [Layer(problems=error.problems, is_readable=False)]
    layers.append(command_line_layer(overrides))
    tree, entries, malformed = _merge(layers)
    values, unresolved = _resolve(tree, entries)
    config = _construct(Config, values)
    problems = [problem for layer in layers for problem in layer.problems]
    reading = Reading(config, [printable(problem) for problem in [*problems, *malformed, *unresolved.values()]], [])

    if all(layer.is_readable for layer in layers):
        source = COMMAND_LINE if path is None else str(path)
        unusable = list(unusable_paths(config))
        for keys, problem in [*unusable, *conflicts(config)]:
            if not unresolved.keys() & set(keys):
                place = next((entries[key].place for key in keys if key in entries), source)
                reading.conflicts.append(printable(f"{place}: {problem}"))
        if unusable:
            raise UserError(reading.problems)
    return reading


@functools.cache  # copying the tree takes a fifth of the time of building it
def _make_defaults() -> DictConfig:
    tree: DictConfig = OmegaConf.structured(Config)
    for section in ("", *SECTIONS):  # frozen dataclasses make a read-only tree
        OmegaConf.set_readonly(OmegaConf.select(tree, section), False)
    return tree


def _merge(layers: Iterable[Layer]) -> tuple[DictConfig, dict[str, Entry], list[str]]:
    """Merge the layers over the defaults.

    Returns:
        The tree, the last entry of each key that a layer sets, and problems of malformed interpolations.
    """
    tree = _make_defaults().copy()
    entries: dict[str, Entry] = {}
    problems = []
    for entry in (entry for layer in layers for entry in layer.entries):
        merges = isinstance(KEYS[entry.name].default, dict) and bool(entry.value)
        try:
            OmegaConf.update(tree, entry.name, entry.value, merge=merges)
            entries[entry.name] = entry
        except GrammarParseError:
            problem = f"{entry.name} is {shown(entry.value)}, which begins ${{ but is no interpolation"
            problems.append(f"{entry.place}: {problem}; write ${{another.key}}, or \\${{ for a plain ${{")
    return tree, entries, problems


def _resolve(tree: DictConfig, entries: Mapping[str, Entry]) -> tuple[dict[str, Any], dict[str, str]]:
    """Resolve interpolations. Returns the value of each key, and the problems of missing or wrong values by key."""
    for name, (other, fallback) in _FALLBACKS.items():
        if all(part not in entries or entries[part].value is None for part in (name, other)):
            OmegaConf.update(tree, name, fallback)
    unresolved: Any = OmegaConf.to_container(tree, resolve=False)
    interpolations = Interpolations(unresolved)
    values: dict[str, Any] = {}
    problems: dict[str, str] = {}
    for name, key in KEYS.items():
        path = tuple(name.split("."))
        raw_value = functools.reduce(lambda below, part: below[part], path, unresolved)
        reason = interpolations.find_fault(raw_value, path)
        problem: str | None = None
        if reason is None:
            try:
                value = OmegaConf.select(tree, name)
                value = OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
                values[name] = interpolations.name_sources(value, raw_value, path)
                problem = check_value(values[name], key)
            except (OmegaConfBaseException, RecursionError) as error:
                reason = "it refers to itself" if isinstance(error, RecursionError) else _explain(error)
        if reason is not None:
            problem = f"{name} is {shown(entries[name].value)}; allowed: {expects(key)}; {reason}"
        if problem:
            values[name] = copy.copy(key.default)
            problems[name] = f"{entries[name].place}: {problem}"
    for name, (other, fallback) in _FALLBACKS.items():
        if values[name] is None and values[other] is None:
            values[name] = fallback
    return values, problems


def _explain(error: OmegaConfBaseException) -> str:
    """Return the first line of an OmegaConf error. For a missing environment variable it is the remedy."""
    message = str(error).partition("\n")[0]
    missing = re.search(r"Environment variable '([^']*)' not found", message)
    return message if missing is None else f"{missing[1]} is not set: export {missing[1]}=..."


def _construct(kind: type[_T], values: Mapping[str, Any], *, prefix: str = "") -> _T:
    """Create a dataclass of fields.py from the values of the keys that start with `prefix`."""
    hints = get_type_hints(kind)
    arguments = {}
    for field in dataclasses.fields(kind):  # type: ignore[arg-type]
        name = prefix + field.name
        is_section = name in SECTIONS
        arguments[field.name] = _construct(hints[field.name], values, prefix=name + ".") if is_section else values[name]
    return kind(**arguments)


def spell_config(config: Config) -> str:
    """Write a config as YAML that loads as an equal config.

    Values from the environment, and values that look like secrets, are written as `${oc.env:NAME}`.
    """
    return _HEAD + dump(escaped(_without_secrets(config, "")))


def _without_secrets(value: Any, name: str) -> Any:
    """Return a key or section as plain values, without the secrets in free mappings and in queries."""
    if dataclasses.is_dataclass(value):
        return {
            field.name: _without_secrets(getattr(value, field.name), f"{name}.{field.name}".removeprefix("."))
            for field in dataclasses.fields(value)
        }
    kind = KEYS[name].kind
    if kind == "mapping":
        return find_secrets(value, name)
    return find_connections(value, name) if kind in _QUERY_KINDS else value


def escaped(value: Any) -> Any:
    r"""Replace `${` in texts by `\${`, so that it stays. Values from the environment become their source."""
    if isinstance(value, dict):
        return {key: escaped(item) for key, item in value.items()}
    if isinstance(value, list):
        return [escaped(item) for item in value]
    if isinstance(value, FromEnvironment):
        return value.source
    return re.sub(r"(\\*)\$\{", r"\1\1\\${", value) if isinstance(value, str) else value


def values_of(config: Config) -> dict[str, Any]:
    """Return the values of all keys by dotted name."""
    return {name: value_of(config, name) for name in KEYS}


def public_values(config: Config) -> dict[str, Any]:
    """Return the values of all keys without secrets, for files and trackers.

    Secrets and texts from the environment are replaced by their source, such as `${oc.env:NAME}`. For keys that updates
    depend on, a checksum is added, so that a resumed run can detect a change.
    """
    return {
        name: name_sources(_without_secrets(value, name), with_digest=KEYS[name].on_resume != "free")
        for name, value in values_of(config).items()
    }


def flatten(config: Config) -> dict[str, str | int | float | bool]:
    """Do the same as `public_values`, with lists and mappings as text, for trackers."""
    values = public_values(config).items()
    return {name: value if isinstance(value, (str, int, float)) else str(value) for name, value in values}


def split_arguments(arguments: Sequence[str]) -> tuple[str | None, list[str], str | None]:
    """Split the arguments of the command line. Without arguments, the embedded default config is used.

    Returns:
        The name after `config=`, the `key=value` overrides, and the topic after `--help` or `-h`: a key,
        `task.name=NAME`, or the empty string for the whole help. None: no help is requested.

    Raises:
        UserError: An argument is not `key=value`. The message says how to write it.
    """
    if not arguments:
        return DEFAULT_CONFIG, [], None
    help_place = next((place for place, argument in enumerate(arguments) if argument in ("--help", "-h")), None)
    if help_place is not None:
        topic = next(iter(arguments[help_place + 1 :]), "")
        is_key = "=" not in topic or topic.startswith("task.name=")
        return None, [], topic if is_key and not topic.startswith("-") else ""
    config: str | None = None
    overrides: list[str] = []
    problems: list[str] = []
    queue = list(arguments)
    while queue:
        argument = queue.pop(0)
        name, equals, value = argument.partition("=")
        if not equals or not name or name.startswith("-"):
            is_pair = not equals and queue and "=" not in queue[0] and not queue[0].startswith("--")
            words = [argument, queue.pop(0)] if is_pair and not _is_config_file(argument) else [argument]
            value = words[1] if len(words) == 2 else value
            problems.append(
                f"{COMMAND_LINE}: {' '.join(words)}: arguments are key=value; write {_spelled(name, value)}"
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
    """Translate `--name value` into `key=value`."""
    name = name.lstrip("-").replace("-", "_")
    if _is_config_file(name) or name in ("config", "config_file"):
        return f"config={value or (name if _is_config_file(name) else 'imdb.yaml')}"
    keys = [name] if name in KEYS else [key for key in meant_keys(name) if key in KEYS]
    if not keys:
        return "it as in train.epochs=3; --help lists all keys"
    note = TRANSLATIONS.get(name, (None, ""))[1]
    missing = "true" if KEYS[keys[0]].kind == "true_or_false" else "..."
    return f"{keys[0]}={value or missing}" + (f" ({note})" if note else "")
