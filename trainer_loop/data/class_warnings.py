"""Warnings about the classes of a column of labels: which have no rows, and which look like another one."""

from collections.abc import Mapping

from trainer_loop.data.labels import LabelNames, RawLabel
from trainer_loop.data.wording import enumerate_some, plural

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
