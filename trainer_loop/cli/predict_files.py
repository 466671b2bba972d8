"""Files through an exported model: all their rows and columns are written again, with what is predicted behind them."""

import contextlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from trainer_loop.data.checks import check_splits
from trainer_loop.data.files import find_files
from trainer_loop.data.known_labels import read_known_labels
from trainer_loop.data.missing import Holes, settle_missing
from trainer_loop.data.split import Split
from trainer_loop.data.tables import WholeTable, read_whole
from trainer_loop.data.text_format import TextFormat
from trainer_loop.data.wording import did_you_mean, enumerate_names
from trainer_loop.data.write_files import SUFFIXES, ReadyTable, write_whole
from trainer_loop.errors import UserError, in_one_line
from trainer_loop.predictor import Predictor
from trainer_loop.record.export import ExportRecord
from trainer_loop.record.logs import format_value
from trainer_loop.record.run_dir import RunDir, explain_disk_error


@dataclass(frozen=True)
class FileRequest:
    """What is asked for a file: see the arguments of `python -m trainer_loop.predict`."""

    file: str
    output: str | None
    overwrite: bool
    text_column: str | None
    pair_column: str | None
    label_column: str | None
    metrics: bool
    missing: str
    text_format: TextFormat


@dataclass(frozen=True)
class FileJob:
    """Rows to predict, found good before the model loads.

    texts: the columns of texts, without the rows that are not predicted. kept: `[N]` numbers of the rows that are,
    from 0. label: the column that predictions are compared with. ready: the table as it is going to be written.
    """

    request: FileRequest
    table: WholeTable
    texts: Split
    columns: Sequence[str]
    kept: Sequence[int]
    label: str | None
    ready: ReadyTable
    output: Path
    notes: Sequence[str]


def prepare_file(request: FileRequest, model_dir: Path, record: ExportRecord | None) -> FileJob:
    """Raises UserError with all that is wrong with the file, its columns and where they are to go."""
    is_lm = record is not None and record.task == "causal_lm"
    text = request.text_column or (record and record.text) or "text"
    text_pair = request.pair_column or (record.text_pair if record is not None else None)
    columns = [text] if text_pair is None else [text, text_pair]
    files = find_files([request.file], key="file")
    output = Path(request.output).expanduser() if request.output else _default_output(model_dir, Path(request.file))
    problems = _check_output(request, output, files)
    if is_lm and request.label_column is not None:
        problems.append(f"label_column={request.label_column}: a language model has no labels; remove it")
    try:
        table = read_whole(files, text_format=request.text_format)
        label = None if is_lm else _find_label_column(request, table, record)
        texts, kept, notes = _settle_texts(table, text, text_pair, missing=request.missing, may_be_blank=is_lm)
        ready = ReadyTable(table, output.suffix.lower())
    except UserError as error:
        raise UserError([*problems, *map(_reword, error.problems)]) from error
    if problems:
        raise UserError(problems)
    return FileJob(request, table, texts, columns, kept, label, ready, output, notes)


def predict_file(predictor: Predictor, job: FileJob) -> list[str]:
    """Predict the rows and write them; returns lines for a person. Raises UserError where the disk refuses."""
    texts = [list(job.texts.rows[column]) for column in job.columns]
    labels, label_notes = _read_labels(predictor, job)
    judged = predictor.judge(
        texts[0],
        texts[1] if len(texts) > 1 else None,
        labels=None if labels is None else [labels[number] for number in job.kept],
        origin_of=job.texts.origins.place,
    )
    lines: list[str] = []
    for name in judged.rows[0]:
        values: list[Any] = [None] * len(job.table)
        for number, row in zip(job.kept, judged.rows, strict=True):
            values[number] = row[name]
        column = _free_column(name, job.table.columns)
        job.ready.add(column, values)
        if column != name:
            lines.append(f"the file has a column {name} already: the predicted one is {column}")
    path = _write(job)
    lines += [f"{len(job.table):,} rows written to {path}", *job.notes]
    if judged.figures is not None:
        width = max(map(len, judged.figures))
        lines.append(f"compared with column {job.label!r}:")
        lines += [f"  {name:<{width}}  {format_value(value)}" for name, value in judged.figures.items()]
    return [*lines, *label_notes, *judged.notes]


def _settle_texts(
    table: WholeTable, text: str, text_pair: str | None, *, missing: str, may_be_blank: bool
) -> tuple[Split, list[int], list[str]]:
    """The texts that are going to be predicted, the numbers of their rows, and what is to be said of the others."""
    columns = [text] if text_pair is None else [text, text_pair]
    split = table.as_split(columns)
    holes = Holes(columns, None, blank=not may_be_blank)
    settled, told = settle_missing(split, holes, missing=missing)
    problems, _, _ = check_splits(
        {"train": settled},
        text=text,
        text_pair=text_pair,
        label=None,
        label_names=None,
        missing=missing,
        may_be_blank=may_be_blank,
    )
    if problems:
        raise UserError(problems)
    gone = np.zeros(len(table), dtype=np.bool_)
    for mask in holes.find(split.rows).values() if missing == "drop" else ():
        gone |= mask
    notes = [line.replace("dropped", "written without a prediction (missing=drop)") for line in told]
    return settled, np.flatnonzero(~gone).tolist(), notes


def _find_label_column(request: FileRequest, table: WholeTable, record: ExportRecord | None) -> str | None:
    """The column that predictions are compared with; None: none."""
    names = list(table.columns)
    if request.label_column is not None and request.label_column not in names:
        raise UserError(
            f"label_column={request.label_column}: the file has no such column; it has {enumerate_names(names)}"
            f"{did_you_mean(request.label_column, names)}"
        )
    noted = (record.evaluation or {}).get("label") if record is not None else None
    label = request.label_column or (noted if isinstance(noted, str) else "label")
    return label if request.metrics and label in names else None


def _read_labels(predictor: Predictor, job: FileJob) -> tuple[list[int | None] | None, list[str]]:
    """The class of every row of the file, where it has any; and what is to be said of them."""
    if job.label is None or predictor.generates:
        return None, []
    try:
        split = job.table.as_split([job.label], label=job.label)
        known = read_known_labels(split, job.label, names=predictor.label_names, values=predictor.label_values)
    except UserError as error:  # a column that cannot hold labels keeps nobody from predicting
        return None, [f"no metrics: {_reword(problem)}" for problem in error.problems]
    return known.ids, known.notes


def _free_column(name: str, taken: Mapping[str, Any]) -> str:
    """What is predicted must not take the place of what was given."""
    if name not in taken:
        return name
    column, number = f"predicted_{name}", 2
    while column in taken:
        column, number = f"predicted_{name}_{number}", number + 1
    return column


def _reword(problem: str) -> str:
    """Problems of data name config keys; here the keys are those of the command."""
    for key, here in (
        ("data.text_pair=", "pair_column="),
        ("data.text=", "text_column="),
        ("data.files.", ""),
        ("data.missing=", "missing="),
        ("data.train: ", ""),
        ("data.train", "the file"),
    ):
        problem = problem.replace(key, here)
    return problem


# ------------------------------------------------------------------------------------------------------ the output


def _default_output(model_dir: Path, file: Path) -> Path:
    suffix = file.suffix.lower() if file.suffix.lower() in SUFFIXES else ".csv"
    run_dir = RunDir(model_dir.parent)
    directory = run_dir.predictions if model_dir == run_dir.model else Path("predictions")
    stem = file.stem if file.is_file() else "predictions"  # a glob names no file
    return directory / f"{stem}{suffix}"


def _check_output(request: FileRequest, output: Path, files: Sequence[str]) -> list[str]:
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
