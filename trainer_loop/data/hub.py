"""Data sets of the Hugging Face hub, or of its cache on this machine.

In memory all their splits are downloaded. Of those that are streamed nothing is but the rows that are read.
"""

import contextlib
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from functools import partial

import datasets
import pyarrow as pa
from datasets.exceptions import DatasetNotFoundError, DatasetsError

from trainer_loop.data.fingerprint import digest
from trainer_loop.data.origins import Origins
from trainer_loop.data.shards import BATCH_ROWS, Batch, Mark, Shard, ShardedSplit
from trainer_loop.data.split import Split
from trainer_loop.data.wording import did_you_mean, enumerate_some
from trainer_loop.errors import Problems, UserError, in_one_line
from trainer_loop.runtime.host import expand_home
from trainer_loop.runtime.hub import offline_unless_reachable

_SLICE = re.compile(r"[\[+]")  # train[:1000], train+test


def load_hub_splits(name: str, *, config: str | None, specs: Mapping[str, str]) -> tuple[dict[str, Split], list[str]]:
    """Splits of a hub data set, from the hub or its cache -> the splits that are there, and what is wrong.

    specs: our name of a split -> its name there, or a slice of it such as `train[:1000]`.
    """
    splits: dict[str, Split] = {}
    problems = Problems()
    try:
        with _reach_hub(name, config):
            present = datasets.load_dataset(name, config)
            for ours, theirs in specs.items():
                split = problems.collect("", _load_split, name, config, ours, theirs, present)
                splits |= {} if split is None else {ours: split}
    except UserError as error:
        problems.lines += error.problems
    return splits, problems.lines


def _load_split(
    name: str, config: str | None, ours: str, theirs: str, present: Mapping[str, datasets.Dataset]
) -> Split:
    rows = present.get(theirs)
    if rows is None and _SLICE.search(theirs):
        try:
            rows = datasets.load_dataset(name, config, split=theirs)
        except (ValueError, DatasetsError) as error:
            raise UserError(f"data.{ours}={theirs}: {in_one_line(error)}") from error
    if rows is None:
        raise UserError(_explain_missing(name, ours, theirs, present))
    if not len(rows):
        raise UserError(f"data.{ours}={theirs}: this split of {name} has no rows")
    # datasets derives it from the files' revision and the chosen rows.
    fingerprint = digest(rows._fingerprint.encode())
    return Split(ours, rows, Origins.of(f"{name}[{theirs}] row", len(rows)), fingerprint)


def stream_hub_splits(
    name: str, *, config: str | None, train: str, specs: Mapping[str, str], columns: Collection[str] | None
) -> tuple[ShardedSplit | None, dict[str, Split], list[str]]:
    """Splits of a hub data set -> the one to train on, the others read into memory, and what is wrong.

    train: its name there. specs: our names of the others -> their names there; they are streamed once, because
    datasets would download all splits to give one of them. columns: those that train is read for; None: all.
    """
    split: ShardedSplit | None = None
    others: dict[str, Split] = {}
    problems: list[str] = []
    try:
        with _reach_hub(name, config):
            builder = datasets.load_dataset_builder(name, config)
            present: Mapping[str, datasets.IterableDataset] = builder.as_streaming_dataset()
            for ours, theirs in ({"train": train} | dict(specs)).items():
                if _SLICE.search(theirs):
                    problems.append(f"data.{ours}={theirs}: with data.streaming it is a whole split; see data.limit")
                elif theirs not in present:
                    problems.append(_explain_missing(name, ours, theirs, present))
                elif ours == "train":
                    split = _open_stream(f"{name}[{theirs}]", builder, present[theirs], theirs, columns)
                else:
                    others[ours] = _read_stream(f"{name}[{theirs}]", builder, present[theirs], ours)
    except UserError as error:
        problems += error.problems
    return split, others, problems


@contextlib.contextmanager
def _reach_hub(name: str, config: str | None) -> Iterator[None]:
    """Inside, a data set is asked for, from the cache where the hub does not answer.

    Raises UserError where it is not to be had, or is none of the hub's.
    """
    if expand_home(name, place="data.name").exists():
        raise UserError(
            f"data.name={name} is a local path; use data.name=null and give its files, data.train={name}/..."
        )
    with offline_unless_reachable() as offline:
        try:
            yield
        except DatasetNotFoundError as error:
            told = f"data.name={name}: {in_one_line(error)}; check the name, or log in with `hf auth login`"
            raise UserError(told) from error
        except (OSError, ValueError, RuntimeError, DatasetsError) as error:
            told = f"data.name={name} data.config={config or 'null'}: {in_one_line(error)}"
            if offline is not None:
                told = _explain_offline(name, config, reason=offline, error=error)
            raise UserError(told) from error


def _open_stream(
    title: str,
    builder: datasets.DatasetBuilder,
    rows: datasets.IterableDataset,
    split: str,
    columns: Collection[str] | None,
) -> ShardedSplit:
    total = rows.num_shards
    shards = [
        Shard(
            title,
            f"shard {index + 1} of {total}, row" if total > 1 else "row",
            partial(_read_shard, rows.shard(num_shards=total, index=index), title, columns),
            features=rows.features,
            names=None if rows.features is None else partial(list, rows.features),
        )
        for index in range(total)
    ]
    described = (builder.info.splits or {}).get(split)
    num_rows = described.num_examples if described is not None else None
    shown = title if total == 1 else f"{title}, {total:,} shards"
    return ShardedSplit(shards, shown, _digest(builder, title), num_rows or None, is_local=False)


def _read_stream(title: str, builder: datasets.DatasetBuilder, rows: datasets.IterableDataset, ours: str) -> Split:
    tables = list(rows.with_format("arrow").iter(batch_size=BATCH_ROWS))
    if not tables:
        raise UserError(f"data.{ours}: {title} has no rows")
    table = pa.concat_tables(tables, promote_options="permissive")
    read = datasets.Dataset(table, info=datasets.DatasetInfo(features=rows.features))
    return Split(ours, read, Origins.of(f"{title} row", len(read)), _digest(builder, title))


def _digest(builder: datasets.DatasetBuilder, title: str) -> str:
    """Of the revision of the data set, its configuration and the split."""
    return digest(str(builder.hash).encode(), str(builder.config.name).encode(), title.encode())


def _read_shard(
    rows: datasets.IterableDataset, title: str, columns: Collection[str] | None, mark: Mark | None
) -> Iterator[Batch]:
    """The data set tells its state between batches only: at every row that would cost more than the row."""
    rows = rows.with_format("arrow")
    row, state, used = (0, None, 0) if mark is None else (mark["row"], mark["batch"], mark["used"])
    if state is not None:
        rows.load_state_dict(state)
    try:
        for table in rows.iter(batch_size=BATCH_ROWS):
            wanted = [name for name in table.column_names if columns is None or name in columns]
            rest = table.select(wanted).slice(used)
            ends = [(row + count, state, used + count) for count in range(1, len(rest) + 1)]
            read = rest if rows.features is not None else rest.to_pylist()
            yield Batch(read, ends, ("row", "batch", "used"))
            row, state, used = row + len(rest), rows.state_dict(), 0
    except Exception as error:  # whatever the library behind the data set raises
        raise UserError(
            f"{title} cannot be read after row {row:,}: {in_one_line(error)}; "
            "started again, the same command goes on from its last checkpoint"
        ) from error


def _explain_missing(name: str, ours: str, theirs: str, present: Iterable[str]) -> str:
    there = f"{name} has {enumerate_some(list(present), at_most=10)}"
    return f"data.{ours}={theirs}: no such split; {there}{did_you_mean(theirs, present)}"


def _explain_offline(name: str, config: str | None, *, reason: str, error: Exception) -> str:
    fill = f"datasets.load_dataset({name!r}{f', {config!r}' if config else ''})"
    # Where the cache holds another configuration of it, datasets says which.
    cached = f" ({in_one_line(error)})" if isinstance(error, ValueError) else ""
    return (
        f"data.name={name}: {reason} and the data set is not in the cache "
        f"{datasets.config.HF_DATASETS_CACHE}{cached}; use local files (data.name=null data.train=train.csv), or fill "
        f"the cache with {fill} where there is network"
    )
