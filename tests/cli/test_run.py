"""The command from a config to a model that is used: what it leaves behind and what it says."""

import json
import re
from pathlib import Path

import pandas as pd
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from trainer_loop import load_config

TRAINING_COLUMNS = {"loss", "grad_norm", "lr", "rows_per_second", "tokens_per_second", "padding", "data_wait"}


def test_a_run_leaves_its_config_log_metrics_checkpoints_and_model(command, arguments, tmp_path):
    ended = command(*arguments, "train.epochs=2", "log.every=3", "evaluate.metrics=[accuracy, f1]")
    assert ended.code == 0, ended.err
    run = tmp_path / "run"
    assert {path.name for path in run.iterdir()} == {
        "config.yaml",
        "environment.json",
        "metrics.jsonl",
        "train.log",
        "status.json",
        ".lock",
        "checkpoints",
        "model",
        "predictions",
        "report.html",
        "report.json",
    }
    assert json.loads((run / "environment.json").read_text())["num_processes"] == 1
    assert "2 steps per epoch" not in ended.out
    assert "8 steps per epoch, 16 in all" in ended.out
    assert f' -m trainer_loop.predict model={run} text="I am super delighted."' in ended.out
    assert ended.out.splitlines()[-1] in (run / "train.log").read_text()
    assert "\r" not in ended.out


def test_the_metric_log_is_read_by_pandas_and_its_last_row_holds_the_totals(command, arguments, tmp_path):
    command(*arguments, "log.every=3", "evaluate.every=4")
    log = pd.read_json(tmp_path / "run" / "metrics.jsonl", lines=True)
    assert log["step"].notna().all()
    training = log[log["loss"].notna()]
    assert training["step"].tolist() == [3, 4, 6, 8]
    assert training[sorted(TRAINING_COLUMNS)].notna().all(axis=None)
    assert training["tokens_per_second_per_device"].equals(training["tokens_per_second"])
    assert (training["peak_memory_bytes"] > 1e6).all()
    assert "mfu" not in log
    assert training["padding"].between(0, 1).all()
    assert training["data_wait"].between(0, 1).all()
    evaluated = log[log["validation/loss"].notna()]
    assert evaluated["step"].tolist() == [4, 8]
    assert (evaluated["validation/rows"] == 20).all()
    totals = log.iloc[-1]
    assert totals["train_seconds"] > 0
    assert totals["peak_memory_bytes"] > 1e6
    assert totals["rows_seen"] == 60


def test_the_resolved_config_runs_the_same_run_again(command, arguments, tmp_path):
    assert command(*arguments, "model.overrides.hidden_dropout_prob=0.3").code == 0
    first = tmp_path / "run"
    again = load_config(str(first / "config.yaml"), [])
    assert again.model.overrides == {"hidden_dropout_prob": 0.3}
    assert command(f"config={first / 'config.yaml'}", f"run_dir={tmp_path / 'again'}").code == 0
    for name in ("model.safetensors", "optimizer.bin"):
        one, two = (
            next((tmp_path / run / "checkpoints" / "latest").glob(name)).read_bytes() for run in ("run", "again")
        )
        assert one == two, f"{name}: the same config and seed gave other bits"


def test_the_exported_model_loads_with_the_auto_classes_alone(command, arguments, tmp_path):
    assert command(*arguments).code == 0
    directory = tmp_path / "run" / "model"
    model = AutoModelForSequenceClassification.from_pretrained(directory)
    assert model.config.id2label == {0: "negative", 1: "positive"}
    assert model.config.label2id == {"negative": 0, "positive": 1}
    with torch.no_grad():
        logits = model(**AutoTokenizer.from_pretrained(directory)("good film", return_tensors="pt")).logits
    assert logits.shape == (1, 2)
    card = (directory / "README.md").read_text()
    assert "sequence_classification" in card
    assert "accuracy" in card


def test_the_best_weights_by_the_metric_are_exported(command, arguments, tmp_path):
    # The lowest accuracy is asked for, so that the best is surely not the last.
    more = ["checkpoint.best=-accuracy", "optimizer.lr=0.01", "checkpoint.keep_last=1"]
    ended = command(*arguments, "train.epochs=4", *more)
    assert ended.code == 0, ended.err
    run = tmp_path / "run"
    log = pd.read_json(run / "metrics.jsonl", lines=True)
    evaluated = log[log["validation/loss"].notna()]
    best = evaluated.loc[evaluated["validation/accuracy"].idxmin()]
    record = json.loads((run / "model" / "trainer_loop.json").read_text())
    assert record["step"] == best["step"] < 32
    assert f"the best weights are those of step {int(best['step'])}: -accuracy" in ended.out
    assert record["metrics"]["loss"] == pytest.approx(best["validation/loss"])
    assert (run / "checkpoints" / "best").resolve().name == f"step-{int(best['step']):08d}"
    exported = AutoModelForSequenceClassification.from_pretrained(run / "model").state_dict()
    from safetensors.torch import load_file

    for name, tensor in load_file(run / "checkpoints" / "best" / "model.safetensors").items():
        assert torch.equal(exported[name], tensor), name


def test_the_test_split_is_scored_once_with_the_exported_weights(command, arguments, tmp_path, reviews):
    assert command(*arguments, f"data.test={reviews}", "checkpoint.best=accuracy").code == 0
    log = pd.read_json(tmp_path / "run" / "metrics.jsonl", lines=True)
    assert log["test/rows"].dropna().tolist() == [80]


def test_keep_last_and_best_decide_which_checkpoints_stay(command, arguments, tmp_path):
    assert command(*arguments, "checkpoint.every=1", "checkpoint.keep_last=2", "evaluate.every=never").code == 0
    names = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert names == ["latest", "step-00000007", "step-00000008"]


def test_a_dry_run_tells_the_plan_and_writes_nothing(command, arguments, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    ended = command(*arguments, "dry_run=true")
    assert ended.code == 0
    for told in (
        "train: 60 rows",
        "median",
        "rows: 60, 8 per step; 8 steps per epoch",
        "padding",
        "precision no",
        "memory of a process",
    ):
        assert told in ended.out
    assert sorted(tmp_path.rglob("*")) == before  # the token cache lies elsewhere, and is told of
    assert "nothing written but caches of rows and tokens" in ended.out


def test_a_loss_of_ones_own_is_named_by_its_dotted_path(command, arguments, tmp_path):
    (tmp_path / "my_lab").mkdir()
    (tmp_path / "my_lab" / "losses.py").write_text(
        "import torch\n"
        "def focal(logits, labels, *, gamma):\n"
        "    log_p = logits.log_softmax(-1).gather(1, labels[:, None])[:, 0]\n"
        "    return (-(1 - log_p.exp()) ** gamma * log_p).sum()\n"
    )
    plain = command(*arguments, f"run_dir={tmp_path / 'plain'}")
    focal = command(*arguments, "loss.name=my_lab.losses.focal", "loss.args.gamma=2")
    zero = command(*arguments, "loss.name=my_lab.losses.focal", "loss.args.gamma=0", f"run_dir={tmp_path / 'zero'}")
    assert plain.code == focal.code == zero.code == 0, focal.err
    first_loss = {
        run: pd.read_json(tmp_path / run / "metrics.jsonl", lines=True)["loss"].iloc[0]
        for run in ("plain", "run", "zero")
    }
    assert first_loss["run"] < 0.5 * first_loss["plain"]  # focal: a quarter where the model knows nothing
    assert abs(first_loss["zero"] - first_loss["plain"]) < 1e-6  # gamma 0 is cross-entropy


def test_without_a_terminal_training_is_told_in_lines_of_key_and_value(command, arguments):
    ended = command(*arguments, "log.every=4")
    lines = [line for line in ended.out.splitlines() if line.startswith("step=")]
    assert len(lines) == 2
    for line in lines:
        assert set(re.findall(r"(\w+)=", line)) == {"step", "epoch"} | TRAINING_COLUMNS


def test_libraries_say_nothing_that_is_of_no_use(command, arguments):
    ended = command(*arguments)
    assert ended.err == ""
    assert "classifier.weight" in ended.out  # that weights are new is of use, and said in a line


def test_a_causal_language_model_is_trained_from_text_files(command, tmp_path: Path):
    text = tmp_path / "book.txt"
    text.write_text("\n".join(f"the {word} is number {number}" for number in range(80) for word in ("cat", "dog")))
    ended = command(
        "task.name=causal_lm",
        "model.type=gpt2",
        "model.tokenizer=train",
        "model.vocab_size=320",
        "model.overrides={n_embd: 16, n_layer: 1, n_head: 2, n_positions: 32}",
        f"data.train={text}",
        "data.validation_fraction=0.2",
        "data.max_length=16",
        "batch.size=8",
        "train.steps=30",
        "optimizer.lr=1e-2",
        f"run_dir={tmp_path / 'run'}",
        "checkpoint.best=-perplexity",
    )
    assert ended.code == 0, ended.err
    log = pd.read_json(tmp_path / "run" / "metrics.jsonl", lines=True)
    perplexity = log["validation/perplexity"].dropna()
    assert perplexity.iloc[-1] < 0.5 * 320
