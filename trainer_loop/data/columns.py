"""What a task reads of a raw row, and which of the user's columns hold it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, get_args

from trainer_loop.data.wording import did_you_mean, enumerate_some, shorten
from trainer_loop.errors import UserError, refuse

RESERVED = ("length", "source", "truncated", "fault")  # what `Task.encode` says about each row beside its columns
Kind = Literal[
    "text", "words", "class", "classes", "number", "numbers", "weight", "choices", "choice", "spans", "image", "any",
    "conversation", "prompt", "answer", "tools",
]  # fmt: skip
# Several of the user's columns that are read as one, see plain_columns.py.
JoinedKind = Literal["joined_classes", "joined_numbers"]


@dataclass(frozen=True)
class Column:
    """A column that a task declares.

    Attributes:
        kind: what a row holds in it:
            `text`: one text. `words`: a list of texts. `class`: one label of a fixed set. `classes`: a list of such
            labels, one for each element of the column `per` if there is one, else also a column of 0 and 1 for each
            label of the set, see plain_columns.py. `number`: a finite number. `numbers`: a number, or several, as a
            list of the same length in each row or as a column for each. `weight`: a number that is not negative.
            `choices`: a list of two texts or more, also as `{"text": [...], "label": [...]}`. `choice`: one of those of
            the column `per`, see `find_choice`. `spans`: parts of the text of the column `per`, as
            `{"text": [...], "answer_start": [...]}`, perhaps none. `image`: a path, a data URI, or bytes. `any`: any
            value, which is not checked. `conversation`: a list of messages, `{"role": ..., "content": ...}`, the last
            of the assistant. `prompt`: a text of the user, or a list of messages. `answer`: a text of the assistant,
            or a list of messages, the last of the assistant. `tools`: a list of JSON schemas of functions, perhaps
            none.
        optional: The task reads it only if `data.columns` names it.
        target: What the model learns to predict; rows without it can be predicted.
        blank: A text may be empty.
        per: The column that `classes`, `choice` or `spans` belong to.
        form: The name of the first column of a form. Columns of one form are read together, and in place of those of
            the other forms: of the form that `data.columns` names columns of, else of the first that is declared.
    """

    kind: Kind
    optional: bool = False
    target: bool = False
    blank: bool = False
    per: str | None = None
    form: str | None = None

    @property
    def may_be_joined(self) -> bool:
        """Whether several of the user's columns may be read as this one."""
        return self.kind == "numbers" or (self.kind == "classes" and self.per is None)

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise UserError(f"Column: kind is {self.kind!r}; allowed: {', '.join(get_args(Kind))}")


WEIGHT, GROUP = "data.weight", "data.split_by"  # columns of the training rows that the config names and no task reads
_BESIDE = {WEIGHT: Column("weight"), GROUP: Column("any")}


@dataclass(frozen=True)
class Columns:
    """The columns that a task reads of the user's data.

    Attributes:
        declared: The task's columns by their own names.
        names: The user's name of each of them; an optional column that is not read is left out.
        joined: The user's columns that are read together as the column of this name, see plain_columns.py.
    """

    declared: Mapping[str, Column]
    names: Mapping[str, str]
    joined: Mapping[str, Sequence[str]] = field(default_factory=dict)

    @classmethod
    def of(cls, declared: Mapping[str, Column], given: Mapping[str, str | Sequence[str]]) -> "Columns":
        """Columns by their names, or lists of names. given: as `data.columns`, of all that are read."""
        lists = {own: name for own, name in given.items() if not isinstance(name, str)}
        names = {own: ", ".join(lists[own]) if own in lists else str(name) for own, name in given.items()}
        return cls(declared, names, {names[own]: list(parts) for own, parts in lists.items()})

    @property
    def all(self) -> list[str]:
        """The user's names, each once; of columns that are joined the name of all of them."""
        return list(dict.fromkeys(self.names.values()))

    @property
    def stored(self) -> list[str]:
        """The user's names as they stand in files, each once."""
        return list(dict.fromkeys(part for name in self.all for part in self.joined.get(name, [name])))

    @property
    def given(self) -> dict[str, str | list[str]]:
        """As `data.columns` names them."""
        return {own: list(self.joined[name]) if name in self.joined else name for own, name in self.names.items()}

    def of_kind(self, *kinds: Kind) -> list[str]:
        """The user's names of columns of these kinds, each once, in the order in which the task declares them."""
        return list(dict.fromkeys(name for own, name in self.names.items() if self.declared[own].kind in kinds))

    def kind_of(self, own: str) -> Kind | JoinedKind:
        """What a row holds in a column of the task."""
        kind = self.declared[own].kind
        if self.names[own] not in self.joined:
            return kind
        return "joined_numbers" if kind == "numbers" else "joined_classes"

    @property
    def numbers(self) -> str | None:
        """The user's name of the target of one number or several; None if it is not read."""
        targets = {name: self.declared[own] for own, name in self.names.items() if self.declared[own].target}
        return next((name for name, column in targets.items() if column.kind == "numbers"), None)

    @property
    def label_role(self) -> str | None:
        """The task's name of the column of classes; None if it declares none."""
        return next((own for own, column in self.declared.items() if column.kind in ("class", "classes")), None)

    @property
    def label(self) -> str | None:
        """The user's name of the column of classes; None if it is not read."""
        return None if self.label_role is None else self.names.get(self.label_role)

    @property
    def has_class_lists(self) -> bool:
        """Whether a row has a list of labels."""
        return any(self.declared[own].kind == "classes" for own in self.names)

    @property
    def has_word_tags(self) -> bool:
        """Whether a row has a label for each of its words."""
        return any(self.declared[own].kind == "classes" and self.declared[own].per is not None for own in self.names)

    @property
    def single_label(self) -> str | None:
        """The user's name of the column of classes, where a row has one class; None if it is not read."""
        return None if self.has_class_lists else self.label

    def beside(self, *, weight: str | None, group: str | None) -> "Columns":
        """These, and the columns of `data.weight` and `data.split_by`, where there are such."""
        named = {own: name for own, name in ((WEIGHT, weight), (GROUP, group)) if name is not None}
        return Columns({**_BESIDE, **self.declared}, {**named, **self.names}, self.joined) if named else self

    def without_targets(self) -> "Columns":
        """The columns of rows that are to be predicted: a conversation need not have its last answer."""
        inputs = {own: name for own, name in self.names.items() if not self.declared[own].target}
        declared = {
            own: replace(column, kind="prompt") if column.kind == "conversation" else column
            for own, column in self.declared.items()
        }
        return Columns(declared, inputs, self.joined)


def bind_columns(
    declared: Mapping[str, Column], given: Mapping[str, str | Sequence[str] | None], *, task: str
) -> Columns:
    """The columns to read; one that is not given has the name that the task gives it.

    Args:
        declared: The columns of the task.
        given: `data.columns`; null for the task's own name, or for a column that is not read. A list names several
            columns that are read together.
        task: The name of the task, for errors.

    Raises:
        UserError: `data.columns` names a column that the task does not declare, or the task declares columns that do
            not go together.
    """
    problems = _check_declared(declared, task=task)
    known = list(declared)
    reads = f"the task {task} reads {enumerate_some(known)}" if known else f"the task {task} takes rows as they are"
    problems += [
        f"data.columns.{own}={shorten(name)}: {reads}{did_you_mean(own, known)} "
        f"(data.columns.{own}=null takes back what another config says)"
        for own, name in given.items()
        if own not in declared and name is not None
    ]
    form = find_form(declared, given)
    problems += [
        f"data.columns.{own}={name}: a row has these columns, or those of {form}; "
        f"take it back with data.columns.{own}=null, or leave the others out"
        for own, name in given.items()
        if name and own in declared and declared[own].form not in (None, form)
    ]
    problems += [
        f"data.columns.{own}={shorten(name)}: a list names a column for each label or number of a row, and the task "
        f"{task} reads one column here; name it alone"
        for own, name in given.items()
        if own in declared and isinstance(name, list) and not declared[own].may_be_joined
    ]
    chosen = {
        own: given.get(own) or own
        for own, column in declared.items()
        if column.form in (None, form) and (given.get(own) or not column.optional)
    }
    targets = {own: name for own, name in chosen.items() if declared[own].target}
    problems += [
        f"data.columns.{own}={shorten(name) if isinstance(name, list) else name}: the column {other} has this name "
        "too; what is learned is a column of its own"
        for own, name in targets.items()
        for other, column in chosen.items()
        if other != own and (column == name or (isinstance(name, list) and column in name))
    ]
    refuse(problems)
    return Columns.of(declared, chosen)


def find_form(declared: Mapping[str, Column], names: Mapping[str, str | Sequence[str] | None]) -> str | None:
    """The form whose columns are read; see `Column`. names: the user's, by the task's."""
    forms = [column.form for column in declared.values() if column.form is not None]
    named = [column.form for own, column in declared.items() if column.form is not None and names.get(own)]
    return next(iter(named + forms), None)


def _check_declared(declared: Mapping[str, Column], *, task: str) -> list[str]:
    classes = [own for own, column in declared.items() if column.kind in ("class", "classes")]
    problems = [
        f"task.name: {task} declares the column {own} for each element of {column.per}, and declares no such column"
        for own, column in declared.items()
        if column.per is not None and column.per not in declared
    ]
    if len(classes) > 1:
        problems.append(f"task.name: {task} declares several columns of classes ({', '.join(classes)}); one is allowed")
    return problems
