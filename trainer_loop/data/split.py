"""The rows of one split: as they stand in the user's data, and as the model sees them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import datasets
import numpy as np
import numpy.typing as npt
from torch.utils.data import Subset

from trainer_loop.data.columns import Columns
from trainer_loop.data.dataset_columns import Test, find_rows, read_values
from trainer_loop.data.fingerprint import digest
from trainer_loop.data.origins import Indices, Origins
from trainer_loop.data.wording import enumerate_some, plural, shorten

_SHOWN = 5  # rows that are named


@dataclass(frozen=True)
class Split:
    """The raw rows of one split.

    rows: the columns that were read. fingerprint: changes when the content or the choice of rows does. columns: names
    of all columns that there are; where it is empty, all were read. before: all rows, where these were selected.
    """

    name: str
    rows: datasets.Dataset
    origins: Origins
    fingerprint: str
    columns: Sequence[str] = ()
    before: "Split | None" = field(default=None, compare=False, repr=False)

    def select(self, rows: Indices) -> "Split":
        """These rows, in this order."""
        fingerprint = digest(self.fingerprint.encode(), rows.tobytes())
        selected, origins = self.rows.select(rows), self.origins.select(rows)
        return Split(self.name, selected, origins, fingerprint, self.columns, before=self.before or self)

    def list_rows(self, rows: Sequence[int] | Indices, *, shown: str | None = None) -> str:
        """`3 rows: reviews.csv row 4, ...`. shown: a column whose values are shown, too."""
        places = [self.origins.place(int(row)) for row in rows[:_SHOWN]]
        if shown is not None:
            places = [
                f"{place} ({shorten(self.rows[int(row)][shown])})" for place, row in zip(places, rows, strict=False)
            ]
        return f"{plural(len(rows), 'row')}: {enumerate_some(places, total=len(rows))}"

    def list_where(self, column: str, test: Test, *, shows_values: bool = False) -> str:
        """As `list_rows`, of those whose value passes the test; empty if there are none."""
        rows = np.flatnonzero(find_rows(self.rows, column, test))
        return self.list_rows(rows, shown=column if shows_values else None) if len(rows) else ""

    def first_value(self, column: str, test: Callable[[Any], bool] = lambda value: True) -> str:
        """The first value that passes the test and is not null, with its place."""
        for row, value in enumerate(read_values(self.rows, column)):
            if value is not None and test(value):
                return f"{shorten(value)} ({self.origins.place(row)})"
        return "null"


@dataclass(frozen=True)
class RawRows:
    """The raw rows that encoded rows were made of.

    rows: the columns that a task reads. sources: `[N]` number of the raw row that each encoded row is from, ascending.
    """

    rows: datasets.Dataset
    columns: Columns
    sources: Indices

    def read(self, number: int) -> dict[str, Any]:
        """A raw row, by the names of the task's columns."""
        row = self.rows[number]
        return {own: row[name] for own, name in self.columns.names.items()}


@dataclass(frozen=True)
class TokenisedSplit:
    """The rows of one split as the model sees them.

    rows: what the task encodes, such as `input_ids` and `label`; or whatever a task takes as it is, of length 1 each.
    lengths: `[N]` tokens of every row, mapped from the cache. num_truncated: texts that were cut at max_length.
    origins: where every row, or the text that a chunk begins in, stands in the user's data.
    fingerprint: of the raw rows: changes when the content or the choice of rows does.
    raw: the raw rows; None for a task that takes rows as they are.
    weights: `[N]` factors of the losses of the rows; None: 1 for each.
    """

    name: str
    rows: Any
    lengths: npt.NDArray[np.int32]
    num_truncated: int
    origins: Origins
    fingerprint: str
    raw: RawRows | None = None
    weights: npt.NDArray[np.float64] | None = None

    def select(self, rows: Indices) -> "TokenisedSplit":
        """These rows, in this order, of a task that takes rows as they are."""
        assert self.raw is None, "raw rows are chosen before they are encoded"
        return replace(
            self,
            rows=Subset(self.rows, rows.tolist()),
            lengths=self.lengths[rows],
            origins=self.origins.select(rows),
            fingerprint=digest(self.fingerprint.encode(), rows.tobytes()),
        )
