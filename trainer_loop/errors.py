"""Errors that end a run, and their exit codes.

| code | meaning |
|---|---|
| 0 | the run finished, or was already complete |
| 2 | the config or the data has problems (`UserError`) |
| 3 | training diverged (`Diverged`) |
| 4 | another process ended or cannot be reached (`ProcessLost`); the same command resumes |
| 75 | preempted (`Preempted`); the same command resumes |
| 130 | a second Ctrl-C ended the run at once |
| 1 | a bug: any other error, with its traceback |
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import ParamSpec, TypeVar

_P = ParamSpec("_P")
_T = TypeVar("_T")


class UserError(ValueError):
    """Problems that the user can fix, one line each.

    A problem names the place (file, row, key, step), the value, the allowed values and the remedy.
    """

    exit_code = 2

    def __init__(self, problems: str | Sequence[str]):
        self.problems: list[str] = [problems] if isinstance(problems, str) else list(problems)
        assert self.problems, "a UserError says what is wrong"
        super().__init__("\n".join(self.problems))


def refuse(problems: Sequence[str]) -> None:
    """Raise `UserError` if there are problems."""
    if problems:
        raise UserError(problems)


class Problems:
    """Collects problems of several checks, to report them together.

    >>> def plan(lr):
    ...     raise UserError(f"lr: {lr} is below 0")
    >>> problems = Problems()
    >>> problems.collect("optimizer.", plan, lr=-1)
    >>> problems.lines
    ['optimizer.lr: -1 is below 0']
    """

    def __init__(self, lines: Iterable[str] = ()):
        self.lines = list(lines)

    def __bool__(self) -> bool:
        return bool(self.lines)

    def collect(self, section: str, function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T | None:
        """Call the function and return its result. If it raises `UserError`, keep the problems and return None.

        Args:
            section: Prefix of each problem, such as `optimizer.`.
        """
        try:
            return function(*args, **kwargs)
        except UserError as error:
            self.lines += [section + problem for problem in error.problems]
            return None

    def refuse(self) -> None:
        """Raise `UserError` with the collected problems, without duplicates, if there are any."""
        refuse(list(dict.fromkeys(self.lines)))


@contextmanager
def under(section: str) -> Iterator[None]:
    """Add the prefix `section`, such as `optimizer.`, to each problem of a `UserError` that the block raises."""
    try:
        yield
    except UserError as error:
        raise UserError([section + problem for problem in error.problems]) from error


class Diverged(UserError):
    """The loss or a gradient is no longer finite."""

    exit_code = 3


class ProcessLost(UserError):
    """Another process of the run has ended, or cannot be reached."""

    exit_code = 4


class Preempted(Exception):
    """The run was asked to stop. The message names the newest checkpoint, from which the same command resumes."""

    exit_code = 75


def suggest(name: str, known: Iterable[str]) -> str:
    """Return a hint such as `; did you mean adamw?` for an unknown name; empty if no known name is similar."""
    near = get_close_matches(name, list(known), n=1)
    return f"; did you mean {near[0]}?" if near else ""


def in_one_line(error: BaseException, *, at_most: int = 300) -> str:
    """Return the message of an error in one line, of at most `at_most` characters."""
    return cut_short(" ".join(str(error).split()) or type(error).__name__, at_most=at_most)


def cut_short(text: str, *, at_most: int) -> str:
    """Shorten a text to at most `at_most` characters. A shortened text ends with three dots."""
    return text if len(text) <= at_most else f"{text[: at_most - 3]}..."


def displayed(path: str | Path) -> str:
    """Return a path relative to the current directory if it lies inside, else unchanged."""
    return str(Path(path).relative_to(Path.cwd()) if Path(path).is_relative_to(Path.cwd()) else path)


def printable(text: str) -> str:
    """Escape line breaks and control characters, which a terminal would interpret instead of showing."""
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)
