"""The first rows of a stream as a split, so that they are judged and described like any other before training."""

import dataclasses
from collections.abc import Sequence

import pyarrow as pa

from trainer_loop.data.arrow_types import infer_label
from trainer_loop.data.columns import Columns
from trainer_loop.data.dataset_columns import make_dataset
from trainer_loop.data.files import join_files
from trainer_loop.data.missing import Holes, has_classes, settle_missing
from trainer_loop.data.plain_columns import join_values, with_plain_columns
from trainer_loop.data.shards import BATCH_ROWS, Batch, Shard, ShardedSplit, read_batches
from trainer_loop.data.split import Split
from trainer_loop.data.tables import WholeTable, join_batches
from trainer_loop.errors import Problems

HEAD_ROWS = 1000
_MOST_ROWS_READ = 100 * BATCH_ROWS  # of a shard, for a row without holes


def read_head(split: ShardedSplit, *, columns: Columns, missing: str) -> Split:
    """The first rows of a training split; of files, at least one row of each, so that one that lacks a column is found.

    Of rows with holes none is dropped here: the more are read. Raises UserError.
    """
    holes = Holes.of(columns)
    problems = Problems()
    read: list[tuple[Shard, list[Batch]]] = []
    num_rows = 0
    for shard in split.shards:
        if num_rows >= HEAD_ROWS and not split.is_local:
            break
        wanted = max(HEAD_ROWS - num_rows, 1)
        first = problems.collect("", _read_first, shard, wanted, columns, holes if missing == "drop" else None)
        if first is None:
            continue
        batches, kept = first
        if batches:
            read.append((shard, batches))
        elif split.is_local and not shard.is_filtered:
            problems.lines.append(f"{shard.name} has no rows")
        num_rows += kept
    if not read and not problems:
        is_filtered = any(shard.is_filtered for shard in split.shards)
        left = "no rows that data.filter keeps" if is_filtered else "no rows"
        problems.lines.append(f"data.train: {split.title} has {left}")
    problems.refuse()
    return _join(read, split, columns, missing)


def _read_first(shard: Shard, most: int, columns: Columns, holes: Holes | None) -> tuple[list[Batch], int]:
    """As many rows as there are up to `most` without holes, and how many those are."""
    read: list[Batch] = []
    num_rows = kept = 0
    are_classes = has_classes(shard.features, columns.single_label)
    for batch in read_batches(shard):
        for row, values in enumerate(batch.values()):
            if row in batch.faults:
                raise batch.faults[row]
            num_rows += 1
            values = join_values(values, columns.joined)
            kept += holes is None or not holes.columns_of(values, are_classes=are_classes)
            if kept == most or num_rows == _MOST_ROWS_READ:
                return [*read, batch.first(row + 1)], kept
        read.append(batch)
    return read, kept


def _join(read: Sequence[tuple[Shard, Sequence[Batch]]], split: ShardedSplit, columns: Columns, missing: str) -> Split:
    label, wanted = columns.label, columns.stored
    tables = [join_batches(shard, batches, columns=wanted).select(wanted) for shard, batches in read]
    arrays = [table.as_arrays(wanted=wanted, label=None) for table in tables]
    if label is not None:
        _type_labels(tables, arrays, label)
    parts = [
        Split(shard.name, make_dataset(made, table.names, len(table), table.metadata), table.origins, "", table.names)
        for (shard, _), table, made in zip(read, tables, arrays, strict=True)
    ]
    head = with_plain_columns(join_files("train", parts, wanted=wanted), columns)
    settled, _ = settle_missing(head, columns, missing=missing)
    return dataclasses.replace(settled, fingerprint=split.fingerprint)


def _type_labels(tables: Sequence[WholeTable], arrays: Sequence[dict[str, pa.Array]], label: str) -> None:
    """The labels of .csv and .tsv files as what all of them stand for: integers, true/false or texts."""
    chosen = [made for table, made in zip(tables, arrays, strict=True) if table.has_fields and label in made]
    if not all(
        pa.types.is_string(made[label].type) or pa.types.is_null(made[label].type) for made in chosen
    ):  # data.map
        return
    typed = infer_label([value for made in chosen for value in made[label].to_pylist()])
    start = 0
    for made in chosen:
        count = len(made[label])
        made[label] = typed.slice(start, count)
        start += count
