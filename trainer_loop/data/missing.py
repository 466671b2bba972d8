"""Rows without a text or a label, and what becomes of them: `data.missing`."""

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

_TEXTS_AND_NUMBERS = ("text", "number", "numbers", "weight")  # kinds; a number may be a text
_NESTED = ("conversation", "joined_classes", "joined_numbers")  # kinds whose values may have a hole inside
HIDDEN = -1  # the class that datasets gives to rows whose label is kept secret
FILL_OR_DROP = "fill it in or remove the row, or set data.missing=drop"


@dataclasses.dataclass(frozen=True)
class Holes:
    """What counts as missing: any value that is null, and blank texts and hidden labels.

    kinds: of all columns that are read: texts and numbers first, then the label. blank: those in which a blank text
    counts.
    """

    kinds: Mapping[str, Kind | JoinedKind]
    blank: Collection[str]

    @classmethod
    def of(cls, columns: Columns, *, missing: str = "refuse") -> "Holes":
        """The holes of these columns. missing: with `empty`, blank texts are as good as any."""
        kinds = {name: columns.kind_of(own) for own, name in columns.names.items()}
        may_be_blank = {name: missing == "empty" or columns.declared[own].blank for own, name in columns.names.items()}
        blank = [
            name
            for name, kind in kinds.items()
            if kind in _TEXTS_AND_NUMBERS and not (kind == "text" and may_be_blank[name])
        ]
        in_order = sorted(kinds, key=lambda name: (kinds[name] not in _TEXTS_AND_NUMBERS, kinds[name] != "class"))
        return cls({name: kinds[name] for name in in_order}, blank)

    def describe_dropped(self, file: str, counts: Mapping[str, int]) -> list[str]:
        """`reviews.csv: 12 rows without 'text', 9 without 'label' were dropped`, or nothing. counts: of rows."""
        holes = {
            f"an answer at the end of {name!r}" if self.kinds[name] == "conversation" else repr(name): number
            for name, number in counts.items()
            if number
        }
        parts = [f"{number:,} without {hole}" for hole, number in holes.items()]
        parts[:1] = [f"{plural(number, 'row')} without {hole}" for hole, number in holes.items()][:1]
        were = "was" if sum(holes.values()) == 1 else "were"
        return [f"{file}: {', '.join(parts)} {were} dropped"] if parts else []

    def is_in(self, name: str, value: object, *, are_classes: bool = False) -> bool:
        """Whether a value of a column is a hole. are_classes: the label is that of a column of classes."""
        kind = self.kinds[name]
        if kind != "class" and kind not in _TEXTS_AND_NUMBERS:
            return is_hole(value, kind)
        if isinstance(value, str):
            return name in self.blank and (not value or value.isspace())
        return lacks_label(value, are_classes=are_classes and kind == "class")

    def columns_of(self, values: Mapping[str, Any], *, are_classes: bool) -> list[str]:
        """The columns in which a row of a stream has a hole. are_classes: see `is_in`."""
        return [name for name in self.kinds if self.is_in(name, values.get(name), are_classes=are_classes)]

    def find(self, rows: datasets.Dataset) -> dict[str, Mask]:
        """`[N]` which rows lack what, by column; of the columns that are there."""
        return {name: self._find_in(rows, name) for name in self.kinds if name in rows.column_names}

    def _find_in(self, rows: datasets.Dataset, name: str) -> Mask:
        kind = self.kinds[name]
        if kind in _NESTED:
            return np.fromiter((is_hole(value, kind) for value in read_values(rows, name)), dtype=np.bool_)
        if kind == "class":
            found = find_rows(rows, name, is_unlabelled)
            return found | find_rows(rows, name, is_hidden) if has_classes(rows.features, name) else found
        return find_rows(rows, name, _is_blank if name in self.blank else pc.is_null)


def lacks_label(value: object, *, are_classes: bool) -> bool:
    """Whether a label is missing. are_classes: it is a number of a column of classes, where secret ones have one."""
    return value is None or is_nan(value) or (are_classes and value == HIDDEN)


def has_classes(features: datasets.Features | None, label: str | None) -> bool:
    """Whether a label is a column of classes, which has a number for labels that are kept secret."""
    return features is not None and isinstance(features.get(label), datasets.ClassLabel)


def settle_missing(split: Split, columns: Columns, *, missing: str) -> tuple[Split, list[str]]:
    """The split with its holes as `data.missing` says, and lines for a person on what became of them.

    refuse: as it is; the check of the rows tells. drop: without the rows that have holes; those that are left keep
    their places. empty: a text that is null is the empty text. Raises UserError where no row is left.
    """
    if missing == "refuse":
        return split, []
    holes = Holes.of(columns)
    if missing == "empty":
        return _fill(split, [name for name, kind in holes.kinds.items() if kind in _TEXTS_AND_NUMBERS]), []
    gone = np.zeros(len(split.rows), dtype=np.bool_)
    origins = split.origins
    files = [name.rpartition(" ")[0] for name in origins.names]
    counts: dict[str, Counter[str]] = {file: Counter() for file in files}
    for name, mask in holes.find(split.rows).items():
        numbers = np.bincount(origins.origin[mask & ~gone], minlength=len(files)).tolist()
        for file, number in zip(files, numbers, strict=True):
            counts[file][name] += number
        gone |= mask
    if not gone.any():
        return split, []
    told = [line for file, dropped in counts.items() for line in holes.describe_dropped(file, dropped)]
    if gone.all():
        raise UserError(f"data.{split.name}: no row is left; {'; '.join(told)} (data.missing=drop)")
    return split.select(np.flatnonzero(~gone)), told


def is_hidden(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Labels of a column of classes that are kept secret."""
    return pc.equal(column, HIDDEN)


def is_blank(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Texts without a character but spaces."""
    return pc.equal(pc.utf8_length(pc.utf8_trim_whitespace(column)), 0)


def is_unlabelled(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Labels that are null or NaN."""
    return pc.is_null(column, nan_is_null=pa.types.is_floating(column.type))


def _is_blank(column: pa.ChunkedArray) -> pa.ChunkedArray:
    if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
        return is_unlabelled(column)
    return pc.fill_null(is_blank(column), True)


def _fill(split: Split, names: Sequence[str]) -> Split:
    """Nulls as empty texts, in those of the columns that hold texts."""
    made: dict[str, pa.ChunkedArray] = {}
    features = split.rows.features
    for name in names:
        feature = features.get(name)
        may_be_texts = isinstance(feature, datasets.Value) and feature.dtype in ("string", "large_string", "null")
        if may_be_texts and any(column.null_count for column in read_column(split.rows, name)):
            column = whole_column(split.rows, name)
            made[name] = pc.fill_null(column.cast(pa.string()) if pa.types.is_null(column.type) else column, "")
    if not made:
        return split
    fingerprint = digest(split.fingerprint.encode(), b"null texts are empty", *(name.encode() for name in made))
    return dataclasses.replace(split, rows=replace_columns(split.rows, made), fingerprint=fingerprint)
