"""`key=value` arguments of the commands beside `run`, whose keys are few and no config."""

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from trainer_loop.config.checks import LONGEST_NAME, count_longest_name
from trainer_loop.errors import UserError
from trainer_loop.record.run_dir import RunDir
from trainer_loop.runtime.host import expand_home

_MOST_DIGITS = 19  # of a whole number; Python itself refuses some thousands


def split_arguments(arguments: Sequence[str], names: Sequence[str]) -> tuple[list[tuple[str, str]], list[str]]:
    """The names and values of the arguments whose key is one of `names`, and what is wrong with the others."""
    pairs, problems = [], []
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if not equals:
            problems.append(f"{argument}: arguments are key=value, such as model=runs/imdb; see --help")
        elif name not in names:
            close = difflib.get_close_matches(name, names, n=1)
            hint = f"; did you mean {close[0]}=?" if close else ""
            problems.append(f"{argument}: unknown key {name}; allowed: {', '.join(names)}{hint}")
        else:
            pairs.append((name, value))
    if not any(name == "model" for name, _ in pairs):
        problems.append("model= is missing: a run directory such as model=runs/imdb, or the directory of a model")
    return pairs, problems


def keep_filled(pairs: Sequence[tuple[str, str]]) -> tuple[dict[str, Any], list[str]]:
    """The arguments that have a value, by their names, and what is wrong with the others."""
    return (
        {name: value for name, value in pairs if value},
        [f"{name}=: it has no value; see --help" for name, value in pairs if not value],
    )


def read_choices(given: dict[str, Any], choices: Mapping[str, Sequence[str]]) -> list[str]:
    """Check those texts in `given` that `choices` names; `true` and `false` become booleans. Returns what is wrong."""
    problems = []
    for name, allowed in choices.items():
        if name in given:
            if given[name] not in allowed:
                problems.append(f"{name}={given[name]}: allowed: {', '.join(allowed)}")
            given[name] = given[name] == "true" if "true" in allowed else given[name]
    return problems


def read_whole(given: dict[str, Any], least: Mapping[str, int]) -> list[str]:
    """Make whole numbers of those texts in `given` that `least` names; returns what is wrong with them."""
    problems = []
    for name in (name for name in least if name in given):
        text = given[name]
        if text.isdecimal() and len(text) < _MOST_DIGITS and int(text) >= least[name]:
            given[name] = int(text)
        else:
            problems.append(f"{name}={text[:60]}: it must be a whole number from {least[name]}")
    return problems


def expand_model(name: str) -> Path:
    """The path that `model=name` means. Raises UserError for a name that is too long for any disk."""
    path = expand_home(name, place="model")
    longest = count_longest_name(path)
    if longest > LONGEST_NAME:
        raise UserError(f"model: {name[:80]}...: no file has a name of {longest} bytes")
    return path


def find_model(name: str, *, marks: Sequence[str], otherwise: str) -> Path:
    """The directory of the exported model that `model=name` means: of a run directory its model/.

    marks: files of which a model has at least one. Raises UserError where there is no model; `otherwise` says it of
    what is neither a run directory nor a model.
    """
    path = expand_model(name)
    run_dir = RunDir(path)
    in_run, in_path = (any((folder / mark).is_file() for mark in marks) for folder in (run_dir.model, path))
    is_run = run_dir.checkpoints.is_dir()
    if in_run:
        return run_dir.model
    if in_path and not (is_run and run_dir.config.is_file()):  # a run may lie in the folder of another model
        return path
    if is_run:
        raise UserError(f"model={name}: this run has no model/ yet; it is exported when the run ends: start it again")
    if path.is_dir():
        raise UserError(f"model={name}: {otherwise}")
    neighbours = [neighbour.name for neighbour in path.parent.iterdir()] if path.parent.is_dir() else []
    near = difflib.get_close_matches(path.name, neighbours, n=1)
    raise UserError(f"model={name}: no such directory" + (f"; did you mean {path.parent / near[0]}?" if near else ""))
