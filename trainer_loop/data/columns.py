"""What a task reads of a raw row, and which of the user's columns hold it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from trainer_loop.data.wording import did_you_mean, enumerate_some, shorten
from trainer_loop.errors import UserError

Kind = Literal["text", "words", "class", "classes", "number", "spans", "image", "any"]


@dataclass(frozen=True)
class Column:
    """A column that a task declares.

    Attributes:
        kind: what a row holds in it:
            `text`: one text. `words`: a list of texts. `class`: one label of a fixed set. `classes`: a list of such
            labels, one for each element of the column `per`. `number`: one number. `spans`: texts and where each begins
            in the column `per`, `{"text": [...], "answer_start": [...]}`. `image`: an image, its bytes or the path of
            its file. `any`: any value.
        optional: The task reads it only if `data.columns` names it.
        target: What the model learns to predict; rows without it can be predicted.
        blank: A text may be empty.
        per: The column that `classes` and `spans` belong to.
    """

    kind: Kind
    optional: bool = False
    target: bool = False
    blank: bool = False
    per: str | None = None


@dataclass(frozen=True)
class Columns:
    """The columns that a task reads of the user's data.

    Attributes:
        declared: The task's columns by their own names.
        names: The user's name of each of them; an optional column that is not read is left out.
    """

    declared: Mapping[str, Column]
    names: Mapping[str, str]

    @property
    def all(self) -> list[str]:
        """The user's names, each once."""
        return list(dict.fromkeys(self.names.values()))

    @property
    def texts(self) -> list[str]:
        """The user's names of columns of texts, in the order in which the task declares them."""
        return [name for own, name in self.names.items() if self.declared[own].kind == "text"]

    @property
    def label(self) -> str | None:
        """The user's name of the column of classes; None if there is none."""
        return next((name for own, name in self.names.items() if self.declared[own].kind in ("class", "classes")), None)

    @property
    def has_class_lists(self) -> bool:
        """Whether a row has a list of labels."""
        return any(self.declared[own].kind == "classes" for own in self.names)

    def without_targets(self) -> "Columns":
        """The columns of rows that are to be predicted."""
        inputs = {own: name for own, name in self.names.items() if not self.declared[own].target}
        return Columns(self.declared, inputs)


def bind_columns(declared: Mapping[str, Column], given: Mapping[str, str], *, task: str) -> Columns:
    """The columns to read; one that is not given has the name that the task gives it.

    Args:
        declared: The columns of the task.
        given: `data.columns`.
        task: The name of the task, for errors.

    Raises:
        UserError: `data.columns` names a column that the task does not declare.
    """
    known = list(declared)
    reads = f"the task {task} reads {enumerate_some(known)}" if known else f"the task {task} takes rows as they are"
    problems = [
        f"data.columns.{own}={shorten(name)}: {reads}{did_you_mean(own, known)}"
        for own, name in given.items()
        if own not in declared
    ]
    if problems:
        raise UserError(problems)
    names = {own: given.get(own, own) for own, column in declared.items() if own in given or not column.optional}
    return Columns(declared, names)
