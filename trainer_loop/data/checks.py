"""Checks of raw rows. They report the problems of all splits at once, and need no model."""

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

_READ_ROWS = 1000  # rows that are read at a time
_VALUES = re.compile(r"'[^']*'|\"[^\"]*\"|-?\d[\d.]*")  # parts of a fault that differ from row to row


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
    """Check raw splits. `splits` may lack those that could not be read.

    Args:
        splits: The raw rows by split.
        columns: Columns that the task reads.
        train_columns: Columns of the training rows, if they have more; None: `columns`.
        label_names: As in the config: None, a list of names, or a map from names to raw values; see `name_labels`.
        is_streamed: The training rows are the first rows of a stream, which may not have all labels.
        missing: `data.missing`, which was applied before. With `empty`, empty texts are allowed.
        known: Classes of a trained model, if it scores the rows; None: the training rows have the classes.
        num_numbers: Count of numbers that each row must have as its target; None: any.
        cuts: Keys of the config, with their values, that moved or removed training rows.

    Returns:
        Problems, warnings, and the classes: None if there is no label column or its classes cannot be determined.
    """
    problems: list[str] = []
    for split_name, split in splits.items():
        task_columns = train_columns if split_name == "train" and train_columns is not None else columns
        for role, name in task_columns.names.items():
            column = task_columns.declared[role]
            if name not in split.rows.column_names:
                problems += _explain_missing(split, role=role, columns=columns.joined.get(name, [name]))
            elif column.kind == "text":
                may_be_empty = column.blank or missing == "empty"
                problems += _check_texts(split, name, may_be_empty=may_be_empty, is_optional=column.optional)
            elif column.kind != "class":
                problems += _check_values_of(split, task_columns, role, num_numbers)
    if columns.label in columns.joined and label_names is not None:
        problems.append("data.label_names: the columns that data.columns names are the labels; set it to null")
    if columns.label is None or (columns.has_class_lists and problems):
        return problems, [], known
    label_problems, warnings, names = check_labels(
        splits, columns, label_names=label_names, is_streamed=is_streamed, known=known, cuts=cuts
    )
    return problems + label_problems, warnings, names


def _explain_missing(split: Split, *, role: str, columns: Sequence[str]) -> list[str]:
    present = list(split.columns or split.rows.column_names)
    key = role if role.startswith("data.") else f"data.columns.{role}"
    return [
        f"{key}={column}: data.{split.name} has no such column; it has {enumerate_names(present)}"
        f"{did_you_mean(column, present)}"
        for column in columns
        if column not in present or len(columns) == 1
    ]


def _check_values_of(split: Split, columns: Columns, role: str, num_numbers: int | None) -> list[str]:
    """Check the values of a column one by one. It can have any kind except `text` and `class`."""
    name, column = columns.names[role], columns.declared[role]
    kind = columns.kind_of(role)
    other = None if column.per is None else columns.names.get(column.per)
    rows = split.rows.select_columns([each for each in dict.fromkeys((name, other)) if each in split.rows.column_names])
    count = num_numbers if name == columns.numbers else None
    faults: dict[bool, dict[int, str]] = {True: {}, False: {}}  # is it a missing value -> row -> fault
    for start in range(0, len(rows), _READ_ROWS):
        batch = rows.with_format(None)[start : start + _READ_ROWS]
        others = batch.get(other, [None] * len(batch[name]))
        for row, (value, other_value) in enumerate(zip(batch[name], others, strict=True), start):
            fault = "is null" if value is None else find_fault(value, kind, other_value, num_numbers=count)
            if fault is not None:
                faults[is_hole(value, kind)][row] = fault
    return [
        f"data.{split.name}: column {name!r} {message}; {FILL_OR_DROP if are_holes else 'correct or remove the row'}"
        for are_holes, faults_of_rows in faults.items()
        for message in _group_by_kind(faults_of_rows, split)
    ]


def _group_by_kind(faults: Mapping[int, str], split: Split) -> list[str]:
    """Return a message for each group of rows whose faults differ only in values. `faults` are by row number."""
    kinds: dict[str, list[int]] = {}
    for row, fault in faults.items():
        kinds.setdefault(_VALUES.sub("", fault), []).append(row)
    messages = []
    for rows in kinds.values():
        same = [row for row in rows if faults[row] == faults[rows[0]]]
        others = [row for row in rows if faults[row] != faults[rows[0]]]
        more = f"; others of the kind in {split.list_rows(others)}" if others else ""
        messages.append(f"{faults[rows[0]]} in {split.list_rows(same)}{more}")
    return messages


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
    if places := split.list_where(column, pc.is_null):
        problems.append(f"data.{split.name}: column {column!r} is null in {places}; {FILL_OR_DROP} (or empty)")
    if is_null:
        return problems
    if may_be_empty:
        if not is_optional and all(
            pc.all(is_blank(texts), min_count=0).as_py() for texts in read_column(split.rows, column)
        ):
            problems.append(f"data.{split.name}: column {column!r} holds empty texts only")
    elif places := split.list_where(column, is_blank):
        problems.append(f"data.{split.name}: column {column!r} is empty in {places}; {FILL_OR_DROP} (or empty)")
    return problems
