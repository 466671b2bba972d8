"""The origin of each row in the user's data: its file, and its row or line number there."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

_COMPARED = 1 << 20  # rows that are compared at a time

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Origins:
    """The origins of the rows of a split: `place(0)` is `reviews.csv row 17`."""

    names: Sequence[str]  # one per origin, with the noun that its numbers count: `reviews.csv row`, `notes.txt line`
    origin: npt.NDArray[np.int32]  # [N] index of each row in `names`
    number: Indices | range  # [N] row or line number of each row, from 1; a range takes no memory
    sources: Sequence[int] = ()  # the number of the mixture's source of each of `names`; empty without a mixture

    def __post_init__(self) -> None:
        assert len(self.origin) == len(self.number), "every row has an origin and a number"

    @classmethod
    def of(cls, name: str, number: Indices | int) -> "Origins":
        """Return the origins of rows from one place. `number` is their row numbers, or how many rows there are."""
        numbers = range(1, number + 1) if isinstance(number, int) else number
        return cls([name], np.broadcast_to(np.int32(0), len(numbers)), numbers)  # broadcasting takes no memory

    @classmethod
    def join(cls, parts: Sequence["Origins"]) -> "Origins":
        """Concatenate the origins of several parts."""
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
        """Row or line number of each row, from 1, `[N]`."""
        return np.arange(1, len(self) + 1) if isinstance(self.number, range) else self.number

    @property
    def source_of_rows(self) -> Indices:
        """Number of the mixture's source of each row, `[N]`; 0 without a mixture."""
        return np.asarray(self.sources or [0] * len(self.names), dtype=np.int64)[self.origin]

    def place(self, row: int) -> str:
        """Return the place of row `row` (from 0) in the user's data."""
        return f"{self.names[self.origin[row]]} {self.number[row]}"

    def select(self, rows: Indices) -> "Origins":
        """Return the origins of these rows, in this order."""
        if _are_all(rows, len(self)):
            return self
        numbers = rows + 1 if isinstance(self.number, range) else self.number[rows]
        return Origins(self.names, self.origin[rows], numbers, self.sources)


def _are_all(rows: Indices, count: int) -> bool:
    """Return whether `rows` are 0, 1, ..., `count` - 1."""
    return len(rows) == count and all(
        np.array_equal(rows[start : start + _COMPARED], np.arange(start, min(start + _COMPARED, count)))
        for start in range(0, count, _COMPARED)
    )
