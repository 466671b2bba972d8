"""Assertions for tests of custom tasks, losses and configs.

```python
def test_mine():
    assert_layout_invariant(Mine(), rows, model=make_tiny_model())

def test_mine_resumes(tmp_path):
    assert_resumes_exactly(load_config("mine.yaml", [f"run_dir={tmp_path / 'run'}"]))
```
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
    """Check that an update does not depend on which rows share a microbatch.

    Loss, count of targets, logged numbers, gradients and predictions of all rows are compared with those of each row
    alone.

    Args:
        task: The task. If it has a tokenizer, call its `bind` first.
        rows: Three or more encoded rows, as `collate` takes them. If they are sequences, their lengths must differ.
        model: A small model. The check uses a copy in float64 without dropout.

    Raises:
        AssertionError: The update depends on the layout. The message names the method and the likely mistake.
    """
    assert len(rows) >= 3, f"{len(rows)} rows were given; give three or more, of different lengths"
    checker = _Checker(task, copy.deepcopy(model).double().eval())
    copies = [dict(row) for row in rows]
    alone = [checker.loss([row]) for row in copies]
    together = checker.loss(copies)
    counts = [checker.count([row]) for row in copies]
    total = sum(alone)
    if not _is_close(together, total):
        raise AssertionError(f"{checker.place('loss')} {_explain_loss(checker, copies, alone, together)}")
    assert checker.count(copies) == sum(counts), (
        f"{checker.place('count')} returns {checker.count(copies)} for all rows together, and {sum(counts)} is the sum "
        "over the rows one by one; it must count the targets that the loss sums over, without padding"
    )
    if task.extra_metrics:
        checker.compare_logged(copies)
    checker.compare_gradients(copies)
    checker.compare_predictions(copies)


def assert_resumes_exactly(config: Config, *, steps: int = 6) -> None:
    """Check that a run that is stopped and resumed ends with the same weights, bit for bit, as an uninterrupted run.

    Args:
        config: The config of the run. Its `run_dir` must not exist; the check creates two run directories beside it and
            removes them.
        steps: The number of steps of both runs; one of them is stopped after half of these.

    Raises:
        AssertionError: A weight differs. The message names the first one.
    """
    root = Path(config.run_dir)
    assert not root.exists(), f"run_dir {root} exists; name a directory that does not exist"
    half = steps // 2
    assert half >= 1, f"steps is {steps}; it must be two or more"
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
        expected = _train(dataclasses.replace(short, run_dir=str(whole)))
        _train(dataclasses.replace(short, run_dir=str(parted)), stop_after=half)
        resumed = _train(dataclasses.replace(short, run_dir=str(parted)))
    finally:
        shutil.rmtree(whole, ignore_errors=True)
        shutil.rmtree(parted, ignore_errors=True)
    for name, weight in expected.items():
        assert torch.equal(resumed[name], weight), (
            f"{name} differs by {(resumed[name] - weight).abs().max():.2g} after {steps} steps if the run is stopped "
            f"at step {half}: the loss depends on something that is neither a function of the step nor in the "
            "checkpoint"
        )


class _Stopped(Exception):
    """Ends a run without any cleanup, as SIGKILL does."""


def _train(config: Config, *, stop_after: int | None = None) -> dict[str, Tensor]:
    """Run the config in a fresh state of accelerate, and return the final weights.

    Args:
        stop_after: End the run after the checkpoint of this step; None: train to the end.
    """
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


class _Checker:
    """Calls the methods of a task on batches of rows, and checks what they return."""

    def __init__(self, task: Task, model: nn.Module):
        self.task = task
        self.model = model

    def place(self, method: str) -> str:
        """Return name, file and line of a method of the task."""
        return locate_source(getattr(type(self.task), method))

    def loss(self, rows: list[dict[str, Any]]) -> float:
        loss = self.task.loss(self.model, self._collate(rows))
        wrong = explain_wrong_loss(loss)
        assert wrong is None, f"{self.place('loss')} {wrong}"
        return float(loss.detach())

    def count(self, rows: list[dict[str, Any]]) -> int:
        count = self.task.count(self._collate(rows))
        assert isinstance(count, int), f"{self.place('count')} returns a {type(count).__name__}; it must be an int"
        return count

    def compare_logged(self, rows: list[dict[str, Any]]) -> None:
        """Check that the logged means are the same for all rows together and for the rows one by one."""
        alone, together = self._log([[row] for row in rows]), self._log([rows])
        for name, number in together.items():
            assert _is_close(number, alone[name]), (
                f"{self.place('loss')} logs {name}={number:.6g} for all rows together and {alone[name]:.6g} for the "
                "rows one by one; pass a sum to log_metric, and as `count` the number of its summands"
            )

    def _log(self, batches: list[list[dict[str, Any]]]) -> dict[str, float]:
        """Return the mean of each metric that the loss logs."""
        logged = LoggedMetrics(self.task.extra_metrics)
        with self.task.logging_to(logged.add):
            for rows in batches:
                self.task.loss(self.model, self._collate(rows))
        return logged.compute_means(logged.take_numbers())

    def compare_gradients(self, rows: list[dict[str, Any]]) -> None:
        """Check the gradients. They can differ although the loss is right, if the loss detaches a tensor."""
        together = self._gradients([rows])
        for name, gradient in self._gradients([[row] for row in rows]).items():
            assert _is_close(gradient, together[name], scale=float(together[name].abs().max())), (
                f"{self.place('loss')} returns the same value for all rows together and for the rows one by one, but "
                f"the gradient of {name} differs: the loss detaches a tensor that depends on other rows"
            )

    def compare_predictions(self, rows: list[dict[str, Any]]) -> None:
        """Check that the prediction of each row is the same alone and among the others."""
        with torch.no_grad():
            together = self.task.predict(self.model, self._collate(rows))
            for name, outputs in together.items():
                place = f"{self.place('predict')}: {name}"
                assert len(outputs) == len(rows), f"{place} has {len(outputs)} entries for {len(rows)} rows"
                for number, row in enumerate(rows):
                    alone = self.task.predict(self.model, self._collate([row]))[name][0]
                    assert _is_close(outputs[number], alone), (
                        f"{place} of row {number} is {_show(alone)} if the row is alone and {_show(outputs[number])} "
                        "among the others; it must not depend on padding or on other rows"
                    )

    def _gradients(self, batches: list[list[dict[str, Any]]]) -> dict[str, Tensor]:
        self.model.zero_grad()
        for rows in batches:
            self.task.loss(self.model, self._collate(rows)).backward()
        return {name: weight.grad.clone() for name, weight in self.model.named_parameters() if weight.grad is not None}

    def _collate(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """Make a float64 batch of copies of the rows, because `collate` may change its argument."""
        batch = self.task.collate([dict(row) for row in rows])
        return {
            name: value.double() if isinstance(value, Tensor) and value.is_floating_point() else value
            for name, value in batch.items()
        }


def _explain_loss(checker: _Checker, rows: list[dict[str, Any]], alone: list[float], together: float) -> str:
    """Explain why the loss of all rows together is not the sum of the losses of the rows."""
    total, mean = sum(alone), sum(alone) / len(alone)
    sums = f"returns {together:.6g} for all rows together, and the sum over the rows one by one is {total:.6g}"
    targets = sum(checker.count([row]) for row in rows)
    if _is_close(checker.loss(rows + rows), together):
        by_target = sum(loss * checker.count([row]) for loss, row in zip(alone, rows, strict=True)) / max(targets, 1)
        if _is_close(together, mean) or _is_close(together, by_target):
            return f"{sums}: it is a mean; return the sum (reduction='sum'), because the loop divides"
        return f"{sums}. It returns the same value if each row is given twice: it divides by something; return the sum"
    for one, other in pairwise(rows):
        alike = _cut_alike(one, other)
        if not _is_close(checker.loss(alike), sum(checker.loss([row]) for row in alike)):
            return f"{sums}: the loss of a row depends on the other rows of its microbatch"
    return (
        f"{sums}. For rows of equal length it returns the right sum: it includes padding, or lets rows see it; mask it"
    )


def _cut_alike(one: dict[str, Any], other: dict[str, Any]) -> list[dict[str, Any]]:
    """Return both rows cut to equal length, so that neither is padded."""
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
