"""From the config to the facts of a card: sets and their splits on the hub, the base model, where rows come from."""

from types import SimpleNamespace
from typing import cast

import pytest

from trainer_loop import load_config
from trainer_loop.data.split_facts import SplitFacts
from trainer_loop.plan import Overrides, RunPlan
from trainer_loop.publishing import _find_base, _list_limits, _list_scores, _list_settings, _name_source
from trainer_loop.record.export import ExportRecord
from trainer_loop.record.model_card import BaseModel, Scores
from trainer_loop.report.intervals import Interval
from trainer_loop.tasks.find import load_task

FIGURES = {"matched/accuracy": 0.8, "matched/f1/0": 0.7, "other/accuracy": 0.5}


def scores_of(
    keys: list[str],
    figures: dict[str, float],
    *,
    split: str = "validation",
    rows: tuple[str, ...] = (),
    intervals: dict[str, dict[str, Interval]] | None = None,
):
    config = load_config(None, ["model.name=m", *keys])
    return list(_list_scores(config, Overrides(rows=dict.fromkeys(rows)), split, figures, intervals or {}))


@pytest.mark.parametrize(
    ("keys", "figures", "rows", "scores"),
    [
        (["data.name=a/b", "data.validation=dev"], {"f1": 1.0}, (), [Scores("validation", "a/b", "dev", {"f1": 1.0})]),
        (
            ["data.train=x.csv", "data.validation=y.csv"],
            {"f1/0": 1.0},
            (),
            [Scores("validation", None, "y.csv", {"f1/0": 1.0})],
        ),
        (
            ["data.train=x.csv", "data.validation_fraction=0.1"],
            {"f1": 1.0},
            (),
            [Scores("validation", None, None, {"f1": 1.0})],
        ),
        (
            ["data.name=a/b", "data.validation={matched: dev_m, other: mine.csv}"],
            FIGURES,
            (),
            [
                Scores("validation matched", "a/b", "dev_m", {"accuracy": 0.8, "f1/0": 0.7}),
                Scores("validation other", None, "mine.csv", {"accuracy": 0.5}),
            ],
        ),
        (
            ["data.name=a/b", "data.validation=dev"],
            {"f1": 1.0},
            ("validation",),
            [Scores("validation", None, None, {"f1": 1.0})],
        ),
        (
            ["data.name=a/b", "data.validation=train[:10%]"],
            {"f1": 1.0},
            (),
            [Scores("validation", None, "train[:10%]", {"f1": 1.0})],
        ),
        (["data.name=a/b", "data.validation=dev"], {}, (), []),
        (["data.name=a/b"], {}, (), []),
    ],
    ids=["hub", "file", "fraction", "sets", "Python", "slice", "not evaluated", "none"],
)
def test_figures_stand_by_their_sets_and_the_splits_of_the_hub(keys, figures, rows, scores):
    assert scores_of(keys, figures, rows=rows) == scores


def test_a_set_of_rows_from_python_takes_its_place(tmp_path):
    scores = scores_of(["data.name=a/b"], {"hard/f1": 1.0}, rows=("validation.hard",))
    assert scores == [Scores("validation hard", None, None, {"f1": 1.0})]


def test_an_interval_stands_by_the_metric_that_it_is_of():
    known = {"accuracy": Interval(0.8, 0.7, 0.9), "f1/0": Interval(0.71, 0.6, 0.8), "mae": Interval(1.0, 0.9, 1.1)}
    intervals = {"validation.matched": known, "test": {"accuracy": Interval(0.5, 0.4, 0.6)}}
    keys = ["data.name=a/b", "data.validation={matched: dev_m, other: mine.csv}"]
    matched, other = scores_of(keys, FIGURES, intervals=intervals)
    assert matched.intervals == {"accuracy": (0.7, 0.9)}, "that of other weights is left out"
    assert other.intervals == {}


def limits_of(keys: list[str], scores: list[Scores], *, task: str = "sequence_classification", **facts: SplitFacts):
    config = load_config(None, ["model.name=m", "data.train=x.csv", *keys])
    plan = SimpleNamespace(config=config, inputs=SimpleNamespace(facts=facts), task=load_task(task)())
    return " ".join(_list_limits(cast(RunPlan, plan), scores))


def test_limits_are_what_the_run_knows():
    scores = [Scores("validation matched", None, None, {"accuracy": 0.9})]
    assert "It was not evaluated." in limits_of([], [])
    chosen = limits_of(["checkpoint.best=accuracy", "data.validation_fraction=0.1"], scores)
    assert "the validation rows chose the weights (by accuracy)" in chosen and "not evaluated" not in chosen
    tested = [*scores, Scores("test", None, None, {"accuracy": 0.9})]
    assert "chose" not in limits_of(["checkpoint.best=accuracy", "data.validation_fraction=0.1"], tested)
    train = SplitFacts(rows=100, texts=100, labels={"a": 97, "b": 3}, labelled=100, truncated=25)
    told = limits_of(["seed=7"], scores, train=train, test=SplitFacts(rows=10, texts=10, in_train=2))
    assert "train: 25.0% of the texts were cut" in told
    assert "test: 2 rows (20.0%) with a text that is in train too." in told
    assert "Labels with fewer than 20 in the training data: b (3)." in told
    assert "with seed 7" in told and "may be wrong" not in told
    assert "What it writes may be wrong" in limits_of([], scores, task="seq2seq")


def test_all_keys_that_decided_the_training_are_told_without_folders_and_secrets(monkeypatch):
    monkeypatch.setenv("LAB_API_KEY", "0123456789abcdef")
    keys = ["model.tokenizer=/home/me/tokenizer", "train.max_grad_norm=0.5", "log.every=7", "data.train=/home/me/x.csv"]
    keys += [
        "data.deduplicate=true",
        "optimizer.args={note: 0123456789abcdef}",
        "train.threads=2",
        "batch.max_tokens=99",
    ]
    config = load_config(None, ["model.name=m", *keys])
    plan, record = SimpleNamespace(config=config, precision="bf16"), SimpleNamespace(plan={"batch.size": 32})
    told = dict(_list_settings(cast(RunPlan, plan), cast(ExportRecord, record)))
    assert told == {
        "batch.size": 32,
        "train.precision": "bf16",
        "seed": config.seed,
        "train.epochs": 3,
        "optimizer.name": "adamw",
        "optimizer.lr": config.optimizer.lr,
        "optimizer.weight_decay": config.optimizer.weight_decay,
        "scheduler.name": "linear",
        "scheduler.warmup": config.scheduler.warmup,
        "model.tokenizer": "tokenizer",
        "data.deduplicate": True,
        "batch.max_tokens": 99,
        "train.max_grad_norm": 0.5,
        "optimizer.args": {"note": "***"},
    }


@pytest.mark.parametrize(
    ("keys", "base"),
    [
        (["model.name=lab/x"], BaseModel("lab/x", "finetune")),
        (["model.name=lab/x", "model.from_scratch=true"], None),
        (["model.type=bert", "model.tokenizer=train"], None),
    ],
)
def test_the_base_model_is_the_one_whose_weights_were_loaded(keys, base):
    config = load_config(None, [*keys, "data.train=x.csv"])
    assert _find_base(config, Overrides(), is_adapter=False) == base


def test_a_run_directory_hands_on_the_base_of_its_model(tmp_path):
    model = tmp_path / "run" / "model"
    model.mkdir(parents=True)
    (model / "config.json").write_text("{}")
    (model / "README.md").write_text("---\nbase_model: lab/first\nlicense: mit\n---\n")
    config = load_config(None, [f"model.name={tmp_path / 'run'}", "data.train=x.csv"])
    assert _find_base(config, Overrides(), is_adapter=True) == BaseModel("lab/first", "adapter", license="mit")


@pytest.mark.parametrize(
    ("keys", "place", "source"),
    [
        (["data.train=x.csv"], "/home/me/private/reviews.csv row", "reviews.csv"),
        (["data.train=x.csv"], "notes.txt line", "notes.txt"),
        (["data.train=x.csv"], "my_lab.data.train row", "my_lab.data.train"),
        (["data.train=x.csv"], "train row", "a table made in Python"),
        (["data.name=lab/data"], "lab/data[train] row", "lab/data[train]"),
        (["data.name=lab/data"], "/home/me/x.csv row", "x.csv"),
    ],
)
def test_where_rows_come_from_is_told_without_folders(keys, place, source):
    assert _name_source(load_config(None, ["model.name=m", *keys]), "train", place) == source
