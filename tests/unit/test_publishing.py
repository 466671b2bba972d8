"""From the config to the facts of a card: sets and their splits on the hub, the base model, where rows come from."""

import pytest

from trainer_loop import load_config
from trainer_loop.plan import Overrides
from trainer_loop.publishing import _find_base, _list_scores, _name_source
from trainer_loop.record.model_card import BaseModel, Scores

FIGURES = {"matched/accuracy": 0.8, "matched/f1/0": 0.7, "other/accuracy": 0.5}


def scores_of(keys: list[str], figures: dict[str, float], *, split: str = "validation", rows: tuple[str, ...] = ()):
    config = load_config(None, ["model.name=m", *keys])
    return list(_list_scores(config, Overrides(rows=dict.fromkeys(rows)), split, figures))


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
