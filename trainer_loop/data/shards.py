"""What every reader gives: batches of rows with the place of each row, from any row on.

In memory all batches of a file are joined, see `tables.py`; in a stream its rows are taken as they come.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias, TypeVar

import datasets
import pyarrow as pa

from trainer_loop.data.arrow_types import plain_array
from trainer_loop.errors import UserError, in_one_line

BATCH_ROWS = 1000
_TEXT_ROWS = 250  # of a batch of a text file: more objects at once set off Python's garbage collector again and again
_FIRST_ROWS = 10  # of the first batch of a text file: of most files of a stream only the beginning is looked at
_BATCH_BYTES = 1 << 22  # of a text file, after which a batch ends that has fewer rows

Mark = dict[str, Any]  # a place in something that is read from its beginning on, as plain JSON
Values = Mapping[str, Any]  # of one row, by column

Rows: TypeAlias = pa.Table | Sequence[Values]

_T = TypeVar("_T")
# What a row is read from, or why it cannot be read; and the place behind it, see `Batch.ends`.
Item = tuple[_T | UserError, tuple[int, ...]]


@dataclass(frozen=True)
class Batch:
    """At most 1,000 consecutive rows.

    rows: an Arrow table, which a file of texts becomes where it is joined; its values until then, for a stream takes
    Python values. Of JSON the objects themselves, for only all values of a column tell its type.
    ends: the place behind each row, which begins with its number, or that of its line, from 1. names: of the parts of a
    place, in a mark. faults: why a row cannot be read, by its position in the batch; its values mean nothing.
    changed: what `data.map` returned for each row, in place of its values; empty where there is no such function.
    """

    rows: Rows
    ends: Sequence[tuple[Any, ...]]
    names: tuple[str, ...]
    faults: Mapping[int, UserError] = field(default_factory=dict)
    changed: Sequence[Values] = ()

    def __len__(self) -> int:
        return len(self.ends)

    @property
    def numbers(self) -> list[int]:
        return [end[0] for end in self.ends]

    def first(self, count: int) -> "Batch":
        """The first rows."""
        faults = {row: fault for row, fault in self.faults.items() if row < count}
        return Batch(self.rows[:count], self.ends[:count], self.names, faults, self.changed[:count])

    def take(self, numbers: Sequence[int], columns: Collection[str]) -> "Batch":
        """The rows at these positions, in some of their columns; Python values keep all. Without their faults."""
        rows = self.rows
        ends = [self.ends[number] for number in numbers]
        if isinstance(rows, pa.Table):
            present = [name for name in rows.column_names if name in columns] or rows.column_names[:1]
            plain = {name: plain_array(rows.column(name)).take(pa.array(numbers, pa.int64())) for name in present}
            return Batch(pa.table(plain).replace_schema_metadata(rows.schema.metadata), ends, self.names)
        return Batch([rows[number] for number in numbers], ends, self.names)

    def mark(self, row: int) -> Mark:
        """Where the row begins that follows this one."""
        return dict(zip(self.names, self.ends[row], strict=True))

    def values(self) -> Sequence[Values]:
        """The rows as Python values."""
        values = self.rows
        if isinstance(values, pa.Table):
            values = values.to_pylist() or [{}] * len(self)  # where no column is read
        if not self.changed:
            return values
        return [{**before, **new} for before, new in zip(values, self.changed, strict=True)]


@dataclass(frozen=True)
class Shard:
    """One file, or one piece of a hub data set.

    noun: what its numbers count. batches: its rows from a mark on, None for all. count: its rows, where there is a
    quicker way than reading them. schema: of the columns that are read, as they are stored; None where only the values
    tell the types. features: the types that a stream reads them in. names: of all columns; None where only the rows
    tell. has_fields: its values are texts that may stand for something else. no_rows: what is wrong where it has none.
    whole_only: why it cannot be streamed, if it cannot. is_filtered: it has the rows alone that `data.filter` keeps.
    """

    name: str
    noun: str
    batches: Callable[[Mark | None], Iterator[Batch]]
    count: Callable[[], int] | None = None
    schema: pa.Schema | None = None
    features: datasets.Features | None = None
    names: Callable[[], Sequence[str]] | None = None
    has_fields: bool = False
    no_rows: str = "has no rows"
    whole_only: str | None = None
    is_filtered: bool = False

    @property
    def title(self) -> str:
        """What it is called: `a.csv`, or `lab/set[train] shard 1 of 3`."""
        part, _, _ = self.noun.rpartition(", ")
        return f"{self.name} {part}".rstrip()

    def place(self, number: int) -> str:
        """Where a row stands in the user's data."""
        return f"{self.name} {self.noun} {number}"

    def read(self, mark: Mark | None = None) -> Iterator[tuple[Values, int, Mark]]:
        """The rows from a mark on, each with its number, or that of its line, from 1, and the mark behind it.

        A row that cannot be read is a UserError when its turn comes.
        """
        for batch in read_batches(self, mark):
            for row, (values, number) in enumerate(zip(batch.values(), batch.numbers, strict=True)):
                if row in batch.faults:
                    raise batch.faults[row]
                yield values, number, batch.mark(row)


@dataclass(frozen=True)
class ShardedSplit:
    """A split that is not read but streamed.

    title: what it is, for a person. fingerprint: changes when the content does, as far as can be told without reading
    all of it. num_rows: where its description tells. is_local: looking into every shard costs little.
    """

    shards: list[Shard]
    title: str
    fingerprint: str
    num_rows: int | None = None
    is_local: bool = True


def read_batches(shard: Shard, mark: Mark | None = None) -> Iterator[Batch]:
    """The batches of a shard; what the disk or Arrow refuse becomes a UserError."""
    try:
        yield from shard.batches(mark)
    except (OSError, pa.ArrowException, UnicodeError) as error:
        raise UserError(f"{shard.name} cannot be read: {in_one_line(error)}") from error


def gather(
    items: Iterable[Item[_T]], make_rows: Callable[[list[_T]], Sequence[Values]], *, nothing: _T, names: tuple[str, ...]
) -> Iterator[Batch]:
    """The batches of a text file. What `items` raises comes after its last row.

    make_rows: what rows are read from -> the rows. nothing: what stands in for a row with a fault. names: of the parts
    of a place; the first is the row's number, the last the bytes of the file up to there.
    """
    sources: list[_T] = []
    ends: list[tuple[int, ...]] = []
    faults: dict[int, UserError] = {}
    most, last_byte = _FIRST_ROWS, _BATCH_BYTES

    try:
        for source, end in items:
            if isinstance(source, UserError):
                faults[len(sources)] = source
                source = nothing
            sources.append(source)
            ends.append(end)
            if len(ends) == most or end[-1] > last_byte:
                yield Batch(make_rows(sources), ends, names, faults)
                sources, ends, faults = [], [], {}
                most, last_byte = min(most * 10, _TEXT_ROWS), end[-1] + _BATCH_BYTES
    except (UserError, OSError):
        if sources:
            yield Batch(make_rows(sources), ends, names, faults)
        raise
    if sources:
        yield Batch(make_rows(sources), ends, names, faults)
