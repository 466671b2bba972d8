"""`data.missing`: finds rows without a text or a label, and drops or fills them."""

import dataclasses
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from trainer_loop.data.columns import Columns, JoinedKind, Kind
from trainer_loop.data.dataset_columns import Mask, find_rows, read_column, read_values, replace_columns, whole_column
from trainer_loop.data.fingerprint import digest
from trainer_loop.data.split import Split
from trainer_loop.data.values import is_hole, is_nan
from trainer_loop.data.wording import plural
from trainer_loop.errors import UserError

_TEXTS_AND_NUMBERS = ("text", "number", "numbers", "weight")  # kinds; numbers may be written as texts
_NESTED = ("conversation", "joined_classes", "joined_numbers")  # kinds whose values may have a hole in a part
HIDDEN = -1  # class id that datasets gives to rows whose label is hidden
FILL_OR_DROP = "fill it in or remove the row, or set data.missing=drop"


@dataclasses.dataclass(frozen=True)
class Holes:
    """Finds holes, which are missing values: nulls, hidden labels, and blank texts where these are not allowed.

    Attributes:
        kinds: Kind of each column that is read: texts and numbers first, then the label, then the others.
        blank: Columns in which a blank text is a hole.
    """

    kinds: Mapping[str, Kind | JoinedKind]
    blank: Collection[str]

    @classmethod
    def of(cls, columns: Columns, *, missing: str = "refuse") -> "Holes":
        """Build for these columns. If `missing` is `empty`, blank texts are no holes."""
        kinds = {name: columns.kind_of(role) for role, name in columns.names.items()}
        may_be_blank = {
            name: missing == "empty" or columns.declared[role].blank for role, name in columns.names.items()
        }
        blank = [
            name
            for name, kind in kinds.items()
            if kind in _TEXTS_AND_NUMBERS and not (kind == "text" and may_be_blank[name])
        ]
        in_order = sorted(kinds, key=lambda name: (kinds[name] not in _TEXTS_AND_NUMBERS, kinds[name] != "class"))
        return cls({name: kinds[name] for name in in_order}, blank)

    def describe_dropped(self, file: str, counts: Mapping[str, int]) -> list[str]:
        """Return a message like `reviews.csv: 12 rows without 'text', 9 without 'label' were dropped`, if any were.

        `counts` maps columns to numbers of dropped rows.
        """
        counts_of_holes = {
            f"an answer at the end of {name!r}" if self.kinds[name] == "conversation" else repr(name): num_rows
            for name, num_rows in counts.items()
            if num_rows
        }
        parts = [f"{num_rows:,} without {hole}" for hole, num_rows in counts_of_holes.items()]
        parts[:1] = [f"{plural(num_rows, 'row')} without {hole}" for hole, num_rows in counts_of_holes.items()][:1]
        were = "was" if sum(counts_of_holes.values()) == 1 else "were"
        return [f"{file}: {', '.join(parts)} {were} dropped"] if parts else []

    def is_in(self, name: str, value: object, *, are_classes: bool = False) -> bool:
        """Whether a value of the column `name` is a hole. With `are_classes`, the label is a ClassLabel column."""
        kind = self.kinds[name]
        if kind != "class" and kind not in _TEXTS_AND_NUMBERS:
            return is_hole(value, kind)
        if isinstance(value, str):
            return name in self.blank and (not value or value.isspace())
        return lacks_label(value, are_classes=are_classes and kind == "class")

    def columns_of(self, values: Mapping[str, Any], *, are_classes: bool) -> list[str]:
        """Return the columns in which a row of a stream has a hole. `are_classes` as in `is_in`."""
        return [name for name in self.kinds if self.is_in(name, values.get(name), are_classes=are_classes)]

    def find(self, rows: datasets.Dataset) -> dict[str, Mask]:
        """Return a mask `[N]` of the rows with a hole, for each column that is present."""
        return {name: self._find_in(rows, name) for name in self.kinds if name in rows.column_names}

    def _find_in(self, rows: datasets.Dataset, name: str) -> Mask:
        kind = self.kinds[name]
        if kind in _NESTED:
            return np.fromiter((is_hole(value, kind) for value in read_values(rows, name)), dtype=np.bool_)
        if kind == "class":
            mask = find_rows(rows, name, is_unlabelled)
            return mask | find_rows(rows, name, is_hidden) if has_classes(rows.features, name) else mask
        return find_rows(rows, name, _is_blank if name in self.blank else pc.is_null)


def lacks_label(value: object, *, are_classes: bool) -> bool:
    """Whether a label is missing. With `are_classes`, it is an id of a ClassLabel column, and may be hidden."""
    return value is None or is_nan(value) or (are_classes and value == HIDDEN)


def has_classes(features: datasets.Features | None, label: str | None) -> bool:
    """Whether a label is a ClassLabel column, which has an id for hidden labels."""
    return features is not None and isinstance(features.get(label), datasets.ClassLabel)


def settle_missing(split: Split, columns: Columns, *, missing: str) -> tuple[Split, list[str]]:
    """Apply `data.missing` to a split.

    Args:
        split: The raw rows.
        columns: Columns that the task reads.
        missing: `refuse`: keep the rows as they are; `check_splits` reports holes. `drop`: remove rows with holes; the
            other rows keep their origins. `empty`: replace null texts by empty texts.

    Returns:
        The split, and messages on the dropped rows.

    Raises:
        UserError: No row is left.
    """
    if missing == "refuse":
        return split, []
    holes = Holes.of(columns)
    if missing == "empty":
        return _fill(split, [name for name, kind in holes.kinds.items() if kind in _TEXTS_AND_NUMBERS]), []
    is_dropped = np.zeros(len(split.rows), dtype=np.bool_)
    origins = split.origins
    files = [name.rpartition(" ")[0] for name in origins.names]
    counts: dict[str, Counter[str]] = {file: Counter() for file in files}
    for name, mask in holes.find(split.rows).items():
        counts_of_files = np.bincount(origins.origin[mask & ~is_dropped], minlength=len(files)).tolist()
        for file, num_rows in zip(files, counts_of_files, strict=True):
            counts[file][name] += num_rows
        is_dropped |= mask
    if not is_dropped.any():
        return split, []
    messages = [line for file, dropped in counts.items() for line in holes.describe_dropped(file, dropped)]
    if is_dropped.all():
        raise UserError(f"data.{split.name}: no row is left; {'; '.join(messages)} (data.missing=drop)")
    return split.select(np.flatnonzero(~is_dropped)), messages


def is_hidden(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return which labels of a ClassLabel column are hidden."""
    return pc.equal(column, HIDDEN)


def is_blank(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return which texts are empty or have only whitespace."""
    return pc.equal(pc.utf8_length(pc.utf8_trim_whitespace(column)), 0)


def is_unlabelled(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return which labels are null or NaN."""
    return pc.is_null(column, nan_is_null=pa.types.is_floating(column.type))


def _is_blank(column: pa.ChunkedArray) -> pa.ChunkedArray:
    if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
        return is_unlabelled(column)
    return pc.fill_null(is_blank(column), True)


def _fill(split: Split, names: Sequence[str]) -> Split:
    """Replace nulls by empty texts in those of the columns that hold texts."""
    filled: dict[str, pa.ChunkedArray] = {}
    features = split.rows.features
    for name in names:
        feature = features.get(name)
        may_be_texts = isinstance(feature, datasets.Value) and feature.dtype in ("string", "large_string", "null")
        if may_be_texts and any(column.null_count for column in read_column(split.rows, name)):
            column = whole_column(split.rows, name)
            filled[name] = pc.fill_null(column.cast(pa.string()) if pa.types.is_null(column.type) else column, "")
    if not filled:
        return split
    fingerprint = digest(split.fingerprint.encode(), b"null texts are empty", *(name.encode() for name in filled))
    return dataclasses.replace(split, rows=replace_columns(split.rows, filled), fingerprint=fingerprint)
