import json
import shutil
import time
import urllib.error
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pytest
from columns import make_columns
from datasets.exceptions import DatasetNotFoundError
from huggingface_hub import constants

from trainer_loop.data.hub import load_hub_splits
from trainer_loop.data.read_splits import read_splits
from trainer_loop.data.section import DataSection
from trainer_loop.runtime import hub
from trainer_loop.runtime.hub import hub_is_reachable, offline_unless_reachable


@pytest.fixture(autouse=True)
def _ask_anew() -> Iterator[None]:
    hub_is_reachable.cache_clear()
    yield
    hub_is_reachable.cache_clear()


@pytest.fixture
def online(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine with network where HF_HUB_OFFLINE is not set."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)


def rows(*texts: str) -> datasets.Dataset:
    return datasets.Dataset.from_dict({"text": list(texts), "label": [0] * len(texts)})


def pretend(monkeypatch: pytest.MonkeyPatch, *, answers: bool = True, result: Any) -> None:
    """The hub answers or not, and load_dataset returns or raises `result`."""
    monkeypatch.setattr(hub, "_probe", lambda address: answers)

    def load_dataset(name: str, config: str | None, split: str | None = None) -> Any:
        if isinstance(result, Exception):
            raise result
        return result if split is None else result["train"].select(range(1))

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)


@pytest.mark.usefixtures("online")
def test_splits_and_slices_come_with_their_places(monkeypatch: pytest.MonkeyPatch):
    pretend(monkeypatch, result=datasets.DatasetDict(train=rows("a", "b"), test=rows("c")))
    splits, problems = load_hub_splits("lab/set", config=None, specs={"train": "train", "validation": "train[:1]"})
    assert problems == []
    assert splits["train"].origins.place(1) == "lab/set[train] row 2"
    assert len(splits["validation"].rows) == 1


@pytest.mark.usefixtures("online")
def test_unknown_and_empty_splits_are_told_at_once(monkeypatch: pytest.MonkeyPatch):
    pretend(monkeypatch, result=datasets.DatasetDict(train=rows("a"), validation=rows("b"), extra=rows()))
    splits, problems = load_hub_splits(
        "lab/set", config=None, specs={"train": "train", "validation": "validaton", "test": "extra"}
    )
    assert list(splits) == ["train"]
    assert problems == [
        "data.validation=validaton: no such split; lab/set has train, validation, extra; did you mean 'validation'?",
        "data.test=extra: this split of lab/set has no rows",
    ]


@pytest.mark.usefixtures("online")
@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (
            DatasetNotFoundError("Dataset 'lab/set' doesn't exist\non the Hub"),
            "doesn't exist on the Hub; check the name",
        ),
        (ValueError("Config name is missing.\nPlease pick one: ['a']"), "data.config=null: Config name is missing."),
        (RuntimeError("Dataset scripts are no longer supported"), "scripts are no longer supported"),
    ],
)
def test_what_the_hub_refuses_is_one_line(monkeypatch: pytest.MonkeyPatch, error: Exception, expected: str):
    pretend(monkeypatch, result=error)
    _, (problem,) = load_hub_splits("lab/set", config=None, specs={"train": "train"})
    assert problem.startswith("data.name=lab/set")
    assert expected in problem
    assert "\n" not in problem


@pytest.mark.usefixtures("online")
def test_an_unreachable_hub_names_the_offline_way_within_ten_seconds(monkeypatch: pytest.MonkeyPatch):
    def hang(request: object, timeout: float) -> None:
        time.sleep(60)  # as a name server that never answers
        raise TimeoutError

    monkeypatch.setattr("urllib.request.urlopen", hang)
    monkeypatch.setattr(hub, "_PROBE_SECONDS", 0.2)
    began = time.perf_counter()
    _, (problem,) = load_hub_splits("lab/set", config="a", specs={"train": "train"})
    assert time.perf_counter() - began < 5
    assert "does not answer and the data set is not in the cache" in problem
    assert "data.name=null data.train=train.csv" in problem
    assert "datasets.load_dataset('lab/set', 'a')" in problem


def test_offline_mode_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(hub, "_probe", lambda address: pytest.fail("asked the hub in offline mode"))
    _, (problem,) = load_hub_splits("lab/set", config=None, specs={"train": "train"})
    assert problem.startswith("data.name=lab/set: HF_HUB_OFFLINE is set and the data set is not in the cache")


@pytest.mark.usefixtures("online")
def test_a_cached_data_set_needs_no_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(hub, "_probe", lambda address: False)
    rows("a", "b").to_parquet(tmp_path / "train.parquet")
    datasets.load_dataset("parquet", data_files=str(tmp_path / "train.parquet"))
    cache = Path(datasets.config.HF_DATASETS_CACHE)
    (written,) = (cache / "parquet").glob("*/*/*/")
    cached = cache / "lab___set" / "default" / "0.0.0" / "abc"
    shutil.copytree(written, cached)
    (cached / "parquet-train.arrow").rename(cached / "set-train.arrow")
    info = json.loads((cached / "dataset_info.json").read_text())
    (cached / "dataset_info.json").write_text(json.dumps({**info, "config_name": "default", "dataset_name": "set"}))

    splits, problems = load_hub_splits("lab/set", config=None, specs={"train": "train"})
    assert problems == []
    assert list(splits["train"].rows["text"]) == ["a", "b"]
    _, (problem,) = load_hub_splits("lab/set", config="other", specs={"train": "train"})
    assert "for config 'other'" in problem


@pytest.mark.usefixtures("online")
def test_the_libraries_are_offline_only_inside_and_only_without_a_hub(monkeypatch: pytest.MonkeyPatch):
    for answers in (False, True):
        hub_is_reachable.cache_clear()
        monkeypatch.setattr(hub, "_probe", lambda address, answers=answers: answers)
        with offline_unless_reachable() as reason:
            assert reason == (None if answers else f"the hub ({constants.ENDPOINT}) does not answer")
            assert constants.HF_HUB_OFFLINE is datasets.config.HF_HUB_OFFLINE is not answers
        assert constants.HF_HUB_OFFLINE is datasets.config.HF_HUB_OFFLINE is False


@pytest.mark.usefixtures("online")
@pytest.mark.parametrize(
    ("error", "reachable"),
    [
        (urllib.error.HTTPError("", 403, "", None, None), True),  # type: ignore[arg-type]
        (urllib.error.URLError("no route"), False),
        (TimeoutError(), False),
    ],
)
def test_any_answer_means_that_the_hub_is_reachable(monkeypatch: pytest.MonkeyPatch, error: Exception, reachable: bool):
    def refuse(request: object, timeout: float) -> None:
        raise error

    monkeypatch.setattr("urllib.request.urlopen", refuse)
    assert hub_is_reachable() is reachable


def test_a_local_path_as_the_name_is_told(folder: Path):
    (folder / "reviews").mkdir()
    _, (problem,) = load_hub_splits("reviews", config=None, specs={"train": "train"})
    assert problem == "data.name=reviews is a local path; use data.name=null and give its files, data.train=reviews/..."


@pytest.mark.usefixtures("online")
def test_files_may_stand_beside_a_hub_data_set(folder: Path, monkeypatch: pytest.MonkeyPatch):
    pretend(monkeypatch, result=datasets.DatasetDict(train=rows("a", "b")))
    Path("mine.csv").write_text("text,label\nc,1\n")
    section = DataSection("train", make_columns(), seed=1, name="lab/set", validation="mine.csv")
    splits, _, problems = read_splits(section)
    assert problems == []
    assert splits["train"].origins.place(0) == "lab/set[train] row 1"
    assert splits["validation"].origins.place(0) == "mine.csv row 1"
