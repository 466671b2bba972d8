"""`build` from Python: given models, tasks, optimizers, in-memory rows, custom loops and trackers."""

import copy
import dataclasses
import importlib
import inspect
import json
import math
import os
import re
import shutil
import sys
from pathlib import Path
from typing import ClassVar

import datasets
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import schedulefree
import tiny
import torch
import torch.nn.functional as F
from accelerate import tracking
from made_up import make_reviews, write_csv
from torch import nn
from transformers import BertConfig, BertForSequenceClassification
from wordpiece import make_wordpiece

from trainer_loop import Column, Task, TrainingLoop, UserError, build, engine_assembly, load_config
from trainer_loop.data.processors import train_tokenizer
from trainer_loop.record.logs import Console, read_metrics
from trainer_loop.record.state import TrainState
from trainer_loop.tasks.sequence_classification import SequenceClassification
from trainer_loop.testing import assert_resumes_exactly


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("tiny-bert")
    tokenizer = make_wordpiece([text for text, _ in make_reviews(300)], vocab_size=300, max_length=64)
    tokenizer.save_pretrained(directory)
    make_model(len(tokenizer)).save_pretrained(directory)
    return directory


def make_model(vocab_size: int) -> BertForSequenceClassification:
    torch.manual_seed(0)
    return BertForSequenceClassification(
        BertConfig(
            vocab_size=vocab_size,
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=32,
            max_position_embeddings=64,
        )
    )


@pytest.fixture
def settings(model_dir: Path, tmp_path: Path) -> list[str]:
    return [
        f"model.name={model_dir}",
        "data.max_length=32",
        "batch.size=8",
        "train={epochs: 1, precision: no}",
        "optimizer.lr=1e-2",
        f"run_dir={tmp_path / 'run'}",
    ]


def make_table(count: int, *, seed: int = 0) -> dict[str, list]:
    texts, labels = zip(*make_reviews(count, seed=seed), strict=True)
    return {"text": list(texts), "label": list(labels)}


class Reviews(torch.utils.data.Dataset):
    """A map-style dataset: rows are read by index, and it cannot be iterated."""

    def __init__(self, table: dict[str, list]):
        self.table = table

    def __len__(self) -> int:
        return len(self.table["text"])

    def __getitem__(self, index: int) -> dict:
        return {name: column[index] for name, column in self.table.items()}


FORMS = {
    "datasets": datasets.Dataset.from_dict,
    "pandas": pd.DataFrame,
    "pandas with an index": lambda table: pd.DataFrame(table, index=[f"r{row}" for row in range(len(table["text"]))]),
    "polars": pl.DataFrame,
    "arrow": pa.table,
    "torch": Reviews,
    "dicts": lambda table: [dict(zip(table, row, strict=True)) for row in zip(*table.values(), strict=True)],
}


def weights_of(loop):
    return {name: weight.detach().clone() for name, weight in loop.bare_model.named_parameters()}


def test_build_and_fit_write_the_same_run_directory_as_the_command(settings, tmp_path):
    file = write_csv(tmp_path / "train.csv", make_reviews(40))
    config = load_config(None, [*settings, f"data.train={file}", "data.validation_fraction=0.2"])
    loop = build(config)
    state = loop.fit()
    assert state.step == 4
    assert {"config.yaml", "environment.json", "metrics.jsonl", "train.log", "checkpoints", "model"} <= {
        path.name for path in (tmp_path / "run").iterdir()
    }
    again = load_config(str(tmp_path / "run" / "config.yaml"))
    assert again == config


@pytest.mark.parametrize("form", FORMS)
def test_every_type_of_rows_gives_the_same_weights(form, settings, tmp_path):
    def train(rows, run_dir):
        tiny.forget_accelerator()
        config = dataclasses.replace(load_config(None, settings), run_dir=str(run_dir))
        loop = build(config, rows={"train": rows, "validation.some": rows})
        loop.fit()
        return loop

    table = make_table(24)
    expected = weights_of(train(datasets.Dataset.from_dict(table), tmp_path / "expected"))
    loop = train(FORMS[form](table), tmp_path / "run")
    for name, weight in weights_of(loop).items():
        assert torch.equal(weight, expected[name]), name
    row = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-2])
    assert row["validation/some/rows"] == 24


def test_in_memory_rows_are_evaluated_and_predicted_in_their_order(settings):
    loop = build(load_config(None, settings), rows={"train": make_rows(40)})
    loop.fit()
    table = make_table(30, seed=5)
    metrics = loop.evaluate(pd.DataFrame(table))
    assert metrics["rows"] == 30
    predicted = loop.predict(pd.DataFrame({"text": table["text"]}))
    assert predicted["probabilities"].shape == (30, 2)
    names = list(loop.bare_model.config.id2label.values())
    correct = [
        names[prediction] == str(label)
        for prediction, label in zip(predicted["predictions"], table["label"], strict=True)
    ]
    assert metrics["accuracy"] == pytest.approx(np.mean(correct))
    one = loop.predict([{"text": table["text"][7]}])
    np.testing.assert_allclose(one["probabilities"][0], predicted["probabilities"][7], atol=1e-5)


def make_rows(count: int, *, seed: int = 0) -> datasets.Dataset:
    return datasets.Dataset.from_dict(make_table(count, seed=seed))


def test_a_given_model_and_a_given_optimizer_are_the_ones_that_are_trained(settings, model_dir):
    config = load_config(None, [*settings, "model.name=", f"model.tokenizer={model_dir}", "scheduler.name=constant"])
    model = make_model(300)
    start = model.classifier.weight.detach().clone()
    optimizers = []

    def make_optimizer(model):
        optimizers.append(torch.optim.SGD(model.classifier.parameters(), lr=0.5))
        return optimizers[0]

    loop = build(config, model=model, rows={"train": make_rows(24)}, optimizer=make_optimizer)
    assert loop.bare_model is model
    loop.fit()
    assert loop.optimizer is optimizers[0]
    assert not torch.equal(model.classifier.weight, start)
    assert torch.equal(model.bert.pooler.dense.weight, make_model(300).bert.pooler.dense.weight)


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (3, "rows['train'] is a int; rows are a datasets.Dataset, a pandas, polars or Arrow table"),
        ([], "rows['train'] has no rows"),
        ("train.csv", "to read files, name them in the config: data.train=train.csv"),
        ([{"text": "a", "label": 1}, 3], "every row must be an object of named values: rows['train'] row 2 is 3"),
        (pd.DataFrame({"text": ["a"]}), "data.columns.label=label: data.train has no such column; it has text"),
        (pd.DataFrame({"text": ["a", None], "label": [0, 1]}), "train row 2"),
    ],
)
def test_values_that_are_not_rows_are_refused(rows, expected, settings):
    with pytest.raises(UserError) as caught:
        build(load_config(None, settings), rows={"train": rows})
    (problem,) = caught.value.problems
    assert expected in problem


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([{"text": "a", "label": 1}], "rows is a list; it is a dict of rows by split"),
        ({"trian": []}, "rows['trian'] is no split; allowed: train, validation, test, or one of several sets such as"),
        ({"validaton.hard": []}, "did you mean 'validation'?"),
        ({"train.some": []}, "rows['train.some'] is no split"),
        ({"validation.": []}, "rows['validation.'] is no split"),
        ({"validation": [], "validation.hard": []}, "rows has 'validation' and 'validation.hard'"),
    ],
)
def test_names_that_are_not_splits_are_refused(rows, expected, settings):
    with pytest.raises(UserError) as caught:
        build(load_config(None, settings), rows=rows)
    (problem,) = caught.value.problems
    assert expected in problem


def test_given_validation_sets_replace_the_validation_file_of_the_config(settings):
    loop = build(
        load_config(None, [*settings, "data.validation=none.csv"]),
        rows={"train": make_rows(24), "validation.hard": make_rows(8, seed=1)},
    )
    assert list(loop.data.validation) == ["hard"]


def test_missing_training_rows_are_reported(settings):
    with pytest.raises(UserError, match=r"data\.train is 'train', the name of a split"):
        build(load_config(None, settings))


def test_rows_that_do_not_fit_the_trained_model_are_refused(settings):
    loop = build(load_config(None, settings), rows={"train": make_rows(24)})
    remedy = "fill it in or remove the row, or set data.missing=drop"
    for rows, message in (
        (
            [{"text": "a film", "label": "neutral"}],
            "rows: column 'label' has an unknown label in 1 row: rows row 1 ('neutral'); labels in data.train are "
            "'negative', 'positive': correct them or remove the rows",
        ),
        ([{"text": "a film"}], "data.columns.label=label: rows has no such column; it has text"),
        ([{"text": "a", "label": None}], f"rows: column 'label' is null in 1 row: rows row 1; {remedy}"),
        (
            [{"text": None, "label": "negative"}],
            f"rows: column 'text' is null in 1 row: rows row 1; {remedy} (or empty)",
        ),
        (
            [{"text": "a", "label": 1}],
            "rows: column 'label' holds integers, such as 1 (rows row 1), data.train has texts",
        ),
        ([{"text": "a", "label": ["negative"]}], "rows: column 'label' holds values of type List"),
        ([], "rows has no rows"),
    ):
        with pytest.raises(UserError) as caught:
            loop.evaluate(rows)
        (problem,) = caught.value.problems
        assert problem.startswith(message)
    with pytest.raises(UserError, match="rows: column 'text' is null in 1 row: rows row 2"):
        loop.predict([{"text": "a"}, {"text": None}])


def test_rows_with_missing_values_are_dropped_with_missing_drop(settings, capfd):
    table = make_table(30)
    holes = [{"text": None, "label": "negative"}, {"text": "a film", "label": float("nan")}]
    rows = [dict(zip(table, row, strict=True)) for row in zip(*table.values(), strict=True)]
    loop = build(load_config(None, [*settings, "data.missing=drop"]), rows={"train": [*rows, *holes]})
    assert "train: train: 1 row without 'text', 1 without 'label' were dropped" in capfd.readouterr().out
    whole = loop.evaluate(rows)
    assert loop.evaluate([holes[0], *rows, holes[1]]) == whole
    assert "rows: 1 row without 'text', 1 without 'label' were dropped" in capfd.readouterr().out
    predicted = loop.predict([rows[0], holes[0], rows[1]])
    assert np.isnan(predicted["probabilities"][1]).all()
    assert predicted["predictions"][1] == -1
    alone = loop.predict(rows[:2])
    np.testing.assert_allclose(predicted["probabilities"][[0, 2]], alone["probabilities"], atol=1e-5)
    with pytest.raises(UserError, match="rows: no row is left; rows: 1 row without 'text' was dropped"):
        loop.predict(holes[:1])


# ------------------------------------------------------------------------------------- models without transformers


class Regression(Task):
    """Predicts one number from four."""

    def loss(self, model, batch):
        return (model(batch["x"]) - batch["y"]).square().sum()

    def predict(self, model, batch):
        return {"predictions": model(batch["x"]), "references": batch["y"]}


class Points(torch.utils.data.Dataset):
    def __init__(self, count: int, *, seed: int = 0):
        generator = torch.Generator().manual_seed(seed)
        self.x = torch.randn(count, 4, generator=generator)
        self.y = self.x @ torch.tensor([1.0, -2.0, 3.0, 0.5])

    def __len__(self):
        return len(self.x)

    def __getitem__(self, index):
        return {"x": self.x[index], "y": self.y[index]}


class Linear(nn.Module):
    def __init__(self, width: int = 4):
        super().__init__()
        self.linear = nn.Linear(width, 1)

    def forward(self, x):
        return self.linear(x)[:, 0]


def test_any_module_trains_on_any_rows_and_is_exported_as_safetensors(tmp_path):
    config = load_config(
        None,
        [
            "batch.size=16",
            "train={epochs: 30, precision: no}",
            "optimizer={name: adam, lr: 0.1, weight_decay: 0.0}",
            "checkpoint.best=-loss",
            f"run_dir={tmp_path / 'run'}",
        ],
    )
    rows = {"train": Points(128), "validation": Points(32, seed=1), "test": Points(10, seed=2)}
    loop = build(config, task=Regression(), model=Linear(), rows=rows)
    loop.fit()
    assert loop.evaluate(Points(50, seed=3))["loss"] < 0.01
    np.testing.assert_allclose(loop.predict(Points(9, seed=4))["predictions"], Points(9, seed=4).y, atol=0.3)
    from safetensors.torch import load_model

    again = Linear()
    load_model(again, tmp_path / "run" / "model" / "model.safetensors")
    assert torch.equal(again.linear.weight, loop.bare_model.linear.weight)
    kept = (tmp_path / "run" / "predictions" / "test.jsonl").read_text().splitlines()
    assert len(kept) == 10
    assert not (tmp_path / "run" / "model" / "tokenizer.json").exists()


def test_a_task_without_columns_refuses_keys_for_texts(tmp_path):
    words = [
        "train={steps: 2, precision: no}",
        f"run_dir={tmp_path / 'run'}",
        "data={columns: {label: y}, max_length: 9}",
    ]
    config = load_config(None, [*words, "model={neftune_alpha: 5, lora: {r: 4, merge: true}}"])
    with pytest.raises(UserError) as refused:
        build(config, task=Regression(), model=Linear(), rows={"train": Points(9)})
    problems = "\n".join(refused.value.problems)
    for key in ("data.columns.label='y'", "data.max_length: 9", "model.neftune_alpha: 5.0", "model.lora.r: 4"):
        assert f"{key}: the task" in problems
    assert len(refused.value.problems) == 4


def test_given_validation_rows_and_validation_fraction_exclude_each_other(tmp_path):
    words = ["train={steps: 2, precision: no}", f"run_dir={tmp_path / 'run'}", "data.validation_fraction=0.2"]
    with pytest.raises(UserError, match=r"data.validation_fraction: 0.2: validation rows are given; set it to null"):
        build(
            load_config(None, words),
            task=Regression(),
            model=Linear(),
            rows={"train": Points(20), "validation": Points(9)},
        )


def test_a_given_task_refuses_loss_arguments_of_the_config(tmp_path):
    words = ["train={steps: 2, precision: no}", f"run_dir={tmp_path / 'run'}", "loss.args.label_smoothing=0.1"]
    with pytest.raises(UserError, match=r"loss.args: .* the task that was given, a Regression, has its own; remove it"):
        build(load_config(None, words), task=Regression(), model=Linear(), rows={"train": Points(20)})


def test_a_task_with_its_own_loss_refuses_loss_arguments(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[2])
    config = load_config(
        str(Path(__file__).parents[2] / "examples/table/config.yaml"), ["loss.args.label_smoothing=0.1"]
    )
    with pytest.raises(UserError, match=r"loss: the task examples.table.mlp.Diagnosis computes its own"):
        build(config)


class Shaken(Points):
    def __getitem__(self, index):
        row = super().__getitem__(index)
        return row | {"x": row["x"] + 0.01 * torch.randn(4)}


def test_a_run_resumes_exactly_with_rows_that_are_augmented_at_random(tmp_path):
    words = ["train={steps: 6, precision: no}", f"run_dir={tmp_path / 'run'}", "batch.size=4", "checkpoint.every=3"]

    def run(*more: str) -> torch.Tensor:
        torch.manual_seed(torch.seed() % 2**31)
        loop = build(load_config(None, [*words, *more]), task=Regression(), model=Linear(), rows={"train": Shaken(20)})
        with torch.no_grad():
            loop.bare_model.linear.weight.fill_(0.1)
            loop.bare_model.linear.bias.fill_(0.1)
        loop.fit()
        tiny.forget_accelerator()
        return loop.bare_model.linear.weight.detach().clone()

    whole = run()
    parted = run(f"run_dir={tmp_path / 'parted'}", f"resume={tmp_path / 'run' / 'checkpoints' / 'step-00000003'}")
    assert torch.equal(whole, parted)


def test_keys_that_a_given_optimizer_ignores_are_reported(tmp_path, capsys):
    words = ["train={steps: 2, precision: no}", f"run_dir={tmp_path / 'run'}", "optimizer.lr=0.5"]
    loop = build(
        load_config(None, words),
        task=Regression(),
        model=Linear(),
        rows={"train": Points(20)},
        optimizer=lambda model: torch.optim.SGD(model.parameters(), lr=0.1),
    )
    assert "optimizer.lr: not heeded, for the optimizer was given and is taken as it is" in capsys.readouterr().out
    assert loop.checkpointer.run_facts["optimizer.name"] == "torch.optim.sgd.SGD"
    assert loop.checkpointer.run_facts["task.name"].endswith("Regression")


def test_the_table_example_predicts_rows_without_labels(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[2])
    words = ["train={steps: 2, precision: no, epochs: null}", f"run_dir={tmp_path / 'run'}", "checkpoint.best="]
    loop = build(load_config(str(Path(__file__).parents[2] / "examples/table/config.yaml"), words))
    predicted = loop.predict([{"measured": np.ones(30, dtype=np.float32)}] * 3)
    assert list(predicted) == ["predictions"]
    assert predicted["predictions"].shape == (3,)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("optimizer.freeze=[body.*]", "optimizer.freeze: body.* matches no parameter"),
        ("optimizer.groups=[{match: head.*, lr: 1.0}]", "optimizer.groups[0]: head.* matches no parameter"),
    ],
)
def test_parameter_patterns_are_checked_on_any_module(words, expected, tmp_path):
    config = load_config(None, ["train={steps: 2, precision: no}", f"run_dir={tmp_path / 'run'}", words])
    with pytest.raises(UserError, match=re.escape(expected)):
        build(config, task=Regression(), model=Linear(), rows={"train": Points(9)})


def test_limits_and_validation_rows_are_drawn_by_the_seed(tmp_path):
    settings = ["batch.size=8", "train={steps: 2, precision: no}", f"run_dir={tmp_path / 'run'}"]
    settings += ["data={validation_fraction: 0.25, limit: {train: 40}}", "evaluate.every=1"]
    loop = build(load_config(None, settings), task=Regression(), model=Linear(), rows={"train": Points(100)})
    assert loop.data.validation[""].num_rows == 25
    assert loop.data.train.steps_per_epoch == 5
    first = loop.data.train.origins(0)
    tiny.forget_accelerator()
    again = build(load_config(None, settings), task=Regression(), model=Linear(), rows={"train": Points(100)})
    assert again.data.train.origins(0) == first


def test_an_evaluation_of_rows_without_tokens_uses_the_microbatch_size_of_training(tmp_path):
    words = ["batch.size=8", "train={steps: 1, precision: no}", f"run_dir={tmp_path / 'run'}"]
    for more, expected in (((), 3), (("batch.per_device=4",), 5), (("evaluate.per_device=10",), 2)):
        tiny.forget_accelerator()
        config = load_config(None, [*words, *more])
        loop = build(config, task=Regression(), model=Linear(), rows={"train": Points(16), "validation": Points(20)})
        assert len(loop.data.validation[""]) == expected


def test_the_cache_of_compiled_kernels_is_limited_for_texts_only(settings, tmp_path, monkeypatch):
    name = "ONEDNN_PRIMITIVE_CACHE_CAPACITY"
    monkeypatch.setenv(name, "")  # so that monkeypatch restores it
    del os.environ[name]
    others = ["batch.size=8", "train={steps: 1, precision: no}", f"run_dir={tmp_path / 'other'}"]
    build(load_config(None, others), task=Regression(), model=Linear(), rows={"train": Points(16)})
    assert name not in os.environ
    tiny.forget_accelerator()
    build(load_config(None, settings), rows={"train": datasets.Dataset.from_dict(make_table(16))})
    assert os.environ[name] == "128"


def test_ema_is_refused_with_an_optimizer_that_averages_weights_itself(tmp_path):
    config = load_config(None, ["ema.decay=0.9", "train={steps: 1, precision: no}", f"run_dir={tmp_path / 'run'}"])
    with pytest.raises(UserError, match=r"ema\.decay: a AdamWScheduleFree keeps an average of the weights itself"):
        build(
            config,
            task=Regression(),
            model=Linear(),
            rows={"train": Points(16)},
            optimizer=lambda model: schedulefree.AdamWScheduleFree(model.parameters()),
        )


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (Points(0), "rows['train'] has no rows"),
        ([1, 2], "row 1 is a int; a row is a dict"),
        ([{"x": 1}, 2], "row 2 is a int; a row is a dict"),
        ({"x": [1]}, "rows['train'] is a dict; rows are a torch Dataset"),
        (iter(()), "rows['train'] has no rows"),
    ],
)
def test_a_task_without_columns_refuses_values_that_are_not_rows(rows, expected, tmp_path):
    with pytest.raises(UserError) as caught:
        build(load_config(None, [f"run_dir={tmp_path}"]), task=Regression(), model=Linear(), rows={"train": rows})
    assert any(expected in problem for problem in caught.value.problems), caught.value.problems


# -------------------------------------------------------------------------------------------- given models and states


def test_a_given_model_uses_its_own_tokenizer(settings, tmp_path):
    other = tmp_path / "other"
    tokenizer = train_tokenizer([text for text, _ in make_reviews(300)], framed=False, vocab_size=320, max_length=64)
    tokenizer.save_pretrained(other)
    make_model(len(tokenizer)).save_pretrained(other)
    model = BertForSequenceClassification.from_pretrained(other)
    loop = build(load_config(None, settings), model=model, rows={"train": make_rows(24)})
    text = make_table(1)["text"][0]
    rows = [loop.data.train.rows[number]["input_ids"] for number in range(24)]
    assert list(tokenizer(text)["input_ids"]) in [list(row) for row in rows]


def test_a_model_with_another_number_of_outputs_is_refused(settings):
    model = make_model(300)
    model.config.num_labels = 5
    with pytest.raises(UserError, match="the one that was given has 5 outputs, and the data has 2 classes"):
        build(load_config(None, settings), model=model, rows={"train": make_rows(24)})


def test_evaluating_without_restoring_the_checkpoint_warns_once(settings, capfd):
    rows = {"train": make_rows(24)}
    build(load_config(None, [*settings, "checkpoint.every=1"]), rows=rows).fit()
    tiny.forget_accelerator()
    loop = build(load_config(None, settings), rows=rows)
    capfd.readouterr()
    loop.evaluate(make_rows(8))
    loop.predict(make_rows(8))
    assert capfd.readouterr().out.count("the model has its initial weights; loop.restore() loads") == 1
    loop.restore()
    loop.evaluate(make_rows(8))
    assert "initial weights" not in capfd.readouterr().out


def test_a_run_that_started_from_a_given_state_does_not_warn_about_its_weights(settings, capfd):
    loop = build(load_config(None, [*settings, "checkpoint.every=1"]), rows={"train": make_rows(24)})
    loop.fit(TrainState(num_steps=loop.options.num_steps))
    loop.evaluate(make_rows(8))
    assert "initial weights" not in capfd.readouterr().out


def test_one_process_can_build_loops_of_different_precisions(settings, tmp_path):
    rows = {"train": make_rows(24)}
    for number, precision in enumerate(("no", "bf16", "no")):
        config = load_config(None, [*settings, f"train.precision={precision}", f"run_dir={tmp_path / str(number)}"])
        loop = build(config, rows=rows)
        assert loop.accelerator.mixed_precision == precision
        loop.fit()


def test_an_evaluation_restores_the_mode_of_the_model(settings):
    """A caller gets the mode, training or evaluation, that the model had before."""
    loop = build(load_config(None, settings), rows={"train": make_rows(24)})
    before = loop.bare_model.training
    loop.evaluate(make_rows(8))
    assert loop.bare_model.training is before
    loop.fit()
    assert not loop.bare_model.training


# ------------------------------------------------------------------------------------------------ evaluation and memory


class Greedy(SequenceClassification):
    """Runs out of memory in an evaluation of more than `most` rows."""

    most = 3

    def _logits(self, model, batch):
        if len(batch["input_ids"]) > self.most and not torch.is_grad_enabled():
            raise torch.OutOfMemoryError("made up")
        return super()._logits(model, batch)


def test_an_evaluation_that_runs_out_of_memory_halves_its_microbatches(settings, capfd):
    rows = {"train": make_rows(24)}
    loop = build(load_config(None, settings), rows=rows)
    metrics, outputs = loop.evaluate(make_rows(21)), loop.predict(make_rows(21))
    tiny.forget_accelerator()
    loop = build(load_config(None, settings), task=Greedy(), rows=rows)
    capfd.readouterr()
    assert loop.evaluate(make_rows(21)) == pytest.approx(metrics, abs=1e-6)
    np.testing.assert_allclose(loop.predict(make_rows(21))["probabilities"], outputs["probabilities"], atol=1e-6)
    assert capfd.readouterr().out.count("a smaller evaluate.max_tokens saves the attempt") == 1
    Greedy.most, previous = 0, Greedy.most
    try:
        with pytest.raises(UserError, match="out of memory with one row"):
            loop.evaluate(make_rows(3))
    finally:
        Greedy.most = previous


class Mute(SequenceClassification):
    def predict(self, model, batch):
        return {"predictions": super().predict(model, batch)["predictions"]}

    def loss_and_predict(self, model, batch):
        return self.loss(model, batch), self.predict(model, batch)


def test_an_evaluation_without_references_is_refused(settings):
    loop = build(load_config(None, settings), task=Mute(), rows={"train": make_rows(24)})
    with pytest.raises(UserError, match=r"test_api\.py:\d+.* returns predictions; an evaluation needs references too"):
        loop.evaluate(make_rows(8))


# --------------------------------------------------------------------------------------------------------- custom loops


class Follower(TrainingLoop):
    """Trains the model towards a moving average of its weights, which the checkpoint must contain."""

    extra_metrics = ("distance",)

    def __init__(self, *, keeps=True, **parts):
        super().__init__(**parts)
        self.teacher = copy.deepcopy(self.bare_model)
        if keeps:
            self.register_for_checkpoint("teacher", self.teacher)

    def loss_sum(self, batch):
        inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
        with torch.no_grad():
            targets = self.teacher(**inputs).logits
            for mean, weight in zip(self.teacher.parameters(), self.bare_model.parameters(), strict=True):
                mean.lerp_(weight, 0.3)
        distance = (self.model(**inputs).logits - targets).square().sum()
        self.log_metric("distance", distance, count=len(targets))
        return super().loss_sum(batch) + distance


def follow(settings, *options):
    table = Path(settings[-1].partition("=")[2]).parent / "train.csv"
    write_csv(table, make_reviews(24))
    name = f"loop.name={Follower.__module__}.Follower"
    return load_config(None, [*settings, f"data.train={table}", "train.epochs=2", name, *options])


def test_what_a_loop_registers_is_in_its_checkpoints(settings, monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    assert_resumes_exactly(follow(settings))
    with pytest.raises(AssertionError, match="nor in the checkpoint"):
        assert_resumes_exactly(follow(settings, "loop.args.keeps=false"))


def test_a_checkpoint_of_a_loop_that_registered_other_objects_is_refused(settings, monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    build(follow(settings, "checkpoint.every=2")).fit()
    tiny.forget_accelerator()
    with pytest.raises(UserError, match=r"only one of the two runs, .* registered teacher"):
        build(follow(settings, "loop.args.keeps=false", "resume_anyway=[loop.args]")).restore()


def test_a_logged_metric_is_the_mean_over_the_targets_since_the_last_row(settings, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    logged = []
    loop = build(follow(settings, "log.every=2", "batch.max_tokens=40"))
    log_metric = loop.log_metric

    def record_and_log(name, value, *, count):
        logged.append((float(value.detach()), count))
        log_metric(name, value, count=count)

    loop.log_metric = record_and_log
    loop.fit()
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    means = [row["distance"] for row in rows if "distance" in row]
    assert len(means) == 3
    assert sum(count for _, count in logged) == 48
    total = sum(value for value, _ in logged)
    assert sum(means) * 16 == pytest.approx(total, rel=1e-5)


def test_names_of_logged_metrics_are_checked(settings, monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    loop = build(follow(settings))
    with pytest.raises(UserError, match="distanc is none of extra_metrics: distance; add it"):
        loop.log_metric("distanc", torch.zeros(()))
    tiny.forget_accelerator()
    monkeypatch.setattr(Follower, "extra_metrics", ("loss",))
    with pytest.raises(UserError, match=r"extra metrics: loss: every row has a metric of this name; rename it"):
        build(follow(settings))


class GradientNorms(TrainingLoop):
    """The same code as in docs/customise.md."""

    def __init__(self, *, every=50, **parts):
        super().__init__(**parts)
        self.every = every
        self.record.declare_metrics(f"grad_norm/{name}" for name in self.engine.names)

    def clip_gradients(self, step):
        gradients = super().clip_gradients(step)
        if step % self.every == 0:
            for name, norm in zip(gradients.names, gradients.norms, strict=True):
                self.log_metric(f"grad_norm/{name}", norm)
        return gradients


def test_names_of_logged_metrics_may_depend_on_the_model(settings, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    page = (Path(__file__).parents[2] / "docs" / "customise.md").read_text()
    source = inspect.getsource(GradientNorms).replace('    """The same code as in docs/customise.md."""\n\n', "")
    assert source in page
    name = f"loop={{name: {GradientNorms.__module__}.GradientNorms, args: {{every: 2}}}}"
    loop = build(load_config(None, [*settings, name, "log.every=1"]), rows={"train": make_rows(24)})
    loop.fit()
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    steps = [row for row in rows if "lr" in row]
    assert len(steps) >= 3
    names = {f"grad_norm/{name}" for name, _ in loop.bare_model.named_parameters()}
    for row in steps:
        norms = {name: value for name, value in row.items() if name.startswith("grad_norm/")}
        assert set(norms) == (names if row["step"] % 2 else set())
        if norms:
            assert math.hypot(*norms.values()) == pytest.approx(row["grad_norm"], rel=1e-5)


# ------------------------------------------------------------------------------------------------ use of the device


@pytest.mark.parametrize("streaming", [False, True])
def test_a_device_of_a_known_rate_gets_its_share_and_no_other_weights(settings, streaming, monkeypatch, tmp_path):
    write_csv(tmp_path / "train.csv", make_reviews(24))
    words = [*settings, f"data.train={tmp_path / 'train.csv'}", "data.label_names=[negative, positive]", "log.every=1"]
    words.append(f"data.streaming={streaming}")
    plain = build(load_config(None, words))
    plain.fit()
    rows = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert all("tokens_per_second_per_device" in row and row["peak_memory_bytes"] > 1e6 for row in rows[:3])
    assert not any("mfu" in row or "flops_per_token" in row for row in rows)
    monkeypatch.setattr(engine_assembly, "_find_peak_rate", lambda *_, **__: 1e12)
    tiny.forget_accelerator()
    loop = build(load_config(None, [*words, f"run_dir={tmp_path / 'known'}"]))
    assert loop.engine.outline is None
    loop.fit()
    assert all(torch.equal(weight, weights_of(plain)[name]) for name, weight in weights_of(loop).items())
    *rows, totals = read_metrics(tmp_path / "known" / "metrics.jsonl")
    flops = totals["flops_per_token"]
    width, inner, labels = 16, 32, 2

    def count(tokens: int) -> float:  # FLOPs per token of a row of this length
        layer = 4 * width**2 + 2 * width * inner + 2 * tokens * width
        return 6 * (layer + (width**2 + width * labels) / tokens)

    assert any(flops == pytest.approx(count(tokens), rel=1e-6) for tokens in range(1, 33))
    for row in rows:
        assert row["mfu"] == pytest.approx(row["tokens_per_second_per_device"] * flops / 1e12)


def test_a_task_whose_passes_change_it_is_not_counted(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(engine_assembly, "_find_peak_rate", lambda *_, **__: 1e12)
    monkeypatch.setattr(Regression, "keeps_state", True)
    config = load_config(None, ["train={steps: 2, precision: no}", f"run_dir={tmp_path / 'run'}"])
    build(config, task=Regression(), model=Linear(), rows={"train": Points(8)})
    assert "model FLOPs unknown: a pass may change what the task or the loop keeps" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("word", "reason"),
    [
        ("optimizer.freeze=[bert.embeddings.*]", "some weights are frozen"),
        (f"loop.name={__name__}.OwnLoss", "the loop has a loss of its own"),
    ],
)
def test_a_pass_whose_work_is_not_known_is_not_counted(word, reason, settings, monkeypatch, capfd, tmp_path):
    monkeypatch.setattr(engine_assembly, "_find_peak_rate", lambda *_, **__: 1e12)
    write_csv(tmp_path / "train.csv", make_reviews(24))
    build(load_config(None, [*settings, f"data.train={tmp_path / 'train.csv'}", word]))
    assert f"model FLOPs are not counted: {reason}" in capfd.readouterr().out


class OwnLoss(TrainingLoop):
    def loss_sum(self, batch):
        return super().loss_sum(batch)


# --------------------------------------------------------------------------------------------------------- trackers

_WANDB = """
FAILS_IN = None

import json
from pathlib import Path

class _Config:
    def update(self, values, allow_val_change):
        _record("config", values)

class _Run:
    offline = False
    def log(self, values, step):
        _record("log", {"step": step, **values})
    def save(self, file, base_path, policy):
        _record("save", [file, policy])
    def finish(self):
        _record("finish", None)

config = _Config()

def init(project, **arguments):
    _record("init", {"project": project, **arguments})
    return _Run()

def _record(kind, what):
    if kind == FAILS_IN:
        raise RuntimeError("the tracker's own server is gone")
    with Path("calls.jsonl").open("a") as file:
        file.write(json.dumps([kind, what]) + chr(10))
"""


@pytest.fixture
def wandb(tmp_path, monkeypatch):
    """A fake wandb that writes every call to calls.jsonl."""
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "wandb.py").write_text(_WANDB)
    monkeypatch.syspath_prepend(str(tmp_path / "lib"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    monkeypatch.setattr(
        tracking, "_available_trackers", [tracking.LoggerType.WANDB]
    )  # accelerate fills this list on import
    return importlib.import_module("wandb")


@pytest.mark.parametrize("fails_in", ["init", "config", "log", "finish"])
def test_a_failing_tracker_causes_one_warning_and_does_not_change_the_run(
    fails_in, settings, wandb, monkeypatch, tmp_path
):
    monkeypatch.setattr(wandb, "FAILS_IN", fails_in)
    loop = build(load_config(None, [*settings, "log={every: 1, trackers: [wandb]}"]), rows={"train": make_rows(24)})
    assert loop.fit().step == 3
    loop.accelerator.end_training()
    log = (tmp_path / "run" / "train.log").read_text()
    message = (
        "warning: tracker wandb failed: RuntimeError: the tracker's own server is gone; the run goes on, and metrics"
    )
    assert log.count(message) == log.count("warning: ") == 1
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 3]


def test_a_secret_reaches_its_tracker_and_is_written_to_no_file(settings, wandb, monkeypatch, tmp_path):
    monkeypatch.setenv("MY_TOKEN", "s3cr3t-of-mine")
    words = ["log={trackers: [wandb], tracker_args: {wandb: {token: '${oc.env:MY_TOKEN}', api_key: s3cr3t-literal}}}"]
    monkeypatch.setattr(sys, "argv", ["run.py", *words])
    for more in ([], ["train.epochs=2"]):
        tiny.forget_accelerator()
        loop = build(load_config(None, [*settings, *words, *more]), rows={"train": make_rows(24)})
        loop.fit()
    calls = [json.loads(line) for line in (tmp_path / "calls.jsonl").read_text().splitlines()]
    (init, *_) = [what for kind, what in calls if kind == "init"]
    assert (init["token"], init["api_key"]) == ("s3cr3t-of-mine", "s3cr3t-literal")
    (shown, *_) = [what for kind, what in calls if kind == "config"]
    assert "s3cr3t" not in str(shown)
    files = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert not [path for path in files if b"s3cr3t" in path.read_bytes()]
    log = (tmp_path / "run" / "train.log").read_text()
    assert "resumed at step 3 of 6" in log
    assert "log.tracker_args" not in log, "the value has not changed"
    assert "api_key: ${oc.env:WANDB_API_KEY}" in (tmp_path / "run" / "config.yaml").read_text()


@pytest.mark.parametrize("offline", [True, False])
def test_trackers_receive_project_run_and_every_row(settings, wandb, offline, monkeypatch, tmp_path):
    monkeypatch.setattr(wandb._Run, "offline", offline)
    words = ["log={every: 1, trackers: [wandb], project: spoons, tracker_args: {wandb: {tags: [baseline]}}}"]
    words += ["checkpoint.every=1", "scheduler={name: constant, warmup: 0}"]
    loop = build(load_config(None, [*settings, *words]), rows={"train": make_rows(24)})
    loop.fit()
    loop.accelerator.end_training()
    calls = [json.loads(line) for line in (tmp_path / "calls.jsonl").read_text().splitlines()]
    run = json.loads((tmp_path / "run" / "environment.json").read_text())["run"]
    init_arguments = {"project": "spoons", "name": "run", "id": run, "resume": "allow", "tags": ["baseline"]}
    assert calls[0] == ["init", init_arguments]
    assert [what["step"] for kind, what in calls if kind == "log"] == [1, 2, 3, 3]
    # The same run repeats the steps after its checkpoint. Online, W&B itself ignores the rows that it has.
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step-00000003")
    shutil.rmtree(tmp_path / "run" / "model")
    (tmp_path / "run" / "report.html").write_text("<html>")
    (tmp_path / "calls.jsonl").unlink()
    tiny.forget_accelerator()
    loop = build(load_config(None, [*settings, *words, "train.epochs=2"]), rows={"train": make_rows(24)})
    loop.fit()
    loop.accelerator.end_training()
    calls = [json.loads(line) for line in (tmp_path / "calls.jsonl").read_text().splitlines()]
    assert calls[0] == ["init", init_arguments]
    assert [what["step"] for kind, what in calls if kind == "log"] == [*([] if offline else [3]), 4, 5, 6, 6]
    assert [what for kind, what in calls if kind == "save"] == [[str(tmp_path / "run" / "report.html"), "now"]]
    with pytest.raises(UserError, match=r"log\.tracker_args\.wandb: it is not among log\.trackers"):
        build(load_config(None, [*settings, "log.tracker_args={wandb: {}}"]), rows={"train": make_rows(24)})


_LINES = """
import json
from pathlib import Path

from accelerate.tracking import GeneralTracker


class Lines(GeneralTracker):
    name = "lines"
    requires_logging_directory = False
    tracker = None

    def __init__(self, logging_dir, *, file, api_key):
        super().__init__()
        assert api_key == "s3cr3t-of-mine"
        self.file = Path(logging_dir) / file

    def log(self, values, step=None):
        with self.file.open("a") as lines:
            lines.write(json.dumps({"step": step, **values}) + chr(10))
"""


def test_a_custom_tracker_is_named_by_its_dotted_path_and_the_saved_config_works_again(settings, monkeypatch, tmp_path):
    (tmp_path / "line_lab.py").write_text(_LINES)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MY_KEY", "s3cr3t-of-mine")
    arguments = "{line_lab.Lines: {file: lines.jsonl, api_key: '${oc.env:MY_KEY}'}}"
    words = [*settings, f"log={{every: 1, trackers: [line_lab.Lines], tracker_args: {arguments}}}"]
    config = load_config(None, words)
    loop = build(config, rows={"train": make_rows(24)})
    loop.fit()
    loop.accelerator.end_training()
    rows = [json.loads(line) for line in (tmp_path / "run" / "lines.jsonl").read_text().splitlines()]
    written = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 3]
    assert rows == [{name: value for name, value in row.items() if name != "epoch"} for row in written]
    assert "s3cr3t" not in (tmp_path / "run" / "config.yaml").read_text()
    assert load_config(str(tmp_path / "run" / "config.yaml"), []).log == config.log
    with pytest.raises(UserError, match=r"log\.tracker_args\.line_lab\.Lines\.fil: .*did you mean file\?"):
        build(load_config(None, [*words, "log.tracker_args={line_lab.Lines: {fil: x}}"]), rows={"train": make_rows(24)})


class Quadrants(Task):
    """A task that declares columns, for any nn.Module."""

    columns: ClassVar = {"point": Column("any"), "label": Column("class", target=True)}

    def loss(self, model, batch):
        return F.cross_entropy(model(batch["point"]), batch["labels"], reduction="sum")

    def predict(self, model, batch):
        return {"predictions": model(batch["point"]).argmax(dim=-1), "references": batch["labels"]}


@pytest.mark.parametrize("streaming", ["false", "true"])
def test_a_task_with_a_custom_model_may_declare_columns(tmp_path, streaming):
    rows = [{"x": [x, y], "quadrant": f"{x > 0}{y > 0}"} for x in (-1.0, 2.0) for y in (-2.0, 1.0)] * 6
    (tmp_path / "points.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = load_config(
        None,
        [
            f"run_dir={tmp_path / 'run'}",
            f"data.train={tmp_path / 'points.jsonl'}",
            f"data.validation={tmp_path / 'points.jsonl'}",
            "data={columns: {point: x, label: quadrant}, label_names: [FalseFalse, FalseTrue, TrueFalse, TrueTrue]}",
            f"data.streaming={streaming}",
            f"data.cache_dir={tmp_path / 'cache'}",
            "train={steps: 60, precision: no}",
            "batch.size=8",
            "optimizer={name: sgd, lr: 1.0}",
            "evaluate={every: 60, metrics: [accuracy]}",
            "checkpoint.every=never",
        ],
    )
    loop = build(config, task=Quadrants(), model=nn.Linear(2, 4), console=Console(enabled=False))
    loop.fit()
    assert loop.evaluate(rows)["accuracy"] == 1.0
    bad = [*rows, {"x": [1.0, 1.0], "quadrant": None}]
    with pytest.raises(UserError, match=r"column 'quadrant' is null in 1 row: rows row 25"):
        loop.evaluate(bad)
