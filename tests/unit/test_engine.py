"""How an update runs: memory, gradients that are missing, and a schedule that stands still."""

import json
import weakref

import pytest
import tiny
import torch
from torch.optim.lr_scheduler import LambdaLR

from trainer_loop import UserError
from trainer_loop.optim.averages import Ema
from trainer_loop.parallel.processes import make_accelerator
from trainer_loop.record.state import TrainState
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


# ------------------------------------------------------------------------------------------------------- the schedule


class NotANumber(SequenceClassification):
    """Its loss is no number in some of its calls, counted from 0."""

    def __init__(self, *calls: int):
        super().__init__()
        self.calls, self.made = calls, 0

    def loss(self, model, batch):
        loss = super().loss(model, batch)
        self.made += 1
        return loss * float("nan") if self.made - 1 in self.calls else loss


def make_loop(directory, *, num_steps=6, task=None, **options):
    return tiny.make_loop(
        directory,
        rows=tiny.make_rows(64),
        task=task or tiny.make_task("sequence_classification"),
        model=tiny.make_bert(),
        num_steps=num_steps,
        schedule=lambda made: LambdaLR(made, lambda step: 1 / (1 + step)),
        **options,
    )


def rates_of(directory) -> list[float]:
    rows = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return [row["lr"] for row in rows if "lr" in row]


def test_the_learning_rate_stands_still_where_an_update_is_skipped(tmp_path):
    task = NotANumber(1, 3)
    state = make_loop(tmp_path, task=task, skip_nonfinite=True, checkpoint_every=6).fit()
    assert state.skipped_steps == 2
    assert rates_of(tmp_path) == pytest.approx([0.1 / moved for moved in (1, 2, 2, 3, 3, 4)])
    assert state.schedule_step == 4


def test_a_longer_run_goes_on_where_the_schedule_stood(tmp_path):
    """A schedule that is planned anew is put to its place: that of the updates that it followed."""
    make_loop(tmp_path, task=NotANumber(1, 3), skip_nonfinite=True, checkpoint_every=6).fit()
    tiny.forget_accelerator()
    loop = make_loop(tmp_path, num_steps=8, skip_nonfinite=True)
    assert loop.restore().schedule_step == 4
    assert loop.scheduler.last_epoch == 4
    assert loop.scheduler.get_last_lr() == pytest.approx([0.1 / 5] * len(loop.scheduler.get_last_lr()))


def test_a_checkpoint_of_an_older_version_has_a_schedule_that_followed_every_step(tmp_path):
    loop = make_loop(tmp_path, num_steps=2, checkpoint_every=2)
    loop.fit()
    checkpoint = loop.checkpointer.run_dir.checkpoint(2)
    state = json.loads((checkpoint / "state.json").read_text())
    assert state.pop("schedule_step") == 2
    loop.checkpointer.load = lambda resume: TrainState.from_dict(state)
    loop.restore()
    assert loop.engine.schedule_step == 2


class CountingEma(Ema):
    num_updates = 0

    def update(self):
        super().update()
        self.num_updates += 1


class Steep(SequenceClassification):
    def loss(self, model, batch):
        return super().loss(model, batch) * 2**6


@pytest.mark.parametrize("fused", [False, True])
def test_the_learning_rate_and_the_average_stand_still_where_gradients_overflow(fused, tmp_path):
    """As in fp16 on a GPU; here with a scale that float32 cannot hold."""
    accelerator = make_accelerator(precision="no")
    accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127)
    loop = make_loop(
        tmp_path,
        num_steps=12,
        task=Steep(),
        accelerator=accelerator,
        checkpoint_every=12,
        optimizer=lambda groups: torch.optim.SGD(groups, fused=fused),
        lr=1e-3,
        max_grad_norm=None,
        averaged_weights=lambda model: CountingEma(model, decay=0.5),
    )
    start = {name: weight.detach().clone() for name, weight in loop.bare_model.named_parameters()}
    overflowed = []
    update_weights = loop.engine.update_weights

    def watched():
        update_weights()
        overflowed.append(loop.engine._has_overflowed)
        moved = any(not torch.equal(weight, start[name]) for name, weight in loop.bare_model.named_parameters())
        assert moved == (False in overflowed)

    loop.engine.update_weights = watched
    state = loop.fit()
    assert overflowed[0], "the scale falls until the gradients fit"
    assert not all(overflowed)
    assert state.schedule_step == loop.engine.averaged_weights.num_updates == 12 - sum(overflowed)
    moved = [1 + overflowed[:step].count(False) for step in range(12)]
    assert rates_of(tmp_path) == pytest.approx([1e-3 / number for number in moved])
