"""The door through which all data comes in: hub data sets, files, and functions of the user's own."""

import inspect
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
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
from trainer_loop.data.mixed_stream import StreamedSource
from trainer_loop.data.mixture import join_sources, read_sources
from trainer_loop.data.prepare import cut_validation, limit_splits
from trainer_loop.data.progress import progress_bars
from trainer_loop.data.shards import ShardedSplit
from trainer_loop.data.split import Origins, Split
from trainer_loop.data.stream_head import read_head
from trainer_loop.data.text_format import DEFAULT_FORMAT, TextFormat
from trainer_loop.data.wording import enumerate_names
from trainer_loop.errors import Problems, UserError, refuse, under

_SPLITS = ("train", "validation", "test")
_HASHED_ROWS = 10_000  # at a time

Say = Callable[[str], None]


@dataclass(frozen=True)
class DataSection:
    """The config keys of the section `data`, and the seed.

    A split is named by
      - the name of a split of the hub data set `name`, or a slice of one (`train[:1000]`);
      - a file, a glob, or a list of them: whatever has a known extension, a slash or a `*` or `?`;
      - where `name` is None, else, the dotted path of a function without required parameters (`seed` is handed in
        where it has one) that returns a datasets.Dataset or an iterable of dicts;
      - rows that were made in Python, see `as_dataset`.
    validation, test: one of these, or several by name; those are the splits `validation.matched` and the like.
    files: how text files are written. missing: see `settle_missing`. columns: bound to the task, see `bind_columns`.
    `validation_fraction` of the training rows become the validation split; after that `limit` samples each split.
    """

    train: Any
    columns: Columns
    seed: int
    validation: Any = None
    test: Any = None
    name: str | None = None
    config: str | None = None
    validation_fraction: float | None = None
    streaming: bool = False
    shuffle_rows: int = 1
    files: TextFormat = DEFAULT_FORMAT
    missing: str = "refuse"
    limit: Mapping[str, int | None] = field(default_factory=dict)
    label_names: Any = None
    max_length: int = 512
    num_workers: int | str = 0  # changes how rows are loaded, not which
    cache_dir: str | None = None
    mixture: Sequence[Mapping[str, Any]] = ()
    weight: str | None = None
    sampling: str = "shuffle"  # changes the order of the rows, not which are read
    split_by: str | None = None

    @property
    def train_columns(self) -> Columns:
        """The columns that are read of the training rows."""
        return self.columns.beside(weight=self.weight, group=self.split_by)

    def columns_of(self, split: str) -> Columns:
        return self.train_columns if split == "train" else self.columns


def read_splits(
    section: DataSection, *, show_progress: bool = False, say: Say = lambda line: None
) -> tuple[dict[str, Split], ShardedSplit | None, list[str]]:
    """Every split that was asked for, as raw rows -> those that could be read; train where it is streamed; problems.

    A training split that is streamed is a hub split or files, and only its first rows are read. A mixture that is
    streamed is not read here, see `open_sources`. `say` is told what was dropped, in lines for a person.
    """
    name, train, fraction = section.name, section.train, section.validation_fraction
    specs = {**name_sets("validation", section.validation), **name_sets("test", section.test)}
    problems = Problems()
    if not section.streaming:
        specs = ({} if section.mixture else {"train": train}) | specs
        problems.lines += _check_keys(section)
    on_hub = {split: spec for split, spec in specs.items() if name is not None and _is_hub_spec(spec)}
    streamed: ShardedSplit | None = None
    found, wrong = dict[str, Split](), list[str]()
    with progress_bars(shown=show_progress):
        read = {
            split: problems.collect("", _read_local, spec, split, section)
            for split, spec in specs.items()
            if spec is not None and split not in on_hub
        }
        streams_train = section.streaming and not section.mixture
        if streams_train and name is not None and _is_hub_spec(train):
            streamed, found, wrong = stream_hub_splits(
                name, config=section.config, train=train, specs=on_hub, columns=section.train_columns.all
            )
        else:
            if streams_train:
                streamed = problems.collect("", _open_stream, section)
            if name is not None and on_hub:
                found, wrong = load_hub_splits(name, config=section.config, specs=on_hub)
    problems.lines += wrong
    read_whole = {split: rows for split, rows in read.items() if rows is not None} | found
    splits = _settle(read_whole, section, problems, say)
    if section.mixture and not section.streaming:
        mixed = problems.collect("", _read_mixture, section, say)
        splits |= {} if mixed is None else {"train": mixed}
    if not section.streaming and fraction is not None and 0 < fraction < 1 and section.validation is None:
        _cut_validation(splits, fraction, section, problems)
    in_order = sorted(splits, key=lambda split: _SPLITS.index(parse_set(split)[0]))
    splits = limit_splits({split: splits[split] for split in in_order}, section.limit, seed=section.seed)
    if streamed is not None:
        head = problems.collect("", read_head, streamed, columns=section.train_columns, missing=section.missing)
        splits = ({} if head is None else {"train": head}) | splits
    return splits, streamed, problems.lines


def _read_mixture(section: DataSection, say: Say) -> Split:
    """The training rows of several sources, joined."""

    def read(entry: Mapping[str, Any], columns: Columns) -> Split:
        return _read_source(section, entry, columns, say)[0]

    return join_sources(*read_sources(section.mixture, section.train_columns, read), section.train_columns)


def open_sources(section: DataSection) -> list[StreamedSource]:
    """The sources of a mixture that is streamed, of which the first rows are read. Raises UserError."""

    def read(entry: Mapping[str, Any], columns: Columns) -> StreamedSource:
        head, split = _read_source(section, entry, columns)
        assert split is not None, "it is streamed"
        loss_weight = float(entry.get("loss_weight", 1))
        return StreamedSource(str(entry["name"]), float(entry["weight"]), loss_weight, split, head, columns)

    return list(read_sources(section.mixture, section.train_columns, read)[0].values())


def _read_source(
    section: DataSection, entry: Mapping[str, Any], columns: Columns, say: Say = lambda line: None
) -> tuple[Split, ShardedSplit | None]:
    """The training rows of a source, read as those of a run of its own; see `read_splits`. Raises UserError."""
    alone = DataSection(
        train=entry["train"],
        columns=columns,
        seed=section.seed,
        name=entry.get("dataset"),
        config=entry.get("config"),
        streaming=section.streaming,
        files=section.files,
        missing=section.missing,
    )
    splits, streamed, problems = read_splits(alone, say=lambda line: say(f"{entry['name']}: {line}"))
    refuse(problems)
    train = splits["train"]
    there = list(train.columns or train.rows.column_names)
    if missing := [f"{name!r} for {own}" for own, name in columns.names.items() if name not in there]:
        told = f"no column {', '.join(missing)}; it has {enumerate_names(there)}: set its columns"
        raise UserError(f"data.train: {told}")
    return train, streamed


def _check_keys(section: DataSection) -> list[str]:
    problems: list[str] = []
    fraction = section.validation_fraction
    if section.train is None and not section.mixture:
        problems.append("data.train=null: a split, a file or a dotted path is needed")
    if fraction is not None and section.validation is not None:
        problems.append("data.validation and data.validation_fraction are both given; set one to null")
    if fraction is not None and not 0 < fraction < 1:
        problems.append(f"data.validation_fraction={fraction}: it must lie between 0 and 1; null for none")
    return problems


def _settle(splits: Mapping[str, Split], section: DataSection, problems: Problems, say: Say) -> dict[str, Split]:
    """The splits with their columns in plain types and without the rows that are dropped."""
    settled: dict[str, Split] = {}
    for name, split in splits.items():
        columns = section.columns_of(name)
        plain = with_plain_columns(split, columns)
        made = problems.collect("", settle_missing, plain, Holes.of(columns), missing=section.missing)
        if made is not None:
            settled[name], told = made
            for line in told:
                say(f"{name}: {line}")
    return settled


def _cut_validation(splits: dict[str, Split], fraction: float, section: DataSection, problems: Problems) -> None:
    if "train" not in splits:
        return
    if len(splits["train"].rows) < 2:
        problems.lines.append("data.validation_fraction: data.train has 1 row, which cannot be divided")
        return
    train, group = splits["train"], section.split_by
    if group is not None and group not in train.rows.column_names:
        return  # the check of the rows tells
    splits["train"], splits["validation"] = cut_validation(
        train, fraction=fraction, label=section.columns.single_label, group=group, seed=section.seed
    )


def _is_hub_spec(spec: Any) -> bool:
    """Whether a spec beside a hub data set's name means one of its splits."""
    return isinstance(spec, str) and not is_file_spec(spec, hub=True)


def given_split(given: NamedRows | datasets.Dataset, *, name: str, columns: Columns) -> Split:
    """Rows that were made in Python. Raises UserError where there is none."""
    rows, names = given if isinstance(given, NamedRows) else (given, given.column_names)
    if not len(rows):
        raise UserError(f"data.{name}: no rows were given")
    return _make_split(name, NamedRows(rows, names), place=name, columns=columns)


def _make_split(name: str, rows: NamedRows, *, place: str, columns: Columns) -> Split:
    """Of rows that no file holds; the fingerprint is of what is in the columns that are read."""
    read, names = rows
    split = with_plain_columns(Split(name, read, Origins.of(f"{place} row", len(read)), "", names), columns)
    return replace(split, fingerprint=_digest_rows(split.rows))


def call_rows_function(spec: str, *, split: str, seed: int) -> Any:
    """What the user's function at a dotted path returns, as it is. Raises UserError where there is none."""
    found: Any = locate(spec, place=f"data.{split}")
    place = f"data.{split}={spec}"
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
    return found(seed=seed) if takes_seed else found()


def _open_stream(section: DataSection) -> ShardedSplit:
    spec = section.train
    if isinstance(spec, NamedRows):
        raise UserError("data.streaming=true: rows that were made in Python are not streamed; set data.streaming=false")
    specs = _check_spec(spec, key="data.train")
    if isinstance(spec, str) and not is_file_spec(spec, hub=False):
        raise UserError(
            f"data.train={spec}: only files and hub splits are streamed, and this is neither; "
            "write the rows to a file, or set data.streaming=false"
        )
    files = find_files(specs, key="data.train")
    return open_files(files, columns=section.train_columns.all, text_format=section.files)


def _check_spec(spec: Any, *, key: str) -> list[str]:
    """The files, globs or names that a spec consists of."""
    specs = [spec] if isinstance(spec, str) else list(spec) if isinstance(spec, Iterable) else [spec]
    if not specs or not all(isinstance(one, str) and one for one in specs):
        raise UserError(f"{key}={spec!r}: it must be a text, or a list of files and globs that is not empty")
    return specs


def _read_local(spec: Any, split: str, section: DataSection) -> Split:
    """The rows of files or of a dotted path, or rows that were given. Raises UserError."""
    columns = section.columns_of(split)
    if isinstance(spec, (datasets.Dataset, NamedRows)):
        return given_split(spec, name=split, columns=columns)
    key = f"data.{split}"
    specs = _check_spec(spec, key=key)
    if not isinstance(spec, str) or is_file_spec(spec, hub=False):
        files = find_files(specs, key=key)
        return read_files(files, split=split, columns=columns, text_format=section.files)
    if "." not in spec:
        raise UserError(
            f"{key}={spec}: neither a file ({', '.join(EXTENSIONS)}) nor a dotted path such as my_lab.data.train; "
            "for a split of a hub data set give data.name too"
        )
    place = f"{key}={spec}"
    returned = call_rows_function(spec, split=split, seed=section.seed)
    rows = _as_dataset(returned, place=place, dotted=spec, wanted=columns.all)
    if not len(rows.rows):
        raise UserError(f"{place} returned no rows")
    return _make_split(split, rows, place=spec, columns=columns)


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
    with under(f"{place}: "):
        return read_dicts(rows, place=dotted, columns=wanted)


def _digest_rows(rows: datasets.Dataset) -> str:
    """A hash of the content: a function's name says nothing about what it returns."""
    batches = rows.with_format("arrow").iter(batch_size=_HASHED_ROWS)
    return digest(str(rows.features).encode(), *(_serialise(batch) for batch in batches))


def _serialise(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table.combine_chunks())
    return bytes(sink.getvalue())
