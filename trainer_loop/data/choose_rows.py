"""Which rows of the raw splits are used: a validation part cut from train, and samples of at most so many rows."""

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar

import datasets
import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc

from trainer_loop.config.named_sets import parse_set, read_fold
from trainer_loop.data.dataset_columns import whole_column
from trainer_loop.data.labels import NAMING_KINDS, describe_kind
from trainer_loop.data.origins import Indices
from trainer_loop.data.split import Split, TokenisedSplit
from trainer_loop.errors import UserError
from trainer_loop.runtime.randomness import derive_seed
from trainer_loop.runtime.shares import take_share

_Split = TypeVar("_Split", Split, TokenisedSplit)


def cut_validation(
    train: _Split,
    *,
    fraction: float | None,
    fold: str | None = None,
    label: str | None,
    group: str | None = None,
    seed: int,
) -> tuple[_Split, _Split]:
    """Train -> (train, validation); the rows of both keep their order.

    The label, where there is one of a few classes, has the same shares in both, see `choose_stratified` and
    `deal_rows`. With a column `group`, whole groups are chosen instead, see `choose_groups` and `deal_groups`.
    The same rows on every process and machine: they follow from the number of rows, the labels and the seed.

    Args:
        fraction: Of the rows, that become validation rows.
        fold: Instead of it the part that does, `2/5`.

    Raises:
        UserError: All rows are of one group, or there are fewer rows or groups than parts.
    """
    keys = draw_keys(len(train.rows), seed, "validation_fraction" if fold is None else "fold")
    groups = None if group is None else _number_groups(train.rows, group)
    classes = find_classes(train.rows, label)
    if fold is not None:
        chosen = _choose_fold(classes, groups, fold, keys)
    elif groups is not None:
        chosen = choose_groups(groups, fraction=fraction or 0.0, keys=keys)
    else:
        chosen = choose_stratified(classes, fraction=fraction or 0.0, keys=keys)
    validation = train.select(np.flatnonzero(chosen))
    return train.select(np.flatnonzero(~chosen)), dataclasses.replace(validation, name="validation")


def _number_groups(rows: datasets.Dataset, group: str) -> Indices:
    """`[N]` a number for the group of each row, from 0. Raises UserError where the column names no groups, or one."""
    if not isinstance(rows.features[group], (datasets.Value, datasets.ClassLabel)):
        raise UserError(f"data.split_by={group}: the column holds lists or objects; name one of texts or numbers")
    groups = number_values(rows, group)
    if groups.max() == 0:
        value = rows[0][group]
        raise UserError(f"data.split_by={group}: all rows of data.train are of one group, {value!r}; name another")
    return groups


def limit_rows(split: _Split, *, limit: int | None, seed: int) -> _Split:
    """A uniform sample of `limit` rows in the order of the file, or the split itself where it has no more."""
    if limit is None or limit >= len(split.rows):
        return split
    keys = draw_keys(len(split.rows), seed, f"limit {split.name}")
    return split.select(np.sort(np.argsort(keys, kind="stable")[:limit]))


def limit_splits(splits: Mapping[str, _Split], limit: Mapping[str, int | None], *, seed: int) -> dict[str, _Split]:
    """Samples of the splits that have a limit. limit: by split, also of each of its sets."""
    return {name: limit_rows(split, limit=limit.get(parse_set(name)[0]), seed=seed) for name, split in splits.items()}


def find_classes(rows: Any, label: str | None) -> Indices:
    """`[N]` a number for the class of every row; one class where there is no label, or none that names classes.

    rows: a datasets.Dataset where there is a label.
    """
    if label is None or label not in rows.features or describe_kind(rows, label) not in NAMING_KINDS:
        return np.zeros(len(rows), dtype=np.int64)
    return number_values(rows, label)


def number_values(rows: datasets.Dataset, column: str) -> Indices:
    """`[N]` a number for the value of each row, from 0; equal values have one number."""
    encoded = pc.dictionary_encode(whole_column(rows, column), null_encoding="encode").combine_chunks()
    return encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64)  # type: ignore[no-any-return]


def choose_groups(groups: Indices, *, fraction: float, keys: npt.NDArray[np.uint64]) -> npt.NDArray[np.bool_]:
    """`[N]` which rows are chosen: about `fraction` of them, whole groups, at least one and not all.

    groups: `[N]` integers from 0. keys: `[N]` random; groups are taken in the order of their smallest key, and one is
    left out where the share is met better without it.
    """
    first_keys, sizes = _find_first_keys(groups, keys), np.bincount(groups)
    wanted, taken, chosen = take_share(fraction, len(groups)), 0, []
    for group in np.argsort(first_keys, kind="stable").tolist():
        if abs(taken + sizes[group] - wanted) < abs(taken - wanted):
            chosen.append(group)
            taken += int(sizes[group])
    if not chosen:
        chosen = [int(sizes.argmin())]
    if len(chosen) == len(sizes):
        chosen.remove(int(sizes.argmin()))
    return np.isin(groups, chosen)


def _choose_fold(
    classes: Indices, groups: Indices | None, fold: str, keys: npt.NDArray[np.uint64]
) -> npt.NDArray[np.bool_]:
    """`[N]` which rows are of the part `fold`. Raises UserError where there are too few rows or groups."""
    part, parts = read_fold(fold)
    count, what = (len(keys), "rows") if groups is None else (int(groups.max()) + 1, "groups by data.split_by")
    if count < parts:
        raise UserError(f"data.fold={fold}: data.train has {count:,} {what}; ask for at most so many parts")
    dealt = deal_rows(classes, parts, keys) if groups is None else deal_groups(groups, parts, keys)
    return dealt == part - 1  # type: ignore[no-any-return]


def deal_rows(classes: Indices, parts: int, keys: npt.NDArray[np.uint64]) -> Indices:
    """`[N]` the part of every row, from 0: parts differ by one row at most, as do the shares of each class in them.

    classes: `[N]` integers. keys: `[N]` random; rows are dealt in turn, class by class, within a class by key.
    """
    dealt = np.empty(len(classes), dtype=np.int64)
    dealt[np.lexsort((keys, classes))] = np.arange(len(classes)) % parts
    return dealt


def deal_groups(groups: Indices, parts: int, keys: npt.NDArray[np.uint64]) -> Indices:
    """`[N]` the part of every row, from 0: whole groups, the largest first, each to the part with the fewest rows.

    groups: `[N]` integers from 0. keys: `[N]` random; groups of one size are dealt in the order of their smallest key.
    """
    first_keys, sizes = _find_first_keys(groups, keys), np.bincount(groups)
    part_of, filled = np.empty(len(sizes), dtype=np.int64), np.zeros(parts, dtype=np.int64)
    for group in np.lexsort((first_keys, -sizes)).tolist():
        part_of[group] = filled.argmin()
        filled[part_of[group]] += sizes[group]
    return part_of[groups]


def _find_first_keys(groups: Indices, keys: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    first_keys = np.full(groups.max() + 1, np.iinfo(np.uint64).max, dtype=np.uint64)
    np.minimum.at(first_keys, groups, keys)
    return first_keys


def choose_stratified(classes: Indices, *, fraction: float, keys: npt.NDArray[np.uint64]) -> npt.NDArray[np.bool_]:
    """`[N]` which rows are chosen: `fraction` of them, at least one and not all, and of every class its share.

    classes: `[N]` integers. keys: `[N]` random; within a class the rows with the smallest are chosen.
    Shares that are no whole number are rounded so that the total is met. The last row of a class is never chosen,
    so a class of one row stays behind; where every class has one row, rows are chosen regardless of it.
    """
    total = min(max(round(take_share(fraction, len(classes))), 1), len(classes) - 1)
    _, codes, sizes = np.unique(classes, return_inverse=True, return_counts=True)
    if sizes.max() == 1:
        codes, sizes = np.zeros_like(codes), np.array([len(codes)])
    exact = sizes * (total / len(classes))
    taken = np.minimum(np.floor(exact).astype(np.int64), sizes - 1)
    while (missing := total - int(taken.sum())) > 0:
        open_classes = np.flatnonzero(taken < sizes - 1)
        if not len(open_classes):
            break
        by_remainder = np.argsort(taken[open_classes] - exact[open_classes], kind="stable")
        taken[open_classes[by_remainder[:missing]]] += 1
    order = np.lexsort((keys, codes))  # class by class, within a class by key
    first_of_class = np.cumsum(sizes) - sizes
    rank = np.arange(len(codes)) - first_of_class[codes[order]]
    chosen = np.zeros(len(codes), dtype=np.bool_)
    chosen[order] = rank < taken[codes[order]]
    return chosen


def draw_keys(count: int, seed: int, purpose: str) -> npt.NDArray[np.uint64]:
    """`[count]` random numbers; raw ones, because those are the same with every version of numpy."""
    return np.random.PCG64(derive_seed(seed, purpose)).random_raw(count)
