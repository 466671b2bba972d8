"""Reads the arguments of `python -m trainer_loop.predict`."""

import difflib
import glob
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trainer_loop.cli.arguments import (
    Reader,
    choice,
    collect_arguments,
    number,
    read_values,
    true_or_false,
    whole_number,
)
from trainer_loop.config.sources import read_argument
from trainer_loop.config.values import explain_delimiter, explain_encoding, spell_delimiter
from trainer_loop.errors import UserError, refuse

USAGE = """\
python -m trainer_loop.predict model=runs/imdb text="I am super delighted."
python -m trainer_loop.predict model=runs/squad question="Who came?" context="Ada came, and left early."
python -m trainer_loop.predict model=runs/imdb file=new_reviews.csv output=judged.csv

  model=           a run directory, or the directory of a model that transformers can load
  text=            a text to predict; a model that tags words splits it at spaces
  text_pair=       the second text, if the model was trained on pairs
  NAME=            a column by the task's name, such as question= and context=, or by its name in the training data;
                   words are separated by spaces, choices by bars, as in choices="milk | honey"; messages are a user
                   message, or a list as JSON: messages='[{"role": "user", "content": "Hi"}, ...]'
  file=            instead of text: rows to predict, as in data.train (.csv .tsv .json .jsonl .parquet .arrow .feather
                   .txt): a file, a glob, a list [a.csv,b.csv], a folder that save_to_disk wrote, or a query of a
                   database, "{sql: select text from reviews, connection: reviews.db}"; for a model of images also a
                   folder of images, or a glob of them, as in image=photos/
  output=          the file to write (.csv .tsv .json .jsonl .parquet); default: a new file in predictions/ of the run
  overwrite=true   replaces the file that output= names if it exists
  text_column=     column of the file that holds the text, or the first input of the model; default: its name in the
                   training data
  pair_column=     column of the second text; default: its name in the training data
  label_column=    column of the labels for metrics; default: its name in the training data, if the file has it
  metrics=false    computes no metrics
  missing=         rows without a text. refuse: they are reported, and nothing is predicted (default); drop: they are
                   written without a prediction; empty: they are predicted as the empty text
  delimiter=       separates the fields of a .csv or .tsv file: one character, or tab
  quoting=         auto, double or none, see data.files.quoting in docs/config.md
  encoding=        encoding of a text file, such as windows-1252; default: UTF-8
  max_new_tokens=  number of tokens that a causal LM adds to a text, default 64 (for a file as the column continuation);
                   for models of other tasks the maximum length of the generated text
  num_beams=, length_penalty=, no_repeat_ngram_size=
                   options of generation, see evaluate.generate in docs/config.md; default: those of the run
  trust_remote_code=true   lets Python code that came with the model run

Columns keep their names, values and order. Predictions are added as new columns, see docs/tasks.md for each task. A
column without a name is called column_1 by its position; blank lines are skipped. JSON and .csv files have dates and
times by ISO 8601, decimals as texts, bytes in base64, and .csv files nested values as JSON."""

_SUFFIXES = (".csv", ".tsv", ".json", ".jsonl", ".parquet")
_FILE_KEYS = (  # these need file=
    *("output", "overwrite", "text_column", "pair_column", "label_column", "metrics", "missing"),
    *("delimiter", "quoting", "encoding"),
)
OF_GENERATION = ("max_new_tokens", "num_beams", "no_repeat_ngram_size", "length_penalty")
_SIMILARITY = 0.75  # a name that is this similar to a key counts as a misspelt key, not as a column


@dataclass(frozen=True)
class Request:
    """Arguments of the command."""

    model: str
    row: Mapping[str, str] = field(default_factory=dict)  # a single row to predict, by column
    file: Any = None  # a file, a list of files, or a query, as in `data.train`
    output: str | None = None
    overwrite: bool = False
    text_column: str | None = None
    pair_column: str | None = None
    label_column: str | None = None
    metrics: bool = True
    missing: str = "refuse"
    delimiter: str | None = None
    quoting: str = "auto"
    encoding: str | None = None
    max_new_tokens: int | None = None
    num_beams: int | None = None
    length_penalty: float | None = None
    no_repeat_ngram_size: int | None = None
    trust_remote_code: bool = False

    @property
    def generation(self) -> dict[str, float]:
        """Generation options that the command sets."""
        return {name: getattr(self, name) for name in OF_GENERATION if getattr(self, name) is not None}


def read_request(arguments: list[str]) -> Request:
    """Read the arguments. Raises UserError with all their problems."""
    names = [argument.partition("=")[0] for argument in arguments if "=" in argument]
    columns = [
        name for name in names if name not in READERS and not difflib.get_close_matches(name, READERS, 1, _SIMILARITY)
    ]
    values, problems = collect_arguments(arguments, READERS | dict.fromkeys(columns, str))
    row = {name: values.pop(name) for name in dict.fromkeys(columns)}
    if "file" not in values and _names_several_images(row):
        files, wrong = read_values({"file": row.pop("image")}, READERS)
        values |= files
        problems += wrong
    if row and "file" in values:
        problems.append(f"{next(iter(row))}= is a single row, and file= has rows of its own; give one of them")
    elif not row and "file" not in values:
        problems.append('there is nothing to predict; give text="..." or file=new_rows.csv')
    problems += [f"{name}= is empty" for name, value in row.items() if not value.strip()]
    problems += [
        f"{name}= goes with file=, not with {next(iter(row))}=" for name in _FILE_KEYS if row and name in values
    ]
    if values.get("overwrite") is True and "output" not in values:
        problems.append("overwrite=true goes with output=; without it a new file is written")
    if values.get("metrics") is False and "label_column" in values:
        problems.append("label_column= is for metrics, and metrics=false; remove one of them")
    refuse(problems)
    return Request(row=row, **values)


def _names_several_images(row: Mapping[str, str]) -> bool:
    """Return whether a row is a folder or a glob of images, which means several rows."""
    value = os.path.expanduser(row.get("image", ""))  # noqa: PTH111 - pathlib would raise for an unknown user
    return len(row) == 1 and (os.path.isdir(value) or (glob.has_magic(value) and not os.path.lexists(value)))  # noqa: PTH112 - pathlib would raise for an invalid name


def read_rows(text: str) -> Any:
    """Read the names of files, or a query of a database, as in `data.train`."""
    return read_argument("data.train", text)


def _read_delimiter(text: str) -> object:
    delimiter = spell_delimiter(text)
    if (fault := explain_delimiter(delimiter)) is not None:
        raise UserError(f"it must be one character, or tab{f'; {fault}' if fault else ''}")
    return delimiter


def _read_encoding(text: str) -> str:
    if (fault := explain_encoding(text)) is not None:
        raise UserError(fault or "name one")
    return text


def _read_output(text: str) -> str:
    if Path(text).suffix.lower() not in _SUFFIXES:
        raise UserError(f"the file must end in {', '.join(_SUFFIXES)}")
    return text


READERS: dict[str, Reader] = {
    "model": str,
    "file": read_rows,
    "output": _read_output,
    "overwrite": true_or_false,
    **dict.fromkeys(("text_column", "pair_column", "label_column"), str),
    "metrics": true_or_false,
    "missing": choice("refuse", "drop", "empty"),
    "delimiter": _read_delimiter,
    "quoting": choice("auto", "double", "none"),
    "encoding": _read_encoding,
    "max_new_tokens": whole_number(1),
    "num_beams": whole_number(1),
    "length_penalty": number("a number, such as 1.5"),
    "no_repeat_ngram_size": whole_number(0),
    "trust_remote_code": true_or_false,
}
