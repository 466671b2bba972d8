"""The pieces that a stream is read from, row by row and from any row on."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import datasets
import pyarrow as pa

from trainer_loop.errors import UserError, in_one_line

Mark = dict[str, Any]  # a place in something that is read from its beginning on, as plain JSON
Values = Mapping[str, Any]  # of one row, by column


class Reader(Protocol):
    """The rows of a shard from some place on."""

    def __iter__(self) -> Iterator[tuple[Values, int]]:
        """Every row, and its number in the shard, or that of its line, from 1."""
        ...

    def mark(self) -> Mark:
        """Where the row begins that follows the last one given."""
        ...


@dataclass(frozen=True)
class Shard:
    """One file of a stream, or one piece of a hub data set.

    noun: what its numbers count. read: its rows from a mark on, None for all. count: its rows, where there is a quicker
    way than reading them. features: of the columns that are read; None where only the values tell the types. names: of
    all columns; None where only the rows tell. has_fields: its values are texts that may stand for something else.
    """

    name: str
    noun: str
    read: Callable[[Mark | None], Reader]
    count: Callable[[], int] | None = None
    features: datasets.Features | None = None
    names: Callable[[], Sequence[str]] | None = None
    has_fields: bool = False

    def place(self, number: int) -> str:
        """Where a row stands in the user's data."""
        return f"{self.name} {self.noun} {number}"


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


def read_on(shard: Shard, reader: Reader) -> Iterator[tuple[Values, int]]:
    """The rows of a reader; what the disk or Arrow refuse becomes a UserError."""
    try:
        yield from reader
    except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
        raise UserError(f"{shard.name} cannot be read: {in_one_line(error)}") from error
