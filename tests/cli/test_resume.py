"""Started again with the same command: an unfinished run goes on, a finished one changes nothing."""

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file

from trainer_loop.loop import TrainingLoop


class KilledError(BaseException):
    """Stands for SIGKILL: nothing between it and the command may catch it."""


def metric_rows(run: Path) -> list[dict]:
    timing = {"rows_per_second", "tokens_per_second", "data_wait", "train_seconds", "peak_memory_bytes"}
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name not in timing} for row in rows]


@pytest.mark.parametrize("killed_in_step", [2, 4, 5, 8])
def test_a_killed_run_goes_on_from_its_newest_checkpoint_bit_for_bit(
    command, arguments, tmp_path, monkeypatch, killed_in_step
):
    arguments = [*arguments, "checkpoint.every=2", "evaluate.every=3", "log.every=3", "checkpoint.best=accuracy"]
    arguments += ["model.overrides={hidden_dropout_prob: 0.1, attention_probs_dropout_prob: 0.1}"]
    assert command(*arguments, f"run_dir={tmp_path / 'whole'}").code == 0

    train_step = TrainingLoop.train_step

    def die(self, step_batch):
        if step_batch.plan.step + 1 == killed_in_step:
            raise KilledError
        return train_step(self, step_batch)

    monkeypatch.setattr(TrainingLoop, "train_step", die)
    with pytest.raises(KilledError):
        command(*arguments)
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    ended = command(*arguments)
    assert ended.code == 0
    assert ("resumed at step" in ended.out) == (killed_in_step > 2)

    whole, resumed = tmp_path / "whole", tmp_path / "run"
    assert metric_rows(resumed) == metric_rows(whole)
    for name, tensor in load_file(whole / "model" / "model.safetensors").items():
        assert tensor.equal(load_file(resumed / "model" / "model.safetensors")[name]), name
    optimizers = [(run / "checkpoints" / "latest" / "optimizer.bin").read_bytes() for run in (whole, resumed)]
    assert optimizers[0] == optimizers[1]


def test_a_finished_run_says_so_and_changes_nothing(command, arguments, tmp_path):
    assert command(*arguments).code == 0
    run = tmp_path / "run"
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    ended = command(*arguments)
    assert ended.code == 0
    assert "is complete" in ended.out
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before


def test_more_epochs_take_a_finished_run_further(command, arguments, tmp_path):
    assert command(*arguments).code == 0
    ended = command(*arguments, "train.epochs=2")
    assert ended.code == 0
    assert "resumed at step 8 of 16" in ended.out
    assert "the run was planned for 8 steps" in ended.out
    assert json.loads((tmp_path / "run" / "model" / "trainer_loop.json").read_text())["num_steps"] == 16


def test_a_damaged_newest_checkpoint_is_named_and_the_one_before_is_used(command, arguments, tmp_path):
    arguments = [*arguments, "checkpoint.every=2"]
    assert command(*arguments).code == 0
    run = tmp_path / "run"
    shutil.rmtree(run / "model")
    weights = run / "checkpoints" / "step-00000008" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    ended = command(*arguments)
    assert ended.code == 0
    assert "model.safetensors has" in ended.out
    assert "resumed at step 6 of 8" in ended.out


def test_a_checkpoint_asked_for_by_path_must_be_complete(command, arguments, tmp_path):
    assert command(*arguments).code == 0
    checkpoint = tmp_path / "run" / "checkpoints" / "step-00000008"
    (checkpoint / "optimizer.bin").unlink()
    ended = command(*arguments, f"resume={checkpoint}", f"run_dir={tmp_path / 'other'}")
    assert ended.code == 2
    assert "optimizer.bin is missing" in ended.problems[0]


def test_another_run_can_go_on_from_a_checkpoint_by_its_path(command, arguments, tmp_path):
    assert command(*arguments, "checkpoint.every=4").code == 0
    checkpoint = tmp_path / "run" / "checkpoints" / "step-00000004"
    ended = command(*arguments, f"resume={checkpoint}", f"run_dir={tmp_path / 'other'}")
    assert ended.code == 0, ended.err
    assert "resumed at step 4 of 8" in ended.out
    for name, tensor in load_file(tmp_path / "run" / "model" / "model.safetensors").items():
        assert tensor.equal(load_file(tmp_path / "other" / "model" / "model.safetensors")[name]), name


def test_a_branch_that_is_started_again_goes_on_from_its_own_checkpoint(command, arguments, tmp_path):
    assert command(*arguments, "checkpoint.every=4").code == 0
    branch = [
        *arguments,
        f"resume={tmp_path / 'run' / 'checkpoints' / 'step-00000004'}",
        f"run_dir={tmp_path / 'other'}",
    ]
    assert command(*branch).code == 0
    assert "is complete" in command(*branch).out
    ended = command(*branch, "train.epochs=2")
    assert ended.code == 0, ended.err
    assert "resumed at step 8 of 16" in ended.out


def test_a_run_whose_checkpoints_are_all_damaged_is_not_begun_anew_in_silence(command, arguments, tmp_path):
    assert command(*arguments).code == 0
    run = tmp_path / "run"
    shutil.rmtree(run / "model")
    (run / "checkpoints" / "step-00000008" / "optimizer.bin").unlink()
    log = (run / "metrics.jsonl").read_text()
    ended = command(*arguments)
    assert ended.code == 2
    assert "optimizer.bin is missing" in ended.problems[0]
    assert "delete it to begin anew" in ended.problems[1]
    assert (run / "metrics.jsonl").read_text() == log


def test_an_older_checkpoint_of_the_same_run_is_refused_where_newer_ones_would_be_lost(command, arguments, tmp_path):
    assert command(*arguments, "checkpoint.every=4").code == 0
    shutil.rmtree(tmp_path / "run" / "model")
    ended = command(*arguments, f"resume={tmp_path / 'run' / 'checkpoints' / 'step-00000004'}")
    assert ended.code == 2
    assert "step-00000008, which would be lost" in ended.problems[0]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ("batch.size=4", "batch_size was 8 and is 4"),
        ("seed=1", "seed was 42 and is 1"),
        ("data.max_length=8", "row_lengths was"),
        ("data.label_names=[positive, negative]", "label_names was ['negative', 'positive']"),
        ("optimizer.lr=1", "optimizer was ['adamw', 0.001, 0.01, {}] and is ['adamw', 1.0, 0.01, {}]"),
        ("optimizer={name: sgd, args: {momentum: 0.9}}", "optimizer was"),
        ("scheduler.warmup=0", "scheduler was"),
        ("model={from_scratch: true, overrides: {num_hidden_layers: 1}}", "model was"),
    ],
)
def test_a_run_directory_of_another_run_is_refused_finished_or_not(command, arguments, change, named, tmp_path):
    assert command(*arguments).code == 0
    for more in ([], ["train.epochs=2"]):
        ended = command(*arguments, change, *more)
        assert ended.code == 2
        assert named in ended.problems[0]
    shutil.rmtree(tmp_path / "run" / "model")
    ended = command(*arguments, change)
    assert ended.code == 2
    assert named in ended.problems[0]


def test_fewer_epochs_than_were_trained_are_refused(command, arguments, tmp_path):
    assert command(*arguments, "train.epochs=2").code == 0
    shutil.rmtree(tmp_path / "run" / "model")
    ended = command(*arguments)
    assert ended.code == 2
    assert "the checkpoint is at step 16 and the run ends at 8" in ended.problems[0]


def test_another_metric_for_the_best_begins_the_search_anew(command, arguments, tmp_path):
    more = ["checkpoint.every=4", "evaluate.every=4"]
    assert command(*arguments, *more, "checkpoint.best=accuracy").code == 0
    ended = command(*arguments, *more, "train.epochs=2", "checkpoint.best=-loss")
    assert ended.code == 0, ended.err
    run = tmp_path / "run"
    losses = {row["step"]: row["validation/loss"] for row in metric_rows(run) if "validation/loss" in row}
    record = json.loads((run / "model" / "trainer_loop.json").read_text())
    assert record["step"] == min((loss, step) for step, loss in losses.items() if step > 8)[1]
    assert record["metrics"]["loss"] == losses[record["step"]]


def test_a_refused_command_leaves_the_run_directory_as_it_was(command, arguments, tmp_path):
    assert command(*arguments, "checkpoint.every=4").code == 0
    run = tmp_path / "run"
    shutil.rmtree(run / "model")
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    for change in ("optimizer.lr=1", "resume=never", "train.epochs=0.5"):
        assert command(*arguments, change).code == 2
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_resume_never_refuses_to_write_over_a_run(command, arguments, tmp_path):
    assert command(*arguments).code == 0
    ended = command(*arguments, "resume=never")
    assert ended.code == 2
    assert "step-00000008" in ended.problems[0]


def test_a_diverged_run_names_step_rows_and_parameter_and_leaves_the_checkpoint(command, arguments, tmp_path, reviews):
    (tmp_path / "lab.py").write_text(
        "def explode(logits, labels, *, threshold):\n"
        "    loss = (logits ** 2).sum()\n"
        "    explode.batches += len(labels) == 8\n"
        "    return loss / 0.0 if explode.batches > threshold else loss\n"
        "explode.batches = -1  # the first is a trial on made-up rows, given twice\n"
    )
    arguments = [*arguments, "batch.max_tokens=null", "evaluate.every=never"]
    ended = command(*arguments, "loss={name: lab.explode, args: {threshold: 5}}", "checkpoint.every=4", "log.every=8")
    assert ended.code == 3
    (problem,) = ended.problems
    assert problem.startswith("step 6: loss inf")
    assert problem.count("reviews.csv row ") == 8
    assert "first bad gradient: bert.embeddings" in problem
    kept = tmp_path / "run" / "checkpoints"
    assert sorted(path.name for path in kept.iterdir()) == ["latest", "step-00000004"]
    assert "Traceback" not in ended.err
