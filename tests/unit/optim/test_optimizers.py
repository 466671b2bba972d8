"""Every optimizer by its name: made, stepped, saved, loaded, and refused where it cannot be had."""

import io
import sys

import pytest
import tiny
import torch
from torch import nn

from trainer_loop import UserError
from trainer_loop.config.fields import OptimizerConfig
from trainer_loop.optim.averages import is_schedule_free
from trainer_loop.optim.groups import make_groups
from trainer_loop.optim.optimizers import OPTIMIZERS, OptimizerPlan


def make(model, name, *, lr=0.1, weight_decay=0.01, args=None):
    plan = OptimizerPlan(name, lr, args=args or {})
    apart = plan.takes_hidden_matrices_apart
    return plan.make(make_groups(model, lr=lr, weight_decay=weight_decay, hidden_matrices_apart=apart))


@pytest.mark.parametrize("name", [*OPTIMIZERS, "torch.optim.RAdam"])
def test_every_optimizer_takes_a_step(name):
    model = nn.Linear(4, 2)
    before = model.weight.detach().clone()
    optimizer = make(model, name)
    if is_schedule_free(optimizer):
        optimizer.train()
    model(torch.ones(3, 4)).sum().backward()
    optimizer.step()
    assert not torch.equal(model.weight, before)
    assert optimizer.param_groups[0]["lr"] == 0.1
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.01, 0.0]


def test_adamw_is_fused_unless_told_otherwise():
    def is_fused(**args):
        return make(nn.Linear(2, 2), "adamw", args=args).param_groups[0]["fused"]

    assert is_fused()
    assert not is_fused(foreach=True)
    assert not is_fused(fused=False)


def find_problems(name, *, weight_decay, args):
    section = OptimizerConfig(name=name, weight_decay=weight_decay, args=args)
    with pytest.raises(UserError) as refused:
        OptimizerPlan(**vars(section)).check()
    return refused.value.problems


@pytest.mark.parametrize(
    ("name", "args", "wanted"),
    [
        ("adamww", {}, "did you mean adamw"),
        ("adamw", {"beta": 0.9}, "did you mean betas"),
        ("sgd", {"lr": 0.1}, "args.lr"),
        ("adamw", {"params": []}, "args.params"),
        ("torch.optim.Nothing", {}, "Nothing"),
        ("torch.optim.Rprop", {}, "set optimizer.weight_decay=0"),
    ],
)
def test_what_is_wrong_is_told_before_there_are_parameters(name, args, wanted):
    (problem,) = find_problems(name, weight_decay=0.01, args=args)
    assert wanted in problem


@pytest.mark.parametrize(("name", "args"), [("adamw", {"betas": (2.0, 0.9)}), ("lion", {"betas": (2.0, 0.9)})])
def test_values_the_optimizer_refuses_are_a_problem_of_the_user(name, args):
    with pytest.raises(UserError, match=f"optimizer {name}"):
        make(nn.Linear(2, 2), name, args=args)


@pytest.mark.parametrize(
    ("name", "package"),
    [("lion", "lion-pytorch"), ("schedule_free_adamw", "schedulefree"), ("adamw_8bit", "bitsandbytes")],
)
def test_a_missing_package_is_named_with_its_remedy(name, package, monkeypatch):
    monkeypatch.setitem(sys.modules, OPTIMIZERS[name].module, None)
    (problem,) = find_problems(name, weight_decay=0.0, args={})
    assert f"name: {name} needs the package {package}: pip install {package}" in problem


def test_muon_moves_hidden_matrices_as_muon_does_and_the_rest_as_adamw():
    def train(model, optimizers, steps=3):
        for step in range(steps):
            torch.manual_seed(step)
            model(torch.randint(2, 50, (4, 7)), labels=torch.tensor([0, 1, 2, 1])).loss.backward()
            for optimizer in optimizers:
                optimizer.step()
            model.zero_grad()
        return {name: weight.detach().clone() for name, weight in model.named_parameters()}

    ours = tiny.make_bert()
    mine = train(ours, [make(ours, "muon", lr=0.01, weight_decay=0.1)])
    theirs = tiny.make_bert()
    named = dict(theirs.named_parameters())
    hidden = {name for name, weight in named.items() if ".layer." in name and weight.ndim == 2}
    assert hidden
    assert "classifier.weight" not in hidden
    others = [name for name in named if name not in hidden]
    expected = train(
        theirs,
        [
            torch.optim.Muon(
                [named[name] for name in hidden], lr=0.01, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"
            ),
            torch.optim.AdamW(
                [
                    {"params": [named[name] for name in others if named[name].ndim >= 2], "weight_decay": 0.1},
                    {"params": [named[name] for name in others if named[name].ndim < 2], "weight_decay": 0.0},
                ],
                lr=0.01,
                fused=True,
            ),
        ],
    )
    for name, weight in expected.items():
        torch.testing.assert_close(mine[name], weight, rtol=0, atol=0)


def test_a_rate_set_on_muon_reaches_both_of_its_parts_also_after_loading():
    model = tiny.make_bert()
    optimizer = make(model, "muon", lr=0.01)
    optimizer.load_state_dict(optimizer.state_dict())
    for group in optimizer.param_groups:
        group["lr"] = 0.0
        group["weight_decay"] = 0.0
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    model(torch.randint(2, 50, (4, 7)), labels=torch.tensor([0, 1, 2, 1])).loss.backward()
    optimizer.step()
    assert all(torch.equal(weight, before[name]) for name, weight in model.named_parameters())


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_what_is_saved_and_loaded_goes_on_bit_for_bit(name):
    def step(model, optimizer, number):
        torch.manual_seed(number)
        model(torch.randint(2, 50, (4, 7)), labels=torch.tensor([0, 1, 2, 1])).loss.backward()
        optimizer.step()
        model.zero_grad()

    def begin():
        model = tiny.make_bert()
        optimizer = make(model, name, lr=0.01)
        if is_schedule_free(optimizer):
            optimizer.train()
        return model, optimizer

    model, optimizer = begin()
    other, restored = begin()
    for number in range(3):
        step(model, optimizer, number)
    other.load_state_dict(model.state_dict())
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    restored.load_state_dict(torch.load(file, weights_only=True))
    for number in range(3, 6):
        step(model, optimizer, number)
        step(other, restored, number)
    for one, two in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(one, two)
