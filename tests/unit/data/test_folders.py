"""Folders that `save_to_disk` wrote, and folders of images."""

import json
import shutil
from pathlib import Path
from typing import Any

import datasets
import pytest
from columns import make_columns
from PIL import Image

from trainer_loop import Column, UserError, build, load_config
from trainer_loop.data.columns import Columns
from trainer_loop.data.read_splits import read_splits
from trainer_loop.data.section import DataSection
from trainer_loop.data.split import Split

ROWS = {"text": [f"text {n}" for n in range(10)], "label": [n % 2 for n in range(10)]}
OF_IMAGES = Columns({"image": Column("image"), "label": Column("class")}, {"image": "image", "label": "label"})
KEYS: dict[str, Any] = {"columns": make_columns(), "seed": 42}


def load(**given: Any) -> tuple[dict[str, Split], list[str]]:
    splits, _, problems = read_splits(DataSection(**(KEYS | {"train": None} | given)))
    return splits, problems


def make_rows() -> datasets.Dataset:
    return datasets.Dataset.from_dict(ROWS).cast_column("label", datasets.ClassLabel(names=["neg", "pos"]))


def make_photos(root: str, *, per_class: int = 3) -> None:
    for number, name in enumerate(("cat", "dog")):
        Path(root, name).mkdir(parents=True)
        for count in range(per_class):
            Image.new("RGB", (6, 6), (200 * number, 10 * count, 0)).save(Path(root, name, f"{count}.png"))


def test_a_saved_data_set_is_read_in_its_order_with_its_classes(folder: Path):
    make_rows().save_to_disk("saved", num_shards=3)
    splits, problems = load(train="saved")
    assert problems == []
    assert list(splits["train"].rows["text"]) == ROWS["text"]
    assert splits["train"].rows.features["label"].names == ["neg", "pos"]
    assert splits["train"].origins.place(5) == "saved/data-00001-of-00003.arrow row 2"
    shutil.copytree("saved", "copied")
    assert load(train="copied")[0]["train"].fingerprint == splits["train"].fingerprint


def test_rows_that_were_selected_before_they_were_saved_are_those_that_are_read(folder: Path):
    make_rows().select([7, 2, 5]).save_to_disk("saved")
    assert list(load(train="saved")[0]["train"].rows["text"]) == ["text 7", "text 2", "text 5"]


def test_each_key_takes_its_own_split_of_a_saved_dict(folder: Path):
    rows = make_rows()
    datasets.DatasetDict({"train": rows, "test": rows.select([0]), "dev": rows.select([1])}).save_to_disk("saved")
    splits, problems = load(train="saved", validation="saved/dev", test="saved")
    assert problems == []
    assert {name: len(split.rows) for name, split in splits.items()} == {"train": 10, "validation": 1, "test": 1}
    _, problems = load(train="saved", validation={"one": "saved"})
    assert problems == [
        "data.validation.one=saved: this folder holds a DatasetDict of the splits train, test, dev, and none is called "
        "validation; name one of them, such as saved/train"
    ]


def test_a_saved_data_set_is_streamed_as_its_files_are(folder: Path):
    make_rows().save_to_disk("saved", num_shards=2)
    splits, streamed, problems = read_splits(DataSection(train="saved", streaming=True, **KEYS))
    assert problems == []
    assert streamed is not None
    read = [dict(values) for shard in streamed.shards for values, *_ in shard.read()]
    assert [row["text"] for row in read] == ROWS["text"]
    assert splits["train"].rows.features["label"].names == ["neg", "pos"]


@pytest.mark.parametrize(
    ("file", "content", "told"),
    [
        ("state.json", "{", "saved/state.json cannot be read"),
        ("state.json", "[]", "saved/state.json is no JSON object"),
        ("state.json", '{"_data_files": [3]}', "saved/state.json names no files"),
        ("state.json", '{"_data_files": []}', "saved was written by save_to_disk and lacks rows"),
        (
            "state.json",
            '{"_data_files": [{"filename": "../other.arrow"}]}',
            "lacks other.arrow, which state.json names",
        ),
    ],
)
def test_a_saved_folder_that_is_damaged_is_told(folder: Path, file: str, content: str, told: str):
    make_rows().save_to_disk("saved")
    Path("saved", file).write_text(content)
    Path("other.arrow").write_bytes(b"")
    (problem,) = load(train="saved")[1]
    assert problem.startswith("data.train=saved: ")
    assert told in problem


def test_images_that_were_saved_are_read_undecoded(folder: Path):
    make_photos("photos")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("string")})
    rows = {"image": ["photos/cat/0.png", "photos/dog/1.png"], "label": ["cat", "dog"]}
    datasets.Dataset.from_dict(rows, features=features).save_to_disk("saved")
    (row, _) = load(train="saved", columns=OF_IMAGES)[0]["train"].rows
    assert row["image"]["bytes"] == Path("photos/cat/0.png").read_bytes()


def test_images_get_the_names_of_their_folders_as_labels(folder: Path):
    make_photos("photos/train")
    Path("photos/train/cat/Thumbs.db").touch()
    Path("photos/train/.cache").mkdir()
    splits, problems = load(train="photos/train", columns=OF_IMAGES)
    assert problems == []
    read = splits["train"]
    assert list(read.rows["label"]) == ["cat"] * 3 + ["dog"] * 3
    assert list(read.rows["image"])[4] == "photos/train/dog/1.png"
    assert read.origins.place(4) == "photos/train/dog image 2"
    before = read.fingerprint
    assert load(train="photos/train", columns=OF_IMAGES)[0]["train"].fingerprint == before
    Image.new("RGB", (60, 60), "red").save("photos/train/dog/1.png")
    assert load(train="photos/train", columns=OF_IMAGES)[0]["train"].fingerprint != before


def test_what_does_not_fit_a_folder_of_images_is_told_at_once(folder: Path):
    make_photos("photos/train")
    make_photos("photos/test")
    assert load(train="photos", columns=OF_IMAGES)[1] == [
        f"data.train=photos: photos/{name} has folders in it (cat, dog); the folder of a class holds images alone: if "
        f"its folders are the classes, name photos/{name}"
        for name in ("test", "train")
    ]
    Path("photos/train/cat/notes.txt").touch()
    Path("photos/train/empty").mkdir()
    Image.new("RGB", (6, 6)).save("photos/train/lost.png")
    problems = load(train="photos/train", columns=OF_IMAGES)[1]
    assert [problem.removeprefix("data.train=photos/train: ") for problem in problems] == [
        "there are images beside the folders of the classes; put each into the folder of its class, or give a .csv "
        "file of paths and labels",
        "photos/train/cat has files that are no images: notes.txt; put them elsewhere",
        "photos/train/empty has no images; remove it, or give it some",
    ]
    _, _, problems = read_splits(DataSection(train="photos/test", streaming=True, **(KEYS | {"columns": OF_IMAGES})))
    assert problems == ["data.train=photos/test: a folder of images is not streamed; set data.streaming=false"]


def test_names_that_are_no_utf8_are_told(folder: Path):
    make_photos("photos")
    Path("photos/cat/0.png").rename("photos/cat/\udcff.png")
    (problem,) = load(train="photos/", columns=OF_IMAGES)[1]
    assert "photos/cat has names that are no UTF-8: '\\udcff.png'; rename them" in problem
    Path("photos/cat").rename("photos/\udcfe")
    assert "it has folders whose names are no UTF-8; rename them" in load(train="photos/", columns=OF_IMAGES)[1][0]


def test_other_folders_are_refused_as_before(folder: Path):
    Path("data").mkdir()
    Path("data/a.csv").write_text("text,label\na,1\n")
    assert load(train="./data")[1] == ["data.train=./data: this is a folder; give the files in it, such as data/*.csv"]


def test_a_config_may_name_a_folder_by_its_name_alone(folder: Path):
    with pytest.raises(UserError, match=r"data.train is 'photos', the name of a split, but data.name is null"):
        load_config(None, ["model.type=vit", "data.train=photos"])
    make_photos("photos", per_class=4)
    model = {
        "type": "vit",
        "overrides": {
            **{"image_size": 8, "patch_size": 4, "hidden_size": 16, "intermediate_size": 16},
            **{"num_hidden_layers": 1, "num_attention_heads": 2},
        },
    }
    arguments = [f"model={json.dumps(model)}", "task.name=image_classification", "data.train=photos", "train.steps=1"]
    loop = build(load_config(None, [*arguments, "run_dir=run", "data.cache_dir=cache", "batch.size=8"]))
    loop.fit()
    assert Path("run/model/model.safetensors").is_file()
    assert json.loads(Path("run/model/config.json").read_text())["id2label"] == {"0": "cat", "1": "dog"}
    assert "8 rows of cat, dog; labels: cat 50.0%, dog 50.0%" in Path("run/model/README.md").read_text()
