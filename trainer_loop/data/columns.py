"""Columns that a task declares, and the columns of the data that they are read from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, get_args

from trainer_loop.data.wording import did_you_mean, enumerate_some, shorten
from trainer_loop.errors import UserError, refuse

RESERVED = ("length", "source", "truncated", "fault")  # keys that `Task.encode` may return besides columns
Kind = Literal[
    "text", "words", "class", "classes", "number", "numbers", "weight", "choices", "choice", "spans", "image", "any",
    "conversation", "prompt", "answer", "tools",
]  # fmt: skip
# Several columns of the data that are read as one, see plain_columns.py.
JoinedKind = Literal["joined_classes", "joined_numbers"]


@dataclass(frozen=True)
class Column:
    """A column that a task declares.

    Attributes:
        kind: What a row holds in the column:
            `text`: one text. `words`: a list of texts. `class`: one label of a fixed set. `classes`: a list of such
            labels, with one for each element of the column `per` if that is set. Without `per`, one column of 0 and 1
            for each label is allowed too, see plain_columns.py. `number`: a finite number. `numbers`: one
            number or several, as a list of the same length in each row or as several columns. `weight`: a number that
            is not negative. `choices`: a list of two texts or more, also as `{"text": [...], "label": [...]}`.
            `choice`: one of the choices in the column `per`, see `find_choice`. `spans`: parts of the text in the
            column `per`, as `{"text": [...], "answer_start": [...]}`; the lists may be empty. `image`: a path, a data
            URI, or bytes. `any`: any value; it is not checked. `conversation`: a list of messages,
            `{"role": ..., "content": ...}`; the last one is from the assistant. `prompt`: a text of the user, or a
            list of messages. `answer`: a text of the assistant, or a list of messages whose last one is from the
            assistant. `tools`: a list of JSON schemas of functions; it may be empty.
        optional: The task reads it only if `data.columns` names it.
        target: The model learns to predict it. Rows without it can be predicted.
        blank: A text may be empty.
        per: The column that `classes`, `choice` or `spans` refer to.
        form: Name of the first column of a form; a form is one of several alternative sets of columns. Only one form
            is read: the one with a column that `data.columns` names, else the first that is declared.
    """

    kind: Kind
    optional: bool = False
    target: bool = False
    blank: bool = False
    per: str | None = None
    form: str | None = None

    @property
    def may_be_joined(self) -> bool:
        """Whether several columns of the data may be read as this one."""
        return self.kind == "numbers" or (self.kind == "classes" and self.per is None)

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise UserError(f"Column: kind is {self.kind!r}; allowed: {', '.join(get_args(Kind))}")


WEIGHT, GROUP = "data.weight", "data.split_by"  # columns of training rows that the config names and no task reads
_BESIDE = {WEIGHT: Column("weight"), GROUP: Column("any")}


@dataclass(frozen=True)
class Columns:
    """Maps the columns of a task to columns of the data.

    Attributes:
        declared: The columns of the task by role, which is the name that the task uses.
        names: The name in the data by role. Optional columns that are not read are left out.
        joined: For a column that is joined of several (see plain_columns.py): its name -> their names in the data.
    """

    declared: Mapping[str, Column]
    names: Mapping[str, str]
    joined: Mapping[str, Sequence[str]] = field(default_factory=dict)

    @classmethod
    def of(cls, declared: Mapping[str, Column], given: Mapping[str, str | Sequence[str]]) -> "Columns":
        """Build from `given`: for each column that is read, its name or a list of names, as in `data.columns`."""
        lists = {role: name for role, name in given.items() if not isinstance(name, str)}
        names = {role: ", ".join(lists[role]) if role in lists else str(name) for role, name in given.items()}
        return cls(declared, names, {names[role]: list(parts) for role, parts in lists.items()})

    @property
    def all(self) -> list[str]:
        """Names of the columns that are read, each once. A joined column has one name."""
        return list(dict.fromkeys(self.names.values()))

    @property
    def stored(self) -> list[str]:
        """Names in the files, each once. Of a joined column, the names of its parts."""
        return list(dict.fromkeys(part for name in self.all for part in self.joined.get(name, [name])))

    @property
    def given(self) -> dict[str, str | list[str]]:
        """The mapping in the form of `data.columns`."""
        return {role: list(self.joined[name]) if name in self.joined else name for role, name in self.names.items()}

    def of_kind(self, *kinds: Kind) -> list[str]:
        """Names in the data of the columns of these kinds, each once, in the order of the task."""
        return list(dict.fromkeys(name for role, name in self.names.items() if self.declared[role].kind in kinds))

    def kind_of(self, role: str) -> Kind | JoinedKind:
        """Return the kind of value that a row holds in a column of the task."""
        kind = self.declared[role].kind
        if self.names[role] not in self.joined:
            return kind
        return "joined_numbers" if kind == "numbers" else "joined_classes"

    @property
    def numbers(self) -> str | None:
        """Name in the data of the target of kind `numbers`; None if there is none."""
        targets = {name: self.declared[role] for role, name in self.names.items() if self.declared[role].target}
        return next((name for name, column in targets.items() if column.kind == "numbers"), None)

    @property
    def label_role(self) -> str | None:
        """The task's name of the column of classes; None if the task has none."""
        return next((role for role, column in self.declared.items() if column.kind in ("class", "classes")), None)

    @property
    def label(self) -> str | None:
        """Name in the data of the column of classes; None if it is not read."""
        return None if self.label_role is None else self.names.get(self.label_role)

    @property
    def has_class_lists(self) -> bool:
        """Whether a row has a list of labels."""
        return any(self.declared[role].kind == "classes" for role in self.names)

    @property
    def has_word_tags(self) -> bool:
        """Whether a row has a label for each of its words."""
        return any(self.declared[role].kind == "classes" and self.declared[role].per is not None for role in self.names)

    @property
    def single_label(self) -> str | None:
        """Name in the data of the column of classes if a row has one class; else None."""
        return None if self.has_class_lists else self.label

    def beside(self, *, weight: str | None, group: str | None) -> "Columns":
        """Return these columns and those of `data.weight` and `data.split_by`, if they are set."""
        extra = {role: name for role, name in ((WEIGHT, weight), (GROUP, group)) if name is not None}
        return Columns({**_BESIDE, **self.declared}, {**extra, **self.names}, self.joined) if extra else self

    def without_targets(self) -> "Columns":
        """Return the columns of rows to predict. A conversation may lack its last answer."""
        inputs = {role: name for role, name in self.names.items() if not self.declared[role].target}
        declared = {
            role: replace(column, kind="prompt") if column.kind == "conversation" else column
            for role, column in self.declared.items()
        }
        return Columns(declared, inputs, self.joined)


def bind_columns(
    declared: Mapping[str, Column], given: Mapping[str, str | Sequence[str] | None], *, task: str
) -> Columns:
    """Return the columns to read. The default name of a column in the data is the name that the task uses.

    Args:
        declared: The columns of the task.
        given: `data.columns`. Null: the default name, or an optional column that is not read. A list names several
            columns that are joined.
        task: Name of the task, for errors.

    Raises:
        UserError: `data.columns` names a column that the task does not declare, or the task declares columns that
            cannot be combined.
    """
    problems = _check_declared(declared, task=task)
    roles = list(declared)
    reads = f"the task {task} reads {enumerate_some(roles)}" if roles else f"the task {task} takes rows as they are"
    problems += [
        f"data.columns.{role}={shorten(name)}: {reads}{did_you_mean(role, roles)} "
        f"(data.columns.{role}=null takes back what another config says)"
        for role, name in given.items()
        if role not in declared and name is not None
    ]
    form = find_form(declared, given)
    problems += [
        f"data.columns.{role}={name}: a row has these columns, or those of {form}; "
        f"take it back with data.columns.{role}=null, or leave the others out"
        for role, name in given.items()
        if name and role in declared and declared[role].form not in (None, form)
    ]
    problems += [
        f"data.columns.{role}={shorten(name)}: a list names a column for each label or number of a row, and the task "
        f"{task} reads one column here; name it alone"
        for role, name in given.items()
        if role in declared and isinstance(name, list) and not declared[role].may_be_joined
    ]
    chosen = {
        role: given.get(role) or role
        for role, column in declared.items()
        if column.form in (None, form) and (given.get(role) or not column.optional)
    }
    targets = {role: name for role, name in chosen.items() if declared[role].target}
    problems += [
        f"data.columns.{role}={shorten(name) if isinstance(name, list) else name}: the column {other} has this name "
        "too; what is learned is a column of its own"
        for role, name in targets.items()
        for other, column in chosen.items()
        if other != role and (column == name or (isinstance(name, list) and column in name))
    ]
    refuse(problems)
    return Columns.of(declared, chosen)


def find_form(declared: Mapping[str, Column], names: Mapping[str, str | Sequence[str] | None]) -> str | None:
    """Return the form whose columns are read, see `Column`. `names` maps columns of the task to columns of the data."""
    forms = [column.form for column in declared.values() if column.form is not None]
    named_forms = [column.form for role, column in declared.items() if column.form is not None and names.get(role)]
    return next(iter(named_forms + forms), None)


def _check_declared(declared: Mapping[str, Column], *, task: str) -> list[str]:
    classes = [role for role, column in declared.items() if column.kind in ("class", "classes")]
    problems = [
        f"task.name: {task} declares the column {role} for each element of {column.per}, and declares no such column"
        for role, column in declared.items()
        if column.per is not None and column.per not in declared
    ]
    if len(classes) > 1:
        problems.append(f"task.name: {task} declares several columns of classes ({', '.join(classes)}); one is allowed")
    return problems
