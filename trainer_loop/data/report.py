"""What is told about the data before training."""

from collections.abc import Mapping, Sequence
from itertools import chain

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from trainer_loop.data.checks import count_labels, flatten
from trainer_loop.data.column_values import KINDS_OF_TEXTS, list_texts
from trainer_loop.data.columns import Columns
from trainer_loop.data.labels import LabelNames, RawLabel
from trainer_loop.data.missing import find_rows
from trainer_loop.data.split import Split
from trainer_loop.data.tokens import TokenisedSplit
from trainer_loop.data.wording import plural

_LABELS_SHOWN = 10
_READ_ROWS = 10_000  # at a time


def describe_data(
    tokenised: Mapping[str, TokenisedSplit],
    *,
    splits: Mapping[str, Split],
    columns: Columns,
    label_names: LabelNames | None,
) -> list[str]:
    """Lines for a person: rows, labels and their shares, token lengths, texts cut short, and texts seen in training."""
    lines: list[str] = []
    for name, split in tokenised.items():
        num_texts = len(splits[name].rows)
        chunks = "" if len(split.rows) == num_texts else f" of {plural(num_texts, 'text')}"
        labels = ""
        if label_names is not None and columns.label is not None:
            raw = flatten(splits[name], columns.label) if columns.has_class_lists else splits[name]
            total = len(splits[name].rows if not columns.has_word_tags else raw.rows)
            labels = f"; labels: {_describe_labels(count_labels(raw, columns.label), label_names, total=total)}"
            if columns.has_class_lists and not columns.has_word_tags:
                labels += _describe_unlabelled(splits[name], columns.label)
        lines.append(f"{name}: {plural(len(split.rows), 'row')}{chunks}{labels}")
        if "input_ids" not in split.rows.column_names:
            continue
        median, high = np.percentile(split.lengths, [50, 95])
        lines.append(
            f"{name}: tokens per row: median {median:.0f}, 95 % within {high:.0f}, longest {split.lengths.max()}; "
            f"{plural(split.num_truncated, 'text')} ({split.num_truncated / num_texts:.1%}) cut at max_length"
        )
        if untaught := _count_without_targets(split):
            lines.append(f"{name}: {plural(untaught, 'row')} without a target, which is cut away at max_length")
    texts = columns.of_kind(*KINDS_OF_TEXTS)
    for name in tokenised:
        if name != "train" and "train" in splits and texts:
            duplicates = count_duplicates(splits["train"], splits[name], texts)
            share = duplicates / len(splits[name].rows)
            lines.append(f"{name}: {plural(duplicates, 'row')} ({share:.1%}) with a text that is in train too")
    return lines


def _count_without_targets(split: TokenisedSplit) -> int:
    """Rows whose `labels` are all -100."""
    if "labels" not in split.rows.column_names:
        return 0
    batches = split.rows.select_columns(["labels"]).with_format("arrow").iter(batch_size=_READ_ROWS)
    found = 0
    for batch in batches:
        labels = batch["labels"].combine_chunks()
        parents = np.arange(len(labels))  # the row that each element is from
        values = labels
        while pa.types.is_list(values.type) or pa.types.is_large_list(values.type):
            parents, values = parents[np.asarray(pc.list_parent_indices(values))], values.flatten()
        found += len(labels) - len(np.unique(parents[np.asarray(pc.not_equal(values, -100))]))
    return found


def count_duplicates(train: Split, other: Split, texts: Sequence[str]) -> int:
    """Rows of `other` whose texts are also in `train`, character for character; blank ones are not counted."""
    known, asked = (_hash_texts(split, texts) for split in (train, other))
    return int(np.isin(asked, known).sum())


def _describe_labels(found: Mapping[RawLabel, int], label_names: LabelNames, *, total: int) -> str:
    """found: how many rows or words have each raw label. total: rows or words."""
    counts = label_names.count(found)
    common_first = np.argsort(-counts, kind="stable") if len(counts) > _LABELS_SHOWN else np.arange(len(counts))
    shown = [
        f"{label_names.names[label]} {counts[label]:,} ({counts[label] / total:.1%})"
        for label in common_first[:_LABELS_SHOWN]
    ]
    rest = counts[common_first[_LABELS_SHOWN:]]
    more = f" and {len(rest)} more with {rest.min():,} to {rest.max():,} rows" if len(rest) else ""
    return ", ".join(shown) + more


def _describe_unlabelled(split: Split, column: str) -> str:
    """How many rows have an empty list of labels."""
    number = int(find_rows(split.rows, column, lambda lists: pc.equal(pc.list_value_length(lists), 0)).sum())
    return f"; {plural(number, 'row')} ({number / len(split.rows):.1%}) without a label" if number else ""


def _hash_texts(split: Split, columns: Sequence[str]) -> npt.NDArray[np.int64]:
    """A number for the text of every row that is not blank; the texts themselves are held a few at a time."""
    hashes = [np.empty(0, dtype=np.int64)]
    for batch in split.rows.select_columns(list(columns)).with_format("arrow").iter(batch_size=_READ_ROWS):
        values = zip(*(batch[column].to_pylist() for column in columns), strict=True)
        texts = (tuple(chain.from_iterable(map(list_texts, row))) for row in values)
        hashes.append(np.array([hash(row) for row in texts if any(text.strip() for text in row)], dtype=np.int64))
    return np.concatenate(hashes)
