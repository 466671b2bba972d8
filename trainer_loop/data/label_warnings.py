"""Warnings about labels: classes without rows or that look like another one, and tags of words that break off."""

from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from trainer_loop.data.labels import LabelNames, RawLabel
from trainer_loop.data.split import Split
from trainer_loop.data.wording import enumerate_some, plural

_PREFIXES = {"B", "I", "E", "S", "L", "U"}  # of BIO, BIOES and BILOU
_OPEN = {"B", "I"}  # an entity may go on behind them
_GOES_ON = {"I", "E", "L"}

Counts = Mapping[RawLabel, int]  # how many rows have each raw label


def warn_of_training_classes(counts: Counts, names: LabelNames) -> list[str]:
    """Training rows of one class only, or classes without a training row."""
    absent = _find_absent(counts, names)
    if len(absent) == len(names.names) - 1:
        (present,) = (name for name in names.names if name not in absent)
        return [f"data.train has one class only ({present}): a model learns nothing from it"]
    return [f"data.train has no rows of these classes: {enumerate_some(absent, at_most=10)}"] if absent else []


def warn_of_unscored_classes(counts: Mapping[str, Counts], names: LabelNames) -> list[str]:
    """Classes without a row in a split that evaluations score, in one line for all of these splits.

    counts: of each such split, by its name.
    """
    absent = {split: _find_absent(found, names) for split, found in counts.items()}
    parts = [
        f"data.{split} has no rows of {len(classes):,} of {len(names.names):,} classes: {enumerate_some(classes)}"
        for split, classes in absent.items()
        if classes
    ]
    told = "its metrics say nothing of them, and a mean over classes (macro) counts them as 0 or leaves them out"
    return [f"{'; '.join(parts)}: {told}"] if parts else []


def warn_of_streamed_classes(counts: Counts, *, num_rows: int) -> list[str]:
    """The first rows of a stream, of which there are `num_rows`, are of one class."""
    if len(counts) > 1 or num_rows == 1:
        return []
    return [
        f"data.train: the first {plural(num_rows, 'row')} are of one class; a stream is shuffled within "
        "data.shuffle_rows rows only, so where it is sorted by label shuffle its files, or raise data.shuffle_rows"
    ]


def warn_of_spellings(names: LabelNames) -> list[str]:
    """Classes whose names differ in capitals or spaces only."""
    warnings: list[str] = []
    alike: dict[str, list[str]] = {}
    for name in names.names:
        alike.setdefault(name.strip().casefold(), []).append(name)
    for spellings in alike.values():
        if len(spellings) > 1:
            shown = enumerate_some([repr(name) for name in spellings])
            warnings.append(f"these labels differ in capitals or spaces only and are taken as unlike classes: {shown}")
    return warnings


def _find_absent(counts: Counts, names: LabelNames) -> list[str]:
    """The names of the classes that no row has."""
    present = {names.ids[value] for value, number in counts.items() if number and value in names.ids}
    return [name for number, name in enumerate(names.names) if number not in present]


def warn_of_stray_tags(split: Split, column: str, names: LabelNames, *, is_head: bool = False) -> list[str]:
    """A line about tags that go on with an entity which has not begun, if the tags have the prefix B; or nothing.

    split: rows whose tags were found good. column: a list of tags for each row. is_head: there are more rows.
    """
    parts = [name.partition("-") for name in names.names]
    prefixes = {prefix for prefix, _, _ in parts} - {"O"}
    if "B" not in prefixes or not prefixes <= _PREFIXES:
        return []
    table: pa.Table = split.rows.select_columns([column]).with_format("arrow")[:]
    lists = table[column].combine_chunks()
    values = lists.flatten()
    places = pc.index_in(values, pa.array(list(names.ids), values.type)).to_numpy(zero_copy_only=False)
    ids = np.array(list(names.ids.values()))[places]
    rows = np.repeat(np.arange(len(lists)), pc.list_value_length(lists).to_numpy(zero_copy_only=False))
    goes_on = np.array([prefix in _GOES_ON for prefix, _, _ in parts])
    is_open = np.array([prefix in _OPEN for prefix, _, _ in parts])
    kinds = np.unique([kind for _, _, kind in parts], return_inverse=True)[1]
    is_stray = goes_on[ids]
    is_stray[1:] &= ~((rows[1:] == rows[:-1]) & is_open[ids[:-1]] & (kinds[ids[1:]] == kinds[ids[:-1]]))
    if not is_stray.any():
        return []
    first = int(is_stray.argmax())
    count, tag, place = int(is_stray.sum()), names.names[ids[first]], split.origins.place(rows[first])
    of = f" of the first {len(lists):,}" if is_head else ""
    return [
        f"data.{split.name}: {plural(count, 'tag')} in {plural(len(np.unique(rows[is_stray])), 'row')}{of} "
        f"{'goes' if count == 1 else 'go'} on with an entity that did not begin, the first is {tag} in {place}; an "
        "entity begins with B-, and metrics let one begin there too"
    ]
