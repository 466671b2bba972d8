"""Select the rows of the raw splits: cut a validation split from the training rows, and limit splits to a sample."""

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
    """Divide the training rows into (train, validation). The rows of both keep their order.

    The shares of the classes are the same in both, see `choose_stratified` and `deal_rows`. With a column `group`, all
    rows of a group stay together instead, see `choose_groups` and `deal_groups`. The result only depends on the number
    of rows, the labels or groups, and the seed, so it is the same on every process and machine.

    Args:
        fraction: The share of validation rows.
        fold: The part that becomes the validation split, such as `2/5`; replaces `fraction`.

    Raises:
        UserError: All rows are in one group, or there are fewer rows or groups than parts.
    """
    keys = draw_keys(len(train.rows), seed, "validation_fraction" if fold is None else "fold")
    groups = None if group is None else _number_groups(train.rows, group)
    classes = find_classes(train.rows, label)
    if fold is not None:
        is_validation = _choose_fold(classes, groups, fold, keys)
    elif groups is not None:
        is_validation = choose_groups(groups, fraction=fraction or 0.0, keys=keys)
    else:
        is_validation = choose_stratified(classes, fraction=fraction or 0.0, keys=keys)
    validation = train.select(np.flatnonzero(is_validation))
    return train.select(np.flatnonzero(~is_validation)), dataclasses.replace(validation, name="validation")


def _number_groups(rows: datasets.Dataset, group: str) -> Indices:
    """Return the number of the group of each row, from 0, `[N]`.

    Raises:
        UserError: The column does not have texts or numbers, or all rows are in one group.
    """
    if not isinstance(rows.features[group], (datasets.Value, datasets.ClassLabel)):
        raise UserError(f"data.split_by={group}: the column holds lists or objects; name one of texts or numbers")
    groups = number_values(rows, group)
    if groups.max() == 0:
        value = rows[0][group]
        raise UserError(f"data.split_by={group}: all rows of data.train are of one group, {value!r}; name another")
    return groups


def limit_rows(split: _Split, *, limit: int | None, seed: int) -> _Split:
    """Return a uniform sample of `limit` rows in their original order, or the split itself if it is not larger."""
    if limit is None or limit >= len(split.rows):
        return split
    keys = draw_keys(len(split.rows), seed, f"limit {split.name}")
    return split.select(np.sort(np.argsort(keys, kind="stable")[:limit]))


def limit_splits(splits: Mapping[str, _Split], limit: Mapping[str, int | None], *, seed: int) -> dict[str, _Split]:
    """Apply `limit_rows` to all splits. A limit of `validation` applies to each of its sets."""
    return {name: limit_rows(split, limit=limit.get(parse_set(name)[0]), seed=seed) for name, split in splits.items()}


def find_classes(rows: Any, label: str | None) -> Indices:
    """Return a number for the class of each row, `[N]`; all 0 if there is no label column with classes.

    Args:
        rows: A datasets.Dataset if there is a label, else any sequence.
    """
    if label is None or label not in rows.features or describe_kind(rows, label) not in NAMING_KINDS:
        return np.zeros(len(rows), dtype=np.int64)
    return number_values(rows, label)


def number_values(rows: datasets.Dataset, column: str) -> Indices:
    """Return a number for the value of each row, from 0, `[N]`. Equal values have the same number."""
    encoded = pc.dictionary_encode(whole_column(rows, column), null_encoding="encode").combine_chunks()
    return encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64)  # type: ignore[no-any-return]


def choose_groups(groups: Indices, *, fraction: float, keys: npt.NDArray[np.uint64]) -> npt.NDArray[np.bool_]:
    """Choose about `fraction` of the rows as whole groups, at least one group and not all; return a mask `[N]`.

    Args:
        groups: Integers from 0, `[N]`.
        keys: Random numbers, `[N]`. Groups are tried in the order of their smallest key, and a group is skipped if the
            number of rows is closer to `fraction` without it.
    """
    first_keys, sizes = _find_first_keys(groups, keys), np.bincount(groups)
    target, num_rows, chosen = take_share(fraction, len(groups)), 0, []
    for group in np.argsort(first_keys, kind="stable").tolist():
        if abs(num_rows + sizes[group] - target) < abs(num_rows - target):
            chosen.append(group)
            num_rows += int(sizes[group])
    if not chosen:
        chosen = [int(sizes.argmin())]
    if len(chosen) == len(sizes):
        chosen.remove(int(sizes.argmin()))
    return np.isin(groups, chosen)


def _choose_fold(
    classes: Indices, groups: Indices | None, fold: str, keys: npt.NDArray[np.uint64]
) -> npt.NDArray[np.bool_]:
    """Return a mask of the rows in the part `fold`, `[N]`. Raises UserError if there are too few rows or groups."""
    part, parts = read_fold(fold)
    count, noun = (len(keys), "rows") if groups is None else (int(groups.max()) + 1, "groups by data.split_by")
    if count < parts:
        raise UserError(f"data.fold={fold}: data.train has {count:,} {noun}; ask for at most so many parts")
    part_of_rows = deal_rows(classes, parts, keys) if groups is None else deal_groups(groups, parts, keys)
    return part_of_rows == part - 1  # type: ignore[no-any-return]


def deal_rows(classes: Indices, parts: int, keys: npt.NDArray[np.uint64]) -> Indices:
    """Return the part of each row, from 0, `[N]`. Parts differ by at most one row, in total and in each class.

    Args:
        classes: Integers, `[N]`.
        keys: Random numbers, `[N]`. Rows are dealt in turn, class by class, and by key within a class.
    """
    part_of_rows = np.empty(len(classes), dtype=np.int64)
    part_of_rows[np.lexsort((keys, classes))] = np.arange(len(classes)) % parts
    return part_of_rows


def deal_groups(groups: Indices, parts: int, keys: npt.NDArray[np.uint64]) -> Indices:
    """Return the part of each row, from 0, `[N]`. Whole groups, largest first, go to the part with the fewest rows.

    Args:
        groups: Integers from 0, `[N]`.
        keys: Random numbers, `[N]`. Groups of equal size are dealt in the order of their smallest key.
    """
    first_keys, sizes = _find_first_keys(groups, keys), np.bincount(groups)
    part_of_groups, part_sizes = np.empty(len(sizes), dtype=np.int64), np.zeros(parts, dtype=np.int64)
    for group in np.lexsort((first_keys, -sizes)).tolist():
        part_of_groups[group] = part_sizes.argmin()
        part_sizes[part_of_groups[group]] += sizes[group]
    return part_of_groups[groups]


def _find_first_keys(groups: Indices, keys: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    first_keys = np.full(groups.max() + 1, np.iinfo(np.uint64).max, dtype=np.uint64)
    np.minimum.at(first_keys, groups, keys)
    return first_keys


def choose_stratified(classes: Indices, *, fraction: float, keys: npt.NDArray[np.uint64]) -> npt.NDArray[np.bool_]:
    """Choose `fraction` of the rows, with the share of each class unchanged; return a mask `[N]`.

    At least one row is chosen, and not all rows. The rows per class are rounded so that the total is right. The last
    row of a class is never chosen, so a class with one row stays in the training split. If every class has one row, the
    classes are ignored.

    Args:
        classes: Integers, `[N]`.
        keys: Random numbers, `[N]`. The rows of a class with the smallest keys are chosen.
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
    """Return random numbers, `[count]`. They are raw output of the generator, which no NumPy version changes."""
    return np.random.PCG64(derive_seed(seed, purpose)).random_raw(count)
