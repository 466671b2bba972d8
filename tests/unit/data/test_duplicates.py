"""`data.deduplicate`: which training rows are left out, and that viewer and run agree on what is the same."""

import json
from pathlib import Path
from typing import Any

import datasets
import pytest
from columns import make_columns
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from trainer_loop import Column, UserError, load_config
from trainer_loop.data.columns import Columns
from trainer_loop.data.duplicates import drop_duplicates
from trainer_loop.data.origins import Origins
from trainer_loop.data.read_splits import read_splits
from trainer_loop.data.section import DataSection
from trainer_loop.data.split import Split
from trainer_loop.view.duplicates import find_duplicates

TEXTS = st.lists(st.sampled_from(["a b", "A  b", "a c", "", " ", "d", "D\n"]), min_size=1, max_size=12)


def make_split(name: str, texts: list[str]) -> Split:
    rows = datasets.Dataset.from_dict({"text": texts, "label": [n % 2 for n in range(len(texts))]})
    return Split(name, rows, Origins.of(f"{name}.csv row", len(texts)), name)


def load(*texts: str, more: tuple[str, ...] = (), **given: Any) -> tuple[dict[str, Split], list[str], list[str]]:
    Path("train.csv").write_text("text,label\n" + "".join(f"{text},{n % 2}\n" for n, text in enumerate(texts)))
    Path("test.csv").write_text("text,label\n" + "".join(f"{text},{n % 2}\n" for n, text in enumerate(more)))
    keys: dict[str, Any] = {"train": "train.csv", "columns": make_columns(), "seed": 1, "deduplicate": True}
    said: list[str] = []
    splits, _, problems = read_splits(DataSection(**(keys | given)), say=said.append)
    return splits, problems, said


@given(TEXTS, TEXTS)
def test_what_is_left_has_no_duplicate_and_loses_no_text(train: list[str], other: list[str]):
    splits = {"train": make_split("train", train), "test": make_split("test", other)}

    def spell(text: str) -> str:
        return " ".join(text.casefold().split())

    taken = {spell(text) for text in other} - {""}
    wanted = {spell(text) for text in train} - taken
    if not wanted:
        with pytest.raises(UserError, match=r"data.train: no row is left of it"):
            drop_duplicates(splits, make_columns())
        return
    left, told = drop_duplicates(splits, make_columns())
    kept = [spell(text) for text in left.rows["text"]]
    assert set(kept) == wanted
    assert len([text for text in kept if text]) == len(wanted - {""})
    assert (told == "no row was dropped (data.deduplicate)") == (len(left.rows) == len(train))
    found = find_duplicates(splits | {"train": left}, make_columns(), near=None)
    assert [one for one in found if "train" in (one.first, one.second)] == []


def test_rows_are_dropped_and_counted_and_those_that_are_left_keep_their_places(folder: Path):
    splits, problems, said = load("one", "two", " ONE", "three", "two", more=("three", "four"), test="test.csv")
    assert problems == []
    assert list(splits["train"].rows["text"]) == ["one", "two"]
    assert [splits["train"].origins.place(row) for row in (0, 1)] == ["train.csv row 1", "train.csv row 2"]
    assert len(splits["test"].rows) == 2
    assert said == ["train: 1 row that test has, 2 rows that an earlier one has too were dropped (data.deduplicate)"]
    plain = load("one", "two", " ONE", deduplicate=False)[0]["train"]
    assert plain.fingerprint != load("one", "two", " ONE")[0]["train"].fingerprint


def test_a_part_is_cut_off_for_validation_afterwards(folder: Path):
    splits, problems, _ = load(*[f"text {n % 10}" for n in range(40)], validation_fraction=0.3)
    assert problems == []
    assert (len(splits["train"].rows), len(splits["validation"].rows)) == (7, 3)
    assert not set(splits["train"].rows["text"]) & set(splits["validation"].rows["text"])


def test_a_source_of_a_mixture_may_not_be_emptied(folder: Path):
    Path("same.csv").write_text("text,label\none,1\n")
    mixture = [{"name": name, "weight": 1, "train": f"{name}.csv"} for name in ("train", "same")]
    assert load("one", "two", train=None, mixture=mixture)[1] == [
        "data.train: no row is left of it, or of one of its sources; 1 row that an earlier one has too was dropped "
        "(data.deduplicate)"
    ]


def test_a_source_of_a_mixture_may_have_its_own_deduplicate(folder: Path):
    Path("same.csv").write_text("text,label\none,1\nfour,1\nONE,1\n")
    mixture = [{"name": name, "weight": 1, "train": f"{name}.csv"} for name in ("train", "same")]

    def texts(deduplicate: bool) -> list[str]:
        given = {"train": None, "mixture": mixture, "deduplicate": deduplicate}
        return list(load("one", "two", "two", **given)[0]["train"].rows["text"])

    assert texts(True) == ["one", "two", "four"]
    mixture[1]["deduplicate"] = False
    assert texts(True) == ["one", "two", "one", "four", "ONE"]
    assert texts(False) == ["one", "two", "two", "one", "four", "ONE"]
    mixture[0]["deduplicate"] = True
    assert texts(False) == ["one", "two", "one", "four", "ONE"]
    mixture[:] = mixture[::-1]  # rows that are kept are earlier ones too
    assert texts(False) == ["one", "four", "ONE", "two"]
    written = "[{name: a, weight: 1, train: a.csv, deduplicate: true}, {name: b, weight: 1, train: b.csv}]"
    with pytest.raises(UserError, match="rows of a stream are not known before they are read; leave deduplicate out"):
        load_config(None, ["model.type=bert", f"data.mixture={written}", "data.streaming=true", "train.steps=1"])


def test_images_are_compared_by_their_bytes(folder: Path):
    for name, colour in (("cat/0", "red"), ("cat/1", "blue"), ("dog/0", "red")):
        Path("photos", name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4), colour).save(Path("photos", f"{name}.png"))
    declared = {"image": Column("image"), "label": Column("class", target=True)}
    columns = Columns(declared, {"image": "image", "label": "label"})
    splits, problems, _ = load("a", train="photos/", columns=columns)
    assert problems == []
    assert list(splits["train"].rows["image"]) == ["photos/cat/0.png", "photos/cat/1.png"]


def test_rows_that_are_wrong_are_left_to_the_check_of_the_rows(folder: Path):
    rows = [{"text": None, "label": 1}, {"text": None, "label": 0}, {"label": 1}]
    Path("holes.jsonl").write_text("\n".join(map(json.dumps, rows)))
    splits, problems, _ = load("a", train="holes.jsonl")
    assert problems == []
    assert len(splits["train"].rows) == 3
    assert load("a", "a", columns=make_columns("nothing"))[1] == []


def test_a_stream_is_refused():
    with pytest.raises(UserError, match=r"data.deduplicate is true, but the rows of a stream are not known"):
        load_config(
            None, ["model.type=bert", "data={train: a.csv, streaming: true, deduplicate: true}", "train.steps=1"]
        )
