"""Everything that can be wrong with rows that could be read, found in all splits at once and without a model."""

import re
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from trainer_loop.data.arrow_types import as_typed_rows
from trainer_loop.data.column_values import find_fault, is_hole
from trainer_loop.data.columns import Columns
from trainer_loop.data.joined_columns import name_labels_of_rows
from trainer_loop.data.label_warnings import (
    warn_of_spellings,
    warn_of_stray_tags,
    warn_of_streamed_classes,
    warn_of_training_classes,
    warn_of_unscored_classes,
)
from trainer_loop.data.labels import NAMING_KINDS, LabelNames, RawLabel, describe_kind, name_labels
from trainer_loop.data.missing import HIDDEN, Test, find_rows, is_blank, is_hidden, is_unlabelled, read_column
from trainer_loop.data.number_columns import find_fault_of_count
from trainer_loop.data.split import Split
from trainer_loop.data.wording import did_you_mean, enumerate_names, enumerate_some, plural, shorten
from trainer_loop.errors import UserError

_SHOWN = 5  # rows named per problem
_READ_ROWS = 1000  # at a time
_FILL = "fill it in or remove the row, or set data.missing=drop"
_VALUES = re.compile(r"'[^']*'|\"[^\"]*\"|-?\d[\d.]*")  # in the text of a fault


def check_splits(
    splits: Mapping[str, Split],
    *,
    columns: Columns,
    train_columns: Columns | None = None,
    label_names: object,
    is_streamed: bool = False,
    missing: str = "refuse",
    known: LabelNames | None = None,
    num_numbers: int | None = None,
    cuts: Sequence[str] = (),
) -> tuple[list[str], list[str], LabelNames | None]:
    """Check raw splits -> problems, warnings, and the classes (None without a label, or where they cannot be told).

    label_names: as in the config: None, a list of names, or a map from names to raw values; see `name_labels`.
    train_columns: those of the training rows, where they have more.
    is_streamed: the training rows are the first of a stream, which cannot tell all labels.
    missing: what became of rows with holes before; with `empty`, an empty text is as good as any.
    known: the classes where they were found already: of rows that are judged by a model that was trained.
    num_numbers: how many numbers each row has to predict; None: any.
    cuts: the keys by which training rows were moved or left out, with their values.
    Works on some of the splits too, where the others could not be read.
    """
    problems: list[str] = []
    warnings: list[str] = []
    for split_name, split in splits.items():
        read = train_columns if split_name == "train" and train_columns is not None else columns
        for own, name in read.names.items():
            column = read.declared[own]
            if name not in split.rows.column_names:
                problems += _explain_missing(split, own=own, columns=columns.joined.get(name, [name]))
            elif column.kind == "text":
                may_be_empty = column.blank or missing == "empty"
                problems += _check_texts(split, name, may_be_empty=may_be_empty, is_optional=column.optional)
            elif column.kind != "class":
                problems += _check_values_of(split, read, own, num_numbers)
    label = columns.label
    if label is None:
        return problems, warnings, None
    labelled = {name: split for name, split in splits.items() if label in split.rows.column_names}
    if label in columns.joined:
        if label_names is not None:
            problems.append("data.label_names: the columns that data.columns names are the labels; set it to null")
        label_names = columns.joined[label]
    if columns.has_class_lists:
        if problems:
            return problems, warnings, known
        labelled = {name: name_labels_of_rows(split, columns) for name, split in labelled.items()}
        labelled = {name: flatten(split, label) for name, split in labelled.items()}
    label_problems, label_warnings, names = _check_labels(
        labelled,
        label=label,
        label_names=label_names,
        is_streamed=is_streamed,
        known=known,
        former=_find_former_labels(splits["train"], columns) if cuts and "train" in labelled else frozenset(),
        cuts=cuts,
    )
    if columns.has_word_tags and names is not None and not label_problems:
        for name, split in splits.items():
            label_warnings += warn_of_stray_tags(split, label, names, is_head=is_streamed and name == "train")
    return problems + label_problems, warnings + label_warnings, names


def flatten(split: Split, column: str) -> Split:
    """The elements of a column of lists, as rows of that column alone; each has the place of the row it is from."""
    table: pa.Table = split.rows.select_columns([column]).with_format("arrow")[:]
    lists = table[column].combine_chunks()
    feature = split.rows.features[column].feature
    rows = as_typed_rows(pa.table({column: lists.flatten()}), {column: feature})
    lengths = pc.fill_null(pc.list_value_length(lists), 0).to_numpy()
    origins = split.origins.select(np.repeat(np.arange(len(lists)), lengths))
    return Split(split.name, rows, origins, split.fingerprint, split.columns)


def count_labels(split: Split, label: str) -> Counter[RawLabel]:
    """How many rows have each raw label; nulls are left out."""
    counts: Counter[RawLabel] = Counter()
    for column in read_column(split.rows, label):
        for counted in pc.value_counts(column.drop_null()).to_pylist():
            counts[counted["values"]] += counted["counts"]
    return counts


def count_raw_labels(split: Split, columns: Columns) -> Counter[RawLabel]:
    """How many rows have each raw label; of lists of labels, how many elements of all rows."""
    assert columns.label is not None, "there are labels"
    return count_labels(flatten(split, columns.label) if columns.has_class_lists else split, columns.label)


def _find_former_labels(train: Split, columns: Columns) -> Collection[RawLabel]:
    """The labels of the training rows before some were moved or left out; of label columns none, for they name all."""
    before, label = train.before, columns.label
    if before is None or label is None or label in columns.joined or label not in before.rows.column_names:
        return frozenset()
    return frozenset(count_raw_labels(before, columns))


def _explain_missing(split: Split, *, own: str, columns: Sequence[str]) -> list[str]:
    present = list(split.columns or split.rows.column_names)
    key = own if own.startswith("data.") else f"data.columns.{own}"
    return [
        f"{key}={column}: data.{split.name} has no such column; it has {enumerate_names(present)}"
        f"{did_you_mean(column, present)}"
        for column in columns
        if column not in present or len(columns) == 1
    ]


def _check_values_of(split: Split, columns: Columns, own: str, num_numbers: int | None) -> list[str]:
    """Values of all kinds but texts and single labels: looked at one by one."""
    name, column = columns.names[own], columns.declared[own]
    kind = columns.kind_of(own)
    other = None if column.per is None else columns.names.get(column.per)
    rows = split.rows.select_columns([each for each in dict.fromkeys((name, other)) if each in split.rows.column_names])
    count = num_numbers if name == columns.numbers else None
    faults: dict[bool, dict[int, str]] = {True: {}, False: {}}  # of values that are missing, and of others
    for start in range(0, len(rows), _READ_ROWS):
        batch = rows.with_format(None)[start : start + _READ_ROWS]
        beside = batch.get(other, [None] * len(batch[name]))
        for row, (value, per) in enumerate(zip(batch[name], beside, strict=True), start):
            fault = "is null" if value is None else find_fault(value, kind, per) or find_fault_of_count(value, count)
            if fault is not None:
                faults[is_hole(value, kind)][row] = fault
    return [
        f"data.{split.name}: column {name!r} {told}; {_FILL if are_holes else 'correct or remove the row'}"
        for are_holes, found in faults.items()
        for told in _tell_by_kind(found, split)
    ]


def _tell_by_kind(faults: Mapping[int, str], split: Split) -> list[str]:
    """A text for all rows with faults that differ in values alone. faults: of the rows, by their numbers."""
    kinds: dict[str, list[int]] = {}
    for row, fault in faults.items():
        kinds.setdefault(_VALUES.sub("", fault), []).append(row)
    told = []
    for rows in kinds.values():
        same = [row for row in rows if faults[row] == faults[rows[0]]]
        others = [row for row in rows if faults[row] != faults[rows[0]]]
        more = f"; others of the kind in {_list_rows(others, split)}" if others else ""
        told.append(f"{faults[rows[0]]} in {_list_rows(same, split)}{more}")
    return told


def _list_rows(rows: Sequence[int] | np.ndarray, split: Split, *, values_of: str | None = None) -> str:
    """`3 rows: reviews.csv row 4, ...`. values_of: a column whose values are shown, too."""
    shown = [split.origins.place(int(row)) for row in rows[:_SHOWN]]
    if values_of is not None:
        shown = [
            f"{place} ({shorten(split.rows[int(row)][values_of])})" for place, row in zip(shown, rows, strict=False)
        ]
    return f"{plural(len(rows), 'row')}: {enumerate_some(shown, total=len(rows))}"


def _check_texts(split: Split, column: str, *, may_be_empty: bool, is_optional: bool) -> list[str]:
    feature = split.rows.features[column]
    is_null = isinstance(feature, datasets.Value) and feature.dtype == "null"
    if not is_null and not (isinstance(feature, datasets.Value) and "string" in feature.dtype):
        kind = feature.dtype if isinstance(feature, datasets.Value) else type(feature).__name__
        return [
            f"data.{split.name}: column {column!r} holds no texts but values of type {kind}, such as "
            f"{_first_value(split, column)}; name a column of texts"
        ]
    problems = []
    if found := _describe_rows(split, column, pc.is_null):
        problems.append(f"data.{split.name}: column {column!r} is null in {found}; {_FILL} (or empty)")
    if is_null:
        return problems
    if may_be_empty:
        if not is_optional and all(
            pc.all(is_blank(texts), min_count=0).as_py() for texts in read_column(split.rows, column)
        ):
            problems.append(f"data.{split.name}: column {column!r} holds empty texts only")
    elif found := _describe_rows(split, column, is_blank):
        problems.append(f"data.{split.name}: column {column!r} is empty in {found}; {_FILL} (or empty)")
    return problems


def _check_labels(
    splits: Mapping[str, Split],
    *,
    label: str,
    label_names: object,
    is_streamed: bool,
    known: LabelNames | None,
    former: Collection[RawLabel],
    cuts: Sequence[str],
) -> tuple[list[str], list[str], LabelNames | None]:
    """former: labels that the training rows had before `cuts`; see `check_splits`."""
    problems: list[str] = []
    for split in splits.values():
        if found := _describe_rows(split, label, is_unlabelled):
            problems.append(f"data.{split.name}: column {label!r} is null in {found}; {_FILL}")
        problems += _check_hidden(split, label)
        problems += _check_kind(split, label=label, train=splits.get("train"))
        if known is not None and not _check_kind(split, label=label, train=None):
            problems += _check_known(split, label=label, known=known)
    if known is not None:
        return problems, [] if problems else _warn_of_unscored(splits, label, known), known
    train = splits.get("train")
    if train is not None and not len(train.rows):
        return [*problems, f"data.train: no row has a label in column {label!r}; at least one must"], [], None
    if train is None or describe_kind(train.rows, label) not in NAMING_KINDS:
        return problems, [], None

    counts = count_labels(train, label)
    if isinstance(train.rows.features[label], datasets.ClassLabel):
        counts.pop(HIDDEN, None)
    if is_streamed and label_names is None and describe_kind(train.rows, label) in ("integers", "texts"):
        seen = enumerate_some([shorten(value) for value in sorted(counts)], at_most=10)
        remedy = f"name all of them; the first {plural(len(train.rows), 'row')} have {seen}"
        return [*problems, f"data.label_names=null: a stream is not searched for its labels: {remedy}"], [], None
    try:
        names = name_labels(
            counts,
            kind=describe_kind(train.rows, label),
            class_names=getattr(train.rows.features[label], "names", None),
            given=label_names,
        )
    except UserError as error:
        return problems + error.problems, [], None
    for split in splits.values():
        if not _check_kind(split, label=label, train=train):
            is_named = label_names is not None or isinstance(train.rows.features[label], datasets.ClassLabel)
            lost = [] if is_named else [value for value in former if value not in names.ids]
            problems += _check_values(split, label=label, names=names, given=label_names, lost=lost)
            problems += _check_lost(split, label=label, lost=lost, cuts=cuts)
    if problems and not counts:
        return problems, [], names  # that no class has rows is said already
    warnings = (
        warn_of_streamed_classes(counts, num_rows=len(train.rows))
        if is_streamed
        else warn_of_training_classes(counts, names)
    )
    if not problems:
        warnings += _warn_of_unscored(splits, label, names)
    return problems, warnings + warn_of_spellings(names), names


def _warn_of_unscored(splits: Mapping[str, Split], label: str, names: LabelNames) -> list[str]:
    scored = {name: count_labels(split, label) for name, split in splits.items() if name != "train"}
    return warn_of_unscored_classes(scored, names)


def _check_hidden(split: Split, label: str) -> list[str]:
    """Rows of a column of classes whose label is kept secret, as those of a benchmark's test set are."""
    if not isinstance(split.rows.features[label], datasets.ClassLabel):
        return []
    hidden = int(find_rows(split.rows, label, is_hidden).sum())
    where = f"data.{split.name}: column {label!r} is {HIDDEN}"
    if hidden < len(split.rows):
        found = _describe_rows(split, label, is_hidden)
        remedy = "remove these rows or set data.missing=drop"
        return [f"{where} in {found}; {HIDDEN} stands for a label that is kept secret: {remedy}"] if found else []
    remedy = f"set data.{split.name}=null; python -m trainer_loop.predict tells the classes of such rows"
    if split.name == "train":
        remedy = "name a split that has labels"
    return [f"{where} in all {plural(hidden, 'row')}: {HIDDEN} stands for a label that is kept secret: {remedy}"]


def _check_kind(split: Split, *, label: str, train: Split | None) -> list[str]:
    """Whether the column can hold classes, and the same ones as the training rows'."""
    kind = describe_kind(split.rows, label)
    if kind == "nulls":
        return []  # every row is told to be null
    where = f"data.{split.name}: column {label!r} holds"
    if kind == "decimal numbers":
        fraction = _first_value(split, label, lambda value: value == value and not float(value).is_integer())
        return [
            f"{where} decimal numbers, such as {fraction}; classification needs integers, texts or "
            "true/false: make classes of them (1, not 1.0), or set task.name=sequence_regression, which learns numbers"
        ]
    if kind not in NAMING_KINDS:
        return [f"{where} {kind}; it must be one integer, text or true/false per row"]
    if train is None or train is split:
        return []
    of_train = describe_kind(train.rows, label)
    if {kind, of_train} == {"classes"}:
        return _compare_classes(split, label, train.rows.features[label].names)
    if of_train in NAMING_KINDS and kind != of_train and not {kind, of_train} <= {"classes", "integers"}:
        return [f"{where} {kind}, such as {_first_value(split, label)}, data.train has {of_train}; write them alike"]
    return []


def _compare_classes(split: Split, label: str, there: Sequence[str]) -> list[str]:
    here = split.rows.features[label].names
    if here == there:
        return []
    return [
        f"data.{split.name}: column {label!r} holds the classes {enumerate_some(here, at_most=10)}, data.train has "
        f"{enumerate_some(there, at_most=10)}; both need the same in the same order"
    ]


def _check_known(split: Split, *, label: str, known: LabelNames) -> list[str]:
    """Whether the labels are those that a model was trained on."""
    kind = describe_kind(split.rows, label)
    kinds = {bool: ["true/false"], str: ["texts"]}.get(type(next(iter(known.ids))), ["integers", "classes"])
    if kind not in (*kinds, "nulls"):
        return [
            f"data.{split.name}: column {label!r} holds {kind}, such as {_first_value(split, label)}, data.train has "
            f"{kinds[0]}; write them alike"
        ]
    here = getattr(split.rows.features[label], "names", None)
    if here is not None and sorted(here) == sorted(known.names):
        trained = [known.names[known.ids[number]] if number in known.ids else "" for number in range(len(here))]
        if problems := _compare_classes(split, label, trained):
            return problems
    return _check_values(split, label=label, names=known, given=None)


def _check_values(
    split: Split, *, label: str, names: LabelNames, given: object, lost: Collection[RawLabel] = ()
) -> list[str]:
    """Labels that are no class. lost: those that are told elsewhere, see `_check_lost`."""
    are_classes = isinstance(split.rows.features[label], datasets.ClassLabel)
    allowed_too = {HIDDEN, *lost} if are_classes else set(lost)
    unknown = [value for value in count_labels(split, label) if value not in names.ids and value not in allowed_too]
    if not unknown:
        return []
    found = _describe_labelled(split, label, unknown)
    allowed = enumerate_some([shorten(value) for value in names.ids], at_most=10)
    named = given is not None or isinstance(split.rows.features[label], datasets.ClassLabel)
    wanted = "may be" if named else "in data.train are"
    remedy = "correct them or remove the rows"
    if isinstance(given, (list, tuple)) and all(type(value) is int for value in unknown):
        remedy = "a list names the values from 0 on; for others write a map, data.label_names={name: value}"
    elif all(isinstance(value, str) for value in unknown):
        remedy += did_you_mean(str(unknown[0]), map(str, names.ids))
    return [f"data.{split.name}: column {label!r} has an unknown label in {found}; labels {wanted} {allowed}: {remedy}"]


def _check_lost(split: Split, *, label: str, lost: Collection[RawLabel], cuts: Sequence[str]) -> list[str]:
    """Labels that training rows had until all of these were moved or left out."""
    found = [value for value in count_labels(split, label) if value in lost] if lost else []
    if not found:
        return []
    return [
        f"data.{split.name}: column {label!r} has a label without a training row in "
        f"{_describe_labelled(split, label, found)}; data.train had some, and {', '.join(cuts)} moved or left out all "
        "of them: change this or the seed, or name all classes in data.label_names"
    ]


def _describe_labelled(split: Split, label: str, values: Sequence[RawLabel]) -> str:
    """`3 rows: reviews.csv row 4 ('good'), ...` for the rows with one of these labels."""
    return _describe_rows(split, label, lambda column: pc.is_in(column, pa.array(values, column.type)), values=True)


def _describe_rows(split: Split, column: str, test: Test, *, values: bool = False) -> str:
    """`3 rows: reviews.csv row 4, ...` for rows whose value passes the test, or nothing; `values` shows them too."""
    rows = np.flatnonzero(find_rows(split.rows, column, test))
    return _list_rows(rows, split, values_of=column if values else None) if len(rows) else ""


def _first_value(split: Split, column: str, test: Callable[[Any], bool] = lambda value: True) -> str:
    """The first value that passes the test and is not null, with its place."""
    row = 0
    for part in read_column(split.rows, column):
        for value in part.to_pylist():
            if value is not None and test(value):
                return f"{shorten(value)} ({split.origins.place(row)})"
            row += 1
    return "null"
