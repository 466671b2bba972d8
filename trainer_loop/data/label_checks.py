"""Checks of the labels of all splits: problems and warnings."""

from collections.abc import Collection, Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from trainer_loop.data.columns import Columns
from trainer_loop.data.dataset_columns import find_rows, whole_column
from trainer_loop.data.labels import (
    NAMING_KINDS,
    LabelNames,
    RawLabel,
    count_labels,
    count_raw_labels,
    describe_kind,
    flatten,
    name_labels,
)
from trainer_loop.data.missing import FILL_OR_DROP, HIDDEN, has_classes, is_hidden, is_unlabelled
from trainer_loop.data.plain_columns import name_labels_of_rows
from trainer_loop.data.split import Split
from trainer_loop.data.wording import did_you_mean, enumerate_some, plural, shorten
from trainer_loop.errors import UserError

_PREFIXES = {"B", "I", "E", "S", "L", "U"}  # of the schemes BIO, BIOES and BILOU
_OPEN = {"B", "I"}  # prefixes after which an entity may continue
_CONTINUES = {"I", "E", "L"}


def check_labels(
    splits: Mapping[str, Split],
    columns: Columns,
    *,
    label_names: object,
    is_streamed: bool,
    known: LabelNames | None,
    cuts: Sequence[str],
) -> tuple[list[str], list[str], LabelNames | None]:
    """Check the labels of raw splits; lists of labels were checked before. See `check_splits` for the arguments.

    Returns:
        Problems, warnings, and the classes or None.
    """
    label = columns.label
    assert label is not None, "the columns have a label"
    labelled = {name: split for name, split in splits.items() if label in split.rows.column_names}
    labels_before = _find_labels_before(splits["train"], columns) if cuts and "train" in labelled else frozenset()
    if columns.has_class_lists:
        labelled = {name: flatten(name_labels_of_rows(split, columns), label) for name, split in labelled.items()}
    names_or_columns = columns.joined.get(label, label_names)
    problems, warnings, names = _check_classes(
        labelled,
        label,
        given=names_or_columns,
        is_streamed=is_streamed,
        known=known,
        labels_before=labels_before,
        cuts=cuts,
    )
    if columns.has_word_tags and names is not None and not problems:
        for name, split in splits.items():
            warnings += _warn_of_stray_tags(split, label, names, is_head=is_streamed and name == "train")
    return problems, warnings, names


def _find_labels_before(train: Split, columns: Columns) -> frozenset[RawLabel]:
    """Return the labels of the training rows before some rows were moved or removed; none for joined label columns."""
    before, label = train.before, columns.label
    if before is None or label is None or label in columns.joined or label not in before.rows.column_names:
        return frozenset()
    return frozenset(count_raw_labels(before, columns))


def _check_classes(
    splits: Mapping[str, Split],
    label: str,
    *,
    given: object,
    is_streamed: bool,
    known: LabelNames | None,
    labels_before: Collection[RawLabel],
    cuts: Sequence[str],
) -> tuple[list[str], list[str], LabelNames | None]:
    """Check columns with one label per row.

    Args:
        given: The names of the classes, see `name_labels`.
        labels_before: Labels that the training rows had before `cuts` moved or removed some.
    """
    problems: list[str] = []
    comparable: list[Split] = []  # splits whose values can be classes of the training rows
    train = splits.get("train")
    for split in splits.values():
        if places := split.list_where(label, is_unlabelled):
            problems.append(f"data.{split.name}: column {label!r} is null in {places}; {FILL_OR_DROP}")
        problems += _check_hidden(split, label)
        if kind_problems := _check_kind(split, label=label, train=train):
            problems += kind_problems
        else:
            comparable.append(split)
            problems += [] if known is None else _check_known(split, label=label, known=known)
    if known is not None:
        return problems, [] if problems else _warn_of_unscored_classes(splits, label, known), known
    if train is not None and not len(train.rows):
        return [*problems, f"data.train: no row has a label in column {label!r}; at least one must"], [], None
    if train is None or (kind := describe_kind(train.rows, label)) not in NAMING_KINDS:
        return problems, [], None

    class_names = getattr(train.rows.features[label], "names", None)
    counts = count_labels(train, label)
    if class_names is not None:
        counts.pop(HIDDEN, None)
    if is_streamed and given is None and kind in ("integers", "texts"):
        seen = enumerate_some([shorten(value) for value in sorted(counts)], at_most=10)
        remedy = f"name all of them; the first {plural(len(train.rows), 'row')} have {seen}"
        return [*problems, f"data.label_names=null: a stream is not searched for its labels: {remedy}"], [], None
    try:
        names = name_labels(counts, kind=kind, class_names=class_names, given=given)
    except UserError as error:
        return problems + error.problems, [], None
    is_named = given is not None or class_names is not None
    lost_labels = [] if is_named else [value for value in labels_before if value not in names.ids]
    for split in comparable:
        problems += _check_values(split, label=label, names=names, given=given, lost_labels=lost_labels)
        problems += _check_lost(split, label=label, lost_labels=lost_labels, cuts=cuts)
    if problems and not counts:
        return problems, [], names  # no class has rows, which is reported already
    if is_streamed:
        warnings = _warn_of_streamed_classes(counts, num_rows=len(train.rows))
    else:
        warnings = _warn_of_training_classes(counts, names)
    if not problems:
        warnings += _warn_of_unscored_classes(splits, label, names)
    return problems, warnings + _warn_of_spellings(names), names


def _check_hidden(split: Split, label: str) -> list[str]:
    """Check for hidden labels in a ClassLabel column, as the test sets of benchmarks have them."""
    if not has_classes(split.rows.features, label):
        return []
    hidden = int(find_rows(split.rows, label, is_hidden).sum())
    where = f"data.{split.name}: column {label!r} is {HIDDEN}"
    if hidden < len(split.rows):
        places = split.list_where(label, is_hidden)
        remedy = "remove these rows or set data.missing=drop"
        return [f"{where} in {places}; {HIDDEN} stands for a label that is kept secret: {remedy}"] if places else []
    remedy = f"set data.{split.name}=null; python -m trainer_loop.predict tells the classes of such rows"
    if split.name == "train":
        remedy = "name a split that has labels"
    return [f"{where} in all {plural(hidden, 'row')}: {HIDDEN} stands for a label that is kept secret: {remedy}"]


def _check_kind(split: Split, *, label: str, train: Split | None) -> list[str]:
    """Check that the column can hold classes, and the same classes as the training rows."""
    kind = describe_kind(split.rows, label)
    if kind == "nulls":
        return []  # every row is reported as null already
    where = f"data.{split.name}: column {label!r} holds"
    if kind == "decimal numbers":
        fraction = split.first_value(label, lambda value: value == value and not float(value).is_integer())
        return [
            f"{where} decimal numbers, such as {fraction}; classification needs integers, texts or "
            "true/false: make classes of them (1, not 1.0), or set task.name=sequence_regression, which learns numbers"
        ]
    if kind not in NAMING_KINDS:
        return [f"{where} {kind}; it must be one integer, text or true/false per row"]
    if train is None or train is split:
        return []
    train_kind = describe_kind(train.rows, label)
    if {kind, train_kind} == {"classes"}:
        return _compare_classes(split, label, train.rows.features[label].names)
    if train_kind in NAMING_KINDS and kind != train_kind and not {kind, train_kind} <= {"classes", "integers"}:
        return [f"{where} {kind}, such as {split.first_value(label)}, data.train has {train_kind}; write them alike"]
    return []


def _compare_classes(split: Split, label: str, expected: Sequence[str]) -> list[str]:
    names = split.rows.features[label].names
    if names == expected:
        return []
    return [
        f"data.{split.name}: column {label!r} holds the classes {enumerate_some(names, at_most=10)}, data.train has "
        f"{enumerate_some(expected, at_most=10)}; both need the same in the same order"
    ]


def _check_known(split: Split, *, label: str, known: LabelNames) -> list[str]:
    """Check that the labels are classes of the trained model."""
    kind = describe_kind(split.rows, label)
    kinds = {bool: ["true/false"], str: ["texts"]}.get(type(next(iter(known.ids))), ["integers", "classes"])
    if kind not in (*kinds, "nulls"):
        return [
            f"data.{split.name}: column {label!r} holds {kind}, such as {split.first_value(label)}, data.train has "
            f"{kinds[0]}; write them alike"
        ]
    class_names = getattr(split.rows.features[label], "names", None)
    if class_names is not None and sorted(class_names) == sorted(known.names):
        trained_names = [
            known.names[known.ids[number]] if number in known.ids else "" for number in range(len(class_names))
        ]
        if problems := _compare_classes(split, label, trained_names):
            return problems
    return _check_values(split, label=label, names=known, given=None)


def _check_values(
    split: Split, *, label: str, names: LabelNames, given: object, lost_labels: Collection[RawLabel] = ()
) -> list[str]:
    """Report labels that are not classes, except `lost_labels`, which `_check_lost` reports."""
    are_classes = has_classes(split.rows.features, label)
    allowed_too = {HIDDEN, *lost_labels} if are_classes else set(lost_labels)
    unknown = [value for value in count_labels(split, label) if value not in names.ids and value not in allowed_too]
    if not unknown:
        return []
    places = _describe_labelled(split, label, unknown)
    allowed = enumerate_some([shorten(value) for value in names.ids], at_most=10)
    is_named = given is not None or has_classes(split.rows.features, label)
    rule = "may be" if is_named else "in data.train are"
    remedy = "correct them or remove the rows"
    if isinstance(given, (list, tuple)) and all(type(value) is int for value in unknown):
        remedy = "a list names the values from 0 on; for others write a map, data.label_names={name: value}"
    elif all(isinstance(value, str) for value in unknown):
        remedy += did_you_mean(str(unknown[0]), map(str, names.ids))
    return [f"data.{split.name}: column {label!r} has an unknown label in {places}; labels {rule} {allowed}: {remedy}"]


def _check_lost(split: Split, *, label: str, lost_labels: Collection[RawLabel], cuts: Sequence[str]) -> list[str]:
    """Report labels that no training row has any more because `cuts` moved or removed all rows with them."""
    values = [value for value in count_labels(split, label) if value in lost_labels] if lost_labels else []
    if not values:
        return []
    return [
        f"data.{split.name}: column {label!r} has a label without a training row in "
        f"{_describe_labelled(split, label, values)}; data.train had some, and {', '.join(cuts)} moved or left out all "
        "of them: change this or the seed, or name all classes in data.label_names"
    ]


def _describe_labelled(split: Split, label: str, values: Sequence[RawLabel]) -> str:
    """Return text such as `3 rows: reviews.csv row 4 ('good'), ...` for the rows with one of these labels."""
    return split.list_where(label, lambda column: pc.is_in(column, pa.array(values, column.type)), shows_values=True)


def _warn_of_training_classes(counts: Mapping[RawLabel, int], names: LabelNames) -> list[str]:
    """Warn of classes without a training row, and if all training rows have the same class."""
    absent = _find_absent(counts, names)
    if len(absent) == len(names.names) - 1:
        (present,) = (name for name in names.names if name not in absent)
        return [f"data.train has one class only ({present}): a model learns nothing from it"]
    return [f"data.train has no rows of these classes: {enumerate_some(absent, at_most=10)}"] if absent else []


def _warn_of_unscored_classes(splits: Mapping[str, Split], label: str, names: LabelNames) -> list[str]:
    """Warn of classes without a row in a validation or test split, in one line for all of these splits."""
    scored = {name: split for name, split in splits.items() if name != "train"}
    absent = {name: _find_absent(count_labels(split, label), names) for name, split in scored.items()}
    parts = [
        f"data.{split} has no rows of {len(classes):,} of {len(names.names):,} classes: {enumerate_some(classes)}"
        for split, classes in absent.items()
        if classes
    ]
    effect = "its metrics say nothing of them, and a mean over classes (macro) counts them as 0 or leaves them out"
    return [f"{'; '.join(parts)}: {effect}"] if parts else []


def _warn_of_streamed_classes(counts: Mapping[RawLabel, int], *, num_rows: int) -> list[str]:
    """Warn if the first rows of a stream, `num_rows` of them, have the same class."""
    if len(counts) > 1 or num_rows == 1:
        return []
    return [
        f"data.train: the first {plural(num_rows, 'row')} are of one class; a stream is shuffled within "
        "data.shuffle_rows rows only, so where it is sorted by label shuffle its files, or raise data.shuffle_rows"
    ]


def _warn_of_spellings(names: LabelNames) -> list[str]:
    warnings: list[str] = []
    alike: dict[str, list[str]] = {}
    for name in names.names:
        alike.setdefault(name.strip().casefold(), []).append(name)
    for spellings in alike.values():
        if len(spellings) > 1:
            shown = enumerate_some([repr(name) for name in spellings])
            warnings.append(f"these labels differ in capitals or spaces only and are taken as unlike classes: {shown}")
    return warnings


def _find_absent(counts: Mapping[RawLabel, int], names: LabelNames) -> list[str]:
    present = {names.ids[value] for value, num_rows in counts.items() if num_rows and value in names.ids}
    return [name for class_id, name in enumerate(names.names) if class_id not in present]


def _warn_of_stray_tags(split: Split, column: str, names: LabelNames, *, is_head: bool = False) -> list[str]:
    """Warn of tags such as I-PER that continue an entity which has not started, if the tags have the prefix B.

    Args:
        split: Rows whose tags were checked.
        column: The column with a list of tags for each row.
        is_head: The split has only the first rows of a stream.
    """
    parts = [name.partition("-") for name in names.names]
    prefixes = {prefix for prefix, _, _ in parts} - {"O"}
    if "B" not in prefixes or not prefixes <= _PREFIXES:
        return []
    lists = whole_column(split.rows, column).combine_chunks()
    values = lists.flatten()
    indices = pc.index_in(values, pa.array(list(names.ids), values.type)).to_numpy(zero_copy_only=False)
    ids = np.array(list(names.ids.values()))[indices]
    rows = np.asarray(pc.list_parent_indices(lists))
    continues = np.array([prefix in _CONTINUES for prefix, _, _ in parts])
    is_open = np.array([prefix in _OPEN for prefix, _, _ in parts])
    kinds = np.unique([kind for _, _, kind in parts], return_inverse=True)[1]
    is_stray = continues[ids]
    is_stray[1:] &= ~((rows[1:] == rows[:-1]) & is_open[ids[:-1]] & (kinds[ids[1:]] == kinds[ids[:-1]]))
    if not is_stray.any():
        return []
    first = int(is_stray.argmax())
    count, tag, origin = int(is_stray.sum()), names.names[ids[first]], split.origins.place(rows[first])
    of = f" of the first {len(lists):,}" if is_head else ""
    return [
        f"data.{split.name}: {plural(count, 'tag')} in {plural(len(np.unique(rows[is_stray])), 'row')}{of} "
        f"{'goes' if count == 1 else 'go'} on with an entity that did not begin, the first is {tag} in {origin}; an "
        "entity begins with B-, and metrics let one begin there too"
    ]
