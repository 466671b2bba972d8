"""Rows without a text or a label, and what becomes of them: `data.missing`."""

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import datasets
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from trainer_loop.data.arrow_types import as_typed_rows, plain_array, whole_numbers
from trainer_loop.data.column_values import is_hole
from trainer_loop.data.columns import Columns, JoinedKind, Kind
from trainer_loop.data.fingerprint import digest
from trainer_loop.data.images import fingerprint_files, list_paths
from trainer_loop.data.joined_columns import join_columns
from trainer_loop.data.shards import Shard
from trainer_loop.data.split import Split
from trainer_loop.data.values import is_nan
from trainer_loop.data.wording import plural
from trainer_loop.errors import UserError

_READ_ROWS = 10_000  # at a time
_NUMBERS = ("number", "numbers", "weight")  # kinds
_NESTED = ("conversation", "joined_classes", "joined_numbers")  # kinds whose values may have a hole inside
HIDDEN = -1  # the class that datasets gives to rows whose label is kept secret

Mask = npt.NDArray[np.bool_]
Test = Callable[[pa.ChunkedArray], pa.ChunkedArray]


@dataclasses.dataclass(frozen=True)
class Holes:
    """What counts as missing: any value that is null, and blank texts and hidden labels.

    texts: columns of texts and of numbers, and whether a blank text counts in each. label: the column of single labels,
    if there is one. others: all other columns that are read, and their kinds; a conversation lacks its last answer.
    """

    texts: Mapping[str, bool]
    label: str | None = None
    others: Mapping[str, Kind | JoinedKind] = dataclasses.field(default_factory=dict)

    @classmethod
    def of(cls, columns: Columns, *, missing: str = "refuse") -> "Holes":
        """The holes of these columns. missing: with `empty`, blank texts are as good as any."""
        kinds = {name: columns.declared[own] for own, name in columns.names.items()}
        texts = {
            name: column.kind != "text" or (missing != "empty" and not column.blank)
            for name, column in kinds.items()
            if column.kind in ("text", *_NUMBERS) and name not in columns.joined  # a number may be a text
        }
        label = columns.single_label
        return cls(
            texts,
            label,
            {name: columns.kind_of(own) for own, name in columns.names.items() if name not in texts and name != label},
        )

    @property
    def columns(self) -> list[str]:
        return list(dict.fromkeys([*self.texts, *([] if self.label is None else [self.label]), *self.others]))

    def name_holes(self, counts: Mapping[str, int]) -> dict[str, int]:
        """What the rows lack that have a hole in a column, for a person. counts: rows, by column."""
        return {
            f"an answer at the end of {name!r}" if self.others.get(name) == "conversation" else repr(name): count
            for name, count in counts.items()
        }

    def in_text(self, name: str, value: object) -> bool:
        """As `find` does it, for one value."""
        if isinstance(value, str):
            return self.texts[name] and (not value or value.isspace())
        return value is None or is_nan(value)

    def in_label(self, value: object, *, are_classes: bool) -> bool:
        return value is None or is_nan(value) or (are_classes and value == HIDDEN)

    def columns_of(self, values: Mapping[str, Any], *, are_classes: bool) -> list[str]:
        """The columns in which a row of a stream has a hole. are_classes: its label is that of a column of classes."""
        lacking = [name for name in self.texts if self.in_text(name, values.get(name))]
        if self.label is not None and self.in_label(values.get(self.label), are_classes=are_classes):
            lacking.append(self.label)
        return lacking + [name for name, kind in self.others.items() if is_hole(values.get(name), kind)]

    def find(self, rows: datasets.Dataset) -> dict[str, Mask]:
        """`[N]` which rows lack what, by column; of the columns that are there."""
        found = {}
        for name in self.columns:
            if name in rows.column_names:
                test = is_unlabelled if name == self.label else _is_blank if self.texts.get(name) else pc.is_null
                if self.others.get(name) in _NESTED:
                    test = partial(_are_holes, kind=self.others[name])
                found[name] = find_rows(rows, name, test)
                if name == self.label and isinstance(rows.features[name], datasets.ClassLabel):
                    found[name] |= find_rows(rows, name, is_hidden)
        return found


def has_classes(shard: Shard, label: str | None) -> bool:
    """Whether the label of a shard is a column of classes, which has a number for labels that are kept secret."""
    return shard.features is not None and isinstance(shard.features.get(label), datasets.ClassLabel)


def settle_missing(split: Split, columns: Columns, *, missing: str) -> tuple[Split, list[str]]:
    """The split with its holes as `data.missing` says, and lines for a person on what became of them.

    refuse: as it is; the check of the rows tells. drop: without the rows that have holes; those that are left keep
    their places. empty: a text that is null is the empty text. Raises UserError where no row is left.
    """
    if missing == "refuse":
        return split, []
    holes = Holes.of(columns)
    found = holes.find(split.rows)
    if missing == "empty":
        texts = [name for name in found if name in holes.texts and _may_be_text(split.rows.features[name])]
        nulls = [name for name in texts if any(column.null_count for column in read_column(split.rows, name))]
        return (_fill(split, nulls) if nulls else split), []
    gone = np.zeros(len(split.rows), dtype=np.bool_)
    origins = split.origins
    files = [name.rpartition(" ")[0] for name in origins.names]
    counts: dict[str, Counter[str]] = {file: Counter() for file in files}
    for name, mask in found.items():
        numbers = np.bincount(origins.origin[mask & ~gone], minlength=len(files)).tolist()
        for file, number in zip(files, numbers, strict=True):
            counts[file][name] += number
        gone |= mask
    if not gone.any():
        return split, []
    told = [line for file, dropped in counts.items() for line in describe_dropped(file, holes.name_holes(dropped))]
    if gone.all():
        raise UserError(f"data.{split.name}: no row is left; {'; '.join(told)} (data.missing=drop)")
    return split.select(np.flatnonzero(~gone)), told


def describe_dropped(file: str, counts: Mapping[str, int]) -> list[str]:
    """`reviews.csv: 12 rows without 'text', 9 without 'label' were dropped`, or nothing.

    counts: by what is missing, see `Holes.name_holes`.
    """
    lacking = [(hole, number) for hole, number in counts.items() if number]
    parts = [f"{number:,} without {hole}" for hole, number in lacking[1:]]
    parts = [f"{plural(number, 'row')} without {hole}" for hole, number in lacking[:1]] + parts
    were = "was" if sum(counts.values()) == 1 else "were"
    return [f"{file}: {', '.join(parts)} {were} dropped"] if parts else []


def with_plain_columns(split: Split, columns: Columns) -> Split:
    """The columns that are read alone, in their plain types; labels that are numbers without fractions are integers.

    Libraries that have no integers with holes make decimal numbers of them.
    """
    rows = split.rows
    names = list(split.columns or rows.column_names)
    texts, label = columns.of_kind("text"), columns.single_label
    for name in columns.of_kind("image"):
        if isinstance(rows.features.get(name), datasets.Image):
            rows = rows.cast_column(name, datasets.Image(decode=False))
    rows = join_columns(rows, columns.joined, kept=columns.names.values())
    present = [name for name in rows.column_names if name in {*columns.all, *columns.stored}]
    present = present or rows.column_names[:1]  # which stands in for their number
    if len(present) < len(rows.column_names):
        rows = rows.select_columns(present)
    made: dict[str, pa.ChunkedArray] = {}
    for name, kind in zip(rows.column_names, rows.features.arrow_schema.types, strict=True):
        if name in texts and pa.types.is_string_view(kind):
            made[name] = plain_array(_whole_column(rows, name))
        elif name == label and (pa.types.is_floating(kind) or pa.types.is_decimal(kind)):
            column = _whole_column(rows, name)
            numbers = whole_numbers(column) if column.null_count < len(column) else None
            made |= {} if numbers is None else {name: numbers}
    plain = _replace_columns(rows, made)
    of_images = [
        column for name in columns.of_kind("image") if name in plain.column_names for column in read_column(plain, name)
    ]
    paths = [path for column in of_images for path in list_paths(column)]
    fingerprint = split.fingerprint
    if any(paths):
        fingerprint = digest(fingerprint.encode(), fingerprint_files(paths).encode())
    return dataclasses.replace(split, rows=plain, columns=names, fingerprint=fingerprint)


def read_column(rows: datasets.Dataset, column: str) -> Iterator[pa.ChunkedArray]:
    """A column, some rows at a time."""
    if rows._indices is None:  # else it has other rows than its table, or in another order
        whole = rows.data.column(column)
        yield from (whole.slice(start, _READ_ROWS) for start in range(0, len(whole), _READ_ROWS))
        return
    table: Any
    for table in rows.select_columns([column]).with_format("arrow").iter(batch_size=_READ_ROWS):
        yield table[column]


def find_rows(rows: datasets.Dataset, column: str, test: Test) -> Mask:
    """`[N]` rows whose value passes the test."""
    masks = [np.asarray(pc.fill_null(test(part), False)) for part in read_column(rows, column)]
    return np.concatenate([np.zeros(0, dtype=np.bool_), *masks])


def is_hidden(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Labels of a column of classes that are kept secret."""
    return pc.equal(column, HIDDEN)


def _is_blank(column: pa.ChunkedArray) -> pa.ChunkedArray:
    if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
        return is_unlabelled(column)
    return pc.fill_null(is_blank(column), True)


def _are_holes(column: pa.ChunkedArray, *, kind: Kind | JoinedKind) -> pa.ChunkedArray:
    return pa.chunked_array([pa.array([is_hole(value, kind) for value in column.to_pylist()], pa.bool_())])


def is_blank(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Texts without a character but spaces."""
    return pc.equal(pc.utf8_length(pc.utf8_trim_whitespace(column)), 0)


def is_unlabelled(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Labels that are null or NaN."""
    return pc.is_null(column, nan_is_null=pa.types.is_floating(column.type))


def _may_be_text(feature: Any) -> bool:
    return isinstance(feature, datasets.Value) and feature.dtype in ("string", "large_string", "null")


def _fill(split: Split, names: Sequence[str]) -> Split:
    made = {}
    for name in names:
        column = _whole_column(split.rows, name)
        made[name] = pc.fill_null(column.cast(pa.string()) if pa.types.is_null(column.type) else column, "")
    fingerprint = digest(split.fingerprint.encode(), b"null texts are empty", *(name.encode() for name in names))
    return dataclasses.replace(split, rows=_replace_columns(split.rows, made), fingerprint=fingerprint)


def _whole_column(rows: datasets.Dataset, name: str) -> pa.ChunkedArray:
    table: Any = rows.select_columns([name]).with_format("arrow")[:]
    return table[name]


def _replace_columns(rows: datasets.Dataset, made: dict[str, pa.ChunkedArray]) -> datasets.Dataset:
    if not made:
        return rows
    table: pa.Table = rows.with_format("arrow")[:]
    for name, column in made.items():
        table = table.set_column(table.column_names.index(name), name, column)
    return as_typed_rows(table, {name: feature for name, feature in rows.features.items() if name not in made})
