"""Reads the `key=value` arguments of the commands that take no config, such as `predict` and `push`."""

import difflib
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from trainer_loop.config.checks import LONGEST_NAME, count_longest_name
from trainer_loop.config.secrets import mask_text
from trainer_loop.errors import Problems, UserError, cut_short, refuse
from trainer_loop.record.run_dir import RunDir
from trainer_loop.runtime.host import expand_home

_MOST_DIGITS = 19  # digits of a whole number; Python itself refuses some thousands
_MOST_SHOWN = 300  # characters of a wrong value that a message shows
Reader = Callable[[str], Any]  # parses a text; raises UserError that says what it must be


def read_arguments(arguments: Sequence[str], readers: Mapping[str, Reader]) -> dict[str, Any]:
    """Return the values of `key=value` arguments by key. `model=` is required.

    Args:
        readers: The parser of each allowed key.

    Raises:
        UserError: There are problems; the error has all of them.
    """
    values, problems = collect_arguments(arguments, readers)
    refuse(problems)
    return values


def collect_arguments(arguments: Sequence[str], readers: Mapping[str, Reader]) -> tuple[dict[str, Any], list[str]]:
    """Do the same as `read_arguments`, but return the problems. Wrong values are None."""
    texts: dict[str, str] = {}
    problems = []
    for argument in arguments:
        name, equals, text = argument.partition("=")
        if not equals:
            problems.append(f"{argument}: arguments are key=value, such as model=runs/imdb; see --help")
        elif name not in readers:
            close = difflib.get_close_matches(name, readers, n=1)
            hint = f"; did you mean {close[0]}=?" if close else ""
            problems.append(f"{argument}: unknown key {name}; allowed: {', '.join(readers)}{hint}")
        else:
            texts[name] = text
    if "model" not in texts:
        problems.append("model= is missing: a run directory such as model=runs/imdb, or the directory of a model")
    values, wrong = read_values(texts, readers)
    return values, [*problems, *wrong]


def read_values(texts: Mapping[str, str], readers: Mapping[str, Reader]) -> tuple[dict[str, Any], list[str]]:
    """Parse the texts by name. Returns the values, None for wrong ones, and the problems."""
    values, problems = {}, Problems()
    for name, text in texts.items():
        shown = cut_short(mask_text(text), at_most=_MOST_SHOWN)
        values[name] = problems.collect(f"{name}={shown}: ", readers[name], text)
    return values, problems.lines


def nonempty_text(text: str) -> str:
    if not text:
        raise UserError("it has no value; see --help")
    return text


def choice(*allowed: str) -> Reader:
    """Return a reader of one of several words."""

    def read(text: str) -> str:
        if text not in allowed:
            raise UserError(f"allowed: {', '.join(allowed)}")
        return text

    return read


def true_or_false(text: str) -> bool:
    return choice("true", "false")(text) == "true"


def whole_number(least: int, most: int | None = None) -> Reader:
    """Return a reader of whole numbers from `least` to `most`."""

    def read(text: str) -> int:
        if not (text.isdecimal() and len(text) < _MOST_DIGITS and int(text) >= least):
            raise UserError(f"it must be a whole number from {least}")
        if most is not None and int(text) > most:
            raise UserError(f"it must be at most {most:,}")
        return int(text)

    return read


def number(words: str, *, above: float = -math.inf, below: float = math.inf) -> Reader:
    """Return a reader of numbers between two limits, exclusive. words: description of the number for messages."""

    def read(text: str) -> float:
        from trainer_loop.data.values import read_number  # imports NumPy

        value = read_number(text)
        if value is None or not above < value < below:
            raise UserError(f"it must be {words}")
        return value

    return read


def output_file(text: str) -> Path:
    """Read the path of an output file. Its folder must exist."""
    path = Path(text).expanduser()
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise UserError("it must be a file in a folder that is there")
    return path


def expand_model(name: str) -> Path:
    """Return the path that `model=name` names. Raises UserError if a part of it is too long for a file name."""
    path = expand_home(name, place="model")
    longest = count_longest_name(path)
    if longest > LONGEST_NAME:
        raise UserError(f"model: {name[:80]}...: no file has a name of {longest} bytes")
    return path


def find_model(name: str, *, marks: Sequence[str] = ("config.json",)) -> Path:
    """Return the model directory that `model=name` names. For a run directory this is its model/.

    Args:
        marks: A directory is a model if it has one of these files.

    Raises:
        UserError: There is no model.
    """
    path = expand_model(name)
    run_dir = RunDir(path)
    in_run, in_path = (any((folder / mark).is_file() for mark in marks) for folder in (run_dir.model, path))
    is_run = run_dir.checkpoints.is_dir()
    if in_run:
        return run_dir.model
    if in_path and not (is_run and run_dir.config.is_file()):  # a run directory may also hold another model
        return path
    if is_run:
        raise UserError(f"model={name}: this run has no model/ yet; it is exported when the run ends: start it again")
    if path.is_dir():
        named = " or ".join(marks)
        raise UserError(f"model={name}: neither a run directory with model/ nor a model with {named}")
    neighbours = [neighbour.name for neighbour in path.parent.iterdir()] if path.parent.is_dir() else []
    near = difflib.get_close_matches(path.name, neighbours, n=1)
    raise UserError(f"model={name}: no such directory" + (f"; did you mean {path.parent / near[0]}?" if near else ""))
