from typing import Any

import datasets
import numpy as np
import pytest
from columns import make_columns

from trainer_loop.data.labels import LabelNames
from trainer_loop.data.origins import Origins
from trainer_loop.data.split import Split, TokenisedSplit
from trainer_loop.data.split_facts import describe_data, measure_data


def make_split(name: str, **columns: list[Any]) -> Split:
    rows = datasets.Dataset.from_dict(columns)
    return Split(name, rows, Origins.of(name, len(rows)), "abc")


def tokenised(name: str, lengths: list[int], num_truncated: int = 0, **columns: list[Any]) -> TokenisedSplit:
    rows = datasets.Dataset.from_dict({"input_ids": [[0] * length for length in lengths], **columns})
    origins = Origins.of(name, len(lengths))
    return TokenisedSplit(name, rows, np.array(lengths, dtype=np.int32), num_truncated, origins, fingerprint="")


def describe(tokenised: dict[str, TokenisedSplit], **others: Any) -> list[str]:
    return describe_data(measure_data(tokenised, **others))


def test_the_report_of_a_classification():
    splits = {
        "train": make_split("train", text=["a", "b", "c", "d"], label=["neg", "pos", "pos", "pos"]),
        "validation": make_split("validation", text=["b", "x", "b"], label=["neg", "neg", "pos"]),
    }
    lines = describe(
        {
            "train": tokenised("train", [3, 5, 9, 20], num_truncated=1),
            "validation": tokenised("validation", [4, 4, 4]),
        },
        splits=splits, columns=make_columns(), label_names=LabelNames(["neg", "pos"], {"neg": 0, "pos": 1}),
    )  # fmt: skip
    assert lines == [
        "train: 4 rows; labels: neg 1 (25.0%), pos 3 (75.0%)",
        "train: tokens per row: median 7, 95 % within 18, longest 20; 1 text (25.0%) cut at max_length",
        "validation: 3 rows; labels: neg 2 (66.7%), pos 1 (33.3%)",
        "validation: tokens per row: median 4, 95 % within 4, longest 4; 0 texts (0.0%) cut at max_length",
        "validation: 2 rows (66.7%) with a text that is in train too",
    ]


def test_the_report_of_chunks():
    lines = describe(
        {"train": tokenised("train", [128, 128])},
        splits={"train": make_split("train", text=["a"] * 5)}, columns=make_columns(label=None), label_names=None,
    )  # fmt: skip
    assert lines[0] == "train: 2 rows of 5 texts"


def test_of_many_labels_the_most_common_are_named():
    names = LabelNames([f"l{n}" for n in range(12)], {n: n for n in range(12)})
    labels = [label for label in range(12) for _ in range(label + 1)]
    (line, _) = describe(
        {"train": tokenised("train", [1] * len(labels))},
        splits={"train": make_split("train", text=["a"] * len(labels), label=labels)},
        columns=make_columns(), label_names=names,
    )  # fmt: skip
    assert line.startswith("train: 78 rows; labels: l11 12 (15.4%), l10 11 (14.1%), ")
    assert line.endswith("l2 3 (3.8%) and 2 more with 1 to 2 rows")


@pytest.mark.parametrize(
    ("train", "other", "duplicates"),
    [
        ({"text": ["a", "b"]}, {"text": ["A", "b ", "b"]}, 1),
        ({"text": ["", " "]}, {"text": ["", " ", "x"]}, 0),
        (
            {"text": ["a", "a b"], "pair": ["b", "c"]},
            {"text": ["a", "a", "a b", "b"], "pair": ["b", "b c", "c", "a"]},
            2,
        ),
        ({"text": ["a"], "pair": ["b"]}, {"text": ["a"], "pair": ["c"]}, 0),
    ],
)
def test_duplicates_are_the_same_character_for_character(
    train: dict[str, list[str]], other: dict[str, list[str]], duplicates: int
):
    columns = make_columns(label=None, text_pair="pair") if "pair" in train else make_columns(label=None)
    splits = {"train": make_split("train", **train), "validation": make_split("validation", **other)}
    encoded = {name: tokenised(name, [1] * len(split.rows)) for name, split in splits.items()}
    facts = measure_data(encoded, splits=splits, columns=columns, label_names=None)
    assert facts["validation"].in_train == duplicates
    assert facts["train"].in_train is None
