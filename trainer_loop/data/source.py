"""The door through which all data comes in: hub data sets, files, and functions of the user's own."""

import inspect
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import datasets
import pyarrow as pa

from trainer_loop.components import locate
from trainer_loop.config.named_sets import name_sets, parse_set
from trainer_loop.data.columns import Columns
from trainer_loop.data.file_shards import open_files
from trainer_loop.data.files import EXTENSIONS, NamedRows, find_files, is_file_spec, read_files
from trainer_loop.data.fingerprint import digest
from trainer_loop.data.given_rows import as_dataset, read_dicts
from trainer_loop.data.hub import load_hub_splits
from trainer_loop.data.hub_stream import stream_hub_splits
from trainer_loop.data.missing import Holes, settle_missing, with_plain_columns
from trainer_loop.data.prepare import cut_validation, limit_rows
from trainer_loop.data.progress import progress_bars
from trainer_loop.data.shards import ShardedSplit
from trainer_loop.data.split import Origins, Split
from trainer_loop.data.stream_head import read_head
from trainer_loop.data.text_format import DEFAULT_FORMAT, TextFormat
from trainer_loop.errors import UserError

_SPLITS = ("train", "validation", "test")
_HASHED_ROWS = 10_000  # at a time


def load_splits(
    *,
    name: str | None,
    config: str | None,
    train: Any,
    validation: Any,
    test: Any,
    validation_fraction: float | None,
    limit: Mapping[str, int | None],
    columns: Columns,
    seed: int,
    show_progress: bool = False,
    text_format: TextFormat = DEFAULT_FORMAT,
    missing: str = "refuse",
    say: Callable[[str], None] = lambda line: None,
) -> tuple[dict[str, Split], list[str]]:
    """Every split that was asked for, as raw rows -> those that could be read, and all that is wrong with the rest.

    A split is named by (the parameters are the config keys of the same names under `data`)
      - the name of a split of the hub data set `name`, or a slice of one (`train[:1000]`);
      - a file, a glob, or a list of them: whatever has a known extension, a slash or a `*` or `?`;
      - where `name` is None, else, the dotted path of a function without required parameters (`seed` is handed in
        where it has one) that returns a datasets.Dataset or an iterable of dicts.
    validation, test: one of these, or several by name; those are the splits `validation.matched` and the like.
    text_format: of the files. missing: see `settle_missing`; `say` is told what was dropped, in lines for a person.
    `validation_fraction` of the training rows become the validation split; after that `limit` samples each split.
    """
    specs = {"train": train, **name_sets("validation", validation), **name_sets("test", test)}
    problems: list[str] = []
    if train is None:
        problems.append("data.train=null: a split, a file or a dotted path is needed")
    if validation_fraction is not None and validation is not None:
        problems.append("data.validation and data.validation_fraction are both given; set one to null")
    if validation_fraction is not None and not 0 < validation_fraction < 1:
        problems.append(f"data.validation_fraction={validation_fraction}: it must lie between 0 and 1; null for none")

    reading = _Reading(columns, text_format, missing, seed, say)
    with progress_bars(shown=show_progress):
        splits, hub_specs, unread = _read_local_splits(specs, name=name, reading=reading)
        problems += unread
        if hub_specs and name is not None:
            found, hub_problems = load_hub_splits(name, config=config, specs=hub_specs)
            splits.update(found)
            problems += hub_problems
    splits, unsettled = _settle(splits, reading)
    problems += unsettled

    if validation_fraction is not None and 0 < validation_fraction < 1 and validation is None and "train" in splits:
        if len(splits["train"].rows) < 2:
            problems.append("data.validation_fraction: data.train has 1 row, which cannot be divided")
        else:
            splits["train"], splits["validation"] = cut_validation(
                splits["train"], fraction=validation_fraction, label=reading.single_label, seed=seed
            )
    return _limit_splits(splits, limit, seed=seed), problems


def open_splits(
    *,
    name: str | None,
    config: str | None,
    train: Any,
    validation: Any,
    test: Any,
    limit: Mapping[str, int | None],
    columns: Columns,
    seed: int,
    show_progress: bool = False,
    text_format: TextFormat = DEFAULT_FORMAT,
    missing: str = "refuse",
    say: Callable[[str], None] = lambda line: None,
) -> tuple[dict[str, Split], ShardedSplit | None, list[str]]:
    """Like `load_splits`, but the training split is a hub split or files that are going to be streamed.

    -> the splits, with no more than the first rows of train; train as it is to be streamed; and all that is wrong.
    """
    reading = _Reading(columns, text_format, missing, seed, say)
    opened: ShardedSplit | None = None
    found, wrong = dict[str, Split](), list[str]()
    with progress_bars(shown=show_progress):
        specs = {**name_sets("validation", validation), **name_sets("test", test)}
        splits, hub_specs, problems = _read_local_splits(specs, name=name, reading=reading)
        if name is not None and _is_hub_spec(train):
            opened, found, wrong = stream_hub_splits(
                name, config=config, train=train, specs=hub_specs, columns=columns.all
            )
        else:
            try:
                opened = open_files(_find_stream_files(train), columns=columns.all, text_format=text_format)
            except UserError as error:
                problems += error.problems
            if name is not None and hub_specs:
                found, wrong = load_hub_splits(name, config=config, specs=hub_specs)
    splits, unsettled = _settle(splits | found, reading)
    problems += wrong + unsettled
    splits = _limit_splits(splits, limit, seed=seed)
    if opened is not None:
        try:
            splits = {"train": read_head(opened, columns=columns, missing=missing)} | splits
        except UserError as error:
            problems += error.problems
    return splits, opened, problems


@dataclass(frozen=True)
class _Reading:
    """What is read of every split, and how."""

    columns: Columns
    text_format: TextFormat
    missing: str
    seed: int
    say: Callable[[str], None]

    @property
    def single_label(self) -> str | None:
        return None if self.columns.has_class_lists else self.columns.label


def _settle(splits: Mapping[str, Split], reading: _Reading) -> tuple[dict[str, Split], list[str]]:
    """The splits with their columns in plain types and without the rows that are dropped; and what is wrong."""
    settled: dict[str, Split] = {}
    problems: list[str] = []
    for name, split in splits.items():
        plain = with_plain_columns(split, reading.columns)
        try:
            settled[name], told = settle_missing(plain, Holes.of(reading.columns), missing=reading.missing)
        except UserError as error:
            problems += error.problems
            continue
        for line in told:
            reading.say(f"{name}: {line}")
    return settled, problems


def _is_hub_spec(spec: Any) -> bool:
    """Whether a spec beside a hub data set's name means one of its splits."""
    return isinstance(spec, str) and not is_file_spec(spec, hub=True)


def given_split(given: NamedRows | datasets.Dataset, *, name: str, columns: Columns) -> Split:
    """Rows that were made in Python. Raises UserError where there is none."""
    rows, names = given if isinstance(given, NamedRows) else (given, given.column_names)
    if not len(rows):
        raise UserError(f"data.{name}: no rows were given")
    return _fingerprinted(Split(name, rows, Origins.of(f"{name} row", len(rows)), "", names), columns)


def _fingerprinted(split: Split, columns: Columns) -> Split:
    """Of rows that no file holds: by what is in the columns that are read."""
    plain = with_plain_columns(split, columns)
    return replace(plain, fingerprint=_digest_rows(plain.rows))


def call_rows_function(spec: str, *, split: str, seed: int) -> Any:
    """What the user's function at a dotted path returns, as it is. Raises UserError where there is none."""
    return _bind_seed(locate(spec, place=f"data.{split}"), place=f"data.{split}={spec}", seed=seed)()


def _read_local_splits(
    specs: Mapping[str, Any], *, name: str | None, reading: _Reading
) -> tuple[dict[str, Split], dict[str, str], list[str]]:
    """-> the splits that do not come from the hub data set `name`, the specs of those that do, and what is wrong."""
    splits: dict[str, Split] = {}
    hub_specs: dict[str, str] = {}
    problems: list[str] = []
    for split, spec in specs.items():
        if spec is None:
            continue
        try:
            if name is not None and _is_hub_spec(spec):
                hub_specs[split] = spec
            else:
                splits[split] = _read_local(spec, split=split, reading=reading)
        except UserError as error:
            problems += error.problems
    return splits, hub_specs, problems


def _limit_splits(splits: Mapping[str, Split], limit: Mapping[str, int | None], *, seed: int) -> dict[str, Split]:
    """Samples of those that have a limit, in the order of `_SPLITS`."""
    limited = {}
    for name in sorted(splits, key=lambda name: _SPLITS.index(parse_set(name)[0])):
        most = limit.get(parse_set(name)[0])
        limited[name] = splits[name] if most is None else limit_rows(splits[name], limit=most, seed=seed)
    return limited


def _find_stream_files(spec: Any) -> list[str]:
    if isinstance(spec, NamedRows):
        raise UserError("data.streaming=true: rows that were made in Python are not streamed; set data.streaming=false")
    specs = _check_spec(spec, key="data.train")
    if isinstance(spec, str) and not is_file_spec(spec, hub=False):
        raise UserError(
            f"data.train={spec}: only files and hub splits are streamed, and this is neither; "
            "write the rows to a file, or set data.streaming=false"
        )
    return find_files(specs, key="data.train")


def _check_spec(spec: Any, *, key: str) -> list[str]:
    """The files, globs or names that a spec consists of."""
    specs = [spec] if isinstance(spec, str) else list(spec) if isinstance(spec, Iterable) else [spec]
    if not specs or not all(isinstance(one, str) and one for one in specs):
        raise UserError(f"{key}={spec!r}: it must be a text, or a list of files and globs that is not empty")
    return specs


def _read_local(spec: Any, *, split: str, reading: _Reading) -> Split:
    """The rows of files or of a dotted path, or rows that were given. Raises UserError."""
    if isinstance(spec, (datasets.Dataset, NamedRows)):
        return given_split(spec, name=split, columns=reading.columns)
    key = f"data.{split}"
    specs = _check_spec(spec, key=key)
    if not isinstance(spec, str) or is_file_spec(spec, hub=False):
        files = find_files(specs, key=key)
        return read_files(files, split=split, columns=reading.columns, text_format=reading.text_format)
    if "." not in spec:
        raise UserError(
            f"{key}={spec}: neither a file ({', '.join(EXTENSIONS)}) nor a dotted path such as my_lab.data.train; "
            "for a split of a hub data set give data.name too"
        )
    return _call_function(locate(spec, place=key), dotted=spec, split=split, reading=reading)


def _call_function(found: object, *, dotted: str, split: str, reading: _Reading) -> Split:
    """The rows that a function of the user returns."""
    place = f"data.{split}={dotted}"
    returned = _bind_seed(found, place=place, seed=reading.seed)()
    rows, names = _as_dataset(returned, place=place, dotted=dotted, wanted=reading.columns.all)
    if not len(rows):
        raise UserError(f"{place} returned no rows")
    return _fingerprinted(Split(split, rows, Origins.of(f"{dotted} row", len(rows)), "", names), reading.columns)


def _bind_seed(found: object, *, place: str, seed: int) -> Callable[[], Any]:
    if not callable(found):
        raise UserError(f"{place} is no function but a {type(found).__name__}; it must be a function that returns rows")
    parameters = inspect.signature(found).parameters.values()
    required = [
        parameter.name
        for parameter in parameters
        if parameter.default is parameter.empty
        and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        and parameter.name != "seed"
    ]
    if required:
        raise UserError(f"{place} needs {', '.join(required)}; it may have no required parameter but seed")
    takes_seed = any(parameter.name == "seed" for parameter in parameters)
    return (lambda: found(seed=seed)) if takes_seed else found


def _as_dataset(returned: Any, *, place: str, dotted: str, wanted: Collection[str]) -> NamedRows:
    if isinstance(returned, datasets.Dataset) or hasattr(returned, "__arrow_c_stream__"):
        return as_dataset(returned, place=place, columns=wanted)
    is_rows = isinstance(returned, Iterable) and not isinstance(
        returned, (str, bytes, Mapping, datasets.IterableDataset)
    )
    if not is_rows:
        raise UserError(
            f"{place} returned a {type(returned).__name__}; it must return a datasets.Dataset or an iterable of dicts"
        )
    rows = list(returned)
    if not rows:
        raise UserError(f"{place} returned no rows")
    try:
        return read_dicts(rows, place=f"{dotted}", columns=wanted)
    except UserError as error:
        raise UserError([f"{place}: {problem}" for problem in error.problems]) from error


def _digest_rows(rows: datasets.Dataset) -> str:
    """A hash of the content: a function's name says nothing about what it returns."""
    batches = rows.with_format("arrow").iter(batch_size=_HASHED_ROWS)
    return digest(str(rows.features).encode(), *(_serialise(batch) for batch in batches))


def _serialise(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table.combine_chunks())
    return bytes(sink.getvalue())
