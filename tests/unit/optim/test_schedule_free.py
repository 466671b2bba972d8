"""Weights that a schedule-free optimizer trains, and the averages that are judged and exported in their place."""

import json

import schedulefree
import tiny
import torch
from safetensors.torch import load_file

from trainer_loop.optim.averages import ScheduleFreeAverages


def make_loop(directory, *, num_steps=8, evaluate_every=2, **options):
    model = tiny.make_bert()
    made = []

    def make_optimizer(groups):
        made.append(schedulefree.AdamWScheduleFree(groups, lr=0.01))
        return made[0]

    loop = tiny.make_loop(
        directory,
        rows=tiny.make_rows(32),
        validation_rows=tiny.make_rows(16, seed=1),
        task=tiny.make_task("sequence_classification"),
        model=model,
        num_steps=num_steps,
        optimizer=make_optimizer,
        evaluate_every=evaluate_every,
        checkpoint_every=2,
        averaged_weights=lambda model: ScheduleFreeAverages(model, made[0]),
        **options,
    )
    return loop


def train_by_hand(num_steps):
    """The averages after so many steps of the package's own loop, over the rows that the loop takes."""
    rows = tiny.make_rows(32)
    model = tiny.make_bert()
    task = tiny.make_task("sequence_classification")
    task.bind(tiny.make_tokenizer())
    from trainer_loop.data.batch_plan import BatchPlan
    from trainer_loop.optim.groups import make_groups

    plan = BatchPlan([len(row["input_ids"]) for row in rows], batch_size=8, seed=7)
    groups = [group.for_optimizer() for group in make_groups(model, lr=0.1, weight_decay=0.01)]
    optimizer = schedulefree.AdamWScheduleFree(groups, lr=0.01)
    optimizer.train()
    for step in range(num_steps):
        (microbatches,) = plan.step(step).microbatches
        for microbatch in microbatches:
            batch = task.collate([rows[row] for row in microbatch])
            (task.loss(model, batch) / sum(len(part) for part in microbatches)).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    optimizer.eval()
    return {name: weight.detach().clone() for name, weight in model.named_parameters()}


def test_the_exported_weights_are_the_averages_of_the_packages_own_loop(tmp_path):
    exported = tiny.Exported()
    make_loop(tmp_path, output=exported).fit()
    for name, weight in train_by_hand(8).items():
        torch.testing.assert_close(exported.weights[name], weight, rtol=1e-5, atol=1e-6)


def test_looking_at_the_averages_changes_no_bit_of_the_training(tmp_path):
    often, never = make_loop(tmp_path / "often"), make_loop(tmp_path / "never", evaluate_every=None)
    often.fit()
    never.fit()
    assert often.recording.losses == never.recording.losses
    assert often.recording.grad_norms == never.recording.grad_norms


def test_a_checkpoint_holds_both_and_the_best_is_exported_from_its_averages(tmp_path):
    exported = tiny.Exported()
    loop = make_loop(tmp_path, best="loss", output=exported)  # the worst: so that it is not the last
    loop.fit()
    best_step = exported.state.best_step
    assert best_step < 8
    checkpoint = tmp_path / "checkpoints" / f"step-{best_step:08}"
    averaged_weights, weights = (
        load_file(checkpoint / "averages.safetensors"),
        load_file(checkpoint / "model.safetensors"),
    )
    assert any(not torch.equal(averaged_weights[name], weights[name]) for name in averaged_weights)
    for name, average in averaged_weights.items():
        assert torch.equal(exported.weights[name], average)
    for name, average in train_by_hand(best_step).items():
        torch.testing.assert_close(averaged_weights[name], average, rtol=1e-5, atol=1e-6)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    (judged,) = [row for row in rows if row["step"] == best_step and "validation/loss" in row]
    assert loop.evaluate(loop.data.validation[""])["loss"] == judged["validation/loss"]
