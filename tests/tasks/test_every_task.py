"""What every task of the package keeps, shown on its own example rows."""

import json
import os
from collections.abc import Mapping
from io import StringIO
from itertools import product
from pathlib import Path
from typing import Any

import fork_server
import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file
from scenarios import make_ranks

from trainer_loop import Predictor, Task, TrainingLoop, UserError, build, load_config
from trainer_loop.cli.onnx import main as write_onnx
from trainer_loop.config.fields import Config
from trainer_loop.data.columns import bind_columns
from trainer_loop.data.loader import TrainLoader
from trainer_loop.data.processors import train_tokenizer
from trainer_loop.metrics.shipped import SHIPPED
from trainer_loop.record.logs import Console
from trainer_loop.tasks.find import list_tasks, load_task
from trainer_loop.testing import assert_resumes_exactly

# Layouts, and what the config says of them. A group of processes has one or two.
LAYOUTS = {
    "two": [],
    "full": ["parallel.shard=full"],
    "zero2": ["parallel.shard=zero2"],
    "copies": ["parallel.shard=full", "parallel.replicate=2"],
}
# A small model for each class of transformers that a task names.
MODELS = {
    "AutoModelForSequenceClassification": ("bert", {"hidden_size": 16, "num_hidden_layers": 2}),
    "AutoModelForTokenClassification": ("bert", {"hidden_size": 16, "num_hidden_layers": 2}),
    "AutoModelForImageClassification": (
        "vit",
        {"image_size": 8, "patch_size": 4, "hidden_size": 16, "num_hidden_layers": 2},
    ),
    "AutoModelForQuestionAnswering": ("bert", {"hidden_size": 16, "num_hidden_layers": 2}),
    "AutoModelForMultipleChoice": ("bert", {"hidden_size": 16, "num_hidden_layers": 2}),
    "AutoModelForMaskedLM": ("bert", {"hidden_size": 16, "num_hidden_layers": 2}),
    "AutoModelForSeq2SeqLM": (
        "t5",
        {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 2, "num_decoder_layers": 2, "num_heads": 2},
    ),
    "AutoModelForCausalLM": ("gpt2", {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64}),
}
SIZES = {"num_attention_heads": 2, "intermediate_size": 16, "max_position_embeddings": 64}
NO_DROPOUT = {
    "bert": {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
    "vit": {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
    "gpt2": {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
    "t5": {"dropout_rate": 0.0},
}


def make_config(folder: Path, name: str, *overrides: str, dropout: bool = False, prepares: bool = True) -> Config:
    """A run of a few steps on the example rows of a task. prepares: write the rows and a tokenizer into the folder."""
    task = load_task(name)
    rows = folder / "rows.jsonl"
    if prepares:
        rows.write_text("".join(json.dumps(row) + "\n" for row in task.example * 3))
    kind, sizes = MODELS[str(task.auto_model)]
    texts = [str(value) for row in task.example for value in row.values()]
    tokenizer = folder / "tokenizer" if task.auto_processor == "AutoTokenizer" else None
    if prepares and tokenizer is not None:
        train_tokenizer(texts, framed=task().frames_texts, vocab_size=300, max_length=32).save_pretrained(tokenizer)
    own = {"bert": SIZES, "vit": {"num_attention_heads": 2, "intermediate_size": 16}}.get(kind, {})
    sizes = sizes | own | ({} if dropout else NO_DROPOUT[kind])
    model = {"type": kind, "overrides": sizes} | ({} if tokenizer is None else {"tokenizer": str(tokenizer)})
    model |= {"chat_template": "plain"} if name in ("chat", "preference", "reward_model") else {}
    return load_config(
        None,
        [
            f"task.name={name}",
            f"model={json.dumps(model)}",
            f"data={json.dumps({'train': str(rows), 'validation': str(rows), 'test': str(rows), 'max_length': 32})}",
            f"data.cache_dir={folder / 'cache'}",
            "batch.size=6",
            "train={steps: 3, precision: no, threads: 1}",
            "optimizer={name: sgd, lr: 0.1}",
            "evaluate.every=3",
            "checkpoint.every=3",
            f"run_dir={folder / 'run'}",
            *overrides,
        ],
    )


def train(config: Config, task: Task | None = None) -> TrainingLoop:
    loop = build(config, console=Console(enabled=False))
    loop.fit()
    return loop


def read_metrics(run_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(params=list_tasks())
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_it_has_example_rows_of_unlike_lengths_with_all_columns_that_it_needs(name: str):
    task = load_task(name)
    assert len(task.example) >= 3
    for row in task.example:
        assert bind_columns(task.columns, {}, task=name).names.keys() <= row.keys() <= task.columns.keys()


def test_an_update_does_not_depend_on_how_it_is_cut(name: str, tmp_path: Path):
    weights, losses = [], []
    for number, cut in enumerate(("batch.max_tokens=null", "batch.max_tokens=40", "batch.per_device=1")):
        folder = tmp_path / str(number)
        folder.mkdir()
        loop = train(make_config(folder, name, cut, "log.every=1"))
        weights.append({key: weight.detach().clone() for key, weight in loop.bare_model.named_parameters()})
        losses.append([row["loss"] for row in read_metrics(folder / "run") if "grad_norm" in row])
    assert len(losses[0]) == 3
    for other_weights, other_losses in zip(weights[1:], losses[1:], strict=True):
        assert other_losses == pytest.approx(losses[0], rel=1e-6)
        for key, weight in weights[0].items():
            torch.testing.assert_close(other_weights[key], weight, rtol=1e-5, atol=1e-6)


# make test has the others in tests/distributed; with every task they take a minute and a half of processor time.
@pytest.mark.parametrize(
    ("num_processes", "layouts"),
    [
        (2, ["two", "full"]),
        pytest.param(2, ["zero2"], marks=pytest.mark.slow),
        pytest.param(4, ["copies"], marks=pytest.mark.slow),
    ],
)
def test_several_processes_make_the_updates_of_one(num_processes: int, layouts: list[str], tmp_path: Path):
    for name, layout in product(list_tasks(), ["one", *layouts]):
        (tmp_path / layout / name).mkdir(parents=True)
        make_config(tmp_path / layout / name, name)
    script = tmp_path / "train.py"
    paths = [str(Path(__file__).parents[1]), str(Path(__file__).parent)]
    script.write_text(
        f"import sys; sys.path[:0] = {paths!r}\nimport test_every_task as own; own.train_in_group({layouts})\n"
    )
    with (tmp_path / "output.txt").open("w") as output:
        processes = [
            fork_server.start([str(script)], cwd=tmp_path, env=os.environ | rank, stdout=output, stderr=output)
            for rank in make_ranks(num_processes)
        ]
    train_all_in(tmp_path / "one")
    ends = [process.wait(timeout=300) for process in processes]
    assert ends == [0] * num_processes, (tmp_path / "output.txt").read_text()
    for name, layout in product(list_tasks(), layouts):
        runs = [tmp_path / number / name / "run" for number in ("one", layout)]
        one, other = (load_file(run / "model" / "model.safetensors") for run in runs)
        for key, weight in one.items():
            torch.testing.assert_close(other[key], weight, rtol=1e-5, atol=1e-6)
        for row, other_row in zip(*map(read_metrics, runs), strict=True):
            figures = {key: value for key, value in row.items() if "loss" in key or "f1" in key or "accuracy" in key}
            assert {key: other_row[key] for key in figures} == pytest.approx(figures, rel=1e-5)


def train_in_group(layouts: list[str]) -> None:
    """Train every task in each layout, in folders of the current directory, as one process of a group."""
    for layout in layouts:
        train_all_in(Path(layout).resolve(), *LAYOUTS[layout])
    torch.distributed.destroy_process_group()


def train_all_in(folder: Path, *overrides: str) -> None:
    for name in list_tasks():
        loop = build(make_config(folder / name, name, *overrides, prepares=False), console=Console(enabled=False))
        if loop.task.generates:  # an encoder that runs before its model
            loop.predict(loop.task.example)
        loop.fit()


def test_a_stream_trains_the_rows_that_are_trained_in_memory(name: str, tmp_path: Path):
    task = load_task(name)
    if task.encode_alone is not Task.encode_alone:
        pytest.skip("a stream joins other texts than a split in memory, whose order is another")
    if task.refers:
        with pytest.raises(UserError, match=f"data.streaming: the task {name} compares each row with the model before"):
            build(make_config(tmp_path, name, "data.streaming=true"), console=Console(enabled=False))
        return
    has_classes = any(column.kind in ("class", "classes") for column in task.columns.values())
    labels = sorted({label for row in task.example for label in _labels_of(row)}) if has_classes else []
    overrides = ["train.steps=1", "evaluate.every=never"]
    overrides += [f"data.label_names={json.dumps(labels)}"] if labels else []
    losses, num_rows = [], 1000
    for folder, streaming in ((tmp_path / "memory", "false"), (tmp_path / "stream", "true")):
        folder.mkdir()
        loop = train(make_config(folder, name, f"batch.size={num_rows}", f"data.streaming={streaming}", *overrides))
        row = next(row for row in read_metrics(folder / "run") if "grad_norm" in row)
        losses.append(row["loss"])
        if isinstance(loop.data.train, TrainLoader):
            num_rows = len(loop.data.train.plan.lengths)  # encoded rows: all of them
    assert losses[1] == pytest.approx(losses[0], rel=1e-6)


def _labels_of(row: Mapping[str, Any]) -> list[str]:
    found = row.get("label", row.get("tags", []))
    return found if isinstance(found, list) else [found]


def test_a_run_that_was_stopped_ends_with_the_same_bits(name: str, tmp_path: Path):
    assert_resumes_exactly(make_config(tmp_path, name, "optimizer.name=adamw", dropout=True), steps=4)


# Columns that are predicted of other rows than the examples, or on demand.
PREDICTED_OTHERWISE = {
    "causal_lm": {"continuation"},
    "chat": {"loss", "perplexity"},
    "sequence_regression": {"values"},
}


def test_what_it_exports_predicts_the_same(name: str, tmp_path: Path):
    loop = train(make_config(tmp_path, name))
    model_dir = tmp_path / "run" / "model"
    task = load_task(name)
    inputs = bind_columns(task.columns, {}, task=name).without_targets().names
    rows = [{own: row[own] for own in inputs if own in row} for row in task.example if row[next(iter(inputs))]]
    if name == "masked_lm":
        rows = [{"text": row["text"].replace(" the ", " [MASK] ") + "[MASK]"} for row in rows]
    joins = task.encode_alone is not Task.encode_alone  # and so predicts other rows in a loop than one by one
    predicted = zip(_split(loop.predict(rows)), rows, strict=not joins)
    here = [loop.task.decode(outputs, row) for outputs, row in predicted]
    predictor = Predictor.load(model_dir)
    there = predictor.predict_rows({own: [row[own] for row in rows] for own in rows[0]}).rows
    if not joins:
        assert len(here) == len(there) == len(rows)
        for one, other in zip(here, there, strict=True):
            assert one.keys() == other.keys()
            for key, value in one.items():
                assert value == (pytest.approx(other[key], rel=1e-4) if isinstance(value, float) else other[key])
    assert set(task.predicted) == set(there[0]) | PREDICTED_OTHERWISE.get(name, set())
    json.dumps(there)
    _, told = getattr(transformers, str(task.auto_model)).from_pretrained(model_dir, output_loading_info=True)
    assert not told["missing_keys"]
    assert not told["unexpected_keys"]
    assert not told["mismatched_keys"]


@pytest.mark.slow
def test_what_it_exports_is_written_as_onnx_where_it_writes_no_texts(name: str, tmp_path: Path, capfd):
    train(make_config(tmp_path, name, "train.steps=1"))
    code = write_onnx([f"model={tmp_path / 'run'}"])
    captured = capfd.readouterr()
    if load_task(name)().writes:
        assert code == 2 and f"a model of the task {name} writes texts token by token" in captured.err
    else:
        assert (code, captured.err) == (0, "") and "answered by both" in captured.out
        files = {path.name for path in (tmp_path / "run" / "onnx").iterdir()}
        assert {"model.onnx", "onnx.json", "trainer_loop.json"} <= files


def _split(outputs: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
    count = len(next(iter(outputs.values())))
    return [{name: column[row] for name, column in outputs.items()} for row in range(count)]


def test_its_metrics_and_predictions_are_written(name: str, tmp_path: Path):
    train(make_config(tmp_path, name))
    scored = [row for row in read_metrics(tmp_path / "run") if any(key.startswith("test/") for key in row)]
    assert len(scored) == 1
    assert all(f"test/{key}" in scored[0] for metric in load_task(name).metrics for key in SHIPPED[metric].results)
    lines = (tmp_path / "run" / "predictions" / "test.jsonl").read_text().splitlines()
    row = json.loads(lines[0])
    assert {"place", "prediction", "reference"} <= row.keys()
    if (load_task(name).outputs or {}).get("probabilities") == "probabilities":
        assert 0 < row["reference_probability"] <= row["probability"] < 1
    page = (tmp_path / "run" / "report.html").read_text()
    assert all(f"Mistakes: {split}" in page for split in ("test", "validation"))
    assert "Left out of this report" not in page
    facts = json.loads((tmp_path / "run" / "report.json").read_text())
    assert all(row["inputs"] for of_set in facts["sets"].values() for row in of_set["worst"])


def test_a_report_that_cannot_be_written_costs_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def fail(*arguments: Any) -> None:
        raise RuntimeError("no page today")

    def fail_too(*arguments: Any) -> None:
        raise RuntimeError("nor rows")

    monkeypatch.setattr("trainer_loop.outputs.write_report", fail)
    monkeypatch.setattr("trainer_loop.outputs.find_worst", fail_too)
    said = StringIO()
    build(make_config(tmp_path, "sequence_classification"), console=Console(stream=said)).fit()
    again = f"python -m trainer_loop.report {tmp_path / 'run'} tries again"
    assert f"report.html was not written ({again}): RuntimeError: no page today" in said.getvalue()
    assert "warning: the report lacks the worst rows of validation: RuntimeError: nor rows" in said.getvalue()
    assert (tmp_path / "run" / "model" / "config.json").is_file()


def test_a_run_without_a_report_leaves_nothing_for_one(tmp_path: Path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "report.json").write_text("{}")  # of an earlier start; soon it would tell of other weights
    train(make_config(tmp_path, "sequence_classification", "report=false"))
    assert not list((tmp_path / "run").glob("report*"))
    assert [path.name for path in (tmp_path / "run" / "predictions").iterdir()] == ["test.jsonl"]


@pytest.mark.parametrize("streaming", ["true", "false"])
def test_a_row_without_one_of_its_values_is_refused_with_its_place(name: str, streaming: str, tmp_path: Path):
    task = load_task(name)
    for own in bind_columns(task.columns, {}, task=name).names:
        config = make_config(tmp_path, name, f"data.streaming={streaming}", f"run_dir={tmp_path / own}")
        rows = [dict(row) for row in task.example * 3]
        rows[4][own] = None
        (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        with pytest.raises(UserError) as refused:
            build(config, console=Console(enabled=False))
        assert any(f"{own!r}" in line and "rows.jsonl line 5" in line for line in refused.value.problems), own


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("seq2seq", {"prefix": "reverse: ", "max_target_length": 3}),
        ("token_classification", {"pieces": "all"}),
        ("question_answering", {"null_answers": True, "null_threshold": -1000.0, "max_answer_tokens": 2}),
    ],
)
def test_an_exported_model_keeps_the_arguments_of_its_task(name: str, arguments: dict[str, Any], tmp_path: Path):
    loop = train(make_config(tmp_path, name, f"task.args={json.dumps(arguments)}"))
    task = load_task(name)
    inputs = [own for own, column in task.columns.items() if not column.target]
    rows = [{own: row[own] for own in inputs} for row in task.example]
    predictor = Predictor.load(tmp_path / "run" / "model")
    assert {argument: getattr(predictor.task, argument) for argument in arguments} == arguments
    here = [loop.task.decode(outputs, row) for outputs, row in zip(_split(loop.predict(rows)), rows, strict=True)]
    there = predictor.predict_rows({own: [row[own] for row in rows] for own in inputs}).rows
    texts = [[value for value in row.values() if isinstance(value, str)] for row in here]
    assert [[value for value in row.values() if isinstance(value, str)] for row in there] == texts
