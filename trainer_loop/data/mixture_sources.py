"""The sources of a mixture: their rows joined to one split, their columns, and messages that name them."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import datasets
import numpy as np
import pyarrow as pa

from trainer_loop.data.columns import GROUP, WEIGHT, Columns
from trainer_loop.data.fingerprint import digest
from trainer_loop.data.origins import Origins
from trainer_loop.data.shards import ShardedSplit
from trainer_loop.data.split import Split
from trainer_loop.data.wording import enumerate_some
from trainer_loop.errors import UserError, refuse


@dataclass(frozen=True)
class Source:
    """A source of a mixture.

    weight: its share of the rows, in any unit. loss_weight: the factor of the loss of its rows. columns: those that are
    read of a row, by the source's names. split: all of its rows; of a stream the first ones. stream: if it is streamed.
    """

    name: str
    weight: float
    loss_weight: float
    columns: Columns
    split: Split
    stream: ShardedSplit | None = None


def join_sources(sources: Sequence[Source], into: Columns) -> Split:
    """The training rows of all sources as one split, which knows of each row its source.

    into: the columns, by the names that they get. Raises UserError where columns are of unlike types.
    """
    tables: dict[str, datasets.Dataset] = {}
    for source in sources:
        own_names = source.columns.names
        renamed = {own_names[own]: other for own, other in into.names.items() if own in own_names}
        rows = source.split.rows.select_columns([one for one in renamed if one in source.split.rows.column_names])
        moved = {one: other for one, other in renamed.items() if one != other and one in rows.column_names}
        tables[source.name] = rows.rename_columns(moved) if moved else rows
    tables = _weigh_equally(tables, into)
    first, *others = tables
    for name in others:
        tables[name] = _cast(tables[name], tables[first].features, name=name, first=first)
    origins = Origins.join([source.split.origins for source in sources])
    numbers = np.repeat(np.arange(len(sources)), [len(source.split.origins.names) for source in sources])
    return Split(
        "train",
        datasets.concatenate_datasets(list(tables.values())),
        replace(origins, sources=numbers.tolist()),
        digest(*(f"{source.name} {source.split.fingerprint}".encode() for source in sources)),
    )


def _weigh_equally(tables: Mapping[str, datasets.Dataset], into: Columns) -> dict[str, datasets.Dataset]:
    """Rows of sources without the column of `data.weight`, with a weight of 1."""
    weight = into.names.get(WEIGHT)
    types = [rows.features[weight] for rows in tables.values() if weight in rows.column_names]
    feature = types[0] if types else datasets.Value("float64")
    return {
        name: rows
        if weight is None or weight in rows.column_names
        else rows.add_column(weight, pa.array([1] * len(rows)).cast(feature.pa_type), feature=feature)
        for name, rows in tables.items()
    }


def _cast(rows: datasets.Dataset, wanted: datasets.Features, *, name: str, first: str) -> datasets.Dataset:
    """The rows with the types of the first source."""
    assert set(wanted) <= set(rows.column_names), "a source that lacks a column is refused when it is read"
    unlike = [column for column in wanted if _find_kind(rows.features[column]) != _find_kind(wanted[column])]
    if unlike:
        kinds = (f"{column!r} is {rows.features[column]} in {name}, {wanted[column]} in {first}" for column in unlike)
        raise UserError(f"data.mixture: columns of unlike types: {'; '.join(kinds)}; write them alike")
    return rows.select_columns(list(wanted)).cast(wanted)


def _find_kind(feature: Any) -> str:
    """What a type is for; those of one kind differ in their width."""
    if not isinstance(feature, datasets.Value):
        return repr(feature)
    dtype = str(feature.dtype)
    return next((kind for kind in ("string", "uint", "int", "float") if kind in dtype), dtype)


def bind_own_columns(names: Mapping[str, Any], columns: Columns) -> Columns:
    """The user's columns of a source. names: its `columns`. Raises UserError.

    null stands for the task's own name; for `data.weight`, it says that the rows have no weights.
    """
    if unknown := sorted(names.keys() - columns.names.keys()):
        raise UserError(
            f"columns: {enumerate_some(unknown)}: none of the columns that are read ({', '.join(columns.names)}); all "
            "sources have the same ones: a map of its own can make them"
        )
    nulls = {own for own, name in names.items() if name is None}
    optional = [own for own, column in columns.declared.items() if column.optional]
    has_own_weight = list(columns.names.values()).count(columns.names.get(WEIGHT, "")) == 1
    needed = sorted(nulls & {GROUP, *optional, *([] if has_own_weight else [WEIGHT])})
    refuse([f"columns: {own}: null: all sources have this column; a map of its own can make it" for own in needed])
    given = {**columns.given, **{own: own if name is None else name for own, name in names.items()}}
    if WEIGHT in nulls:
        del given[WEIGHT]
    return Columns.of(columns.declared, given)


def name_own_functions(line: str, entry: Mapping[str, Any]) -> str:
    """A line about a source that has a filter or map of its own, by which name they stand there."""
    for key in ("filter", "map"):
        line = line.replace(f"data.{key}", key) if key in entry else line
    return line


@contextmanager
def naming_source(name: str) -> Iterator[None]:
    """Let the problems of a `UserError` that the block raises name this source, whose rows they call data.train."""
    try:
        yield
    except UserError as error:
        raise UserError([name_source(line, name) for line in error.problems]) from error


def name_source(line: str, name: str) -> str:
    """A line about the training rows as one about those of a source.

    >>> name_source("data.train: 3 rows", "talk"), name_source("a.csv has no rows", "talk")
    ('data.mixture: talk: train: 3 rows', 'data.mixture: talk: a.csv has no rows')
    """
    named = line.replace("data.train", f"data.mixture: {name}: train")
    return named if named != line else f"data.mixture: {name}: {line}"
