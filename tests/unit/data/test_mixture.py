"""Sources drawn by weight: shares, even use of the rows, the same draw everywhere, resuming, and what is refused."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer_loop import TrainingLoop, UserError, build, load_config
from trainer_loop.config.fields import Config
from trainer_loop.data import batch_plan, mixture
from trainer_loop.data.batch_plan import BatchPlan
from trainer_loop.data.cut import Limits
from trainer_loop.data.loader import TrainLoader
from trainer_loop.data.mixture import Mixture
from trainer_loop.description import describe_plan
from trainer_loop.record.logs import Console
from trainer_loop.testing import assert_resumes_exactly

SIZES = st.lists(st.integers(1, 60), min_size=2, max_size=4)


def make_mixture(sizes: list[int], weights: list[float]) -> Mixture:
    names = [f"source {number}" for number in range(len(sizes))]
    return Mixture(names, weights[: len(sizes)], np.repeat(np.arange(len(sizes)), sizes))


@given(SIZES, st.lists(st.floats(0.05, 5), min_size=4, max_size=4), st.integers(0, 5))
def test_shares_follow_the_weights_and_rows_of_a_source_are_drawn_evenly(
    sizes: list[int], weights: list[float], seed: int
):
    mixture = make_mixture(sizes, weights)
    epochs = [mixture.draw(seed=seed, epoch=epoch) for epoch in range(10)]
    assert all(len(rows) == sum(sizes) for rows in epochs)
    drawn = Counter(np.concatenate(epochs).tolist())
    total = sum(mixture.weights)
    for number, weight in enumerate(mixture.weights):
        times = [drawn[row] for row in np.flatnonzero(mixture.sources == number).tolist()]
        assert abs(sum(times) - 10 * sum(sizes) * weight / total) <= 10
        assert max(times) - min(times) <= 1


def test_shares_of_large_sources_are_within_a_percent():
    mixture = make_mixture([3000, 500, 1500], [0.5, 0.3, 0.2])
    drawn = np.concatenate([mixture.draw(seed=1, epoch=epoch) for epoch in range(10)])
    shares = np.bincount(mixture.sources[drawn]) / len(drawn)
    assert np.abs(shares / [0.5, 0.3, 0.2] - 1).max() < 0.01


def test_a_draw_is_a_function_of_seed_and_epoch_and_fresh_every_epoch():
    mixture = make_mixture([20, 30], [1, 1])
    assert mixture.draw(seed=3, epoch=4).tolist() == mixture.draw(seed=3, epoch=4).tolist()
    assert mixture.draw(seed=3, epoch=4).tolist() != mixture.draw(seed=3, epoch=5).tolist()
    assert mixture.draw(seed=3, epoch=4).tolist() != mixture.draw(seed=4, epoch=4).tolist()


@pytest.mark.parametrize("window", [None, 2])
def test_two_processes_take_the_rows_of_one(window: int | None):
    mixture = make_mixture([20, 30], [3, 1])
    lengths = np.arange(50) % 7 + 1
    plans = [
        BatchPlan(lengths, Limits(number), batch_size=8, seed=0, window=window, mixture=mixture) for number in (1, 2)
    ]
    for step in range(20):
        one, two = (
            sorted(row for process in plan.step(step).microbatches for rows in process for row in rows)
            for plan in plans
        )
        assert one == two == sorted(plans[0].batch(step).tolist())


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def make_config(folder: Path, *overrides: str, weights: tuple[float, float] = (3, 1)) -> Config:
    """A classifier of two sources, whose columns have other names."""
    first = [{"text": f"good {number}", "label": "good"} for number in range(12)]
    second = [{"review": f"bad {number}", "stars": "bad"} for number in range(6)]
    mixture = [
        {"name": "praise", "train": str(write(folder / "praise.jsonl", first)), "weight": weights[0]},
        {
            "name": "blame",
            "train": str(write(folder / "blame.jsonl", second)),
            "weight": weights[1],
            "columns": {"text": "review", "label": "stars"},
        },
    ]
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    model = {"type": "bert", "tokenizer": "train", "vocab_size": 300, "overrides": sizes}
    arguments = [f"model={json.dumps(model)}", f"data.mixture={json.dumps(mixture)}", "data.max_length=16"]
    arguments += [f"data.cache_dir={folder / 'cache'}", f"run_dir={folder / 'run'}", "batch.size=6", "train.epochs=2"]
    return load_config(None, [*arguments, "train.precision=no", "train.threads=1", *overrides])


def make_loop(config: Config) -> TrainingLoop:
    return build(config, console=Console(enabled=False))


def test_a_run_draws_its_sources_by_weight_each_with_its_own_columns(tmp_path: Path):
    config = make_config(tmp_path)
    loop = make_loop(config)
    train = loop.data.train
    assert isinstance(train, TrainLoader)
    origins = Counter(place.split("/")[-1].split()[0] for step in range(3) for place in train.origins(step))
    assert origins == {"praise.jsonl": 14, "blame.jsonl": 4}
    told = "mixture: praise 77.8% = 14 rows an epoch of 12 (each 1.17 times); blame 22.2% = 4 rows an epoch of 6"
    assert any(line.startswith(told) for line in describe_plan(config, loop))
    loop.fit()


def test_each_source_has_its_loss_and_its_shares_of_rows_and_tokens_in_the_log(tmp_path: Path):
    loop = make_loop(make_config(tmp_path, "log.every=3"))
    loop.fit()
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    logged = [row for row in rows if "praise/loss" in row]
    assert len(logged) == 2 and all("lr" in row for row in logged)
    for row in logged:  # of one epoch each
        assert row["praise/row_share"] == pytest.approx(14 / 18) and row["blame/row_share"] == pytest.approx(4 / 18)
        assert row["praise/token_share"] + row["blame/token_share"] == pytest.approx(1)
        mean = row["praise/loss"] * 14 / 18 + row["blame/loss"] * 4 / 18
        assert row["loss"] == pytest.approx(mean, abs=1e-6)


@pytest.mark.parametrize("limit", [None, 0])
def test_a_run_that_was_stopped_ends_with_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int | None
):
    if limit is not None:  # as where there are too many rows for an array
        for module in (batch_plan, mixture):
            monkeypatch.setattr(module, "MANY_ROWS", limit)
    assert_resumes_exactly(make_config(tmp_path), steps=6)


@pytest.mark.parametrize(
    ("mixture", "told"),
    [
        ("[{name: a, train: a.csv, weight: 1}]", "a alone is no mixture; set data.train"),
        ("[{name: a, train: a.csv, weight: 1}, {name: a, train: b.csv, weight: 1}]", "a is the name of two sources"),
        ("[{name: a, train: a.csv, weight: 0}, {name: b, train: b.csv, weight: 1}]", "weight of a is 0, not a number"),
        ("[{name: a, weight: 1}, {name: b, train: b.csv, weight: 1}]", "a has no train"),
        ("[{train: a.csv, weight: 1}, {name: b, train: b.csv, weight: 1}]", "has no name"),
        ("[{name: a, train: a.csv, weight: 1, rows: 3}, {name: b, train: b.csv, weight: 1}]", "rows is not name"),
        (
            "[{name: a, train: a.csv, weight: 1, deduplicate: maybe}, {name: b, train: b.csv, weight: 1}]",
            "deduplicate of a is 'maybe', not true or false",
        ),
        ("[{name: test, train: a.csv, weight: 1}, {name: b, train: b.csv, weight: 1}]", "test names a split"),
        ("[a.csv, b.csv]", "'a.csv' is not a mapping; write {name: ..., train: a.csv, weight: 0.5}"),
    ],
)
def test_a_mixture_that_is_written_wrong_is_refused(mixture: str, told: str):
    with pytest.raises(UserError) as refused:
        load_config(None, ["model.type=bert", f"data.mixture={mixture}"])
    assert any(told in line for line in refused.value.problems)


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("data.train=a.csv", "data.mixture and data.train .* are both given; leave data.train out"),
        ("data.sampling=balanced", "data.sampling=balanced and data.mixture each say how the rows of an epoch"),
    ],
)
def test_keys_that_do_not_go_with_a_mixture_are_refused(override: str, told: str, tmp_path: Path):
    with pytest.raises(UserError, match=told):
        make_loop(make_config(tmp_path, override))


def test_columns_that_the_task_does_not_read_are_refused(tmp_path: Path):
    config = make_config(tmp_path)
    config.data.mixture[1]["columns"]["txt"] = "review"
    with pytest.raises(UserError, match=r"data.mixture: blame: columns: txt: none of the columns that are read \(text"):
        make_loop(config)


def test_a_null_of_a_source_stands_for_what_it_has_where_nothing_is_written(tmp_path: Path):
    sources = "[{name: a, train: a.csv, weight: 1, dataset: null, config: null, columns: null, loss_weight: null}, "
    sources += "{name: b, train: b.csv, weight: 1}]"
    config = load_config(None, ["model.type=bert", f"data.mixture={sources}", "run_dir=run"])
    assert config.data.mixture[0] == {"name": "a", "train": "a.csv", "weight": 1}
    config = make_config(tmp_path, "data.columns.text=review")
    config.data.mixture[0]["columns"] = {"text": None}
    make_loop(config)
    config = make_config(tmp_path, "data.columns.text_pair=review")
    config.data.mixture[0]["columns"] = {"text_pair": None}
    with pytest.raises(
        UserError, match=r"data.mixture: praise: columns: text_pair: null: all sources have this column"
    ):
        make_loop(config)


def test_sources_without_their_columns_or_of_unlike_types_are_refused(tmp_path: Path):
    config = make_config(tmp_path)
    write(tmp_path / "blame.jsonl", [{"text": "bad", "label": "bad"}])
    with pytest.raises(UserError, match=r"data.mixture: blame: train: no column 'review' for text, 'stars' for label"):
        make_loop(config)
    write(tmp_path / "blame.jsonl", [{"review": "bad", "stars": 1.5}])
    with pytest.raises(UserError, match=r"data.mixture: columns of unlike types: 'label' is .*float64.* in blame"):
        make_loop(config)
    (tmp_path / "blame.jsonl").unlink()
    with pytest.raises(UserError, match=r"data.mixture: blame: train"):
        make_loop(config)
