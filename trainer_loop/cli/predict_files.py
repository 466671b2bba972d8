"""Files through an exported model: all their rows and columns are written again, with what is predicted behind them."""

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
    """Rows to predict, found good before the model loads.

    inputs: what the model reads, without the rows that are not predicted. columns: those of the inputs, with a target
    that is compared as it is. kept: `[N]` numbers of the rows that are, from 0. label: the column that predictions are
    compared with. label_parts: the columns that it is joined of, if it is. ready: the table as it is going to be
    written.
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
    """Raises UserError with all that is wrong with the file, its columns and where they are to go.

    file: as `Request.file`.
    """
    task = find_task_of(model_dir, record)
    columns, unfit = _name_columns(request, find_columns(record, task))
    output = Path(request.output).expanduser() if request.output else _default_output(model_dir, file)
    problems = [*unfit, *check_writes(task, request.generation)]
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
    """Predict the rows and write them; returns lines for a person. Raises UserError where the disk refuses."""
    rows = {own: list(job.inputs.rows[name]) for own, name in job.columns.names.items()}
    labels, label_notes = _read_labels(predictor, job)
    label_notes += _leave_out_numbers(rows, predictor, job)
    predictions = predictor.predict_rows(
        rows,
        labels=None if labels is None else [labels[number] for number in job.kept],
        origin_of=job.inputs.origins.place,
    )
    predicted = predictions.rows
    if predictor.task.continues and job.request.generation:
        (texts,) = (rows[own] for own in predictor.inputs)
        written = predictor.continue_texts(texts, origin_of=job.inputs.origins.place)
        predicted = [{**row, "continuation": text} for row, text in zip(predicted, written, strict=True)]
    lines: list[str] = []
    for name in predicted[0]:
        values: list[Any] = [None] * len(job.table)
        for number, row in zip(job.kept, predicted, strict=True):
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
    """Take numbers away that the model does not predict as many of in a row, and say so."""
    name, predicted = job.columns.numbers, len(predictor.label_names)
    own = next((own for own in rows if job.columns.names[own] == name), None)
    if own is None or not rows[own] or count_numbers(rows[own][0]) == predicted:
        return []
    found = plural(count_numbers(rows.pop(own)[0]), "number")
    return [f"no metrics: column {name!r} has {found} in each row, and the model predicts {predicted}"]


def _name_columns(request: Request, columns: Columns) -> tuple[Columns, list[str]]:
    """The columns of the file: those of the training data, unless the command names others; and what does not fit."""
    keys = _list_keys(columns)
    asked = {key: getattr(request, key) for key in ("text_column", "pair_column", "label_column")}
    given = {key: name for key, name in asked.items() if name is not None}
    problems = [f"{key}={given[key]}: this model reads no such column; remove it" for key in given.keys() - keys]
    named = {own: given[key] for key, own in keys.items() if key in given}
    return Columns.of(columns.declared, {**columns.given, **named}), problems


def _list_keys(columns: Columns) -> dict[str, str]:
    """The keys of this command that name columns, and the column of the task that each of them names."""
    form = find_form(columns.declared, columns.names)
    readable = {own: column for own, column in columns.declared.items() if column.form in (None, form)}
    inputs = [own for own, column in readable.items() if not column.target]
    targets = [own for own, column in readable.items() if column.target]
    named = dict(zip(("text_column", "pair_column"), inputs, strict=False))
    return named | dict(zip(("label_column",), targets, strict=False))


def _settle_rows(table: WholeTable, columns: Columns, *, missing: str) -> tuple[Split, list[int], list[str]]:
    """The rows that are going to be predicted, their numbers, and what is to be said of the others."""
    split = table.as_split(columns)
    settled, told = settle_missing(split, columns, missing=missing)
    num_numbers = find_num_numbers({"train": settled}, columns)
    problems, _, _ = check_splits(
        {"train": settled}, columns=columns, label_names=None, missing=missing, num_numbers=num_numbers
    )
    refuse(problems)
    gone = np.zeros(len(table), dtype=np.bool_)
    for mask in Holes.of(columns).find(split.rows).values() if missing == "drop" else ():
        gone |= mask
    notes = [line.replace("dropped", "written without a prediction (missing=drop)") for line in told]
    return settled, np.flatnonzero(~gone).tolist(), notes


def _find_label_column(request: Request, table: WholeTable, columns: Columns) -> str | None:
    """The column that predictions are compared with; None: none."""
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
    """The columns, rows and notes with targets that are compared as they are, if these are in order in all rows."""
    try:
        labelled, also_kept, _ = _settle_rows(table, columns, missing=missing)
    except UserError as error:
        return (
            columns.without_targets(),
            inputs,
            [*notes, *(f"no metrics: {_reword(it, columns)}" for it in error.problems)],
        )
    if also_kept != kept:
        told = ["no metrics: some rows have no value to compare with"]
        return columns.without_targets(), inputs, notes + told
    return columns, labelled, notes


def _read_labels(predictor: Predictor, job: FileJob) -> tuple[list[Any] | None, list[str]]:
    """The class of every row of the file, where it has any; and what is to be said of them."""
    kinds = {column.kind for column in job.columns.declared.values()}
    if job.label is None or kinds.isdisjoint(("class", "classes")):
        return None, []
    if "classes" in kinds:
        return _read_label_lists(predictor, job)
    try:
        own = {"label": Column("class")}
        split = job.table.as_split(Columns(own, {"label": job.label}))
        return read_known_labels(split, job.label, names=predictor.label_names, values=predictor.label_values)
    except UserError as error:  # a column that cannot hold labels keeps nobody from predicting
        return None, [f"no metrics: {_reword(problem, job.columns)}" for problem in error.problems]


def _read_label_lists(predictor: Predictor, job: FileJob) -> tuple[list[list[int] | None], list[str]]:
    """The classes of every row, or of its words; None where one of them is not known, or their number is another."""
    per = job.columns.declared[str(job.columns.label_role)].per
    given = _read_joined(job) if job.label_parts else list(job.table.columns[str(job.label)])
    words = None if per is None else list(job.table.columns[job.columns.names[per]])
    ids: dict[tuple[type, Any], int] = {(str, name): number for number, name in enumerate(predictor.label_names)}
    for number, value in enumerate(predictor.label_values):
        if isinstance(value, (str, int)):
            ids.setdefault((type(value), value), number)
    found: list[list[int] | None] = []
    for row, tags in enumerate(map(_list_labels, given)):
        known = [ids.get((type(tag), tag)) if isinstance(tag, (str, int)) else None for tag in tags or ()]
        fits = tags is not None and None not in known
        if words is not None:
            fits &= len(known) == len(_list_labels(words[row]) or ())
        found.append([tag for tag in known if tag is not None] if fits else None)
    left_out = sum(tags is None for tags in found)
    notes = [f"{plural(left_out, 'row')} without known labels in column {job.label!r}: left out of the metrics"]
    return found, notes if left_out else []


def _read_joined(job: FileJob) -> list[dict[str, Any]]:
    """The values of the columns that the label is joined of, row by row."""
    parts = [map(_as_python, job.table.columns[part]) for part in job.label_parts]
    return [dict(zip(job.label_parts, values, strict=True)) for values in zip(*parts, strict=True)]


def _list_labels(value: Any) -> list[Any] | None:
    """The elements of a list, or the labels that a joined value marks; None: it is no such value."""
    value = _as_python(value)
    if isinstance(value, Mapping):
        return None if find_fault_of_flags(value) else list_flagged(value)
    return list(value) if isinstance(value, (list, tuple)) else None


def _as_python(value: Any) -> Any:
    return value.as_py() if hasattr(value, "as_py") else value


def _free_column(name: str, taken: Mapping[str, Any]) -> str:
    """What is predicted must not take the place of what was given."""
    if name not in taken:
        return name
    column, number = f"predicted_{name}", 2
    while column in taken:
        column, number = f"predicted_{name}_{number}", number + 1
    return column


def _reword(problem: str, columns: Columns) -> str:
    """Problems of data name config keys; here the keys are those of the command."""
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
    """A file called as the file or folder that is read. spec: see `prepare_file`."""
    run_dir = RunDir(model_dir.parent)
    directory = run_dir.predictions if model_dir == run_dir.model else Path("predictions")
    file = Path(spec if isinstance(spec, str) else "predictions")
    suffix = file.suffix.lower() if file.suffix.lower() in SUFFIXES else ".csv"
    stem = file.stem if file.is_file() else file.resolve().name if file.is_dir() else "predictions"  # a glob, a query
    return directory / f"{stem}{suffix}"


def _check_output(request: Request, output: Path, files: Sequence[str]) -> list[str]:
    """What is there already is not replaced without a word, and what is read never."""
    name = f"output={request.output or output}"
    try:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            output.lstat()  # no file can have some names
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
    """Write the rows; returns where. A name that was not asked for is one that no file has."""
    path, number = job.output, 2
    while True:
        try:
            write_whole(path, job.ready.write, replaces=job.request.overwrite)
            return path
        except OSError as error:
            is_taken = isinstance(error, FileExistsError) and path.parent.is_dir()
            if not is_taken or job.request.output is not None:
                told = "it is there already" if is_taken else explain_disk_error(error, path.parent)
                raise UserError(f"output={path} cannot be written: {told}; choose another") from error
        path = job.output.with_name(f"{job.output.stem}-{number}{job.output.suffix}")
        number += 1
