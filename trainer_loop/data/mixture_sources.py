"""The sources of a mixture: join their rows to one split, bind their columns, and name them in messages."""

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
    """A source of a mixture."""

    name: str
    weight: float  # its share of the rows, in any unit
    loss_weight: float  # the factor of the loss of its rows
    columns: Columns  # with the column names of this source
    split: Split  # all of its rows; of a stream the first ones
    stream: ShardedSplit | None = None  # None if it is not streamed


def join_sources(sources: Sequence[Source], into: Columns) -> Split:
    """Join the training rows of all sources to one split, whose origins have the source of each row.

    Args:
        into: The columns with the names that they get in the split.

    Raises:
        UserError: A column has different types in two sources.
    """
    tables: dict[str, datasets.Dataset] = {}
    for source in sources:
        own_names = source.columns.names
        renamed = {own_names[role]: new for role, new in into.names.items() if role in own_names}
        rows = source.split.rows.select_columns([name for name in renamed if name in source.split.rows.column_names])
        changes = {old: new for old, new in renamed.items() if old != new and old in rows.column_names}
        tables[source.name] = rows.rename_columns(changes) if changes else rows
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
    """Add a weight of 1 to the rows of sources without the column of `data.weight`."""
    weight = into.names.get(WEIGHT)
    types = [rows.features[weight] for rows in tables.values() if weight in rows.column_names]
    feature = types[0] if types else datasets.Value("float64")
    return {
        name: rows
        if weight is None or weight in rows.column_names
        else rows.add_column(weight, pa.array([1] * len(rows)).cast(feature.pa_type), feature=feature)
        for name, rows in tables.items()
    }


def _cast(rows: datasets.Dataset, features: datasets.Features, *, name: str, first: str) -> datasets.Dataset:
    """Cast the rows of the source `name` to the types of the first source."""
    assert set(features) <= set(rows.column_names), "a source that lacks a column is refused when it is read"
    unlike = [column for column in features if _find_kind(rows.features[column]) != _find_kind(features[column])]
    if unlike:
        kinds = (f"{column!r} is {rows.features[column]} in {name}, {features[column]} in {first}" for column in unlike)
        raise UserError(f"data.mixture: columns of unlike types: {'; '.join(kinds)}; write them alike")
    return rows.select_columns(list(features)).cast(features)


def _find_kind(feature: Any) -> str:
    """Return the kind of a type, such as `int`. Types of one kind differ only in their width."""
    if not isinstance(feature, datasets.Value):
        return repr(feature)
    dtype = str(feature.dtype)
    return next((kind for kind in ("string", "uint", "int", "float") if kind in dtype), dtype)


def bind_own_columns(names: Mapping[str, Any], columns: Columns) -> Columns:
    """Return the columns of a source with the names in its section `columns`.

    null stands for the role as the name; for `data.weight` it means that the rows have no weights.

    Raises:
        UserError: A name is not a column of the task, or is null although all sources must have the column.
    """
    if unknown := sorted(names.keys() - columns.names.keys()):
        raise UserError(
            f"columns: {enumerate_some(unknown)}: none of the columns that are read ({', '.join(columns.names)}); all "
            "sources have the same ones: a map of its own can make them"
        )
    nulls = {role for role, name in names.items() if name is None}
    optional = [role for role, column in columns.declared.items() if column.optional]
    has_own_weight = list(columns.names.values()).count(columns.names.get(WEIGHT, "")) == 1
    required = sorted(nulls & {GROUP, *optional, *([] if has_own_weight else [WEIGHT])})
    refuse([f"columns: {role}: null: all sources have this column; a map of its own can make it" for role in required])
    own_names = {**columns.given, **{role: role if name is None else name for role, name in names.items()}}
    if WEIGHT in nulls:
        del own_names[WEIGHT]
    return Columns.of(columns.declared, own_names)


def name_own_functions(line: str, entry: Mapping[str, Any]) -> str:
    """Replace `data.filter` and `data.map` in a message by the keys of the source that has its own functions."""
    for key in ("filter", "map"):
        line = line.replace(f"data.{key}", key) if key in entry else line
    return line


@contextmanager
def naming_source(name: str) -> Iterator[None]:
    """Add the name of the source to the problems of a `UserError` that the block raises."""
    try:
        yield
    except UserError as error:
        raise UserError([name_source(line, name) for line in error.problems]) from error


def name_source(line: str, name: str) -> str:
    """Change a message about `data.train` to one about the training rows of a source.

    >>> name_source("data.train: 3 rows", "talk"), name_source("a.csv has no rows", "talk")
    ('data.mixture: talk: train: 3 rows', 'data.mixture: talk: a.csv has no rows')
    """
    named = line.replace("data.train", f"data.mixture: {name}: train")
    return named if named != line else f"data.mixture: {name}: {line}"
