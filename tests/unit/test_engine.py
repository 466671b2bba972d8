"""How an update runs: what is left of a pass that ran out of memory."""

import weakref

import pytest
import tiny
import torch

from trainer_loop.errors import UserError
from trainer_loop.tasks.sequence_classification import SequenceClassification


class RunsOut(SequenceClassification):
    """Runs out of memory in its first microbatch, with something large in the frame that fails."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def loss(self, model, batch):
        if not self.seen:
            activations = super().loss(model, batch) * 1.0
            self.seen.append(weakref.ref(activations))
            raise torch.OutOfMemoryError("made up")
        assert self.seen[0]() is None, "the failed pass is still held when the step is done again"
        return super().loss(model, batch)


def test_nothing_holds_a_failed_pass_when_the_step_is_done_again(tmp_path):
    task = RunsOut()
    loop = tiny.make_loop(tmp_path, rows=tiny.make_rows(32), task=task, model=tiny.make_bert(), num_steps=1)
    loop.fit()
    assert len(task.seen) == 1
    assert loop.data.max_tokens is not None


def test_a_parameter_without_a_gradient_is_named_before_the_first_update(tmp_path):
    model = tiny.make_bert()
    model.never = torch.nn.Linear(2, 2)
    loop = tiny.make_loop(
        tmp_path,
        rows=tiny.make_rows(16),
        task=tiny.make_task("sequence_classification"),
        model=model,
        num_steps=1,
    )
    with pytest.raises(UserError, match=r"step 1: 2 of \d+ trainable parameters get no gradient: never\.weight, never"):
        loop.fit()
