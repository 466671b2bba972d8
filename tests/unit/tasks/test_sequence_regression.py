"""Numbers for texts: the loss of the head, other losses, what pipelines answer, bad numbers, models of others."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification, pipeline

from trainer_loop import Predictor, UserError, build, load_config, losses
from trainer_loop.cli.predict_arguments import Request
from trainer_loop.cli.predict_files import predict_file, prepare_file
from trainer_loop.data.tokenizer import train_tokenizer
from trainer_loop.metrics.load import load_metrics
from trainer_loop.predictor import read_record
from trainer_loop.record.logs import Console
from trainer_loop.tasks.sequence_regression import SequenceRegression

TEXTS = ["A delight from the first page to the last.", "It broke.", "I would buy it again, and again.", "Never."]
TOKENIZER = train_tokenizer(TEXTS, framed=True, vocab_size=300, max_length=64)
SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}


def make_task(**arguments: Any) -> SequenceRegression:
    task = SequenceRegression(**arguments)
    task.bind(TOKENIZER)
    return task


def make_batch(task: SequenceRegression) -> dict[str, Any]:
    encoded = task.encode({"text": TEXTS, "label": [4.5, 1, 5, 0]}, max_length=32)
    names = [name for name in encoded if name != "truncated"]
    return task.collate([dict(zip(names, row, strict=True)) for row in zip(*(encoded[n] for n in names), strict=True)])


def make_model(**fields: Any) -> BertForSequenceClassification:
    torch.manual_seed(0)
    sizes = {"vocab_size": len(TOKENIZER), "max_position_embeddings": 64, **SIZES}
    return BertForSequenceClassification(BertConfig(**sizes, **fields)).eval()


def make_config(folder: Path, rows: list[dict[str, Any]], *overrides: str) -> Any:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    TOKENIZER.save_pretrained(folder / "tokenizer")
    model = {"type": "bert", "tokenizer": str(folder / "tokenizer"), "overrides": SIZES}
    return load_config(
        None,
        [
            "task.name=sequence_regression",
            f"data={{train: {path}, validation: {path}, cache_dir: {folder}, max_length: 32}}",
            f"model={json.dumps(model)}",
            f"run_dir={folder / 'run'}",
            "train={steps: 2, precision: no}",
            "batch.size=2",
            "evaluate.every=2",
            "checkpoint.every=2",
            *overrides,
        ],
    )


ROWS = [{"text": text, "label": number} for text, number in zip(TEXTS, (4.5, 1.0, 5.0, 0.0), strict=True)]


def test_the_loss_is_the_sum_of_that_of_the_head():
    task, model = make_task(), make_model(num_labels=1, problem_type="regression").double()
    batch = make_batch(task)
    head = model(**task.model_inputs(batch), labels=batch["labels"].double())
    assert task.loss(model, batch).item() == pytest.approx(4 * head.loss.item(), rel=1e-6)
    assert task.count(batch) == 4
    assert task.predict(model, batch)["predictions"].tolist() == head.logits[:, 0].tolist()


@pytest.mark.parametrize(
    ("loss", "expected"), [(losses.mse, 0.25 + 4), (losses.l1, 0.5 + 2), (losses.huber, 0.125 + 1.5)]
)
def test_losses_are_sums_over_the_numbers(loss: Any, expected: float):
    assert loss(torch.tensor([1.0, 2.0]), torch.tensor([1.5, 0.0])).item() == pytest.approx(expected)


def test_metrics_of_numbers():
    outputs = {"predictions": np.array([1.0, 2.0, 3.0, 5.0]), "references": np.array([1.0, 3.0, 2.0, 5.0])}
    entries = ["pearson", "spearman", "mse", "mae", "r2"]
    found: dict[str, float] = {}
    for metric in load_metrics(entries, num_labels=None):
        found |= metric.compute(outputs)
    centred = [column - column.mean() for column in outputs.values()]
    pearson = (centred[0] * centred[1]).sum() / np.sqrt((centred[0] ** 2).sum() * (centred[1] ** 2).sum())
    assert found == pytest.approx(
        {"pearson": pearson, "spearman": 0.8, "mse": 0.5, "mae": 0.5, "r2": 1 - 2 / (centred[1] ** 2).sum()}
    )


def test_a_constant_prediction_correlates_with_nothing():
    outputs = {"predictions": np.full(4, 2.5), "references": np.array([1.0, 3.0, 2.0, 5.0])}
    (metric,) = load_metrics([{"name": "glue/stsb"}], num_labels=None)
    assert metric.compute(outputs) == {"pearson": 0.0, "spearmanr": 0.0}


def test_the_exported_model_answers_alike_through_the_pipeline(tmp_path: Path):
    build(make_config(tmp_path, ROWS, "loss.name=huber"), console=Console(enabled=False)).fit()
    model_dir = tmp_path / "run" / "model"
    predictor = Predictor.load(model_dir)
    told = predictor.predict_rows({"text": TEXTS, "label": [row["label"] for row in ROWS]})
    answers = pipeline("text-classification", model=str(model_dir))(TEXTS)
    assert [row["value"] for row in told.rows] == pytest.approx([answer["score"] for answer in answers], rel=1e-4)
    logged = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    validation = next(row for row in logged if "validation/pearson" in row)
    assert told.metrics is not None
    for name in ("pearson", "spearman", "loss"):
        assert told.metrics[name] == pytest.approx(validation[f"validation/{name}"], rel=1e-4, abs=1e-6)


@pytest.mark.parametrize(
    ("number", "told"),
    [
        (float("nan"), "null"),  # as files of JSON are read
        (float("inf"), "holds inf, which is not finite"),
        ("many", "holds 'many', which is no number"),
        ("1e999", "holds inf, which is not finite"),
        (True, "holds True, which is no number"),
        ([[1.0]], "holds [1.0], which is no number"),
        ([], "has no numbers"),
        ({"a": 1.0}, "holds {'a': 1.0}, which is no number"),
        (None, "null"),
    ],
)
@pytest.mark.parametrize("streaming", ["true", "false"])
def test_what_is_no_number_is_refused_with_its_place(number: Any, told: str, streaming: str, tmp_path: Path):
    rows = [{"text": text, "label": number} for text in TEXTS]
    if number is None or isinstance(number, float):  # one among good ones
        rows = [*ROWS[:3], {"text": "Never.", "label": number}]
    config = make_config(tmp_path, rows, f"data.streaming={streaming}")
    with pytest.raises(UserError) as refused:
        build(config, console=Console(enabled=False))
    assert any(told in line and "rows.jsonl line" in line for line in refused.value.problems), refused.value.problems


@pytest.mark.parametrize("streaming", ["true", "false"])
def test_numbers_of_a_csv_file_are_texts(streaming: str, tmp_path: Path):
    path = tmp_path / "rated.csv"
    path.write_text("text,stars\n" + "".join(f'"{row["text"]}",{row["label"]}\n' for row in ROWS))
    of_csv = [f"data.train={path}", f"data.validation={path}", "data.columns.label=stars"]
    losses = []
    for name, overrides in (("csv", of_csv), ("jsonl", [])):
        run_dir = tmp_path / name
        config = make_config(tmp_path, ROWS, f"data.streaming={streaming}", f"run_dir={run_dir}", *overrides)
        build(config, console=Console(enabled=False)).fit()
        rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
        losses.append([row["validation/loss"] for row in rows if "validation/loss" in row])
    assert losses[0] == losses[1] != []


@pytest.mark.parametrize("hole", ["", " ", "nan"])
def test_a_row_without_its_number_is_dropped(hole: str, tmp_path: Path):
    path = tmp_path / "rated.csv"
    path.write_text(f"text,label\nGood,4.5\nBad,{hole}\nWorse,1\n")
    if hole == "nan":
        path = tmp_path / "rated.parquet"
        pyarrow.parquet.write_table(
            pyarrow.table({"text": ["Good", "Bad", "Worse"], "label": [4.5, math.nan, 1.0]}), path
        )
    overrides = [f"data.train={path}", "data.validation=null", "evaluate.every=never", "data.missing=drop"]
    loop = build(make_config(tmp_path, ROWS, *overrides), console=Console(enabled=False))
    assert len(loop.data.train.rows) == 2  # type: ignore[attr-defined]


def test_a_loss_on_classes_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match=r"loss\.name: cross_entropy does not fit .* those that do: mse, l1, huber"):
        build(make_config(tmp_path, ROWS, "loss.name=cross_entropy"), console=Console(enabled=False))


@pytest.mark.parametrize("is_told", [True, False])
def test_a_model_of_somebody_else_that_predicts_numbers_is_known_by_its_config(is_told: bool, tmp_path: Path):
    make_model(num_labels=1, **({"problem_type": "regression"} if is_told else {})).save_pretrained(tmp_path)
    TOKENIZER.save_pretrained(tmp_path)
    (row,) = Predictor.load(tmp_path).predict(["Never."])
    assert row.keys() == {"value"}


def test_a_model_that_was_given_must_have_one_output(tmp_path: Path):
    config = make_config(tmp_path, ROWS)
    with pytest.raises(UserError, match="has 2 outputs, and a number is predicted"):
        build(config, model=make_model(num_labels=2), console=Console(enabled=False))


# ---- several numbers a row

SEVERAL = [[4.5, 20.0], [1.0, 35.0], [5.0, 10.0], [0.0, 40.0]]
AS_LISTS = [{"text": text, "label": numbers} for text, numbers in zip(TEXTS, SEVERAL, strict=True)]
QUIET = Console(enabled=False)


def read_validation(run_dir: Path) -> dict[str, float]:
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return next(row for row in rows if "validation/loss" in row)


def write_columns(path: Path, rows: list[list[Any]]) -> list[str]:
    """A CSV file with a column for each number, and the keys that read it."""
    lines = [f'"{text}",{numbers[1]},{numbers[0]}\n' for text, numbers in zip(TEXTS, rows, strict=True)]
    path.write_text("body,arousal,valence\n" + "".join(lines))
    return [f"data.train={path}", f"data.validation={path}", "data.columns={text: body, label: [valence, arousal]}"]


@pytest.mark.parametrize("streaming", ["true", "false"])
def test_several_numbers_are_a_list_or_a_column_for_each(streaming: str, tmp_path: Path):
    of_csv = write_columns(tmp_path / "rated.csv", SEVERAL)
    metrics = "evaluate.metrics=[pearson, spearman, mse, mae, r2]"
    found = []
    for name, overrides in (("csv", of_csv), ("jsonl", [])):
        given = [f"data.streaming={streaming}", f"run_dir={tmp_path / name}", metrics, *overrides]
        loop = build(make_config(tmp_path, AS_LISTS, *given), console=QUIET)
        loop.fit()
        found.append(read_validation(tmp_path / name))
        assert loop.task.count(next(iter(loop.data.validation[""])).batch) % 2 == 0
    csv, jsonl = found
    assert csv["validation/loss"] == jsonl["validation/loss"]
    for metric in ("pearson", "spearman", "mse", "mae", "r2"):
        parts = [csv[f"validation/{metric}/{name}"] for name in ("valence", "arousal")]
        assert parts == [jsonl[f"validation/{metric}/{name}"] for name in ("0", "1")]
        assert csv[f"validation/{metric}"] == pytest.approx(np.mean(parts))
    assert csv["validation/loss"] == pytest.approx(csv["validation/mse"], rel=1e-5)  # a target is a number of a row


def test_the_loss_of_several_numbers_is_summed_over_rows_and_numbers():
    task, model = make_task(), make_model(num_labels=2, problem_type="regression").double()
    task.bind(TOKENIZER, label_names=["valence", "arousal"])
    encoded = task.encode({"text": TEXTS, "label": SEVERAL}, max_length=32)
    encoded.pop("truncated")
    batch = task.collate([dict(zip(encoded, row, strict=True)) for row in zip(*encoded.values(), strict=True)])
    head = model(**task.model_inputs(batch), labels=batch["labels"].double())
    assert task.loss(model, batch).item() == pytest.approx(8 * head.loss.item(), rel=1e-6)
    assert task.count(batch) == 8
    outputs = task.predict(model, batch)
    assert outputs["references"].tolist() == SEVERAL
    assert task.decode({"predictions": np.array([1.5, 2.5])}, {}) == {"values": {"valence": 1.5, "arousal": 2.5}}


def test_an_exported_model_predicts_several_numbers_by_their_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    best = ["evaluate.metrics=[mae, pearson]", "checkpoint.best=-mae/arousal", "loss.name=huber"]
    build(make_config(tmp_path, ROWS, *write_columns(tmp_path / "rated.csv", SEVERAL), *best), console=QUIET).fit()
    model_dir, validation = tmp_path / "run" / "model", read_validation(tmp_path / "run")
    record = read_record(model_dir)
    predictor = Predictor.load(model_dir)
    request = Request(model=str(model_dir), file="rated.csv", output="out.jsonl")
    lines = predict_file(predictor, prepare_file("rated.csv", request, model_dir, record))
    told = dict(line.split() for line in lines if line.startswith("  "))
    expected = {name.removeprefix("validation/"): value for name, value in validation.items() if "validation/" in name}
    assert {name: float(value) for name, value in told.items()} == pytest.approx(expected, rel=1e-3, abs=1e-4)
    written = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [row["values"].keys() for row in written] == 4 * [{"valence", "arousal"}]
    (tmp_path / "one.csv").write_text("body,label\ngood,3\n")
    request = Request(model=str(model_dir), file="one.csv", label_column="label", output="one.jsonl")
    lines = predict_file(predictor, prepare_file("one.csv", request, model_dir, record))
    assert "no metrics: column 'label' has 1 number in each row, and the model predicts 2" in lines


@pytest.mark.parametrize("streaming", ["true", "false"])
def test_each_row_has_as_many_numbers(streaming: str, tmp_path: Path):
    rows = [*AS_LISTS[:3], {"text": "Never.", "label": [1.0, 2.0, 3.0]}]
    with pytest.raises(UserError) as refused:
        build(make_config(tmp_path, rows, f"data.streaming={streaming}"), console=QUIET)
    problem = next(line for line in refused.value.problems if line.startswith("data.train"))
    assert problem == (
        f"data.train: column 'label' has 3 numbers in {tmp_path}/rows.jsonl line 4, and 2 in the first training row; "
        "each row needs as many"
    )


def test_a_late_row_of_a_stream_with_other_numbers_is_told(tmp_path: Path):
    rows = [*AS_LISTS * 260, {"text": "Never.", "label": [1.0]}]
    config = make_config(tmp_path, rows, "data.streaming=true", "data.validation=null", "evaluate.every=never",
                         "batch.size=1041")  # fmt: skip
    loop = build(config, console=QUIET)
    with pytest.raises(UserError, match=r"has 1 number where the first row has 2 in .*rows.jsonl line 1041"):
        loop.fit()


def test_what_is_wrong_with_one_of_several_columns_is_told_with_its_name(tmp_path: Path):
    for value, told in (("many", "holds 'many', which is no number, in 'arousal', in 1 row"), ("", "has nothing in")):
        keys = write_columns(tmp_path / "rated.csv", [*SEVERAL[:3], [1.0, value]])
        with pytest.raises(UserError) as refused:
            build(make_config(tmp_path, ROWS, *keys), console=QUIET)
        assert told in refused.value.problems[0] and "rated.csv row 4" in refused.value.problems[0]
    loop = build(make_config(tmp_path, ROWS, *keys, "data.missing=drop"), console=QUIET)
    assert len(loop.data.train.rows) == 3  # type: ignore[attr-defined]


def test_a_model_or_a_metric_that_does_not_fit_several_numbers_is_refused(tmp_path: Path):
    config = make_config(tmp_path, AS_LISTS, "checkpoint.best=pearson/2")
    with pytest.raises(UserError) as refused:
        build(config, model=make_model(num_labels=3), console=QUIET)
    assert refused.value.problems == [
        "checkpoint.best: pearson/2 is not reported; evaluations have: pearson, pearson/0, pearson/1, spearman, "
        "spearman/0, spearman/1, loss",
        "model: the one that was given has 3 outputs, and 2 numbers are predicted",
    ]
    with pytest.raises(UserError, match=r"checkpoint\.best: mse/0 would pick the largest mse/0; smaller is better"):
        build(make_config(tmp_path, AS_LISTS, "checkpoint.best=mse/0", "evaluate.metrics=[mse]"), console=QUIET)
