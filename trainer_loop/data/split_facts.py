"""Statistics of the data, computed before training."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from trainer_loop.data.columns import Columns
from trainer_loop.data.dataset_columns import find_rows
from trainer_loop.data.histogram import choose_whole_edges
from trainer_loop.data.labels import LabelNames, count_raw_labels
from trainer_loop.data.split import Split, TokenisedSplit
from trainer_loop.data.values import KINDS_OF_TEXTS, list_texts
from trainer_loop.data.wording import plural

_LABELS_SHOWN = 10
_BINS = 20  # of the histogram of lengths
_READ_ROWS = 10_000  # rows that are read at a time


@dataclass(frozen=True)
class Lengths:
    """Tokens of the rows of a split; `counts` is a histogram of them between the `edges`."""

    median: float
    p95: float  # 95 % of the rows have no more
    longest: int
    edges: list[float]
    counts: list[int]

    @classmethod
    def of(cls, lengths: npt.NDArray[np.int32]) -> "Lengths":
        """Measure the tokens of each row, `[N]`."""
        edges = choose_whole_edges(lengths, at_most=_BINS)
        counts, _ = np.histogram(lengths, bins=edges)
        median, p95 = np.percentile(lengths, [50, 95]).tolist()
        return cls(median, p95, int(lengths.max()), edges.tolist(), counts.tolist())


@dataclass(frozen=True)
class SplitFacts:
    """Statistics of the rows of a split."""

    rows: int  # encoded rows
    texts: int  # raw rows
    labels: dict[str, int] | None = None  # rows (or words) of each class, by its name; None without classes
    labelled: int = 0  # rows (or words) that can have a class
    unlabelled: int | None = None  # rows with an empty list of labels; None if rows have no lists
    lengths: Lengths | None = None  # None if rows have no tokens
    truncated: int = 0  # texts that were cut at max_length
    without_targets: int = 0  # rows whose targets were all cut off
    repeated: int | None = None  # rows with the same texts as an earlier row of the split; None: not compared
    in_train: int | None = None  # rows with the same texts as a training row; None: not compared

    def describe(self, name: str) -> Iterator[str]:
        """Iterate over lines of text about this split, whose name is `name`."""
        chunks = "" if self.rows == self.texts else f" of {plural(self.texts, 'text')}"
        labels = "" if self.labels is None else f"; labels: {_describe_labels(self.labels, total=self.labelled)}"
        if self.unlabelled:
            labels += f"; {plural(self.unlabelled, 'row')} ({self.unlabelled / self.texts:.1%}) without a label"
        yield f"{name}: {plural(self.rows, 'row')}{chunks}{labels}"
        if self.lengths is not None:
            of = self.lengths
            yield (
                f"{name}: tokens per row: median {of.median:.0f}, 95 % within {of.p95:.0f}, longest {of.longest}; "
                f"{plural(self.truncated, 'text')} ({self.truncated / self.texts:.1%}) cut at max_length"
            )
        if self.without_targets:
            yield (f"{name}: {plural(self.without_targets, 'row')} without a target, which is cut away at max_length")


def measure_data(
    tokenised: Mapping[str, TokenisedSplit],
    *,
    splits: Mapping[str, Split],
    columns: Columns,
    label_names: LabelNames | None,
) -> dict[str, SplitFacts]:
    """Return the statistics of each split. Texts are compared with those of `train` if there are other splits."""
    texts = columns.of_kind(*KINDS_OF_TEXTS)
    compares = bool(texts) and "train" in splits and len(tokenised) > 1
    hashes = {name: _hash_texts(splits[name], texts) for name in tokenised} if compares else {}
    facts = {}
    for name, split in tokenised.items():
        labels: dict[str, Any] = {}
        if label_names is not None and columns.label is not None:
            labels = _measure_labels(splits[name], columns, label_names)
        has_tokens = "input_ids" in split.rows.column_names
        text_hashes = hashes.get(name)
        facts[name] = SplitFacts(
            rows=len(split.rows),
            texts=len(splits[name].rows),
            **labels,
            lengths=Lengths.of(split.lengths) if has_tokens else None,
            truncated=split.num_truncated,
            without_targets=_count_without_targets(split) if has_tokens else 0,
            repeated=None if text_hashes is None else len(text_hashes) - len(np.unique(text_hashes)),
            in_train=None
            if text_hashes is None or name == "train"
            else int(np.isin(text_hashes, hashes["train"]).sum()),
        )
    return facts


def describe_data(facts: Mapping[str, SplitFacts]) -> list[str]:
    """Return lines of text about all splits. `facts` are by split."""
    lines = [line for name, split_facts in facts.items() for line in split_facts.describe(name)]
    for name, split_facts in facts.items():
        if (count := split_facts.in_train) is not None:
            lines.append(
                f"{name}: {plural(count, 'row')} ({count / split_facts.texts:.1%}) with a text that is in train too"
            )
    return lines


def _measure_labels(split: Split, columns: Columns, label_names: LabelNames) -> dict[str, Any]:
    assert columns.label is not None, "there are labels"
    raw = count_raw_labels(split, columns)
    unlabelled = None
    if columns.has_class_lists and not columns.has_word_tags:
        are_empty = find_rows(split.rows, columns.label, lambda lists: pc.equal(pc.list_value_length(lists), 0))
        unlabelled = int(are_empty.sum())
    return {
        "labels": dict(zip(label_names.names, label_names.count(raw).tolist(), strict=True)),
        "labelled": raw.total() if columns.has_word_tags else len(split.rows),
        "unlabelled": unlabelled,
    }


def _count_without_targets(split: TokenisedSplit) -> int:
    """Count the rows whose `labels` are all -100."""
    if "labels" not in split.rows.column_names:
        return 0
    batches = split.rows.select_columns(["labels"]).with_format("arrow").iter(batch_size=_READ_ROWS)
    count = 0
    for batch in batches:
        labels = batch["labels"].combine_chunks()
        parents = np.arange(len(labels))  # the row that each element is from
        values = labels
        while pa.types.is_list(values.type) or pa.types.is_large_list(values.type):
            parents, values = parents[np.asarray(pc.list_parent_indices(values))], values.flatten()
        count += len(labels) - len(np.unique(parents[np.asarray(pc.not_equal(values, -100))]))
    return count


def _describe_labels(counts: Mapping[str, int], *, total: int) -> str:
    """Return the counts and shares of the classes. `counts` and `total` are rows, or words."""
    common_first = sorted(counts, key=lambda name: -counts[name]) if len(counts) > _LABELS_SHOWN else list(counts)
    shown = [f"{name} {counts[name]:,} ({counts[name] / total:.1%})" for name in common_first[:_LABELS_SHOWN]]
    rest = [counts[name] for name in common_first[_LABELS_SHOWN:]]
    more = f" and {len(rest)} more with {min(rest):,} to {max(rest):,} rows" if rest else ""
    return ", ".join(shown) + more


def _hash_texts(split: Split, columns: Sequence[str]) -> npt.NDArray[np.int64]:
    """Return a hash for each row whose texts are not blank. Only a batch of texts is in memory at a time."""
    hashes = [np.empty(0, dtype=np.int64)]
    for batch in split.rows.select_columns(list(columns)).with_format("arrow").iter(batch_size=_READ_ROWS):
        values = zip(*(batch[column].to_pylist() for column in columns), strict=True)
        texts = (tuple(chain.from_iterable(map(list_texts, row))) for row in values)
        hashes.append(np.array([hash(row) for row in texts if any(text.strip() for text in row)], dtype=np.int64))
    return np.concatenate(hashes)
