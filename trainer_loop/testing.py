"""What a researcher tests a task, a loss and a config with.

def test_mine():
    assert_layout_invariant(Mine(), rows, model=make_tiny_model())

def test_mine_resumes(tmp_path):
    assert_resumes_exactly(load_config("mine.yaml", [f"run_dir={tmp_path / 'run'}"]))
"""

import contextlib
import copy
import dataclasses
import gc
import shutil
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from accelerate.state import AcceleratorState, GradientState
from torch import Tensor, nn

from trainer_loop.assembly import build
from trainer_loop.components import locate_source
from trainer_loop.config.fields import Config
from trainer_loop.metrics.logged import LoggedMetrics
from trainer_loop.record.logs import Console
from trainer_loop.tasks.losses import explain_wrong_loss
from trainer_loop.tasks.task import Task

_TOLERANCE = 1e-6


def assert_layout_invariant(task: Task, rows: Sequence[Mapping[str, Any]], *, model: nn.Module) -> None:
    """The update does not depend on which rows share a microbatch; raises AssertionError that says what does.

    task: bound to its tokenizer, where it has one. rows: encoded, as `collate` takes them, three or more, and of unlike
    lengths where they have any. model: small; it is copied to float64, and its dropout switched off.
    """
    assert len(rows) >= 3, f"{len(rows)} rows were given; three or more are needed, of unlike lengths"
    judge = _Judge(task, copy.deepcopy(model).double().eval())
    listed = [dict(row) for row in rows]
    alone = [judge.loss([row]) for row in listed]
    together = judge.loss(listed)
    counts = [judge.count([row]) for row in listed]
    total = sum(alone)
    if not _is_close(together, total):
        raise AssertionError(f"{judge.place('loss')} {_explain_loss(judge, listed, alone, together)}")
    assert judge.count(listed) == sum(counts), (
        f"{judge.place('count')} gives {judge.count(listed)} for all rows and {sum(counts)} for them one by one; it "
        "must count the targets that the loss sums over, without padding"
    )
    if task.extra_metrics:
        judge.compare_logged(listed)
    judge.compare_gradients(listed)
    judge.compare_predictions(listed)


def assert_resumes_exactly(config: Config, *, steps: int = 6) -> None:
    """A run that stops after half of so many steps and is built again ends with the same bits as one that does not.

    run_dir of the config must not exist; two run directories are made beside it and removed. Raises AssertionError that
    names the first weight that differs.
    """
    root = Path(config.run_dir)
    assert not root.exists(), f"run_dir {root} exists; give one that does not"
    half = steps // 2
    assert half >= 1, f"{steps} steps were given; two or more are needed"
    short = dataclasses.replace(
        config,
        train=dataclasses.replace(config.train, epochs=None, steps=steps, patience=None),
        checkpoint=dataclasses.replace(config.checkpoint, every=half, best=None, background=False),
        evaluate=dataclasses.replace(config.evaluate, every="never"),
        data=dataclasses.replace(config.data, test=None),
        resume="auto",
        dry_run=False,
    )
    whole, parted = root.with_name(f"{root.name}-whole"), root.with_name(f"{root.name}-parted")
    try:
        wanted = _train(dataclasses.replace(short, run_dir=str(whole)))
        _train(dataclasses.replace(short, run_dir=str(parted)), stop_after=half)
        found = _train(dataclasses.replace(short, run_dir=str(parted)))
    finally:
        shutil.rmtree(whole, ignore_errors=True)
        shutil.rmtree(parted, ignore_errors=True)
    for name, weight in wanted.items():
        assert torch.equal(found[name], weight), (
            f"{name} differs by {(found[name] - weight).abs().max():.2g} after {steps} steps where the run was stopped "
            f"at step {half}: something the loss depends on is neither a function of the step nor in the checkpoint"
        )


class _Stopped(Exception):
    """The run is left without a word, as by a kill."""


def _train(config: Config, *, stop_after: int | None = None) -> dict[str, Tensor]:
    """The weights after a run, or after so many of its steps; the process is as if nothing had run before."""
    gc.collect()
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    loop = build(config, console=Console(enabled=False))
    if stop_after is not None:
        save = loop.checkpointer.save

        def save_and_stop(state: Any) -> None:
            save(state)
            if state.step >= stop_after:
                raise _Stopped

        loop.checkpointer.save = save_and_stop  # type: ignore[method-assign]
    with contextlib.suppress(_Stopped):
        loop.fit()
    return {name: weight.detach().clone() for name, weight in loop.bare_model.named_parameters()}


class _Judge:
    """A task at work on one batch after the other."""

    def __init__(self, task: Task, model: nn.Module):
        self.task = task
        self.model = model

    def place(self, method: str) -> str:
        return locate_source(getattr(type(self.task), method))

    def loss(self, rows: list[dict[str, Any]]) -> float:
        loss = self.task.loss(self.model, self._collate(rows))
        wrong = explain_wrong_loss(loss)
        assert wrong is None, f"{self.place('loss')} {wrong}"
        return float(loss.detach())

    def count(self, rows: list[dict[str, Any]]) -> int:
        counted = self.task.count(self._collate(rows))
        assert isinstance(counted, int), f"{self.place('count')} returns a {type(counted).__name__}; it must be an int"
        return counted

    def compare_logged(self, rows: list[dict[str, Any]]) -> None:
        """What the loss logs is a sum and a count, as the loss itself."""
        alone, together = self._log([[row] for row in rows]), self._log([rows])
        for name, number in together.items():
            assert _is_close(number, alone[name]), (
                f"{self.place('loss')} logs {name} of {number:.6g} for all rows and {alone[name]:.6g} for them one by "
                "one; pass log_metric a sum, and as `count` how many numbers it is a sum of"
            )

    def _log(self, batches: list[list[dict[str, Any]]]) -> dict[str, float]:
        """The means of what the loss logs."""
        logged = LoggedMetrics(self.task.extra_metrics)
        with self.task.logging_to(logged.add):
            for rows in batches:
                self.task.loss(self.model, self._collate(rows))
        return logged.compute_means(logged.take_numbers())

    def compare_gradients(self, rows: list[dict[str, Any]]) -> None:
        """The same sum may have other gradients, where something was detached."""
        together = self._gradients([rows])
        for name, gradient in self._gradients([[row] for row in rows]).items():
            assert _is_close(gradient, together[name], scale=float(together[name].abs().max())), (
                f"{self.place('loss')} has another gradient of {name} for all rows than for them one by one; its value "
                "is the same: something that depends on the other rows is detached"
            )

    def compare_predictions(self, rows: list[dict[str, Any]]) -> None:
        with torch.no_grad():
            together = self.task.predict(self.model, self._collate(rows))
            for name, outputs in together.items():
                place = f"{self.place('predict')}: {name}"
                assert len(outputs) == len(rows), f"{place} has {len(outputs)} entries for {len(rows)} rows"
                for number, row in enumerate(rows):
                    alone = self.task.predict(self.model, self._collate([row]))[name][0]
                    assert _is_close(outputs[number], alone), (
                        f"{place} of row {number} is {_show(alone)} alone and {_show(outputs[number])} among the "
                        "others; it must not depend on padding or on other rows"
                    )

    def _gradients(self, batches: list[list[dict[str, Any]]]) -> dict[str, Tensor]:
        self.model.zero_grad()
        for rows in batches:
            self.task.loss(self.model, self._collate(rows)).backward()
        return {name: weight.grad.clone() for name, weight in self.model.named_parameters() if weight.grad is not None}

    def _collate(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """A batch in double precision, of copies: a collate may change what it is given."""
        batch = self.task.collate([dict(row) for row in rows])
        return {
            name: value.double() if isinstance(value, Tensor) and value.is_floating_point() else value
            for name, value in batch.items()
        }


def _explain_loss(judge: _Judge, rows: list[dict[str, Any]], alone: list[float], together: float) -> str:
    """Why the loss of all rows is not the sum of their own."""
    total, mean = sum(alone), sum(alone) / len(alone)
    told = f"gives {together:.6g} for all rows and {total:.6g} for them one by one"
    targets = sum(judge.count([row]) for row in rows)
    if _is_close(judge.loss(rows + rows), together):
        by_target = sum(loss * judge.count([row]) for loss, row in zip(alone, rows, strict=True)) / max(targets, 1)
        if _is_close(together, mean) or _is_close(together, by_target):
            return f"{told}: it is a mean; return the sum (reduction='sum'), for the loop alone divides"
        return f"{told}, and as much for all rows twice: it divides by something; return the sum"
    for one, other in pairwise(rows):
        alike = _cut_alike(one, other)
        if not _is_close(judge.loss(alike), sum(judge.loss([row]) for row in alike)):
            return f"{told}: what it gives for a row depends on the other rows of its microbatch"
    return f"{told}, and the right sum for rows of one length: it counts padding, or lets rows see it; mask it"


def _cut_alike(one: dict[str, Any], other: dict[str, Any]) -> list[dict[str, Any]]:
    """Two rows of one length, among which nothing is padded."""
    if "input_ids" not in one:
        return [one, other]
    length = min(len(one["input_ids"]), len(other["input_ids"]))
    return [
        {
            name: value[:length] if isinstance(value, list) and len(value) == len(row["input_ids"]) else value
            for name, value in row.items()
        }
        for row in (one, other)
    ]


def _is_close(one: Any, other: Any, *, scale: float = 0.0) -> bool:
    one, other = torch.as_tensor(one, dtype=torch.float64), torch.as_tensor(other, dtype=torch.float64)
    return bool(((one - other).abs() <= _TOLERANCE * torch.clamp(other.abs(), min=max(1.0, scale))).all())


def _show(value: Tensor) -> str:
    if value.numel() == 1:
        return f"{value.item():.4g}"
    return str([round(float(number), 4) for number in value.flatten()[:4]])
