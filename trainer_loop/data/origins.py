"""Where each row stands in the user's data: its file, and its row or line there."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

_COMPARED = 1 << 20  # rows at a time

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Origins:
    """Where every row of a split comes from: `place(0)` is `reviews.csv row 17`.

    names: one per origin, with the noun that its numbers count, such as `reviews.csv row` or `notes.txt line`.
    origin: `[N]` position in `names` of every row. number: `[N]` row or line number of every row, from 1; where
    they are all counted, a range from 1 on takes no memory.
    sources: of a mixture the number of the source that each of `names` belongs to.
    """

    names: Sequence[str]
    origin: npt.NDArray[np.int32]
    number: Indices | range
    sources: Sequence[int] = ()

    def __post_init__(self) -> None:
        assert len(self.origin) == len(self.number), "every row has an origin and a number"

    @classmethod
    def of(cls, name: str, number: Indices | int) -> "Origins":
        """The places of one origin; `number` is how many rows it has where they are counted from 1."""
        numbers = range(1, number + 1) if isinstance(number, int) else number
        return cls([name], np.broadcast_to(np.int32(0), len(numbers)), numbers)  # one zero, seen as many

    @classmethod
    def join(cls, parts: Sequence["Origins"]) -> "Origins":
        """The places of rows that were put one after the other."""
        if len(parts) == 1:
            return parts[0]
        first_name = np.cumsum([0] + [len(part.names) for part in parts[:-1]])
        origins = [part.origin + np.int32(first) for part, first in zip(parts, first_name, strict=True)]
        names = [name for part in parts for name in part.names]
        return cls(names, np.concatenate(origins), np.concatenate([part.numbers for part in parts]))

    def __len__(self) -> int:
        return len(self.number)

    @property
    def numbers(self) -> Indices:
        """`[N]` row or line number of every row, from 1."""
        return np.arange(1, len(self) + 1) if isinstance(self.number, range) else self.number

    @property
    def source_of_rows(self) -> Indices:
        """`[N]` the number of the source of a mixture that each row is from; 0 where there is no mixture."""
        return np.asarray(self.sources or [0] * len(self.names), dtype=np.int64)[self.origin]

    def place(self, row: int) -> str:
        """Where this row (counted from 0) stands in the user's data."""
        return f"{self.names[self.origin[row]]} {self.number[row]}"

    def select(self, rows: Indices) -> "Origins":
        """The places of these rows, in this order."""
        if _are_all(rows, len(self)):
            return self
        numbers = rows + 1 if isinstance(self.number, range) else self.number[rows]
        return Origins(self.names, self.origin[rows], numbers, self.sources)


def _are_all(rows: Indices, count: int) -> bool:
    """Whether these are the numbers below `count`, in their order."""
    return len(rows) == count and all(
        np.array_equal(rows[start : start + _COMPARED], np.arange(start, min(start + _COMPARED, count)))
        for start in range(0, count, _COMPARED)
    )
