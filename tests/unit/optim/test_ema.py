"""The average of the weights: its arithmetic, its place in the model, what of it is saved."""

import tiny
import torch
from torch import nn

from trainer_loop.optim.averages import Ema


def test_after_each_update_it_moves_by_one_minus_decay_towards_the_weights():
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, 1.0)
    ema = Ema(model, decay=0.9)
    for weight, average in ((2.0, 1.1), (3.0, 1.29)):
        nn.init.constant_(model.weight, weight)
        ema.update()
        torch.testing.assert_close(ema.state_dict()["weight"], torch.tensor([[average]]))


def test_in_place_the_model_has_the_averages_and_its_own_weights_afterwards():
    model = nn.Linear(2, 2)
    ema = Ema(model, decay=0.5)
    with torch.no_grad():
        model.weight.add_(1.0)
    ema.update()
    own, average = model.weight.detach().clone(), ema.state_dict()["weight"].clone()
    with ema.in_place():
        assert torch.equal(model.weight, average)
    assert torch.equal(model.weight, own)
    assert torch.equal(ema.state_dict()["weight"], average)


def test_frozen_parameters_have_no_average():
    model = nn.Linear(2, 2)
    model.bias.requires_grad_(False)
    assert list(Ema(model, decay=0.5).state_dict()) == ["weight"]


def test_evaluation_and_export_use_the_averages_and_training_does_not(tmp_path):
    def run(decay):
        exported = tiny.Exported()
        model = tiny.make_bert()
        loop = tiny.make_loop(
            tmp_path / f"run-{decay}",
            rows=tiny.make_rows(32),
            validation_rows=tiny.make_rows(16, seed=1),
            task=tiny.make_task("sequence_classification"),
            model=model,
            num_steps=6,
            evaluate_every=3,
            checkpoint_every=3,
            averaged_weights=None if decay is None else Ema(model, decay=decay),
            output=exported,
        )
        loop.fit()
        return loop, exported

    loop, plain = run(None)
    losses = loop.recording.losses
    loop, averaged = run(0.5)
    assert loop.recording.losses == losses
    _, still = run(1 - 1e-9)
    assert averaged.state.metrics["loss"] != plain.state.metrics["loss"]
    start = tiny.make_bert().state_dict()
    assert all(torch.allclose(value, start[name], atol=1e-6) for name, value in still.weights.items())
    for name, value in loop.engine.averaged_weights.state_dict().items():
        assert torch.equal(averaged.weights[name], value)
        assert not torch.equal(value, plain.weights[name])


def test_the_best_weights_are_the_averages_of_their_step(tmp_path):
    model = tiny.make_bert()
    exported = tiny.Exported()
    loop = tiny.make_loop(
        tmp_path / "run",
        rows=tiny.make_rows(32),
        validation_rows=tiny.make_rows(16, seed=1),
        task=tiny.make_task("sequence_classification"),
        model=model,
        num_steps=8,
        evaluate_every=2,
        checkpoint_every=4,
        best="loss",  # the worst: so that it is not the last
        averaged_weights=Ema(model, decay=0.5),
        output=exported,
    )
    loop.fit()
    assert exported.state.best_step < 8
    assert loop.evaluate(loop.data.validation[""])["loss"] == exported.state.metrics["loss"]


def test_weights_of_16_bits_have_an_average_that_moves():
    """In their own type a thousandth of a step would be rounded away."""
    model = nn.Linear(1, 1, bias=False).to(torch.bfloat16)
    nn.init.constant_(model.weight, 1.0)
    ema = Ema(model, decay=0.999)
    nn.init.constant_(model.weight, 2.0)
    for _ in range(500):
        ema.update()
    torch.testing.assert_close(ema.state_dict()["weight"], torch.tensor([[2 - 0.999**500]]))
    with ema.in_place():
        assert model.weight.dtype == torch.bfloat16
        assert model.weight.item() == float(torch.tensor(2 - 0.999**500).to(torch.bfloat16))
    assert model.weight.item() == 2.0
