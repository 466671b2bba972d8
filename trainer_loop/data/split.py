"""The rows of one split: raw, as in the user's data, and encoded for the model."""

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

_SHOWN = 5  # rows that a message names


@dataclass(frozen=True)
class Split:
    """The raw rows of one split."""

    name: str
    rows: datasets.Dataset  # only the columns that were read
    origins: Origins
    fingerprint: str  # changes with the content and with the selection of rows
    columns: Sequence[str] = ()  # names of all columns in the data; empty: all were read
    before: "Split | None" = field(default=None, compare=False, repr=False)  # the split before `select`

    def select(self, rows: Indices) -> "Split":
        """Return a split with these rows, in this order."""
        fingerprint = digest(self.fingerprint.encode(), rows.tobytes())
        selected, origins = self.rows.select(rows), self.origins.select(rows)
        return Split(self.name, selected, origins, fingerprint, self.columns, before=self.before or self)

    def list_rows(self, rows: Sequence[int] | Indices, *, shown: str | None = None) -> str:
        """Return the number and places of rows: `3 rows: reviews.csv row 4, ...`.

        Args:
            shown: A column whose values are listed too.
        """
        places = [self.origins.place(int(row)) for row in rows[:_SHOWN]]
        if shown is not None:
            places = [
                f"{place} ({shorten(self.rows[int(row)][shown])})" for place, row in zip(places, rows, strict=False)
            ]
        return f"{plural(len(rows), 'row')}: {enumerate_some(places, total=len(rows))}"

    def list_where(self, column: str, test: Test, *, shows_values: bool = False) -> str:
        """Return `list_rows` of the rows whose value passes the test; empty if there are none."""
        rows = np.flatnonzero(find_rows(self.rows, column, test))
        return self.list_rows(rows, shown=column if shows_values else None) if len(rows) else ""

    def first_value(self, column: str, test: Callable[[Any], bool] = lambda value: True) -> str:
        """Return the first value that passes the test and is not null, with its place."""
        for row, value in enumerate(read_values(self.rows, column)):
            if value is not None and test(value):
                return f"{shorten(value)} ({self.origins.place(row)})"
        return "null"


@dataclass(frozen=True)
class RawRows:
    """The raw rows from which encoded rows were made."""

    rows: datasets.Dataset  # only the columns that the task reads
    columns: Columns
    sources: Indices  # [N] number of the raw row of each encoded row, ascending

    def read(self, number: int) -> dict[str, Any]:
        """Return a raw row by role."""
        row = self.rows[number]
        return {role: row[name] for role, name in self.columns.names.items()}


@dataclass(frozen=True)
class TokenisedSplit:
    """The encoded rows of one split, or the rows of a task that takes them as they are."""

    name: str
    rows: Any  # the output of the task's `encode`, such as `input_ids` and `label`; or rows as they are
    lengths: npt.NDArray[np.int32]  # [N] tokens of each row, memory-mapped from the cache; 1 for rows as they are
    num_truncated: int  # texts that were cut at max_length
    origins: Origins  # of each row, or of the text in which a chunk starts
    fingerprint: str  # of the raw rows; changes with their content and selection
    raw: RawRows | None = None  # None for a task that takes rows as they are
    weights: npt.NDArray[np.float64] | None = None  # [N] factors of the losses of the rows; None: 1 for each

    def select(self, rows: Indices) -> "TokenisedSplit":
        """Return a split with these rows, in this order, for a task that takes rows as they are."""
        assert self.raw is None, "raw rows are chosen before they are encoded"
        return replace(
            self,
            rows=Subset(self.rows, rows.tolist()),
            lengths=self.lengths[rows],
            origins=self.origins.select(rows),
            fingerprint=digest(self.fingerprint.encode(), rows.tobytes()),
        )
