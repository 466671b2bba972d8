"""From the values of a label column to class ids and their names, of training rows and of rows of a trained model."""

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from trainer_loop.data.columns import Columns
from trainer_loop.data.dataset_columns import as_typed_rows, read_column, read_values, whole_column
from trainer_loop.data.missing import lacks_label
from trainer_loop.data.split import Split
from trainer_loop.data.wording import enumerate_some, plural, shorten
from trainer_loop.errors import UserError, refuse

RawLabel = int | str | bool
NAMING_KINDS = ("classes", "integers", "texts", "true/false")  # of columns whose values can name classes
_KEY = "data.label_names"


@dataclass(frozen=True)
class LabelNames:
    """The classes of a task: names[id] is a name, ids[raw value] an id."""

    names: list[str]
    ids: dict[RawLabel, int]

    def count(self, found: Mapping[RawLabel, int]) -> npt.NDArray[np.int64]:
        """How many rows have each class, `[C]`. found: how many have each raw label."""
        counts = np.zeros(len(self.names), dtype=np.int64)
        for value, number in found.items():
            counts[self.ids[value]] += number
        return counts


def describe_kind(rows: datasets.Dataset, label: str) -> str:
    """What a label column holds: classes, integers, texts, true/false, decimal numbers, nulls, or values of type X."""
    feature = rows.features[label]
    if isinstance(feature, datasets.ClassLabel):
        return "classes"
    if isinstance(feature, datasets.Value):
        for start, kind in (
            (("int", "uint"), "integers"),
            (("string", "large_string"), "texts"),
            (("bool",), "true/false"),
            (("float", "decimal"), "decimal numbers"),
            (("null",), "nulls"),
        ):
            if feature.dtype.startswith(start):
                return kind
        return f"values of type {feature.dtype}"
    return f"values of type {type(feature).__name__}"


def name_labels(
    values: Iterable[RawLabel], *, kind: str, class_names: Sequence[str] | None, given: object
) -> LabelNames:
    """The classes of the training rows.

    values: the distinct labels of the training rows. kind: of `describe_kind`. class_names: of a ClassLabel column.
    given: the config's label_names: None, a list of names or a map from names to values. Raises UserError.

    Without names, a ClassLabel keeps its own, integers are in numerical order, texts in alphabetical order, and false
    comes before true. A list names the integers from 0, or false and true, or says which texts there may be; for a
    ClassLabel column it puts its names in this order, or gives it new ones. The ids of a map are in the order of its
    values where those are integers or false and true, else in its own.
    """
    if isinstance(given, Mapping):
        return _name_by_map(given, kind=kind, class_names=class_names)
    if isinstance(given, Sequence) and not isinstance(given, str):
        return _name_by_list(given, kind=kind, class_names=class_names)
    if given is not None:
        raise UserError(f"{_KEY}={shorten(given)}: it must be a list of names, a map {{name: value}} or null")
    if class_names is not None:
        return LabelNames(list(class_names), {position: position for position in range(len(class_names))})
    if kind == "true/false":
        return LabelNames(["false", "true"], {False: 0, True: 1})
    ordered = sorted(values)
    return LabelNames([str(value) for value in ordered], {value: position for position, value in enumerate(ordered)})


def _name_by_list(given: Sequence[object], *, kind: str, class_names: Sequence[str] | None) -> LabelNames:
    names = _check_names(given)
    if kind == "true/false":
        if len(names) != 2:
            raise UserError(f"{_KEY}={names}: the labels are true/false, so it must be [name of false, name of true]")
        return LabelNames(names, {False: 0, True: 1})
    if kind == "texts":
        return LabelNames(names, {name: position for position, name in enumerate(names)})
    if class_names is not None:
        if set(names) == set(class_names):
            return LabelNames(names, {raw: names.index(name) for raw, name in enumerate(class_names)})
        if len(names) != len(class_names):
            raise UserError(
                f"{_KEY} has {len(names)} names, the label column has {len(class_names)} classes "
                f"({enumerate_some(list(class_names), at_most=10)}); name all of them, or set it to null"
            )
    return LabelNames(names, {position: position for position in range(len(names))})


def _name_by_map(given: Mapping[Any, Any], *, kind: str, class_names: Sequence[str] | None) -> LabelNames:
    names = _check_names(list(given))
    if kind == "texts" and all(type(value) is int for value in given.values()):
        ordered = sorted(given, key=lambda name: given[name])
        raise UserError(
            f"{_KEY}={shorten(dict(given))}: the label column holds texts, and a map says what stands in the column "
            f"for each name, such as {{{ordered[0]}: {ordered[0]}}}; to number them in this order write "
            f"{_KEY}=[{enumerate_some([str(name) for name in ordered], at_most=10)}]"
        )
    raws: list[RawLabel] = []
    problems: list[str] = []
    for name, value in given.items():
        raw: Any = value
        if isinstance(value, str) and class_names is not None and value in class_names:
            raw = list(class_names).index(value)
        elif kind == "true/false" and value in (0, 1):
            raw = bool(value)
        is_of_kind = type(raw) is {"texts": str, "true/false": bool}.get(kind, int)
        if not is_of_kind:
            problems.append(f"{_KEY}.{name}={shorten(value)}: the label column holds {kind}, and this is not one")
        elif raw in raws:
            problems.append(f"{_KEY}.{name}={shorten(value)}: another name has this value already")
        else:
            raws.append(raw)
    refuse(problems)
    pairs = list(zip(names, raws, strict=True))
    if kind != "texts":
        pairs.sort(key=lambda pair: pair[1])
    return LabelNames([name for name, _ in pairs], {raw: position for position, (_, raw) in enumerate(pairs)})


def _check_names(given: Sequence[object]) -> list[str]:
    names = [name for name in given if isinstance(name, str) and name]
    if not names or len(names) < len(given):
        strangers = enumerate_some([shorten(name) for name in given if name not in names])
        raise UserError(
            f"{_KEY}: names must be texts, and these are not: {strangers}; quote them"
            if strangers
            else f"{_KEY} is empty; name the classes, or set it to null"
        )
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise UserError(f"{_KEY} has a name more than once: {enumerate_some(repeated)}")
    return names


def count_labels(split: Split, label: str) -> Counter[RawLabel]:
    """How many rows have each raw label; nulls are left out."""
    counts: Counter[RawLabel] = Counter()
    for column in read_column(split.rows, label):
        for counted in pc.value_counts(column.drop_null()).to_pylist():
            counts[counted["values"]] += counted["counts"]
    return counts


def count_raw_labels(split: Split, columns: Columns) -> Counter[RawLabel]:
    """How many rows have each raw label; of lists of labels, how many elements of all rows."""
    assert columns.label is not None, "there are labels"
    return count_labels(flatten(split, columns.label) if columns.has_class_lists else split, columns.label)


def flatten(split: Split, column: str) -> Split:
    """The elements of a column of lists, as rows of that column alone; each has the place of the row it is from."""
    lists = whole_column(split.rows, column).combine_chunks()
    feature = split.rows.features[column].feature
    rows = as_typed_rows(pa.table({column: lists.flatten()}), {column: feature})
    origins = split.origins.select(np.asarray(pc.list_parent_indices(lists), dtype=np.int64))
    return Split(split.name, rows, origins, split.fingerprint, split.columns)


def read_known_labels(
    split: Split, label: str, *, names: Sequence[str], values: Sequence[RawLabel]
) -> tuple[list[int | None], list[str]]:
    """The classes in a column that holds what stood in the training data, or the names of the classes.

    names, values: by class, the name and what stood in the training data. Returns the class of every row, `[N]`, None
    where it has none that the model knows, and lines for a person.
    """
    raws = list(read_values(split.rows, label))
    feature = split.rows.features[label]
    are_classes = isinstance(feature, datasets.ClassLabel)
    lacking = [lacks_label(value, are_classes=are_classes) for value in raws]
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
