"""Predicts the rows of a file: writes all rows and columns again, with the predictions as new columns."""

import contextlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from trainer_loop.cli.predict_arguments import Request
from trainer_loop.data.checks import check_splits
from trainer_loop.data.columns import Column, Columns, find_form
from trainer_loop.data.labels import read_known_labels
from trainer_loop.data.local_rows import find_whole, read_whole_rows
from trainer_loop.data.missing import Holes, settle_missing
from trainer_loop.data.plain_columns import find_num_numbers
from trainer_loop.data.split import Split
from trainer_loop.data.tables import WholeTable
from trainer_loop.data.text_format import TextFormat
from trainer_loop.data.values import count_numbers, find_fault_of_flags, list_flagged
from trainer_loop.data.wording import did_you_mean, enumerate_names, plural
from trainer_loop.data.write_files import SUFFIXES, ReadyTable, write_whole
from trainer_loop.errors import UserError, in_one_line, refuse
from trainer_loop.predictor import Predictor, check_writes, find_columns, find_task_of
from trainer_loop.record.export import ExportRecord
from trainer_loop.record.logs import format_value
from trainer_loop.record.run_dir import RunDir, explain_disk_error
from trainer_loop.tasks.find import load_task


@dataclass(frozen=True)
class FileJob:
    """Rows to predict, checked before the model loads.

    Attributes:
        inputs: The columns that the model reads, without the rows that are not predicted.
        columns: The columns of `inputs`. They include a target that is compared with predictions as it is.
        kept: The numbers of the predicted rows in the file, from 0, `[N]`.
        label: The column that predictions are compared with.
        label_parts: The columns that are joined to the label, if there are several.
        ready: The table to write.
    """

    request: Request
    table: WholeTable
    inputs: Split
    columns: Columns
    kept: Sequence[int]
    label: str | None
    label_parts: Sequence[str]
    ready: ReadyTable
    output: Path
    notes: Sequence[str]


def prepare_file(file: Any, request: Request, model_dir: Path, record: ExportRecord | None) -> FileJob:
    """Read and check the file. Raises UserError with all problems of the file, its columns and the output."""
    task = find_task_of(model_dir, record)
    columns, column_problems = _name_columns(request, find_columns(record, task))
    output = Path(request.output).expanduser() if request.output else _default_output(model_dir, file)
    problems = [*column_problems, *check_writes(task, request.generation)]
    try:
        files = find_whole(file)
        problems += _check_output(request, output, files)
        text_format = TextFormat(request.delimiter, request.quoting, request.encoding)
        table = read_whole_rows(file, files, columns=columns, text_format=text_format)
        label = None if load_task(task).refers else _find_label_column(request, table, columns)
        read = columns.without_targets()
        inputs, kept, notes = _settle_rows(table, read, missing=request.missing)
        if label is not None and columns.label_role is None:
            read, inputs, notes = _with_targets(table, columns, inputs, kept, notes, missing=request.missing)
        ready = ReadyTable(table, output.suffix.lower())
    except UserError as error:
        raise UserError([*problems, *(_reword(problem, columns) for problem in error.problems)]) from error
    refuse(problems)
    label_parts = columns.joined.get(label or "", ())
    return FileJob(request, table, inputs, read, kept, label, label_parts, ready, output, notes)


def predict_file(predictor: Predictor, job: FileJob) -> list[str]:
    """Predict the rows and write them. Returns lines for the console. Raises UserError if writing fails."""
    rows = {own: list(job.inputs.rows[name]) for own, name in job.columns.names.items()}
    labels, label_notes = _read_labels(predictor, job)
    label_notes += _leave_out_numbers(rows, predictor, job)
    predictions = predictor.predict_rows(
        rows,
        labels=None if labels is None else [labels[number] for number in job.kept],
        origin_of=job.inputs.origins.place,
    )
    predicted_rows = predictions.rows
    if predictor.task.continues and job.request.generation:
        (texts,) = (rows[own] for own in predictor.inputs)
        continuations = predictor.continue_texts(texts, origin_of=job.inputs.origins.place)
        predicted_rows = [
            {**row, "continuation": text} for row, text in zip(predicted_rows, continuations, strict=True)
        ]
    lines: list[str] = []
    for name in predicted_rows[0]:
        values: list[Any] = [None] * len(job.table)
        for number, row in zip(job.kept, predicted_rows, strict=True):
            values[number] = row[name]
        column = _free_column(name, job.table.columns)
        job.ready.add(column, values)
        if column != name:
            lines.append(f"the file has a column {name} already: the predicted one is {column}")
    path = _write(job)
    lines += [f"{len(job.table):,} rows written to {path}", *job.notes]
    if predictions.metrics is not None:
        width = max(map(len, predictions.metrics))
        lines.append(f"compared with column {job.label!r}:")
        lines += [f"  {name:<{width}}  {format_value(value)}" for name, value in predictions.metrics.items()]
    return [*lines, *label_notes, *predictions.notes]


def _leave_out_numbers(rows: dict[str, list[Any]], predictor: Predictor, job: FileJob) -> list[str]:
    """Remove the target column if its rows have another number of values than the model predicts. Returns a note."""
    name, num_predicted = job.columns.numbers, len(predictor.label_names)
    own = next((own for own in rows if job.columns.names[own] == name), None)
    if own is None or not rows[own] or count_numbers(rows[own][0]) == num_predicted:
        return []
    numbers = plural(count_numbers(rows.pop(own)[0]), "number")
    return [f"no metrics: column {name!r} has {numbers} in each row, and the model predicts {num_predicted}"]


def _name_columns(request: Request, columns: Columns) -> tuple[Columns, list[str]]:
    """Return the columns of the file: those of the training data, unless the request names others. And problems."""
    keys = _list_keys(columns)
    options = {key: getattr(request, key) for key in ("text_column", "pair_column", "label_column")}
    names = {key: name for key, name in options.items() if name is not None}
    problems = [f"{key}={names[key]}: this model reads no such column; remove it" for key in names.keys() - keys]
    replaced = {own: names[key] for key, own in keys.items() if key in names}
    return Columns.of(columns.declared, {**columns.given, **replaced}), problems


def _list_keys(columns: Columns) -> dict[str, str]:
    """Return the keys of the command that name columns, each with the task's name of the column."""
    form = find_form(columns.declared, columns.names)
    readable = {own: column for own, column in columns.declared.items() if column.form in (None, form)}
    inputs = [own for own, column in readable.items() if not column.target]
    targets = [own for own, column in readable.items() if column.target]
    input_keys = dict(zip(("text_column", "pair_column"), inputs, strict=False))
    return input_keys | dict(zip(("label_column",), targets, strict=False))


def _settle_rows(table: WholeTable, columns: Columns, *, missing: str) -> tuple[Split, list[int], list[str]]:
    """Apply `missing` and check the rows. Returns the rows to predict, their numbers, and notes on the others."""
    split = table.as_split(columns)
    settled, messages = settle_missing(split, columns, missing=missing)
    num_numbers = find_num_numbers({"train": settled}, columns)
    problems, _, _ = check_splits(
        {"train": settled}, columns=columns, label_names=None, missing=missing, num_numbers=num_numbers
    )
    refuse(problems)
    is_dropped = np.zeros(len(table), dtype=np.bool_)
    for mask in Holes.of(columns).find(split.rows).values() if missing == "drop" else ():
        is_dropped |= mask
    notes = [line.replace("dropped", "written without a prediction (missing=drop)") for line in messages]
    return settled, np.flatnonzero(~is_dropped).tolist(), notes


def _find_label_column(request: Request, table: WholeTable, columns: Columns) -> str | None:
    """Return the column that predictions are compared with, or None."""
    names = list(table.columns)
    if request.label_column is not None and request.label_column not in names:
        raise UserError(
            f"label_column={request.label_column}: the file has no such column; it has {enumerate_names(names)}"
            f"{did_you_mean(request.label_column, names)}"
        )
    targets = [name for own, name in columns.names.items() if columns.declared[own].target]
    stored = [part for target in targets for part in columns.joined.get(target, [target])]
    return targets[0] if request.metrics and targets and set(stored) <= set(names) else None


def _with_targets(
    table: WholeTable, columns: Columns, inputs: Split, kept: list[int], notes: list[str], *, missing: str
) -> tuple[Columns, Split, list[str]]:
    """Add targets that are no classes, if all rows have valid ones. Returns columns, rows and notes."""
    try:
        labelled, labelled_numbers, _ = _settle_rows(table, columns, missing=missing)
    except UserError as error:
        reasons = [f"no metrics: {_reword(problem, columns)}" for problem in error.problems]
        return columns.without_targets(), inputs, [*notes, *reasons]
    if labelled_numbers != kept:
        return columns.without_targets(), inputs, [*notes, "no metrics: some rows have no value to compare with"]
    return columns, labelled, notes


def _read_labels(predictor: Predictor, job: FileJob) -> tuple[list[Any] | None, list[str]]:
    """Return the classes of all rows of the file, or None if it has none, and notes."""
    kinds = {column.kind for column in job.columns.declared.values()}
    if job.label is None or kinds.isdisjoint(("class", "classes")):
        return None, []
    if "classes" in kinds:
        return _read_label_lists(predictor, job)
    try:
        split = job.table.as_split(Columns({"label": Column("class")}, {"label": job.label}))
        return read_known_labels(split, job.label, names=predictor.label_names, values=predictor.label_values)
    except UserError as error:  # rows can be predicted without labels
        return None, [f"no metrics: {_reword(problem, job.columns)}" for problem in error.problems]


def _read_label_lists(predictor: Predictor, job: FileJob) -> tuple[list[list[int] | None], list[str]]:
    """Return the classes of each row, or of its words; None for a row with an unknown class or a wrong number."""
    per = job.columns.declared[str(job.columns.label_role)].per
    label_values = _read_joined(job) if job.label_parts else list(job.table.columns[str(job.label)])
    words = None if per is None else list(job.table.columns[job.columns.names[per]])
    ids: dict[tuple[type, Any], int] = {(str, name): number for number, name in enumerate(predictor.label_names)}
    for number, value in enumerate(predictor.label_values):
        if isinstance(value, (str, int)):
            ids.setdefault((type(value), value), number)
    classes: list[list[int] | None] = []
    for row, tags in enumerate(map(_list_labels, label_values)):
        row_ids = [ids.get((type(tag), tag)) if isinstance(tag, (str, int)) else None for tag in tags or ()]
        fits = tags is not None and None not in row_ids
        if words is not None:
            fits &= len(row_ids) == len(_list_labels(words[row]) or ())
        classes.append([class_id for class_id in row_ids if class_id is not None] if fits else None)
    left_out = sum(row_classes is None for row_classes in classes)
    notes = [f"{plural(left_out, 'row')} without known labels in column {job.label!r}: left out of the metrics"]
    return classes, notes if left_out else []


def _read_joined(job: FileJob) -> list[dict[str, Any]]:
    """Return the values of the columns that are joined to the label, for each row."""
    parts = [map(_as_python, job.table.columns[part]) for part in job.label_parts]
    return [dict(zip(job.label_parts, values, strict=True)) for values in zip(*parts, strict=True)]


def _list_labels(value: Any) -> list[Any] | None:
    """Return the elements of a list, or the labels that a joined value marks; None for any other value."""
    value = _as_python(value)
    if isinstance(value, Mapping):
        return None if find_fault_of_flags(value) else list_flagged(value)
    return list(value) if isinstance(value, (list, tuple)) else None


def _as_python(value: Any) -> Any:
    return value.as_py() if hasattr(value, "as_py") else value


def _free_column(name: str, taken: Mapping[str, Any]) -> str:
    """Return a name for a predicted column that the file does not use yet."""
    if name not in taken:
        return name
    column, number = f"predicted_{name}", 2
    while column in taken:
        column, number = f"predicted_{name}_{number}", number + 1
    return column


def _reword(problem: str, columns: Columns) -> str:
    """Replace config keys in a problem by the keys of this command."""
    for key, here in (
        *((f"data.columns.{own}=", f"{key}=") for key, own in _list_keys(columns).items()),
        ("data.files.", ""),
        ("data.missing=", "missing="),
        ("data.train: ", ""),
        ("data.train", "the file"),
    ):
        problem = problem.replace(key, here)
    return problem


# ------------------------------------------------------------------------------------------------------ the output


def _default_output(model_dir: Path, spec: Any) -> Path:
    """Return a path named after the file or folder that is read. spec: as `Request.file`."""
    run_dir = RunDir(model_dir.parent)
    directory = run_dir.predictions if model_dir == run_dir.model else Path("predictions")
    file = Path(spec if isinstance(spec, str) else "predictions")
    suffix = file.suffix.lower() if file.suffix.lower() in SUFFIXES else ".csv"
    stem = file.stem if file.is_file() else file.resolve().name if file.is_dir() else "predictions"  # a glob, a query
    return directory / f"{stem}{suffix}"


def _check_output(request: Request, output: Path, files: Sequence[str]) -> list[str]:
    """Check that the output can be written. It never replaces the input, and another file only with overwrite=true."""
    name = f"output={request.output or output}"
    try:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            output.lstat()  # raises for names that no file can have
        parent = next(path for path in output.absolute().parents if path.exists())
        if not (parent.is_dir() and os.access(parent, os.W_OK)):
            return [f"{name} cannot be written: {parent} is no folder that can be written; choose another"]
        if request.output is None:
            return []
        if output.exists() and any(output.samefile(file) for file in files):
            return [f"{name} is the file that is read; choose another"]
        if output.is_symlink():
            return [f"{name} is a link to {output.readlink()}; name the file itself"]
        if output.is_dir():
            return [f"{name} is a folder; name a file in it"]
        if output.exists() and not request.overwrite:
            return [f"{name} is there already; choose another, or set overwrite=true"]
    except (OSError, ValueError) as error:
        return [f"{name!r} cannot be written: {in_one_line(error)}; choose another"]
    return []


def _write(job: FileJob) -> Path:
    """Write the rows; return the path. A default name that is taken gets a number."""
    path, number = job.output, 2
    while True:
        try:
            write_whole(path, job.ready.write, replaces=job.request.overwrite)
            return path
        except OSError as error:
            is_taken = isinstance(error, FileExistsError) and path.parent.is_dir()
            if not is_taken or job.request.output is not None:
                reason = "it is there already" if is_taken else explain_disk_error(error, path.parent)
                raise UserError(f"output={path} cannot be written: {reason}; choose another") from error
        path = job.output.with_name(f"{job.output.stem}-{number}{job.output.suffix}")
        number += 1
