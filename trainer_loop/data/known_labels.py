"""Labels of rows that a trained model judges, as its classes."""

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import datasets

from trainer_loop.data.labels import RawLabel
from trainer_loop.data.missing import HIDDEN, read_column
from trainer_loop.data.split import Split
from trainer_loop.data.values import is_nan
from trainer_loop.data.wording import enumerate_some, plural, shorten


def read_known_labels(
    split: Split, label: str, *, names: Sequence[str], values: Sequence[RawLabel]
) -> tuple[list[int | None], list[str]]:
    """The classes in a column that holds what stood in the training data, or the names of the classes.

    names, values: by class, the name and what stood in the training data. Returns the class of every row, `[N]`, None
    where it has none that the model knows, and lines for a person.
    """
    raws = [value for part in read_column(split.rows, label) for value in part.to_pylist()]
    feature = split.rows.features[label]
    are_classes = isinstance(feature, datasets.ClassLabel)
    lacking = [value is None or is_nan(value) or (are_classes and value == HIDDEN) for value in raws]
    present = [value for value, gone in zip(raws, lacking, strict=True) if not gone]
    find = _choose_reading(present, feature, names=names, values=values)
    ids = [None if gone else find(value) for value, gone in zip(raws, lacking, strict=True)]
    strangers = [row for row, (found, gone) in enumerate(zip(ids, lacking, strict=True)) if found is None and not gone]
    notes = []
    if all(lacking):
        return ids, [f"no metrics: column {label!r} has no label in any row"]
    shown = [f"{shorten(raws[row])} ({split.origins.place(row)})" for row in strangers[:1]]
    if len(strangers) + sum(lacking) == len(raws):
        classes = enumerate_some(list(names), at_most=10)
        return ids, [f"no metrics: column {label!r} holds {shown[0]}, and the model knows {classes}"]
    if any(lacking):
        notes.append(f"{plural(sum(lacking), 'row')} without a label in column {label!r}: left out of the metrics")
    if strangers:
        rows = plural(len(strangers), "row")
        notes.append(f"{rows} with a label that the model does not know, such as {shown[0]}: left out of the metrics")
    return ids, notes


def _choose_reading(
    present: Sequence[Any], feature: Any, *, names: Sequence[str], values: Sequence[RawLabel]
) -> Callable[[Any], int | None]:
    """From a label to its class: by the training data or by the names, whichever knows more rows."""
    spellings = [_key, _as_text]  # as text where types differ
    readings = [_reading(labels, spell, spell) for spell in spellings for labels in (values, names)]
    if isinstance(feature, datasets.ClassLabel):  # names say more than numbers, which follow an order of their own
        classes = dict(enumerate(feature.names))
        named = [_reading(labels, _key, lambda value: _key(classes.get(value))) for labels in (names, values)]
        readings = [*named, *readings]
    return max(readings, key=lambda read: sum(read(value) is not None for value in present))  # the first of equal ones


def _reading(
    labels: Sequence[RawLabel], spell: Callable[[Any], Hashable], spell_value: Callable[[Any], Hashable]
) -> Callable[[Any], int | None]:
    known = {spell(label): number for number, label in enumerate(labels)}
    return lambda value: known.get(spell_value(value))


def _as_text(value: Any) -> str:
    """A file of texts has no types, and a library without integers with holes has decimal numbers."""
    return str(int(value) if _is_whole(value) and not isinstance(value, bool) else value).lower()


def _key(value: Any) -> tuple[str, Any]:
    """1 and true are one key to a dict, and 1.0 stands for 1."""
    if isinstance(value, bool):
        return "true/false", value
    if isinstance(value, int) or (not isinstance(value, str) and _is_whole(value)):
        return "integer", int(value)
    return "text", value if isinstance(value, str) else repr(value)


def _is_whole(value: Any) -> bool:
    return hasattr(value, "is_integer") and bool(value.is_integer())
