"""Everything that can be wrong with rows that could be read, found in all splits at once and without a model."""

import re
from collections.abc import Mapping, Sequence

import datasets
import pyarrow.compute as pc

from trainer_loop.data.columns import Columns
from trainer_loop.data.dataset_columns import read_column
from trainer_loop.data.label_checks import check_labels
from trainer_loop.data.labels import LabelNames
from trainer_loop.data.missing import FILL_OR_DROP, is_blank
from trainer_loop.data.split import Split
from trainer_loop.data.values import find_fault, is_hole
from trainer_loop.data.wording import did_you_mean, enumerate_names

_READ_ROWS = 1000  # at a time
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
    if columns.label in columns.joined and label_names is not None:
        problems.append("data.label_names: the columns that data.columns names are the labels; set it to null")
    if columns.label is None or (columns.has_class_lists and problems):
        return problems, [], known
    wrong, warnings, names = check_labels(
        splits, columns, label_names=label_names, is_streamed=is_streamed, known=known, cuts=cuts
    )
    return problems + wrong, warnings, names


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
            fault = "is null" if value is None else find_fault(value, kind, per, num_numbers=count)
            if fault is not None:
                faults[is_hole(value, kind)][row] = fault
    return [
        f"data.{split.name}: column {name!r} {told}; {FILL_OR_DROP if are_holes else 'correct or remove the row'}"
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
        more = f"; others of the kind in {split.list_rows(others)}" if others else ""
        told.append(f"{faults[rows[0]]} in {split.list_rows(same)}{more}")
    return told


def _check_texts(split: Split, column: str, *, may_be_empty: bool, is_optional: bool) -> list[str]:
    feature = split.rows.features[column]
    is_null = isinstance(feature, datasets.Value) and feature.dtype == "null"
    if not is_null and not (isinstance(feature, datasets.Value) and "string" in feature.dtype):
        kind = feature.dtype if isinstance(feature, datasets.Value) else type(feature).__name__
        return [
            f"data.{split.name}: column {column!r} holds no texts but values of type {kind}, such as "
            f"{split.first_value(column)}; name a column of texts"
        ]
    problems = []
    if found := split.list_where(column, pc.is_null):
        problems.append(f"data.{split.name}: column {column!r} is null in {found}; {FILL_OR_DROP} (or empty)")
    if is_null:
        return problems
    if may_be_empty:
        if not is_optional and all(
            pc.all(is_blank(texts), min_count=0).as_py() for texts in read_column(split.rows, column)
        ):
            problems.append(f"data.{split.name}: column {column!r} holds empty texts only")
    elif found := split.list_where(column, is_blank):
        problems.append(f"data.{split.name}: column {column!r} is empty in {found}; {FILL_OR_DROP} (or empty)")
    return problems
