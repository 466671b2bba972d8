"""The output of every reader: batches of rows with the place of each row, starting at any row.

In memory, all batches of a file are joined, see `tables.py`. A stream uses the batches one by one.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias, TypeVar

import datasets
import pyarrow as pa

from trainer_loop.data.arrow_types import plain_array
from trainer_loop.errors import UserError, in_one_line

BATCH_ROWS = 1000
_TEXT_ROWS = 250  # rows of a batch of a text file; more objects at once would start Python's garbage collector often
_FIRST_ROWS = 10  # rows of the first batch of a text file; of most files of a stream, only the first rows are examined
_BATCH_BYTES = 1 << 22  # a batch of a text file ends after this many bytes

Mark = dict[str, Any]  # a position from which reading can continue, as plain JSON
Values = Mapping[str, Any]  # of one row, by column

Rows: TypeAlias = pa.Table | Sequence[Values]

_T = TypeVar("_T")
# The raw form of a row, or the reason why it cannot be read; and the position after it, see `Batch.ends`.
Item = tuple[_T | UserError, tuple[int, ...]]


@dataclass(frozen=True)
class Batch:
    """At most 1,000 consecutive rows."""

    # An Arrow table, or Python values. Text files and JSON give Python values: a stream needs these, and in memory they
    # become a table when the batches are joined, because the type of a column depends on all of its values.
    rows: Rows
    ends: Sequence[tuple[Any, ...]]  # the position after each row; its first part is the row or line number, from 1
    names: tuple[str, ...]  # the keys in a mark of the parts of a position
    faults: Mapping[int, UserError] = field(default_factory=dict)  # index in the batch -> why the row cannot be read
    changed: Sequence[Values] = ()  # the output of `data.map` for each row; empty without such a function

    def __len__(self) -> int:
        return len(self.ends)

    @property
    def numbers(self) -> list[int]:
        return [end[0] for end in self.ends]

    def first(self, count: int) -> "Batch":
        """Return the first `count` rows."""
        faults = {row: fault for row, fault in self.faults.items() if row < count}
        return Batch(self.rows[:count], self.ends[:count], self.names, faults, self.changed[:count])

    def take(self, numbers: Sequence[int], columns: Collection[str]) -> "Batch":
        """Return the rows at these indices, without faults. A table keeps only `columns`; Python values keep all."""
        rows = self.rows
        ends = [self.ends[number] for number in numbers]
        if isinstance(rows, pa.Table):
            present = [name for name in rows.column_names if name in columns] or rows.column_names[:1]
            plain = {name: plain_array(rows.column(name)).take(pa.array(numbers, pa.int64())) for name in present}
            return Batch(pa.table(plain).replace_schema_metadata(rows.schema.metadata), ends, self.names)
        return Batch([rows[number] for number in numbers], ends, self.names)

    def mark(self, row: int) -> Mark:
        """Return the mark of the row after `row`."""
        return dict(zip(self.names, self.ends[row], strict=True))

    def values(self) -> Sequence[Values]:
        """Return the rows as Python values."""
        values = self.rows
        if isinstance(values, pa.Table):
            values = values.to_pylist() or [{}] * len(self)  # a table without columns gives no values
        if not self.changed:
            return values
        return [{**before, **new} for before, new in zip(values, self.changed, strict=True)]


@dataclass(frozen=True)
class Shard:
    """One file, or one shard of a hub data set."""

    name: str
    noun: str  # the noun that its numbers count, such as `row` or `line`
    batches: Callable[[Mark | None], Iterator[Batch]]  # reads the rows from a mark on; None: all rows
    count: Callable[[], int] | None = None  # counts the rows; None if that requires reading them
    schema: pa.Schema | None = None  # stored types of the columns that are read; None if they depend on the values
    features: datasets.Features | None = None  # the types in which a stream reads the columns
    names: Callable[[], Sequence[str]] | None = None  # of all columns; None if they depend on the rows
    has_fields: bool = False  # values are texts that may represent numbers or true/false, as in .csv
    no_rows: str = "has no rows"  # the problem if there are none
    whole_only: str | None = None  # the reason why it cannot be streamed
    is_filtered: bool = False  # only has the rows that `data.filter` keeps

    @property
    def title(self) -> str:
        """The name in messages: `a.csv`, or `lab/set[train] shard 1 of 3`."""
        part, _, _ = self.noun.rpartition(", ")
        return f"{self.name} {part}".rstrip()

    def place(self, number: int) -> str:
        """Return the place of a row in the user's data."""
        return f"{self.name} {self.noun} {number}"

    def read(self, mark: Mark | None = None) -> Iterator[tuple[Values, int, Mark]]:
        """Iterate over the rows from a mark on: values, row or line number (from 1), and the mark after the row.

        Raises UserError at a row that cannot be read.
        """
        for batch in read_batches(self, mark):
            for row, (values, number) in enumerate(zip(batch.values(), batch.numbers, strict=True)):
                if row in batch.faults:
                    raise batch.faults[row]
                yield values, number, batch.mark(row)


@dataclass(frozen=True)
class ShardedSplit:
    """A split that is streamed."""

    shards: list[Shard]
    title: str  # its name in messages
    fingerprint: str  # changes with the content, as far as is known without reading all of it
    num_rows: int | None = None  # from the description of the data set, if it has the number
    is_local: bool = True  # opening every shard is cheap


def read_batches(shard: Shard, mark: Mark | None = None) -> Iterator[Batch]:
    """Iterate over the batches of a shard. Errors of the disk or of Arrow become a UserError."""
    try:
        yield from shard.batches(mark)
    except (OSError, pa.ArrowException, UnicodeError) as error:
        raise UserError(f"{shard.name} cannot be read: {in_one_line(error)}") from error


def gather(
    items: Iterable[Item[_T]], make_rows: Callable[[list[_T]], Sequence[Values]], *, nothing: _T, names: tuple[str, ...]
) -> Iterator[Batch]:
    """Group the rows of a text file into batches. An error that `items` raises is raised after the rows before it.

    Args:
        make_rows: Converts raw forms to rows.
        nothing: The raw form in place of a row that cannot be read.
        names: Keys of the parts of a position. The first is the row number, the last the number of bytes up to there.
    """
    sources: list[_T] = []
    ends: list[tuple[int, ...]] = []
    faults: dict[int, UserError] = {}
    max_rows, last_byte = _FIRST_ROWS, _BATCH_BYTES

    try:
        for source, end in items:
            if isinstance(source, UserError):
                faults[len(sources)] = source
                source = nothing
            sources.append(source)
            ends.append(end)
            if len(ends) == max_rows or end[-1] > last_byte:
                yield Batch(make_rows(sources), ends, names, faults)
                sources, ends, faults = [], [], {}
                max_rows, last_byte = min(max_rows * 10, _TEXT_ROWS), end[-1] + _BATCH_BYTES
    except (UserError, OSError):
        if sources:
            yield Batch(make_rows(sources), ends, names, faults)
        raise
    if sources:
        yield Batch(make_rows(sources), ends, names, faults)
