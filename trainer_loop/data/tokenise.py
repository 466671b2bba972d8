"""Tokenise splits and cache the result on disk. The cache key is a hash of everything that the result depends on."""

import contextlib
import inspect
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Protocol

import datasets
import numpy as np
import pyarrow.compute as pc
import tokenizers
import transformers

from trainer_loop.data.columns import RESERVED, Columns
from trainer_loop.data.fingerprint import digest
from trainer_loop.data.labels import LabelNames
from trainer_loop.data.processors import as_tokenizer
from trainer_loop.data.row_cache import load_or_make
from trainer_loop.data.split import RawRows, Split, TokenisedSplit
from trainer_loop.data.stream_rows import Row
from trainer_loop.data.values import read_number
from trainer_loop.data.wording import enumerate_some, plural
from trainer_loop.errors import UserError, in_one_line, refuse
from trainer_loop.runtime.host import expand_home
from trainer_loop.runtime.quiet import progress_bars

_FORMAT = 3  # version of the files in the cache; a new number invalidates all earlier ones
_TEXTS_PER_CALL = 1000  # constant, because a task that joins texts into chunks starts a new chunk at each call
_NUMBERS = {"length": np.int32, "source": np.int64}  # columns that are also stored as memory-mapped arrays
_RAW = "raw "  # prefix of the user's columns, because map gives a new column the type of an old one of the same name

_PARALLELISM = "TOKENIZERS_PARALLELISM"
_PARALLELISM_OF_USER = os.environ.get(_PARALLELISM)  # the value before `_rust_threads` sets it


class Encoder(Protocol):
    """The methods of a task that are used here."""

    def encode(self, rows: Mapping[str, Sequence[Any]], *, max_length: int) -> dict[str, list[Any]]: ...
    def encode_for_evaluation(self, rows: Mapping[str, Sequence[Any]], *, max_length: int) -> dict[str, list[Any]]: ...
    def settings(self) -> dict[str, Any]: ...


@dataclass(frozen=True)
class Encoding:
    """How raw rows are encoded for the model."""

    task: Encoder
    tokenizer: Any
    columns: Columns
    label_names: LabelNames | None  # the classes, if a column has labels
    max_length: int
    cache_dir: str | Path | None = None  # None: $TRAINER_LOOP_CACHE, or ~/.cache/trainer_loop
    show_progress: bool = False  # show a progress bar; if false, `say` receives a line at the start and at the end
    say: Callable[[str], None] = lambda line: None
    evaluates: bool = False  # encode for evaluation, with `task.encode_for_evaluation`
    num_numbers: int | None = None  # the number of regression targets of each row of a stream

    def __post_init__(self) -> None:
        assert (self.columns.label is None) == (self.label_names is None), "a label needs its names"


def tokenise_split(split: Split, encoding: Encoding, *, weight: str | None = None) -> TokenisedSplit:
    """Tokenise a checked split with `task.encode`, or load it from the cache.

    If several processes share `cache_dir`, one does the work and the others wait.

    Args:
        weight: The column with the weights of the rows; None: no weights.

    Raises:
        UserError: The cache cannot be written, or the texts have no tokens.
    """
    key = _make_key(split, encoding)
    cache = encoding.cache_dir or os.environ.get("TRAINER_LOOP_CACHE") or "~/.cache/trainer_loop"
    folder = expand_home(cache, place="data.cache_dir") / key
    maker = _RowMaker(split, encoding, key)
    try:
        rows = load_or_make(folder, maker.make)
    except OSError as error:
        if error in maker.task_errors:
            raise
        raise UserError(f"data.cache_dir={folder.parent} cannot be used: {in_one_line(error)}; name another") from error
    tokenised = _unpack(split, rows, encoding.columns, folder)
    return tokenised if weight is None else _weigh(tokenised, split, weight)


@dataclass(frozen=True)
class _RowMaker:
    """Encodes the rows of a split for the cache."""

    split: Split
    encoding: Encoding
    key: str  # of the rows in the cache
    task_errors: list[OSError] = field(default_factory=list, init=False)  # raised by the task, not by the cache
    faults: dict[int, str] = field(default_factory=dict, init=False)  # row number -> why the model cannot answer it

    def make(self, path: str) -> None:
        """Write the encoded rows to an Arrow file. Raises UserError if the model cannot answer some rows."""
        split, say = self.split, self.encoding.say
        has_tokens = as_tokenizer(self.encoding.tokenizer) is not None
        verb, doing, noun = ("tokenise", "tokenising", "text") if has_tokens else ("encode", "encoding", "row")
        if not self.encoding.show_progress:
            say(f"{split.name}: {doing} {plural(len(split.rows), noun)}")
        start_time = time.perf_counter()
        names = self.encoding.columns.all
        raw = split.rows.select_columns(names).rename_columns({name: _RAW + name for name in names})
        with _rust_threads(), progress_bars(shown=self.encoding.show_progress):
            rows = raw.with_format(None).map(
                self._encode,
                batched=True,
                batch_size=_TEXTS_PER_CALL,
                with_indices=True,
                remove_columns=raw.column_names,
                cache_file_name=path,
                load_from_cache_file=False,
                new_fingerprint=self.key,  # without this, map would hash the task and the tokenizer
                desc=f"{verb} {split.name}",
            )
        if self.faults:
            shown = enumerate_some([split.origins.place(row) for row in self.faults])
            reason = next(iter(self.faults.values()))
            raise UserError(f"data.{split.name}: {plural(len(self.faults), 'row')}: {shown}: {reason}")
        if len(rows):
            _write_numbers(rows, Path(path).parent)
        if not self.encoding.show_progress:
            say(f"{split.name}: {plural(len(rows), 'row')} {verb}d in {time.perf_counter() - start_time:.1f} s")

    def _encode(self, batch: Mapping[str, list[Any]], positions: Sequence[int]) -> dict[str, list[Any]]:
        """Encode a batch of rows for `Dataset.map`. `positions` are the numbers of these rows in the split."""
        task, columns, names = self.encoding.task, self.encoding.columns, self.encoding.label_names
        ids = None if names is None else names.ids
        rows = {
            role: _number_labels(batch[_RAW + name], ids) if role == columns.label_role else batch[_RAW + name]
            for role, name in columns.names.items()
        }
        encode = task.encode_for_evaluation if self.encoding.evaluates else task.encode
        try:
            encoded, faults = encode_rows(task, encode, rows, max_length=self.encoding.max_length)
        except OSError as error:
            self.task_errors.append(error)
            raise
        self.faults.update({positions[encoded["source"][row]]: reason for row, reason in faults.items()})
        encoded["source"] = [positions[source] for source in encoded["source"]]
        if columns.has_class_lists and "label" in encoded:  # Arrow cannot infer a type if all lists are empty
            encoded["label"] = [np.array(labels, dtype=np.int64) for labels in encoded["label"]]
        return encoded


def _weigh(tokenised: TokenisedSplit, split: Split, weight: str) -> TokenisedSplit:
    """Add the weights of the rows from the column `weight` of the raw rows. Raises UserError if all are 0."""
    weights = np.array([read_number(value) for value in split.rows.with_format(None)[weight]], dtype=np.float64)
    if not weights.any():
        raise UserError(f"data.weight={weight}: all rows of data.{split.name} weigh 0; at least one must weigh more")
    assert tokenised.raw is not None, "its rows were encoded"
    return replace(tokenised, weights=weights[tokenised.raw.sources])


@dataclass(frozen=True)
class RowEncoder:
    """Encodes raw rows of a stream with `task.encode`."""

    task: Encoder
    max_length: int
    texts_per_call: ClassVar[int] = _TEXTS_PER_CALL  # for a task with `changes_number`; the same as in memory
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False)  # two threads cannot share a tokenizer

    def __call__(self, rows: Sequence[Row]) -> list[Row]:
        with self._lock, _rust_threads():
            columns, faults = encode_rows(self.task, self.task.encode, _join(rows), max_length=self.max_length)
            sources = columns["source"]
        refuse([f"{rows[sources[number]].place}: {reason}" for number, reason in faults.items()])
        inputs = {name: column for name, column in columns.items() if name not in RESERVED}
        return [
            rows[source]._replace(
                values={name: column[number] for name, column in inputs.items()}, length=columns["length"][number]
            )
            for number, source in enumerate(sources)
        ]

    def changes_number(self, row: Row) -> bool:
        """Return whether `encode` may give another number of rows than texts, such as chunks or windows."""
        return "source" in self.task.encode(_join([row]), max_length=self.max_length)


def _join(rows: Sequence[Row]) -> dict[str, list[Any]]:
    return {name: [row.values[name] for row in rows] for name in rows[0].values}


def _number_labels(labels: Sequence[Any], ids: Mapping[Any, int] | None) -> list[Any]:
    assert ids is not None, "a label needs its names"
    return [[ids[item] for item in label] if isinstance(label, list) else ids[label] for label in labels]


def encode_rows(
    task: Encoder, encode: Callable[..., Mapping[str, list[Any]]], rows: Mapping[str, Sequence[Any]], *, max_length: int
) -> tuple[dict[str, list[Any]], dict[int, str]]:
    """Encode raw rows with a task.

    Args:
        encode: `task.encode` or `task.encode_for_evaluation`.

    Returns:
        The columns of `encode`, plus `length` (by default the length of `input_ids`, else 1), `source` (the number of
        the raw row), and the label if there is one. And, by number of the encoded row, the reasons in the column
        `fault` why the model cannot answer it.
    """
    encoded = dict(encode(rows, max_length=max_length))
    num_rows, num_encoded = (len(next(iter(columns.values()))) for columns in (rows, encoded))
    faults = {number: reason for number, reason in enumerate(encoded.pop("fault", ())) if reason is not None}
    lengths = encoded.get("length") or [len(ids) for ids in encoded.get("input_ids", ())] or [1] * num_encoded
    if "source" not in encoded and num_encoded != num_rows:
        raise UserError(
            f"task {type(task).__name__}: encode gave {num_encoded} rows for {num_rows}; it must name the row that "
            "each is from in a column `source`"
        )
    sources = list(encoded.get("source", range(num_rows)))
    if "label" in rows:  # each encoded row has the label of its raw row
        encoded.setdefault("label", [rows["label"][source] for source in sources])
    return {**encoded, "length": lengths, "source": sources}, faults


def _write_numbers(rows: datasets.Dataset, folder: Path) -> None:
    for name, dtype in _NUMBERS.items():
        numbers = np.lib.format.open_memmap(folder / f"{name}.npy", "w+", dtype, (len(rows),))
        start = 0
        for chunk in rows.data.column(name).chunks:  # a copy of the whole column might not fit into memory
            numbers[start : start + len(chunk)] = chunk.to_numpy()
            start += len(chunk)
        numbers.flush()


def _unpack(split: Split, rows: datasets.Dataset, columns: Columns, folder: Path) -> TokenisedSplit:
    if not len(rows):
        raise UserError(f"data.{split.name}: its texts have no tokens")
    lengths, sources = (np.asarray(np.load(folder / f"{name}.npy", mmap_mode="r")) for name in _NUMBERS)
    has_truncated = "truncated" in rows.column_names
    return TokenisedSplit(
        name=split.name,
        rows=rows.remove_columns([name for name in RESERVED if name in rows.column_names]),
        lengths=lengths,
        num_truncated=pc.sum(rows.data.column("truncated")).as_py() if has_truncated else 0,
        origins=split.origins.select(sources),
        fingerprint=split.fingerprint,
        raw=RawRows(split.rows.select_columns(columns.all).with_format(None), columns, sources),
    )


def _make_key(split: Split, encoding: Encoding) -> str:
    """Return a hash of everything that the tokenised rows depend on."""
    task, tokenizer, label_names = encoding.task, encoding.tokenizer, encoding.label_names
    parts = {
        "format": _FORMAT,
        "libraries": [transformers.__version__, tokenizers.__version__],
        "rows": split.fingerprint,
        "columns": dict(encoding.columns.names),
        "labels": None
        if label_names is None
        else [label_names.names, [[repr(raw), id] for raw, id in label_names.ids.items()]],
        "tokenizer": None if tokenizer is None else describe_processor(tokenizer),
        "task": [f"{type(task).__module__}.{type(task).__qualname__}", read_code(task), task.settings()],
        "max_length": encoding.max_length,
        "texts_per_call": _TEXTS_PER_CALL,
        "evaluates": encoding.evaluates,
    }
    return digest(json.dumps(parts, sort_keys=True).encode())


def describe_processor(processor: Any) -> dict[str, Any]:
    """Return all settings of a processor that change its output, as plain JSON."""
    if as_tokenizer(processor) is None:
        settings: dict[str, Any] = processor.to_dict()
        return settings
    content = json.loads(processor.backend_tokenizer.to_str())
    for name in ("truncation", "padding"):  # these are left over from the last call
        content.pop(name, None)
    return {
        "content": content,
        "class": type(processor).__qualname__,
        "special_tokens": {name: str(token) for name, token in processor.special_tokens_map.items()},
        "columns": list(processor.model_input_names),
        "chat_template": processor.chat_template,
        "truncation_side": processor.truncation_side,
    }


def read_code(task: Encoder) -> list[str]:
    """Return the source of the task's class and its bases, so that a change of `encode` invalidates the cache."""
    code: list[str] = []
    for kind in type(task).__mro__:
        try:
            code.append(inspect.getsource(sys.modules[kind.__module__]))
        except (OSError, TypeError):  # builtins, and classes typed into an interpreter
            encode = vars(kind).get("encode")
            code.append(repr((encode.__code__.co_code, encode.__code__.co_consts)) if encode is not None else "")
    return code


@contextlib.contextmanager
def _rust_threads() -> Iterator[None]:
    """Let tokenizers use threads in this block, and only one thread after it, unless the user set the variable.

    Processes that a DataLoader forks later could deadlock in these threads, and tokenizers warns about it.
    """
    os.environ[_PARALLELISM] = _PARALLELISM_OF_USER or "true"
    try:
        yield
    finally:
        os.environ[_PARALLELISM] = _PARALLELISM_OF_USER or "false"
