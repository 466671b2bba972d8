"""Hub data sets that are streamed: here from a folder that stands for one, and from the cache, without network."""

import dataclasses
import json
import shutil
from itertools import islice
from pathlib import Path

import datasets
import pytest
from columns import make_columns
from datasets.exceptions import DatasetNotFoundError
from streams import LABELS, mark_behind

from trainer_loop import UserError
from trainer_loop.data.read_splits import read_splits
from trainer_loop.data.section import DataSection
from trainer_loop.data.shards import ShardedSplit
from trainer_loop.data.stream_rows import RowStream

FEATURES = datasets.Features(
    {
        "text": datasets.Value("string"),
        "label": datasets.ClassLabel(names=["even", "odd"]),
        "n": datasets.Value("int64"),
    }
)


def make_rows(first: int, last: int) -> datasets.Dataset:
    numbers = range(first, last)
    columns = {"text": [f"text {n}" for n in numbers], "label": [n % 2 for n in numbers], "n": list(numbers)}
    return datasets.Dataset.from_dict(columns, features=FEATURES)


@pytest.fixture
def hub(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that `lab/set` stands for: train in 3 files of 1,700 rows and small row groups, test in one."""
    load_builder = datasets.load_dataset_builder
    for shard in range(3):
        rows = make_rows(1700 * shard, 1700 * (shard + 1))
        rows.to_parquet(folder / "set" / f"train-{shard:05d}-of-00003.parquet", batch_size=300)
    make_rows(0, 5).to_parquet(folder / "set" / "test-00000-of-00001.parquet")
    monkeypatch.setattr(datasets, "load_dataset_builder", lambda name, config: load_builder(str(folder / "set")))
    return folder / "set"


def open_hub(**given):
    section = DataSection("train", make_columns(), seed=1, name="lab/set", streaming=True)
    return read_splits(dataclasses.replace(section, **given))


def as_stream(split: ShardedSplit | None) -> RowStream:
    assert split is not None
    return RowStream(split.shards, seed=1, columns=make_columns(), label_names=LABELS)


@pytest.mark.usefixtures("hub")
def test_train_is_streamed_from_its_shards_and_the_other_splits_are_read():
    splits, opened, problems = open_hub(test="test", validation="test", limit={"validation": 2})
    assert problems == []
    assert opened.title == "lab/set[train], 3 shards"
    assert [len(splits[name].rows) for name in ("train", "validation", "test")] == [1000, 2, 5]
    assert splits["test"].rows.features == {name: FEATURES[name] for name in ("text", "label")}
    assert splits["test"].origins.place(4) == "lab/set[test] row 5"
    assert splits["train"].rows.features["label"].names == ["even", "odd"]
    assert splits["train"].columns == splits["test"].columns == ["text", "label", "n"]
    for epoch in range(2):
        rows = list(as_stream(opened).read(epoch))
        assert sorted(int(row.values["text"].split()[1]) for row in rows) == list(range(5100))
        assert all(row.values["label"] == int(row.values["text"].split()[1]) % 2 for row in rows)
    assert {row.place for row in rows} >= {
        "lab/set[train] shard 2 of 3, row 1",
        "lab/set[train] shard 3 of 3, row 1700",
    }


@pytest.mark.usefixtures("hub")
@pytest.mark.parametrize("taken", [0, 1, 299, 300, 999, 1000, 1001, 1699, 1700, 1701, 4000, 5099, 5100])
def test_reading_goes_on_from_any_row(taken: int):
    _, opened, _ = open_hub()
    whole = list(as_stream(opened).read(1))
    mark = mark_behind(as_stream(opened).read(1), taken)
    _, again, _ = open_hub()
    assert list(islice(as_stream(again).read(1, mark), 40)) == whole[taken : taken + 40]
    mark = mark_behind(as_stream(again).read(1, mark), 40) or mark
    assert list(as_stream(opened).read(1, mark)) == whole[taken + 40 :]


def test_the_fingerprint_is_that_of_the_revision(hub: Path):
    before = open_hub()[1].fingerprint
    assert open_hub()[1].fingerprint == before
    make_rows(0, 9).to_parquet(hub / "train-00002-of-00003.parquet")
    assert open_hub()[1].fingerprint != before


@pytest.mark.usefixtures("hub")
def test_what_cannot_be_streamed_is_told_at_once():
    _, opened, problems = open_hub(train="trian", validation="test[:3]", test="dev")
    assert opened is None
    assert problems == [
        "data.train=trian: no such split; lab/set has train, test; did you mean 'train'?",
        "data.validation=test[:3]: with data.streaming it is a whole split; see data.limit",
        "data.test=dev: no such split; lab/set has train, test",
    ]


def test_a_data_set_that_is_not_there_is_told(monkeypatch: pytest.MonkeyPatch):
    def refuse(name: str, config: str | None) -> None:
        raise DatasetNotFoundError("Dataset 'lab/set' doesn't exist")

    monkeypatch.setattr(datasets, "load_dataset_builder", refuse)
    _, _, (problem,) = open_hub()
    assert problem.startswith("data.name=lab/set: Dataset 'lab/set' doesn't exist; check the name")


def test_what_the_hub_refuses_in_the_middle_is_one_line_with_the_place(hub: Path):
    _, opened, _ = open_hub()
    shard = hub / "train-00000-of-00003.parquet"
    shard.write_bytes(shard.read_bytes()[:3000] + b"\0" * 9000 + shard.read_bytes()[12000:])
    with pytest.raises(UserError, match=r"lab/set\[train\] cannot be read after row \d+: .*goes on from its last"):
        list(as_stream(opened).read(0))


def test_a_data_set_in_the_cache_is_streamed_without_network(folder: Path):
    make_rows(0, 40).to_parquet(folder / "train.parquet")
    datasets.load_dataset("parquet", data_files=str(folder / "train.parquet"))
    cache = Path(datasets.config.HF_DATASETS_CACHE)
    (written,) = (cache / "parquet").glob("*/*/*/")
    cached = cache / "lab___set" / "default" / "0.0.0" / "abc"
    shutil.copytree(written, cached)
    (cached / "parquet-train.arrow").rename(cached / "set-train.arrow")
    info = json.loads((cached / "dataset_info.json").read_text())
    (cached / "dataset_info.json").write_text(json.dumps({**info, "config_name": "default", "dataset_name": "set"}))

    _, opened, problems = open_hub()
    assert problems == []
    assert opened.num_rows == 40  # its description says so
    assert len(list(as_stream(opened).read(0))) == 40


@pytest.mark.usefixtures("hub")
def test_files_may_be_streamed_beside_the_splits_of_a_data_set(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(datasets, "load_dataset", lambda name, config: datasets.DatasetDict(test=make_rows(0, 4)))
    Path("mine.csv").write_text("text,label\nc,1\n")
    splits, opened, problems = open_hub(train="mine.csv", test="test")
    assert problems == []
    assert [len(splits[name].rows) for name in ("train", "test")] == [1, 4]
    assert opened.title == "mine.csv"


@pytest.mark.usefixtures("hub")
def test_functions_are_given_all_columns_of_a_hub_data_set(folder: Path):
    Path("hub_rows.py").write_text(
        "def keep(row): return row['n'] % 5 > 0\ndef change(row): return {'text': f\"{row['n']}: {row['text']}\"}\n"
    )
    given = {"filter": "hub_rows.keep", "map": "hub_rows.change"}
    splits, opened, problems = open_hub(test="test", **given)
    assert problems == []
    assert [dict(row) for row in splits["test"].rows] == [
        {"text": f"{n}: text {n}", "label": n % 2} for n in range(1, 5)
    ]
    assert splits["test"].origins.place(0) == "lab/set[test] row 2"
    assert opened is not None
    assert opened.num_rows is None
    assert splits["train"].rows.features["label"].names == ["even", "odd"]
    rows = [(row.values, row.place) for row in as_stream(opened).read(0)]
    assert len(rows) == 4080
    assert sorted(values["text"] for values, _ in rows) == sorted(f"{n}: text {n}" for n in range(5100) if n % 5)
    assert opened.shards[0].title == "lab/set[train] shard 1 of 3"
    before = list(islice(as_stream(opened).read(0), 1500))
    after = as_stream(opened).read(0, json.loads(json.dumps(before[-1].mark)))
    assert [row.values for row in [*before, *after]] == [values for values, _ in rows]
