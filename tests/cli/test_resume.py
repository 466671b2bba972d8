"""Started again with the same command: an unfinished run goes on, a finished one changes nothing."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from trainer_loop import TrainingLoop
from trainer_loop.record.checkpoint_files import seal
from trainer_loop.record.logs import MACHINE_METRICS


class KilledError(BaseException):
    """Stands for SIGKILL: nothing between it and the command may catch it."""


def metric_rows(run: Path) -> list[dict]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name not in MACHINE_METRICS} for row in rows]


@pytest.mark.parametrize("killed_in_step", [2, 4, 5, 8])
def test_a_killed_run_goes_on_from_its_newest_checkpoint_bit_for_bit(
    command, arguments, tmp_path, monkeypatch, killed_in_step
):
    arguments = [*arguments, "checkpoint.every=2", "evaluate.every=3", "log.every=3", "checkpoint.best=accuracy"]
    arguments += ["model.overrides={hidden_dropout_prob: 0.1, attention_probs_dropout_prob: 0.1}"]
    assert command(*arguments, f"run_dir={tmp_path / 'whole'}").code == 0

    train_step = TrainingLoop.train_step

    def die(self, step_batch):
        if step_batch.step + 1 == killed_in_step:
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
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.name != ".lock"}
    ended = command(*arguments)
    assert ended.code == 0
    assert "is complete" in ended.out
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.name != ".lock"} == before


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
        ("batch.size=4", "batch.size was 8 and is 4"),
        ("seed=1", "data was"),  # other rows are cut off for validation
        ("data.max_length=8", "tokens was"),
        ("data.label_names=[positive, negative]", "label_names was ['negative', 'positive']"),
        ("optimizer={name: sgd, args: {momentum: 0.9}}", "optimizer.name was adamw and is sgd"),
        ("model={from_scratch: true, overrides: {num_hidden_layers: 1}}", "model.from_scratch was False and is True"),
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
    if named in ("data was", "tokens was"):  # which are hashes, so the key is told too
        assert f"{change.partition('=')[0]} was" in ended.problems[0]


def test_what_must_not_change_can_be_let_through_by_its_name(command, arguments, tmp_path):
    assert command(*arguments).code == 0
    ended = command(*arguments, "optimizer.args={eps: 1e-6}", "train.epochs=2", "resume_anyway=[optimizer.args]")
    assert ended.code == 0, ended.err
    assert (
        "changed since the checkpoint: optimizer.args was {} and is {'eps': 1e-06}: allowed by resume_anyway"
        in ended.out
    )
    saved = torch.load(tmp_path / "run" / "checkpoints" / "latest" / "optimizer.bin", weights_only=True)
    assert saved["param_groups"][0]["eps"] == 1e-6
    assert "resumed at step 8 of 16" in ended.out


def test_a_name_in_resume_anyway_that_nothing_asks_for_is_an_error(command, arguments):
    ended = command(*arguments, "resume_anyway=[seeds, log.every]")
    assert ended.code == 2
    assert "resume_anyway: seeds" in ended.problems[0]
    assert "did you mean seed?" in ended.problems[0]
    assert "resume_anyway: log.every" in ended.problems[1]


def test_every_change_is_told_with_what_follows_from_it(command, arguments, tmp_path):
    assert command(*arguments).code == 0
    changes = ["log.every=3", "optimizer.lr=5e-4", "train.epochs=2", "checkpoint.keep_last=1"]
    ended = command(*arguments, *changes)
    assert ended.code == 0, ended.err
    told = [line for line in ended.out.splitlines() if line.startswith("changed since the checkpoint")]
    assert sorted(line.partition(": ")[2] for line in told) == [
        "checkpoint.keep_last was 2 and is 1: no update depends on it",
        "log.every was 10 and is 3: no update depends on it",
        "optimizer.lr was 0.001 and is 0.0005: planned anew from here on",
        "train.epochs was 1.0 and is 2.0: planned anew from here on",
    ]


@pytest.mark.parametrize("scheduler", ["linear", "cosine", "reduce_lr_on_plateau"])
def test_a_new_learning_rate_and_weight_decay_hold_from_the_checkpoint_on(command, arguments, tmp_path, scheduler):
    """As if the second half had begun with them, at the same place of the schedule."""
    arguments = [*arguments, f"scheduler.name={scheduler}", "train.epochs=2", "log.every=1"]
    assert command(*arguments, "checkpoint.every=4", "checkpoint.keep_last=9").code == 0
    run = tmp_path / "run"
    before = {row["step"]: row["lr"] for row in metric_rows(run) if "lr" in row}
    shutil.rmtree(run / "model")
    for step in (8, 12, 16):
        shutil.rmtree(run / "checkpoints" / f"step-{step:08d}")
    ended = command(*arguments, "optimizer.lr=2e-3", "optimizer.weight_decay=0.5")
    assert ended.code == 0, ended.err
    after = {row["step"]: row["lr"] for row in metric_rows(run) if "lr" in row}
    assert [after[step] for step in range(1, 5)] == [before[step] for step in range(1, 5)]
    assert [after[step] for step in range(5, 9)] == pytest.approx([2 * before[step] for step in range(5, 9)])
    saved = torch.load(run / "checkpoints" / "latest" / "optimizer.bin", weights_only=True)
    assert [group["weight_decay"] for group in saved["param_groups"]] == [0.5, 0.0]


def test_another_schedule_takes_over_at_the_step_it_is_given(command, arguments, tmp_path):
    arguments = [*arguments, "train.epochs=2", "log.every=1", "evaluate.every=never"]
    run, cosine = tmp_path / "run", tmp_path / "cosine"
    assert command(*arguments, "scheduler.name=cosine", f"run_dir={cosine}").code == 0
    assert command(*arguments, "checkpoint.every=4", "checkpoint.keep_last=9").code == 0
    shutil.rmtree(run / "model")
    for step in (8, 12, 16):
        shutil.rmtree(run / "checkpoints" / f"step-{step:08d}")
    assert command(*arguments, "scheduler.name=cosine").code == 0
    rates = [{row["step"]: row["lr"] for row in metric_rows(one) if "lr" in row} for one in (run, cosine)]
    assert {step: rates[0][step] for step in range(5, 17)} == {step: rates[1][step] for step in range(5, 17)}


@pytest.mark.parametrize(
    ("begun_with", "changed"),
    [
        (
            ["scheduler.name=linear"],
            ["scheduler.name=torch.optim.lr_scheduler.StepLR", "scheduler.args={step_size: 2}"],
        ),
        (
            ["scheduler.name=torch.optim.lr_scheduler.StepLR", "scheduler.args={step_size: 2}"],
            ["scheduler.name=torch.optim.lr_scheduler.StepLR", "scheduler.args={step_size: 3}"],
        ),
    ],
)
def test_a_schedule_with_a_memory_is_not_changed_on_the_way(command, arguments, begun_with, changed):
    assert command(*arguments, *begun_with).code == 0
    ended = command(*arguments, *changed, "train.epochs=2")
    assert ended.code == 2
    assert "a StepLR keeps a state of its own and cannot be changed" in ended.problems[0]


def test_another_optimizer_that_is_let_through_begins_without_state(command, arguments, tmp_path):
    assert command(*arguments, "optimizer.name=sgd").code == 0
    ended = command(*arguments, "optimizer.name=adamw", "train.epochs=2", "resume_anyway=[optimizer.name]")
    assert ended.code == 0, ended.err
    saved = torch.load(tmp_path / "run" / "checkpoints" / "latest" / "optimizer.bin", weights_only=True)
    assert saved["state"][0]["step"] == 8


def test_the_link_to_the_newest_checkpoint_may_be_asked_for(command, arguments, tmp_path):
    assert command(*arguments).code == 0
    latest = tmp_path / "run" / "checkpoints" / "latest"
    ended = command(*arguments, f"resume={latest}", "train.epochs=2")
    assert ended.code == 0, ended.err
    assert latest.resolve().name == "step-00000016"


def test_the_newest_checkpoint_may_be_asked_for_where_the_link_to_it_became_a_folder(command, arguments, tmp_path):
    assert command(*arguments).code == 0
    copy = tmp_path / "copy"
    shutil.copytree(tmp_path / "run", copy, symlinks=False)
    ended = command(*arguments, f"run_dir={copy}", f"resume={copy / 'checkpoints' / 'latest'}", "train.epochs=2")
    assert ended.code == 0, ended.err
    assert "resumed at step 8 of 16" in ended.out
    assert "warning: " not in ended.out.replace("warning: the run was planned", "")
    assert (copy / "checkpoints" / "latest").readlink() == Path("step-00000016")


def test_best_weights_of_another_run_are_not_exported(command, arguments, tmp_path, monkeypatch):
    """Their checkpoint was put in the place of this run's while it trained."""
    arguments = [*arguments, "optimizer.lr=0", "evaluate.every=2", "checkpoint.every=4", "checkpoint.best=-loss"]
    train_step = TrainingLoop.train_step

    def replace_best(self, step_batch):
        if step_batch.step + 1 == 7:
            manifest = tmp_path / "run" / "checkpoints" / "step-00000002" / "manifest.json"
            content = json.loads(manifest.read_text())
            del content["crc32"]
            manifest.write_text(seal(content | {"run": "another"}))
        return train_step(self, step_batch)

    monkeypatch.setattr(TrainingLoop, "train_step", replace_best)
    ended = command(*arguments)
    assert ended.code == 0, ended.err
    assert "the best weights, of step 2, are lost: " in ended.out
    assert "step-00000002: it is of run another, and not of this one; the last are taken" in ended.out


def test_best_weights_that_are_damaged_cost_a_warning_and_not_the_run(command, arguments, tmp_path):
    # Nothing is learnt, so the first one stays the best.
    arguments = [*arguments, "optimizer.lr=0", "evaluate.every=2", "checkpoint.every=4", "checkpoint.best=-loss"]
    assert command(*arguments, "checkpoint.keep_last=1").code == 0
    run = tmp_path / "run"
    best = (run / "checkpoints" / "best").resolve()
    assert best.name == "step-00000002"
    (best / "model.safetensors").unlink()
    ended = command(*arguments, "train.epochs=2")
    assert ended.code == 0, ended.err
    assert "model.safetensors is missing; it is set aside as step-00000002.damaged" in ended.out
    assert "which held the best weights, is gone: the search for the best begins anew" in ended.out
    assert json.loads((run / "model" / "trainer_loop.json").read_text())["step"] == 8


def test_averages_switched_off_on_the_way_are_not_exported_under_their_figures(command, arguments, tmp_path):
    arguments = [*arguments, "evaluate.every=4", "checkpoint.every=4", "checkpoint.best=-loss"]
    assert command(*arguments, "ema.decay=0.9").code == 0
    ended = command(*arguments, "train.epochs=2")
    assert ended.code == 0, ended.err
    assert "ema.decay was 0.9 and is None: planned anew from here on" in ended.out
    record = json.loads((tmp_path / "run" / "model" / "trainer_loop.json").read_text())
    assert record["step"] >= 8


def test_a_change_that_comes_too_late_is_refused(command, arguments, tmp_path):
    assert command(*arguments).code == 0
    ended = command(*arguments, "optimizer.lr=1")
    assert ended.code == 2
    assert "is complete, so this has no effect: optimizer.lr was 0.001 and is 1" in ended.problems[0]


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
    assert record["step"] == min((loss, step) for step, loss in losses.items() if step >= 8)[1]
    assert record["metrics"]["loss"] == losses[record["step"]]


def test_a_refused_command_leaves_the_run_directory_as_it_was(command, arguments, tmp_path):
    assert command(*arguments, "checkpoint.every=4").code == 0
    run = tmp_path / "run"
    shutil.rmtree(run / "model")
    (run / "status.json").unlink()
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file() and path.name != ".lock"}
    for change in ("seed=1", "resume=never", "train.epochs=0.5"):
        assert command(*arguments, change).code == 2
    assert json.loads((run / "status.json").read_text()) == {"ended": "error", "exit_code": 2, "step": None}
    (run / "status.json").unlink()
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file() and path.name != ".lock"} == before


def test_resume_never_refuses_to_write_over_a_run(command, arguments, tmp_path):
    assert command(*arguments).code == 0
    ended = command(*arguments, "resume=never")
    assert ended.code == 2
    assert "step-00000008" in ended.problems[0]


def test_a_diverged_run_names_step_rows_and_parameter_and_leaves_the_checkpoint(command, arguments, tmp_path, reviews):
    (tmp_path / "lab.py").write_text(
        "def explode(logits, labels, *, threshold):\n"
        "    loss = (logits ** 2).sum()\n"
        "    explode.rows += len(labels)\n"
        "    return loss / 0.0 if explode.rows > threshold else loss\n"
        "explode.rows = -12  # four made-up rows are tried, and given twice\n"
    )
    arguments = [*arguments, "batch.max_tokens=null", "evaluate.every=never"]
    ended = command(*arguments, "loss={name: lab.explode, args: {threshold: 40}}", "checkpoint.every=4", "log.every=8")
    assert ended.code == 3
    (problem,) = ended.problems
    assert problem.startswith("step 6: loss inf")
    assert problem.count("reviews.csv row ") == 8
    assert "first bad gradient: bert.embeddings" in problem
    kept = tmp_path / "run" / "checkpoints"
    assert sorted(path.name for path in kept.iterdir()) == ["latest", "step-00000004"]
    assert "Traceback" not in ended.err
    assert f" error: {problem}\n" in (tmp_path / "run" / "train.log").read_text()
    report = (tmp_path / "run" / "report.html").read_text()
    assert "step 6: loss inf" in report.partition("Ended by")[2].partition("</section>")[0]
