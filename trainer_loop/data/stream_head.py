"""The first rows of a stream as a split, so that they are judged and described like any other before training."""

from collections.abc import Collection, Sequence
from itertools import islice

import datasets
import numpy as np
import pyarrow as pa

from trainer_loop.data.files import join_rows
from trainer_loop.data.shards import Shard, ShardedSplit, Values, read_on
from trainer_loop.data.split import Places, Split
from trainer_loop.data.text_files import infer_label, make_table
from trainer_loop.errors import UserError

HEAD_ROWS = 1000

_Numbered = list[tuple[Values, int]]  # rows with their numbers in the shard


def read_head(split: ShardedSplit, *, texts: Collection[str], label: str | None) -> Split:
    """The first rows of a training split; of files, at least one row of each, so that one that lacks a column is found.

    Columns other than the texts and the label are there by name and empty. Raises UserError.
    """
    problems: list[str] = []
    read: list[tuple[Shard, _Numbered]] = []
    num_rows = 0
    for shard in split.shards:
        if num_rows >= HEAD_ROWS and not split.is_local:
            break
        try:
            rows = list(islice(read_on(shard, shard.read(None)), max(HEAD_ROWS - num_rows, 1)))
        except UserError as error:
            problems += error.problems
            continue
        if rows:
            read.append((shard, rows))
        elif split.is_local:
            problems.append(f"{shard.name} has no rows")
        num_rows += len(rows)
    if not read and not problems:
        problems.append(f"data.train: {split.title} has no rows")
    if problems:
        raise UserError(problems)
    wanted = [*texts, *([label] if label is not None else [])]
    tables = [_make_table(shard, rows, wanted) for shard, rows in read]
    if label is not None:
        tables = _type_labels(tables, [shard.has_fields for shard, _ in read], label)
    names = [shard.name for shard, _ in read]
    rows = join_rows([datasets.Dataset(table) for table in tables], files=names, contents=names, wanted=wanted)
    return Split(
        "train", rows, Places.join([_find_places(shard, numbered) for shard, numbered in read]), split.fingerprint
    )


def _make_table(shard: Shard, numbered: _Numbered, wanted: Collection[str]) -> pa.Table:
    rows = [{name: values[name] for name in wanted if name in values} for values, _ in numbered]
    if shard.features is None:
        table = make_table(rows, wanted=wanted, place=lambda row: shard.place(numbered[row][1]))
    else:
        known = datasets.Features({name: shard.features[name] for name in wanted if name in shard.features})
        table = pa.Table.from_pylist(rows, schema=known.arrow_schema)
    names = dict.fromkeys([*(shard.features or ()), *(name for values, _ in numbered for name in values)])
    empty = {name: pa.nulls(len(rows)) for name in names if name not in table.column_names}
    if not table.column_names:  # such a table has no rows, so that nothing of their number fits in
        return pa.table(empty)
    for name, column in empty.items():
        table = table.append_column(name, column)
    return table.select(list(names))


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


def _find_places(shard: Shard, numbered: _Numbered) -> Places:
    return Places.of(f"{shard.name} {shard.noun}", np.array([number for _, number in numbered], dtype=np.int64))
