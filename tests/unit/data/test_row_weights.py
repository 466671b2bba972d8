"""How much each training row counts and how often it is drawn: `data.weight`, `loss_weight`, `data.sampling`,
`data.split_by`, and weights of classes."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trainer_loop import TrainingLoop, UserError, build, load_config
from trainer_loop.config.fields import Config
from trainer_loop.data.choose_rows import choose_groups, draw_keys
from trainer_loop.data.loader import StepLoader
from trainer_loop.description import describe_plan
from trainer_loop.record.logs import Console
from trainer_loop.tasks.plan import LossPlan
from trainer_loop.testing import assert_resumes_exactly

ROWS = [
    {"text": f"row {number} is {'good' if number % 4 else 'bad'}", "label": "good" if number % 4 else "bad"}
    | {"trust": [0.5, 1, 2][number % 3], "author": f"author {number % 5}"}
    for number in range(24)
]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    if path.suffix == ".csv":
        names = list(rows[0])
        lines = [",".join(names), *(",".join(str(row[name]) for name in names) for row in rows)]
        path.write_text("\n".join(lines) + "\n")
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def make_config(folder: Path, *overrides: str, rows: list[dict[str, Any]] | None = None, name: str = "a.csv") -> Config:
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    model = {"type": "bert", "tokenizer": "train", "vocab_size": 300, "overrides": sizes}
    train = write(folder / name, rows or ROWS)
    arguments = [f"model={json.dumps(model)}", f"data.train={train}", "data.max_length=16", "batch.size=6"]
    arguments += [f"data.cache_dir={folder / 'cache'}", f"run_dir={folder / 'run'}", "train.epochs=2"]
    return load_config(None, [*arguments, "train.precision=no", "train.threads=1", *overrides])


def make_loop(config: Config) -> TrainingLoop:
    return build(config, console=Console(enabled=False))


def weigh_rows(train: StepLoader) -> dict[str, float]:
    """The weight of each row of the first epoch, by its place."""
    found = {}
    for step_batch in train.steps(start=0, stop=4):
        places = {place.rpartition(" ")[2]: place for place in train.origins(step_batch.step)}
        for microbatch in step_batch.microbatches:
            assert microbatch.num_targets == microbatch.batch["labels"].numel() * microbatch.weight
            found |= {places[str(row + 1)]: microbatch.weight for row in microbatch.rows}
    return found


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.parquet"])
def test_a_row_has_the_weight_of_its_column(name: str, tmp_path: Path):
    if name.endswith("parquet"):
        import datasets

        datasets.Dataset.from_list(ROWS).to_parquet(tmp_path / name)
        config = make_config(tmp_path, f"data.train={tmp_path / name}", "data.weight=trust")
    else:
        config = make_config(tmp_path, "data.weight=trust", name=name)
    weights = weigh_rows(make_loop(config).data.train)
    assert len(weights) == 24
    for place, weight in weights.items():
        assert weight == ROWS[int(place.rpartition(" ")[2]) - 1]["trust"]


@pytest.fixture(scope="module")
def streamed(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """What makes a stream of the training rows, with a tokenizer that was trained before."""
    folder = tmp_path_factory.mktemp("tokenizer")
    make_loop(make_config(folder, "train.steps=1", "train.epochs=null")).fit()
    return ["data.streaming=true", "data.label_names=[bad, good]", f"model.tokenizer={folder / 'run' / 'model'}"]


def test_rows_of_a_stream_have_the_weights_of_their_column_too(streamed: list[str], tmp_path: Path):
    train = make_loop(make_config(tmp_path, "data.weight=trust", *streamed)).data.train
    seen = []
    for step_batch in train.steps(start=0, stop=4):
        for microbatch in step_batch.microbatches:
            assert {ROWS[row]["trust"] for row in microbatch.rows} == {microbatch.weight}
            seen += microbatch.rows
    assert sorted(seen) == list(range(24))


def test_a_run_with_weights_that_was_stopped_ends_with_the_same_bits(tmp_path: Path):
    assert_resumes_exactly(make_config(tmp_path, "data.weight=trust", "data.sampling=balanced"), steps=6)


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (-1, "column 'trust' holds -1, which is below 0 in 1 row: .*a.jsonl line 3"),
        ("much", "column 'trust' holds 'much', which is no number in 1 row: .*a.jsonl line 3"),
        (None, "column 'trust' is null in 1 row: .*a.jsonl line 3"),
        ("1e999", "column 'trust' holds inf, which is not finite in 1 row: .*a.jsonl line 3"),
    ],
)
def test_a_weight_that_is_none_is_refused_with_its_place(value: Any, told: str, tmp_path: Path):
    rows = [dict(row, trust=str(row["trust"])) for row in ROWS]
    rows[2]["trust"] = None if value is None else str(value)
    with pytest.raises(UserError, match=told):
        make_loop(make_config(tmp_path, "data.weight=trust", rows=rows, name="a.jsonl"))


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["data.weight=thrust"], "data.weight=thrust: data.train has no such column.*did you mean 'trust'"),
        (["data.split_by=trust"], "data.split_by=trust says how validation rows are cut off; set data.validation_frac"),
        (
            ["data.split_by=writer", "data.validation_fraction=0.2"],
            "data.split_by=writer: data.train has no such column",
        ),
        (
            ["task.name=causal_lm", "model.type=gpt2", "data.weight=trust"],
            "data.weight: trust: the task causal_lm joins",
        ),
        (
            ["task.name=sequence_regression", "data.columns={label: trust}", "data.sampling=balanced"],
            "data.sampling: balanced: the task sequence_regression has no single class a row; remove it",
        ),
        (["data.streaming=true", "data.sampling=balanced"], "data.sampling is 'balanced', but the classes of a stream"),
    ],
)
def test_what_cannot_be_is_refused(overrides: list[str], told: str, tmp_path: Path):
    with pytest.raises(UserError, match=told):
        make_loop(make_config(tmp_path, *overrides))


def test_rows_that_all_weigh_nothing_are_refused(tmp_path: Path):
    rows = [dict(row, trust=0) for row in ROWS]
    with pytest.raises(UserError, match=r"data.weight=trust: all rows of data.train weigh 0"):
        make_loop(make_config(tmp_path, "data.weight=trust", rows=rows))


def test_balanced_sampling_draws_as_many_rows_of_each_class(tmp_path: Path):
    config = make_config(tmp_path, "data.sampling=balanced")
    loop = make_loop(config)
    train = loop.data.train
    drawn = Counter(place for step in range(8) for place in train.origins(step))
    by_class = Counter()
    for place, times in drawn.items():
        by_class[ROWS[int(place.rpartition(" ")[2]) - 1]["label"]] += times
    assert by_class == {"good": 24, "bad": 24}  # of two epochs
    assert set(drawn.values()) <= {1, 2, 4}
    told = "balanced classes: bad 50.0% = 12 rows an epoch of 6 (each 2.00 times); good 50.0% = 12 rows an epoch of 18"
    assert any(line.startswith(told) for line in describe_plan(config, loop))


def test_a_loss_weight_is_a_factor_of_the_rows_of_its_source(tmp_path: Path):
    mixture = [
        {"name": "one", "train": str(write(tmp_path / "one.csv", ROWS[:10])), "weight": 1},
        {"name": "two", "train": str(write(tmp_path / "two.csv", ROWS[10:])), "weight": 1, "loss_weight": 0.25},
    ]
    config = make_config(tmp_path, f"data.mixture={json.dumps(mixture)}", "data.train=train", "data.weight=trust")
    train = make_loop(config).data.train
    for step_batch in train.steps(start=0, stop=4):
        for microbatch in step_batch.microbatches:
            factors = {(1 if row < 10 else 0.25) * ROWS[row]["trust"] for row in microbatch.rows}
            assert factors == {microbatch.weight}


def test_a_source_may_have_no_weights_of_rows(tmp_path: Path):
    bare = [{key: value for key, value in row.items() if key != "trust"} for row in ROWS[10:]]
    mixture = [
        {"name": "one", "train": str(write(tmp_path / "one.csv", ROWS[:10])), "weight": 1},
        {
            "name": "two",
            "train": str(write(tmp_path / "two.csv", bare)),
            "weight": 1,
            "loss_weight": None,
            "columns": {"data.weight": None, "text": None},
        },
    ]
    weights = [ROWS[row]["trust"] for row in range(10)], [1.0] * len(bare)
    for sources, wanted in ((mixture, [*weights[0], *weights[1]]), (mixture[::-1], [*weights[1], *weights[0]])):
        options = [f"data.mixture={json.dumps(sources)}", "data.train=train", "data.weight=trust"]
        found = {
            (row, microbatch.weight)
            for step_batch in make_loop(make_config(tmp_path, *options)).data.train.steps(start=0, stop=8)
            for microbatch in step_batch.microbatches
            for row in microbatch.rows
        }
        assert found == set(enumerate(wanted))
    options[-1] = "data.weight=label"
    with pytest.raises(UserError, match=r"data.mixture: two: columns: data.weight: null: all sources have this column"):
        make_loop(make_config(tmp_path, *options))


GROUPS = st.lists(st.integers(0, 9), min_size=2, max_size=60).filter(lambda groups: len(set(groups)) > 1)


@given(GROUPS, st.floats(0.05, 0.95), st.integers(0, 5))
def test_groups_stay_whole_and_both_splits_have_rows(groups: list[int], fraction: float, seed: int):
    numbers = np.unique(groups, return_inverse=True)[1]
    chosen = choose_groups(numbers, fraction=fraction, keys=draw_keys(len(groups), seed, "groups"))
    assert 0 < chosen.sum() < len(groups)
    assert not set(numbers[chosen].tolist()) & set(numbers[~chosen].tolist())


def test_many_small_groups_meet_the_share():
    numbers = np.repeat(np.arange(200), 5)
    chosen = choose_groups(numbers, fraction=0.1, keys=draw_keys(1000, 3, "groups"))
    assert chosen.sum() == 100


def test_the_rows_of_an_author_are_in_one_split(tmp_path: Path):
    config = make_config(tmp_path, "data.split_by=author", "data.validation_fraction=0.2")
    data = make_loop(config).data
    assert data.train.plan.lengths.size + data.validation[""].num_rows == 24
    trained = {
        ROWS[int(place.rpartition(" ")[2]) - 1]["author"] for step in range(4) for place in data.train.origins(step)
    }
    assert len(trained) == 4


def test_a_class_that_is_cut_off_with_its_group_is_told_with_what_cut_it_off(tmp_path: Path):
    rows = [{**row, "author": "one", "label": "rare"} if number < 3 else row for number, row in enumerate(ROWS)]
    overrides = ["data.split_by=author", "data.validation_fraction=0.1", "seed=17"]
    with pytest.raises(UserError) as refused:
        make_loop(make_config(tmp_path, *overrides, rows=rows))
    place = tmp_path / "a.csv"
    assert refused.value.problems == [
        f"data.validation: column 'label' has a label without a training row in 3 rows: {place} row 1 ('rare'), "
        f"{place} row 2 ('rare'), {place} row 3 ('rare'); data.train had some, and data.validation_fraction=0.1, "
        "data.split_by=author moved or left out all of them: change this or the seed, or name all classes in "
        "data.label_names"
    ]
    loop = make_loop(make_config(tmp_path, *overrides, "data.label_names=[bad, good, rare]", rows=rows))
    assert loop.data.validation[""].num_rows == 3


def test_all_rows_of_one_group_are_refused(tmp_path: Path):
    rows = [dict(row, author="all") for row in ROWS]
    overrides = ["data.split_by=author", "data.validation_fraction=0.2"]
    with pytest.raises(UserError, match=r"data.split_by=author: all rows of data.train are of one group, 'all'"):
        make_loop(make_config(tmp_path, *overrides, rows=rows))


def test_class_weights_are_computed_so_that_every_class_counts_as_much(tmp_path: Path):
    config = make_config(tmp_path, "loss.args={class_weights: auto}", "train.epochs=1")
    loop = make_loop(config)
    loss = loop.task.loss_function
    assert isinstance(loss, LossPlan) and loss.args == {"class_weights": [24 / (2 * 6), 24 / (2 * 18)]}
    logits = torch.tensor([[2.0, 0.0]] * 3)
    by_hand = torch.nn.functional.cross_entropy(
        logits, torch.tensor([0, 1, 1]), weight=torch.tensor([2.0, 2 / 3]), reduction="sum"
    )
    assert loss(logits, torch.tensor([0, 1, 1])).item() == pytest.approx(by_hand.item())
    loop.fit()
    record = json.loads((tmp_path / "run" / "model" / "trainer_loop.json").read_text())
    assert record["evaluation"]["loss"]["args"] == {"class_weights": [2.0, 24 / 36]}


def test_a_weight_of_positives_is_the_ratio_of_negatives_to_them():
    loss = LossPlan("name: mse", "mse", torch.nn.functional.mse_loss, {"pos_weight": "auto"})
    loss.weigh_classes(np.array([5, 0, 10]), 20)
    assert loss.args == {"pos_weight": [3.0, 1.0, 1.0]}


def test_class_weights_of_a_stream_are_refused(streamed: list[str], tmp_path: Path):
    with pytest.raises(UserError, match=r"loss.args.class_weights: auto: there are no classes in memory"):
        make_loop(make_config(tmp_path, *streamed, "loss.args={class_weights: auto}"))


def test_weights_of_positives_count_the_rows_that_have_a_label(tmp_path: Path):
    rows = [{"text": f"row {number}", "label": ["a", "a"] if number % 4 else ["a", "b"]} for number in range(8)]
    overrides = ["task.name=multi_label_classification", "loss.args={pos_weight: auto}"]
    loss = make_loop(make_config(tmp_path, *overrides, rows=rows, name="a.jsonl")).task.loss_function
    assert isinstance(loss, LossPlan) and loss.args == {"pos_weight": [1.0, 3.0]}  # every row has the first


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["data.sampling=balanced", "loss.args={class_weights: auto}"], "draws all classes alike; leave one out"),
        (["data.split_by=parts", "data.validation_fraction=0.2"], "data.split_by=parts: the column holds lists"),
    ],
)
def test_what_would_count_twice_or_cannot_be_compared_is_refused(overrides: list[str], told: str, tmp_path: Path):
    rows = [{**row, "parts": [1, 2]} for row in ROWS]
    with pytest.raises(UserError, match=told):
        make_loop(make_config(tmp_path, *overrides, rows=rows, name="a.jsonl"))


def test_a_row_without_a_text_is_dropped_where_its_text_is_the_group_too(tmp_path: Path):
    rows = [{**row, "text": "" if number == 3 else row["text"]} for number, row in enumerate(ROWS)]
    overrides = ["data.split_by=text", "data.validation_fraction=0.2", "data.missing=drop"]
    data = make_loop(make_config(tmp_path, *overrides, rows=rows)).data
    assert data.train.plan.lengths.size + data.validation[""].num_rows == 23


def test_a_source_of_which_no_row_is_left_and_sources_that_all_weigh_nothing_are_refused(tmp_path: Path):
    def mix(**more: Any) -> str:
        parts = {"one": ROWS[:20], "two": ROWS[20:22]}
        sources = [
            {"name": name, "train": str(write(tmp_path / f"{name}.csv", rows)), "weight": 1, **more}
            for name, rows in parts.items()
        ]
        return f"data.mixture={json.dumps(sources)}"

    for overrides, told in (
        ([mix(), "data.limit.train=2"], "data.mixture: two: no training row is left of it"),
        ([mix(loss_weight=0)], "data.mixture: all rows have a weight of 0"),
    ):
        with pytest.raises(UserError, match=told):
            make_loop(make_config(tmp_path, "data.train=train", *overrides))


def test_a_column_may_be_a_label_and_the_weight(tmp_path: Path):
    rows = [{"text": row["text"], "good": 1, "bad": number % 2} for number, row in enumerate(ROWS)]
    overrides = ["task.name=multi_label_classification", "data.columns={label: [good, bad]}", "data.weight=bad"]
    assert set(weigh_rows(make_loop(make_config(tmp_path, *overrides, rows=rows)).data.train).values()) == {0.0, 1.0}
