"""sequence_regression: losses, metrics, export, invalid labels, several numbers per row, scaled numbers."""

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
from trainer_loop.cli.run import _is_complete
from trainer_loop.data.processors import train_tokenizer
from trainer_loop.metrics.load import load_metrics
from trainer_loop.predictor import read_record
from trainer_loop.record.logs import Console
from trainer_loop.tasks.sequence_regression import SequenceRegression, find_scale
from trainer_loop.testing import assert_resumes_exactly

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


def test_regression_metrics_follow_their_formulas():
    outputs = {"predictions": np.array([1.0, 2.0, 3.0, 5.0]), "references": np.array([1.0, 3.0, 2.0, 5.0])}
    entries = ["pearson", "spearman", "mse", "mae", "r2"]
    values: dict[str, float] = {}
    for metric in load_metrics(entries, num_labels=None):
        values |= metric.compute(outputs)
    centred = [column - column.mean() for column in outputs.values()]
    pearson = (centred[0] * centred[1]).sum() / np.sqrt((centred[0] ** 2).sum() * (centred[1] ** 2).sum())
    assert values == pytest.approx(
        {"pearson": pearson, "spearman": 0.8, "mse": 0.5, "mae": 0.5, "r2": 1 - 2 / (centred[1] ** 2).sum()}
    )


def test_the_correlation_of_a_constant_prediction_is_zero():
    outputs = {"predictions": np.full(4, 2.5), "references": np.array([1.0, 3.0, 2.0, 5.0])}
    (metric,) = load_metrics([{"name": "glue/stsb"}], num_labels=None)
    assert metric.compute(outputs) == {"pearson": 0.0, "spearmanr": 0.0}


def test_the_exported_model_and_a_pipeline_predict_the_same(tmp_path: Path):
    build(make_config(tmp_path, ROWS, "loss.name=huber"), console=Console(enabled=False)).fit()
    model_dir = tmp_path / "run" / "model"
    predictor = Predictor.load(model_dir)
    predictions = predictor.predict_rows({"text": TEXTS, "label": [row["label"] for row in ROWS]})
    answers = pipeline("text-classification", model=str(model_dir))(TEXTS)
    assert [row["value"] for row in predictions.rows] == pytest.approx(
        [answer["score"] for answer in answers], rel=1e-4
    )
    logged = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    validation = next(row for row in logged if "validation/pearson" in row)
    assert predictions.metrics is not None
    for name in ("pearson", "spearman", "loss"):
        assert predictions.metrics[name] == pytest.approx(validation[f"validation/{name}"], rel=1e-4, abs=1e-6)


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (float("nan"), "null"),  # NaN in a JSON file is read as null
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
def test_a_label_that_is_not_a_number_is_refused_with_its_row(
    number: Any, message: str, streaming: str, tmp_path: Path
):
    rows = [{"text": text, "label": number} for text in TEXTS]
    if number is None or isinstance(number, float):  # one bad row after three good ones
        rows = [*ROWS[:3], {"text": "Never.", "label": number}]
    config = make_config(tmp_path, rows, f"data.streaming={streaming}")
    with pytest.raises(UserError) as refused:
        build(config, console=Console(enabled=False))
    assert any(message in line and "rows.jsonl line" in line for line in refused.value.problems), refused.value.problems


@pytest.mark.parametrize("streaming", ["true", "false"])
def test_a_csv_file_gives_the_same_numbers_as_a_json_file(streaming: str, tmp_path: Path):
    path = tmp_path / "rated.csv"
    path.write_text("text,stars\n" + "".join(f'"{row["text"]}",{row["label"]}\n' for row in ROWS))
    csv_overrides = [f"data.train={path}", f"data.validation={path}", "data.columns.label=stars"]
    losses = []
    for name, overrides in (("csv", csv_overrides), ("jsonl", [])):
        run_dir = tmp_path / name
        config = make_config(tmp_path, ROWS, f"data.streaming={streaming}", f"run_dir={run_dir}", *overrides)
        build(config, console=Console(enabled=False)).fit()
        rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
        losses.append([row["validation/loss"] for row in rows if "validation/loss" in row])
    assert losses[0] == losses[1] != []


@pytest.mark.parametrize("hole", ["", " ", "nan"])
def test_a_row_without_a_number_is_dropped_with_missing_drop(hole: str, tmp_path: Path):
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


def test_a_classification_loss_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match=r"loss\.name: cross_entropy does not fit .* those that do: mse, l1, huber"):
        build(make_config(tmp_path, ROWS, "loss.name=cross_entropy"), console=Console(enabled=False))


@pytest.mark.parametrize("has_problem_type", [True, False])
def test_a_regression_model_of_another_source_is_recognised_by_its_config(has_problem_type: bool, tmp_path: Path):
    make_model(num_labels=1, **({"problem_type": "regression"} if has_problem_type else {})).save_pretrained(tmp_path)
    TOKENIZER.save_pretrained(tmp_path)
    (row,) = Predictor.load(tmp_path).predict(["Never."])
    assert row.keys() == {"value"}


def test_a_given_model_with_two_outputs_is_refused(tmp_path: Path):
    config = make_config(tmp_path, ROWS)
    with pytest.raises(UserError, match="has 2 outputs, and a number is predicted"):
        build(config, model=make_model(num_labels=2), console=Console(enabled=False))


# ---- several numbers per row

SEVERAL = [[4.5, 20.0], [1.0, 35.0], [5.0, 10.0], [0.0, 40.0]]
AS_LISTS = [{"text": text, "label": numbers} for text, numbers in zip(TEXTS, SEVERAL, strict=True)]
QUIET = Console(enabled=False)


def read_validation(run_dir: Path) -> dict[str, float]:
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return next(row for row in rows if "validation/loss" in row)


def write_columns(path: Path, rows: list[list[Any]]) -> list[str]:
    """Write a CSV file with one column for each number; return the config keys that read it."""
    lines = [f'"{text}",{numbers[1]},{numbers[0]}\n' for text, numbers in zip(TEXTS, rows, strict=True)]
    path.write_text("body,arousal,valence\n" + "".join(lines))
    return [f"data.train={path}", f"data.validation={path}", "data.columns={text: body, label: [valence, arousal]}"]


@pytest.mark.parametrize("streaming", ["true", "false"])
def test_several_numbers_are_read_from_a_list_or_from_one_column_each(streaming: str, tmp_path: Path):
    csv_overrides = write_columns(tmp_path / "rated.csv", SEVERAL)
    metrics = "evaluate.metrics=[pearson, spearman, mse, mae, r2]"
    results = []
    for name, overrides in (("csv", csv_overrides), ("jsonl", [])):
        options = [f"data.streaming={streaming}", f"run_dir={tmp_path / name}", metrics, *overrides]
        loop = build(make_config(tmp_path, AS_LISTS, *options), console=QUIET)
        loop.fit()
        results.append(read_validation(tmp_path / name))
        assert loop.task.count(next(iter(loop.data.validation[""])).batch) % 2 == 0
    csv, jsonl = results
    assert csv["validation/loss"] == jsonl["validation/loss"]
    for metric in ("pearson", "spearman", "mse", "mae", "r2"):
        parts = [csv[f"validation/{metric}/{name}"] for name in ("valence", "arousal")]
        assert parts == [jsonl[f"validation/{metric}/{name}"] for name in ("0", "1")]
        assert csv[f"validation/{metric}"] == pytest.approx(np.mean(parts))
    assert csv["validation/loss"] == pytest.approx(csv["validation/mse"], rel=1e-5)  # each number of a row is a target


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
    printed = dict(line.split() for line in lines if line.startswith("  "))
    expected = {name.removeprefix("validation/"): value for name, value in validation.items() if "validation/" in name}
    assert {name: float(value) for name, value in printed.items()} == pytest.approx(expected, rel=1e-3, abs=1e-4)
    written = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [row["values"].keys() for row in written] == 4 * [{"valence", "arousal"}]
    (tmp_path / "one.csv").write_text("body,label\ngood,3\n")
    request = Request(model=str(model_dir), file="one.csv", label_column="label", output="one.jsonl")
    lines = predict_file(predictor, prepare_file("one.csv", request, model_dir, record))
    assert "no metrics: column 'label' has 1 number in each row, and the model predicts 2" in lines


@pytest.mark.parametrize("streaming", ["true", "false"])
def test_rows_with_different_counts_of_numbers_are_refused(streaming: str, tmp_path: Path):
    rows = [*AS_LISTS[:3], {"text": "Never.", "label": [1.0, 2.0, 3.0]}]
    with pytest.raises(UserError) as refused:
        build(make_config(tmp_path, rows, f"data.streaming={streaming}"), console=QUIET)
    problem = next(line for line in refused.value.problems if line.startswith("data.train"))
    assert problem == (
        f"data.train: column 'label' has 3 numbers where the first training row has 2 in 1 row: {tmp_path}/rows.jsonl "
        "line 4; correct or remove the row"
    )


def test_a_late_row_of_a_stream_with_another_count_of_numbers_is_refused(tmp_path: Path):
    rows = [*AS_LISTS * 260, {"text": "Never.", "label": [1.0]}]
    config = make_config(tmp_path, rows, "data.streaming=true", "data.validation=null", "evaluate.every=never",
                         "batch.size=1041")  # fmt: skip
    loop = build(config, console=QUIET)
    with pytest.raises(UserError, match=r"has 1 number where the first training row has 2 in .*rows.jsonl line 1041"):
        loop.fit()


def test_a_bad_value_in_one_of_several_columns_is_reported_with_the_column(tmp_path: Path):
    for value, message in (
        ("many", "holds 'many', which is no number, in 'arousal', in 1 row"),
        ("", "has nothing in"),
    ):
        keys = write_columns(tmp_path / "rated.csv", [*SEVERAL[:3], [1.0, value]])
        with pytest.raises(UserError) as refused:
            build(make_config(tmp_path, ROWS, *keys), console=QUIET)
        assert message in refused.value.problems[0] and "rated.csv row 4" in refused.value.problems[0]
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


# ---- numbers in units of their standard deviation


def read_weights(loop: Any) -> dict[str, torch.Tensor]:
    return {name: weight.detach().clone() for name, weight in loop.bare_model.named_parameters()}


@pytest.mark.parametrize("rows", [ROWS, AS_LISTS])
def test_training_with_scale_equals_training_on_numbers_scaled_by_hand(rows: list[dict[str, Any]], tmp_path: Path):
    numbers = np.array([row["label"] for row in rows])
    mean, std = numbers.mean(axis=0), numbers.std(axis=0)
    by_hand = [
        {"text": row["text"], "label": ((number - mean) / std).tolist()}
        for row, number in zip(rows, numbers, strict=True)
    ]
    loops, results = [], []
    for name, config_rows, overrides in (
        ("hand", by_hand, []),
        ("scale", rows, ["task.args={scale: true}", "evaluate.metrics=[mae, pearson, spearman]"]),
    ):
        config = make_config(tmp_path, config_rows, f"run_dir={tmp_path / name}", "optimizer.lr=1e-2", *overrides)
        loops.append(build(config, console=QUIET))
        loops[-1].fit()
        results.append(read_validation(tmp_path / name))
    hand, scaled = loops
    other = read_weights(scaled)
    for name, weight in read_weights(hand).items():
        torch.testing.assert_close(other[name], weight, rtol=1e-6, atol=1e-7)
    predicted = [loop.predict([{"text": text} for text in TEXTS])["predictions"] for loop in loops]
    np.testing.assert_allclose(predicted[1], predicted[0] * std + mean, rtol=1e-5)
    assert results[1]["validation/loss"] == pytest.approx(
        results[0]["validation/loss"], rel=1e-5
    )  # in units of the scale
    assert results[1]["validation/pearson"] == pytest.approx(results[0]["validation/pearson"], rel=1e-4)
    assert results[1]["validation/mae"] == pytest.approx(np.abs(predicted[1] - numbers).mean(axis=0).mean(), rel=1e-5)


def test_an_update_on_scaled_numbers_does_not_depend_on_how_it_is_cut(tmp_path: Path):
    weights = []
    for number, cut in enumerate(("batch.max_tokens=null", "batch.per_device=1", "model.packing=true")):
        options = ["task.args={scale: true}", "batch.size=4", "optimizer={name: sgd, lr: 0.1}", cut]
        options += ["model.overrides={hidden_dropout_prob: 0.0, attention_probs_dropout_prob: 0.0}"]
        loop = build(make_config(tmp_path, AS_LISTS, f"run_dir={tmp_path / str(number)}", *options), console=QUIET)
        loop.fit()
        weights.append(read_weights(loop))
    for other in weights[1:]:
        for name, weight in weights[0].items():
            torch.testing.assert_close(other[name], weight, rtol=1e-5, atol=1e-6)


def test_the_scale_is_exported_and_predict_undoes_it(tmp_path: Path):
    loop = build(make_config(tmp_path, AS_LISTS, "task.args={scale: true}"), console=QUIET)
    loop.fit()
    record = read_record(tmp_path / "run" / "model")
    expected = find_scale(np.array(SEVERAL))
    assert record is not None
    assert record.tuned == {"scale": {"mean": expected.mean, "std": expected.std}}
    predictions = Predictor.load(tmp_path / "run" / "model").predict_rows({"text": TEXTS, "label": SEVERAL})
    expected_values = loop.predict([{"text": text} for text in TEXTS])["predictions"]
    np.testing.assert_allclose([list(row["values"].values()) for row in predictions.rows], expected_values, rtol=1e-5)
    validation = read_validation(tmp_path / "run")
    assert predictions.metrics is not None
    for name in ("loss", "pearson", "spearman/1"):
        assert predictions.metrics[name] == pytest.approx(validation[f"validation/{name}"], rel=1e-4, abs=1e-6)


def test_a_scaled_run_resumes_exactly_and_keeps_its_scale(tmp_path: Path):
    scaled = (tmp_path, ROWS, "task.args={scale: true}", "checkpoint.every=1")
    assert_resumes_exactly(make_config(*scaled, f"run_dir={tmp_path / 'exact'}"), steps=4)
    loop = build(make_config(*scaled), console=QUIET)
    loop.fit()
    changed = make_config(tmp_path, ROWS[:3], *scaled[2:], "train.steps=3", "resume_anyway=[data, tokens]")
    again = build(changed, console=QUIET)
    assert again.task.tuned != loop.task.tuned
    again.restore()
    assert again.task.tuned == loop.task.tuned  # the scale of the rows that the weights were trained on


def test_a_stream_needs_a_mean_and_a_standard_deviation_in_the_config(tmp_path: Path):
    with pytest.raises(UserError, match=r"task\.args\.scale: true: a stream is not searched for the mean"):
        build(make_config(tmp_path, ROWS, "task.args={scale: true}", "data.streaming=true"), console=QUIET)
    scale = find_scale(np.array([row["label"] for row in ROWS]))
    scale_argument = f"task.args={{scale: {{mean: {scale.mean[0]}, std: {scale.std[0]}}}}}"
    losses = []
    for name, overrides in (
        ("memory", ["task.args={scale: true}"]),
        ("stream", [scale_argument, "data.streaming=true"]),
    ):
        build(make_config(tmp_path, ROWS, f"run_dir={tmp_path / name}", *overrides), console=QUIET).fit()
        losses.append(read_validation(tmp_path / name)["validation/loss"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


@pytest.mark.parametrize(
    "scale",
    [1, "yes", None, {}, {"mean": 1}, {"mean": 1, "std": 0}, {"mean": [1, 2], "std": [1]}, {"mean": [], "std": []},
     {"mean": True, "std": 1}, {"mean": 1, "std": math.inf}, {"mean": 1, "std": 1, "max": 3}],
)  # fmt: skip
def test_an_invalid_scale_is_refused(scale: Any):
    with pytest.raises(UserError, match=r"task\.args\.scale: .*: it must be true, false, or \{mean: 3\.2, std: 1\.1\}"):
        SequenceRegression(scale=scale)


def test_a_scale_that_does_not_fit_the_rows_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match=r"task\.args\.scale: it is for 1 numbers, and a row has 2"):
        build(make_config(tmp_path, AS_LISTS, "task.args={scale: {mean: 1, std: 2}}"), console=QUIET)
    rows = [{"text": text, "label": [number, 3]} for text, (number, _) in zip(TEXTS, SEVERAL, strict=True)]
    with pytest.raises(UserError, match=r"the training rows of 1 have the mean 3\.0 and the standard deviation 0\.0"):
        build(make_config(tmp_path, rows, "task.args={scale: true}"), console=QUIET)


def test_the_scale_does_not_depend_on_the_order_of_the_rows():
    numbers = np.random.default_rng(0).normal(1e6, 1e-3, 999)
    assert find_scale(numbers) == find_scale(numbers[::-1])
    assert find_scale(np.array([1e16, 1.0, -1e16])).mean == [1 / 3]


def test_scaling_numbers_far_from_zero_loses_no_digits():
    task = make_task(scale={"mean": 1e8, "std": 1.0})
    encoded = task.encode({"text": TEXTS, "label": [1e8 + 1, 1e8 + 2, 1e8, 1e8 - 1]}, max_length=32)
    encoded.pop("truncated")
    batch = task.collate([dict(zip(encoded, row, strict=True)) for row in zip(*encoded.values(), strict=True)])
    assert batch["scaled"].tolist() == [1.0, 2.0, 0.0, -1.0]
    assert batch["scaled"].dtype == torch.float32
    outputs = task.predict(make_model(num_labels=1), batch)
    assert outputs["references"].tolist() == [1e8 + 1, 1e8 + 2, 1e8, 1e8 - 1]
    assert len(set(outputs["predictions"].tolist())) == 4
    assert "scaled" not in task.model_inputs(batch)


def test_a_finished_run_with_a_scale_is_recognised_as_complete(tmp_path: Path):
    config = make_config(tmp_path, AS_LISTS, "task.args={scale: true}")
    build(config, console=QUIET).fit()
    assert _is_complete(config, build(config, console=QUIET))


@pytest.mark.parametrize("given", ["a text", {"text": ["a text"]}, [{"text": "a text"}]])
def test_a_predictor_takes_a_list_of_texts(given: Any, tmp_path: Path):
    build(make_config(tmp_path, AS_LISTS), console=QUIET).fit()
    with pytest.raises(UserError, match="predict takes a list of texts; for columns by name call predict_rows"):
        Predictor.load(tmp_path / "run" / "model").predict(given)
