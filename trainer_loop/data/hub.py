"""Data sets of the Hugging Face hub, or of its local cache.

Without streaming, all splits are downloaded. With streaming, only the rows that are read are downloaded.
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
    """Load splits of a data set from the hub or its cache.

    Args:
        name: Name of the data set.
        config: Its configuration; None: the default.
        specs: Name of a split in the run -> its name on the hub, or a slice such as `train[:1000]`.

    Returns:
        The splits that could be loaded, and problems.
    """
    splits: dict[str, Split] = {}
    problems = Problems()
    try:
        with _reach_hub(name, config):
            present = datasets.load_dataset(name, config)
            for split_name, hub_split in specs.items():
                split = problems.collect("", _load_split, name, config, split_name, hub_split, present)
                splits |= {} if split is None else {split_name: split}
    except UserError as error:
        problems.lines += error.problems
    return splits, problems.lines


def _load_split(
    name: str, config: str | None, split: str, hub_split: str, present: Mapping[str, datasets.Dataset]
) -> Split:
    rows = present.get(hub_split)
    if rows is None and _SLICE.search(hub_split):
        try:
            rows = datasets.load_dataset(name, config, split=hub_split)
        except (ValueError, DatasetsError) as error:
            raise UserError(f"data.{split}={hub_split}: {in_one_line(error)}") from error
    if rows is None:
        raise UserError(_explain_missing(name, split, hub_split, present))
    if not len(rows):
        raise UserError(f"data.{split}={hub_split}: this split of {name} has no rows")
    # datasets derives the fingerprint from the revision of the files and the selected rows.
    fingerprint = digest(rows._fingerprint.encode())
    return Split(split, rows, Origins.of(f"{name}[{hub_split}] row", len(rows)), fingerprint)


def stream_hub_splits(
    name: str, *, config: str | None, train: str, specs: Mapping[str, str], columns: Collection[str] | None
) -> tuple[ShardedSplit | None, dict[str, Split], list[str]]:
    """Open splits of a hub data set as streams.

    Args:
        name: Name of the data set.
        config: Its configuration; None: the default.
        train: Name of the training split on the hub.
        specs: Name of each other split in the run -> its name on the hub. They are streamed into memory, because
            datasets would download all splits to load one.
        columns: Columns of the training rows that are read; None: all.

    Returns:
        The training split as a stream, the other splits in memory, and problems.
    """
    train_split: ShardedSplit | None = None
    others: dict[str, Split] = {}
    problems: list[str] = []
    try:
        with _reach_hub(name, config):
            builder = datasets.load_dataset_builder(name, config)
            present: Mapping[str, datasets.IterableDataset] = builder.as_streaming_dataset()
            for split_name, hub_split in ({"train": train} | dict(specs)).items():
                if _SLICE.search(hub_split):
                    problems.append(
                        f"data.{split_name}={hub_split}: with data.streaming it is a whole split; see data.limit"
                    )
                elif hub_split not in present:
                    problems.append(_explain_missing(name, split_name, hub_split, present))
                elif split_name == "train":
                    train_split = _open_stream(f"{name}[{hub_split}]", builder, present[hub_split], hub_split, columns)
                else:
                    others[split_name] = _read_stream(f"{name}[{hub_split}]", builder, present[hub_split], split_name)
    except UserError as error:
        problems += error.problems
    return train_split, others, problems


@contextlib.contextmanager
def _reach_hub(name: str, config: str | None) -> Iterator[None]:
    """Use the cache inside the block if the hub does not answer, and convert errors.

    Raises:
        UserError: The data set is not available, or `name` is a local path.
    """
    if expand_home(name, place="data.name").exists():
        raise UserError(
            f"data.name={name} is a local path; use data.name=null and give its files, data.train={name}/..."
        )
    with offline_unless_reachable() as offline:
        try:
            yield
        except DatasetNotFoundError as error:
            message = f"data.name={name}: {in_one_line(error)}; check the name, or log in with `hf auth login`"
            raise UserError(message) from error
        except (OSError, ValueError, RuntimeError, DatasetsError) as error:
            message = f"data.name={name} data.config={config or 'null'}: {in_one_line(error)}"
            if offline is not None:
                message = _explain_offline(name, config, reason=offline, error=error)
            raise UserError(message) from error


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
    info = (builder.info.splits or {}).get(split)
    num_rows = info.num_examples if info is not None else None
    full_title = title if total == 1 else f"{title}, {total:,} shards"
    return ShardedSplit(shards, full_title, _digest(builder, title), num_rows or None, is_local=False)


def _read_stream(title: str, builder: datasets.DatasetBuilder, rows: datasets.IterableDataset, split: str) -> Split:
    tables = list(rows.with_format("arrow").iter(batch_size=BATCH_ROWS))
    if not tables:
        raise UserError(f"data.{split}: {title} has no rows")
    table = pa.concat_tables(tables, promote_options="permissive")
    dataset = datasets.Dataset(table, info=datasets.DatasetInfo(features=rows.features))
    return Split(split, dataset, Origins.of(f"{title} row", len(dataset)), _digest(builder, title))


def _digest(builder: datasets.DatasetBuilder, title: str) -> str:
    """Return a hash of the revision of the data set, its configuration and the split."""
    return digest(str(builder.hash).encode(), str(builder.config.name).encode(), title.encode())


def _read_shard(
    rows: datasets.IterableDataset, title: str, columns: Collection[str] | None, mark: Mark | None
) -> Iterator[Batch]:
    """Yield batches. Marks hold the state of the data set before a batch; a state for each row would be too slow."""
    rows = rows.with_format("arrow")
    row, state, num_used = (0, None, 0) if mark is None else (mark["row"], mark["batch"], mark["used"])
    if state is not None:
        rows.load_state_dict(state)
    try:
        for table in rows.iter(batch_size=BATCH_ROWS):
            present = [name for name in table.column_names if columns is None or name in columns]
            remaining = table.select(present).slice(num_used)
            ends = [(row + count, state, num_used + count) for count in range(1, len(remaining) + 1)]
            batch = remaining if rows.features is not None else remaining.to_pylist()
            yield Batch(batch, ends, ("row", "batch", "used"))
            row, state, num_used = row + len(remaining), rows.state_dict(), 0
    except Exception as error:  # libraries that read data sets raise errors of many types
        raise UserError(
            f"{title} cannot be read after row {row:,}: {in_one_line(error)}; "
            "started again, the same command goes on from its last checkpoint"
        ) from error


def _explain_missing(name: str, split: str, hub_split: str, present: Iterable[str]) -> str:
    available = f"{name} has {enumerate_some(list(present), at_most=10)}"
    return f"data.{split}={hub_split}: no such split; {available}{did_you_mean(hub_split, present)}"


def _explain_offline(name: str, config: str | None, *, reason: str, error: Exception) -> str:
    fill = f"datasets.load_dataset({name!r}{f', {config!r}' if config else ''})"
    # If the cache has another configuration of the data set, datasets names it.
    cached = f" ({in_one_line(error)})" if isinstance(error, ValueError) else ""
    return (
        f"data.name={name}: {reason} and the data set is not in the cache "
        f"{datasets.config.HF_DATASETS_CACHE}{cached}; use local files (data.name=null data.train=train.csv), or fill "
        f"the cache with {fill} where there is network"
    )
