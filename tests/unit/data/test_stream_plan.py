"""The first rows of a stream are judged before anything loads, and of files at least one row of each."""

import json
from pathlib import Path

import datasets
import pytest
from columns import make_columns

from trainer_loop.data.checks import check_splits
from trainer_loop.data.labels import LabelNames
from trainer_loop.data.read_splits import read_splits
from trainer_loop.data.section import DataSection
from trainer_loop.data.split import Split


def open_head(*files: str, label: str | None = "label") -> tuple[Split | None, list[str]]:
    section = DataSection(list(files), make_columns("text", None, label), seed=1, streaming=True)
    splits, _, problems = read_splits(section)
    return splits.get("train"), problems


def judge(*files: str, label_names: object = None) -> tuple[list[str], list[str], LabelNames | None]:
    head, problems = open_head(*files)
    assert head is not None, problems
    return check_splits({"train": head}, columns=make_columns(), label_names=label_names, is_streamed=True)


def write_csv(path: str, rows: list[tuple[str, str]]) -> str:
    Path(path).write_text("text,label\n" + "".join(f"{text},{label}\n" for text, label in rows))
    return path


def test_the_head_has_the_first_rows_with_their_places_and_the_names_of_all_columns(folder: Path):
    Path("a.jsonl").write_text(
        "".join(json.dumps({"id": n, "text": f"t{n}", "label": n % 2}) + "\n" for n in range(3000))
    )
    head, problems = open_head("a.jsonl")
    assert problems == []
    assert len(head.rows) == 1000
    assert head.origins.place(999) == "a.jsonl line 1000"
    assert head.columns == ["id", "text", "label"]
    assert head.rows[999] == {"text": "t999", "label": 1}


def test_of_every_file_a_row_is_looked_at(folder: Path):
    files = [write_csv("a.csv", [("a", "0")] * 1200), write_csv("b.csv", [("b", "1")] * 9)]
    head, _ = open_head(*files)
    assert len(head.rows) == 1001
    assert head.origins.place(1000) == "b.csv row 1"
    Path("c.csv").write_text("texts,label\nx,1\n")
    Path("d.csv").write_text("text,label\n")
    assert open_head(*files, "c.csv") == (
        None,
        ["c.csv has no column 'text'; it has texts, label; did you mean 'texts'?"],
    )
    assert open_head(*files, "d.csv")[1] == ["d.csv has no rows"]


def test_labels_of_csv_files_are_of_one_kind_over_all_files(folder: Path):
    write_csv("a.csv", [("a", "1"), ("b", "unrated")])
    write_csv("b.csv", [("c", "2")])
    head, problems = open_head("a.csv", "b.csv")
    assert problems == []
    assert list(head.rows["label"]) == ["1", "unrated", "2"]
    write_csv("a.csv", [("a", "1"), ("b", "0")])
    assert list(open_head("a.csv", "b.csv")[0].rows["label"]) == [1, 0, 2]
    Path("c.jsonl").write_text('{"text": "d", "label": 0}\n')
    assert list(open_head("a.csv", "c.jsonl")[0].rows["label"]) == [1, 0, 0]


def test_a_stream_is_not_searched_for_labels(folder: Path):
    for labels in (["good", "bad"], ["1", "0"]):
        write_csv("a.csv", [("a", labels[0]), ("b", labels[1])])
        problems, _, names = judge("a.csv")
        seen = ", ".join(sorted(labels)) if labels == ["1", "0"] else "'bad', 'good'"
        assert problems == [
            "data.label_names=null: a stream is not searched for its labels: "
            f"name all of them; the first 2 rows have {seen}"
        ]
        assert names is None


def test_labels_that_need_no_search_need_no_names(folder: Path):
    write_csv("a.csv", [("a", "true"), ("b", "false")])
    assert judge("a.csv") == ([], [], LabelNames(["false", "true"], {False: 0, True: 1}))
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["x", "y"])})
    datasets.Dataset.from_dict({"text": ["a"], "label": [1]}, features=features).to_parquet("a.parquet")
    assert judge("a.parquet") == ([], [], LabelNames(["x", "y"], {0: 0, 1: 1}))


def test_named_labels_are_checked(folder: Path):
    write_csv("a.csv", [("a", "good"), ("b", "neutral")])
    problems, _, names = judge("a.csv", label_names=["bad", "good"])
    assert "unknown label in 1 row: a.csv row 2 ('neutral'); labels may be 'bad', 'good'" in problems[0]
    assert names.ids == {"bad": 0, "good": 1}


def test_a_sorted_stream_is_warned_of(folder: Path):
    write_csv("a.csv", [("a", "bad")] * 5)
    problems, (warning,), _ = judge("a.csv", label_names=["bad", "good"])
    assert problems == []
    assert warning.startswith("data.train: the first 5 rows are of one class; a stream is shuffled within")


@pytest.mark.parametrize("train", ["my_lab.data.train", "trian"])
def test_only_files_and_hub_splits_are_streamed(folder: Path, train: str):
    _, opened, problems = read_splits(DataSection(train, make_columns(), seed=1, streaming=True))
    assert opened is None
    assert problems == [
        f"data.train={train}: only files and hub splits are streamed, and this is neither; "
        "write the rows to a file, or set data.streaming=false"
    ]
