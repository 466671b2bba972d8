"""What a task or a loss logs by name: each row once, in training and in evaluation, whatever fails on the way."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import torch.nn.functional as F
from torch import Tensor

from trainer_loop import Task, UserError
from trainer_loop.metrics.load import load_metrics
from trainer_loop.metrics.logged import LoggedMetrics, check_names
from trainer_loop.tasks.plan import LossPlan, make_up_outputs, plan_loss, plan_task
from trainer_loop.testing import assert_layout_invariant

ROWS, VALIDATION = tiny.make_rows(24), tiny.make_rows(13, seed=3)


def run(folder: Path, task: Task, *, causal: bool = False, **options: Any) -> tuple[tiny.RecordingLoop, list[dict]]:
    """A run of three steps, and the rows of metrics.jsonl."""
    name = "causal_lm" if causal else "sequence_classification"
    rows, validation = (
        [{"input_ids": row["input_ids"]} if causal else row for row in rows] for rows in (ROWS, VALIDATION)
    )
    arguments = {"num_steps": 3, "evaluate_every": 3, "evaluate_at_start": True} | options
    loop = tiny.make_loop(
        folder,
        rows=rows,
        task=task,
        model=tiny.make_model(name),
        validation_rows=validation,
        metrics=load_metrics(["perplexity" if causal else "accuracy"], num_labels=3),
        **arguments,
    )
    loop.fit()
    return loop, list(map(json.loads, (folder / "metrics.jsonl").read_text().splitlines()))


def read(rows: list[dict], *names: str) -> list[float]:
    return [row[name] for row in rows for name in names if name in row]


LOGGED = (*tiny.LoggingTask.extra_metrics, *(f"validation/{name}" for name in tiny.LoggingTask.extra_metrics))


class Greedy(tiny.LoggingTask):
    """Logs a microbatch and then runs out of memory, with more than `most` rows."""

    most = 2

    def _logits(self, model, batch):
        logits = super()._logits(model, batch)
        if len(logits) > self.most:
            raise torch.OutOfMemoryError("made up")
        return logits


def test_microbatches_change_nothing_nor_does_a_pass_that_runs_out_of_memory(tmp_path: Path):
    loop, whole = run(tmp_path / "whole", tiny.LoggingTask())
    layouts = {"layout": tiny.Layout(per_device=3), "evaluation_layout": tiny.Layout(per_device=1)}
    _, parts = run(tmp_path / "parts", tiny.LoggingTask(), **layouts)
    _, again = run(tmp_path / "again", Greedy())
    wanted = read(whole, *LOGGED)
    assert len(wanted) == 2 * 3 + 2 * 2  # three training rows, two evaluations
    assert read(parts, *LOGGED) == pytest.approx(wanted, rel=1e-6)
    assert read(again, *LOGGED) == pytest.approx(wanted, rel=1e-6)
    with torch.no_grad():
        batch = loop.task.collate(VALIDATION)
        logits = loop.bare_model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    squares = logits.square().mean(dim=-1)
    even = squares[batch["input_ids"][:, 0] % 2 == 0]
    assert read(whole[-2:], *LOGGED[2:]) == pytest.approx([squares.mean().item(), even.mean().item()], rel=1e-5)


def test_an_interval_has_the_mean_over_all_its_rows(tmp_path: Path):
    _, each = run(tmp_path / "each", tiny.LoggingTask())
    _, one = run(tmp_path / "one", tiny.LoggingTask(), log_every=3)
    assert read(one, "square") == pytest.approx([sum(read(each, "square")) / 3], rel=1e-6)  # batches of like size


def test_dummies_and_predictions_log_nothing(tmp_path: Path):
    loop, _ = run(tmp_path, tiny.LoggingTask())
    (step_batch,) = loop.data.train.steps(start=0, stop=1)
    microbatch = step_batch.microbatches[0]
    loop._compute_loss(replace(microbatch, is_dummy=True, weight=0.0))
    loop.evaluator.predict(loop.data.validation[""])
    loop.evaluate(loop.data.validation[""])
    assert loop.record.take_step_metrics() == {}
    loop._compute_loss(microbatch)
    assert loop.record.take_step_metrics().keys() == set(LOGGED[:2])
    loop.task.log_metric("nobody listens", torch.zeros(()))


def penalised(logits: Tensor, targets: Tensor, *, log_metric: Any, weight: float = 0.5) -> Tensor:
    is_target = targets != -100
    penalty = (logits.logsumexp(dim=-1).square() * is_target).sum()
    log_metric("penalty", penalty, count=int(is_target.sum()))
    return F.cross_entropy(logits, targets, ignore_index=-100, reduction="sum") + weight * penalty


penalised.extra_metrics = ("penalty",)  # type: ignore[attr-defined]


def plan_penalised(monkeypatch: pytest.MonkeyPatch, **args: float) -> LossPlan:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    plan = plan_loss(name="test_logged_metrics.penalised", args=args)
    assert plan is not None
    return plan


@pytest.mark.parametrize("name", ["sequence_classification", "causal_lm"])
def test_a_loss_of_the_config_logs_its_parts(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Of a causal model too, whose loss is tried on made-up tokens first."""
    loss = plan_penalised(monkeypatch, weight=0.0)
    loss.check_sum(*make_up_outputs(None, 3))
    is_causal = name == "causal_lm"
    task = plan_task(name=name, args={}, loss=loss)
    assert task.extra_metrics == ("penalty",)
    options = {"num_steps": 1, "evaluate_every": 1, "batch_size": len(ROWS), "lr": 0.0}
    _, rows = run(tmp_path / "1", task, causal=is_causal, **options)
    parts = {"layout": tiny.Layout(per_device=1), "evaluation_layout": tiny.Layout(per_device=2)}
    _, cut = run(tmp_path / "2", plan_task(name=name, args={}, loss=loss), causal=is_causal, **options, **parts)
    found = read(rows, "penalty", "validation/penalty")
    assert len(found) == 3 and found[0] == found[2]  # nothing was learned
    assert read(cut, "penalty", "validation/penalty") == pytest.approx(found, rel=1e-6)
    # Not to be seen from the loss: these are the logarithms of some 50 or 3 exponentials of small numbers.
    assert found == pytest.approx([torch.tensor(50.0 if is_causal else 3.0).log().square().item()] * 3, rel=0.05)


def silent(logits: Tensor, targets: Tensor, *, log_metric: Any) -> Tensor:
    return logits.sum()


def misnamed(logits: Tensor, targets: Tensor, *, log_metric: Any) -> Tensor:
    log_metric("penalties", logits.detach(), count=len(logits))
    return logits.sum()


misnamed.extra_metrics = ("penalty",)  # type: ignore[attr-defined]


def test_a_loss_declares_what_it_logs(monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(UserError, match=r"args\.log_metric: .* is given log_metric by the trainer itself"):
        plan_penalised(monkeypatch, log_metric=1)
    with pytest.raises(UserError, match=r"a parameter log_metric, and an attribute extra_metrics with the names: "):
        plan_loss(name="test_logged_metrics.silent", args={})
    plan = plan_loss(name="test_logged_metrics.misnamed", args={})
    assert plan is not None
    with pytest.raises(UserError) as refused:
        plan.check_sum(*make_up_outputs(None, 3))
    key = "name: test_logged_metrics.misnamed"
    assert refused.value.problems == [
        f"{key} logs penalties; its extra_metrics are penalty",
        f"{key} logs penalties, which is a tensor of shape [8, 3]; log a tensor of one number, the sum over `count`",
    ]


def test_names_and_values_are_checked():
    logged = LoggedMetrics(("penalty",))
    with pytest.raises(UserError, match=r"log_metric: other is none of extra_metrics: penalty; add it there"):
        logged.add("other", torch.zeros(()))
    with pytest.raises(UserError, match=r"log_metric: penalty is a float; log a tensor of one number"):
        logged.add("penalty", 0.5)  # type: ignore[arg-type]
    assert check_names("penalty", owner="here") == [
        "here: extra_metrics is 'penalty'; it is a tuple of names, such as ('penalty',)"
    ]
    problems = check_names(("loss", "rows", "accuracy", "test/mine", "mine"), owner="here", reported=["accuracy"])
    assert [line.split()[2] for line in problems] == ["loss", "rows", "accuracy", "test/mine"]


class Mean(tiny.LoggingTask):
    """Logs a mean."""

    extra_metrics = ("square",)

    def _logits(self, model, batch):
        logits = super(tiny.LoggingTask, self)._logits(model, batch)
        self.log_metric("square", logits.square().mean(), count=len(logits))
        return logits


def test_a_mean_is_found():
    right, wrong = tiny.LoggingTask(), Mean()
    for task in (right, wrong):
        task.bind(tiny.make_tokenizer())
    assert_layout_invariant(right, ROWS[:4], model=tiny.make_bert())
    with pytest.raises(AssertionError, match=r"loss .*logs square=.* pass a sum to log_metric, and as `count`"):
        assert_layout_invariant(wrong, ROWS[:4], model=tiny.make_bert())
