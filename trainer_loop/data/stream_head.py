"""The first rows of a stream as a split, so that they are judged and described like any other before training."""

import dataclasses
from collections.abc import Collection, Sequence

import datasets
import numpy as np
import pyarrow as pa

from trainer_loop.data.arrow_types import as_rows, make_dataset
from trainer_loop.data.files import NamedRows, join_rows
from trainer_loop.data.missing import Holes, has_classes, settle_missing, with_plain_columns
from trainer_loop.data.shards import Shard, ShardedSplit, Values, read_on
from trainer_loop.data.split import Origins, Split
from trainer_loop.data.text_files import infer_label, make_table
from trainer_loop.errors import UserError

HEAD_ROWS = 1000
_MOST_ROWS_READ = 100_000  # of a shard, for a row without holes

_Numbered = list[tuple[Values, int]]  # rows with their numbers in the shard


def read_head(split: ShardedSplit, *, holes: Holes, missing: str) -> Split:
    """The first rows of a training split; of files, at least one row of each, so that one that lacks a column is found.

    Of rows with holes none is dropped here: the more are read. Raises UserError.
    """
    problems: list[str] = []
    read: list[tuple[Shard, _Numbered]] = []
    num_rows = 0
    for shard in split.shards:
        if num_rows >= HEAD_ROWS and not split.is_local:
            break
        try:
            rows, kept = _read_first(shard, max(HEAD_ROWS - num_rows, 1), holes if missing == "drop" else None)
        except UserError as error:
            problems += error.problems
            continue
        if rows:
            read.append((shard, rows))
        elif split.is_local:
            problems.append(f"{shard.name} has no rows")
        num_rows += kept
    if not read and not problems:
        problems.append(f"data.train: {split.title} has no rows")
    if problems:
        raise UserError(problems)
    return _join(read, split, holes, missing)


def _read_first(shard: Shard, most: int, holes: Holes | None) -> tuple[_Numbered, int]:
    """As many rows as there are up to `most` without holes, and how many those are."""
    rows: _Numbered = []
    kept = 0
    for values, number in read_on(shard, shard.read(None)):
        rows.append((values, number))
        kept += holes is None or not holes.columns_of(values, are_classes=has_classes(shard, holes.label))
        if kept == most or len(rows) == _MOST_ROWS_READ:
            break
    return rows, kept


def _join(read: Sequence[tuple[Shard, _Numbered]], split: ShardedSplit, holes: Holes, missing: str) -> Split:
    label = holes.label
    wanted = [*holes.texts, *([label] if label is not None else [])]
    tables = [_make_table(shard, rows, wanted) for shard, rows in read]
    if label is not None:
        tables = _type_labels(tables, [shard.has_fields for shard, _ in read], label)
    files = [shard.name for shard, _ in read]
    parts = []
    for (shard, rows), table in zip(read, tables, strict=True):
        told = dict.fromkeys(name for values, _ in rows for name in values)
        names = list(told if shard.names is None else shard.names())
        made = as_rows(table) if table.column_names else make_dataset({}, names, len(rows))
        parts.append(NamedRows(made, names))
    joined, names = join_rows(parts, files=files, contents=files, wanted=wanted)
    origins = Origins.join([_find_places(shard, numbered) for shard, numbered in read])
    head = with_plain_columns(Split("train", joined, origins, split.fingerprint, names), texts=holes.texts, label=label)
    return dataclasses.replace(settle_missing(head, holes, missing=missing)[0], fingerprint=split.fingerprint)


def _make_table(shard: Shard, numbered: _Numbered, wanted: Collection[str]) -> pa.Table:
    rows = [{name: values[name] for name in wanted if name in values} for values, _ in numbered]
    if shard.features is None:
        return make_table(rows, wanted=wanted, place=lambda row: shard.place(numbered[row][1]))[0]
    known = datasets.Features({name: shard.features[name] for name in wanted if name in shard.features})
    return pa.Table.from_pylist(rows, schema=known.arrow_schema)


def _type_labels(tables: Sequence[pa.Table], have_fields: Sequence[bool], label: str) -> list[pa.Table]:
    """The labels of .csv and .tsv files as what all of them stand for: integers, true/false or texts."""
    chosen = [number for number, table in enumerate(tables) if have_fields[number] and label in table.column_names]
    typed = infer_label([value for number in chosen for value in tables[number][label].to_pylist()])
    made = list(tables)
    start = 0
    for number in chosen:
        table = tables[number]
        column = typed.slice(start, len(table))
        made[number] = table.set_column(table.column_names.index(label), label, column)
        start += len(table)
    return made


def _find_places(shard: Shard, numbered: _Numbered) -> Origins:
    return Origins.of(f"{shard.name} {shard.noun}", np.array([number for _, number in numbered], dtype=np.int64))
