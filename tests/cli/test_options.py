"""Options that change how a run is computed and must not change what is learnt, or only as much as they say."""

import json

import pandas as pd
import pytest
from safetensors.torch import load_file


def weights_of(run):
    return load_file(run / "model" / "model.safetensors")


@pytest.mark.parametrize(
    "option",
    ["data.num_workers=2", "model.gradient_checkpointing=true", "model.packing=true", "batch.max_tokens=40"],
)
def test_how_a_run_is_computed_changes_no_weight(command, arguments, tmp_path, option):
    arguments = [*arguments, "model.overrides={hidden_dropout_prob: 0.0, attention_probs_dropout_prob: 0.0}"]
    arguments += ["optimizer={name: sgd, lr: 0.1}"]
    assert command(*arguments).code == 0
    ended = command(*arguments, option, f"run_dir={tmp_path / 'other'}")
    assert ended.code == 0, ended.err
    other = weights_of(tmp_path / "other")
    for name, tensor in weights_of(tmp_path / "run").items():
        assert (tensor - other[name]).abs().max() < 1e-6, name


def test_bf16_computes_in_bf16_and_keeps_the_weights_in_fp32(command, arguments, tmp_path):
    assert command(*arguments).code == 0
    ended = command(*arguments, "train.precision=bf16", f"run_dir={tmp_path / 'bf16'}")
    assert ended.code == 0, ended.err
    assert "precision bf16" in ended.out
    full, half = (
        pd.read_json(tmp_path / run / "metrics.jsonl", lines=True)["loss"].dropna().iloc[-1] for run in ("run", "bf16")
    )
    assert half == pytest.approx(full, rel=0.05)
    assert half != full
    assert {str(tensor.dtype) for tensor in weights_of(tmp_path / "bf16").values()} == {"torch.float32"}


@pytest.mark.parametrize("optimizer", ["sgd", "adafactor", "torch.optim.RAdam"])
def test_optimizers_by_name_and_by_dotted_path_train_and_resume(command, arguments, optimizer):
    arguments = [*arguments, f"optimizer.name={optimizer}", "checkpoint.every=4"]
    assert command(*arguments).code == 0
    ended = command(*arguments, "train.epochs=2")
    assert ended.code == 0, ended.err
    assert "resumed at step 8 of 16" in ended.out


def test_accumulation_by_number_gives_the_batch_its_size(command, arguments):
    arguments = [argument for argument in arguments if not argument.startswith("batch.size")]
    ended = command(*arguments, "batch={per_device: 3, accumulate: 4}", "dry_run=true")
    assert ended.code == 0, ended.err
    assert "rows: 60, 12 per step; 5 steps per epoch" in ended.out
    assert "microbatches per step and process: 4 to 4" in ended.out


def test_plateau_lowers_the_rate_when_the_validation_loss_stands_still(command, arguments, tmp_path):
    ended = command(
        *arguments,
        "scheduler={name: reduce_lr_on_plateau, args: {patience: 0, threshold: 10.0, threshold_mode: abs}}",
        "evaluate.every=2",
        "log.every=1",
    )
    assert ended.code == 0, ended.err
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    rates = [row["lr"] for row in rows if "lr" in row]
    assert rates == pytest.approx([1e-3] * 4 + [1e-4] * 2 + [1e-5] * 2)


def test_evaluation_at_the_start_is_logged_at_step_0(command, arguments, tmp_path):
    assert command(*arguments, "evaluate.at_start=true", "checkpoint.best=accuracy").code == 0
    log = pd.read_json(tmp_path / "run" / "metrics.jsonl", lines=True)
    assert log["step"].tolist() == [0, 8, 8, 8]
