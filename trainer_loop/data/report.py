"""What is told about the data before training."""

from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from trainer_loop.data.labels import LabelNames
from trainer_loop.data.split import Split
from trainer_loop.data.tokens import TokenisedSplit
from trainer_loop.data.wording import count

_LABELS_SHOWN = 10


def describe_data(
    tokenised: Mapping[str, TokenisedSplit],
    *,
    splits: Mapping[str, Split],
    text: str,
    text_pair: str | None,
    label_names: LabelNames | None,
) -> list[str]:
    """Lines for a person: rows, labels and their shares, token lengths, texts cut short, and texts seen in training."""
    lines: list[str] = []
    for name, split in tokenised.items():
        num_texts = len(splits[name].rows)
        chunks = "" if len(split.rows) == num_texts else f" of {count(num_texts, 'text')}"
        labels = "" if label_names is None else f"; labels: {_describe_labels(split, label_names)}"
        lines.append(f"{name}: {count(len(split.rows), 'row')}{chunks}{labels}")
        median, high = np.percentile(split.lengths, [50, 95])
        lines.append(
            f"{name}: tokens per row: median {median:.0f}, 95 % within {high:.0f}, longest {split.lengths.max()}; "
            f"{count(split.num_truncated, 'text')} ({split.num_truncated / num_texts:.1%}) cut at max_length"
        )
    for name in tokenised:
        if name != "train" and "train" in splits:
            duplicates = count_duplicates(splits["train"], splits[name], text=text, text_pair=text_pair)
            share = duplicates / len(splits[name].rows)
            lines.append(f"{name}: {count(duplicates, 'row')} ({share:.1%}) with a text that is in train too")
    return lines


def count_duplicates(train: Split, other: Split, *, text: str, text_pair: str | None) -> int:
    """Rows of `other` whose text (with its second text) is also in `train`, character for character; blank ones are
    not counted."""
    columns = [text] if text_pair is None else [text, text_pair]
    known, asked = (_read_texts(split, columns) for split in (train, other))
    is_blank = pc.equal(pc.utf8_length(pc.utf8_trim_whitespace(asked)), 0)
    return int(pc.sum(pc.and_not(pc.is_in(asked, known), is_blank)).as_py() or 0)


def _describe_labels(split: TokenisedSplit, label_names: LabelNames) -> str:
    counts = np.bincount(split.rows.data.column("label").to_numpy(), minlength=len(label_names.names))
    common_first = np.argsort(-counts, kind="stable") if len(counts) > _LABELS_SHOWN else np.arange(len(counts))
    shown = [
        f"{label_names.names[label]} {counts[label]:,} ({counts[label] / counts.sum():.1%})"
        for label in common_first[:_LABELS_SHOWN]
    ]
    rest = counts[common_first[_LABELS_SHOWN:]]
    more = f" and {len(rest)} more with {rest.min():,} to {rest.max():,} rows" if len(rest) else ""
    return ", ".join(shown) + more


def _read_texts(split: Split, columns: list[str]) -> pa.ChunkedArray:
    table = split.rows.select_columns(columns).with_format("arrow")[:]
    texts = [table[column].cast(pa.large_string()) for column in columns]
    # Lengths keep ("a b", "c") and ("a", "b c") apart.
    lengths = [pc.utf8_length(column).cast(pa.large_string()) for column in texts[:-1]]
    return pc.binary_join_element_wise(*lengths, *texts, pa.scalar(" ", pa.large_string()))
