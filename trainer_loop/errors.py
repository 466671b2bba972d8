"""What can end a run, and the exit code each ending has.

| code | meaning |
|---|---|
| 0 | finished, or was already complete |
| 2 | the user's config or data (`UserError`) |
| 3 | training diverged (`Diverged`) |
| 4 | another process ended or cannot be reached (`ProcessLost`): the same command goes on |
| 75 | preempted (`Preempted`): the same command goes on |
| 130 | a second Ctrl-C: left at once |
| 1 | a bug: anything else, with its traceback |
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import ParamSpec, TypeVar

_P = ParamSpec("_P")
_T = TypeVar("_T")


class UserError(ValueError):
    """Problems the user can mend; every one is a sentence of one line.

    A problem names the place (file, row, key, step), the value, what was allowed and the remedy.
    """

    exit_code = 2

    def __init__(self, problems: str | Sequence[str]):
        self.problems: list[str] = [problems] if isinstance(problems, str) else list(problems)
        assert self.problems, "a UserError says what is wrong"
        super().__init__("\n".join(self.problems))


def refuse(problems: Sequence[str]) -> None:
    """Raise `UserError` with these problems, if there are any."""
    if problems:
        raise UserError(problems)


class Problems:
    """Collects what is wrong in several places, so that all of it is reported at once.

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
        """Return what the function returns; None where it raises `UserError`, whose problems are kept.

        section: stands before every problem, such as `optimizer.`.
        """
        try:
            return function(*args, **kwargs)
        except UserError as error:
            self.lines += [section + problem for problem in error.problems]
            return None

    def refuse(self) -> None:
        """Raise `UserError` with everything that was collected, each line once; do nothing where that is nothing."""
        refuse(list(dict.fromkeys(self.lines)))


@contextmanager
def under(section: str) -> Iterator[None]:
    """Put `section`, such as `optimizer.`, before every problem of a `UserError` that the block raises."""
    try:
        yield
    except UserError as error:
        raise UserError([section + problem for problem in error.problems]) from error


class Diverged(UserError):
    """The loss or a gradient is no longer finite."""

    exit_code = 3


class ProcessLost(UserError):
    """A process this one has to work with has ended, or can no longer be reached."""

    exit_code = 4


class Preempted(Exception):
    """The run was asked to stop, and the same command goes on from its newest checkpoint; says where that is."""

    exit_code = 75


def suggest(name: str, known: Iterable[str]) -> str:
    """`; did you mean adamw?`: the known name that is nearest to an unknown one; empty if none is near."""
    near = get_close_matches(name, list(known), n=1)
    return f"; did you mean {near[0]}?" if near else ""


def in_one_line(error: BaseException, *, at_most: int = 300) -> str:
    """The message of another library's error, in one line."""
    return cut_short(" ".join(str(error).split()) or type(error).__name__, at_most=at_most)


def cut_short(text: str, *, at_most: int) -> str:
    """A text of at most so many characters; one that goes on ends with three dots."""
    return text if len(text) <= at_most else f"{text[: at_most - 3]}..."


def displayed(path: str | Path) -> str:
    """A path as a person would write it from the current directory."""
    return str(Path(path).relative_to(Path.cwd()) if Path(path).is_relative_to(Path.cwd()) else path)


def printable(text: str) -> str:
    """Spell out line breaks, escape sequences and other characters that a terminal would act on instead of showing."""
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)
