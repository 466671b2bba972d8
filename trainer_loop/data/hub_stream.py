"""Data sets of the Hugging Face hub that are streamed: nothing is downloaded but the rows that are read."""

from collections.abc import Collection, Iterator, Mapping
from functools import partial

import datasets
import pyarrow as pa

from trainer_loop.data.fingerprint import digest
from trainer_loop.data.hub import SLICE, explain_missing, reach_hub
from trainer_loop.data.shards import BATCH_ROWS, Batch, Mark, Shard, ShardedSplit
from trainer_loop.data.split import Origins, Split
from trainer_loop.errors import UserError, in_one_line


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
        with reach_hub(name, config):
            builder = datasets.load_dataset_builder(name, config)
            present: Mapping[str, datasets.IterableDataset] = builder.as_streaming_dataset()
            for ours, theirs in ({"train": train} | dict(specs)).items():
                if SLICE.search(theirs):
                    problems.append(f"data.{ours}={theirs}: with data.streaming it is a whole split; see data.limit")
                elif theirs not in present:
                    problems.append(explain_missing(name, ours, theirs, present))
                elif ours == "train":
                    split = _open(f"{name}[{theirs}]", builder, present[theirs], theirs, columns)
                else:
                    others[ours] = _read(f"{name}[{theirs}]", builder, present[theirs], ours)
    except UserError as error:
        problems += error.problems
    return split, others, problems


def _open(
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


def _read(title: str, builder: datasets.DatasetBuilder, rows: datasets.IterableDataset, ours: str) -> Split:
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
