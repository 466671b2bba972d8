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

from collections.abc import Sequence


class UserError(ValueError):
    """Problems the user can mend; every one is a sentence of one line.

    A problem names the place (file, row, key, step), the value, what was allowed and the remedy.
    """

    exit_code = 2

    def __init__(self, problems: str | Sequence[str]):
        self.problems: list[str] = [problems] if isinstance(problems, str) else list(problems)
        assert self.problems, "a UserError says what is wrong"
        super().__init__("\n".join(self.problems))


class Diverged(UserError):
    """The loss or a gradient is no longer finite."""

    exit_code = 3


class ProcessLost(UserError):
    """A process this one has to work with has ended, or can no longer be reached."""

    exit_code = 4


class Preempted(Exception):
    """The run was asked to stop, and the same command goes on from its newest checkpoint; says where that is."""

    exit_code = 75


def in_one_line(error: BaseException, *, at_most: int = 300) -> str:
    """The message of another library's error, in one line."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= at_most else text[: at_most - 3] + "..."


def printable(text: str) -> str:
    """Spell out line breaks, escape sequences and other characters that a terminal would act on instead of showing."""
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)
