"""Several labels a row: the loss of the head, metrics, what pipelines answer, rows without labels."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import f1_score, roc_auc_score
from transformers import BertConfig, BertForSequenceClassification, pipeline

from trainer_loop import Predictor, UserError, build, load_config
from trainer_loop.data.processors import train_tokenizer
from trainer_loop.metrics.load import load_metrics
from trainer_loop.predictor import Predictions
from trainer_loop.record.logs import Console
from trainer_loop.tasks.multi_label_classification import MultiLabelClassification, find_threshold
from trainer_loop.testing import assert_resumes_exactly

QUIET = Console(enabled=False)
ROWS = list(MultiLabelClassification.example) * 3
TEXTS = [str(row["text"]) for row in ROWS]
NAMES = ["admiration", "anger", "disgust", "joy"]
TOKENIZER = train_tokenizer(TEXTS, framed=True, vocab_size=300, max_length=64)
SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}


def make_task(**arguments: Any) -> MultiLabelClassification:
    task = MultiLabelClassification(**arguments)
    task.bind(TOKENIZER, label_names=NAMES)
    return task


def make_batch(task: MultiLabelClassification, labels: list[list[int]]) -> dict[str, Any]:
    encoded = task.encode({"text": TEXTS[: len(labels)]}, max_length=32)
    names = [name for name in encoded if name != "truncated"]
    rows = [dict(zip(names, row, strict=True)) for row in zip(*(encoded[n] for n in names), strict=True)]
    return task.collate([row | {"label": own} for row, own in zip(rows, labels, strict=True)])


def make_model() -> BertForSequenceClassification:
    torch.manual_seed(0)
    sizes = {"vocab_size": len(TOKENIZER), "max_position_embeddings": 64, **SIZES}
    config = BertConfig(**sizes, num_labels=4, problem_type="multi_label_classification")
    return BertForSequenceClassification(config).eval()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run directory."""
    folder = tmp_path_factory.mktemp("trained")
    build(make_config(folder, ROWS), console=Console(enabled=False)).fit()
    return folder / "run"


def make_config(folder: Path, rows: list[Any], *overrides: str) -> Any:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    TOKENIZER.save_pretrained(folder / "tokenizer")
    model = {"type": "bert", "tokenizer": str(folder / "tokenizer"), "overrides": SIZES}
    return load_config(
        None,
        [
            "task={name: multi_label_classification, args: {threshold: 0.4}}",
            f"data={{train: {path}, validation: {path}, cache_dir: {folder}, max_length: 32}}",
            f"model={json.dumps(model)}",
            f"run_dir={folder / 'run'}",
            "train={steps: 4, precision: no}",
            "optimizer.lr=1e-2",
            "batch.size=4",
            "evaluate={every: 4, metrics: [label_f1, label_set_accuracy, label_roc_auc]}",
            "checkpoint.every=4",
            *overrides,
        ],
    )


@pytest.mark.parametrize("labels", [[[0, 2], [1], []], [[], [], []], [[3, 3], [0, 1, 2, 3], [2]]])
def test_the_loss_is_the_sum_of_that_of_the_head(labels: list[list[int]]):
    task, model = make_task(), make_model().double()
    batch = make_batch(task, labels)
    marked = torch.tensor([[float(name in own) for name in range(4)] for own in labels]).double()
    head = model(**task.model_inputs(batch), labels=marked)
    loss, outputs = task.loss_and_predict(model, batch)
    assert loss.item() == pytest.approx(12 * head.loss.item(), rel=1e-6)
    assert task.loss(model, batch).item() == loss.item()
    assert task.count(batch) == 12
    assert outputs["references"].tolist() == marked.bool().tolist()


def test_packed_rows_have_their_labels():
    task = make_task()
    task.packs = True
    assert make_batch(task, [[0, 2], [], [1]])["labels"].tolist() == [[0, 2], [-1, -1], [1, -1]]


def test_metrics_are_those_of_scikit_learn():
    draw = np.random.default_rng(0)
    references, probabilities = (draw.random((50, 4)) < 0.3).astype(int), draw.random((50, 4))
    references[:, 3] = 0  # a label that no row has
    outputs = {
        "predictions": (probabilities > 0.5).astype(int),
        "probabilities": probabilities,
        "references": references,
    }
    found: dict[str, float] = {}
    for metric in load_metrics(["label_f1", "label_set_accuracy", "label_roc_auc"], num_labels=4):
        found |= metric.compute(outputs)
    for average in ("micro", "macro"):
        expected = f1_score(references, outputs["predictions"], average=average, zero_division=0.0)
        assert found[f"{average}_f1"] == pytest.approx(expected)
    assert found["label_set_accuracy"] == (references == outputs["predictions"]).all(axis=1).mean()
    assert found["label_roc_auc"] == pytest.approx(roc_auc_score(references[:, :3], probabilities[:, :3]))


def test_the_exported_model_answers_alike_through_the_pipeline(trained: Path):
    predictor = Predictor.load(trained / "model")
    answers = pipeline("text-classification", model=str(trained / "model"), top_k=None)(TEXTS[:4])
    for row, answer in zip(predictor.predict(TEXTS[:4]), answers, strict=True):
        assert row["probabilities"] == pytest.approx({one["label"]: one["score"] for one in answer}, rel=1e-4)
        assert row["labels"] == [name for name in NAMES if row["probabilities"][name] > 0.4]


def score(trained: Path, labels: list[Any]) -> Predictions:
    return Predictor.load(trained / "model").predict_rows({"text": TEXTS}, labels=labels)


def test_predictions_are_compared_as_in_the_run(trained: Path):
    known = [[NAMES.index(name) for name in row["label"]] for row in ROWS]
    logged = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    validation = next(row for row in logged if "validation/micro_f1" in row)
    told = score(trained, known).metrics
    assert told is not None
    assert told.pop("rows") == 12
    assert told == pytest.approx({name: validation[f"validation/{name}"] for name in told}, rel=1e-4)


def test_rows_whose_labels_are_not_known_are_not_compared(trained: Path):
    known = [[NAMES.index(name) for name in row["label"]] for row in ROWS]
    some = score(trained, [None if number % 2 else own for number, own in enumerate(known)])
    alone = Predictor.load(trained / "model").predict_rows({"text": TEXTS[::2]}, labels=known[::2])
    assert some.metrics == pytest.approx(alone.metrics)
    assert [row["labels"] for row in some.rows] == [row["labels"] for row in score(trained, known).rows]


@pytest.mark.parametrize(
    ("value", "told"),
    [("joy", "label"), (["joy", None], "has a label that is null"), ({"joy": 1}, "holds no list"), (None, "is null")],
)
def test_what_is_no_list_of_labels_is_refused_with_its_place(value: Any, told: str, tmp_path: Path):
    rows = [row | {"label": value} for row in ROWS]
    if value is None or isinstance(value, list):
        rows = [*ROWS, {"text": "Never.", "label": value}]
    with pytest.raises(UserError) as refused:
        build(make_config(tmp_path, rows), console=Console(enabled=False))
    assert any(told in line and "rows.jsonl line" in line for line in refused.value.problems), refused.value.problems


def test_a_loss_has_weights_for_the_labels_that_are_there(tmp_path: Path):
    loss = "loss={name: binary_cross_entropy, args: {pos_weight: [1, 2, 3, 4]}}"
    build(make_config(tmp_path, ROWS, loss), console=Console(enabled=False)).fit()
    with pytest.raises(UserError, match=r"loss\.name: binary_cross_entropy fails"):
        build(make_config(tmp_path, ROWS, loss.replace(", 4", "")), console=Console(enabled=False))


def test_arguments_without_a_name_are_those_of_the_own_loss(tmp_path: Path):
    build(make_config(tmp_path, ROWS, "loss.args={pos_weight: [1, 2, 3, 4]}"), console=Console(enabled=False))
    with pytest.raises(UserError, match=r"loss\.args\.label_smoothing: .*binary_cross_entropy has no argument"):
        build(make_config(tmp_path, ROWS, "loss.args={label_smoothing: 0.1}"), console=Console(enabled=False))


@pytest.mark.parametrize("loss", ["cross_entropy", "mse", "l1", "huber"])
def test_a_loss_on_other_targets_is_refused(loss: str, tmp_path: Path):
    with pytest.raises(UserError, match=rf"loss\.name: {loss} does not fit .* those that do: binary_cross_entropy"):
        build(make_config(tmp_path, ROWS, f"loss.name={loss}"), console=Console(enabled=False))


def test_rows_without_labels_may_come_first_and_a_split_may_have_no_others(tmp_path: Path):
    rows = [{"text": "It arrived on Monday.", "label": []}] * 1001 + ROWS
    (tmp_path / "test.jsonl").write_text('{"text": "Never.", "label": []}\n' * 3)
    test = f"data.test={tmp_path / 'test.jsonl'}"
    loop = build(make_config(tmp_path, rows, "data.validation=null", "evaluate.every=never", test), console=QUIET)
    loop.fit()
    assert (tmp_path / "run" / "model" / "model.safetensors").exists()
    named = ["data.streaming=true", f"data.label_names={json.dumps(NAMES)}", f"run_dir={tmp_path / 'streamed'}"]
    with pytest.raises(UserError, match=r"data\.train: no row has a label in column 'label'"):
        build(make_config(tmp_path, rows, *named), console=QUIET)


def test_of_one_label_f1_is_that_of_the_rows_that_have_it():
    references, predictions = np.array([[1], [0], [0], [0], [0]]), np.array([[1], [1], [0], [0], [0]])
    (metric,) = load_metrics(["label_f1"], num_labels=1)
    assert metric.compute({"predictions": predictions, "references": references}) == pytest.approx(
        {"micro_f1": 2 / 3, "macro_f1": 2 / 3}
    )
    none = metric.compute({"predictions": 0 * predictions, "references": references})
    assert none == {"micro_f1": 0.0, "macro_f1": 0.0}


def test_a_tuned_threshold_comes_back_with_the_run(tmp_path: Path):
    arguments = (tmp_path, ROWS, "task.args={threshold: tuned}", "train.steps=6", "evaluate.every=2")
    config = make_config(*arguments, "checkpoint.every=3")
    trained = build(config, console=QUIET)
    assert trained.task.tuned == {}
    trained.fit()
    again = build(config, console=QUIET)
    again.restore()
    assert 0 < again.task.tuned["threshold"] < 1
    assert again.predict([{"text": text} for text in TEXTS])["predictions"].dtype == bool
    assert_resumes_exactly(make_config(*arguments, f"run_dir={tmp_path / 'other'}", "checkpoint.every=1"), steps=4)


@pytest.mark.parametrize("threshold", [0.0, 1.0, float("nan"), 1, "best", None, True])
def test_a_threshold_that_is_none_is_refused(threshold: Any):
    with pytest.raises(UserError, match=r"task\.args\.threshold: .* between 0 and 1, or tuned"):
        MultiLabelClassification(threshold=threshold)


@given(st.lists(st.tuples(st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.5, 0.9, 1.0]), st.booleans()), max_size=30))
def test_no_threshold_has_a_better_f1(rows: list[tuple[float, bool]]):
    probabilities = np.array([probability for probability, _ in rows], dtype=np.float32)
    references = np.array([is_there for _, is_there in rows], dtype=np.int64)
    threshold = find_threshold(probabilities, references)
    assert 0 < threshold < 1

    def score(value: float) -> float:
        found = probabilities > value
        return float(2 * (found & (references == 1)).sum() / (found.sum() + references.sum()))

    if not references.any():
        assert threshold == 0.5
        return
    assert score(threshold) >= max(score(value) for value in np.linspace(0.001, 0.999, 50)) - 1e-12


def test_the_threshold_is_tuned_on_validation_rows_and_kept_with_the_model(tmp_path: Path):
    tuned = make_config(
        tmp_path,
        ROWS,
        "task.args={threshold: tuned}",
        "evaluate.metrics=[label_f1]",
        f"data.test={tmp_path / 'rows.jsonl'}",
    )
    loop = build(tuned, console=Console(enabled=False))
    loop.fit()
    logged = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    validation = next(row["validation/micro_f1"] for row in logged if "validation/micro_f1" in row)
    test = next(row["test/micro_f1"] for row in logged if "test/micro_f1" in row)
    assert test == validation, "the same rows, by the threshold that was chosen"
    lines = (tmp_path / "run" / "predictions" / "test.jsonl").read_text().splitlines()
    assert [json.loads(line)["reference"] for line in lines] == [sorted(row["label"]) for row in ROWS]
    predictor = Predictor.load(tmp_path / "run" / "model")
    assert isinstance(predictor.task, MultiLabelClassification)
    assert isinstance(loop.task, MultiLabelClassification)
    assert predictor.task.threshold == loop.task.threshold != 0.5
    known = [[NAMES.index(name) for name in row["label"]] for row in ROWS]
    told = predictor.predict_rows({"text": TEXTS}, labels=known).metrics
    assert told is not None
    assert told["micro_f1"] == pytest.approx(test)


def test_without_validation_rows_there_is_nothing_to_tune_by(tmp_path: Path):
    config = make_config(tmp_path, ROWS, "task.args={threshold: tuned}", "data.validation=null", "evaluate.every=never")
    with pytest.raises(UserError, match=r"task\.args: .*there are no validation rows to choose by"):
        build(config, console=Console(enabled=False))
