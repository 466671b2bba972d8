"""What options of an update do to it, beside the same update by hand."""

import math

import numpy as np
import pytest
import tiny
import torch
from torch.optim.lr_scheduler import LambdaLR

from trainer_loop.models.embedding_noise import use_embedding_noise
from trainer_loop.tasks.task import pack_rows


def train(directory, *, num_steps=6, optimizer="adamw", lr=0.01, **options):
    model = tiny.make_bert()
    loop = tiny.make_loop(
        directory,
        rows=tiny.make_rows(64),
        task=tiny.make_task("sequence_classification"),
        model=model,
        num_steps=num_steps,
        optimizer=optimizer,
        lr=lr,
        checkpoint_every=1,
        **options,
    )
    loop.checkpointer._writer.keep_last = 100
    loop.fit()
    return loop


def weights_at(loop, step):
    from safetensors.torch import load_file

    return load_file(loop.checkpointer.run_dir.checkpoint(step) / "model.safetensors")


def test_a_weight_enters_the_sum_of_the_loss_and_the_count_of_targets(tmp_path):
    """On a plain model of one update: sum of w x loss over sum of w x targets, and its gradient."""
    rows, weights = tiny.make_rows(8), np.array([0.0, 0.5, 1.0, 2.0, 3.5, 1.0, 0.25, 4.0])
    task, model = tiny.make_task("sequence_classification"), tiny.make_bert().double()
    loop = tiny.make_loop(tmp_path, rows=rows, weights=weights, task=task, model=model, num_steps=1)
    reference = tiny.make_bert().double()
    losses = torch.stack([task.loss(reference, task.collate([row])) for row in rows])
    factors = torch.from_numpy(weights)
    loss = (losses * factors).sum() / factors.sum()
    loss.backward()
    loop.fit()
    norm = torch.cat([parameter.grad.flatten() for parameter in reference.parameters()]).norm()
    assert loop.recording.losses[0] == pytest.approx(loss.item(), abs=1e-12)
    assert loop.recording.grad_norms[0] == pytest.approx(norm.item(), abs=1e-12)


def test_what_is_frozen_until_a_step_is_as_if_it_had_no_gradient_before(tmp_path):
    def embeddings(model):
        return list(model.bert.embeddings.parameters())

    loop = train(tmp_path, frozen_until=lambda model: [(3, embeddings(model))])
    start = tiny.make_bert().state_dict()
    moved = [
        step
        for step in range(1, 7)
        if not torch.equal(
            weights_at(loop, step)["bert.embeddings.LayerNorm.weight"],
            weights_at(loop, step - 1)["bert.embeddings.LayerNorm.weight"]
            if step > 1
            else start["bert.embeddings.LayerNorm.weight"],
        )
    ]
    assert moved == [4, 5, 6]
    (index,) = [
        position
        for position, (name, _) in enumerate(loop.bare_model.named_parameters())
        if name == "bert.embeddings.LayerNorm.weight"
    ]
    parameter = loop.engine.parameters[index]
    assert loop.optimizer.state[parameter]["step"] == 3, "moments of what does not move would be of other weights"


def test_the_norm_of_the_gradient_is_that_of_what_moves(tmp_path):
    def all_but_the_classifier(model):
        return [weight for name, weight in model.named_parameters() if not name.startswith("classifier")]

    loop = train(tmp_path, frozen_until=lambda model: [(2, all_but_the_classifier(model))], num_steps=3)
    rows = tiny.make_rows(64)
    batch = loop.task.collate([rows[row] for row in loop.recording.rows[0]])
    model = tiny.make_bert()
    (loop.task.loss(model, batch) / len(batch["labels"])).backward()
    norms = [weight.grad.norm() for weight in model.classifier.parameters()]
    assert loop.recording.grad_norms[0] == pytest.approx(torch.stack(norms).norm().item(), rel=1e-5)


def test_gradients_are_scaled_by_their_norm_and_then_cut_to_the_value(tmp_path):
    loop = train(
        tmp_path,
        num_steps=1,
        optimizer="sgd",
        lr=1.0,
        weight_decay=0.0,
        max_grad_norm=1.0,
        max_grad_value=0.02,
        schedule=lambda made: LambdaLR(made, lambda step: 1.0),
    )
    plain = train(tmp_path / "plain", num_steps=1, optimizer="sgd", lr=1.0, weight_decay=0.0, max_grad_norm=1.0)
    start = tiny.make_bert().state_dict()
    cut = 0
    for name, weight in weights_at(loop, 1).items():
        wanted = (start[name] - weights_at(plain, 1)[name]).clamp(-0.02, 0.02)
        torch.testing.assert_close(start[name] - weight, wanted, rtol=0, atol=1e-6)
        cut += int((wanted.abs() == 0.02).sum())
    assert cut > 0


def noise_of(model, batch, *, seed=0):
    """What is added to the embeddings of a batch, `[B, T, D]`."""
    seen = []
    embedding = model.get_input_embeddings()
    handle = embedding.register_forward_hook(lambda _module, _arguments, embedded: seen.append(embedded.detach()))
    torch.manual_seed(seed)
    model(**batch)
    handle.remove()
    return seen[0] - embedding.weight[batch["input_ids"]]


def test_embedding_noise_is_as_large_as_the_rows_own_length_says():
    model = tiny.make_bert().train()
    use_embedding_noise(model, alpha=5.0)
    batch = {
        "input_ids": torch.randint(2, 50, (2, 40)),
        "attention_mask": torch.tensor([[1] * 40, [1] * 10 + [0] * 30]),
    }
    noise = noise_of(model, batch)
    long, short = (5.0 / math.sqrt(length * 16) for length in (40, 10))
    assert 0.95 * long < noise[0].abs().max() <= long + 1e-6
    assert 0.95 * short < noise[1, :10].abs().max() <= short + 1e-6
    assert noise[0].std().item() == pytest.approx(long / math.sqrt(3), rel=0.1)


def test_embedding_noise_of_packed_rows_is_that_of_each_row():
    model = tiny.make_gpt2().train()
    use_embedding_noise(model, alpha=5.0)
    rows = [{"input_ids": torch.randint(2, 50, (length,)).tolist()} for length in (40, 10)]
    packed = pack_rows(rows)
    batch = {name: packed[name] for name in ("input_ids", "position_ids", "row_ends")}
    model.register_forward_pre_hook(
        lambda _module, arguments, given: (arguments, {key: given[key] for key in ("input_ids", "position_ids")}),
        with_kwargs=True,
    )
    noise = noise_of(model, batch)[0]
    long, short = (5.0 / math.sqrt(length * 16) for length in (40, 10))
    assert 0.95 * long < noise[:40].abs().max() <= long + 1e-6
    assert 0.95 * short < noise[40:].abs().max() <= short + 1e-6


def test_there_is_no_noise_in_evaluation():
    model = tiny.make_bert().eval()
    use_embedding_noise(model, alpha=5.0)
    batch = {"input_ids": torch.randint(2, 50, (2, 8)), "attention_mask": torch.ones(2, 8, dtype=torch.long)}
    assert noise_of(model, batch).abs().max() == 0
