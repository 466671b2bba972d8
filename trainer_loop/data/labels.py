"""From the values of a label column to class ids and their names."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np
import numpy.typing as npt

from trainer_loop.data.wording import enumerate_some, shorten
from trainer_loop.errors import UserError, refuse

RawLabel = int | str | bool
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
