"""`python -m trainer_loop.migrate training_args.json`: translates TrainingArguments of transformers into a config."""

import dataclasses
import json
import types
from collections.abc import Iterable, Mapping
from enum import Enum
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

from trainer_loop.cli.command import run_command
from trainer_loop.config.load import escaped
from trainer_loop.config.schema import KEYS
from trainer_loop.config.values import check_value, shown
from trainer_loop.config.yaml_core import dump
from trainer_loop.errors import UserError, refuse, suggest, under
from trainer_loop.migrate.trainer_optimizers import OPTIMIZERS
from trainer_loop.migrate.training_arguments import RENAMED, Arguments, Setting, translate
from trainer_loop.migrate.translations import NOT_NEEDED, TRANSLATIONS
from trainer_loop.runtime.streams import put_out

_USAGE = "python -m trainer_loop.migrate training_args.json > config.yaml"

_ABOUT = """\
The file is the output of TrainingArguments.to_json_string(), or a JSON object with some of its fields. The command
prints a config with a line for every key that the fields decide, and a comment for every field that has no key here,
with the reason. docs/migrate.md lists all fields."""

_HEAD = """\
# From {name}, by python -m trainer_loop.migrate. What it does not say, and is still to be set:
#   model.name       hub id or local directory
#   data.name        hub id of a data set; or data.train and data.validation, files
#   data.columns     {{text: the column of the text, label: that of the label}}; data.max_length in tokens
#   evaluate.metrics what compute_metrics computed, such as [accuracy, f1]
"""


def main(argv: list[str] | None = None) -> int:
    """Print the config. Returns 0, or 2 if the file cannot be translated."""
    return run_command(argv, f"{_USAGE}\n\n{_ABOUT}\n", _print_config, prints_result=True)


def _print_config(arguments: list[str]) -> None:
    if len(arguments) != 1:
        raise UserError(f"{len(arguments)} arguments were given; the form is: {_USAGE}")
    put_out(migrate(Path(arguments[0])))


def migrate(path: Path) -> str:
    """Translate a JSON file of TrainingArguments into YAML. Raises UserError with all problems of the file."""
    arguments = _read_json(path)

    from transformers import TrainingArguments  # imports torch, which takes seconds

    fields = {field.name: field for field in dataclasses.fields(TrainingArguments) if field.init}
    with under(f"{path}: "):
        problems = [
            *_unknown_names(arguments, fields),
            *_wrong_types(arguments, fields, get_type_hints(TrainingArguments)),
        ]
        refuse(problems)
        settings, notes = translate(Arguments(arguments, defaults={name: _default(fields[name]) for name in fields}))
        for setting in settings:
            if problem := check_value(setting.value, KEYS[setting.key]):
                problems.append(f"{', '.join(setting.names)}: {problem}")
        refuse(problems)
    comments = "".join(f"#   {note.name}: {note.text}\n" for note in notes)
    rest = f"\n# Without a key here:\n{comments}" if comments else ""
    return _HEAD.format(name=path.name) + _yaml(settings) + rest


def _read_json(path: Path) -> dict[str, Any]:
    try:
        arguments = json.loads(path.read_bytes().decode("utf-8-sig"), parse_constant=_refuse)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}; the form is: {_USAGE}") from error
    except json.JSONDecodeError as error:
        hint = "training_args.bin is not read" if path.suffix == ".bin" else "write it with to_json_string()"
        raise UserError(f"{path}:{error.lineno}:{error.colno}: this is not JSON: {error.msg}; {hint}") from error
    except (ValueError, RecursionError) as error:
        remedy = "write it with TrainingArguments.to_json_string()"
        raise UserError(f"{path}: this is not JSON: {error}; {remedy}") from error
    if not isinstance(arguments, dict):
        raise UserError(f"{path}: this is {shown(arguments)}; TrainingArguments are a mapping from field to value")
    return arguments


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no number of JSON")


def _unknown_names(arguments: Mapping[str, Any], fields: Mapping[str, Any]) -> Iterable[str]:
    known = {*fields, *TRANSLATIONS, *NOT_NEEDED}
    for name in arguments:
        if name not in known:
            yield f"{name} is no field of TrainingArguments{suggest(name, known) or '; remove it'}"


def _wrong_types(arguments: Mapping[str, Any], fields: Mapping[str, Any], hints: Mapping[str, Any]) -> Iterable[str]:
    """Yield a problem for each value of a wrong type. Fields without a key here are not checked."""
    for name, value in arguments.items():
        new_name = RENAMED.get(name, name)
        is_unset = value is None if name in RENAMED else new_name in fields and value == fields[new_name].default
        if name not in TRANSLATIONS or new_name not in fields or is_unset:
            continue
        choices, kinds = _choices(hints[new_name]), [*_kinds(hints[new_name]), *_WRITTEN_TYPES.get(new_name, ())]
        if new_name == "optim":
            choices = sorted({*choices, *OPTIMIZERS})
        if choices and value not in choices:
            yield f"{name} is {shown(value)}; allowed: {', '.join(choices)}{suggest(str(value), choices)}"
        elif not choices and type(value) not in kinds and not (type(value) is int and float in kinds):
            yield f"{name} is {shown(value)}; allowed: {' or '.join(_WORDS[kind] for kind in kinds)}"


# Types that TrainingArguments accept and write, but do not declare.
_WRITTEN_TYPES: dict[str, tuple[type, ...]] = {"fsdp": (bool, list)}


def _alternatives(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def _choices(hint: Any) -> list[str]:
    """Return the allowed words of a field whose type is an enumeration."""
    kinds = [kind for kind in _alternatives(hint) if isinstance(kind, type) and issubclass(kind, Enum)]
    return [str(member.value) for kind in kinds for member in kind]


_WORDS: dict[Any, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text",
    dict: "a mapping",
    list: "a list",
    type(None): "null",
}


def _kinds(hint: Any) -> list[type]:
    """Return the types of JSON values that a field accepts."""
    return [kind for kind in (get_origin(part) or part for part in _alternatives(hint)) if kind in _WORDS]


def _default(field: Any) -> Any:
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def _yaml(settings: Iterable[Setting]) -> str:
    """Write the keys in their sections, each with a comment that names its TrainingArguments fields."""
    lines: list[str] = []
    section: list[str] = []
    for setting in settings:
        *parents, last = setting.key.split(".")
        for depth, name in enumerate(parents):
            if section[: depth + 1] != parents[: depth + 1]:
                lines.append("  " * depth + f"{name}:")
        section = parents
        first, *rest = dump(escaped({last: setting.value})).splitlines()
        source = ", ".join(setting.names) or "TrainingArguments' default"
        comment = f"  # {source}" if not rest or first.endswith(":") else ""  # not inside a multi-line string
        lines += ["  " * len(parents) + line for line in (first + comment, *rest)]
    return "\n".join(lines) + "\n"
