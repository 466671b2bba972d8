"""Class ids and names for the values of a label column, for training rows and for rows that a trained model scores."""

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
NAMING_KINDS = ("classes", "integers", "texts", "true/false")  # kinds of columns whose values can be classes
_KEY = "data.label_names"


@dataclass(frozen=True)
class LabelNames:
    """The classes of a task: `names[id]` is the name of a class, and `ids[raw value]` is its id."""

    names: list[str]
    ids: dict[RawLabel, int]

    def count(self, counts_of_values: Mapping[RawLabel, int]) -> npt.NDArray[np.int64]:
        """Return the number of rows of each class, `[C]`, from the number of rows of each raw label."""
        counts = np.zeros(len(self.names), dtype=np.int64)
        for value, num_rows in counts_of_values.items():
            counts[self.ids[value]] += num_rows
        return counts


def describe_kind(rows: datasets.Dataset, label: str) -> str:
    """Return what a column holds: classes, integers, texts, true/false, decimal numbers, nulls, or values of type X."""
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
    """Return the classes of the training rows.

    Without `given`, a ClassLabel column keeps its names, integers are in numerical order, texts in alphabetical order,
    and false comes before true. A list names the integers from 0, or false and true, or lists the allowed texts; for a
    ClassLabel column it reorders the names or replaces them. With a map, ids are in the order of its values if those
    are integers or booleans, else in the order of the map.

    Args:
        values: The distinct labels of the training rows.
        kind: From `describe_kind`.
        class_names: Names of a ClassLabel column; None for other columns.
        given: `data.label_names`: None, a list of names, or a map from names to values.

    Raises:
        UserError: `given` does not fit the column.
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
        others = enumerate_some([shorten(name) for name in given if name not in names])
        raise UserError(
            f"{_KEY}: names must be texts, and these are not: {others}; quote them"
            if others
            else f"{_KEY} is empty; name the classes, or set it to null"
        )
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise UserError(f"{_KEY} has a name more than once: {enumerate_some(repeated)}")
    return names


def count_labels(split: Split, label: str) -> Counter[RawLabel]:
    """Return the number of rows with each raw label, without nulls."""
    counts: Counter[RawLabel] = Counter()
    for column in read_column(split.rows, label):
        for entry in pc.value_counts(column.drop_null()).to_pylist():
            counts[entry["values"]] += entry["counts"]
    return counts


def count_raw_labels(split: Split, columns: Columns) -> Counter[RawLabel]:
    """Return the number of rows with each raw label, or of elements if rows have lists of labels."""
    assert columns.label is not None, "there are labels"
    return count_labels(flatten(split, columns.label) if columns.has_class_lists else split, columns.label)


def flatten(split: Split, column: str) -> Split:
    """Return the elements of a column of lists as rows of one column. Each element has the origin of its row."""
    lists = whole_column(split.rows, column).combine_chunks()
    feature = split.rows.features[column].feature
    rows = as_typed_rows(pa.table({column: lists.flatten()}), {column: feature})
    lengths = pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False)
    origins = split.origins.select(np.repeat(np.arange(len(lists)), lengths))
    return Split(split.name, rows, origins, split.fingerprint, split.columns)


def read_known_labels(
    split: Split, label: str, *, names: Sequence[str], values: Sequence[RawLabel]
) -> tuple[list[int | None], list[str]]:
    """Convert labels of rows to the classes of a trained model. Labels may be raw values or names of classes.

    Args:
        split: The rows.
        label: The column of labels.
        names: Name of each class.
        values: Raw value of each class in the training data.

    Returns:
        The class id of each row, `[N]`, None without a label or with an unknown one; and messages for the user.
    """
    raws = list(read_values(split.rows, label))
    feature = split.rows.features[label]
    are_classes = isinstance(feature, datasets.ClassLabel)
    are_missing = [lacks_label(value, are_classes=are_classes) for value in raws]
    present = [value for value, is_missing in zip(raws, are_missing, strict=True) if not is_missing]
    find_class = _choose_lookup(present, feature, names=names, values=values)
    ids = [None if is_missing else find_class(value) for value, is_missing in zip(raws, are_missing, strict=True)]
    unknown = [
        row
        for row, (class_id, is_missing) in enumerate(zip(ids, are_missing, strict=True))
        if class_id is None and not is_missing
    ]
    notes = []
    if all(are_missing):
        return ids, [f"no metrics: column {label!r} has no label in any row"]
    first = [f"{shorten(raws[row])} ({split.origins.place(row)})" for row in unknown[:1]]
    if len(unknown) + sum(are_missing) == len(raws):
        classes = enumerate_some(list(names), at_most=10)
        return ids, [f"no metrics: column {label!r} holds {first[0]}, and the model knows {classes}"]
    if any(are_missing):
        notes.append(f"{plural(sum(are_missing), 'row')} without a label in column {label!r}: left out of the metrics")
    if unknown:
        rows = plural(len(unknown), "row")
        notes.append(f"{rows} with a label that the model does not know, such as {first[0]}: left out of the metrics")
    return ids, notes


def _choose_lookup(
    present: Sequence[Any], feature: Any, *, names: Sequence[str], values: Sequence[RawLabel]
) -> Callable[[Any], int | None]:
    """Return a function from label to class id. It looks up raw values or names: those that more rows match."""
    normalisers = [_as_typed, _as_text]  # as texts if types differ
    lookups = [_make_lookup(labels, normalise, normalise) for normalise in normalisers for labels in (values, names)]
    if isinstance(feature, datasets.ClassLabel):  # by name first: ids of this column may have another order
        classes = dict(enumerate(feature.names))
        by_name = [
            _make_lookup(labels, _as_typed, lambda value: _as_typed(classes.get(value))) for labels in (names, values)
        ]
        lookups = [*by_name, *lookups]
    # The first one if several are equal.
    return max(lookups, key=lambda lookup: sum(lookup(value) is not None for value in present))


def _make_lookup(
    labels: Sequence[RawLabel], normalise: Callable[[Any], Hashable], normalise_value: Callable[[Any], Hashable]
) -> Callable[[Any], int | None]:
    ids = {normalise(label): class_id for class_id, label in enumerate(labels)}
    return lambda value: ids.get(normalise_value(value))


def _as_text(value: Any) -> str:
    """Convert a value to text. Whole floats become integers: pandas writes integers with holes as floats."""
    return str(int(value) if _is_whole(value) and not isinstance(value, bool) else value).lower()


def _as_typed(value: Any) -> tuple[str, Any]:
    """Return a dict key that differs for 1 and true, and is the same for 1 and 1.0."""
    if isinstance(value, bool):
        return "true/false", value
    if isinstance(value, int) or (not isinstance(value, str) and _is_whole(value)):
        return "integer", int(value)
    return "text", value if isinstance(value, str) else repr(value)


def _is_whole(value: Any) -> bool:
    return hasattr(value, "is_integer") and bool(value.is_integer())
