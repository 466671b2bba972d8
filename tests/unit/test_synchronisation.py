"""Law 7: the host waits for the device only where something is logged.

On a CPU nothing has to wait, but the same calls are made as on a GPU: they are counted.
"""

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import tiny
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from trainer_loop import Task
from trainer_loop.ops import attention
from trainer_loop.optim.averages import Ema
from trainer_loop.tasks.sequence_classification import SequenceClassification

# What a GPU must have finished before the host goes on: a value is read, or the shape of a result depends on values.
_WAITING = {
    torch.ops.aten._local_scalar_dense,  # item, bool, float, int
    torch.ops.aten.nonzero,  # and what is indexed by a mask
    torch.ops.aten.masked_select,
    torch.ops.aten._unique2,
}
_COPYING = ("tolist", "cpu", "numpy")  # which on a CPU are no operations that a dispatcher sees


class Waits(TorchDispatchMode):
    """Counts calls that wait for the device."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func.overloadpacket in _WAITING
        return func(*args, **(kwargs or {}))


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> Iterator[Waits]:
    with Waits() as counted:
        for name in _COPYING:
            monkeypatch.setattr(Tensor, name, count_calls(getattr(Tensor, name), counted))
        yield counted


def count_calls(method: Callable, counted: Waits) -> Callable:
    def call(*args, **kwargs):
        counted.count += 1
        return method(*args, **kwargs)

    return call


class Mlp(torch.nn.Module):
    """A model that asks nothing of its inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(tiny.VOCABULARY, 8)
        self.head = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Dropout(0.1), torch.nn.Linear(8, 3))

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.head((self.embedding(input_ids) * attention_mask[..., None]).mean(dim=1))


class Plain(SequenceClassification):
    def _logits(self, model, batch):
        return model(batch["input_ids"], batch["attention_mask"])


def waits_of_steps(
    tmp_path: Path, waits: Waits, *, task: Task, model: torch.nn.Module | None = None, ema: bool = False
) -> list[int]:
    """Of each of 30 steps with all that follows it; every tenth is logged."""
    model = model or Mlp()
    loop = tiny.make_loop(
        tmp_path,
        rows=tiny.make_rows(50, labelled="label" in task.columns),
        task=task,
        model=model,
        num_steps=31,
        layout=tiny.Layout(per_device=3),
        log_every=10,
        averaged_weights=Ema(model, decay=0.9) if ema else None,
    )
    before: list[int] = []
    steps = loop.data.train.steps

    def watched(*, start: int, stop: int):
        for step_batch in steps(start=start, stop=stop):
            before.append(waits.count)
            yield step_batch

    loop.data.train.steps = watched
    loop.fit()
    return [after - count for count, after in itertools.pairwise(before)]


@pytest.mark.parametrize("ema", [False, True])
def test_only_logging_waits_for_the_device(ema: bool, tmp_path: Path, waits: Waits):
    counts = waits_of_steps(tmp_path, waits, task=Plain(), ema=ema)
    # Twice for all ten steps together: their losses and the norms of their gradients.
    assert counts == ([0] * 9 + [2]) * 3


@pytest.mark.parametrize("name", ["sequence_classification", "causal_lm"])
def test_models_of_transformers_do_not_wait_either(
    name: str, tmp_path: Path, waits: Waits, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(attention, "_HOST_DEVICES", ())  # as on a GPU
    model, task = tiny.make_model(name), tiny.make_task(name)
    count_targets = task.count

    def count_on_the_host(batch: dict[str, Tensor]) -> int:
        """The loader counts before it moves the batch: nothing is under way for it."""
        before, targets = waits.count, count_targets(batch)
        waits.count = before
        return targets

    monkeypatch.setattr(task, "count", count_on_the_host)
    attention.use_attention(model)
    counts = waits_of_steps(tmp_path, waits, task=task, model=model)
    assert counts[1:] == [0] * 8 + [2] + ([0] * 9 + [2]) * 2  # of the first, a language model's head is looked at


def test_transformers_own_masks_would_wait(tmp_path: Path, waits: Waits):
    counts = waits_of_steps(tmp_path, waits, task=SequenceClassification(), model=tiny.make_bert())
    assert min(counts) > 0


WAYS: dict[str, Callable[[Tensor], object]] = {
    "item": Tensor.item,
    "float": float,
    "bool": bool,
    "tolist": lambda tensor: tensor.tolist(),
    "cpu": lambda tensor: tensor.cpu(),
    "numpy": lambda tensor: tensor.numpy(),
    "mask": lambda tensor: tensor[tensor > 0],
}


@pytest.mark.parametrize("way", WAYS)
def test_a_task_that_waits_is_seen(way: str, tmp_path: Path, waits: Waits):
    class Waiting(Plain):
        def loss(self, model, batch):
            loss = super().loss(model, batch)
            WAYS[way](loss.detach())
            return loss

    counts = waits_of_steps(tmp_path, waits, task=Waiting())
    assert min(counts) >= 1
