"""`key=value` arguments of the commands beside `run`, whose keys are few and no config."""

import difflib
from collections.abc import Sequence
from pathlib import Path


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


def describe_missing_directory(name: str, path: Path) -> str:
    """That `model=name` is no directory, and which one beside it may be meant."""
    neighbours = [neighbour.name for neighbour in path.parent.iterdir()] if path.parent.is_dir() else []
    near = difflib.get_close_matches(path.name, neighbours, n=1)
    return f"model={name}: no such directory" + (f"; did you mean {path.parent / near[0]}?" if near else "")
