"""The arguments of `python -m trainer_loop.predict`."""

import difflib
import glob
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trainer_loop.cli.arguments import Reader, choice, collect_arguments, number, read_values, truth, whole
from trainer_loop.config.sources import read_argument
from trainer_loop.config.values import explain_delimiter, explain_encoding, spell_delimiter
from trainer_loop.errors import UserError, refuse

USAGE = """\
python -m trainer_loop.predict model=runs/imdb text="I am super delighted."
python -m trainer_loop.predict model=runs/squad question="Who came?" context="Ada came, and left early."
python -m trainer_loop.predict model=runs/imdb file=new_reviews.csv output=judged.csv

  model=           a run directory, or the directory of a model that transformers can load
  text=            a text to predict; a model that tags words takes what stands between spaces
  text_pair=       its second text, where the model was trained on pairs
  NAME=            a column by the task's name, such as question= and context=, or by its name in the training data;
                   words stand between spaces, choices between bars, as in choices="milk | honey"; messages are a
                   text of the user, or a list as JSON: messages='[{"role": "user", "content": "Hi"}, ...]'
  file=            instead of text: rows to predict, as in data.train (.csv .tsv .json .jsonl .parquet .arrow .feather
                   .txt): a file, a glob, a list [a.csv,b.csv], a folder that save_to_disk wrote, or a query of a
                   database, "{sql: select text from reviews, connection: reviews.db}"; for a model of images also a
                   folder of images, or a glob of them, as in image=photos/
  output=          where they go (.csv .tsv .json .jsonl .parquet); default: a new file in predictions/ of the run
  overwrite=true   replaces a file that output= names
  text_column=     column of the text in the file, or of what else the model reads first; default: the one the model
                   was trained on
  pair_column=     column of the second text; default likewise
  label_column=    column of the labels that predictions are compared with; default likewise, where the file has it
  metrics=false    compares none
  missing=         rows without a text. refuse: they are named, and nothing is predicted (default); drop: they are
                   written without a prediction; empty: the empty text is predicted
  delimiter=       between the fields of a .csv or .tsv file: one character, or tab
  quoting=         auto, double or none, see data.files.quoting in docs/config.md
  encoding=        of a text file, such as windows-1252; default: UTF-8
  max_new_tokens=  tokens that a causal LM writes behind a text, default 64 (a file gets them as the column
                   continuation), or that a model of another task writes at most
  num_beams=, length_penalty=, no_repeat_ngram_size=
                   how it writes, see evaluate.generate in docs/config.md; default: as the run evaluated it
  trust_remote_code=true   lets Python code that came with the model run

Columns keep their names, values and order; what is predicted stands behind them, in the columns that docs/tasks.md
lists for each task. A column without a name is called column_1 by its place; a blank line is no row. JSON and .csv
files have dates and times by ISO 8601, decimals as texts, bytes in base64, and .csv files nested values as JSON."""

_SUFFIXES = (".csv", ".tsv", ".json", ".jsonl", ".parquet")
_OF_FILES = (
    *("output", "overwrite", "text_column", "pair_column", "label_column", "metrics", "missing"),
    *("delimiter", "quoting", "encoding"),
)
OF_GENERATION = ("max_new_tokens", "num_beams", "no_repeat_ngram_size", "length_penalty")
_SURE = 0.75  # how like a key another one must be to be taken for a mistake


@dataclass(frozen=True)
class Request:
    """What the command line asked for."""

    model: str
    row: Mapping[str, str] = field(default_factory=dict)  # a row to predict, by the task's columns
    file: Any = None  # a text, a list of texts, or a query, as `data.train`
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
        """How texts are to be written, as far as the command says it."""
        return {name: getattr(self, name) for name in OF_GENERATION if getattr(self, name) is not None}


def read_request(arguments: list[str]) -> Request:
    """Raises UserError with all that is wrong with the arguments."""
    names = [argument.partition("=")[0] for argument in arguments if "=" in argument]
    columns = [name for name in names if name not in READERS and not difflib.get_close_matches(name, READERS, 1, _SURE)]
    given, problems = collect_arguments(arguments, READERS | dict.fromkeys(columns, str))
    row = {name: given.pop(name) for name in dict.fromkeys(columns)}
    if "file" not in given and _names_several_images(row):
        files, wrong = read_values({"file": row.pop("image")}, READERS)
        given |= files
        problems += wrong
    if row and "file" in given:
        problems.append(f"{next(iter(row))}= is a single row, and file= has rows of its own; give one of them")
    elif not row and "file" not in given:
        problems.append('there is nothing to predict; give text="..." or file=new_rows.csv')
    problems += [f"{name}= is empty" for name, value in row.items() if not value.strip()]
    problems += [f"{name}= goes with file=, not with {next(iter(row))}=" for name in _OF_FILES if row and name in given]
    if given.get("overwrite") is True and "output" not in given:
        problems.append("overwrite=true goes with output=; without it a new file is written")
    if given.get("metrics") is False and "label_column" in given:
        problems.append("label_column= is for metrics, and metrics=false; remove one of them")
    refuse(problems)
    return Request(row=row, **given)


def _names_several_images(row: Mapping[str, str]) -> bool:
    """Whether a row is a folder of images or a glob of them, and so several rows."""
    value = os.path.expanduser(row.get("image", ""))  # noqa: PTH111 - of a user who is not there it is as it was
    return len(row) == 1 and (os.path.isdir(value) or (glob.has_magic(value) and not os.path.lexists(value)))  # noqa: PTH112 - of a name that no folder can have it is false


def read_rows(text: str) -> Any:
    """Reads files or a query of a database, as `data.train` has them."""
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
    "overwrite": truth,
    **dict.fromkeys(("text_column", "pair_column", "label_column"), str),
    "metrics": truth,
    "missing": choice("refuse", "drop", "empty"),
    "delimiter": _read_delimiter,
    "quoting": choice("auto", "double", "none"),
    "encoding": _read_encoding,
    "max_new_tokens": whole(1),
    "num_beams": whole(1),
    "length_penalty": number("a number, such as 1.5"),
    "no_repeat_ngram_size": whole(0),
    "trust_remote_code": truth,
}
