import pytest
import tiny
import torch
from torch import nn

from trainer_loop.errors import UserError
from trainer_loop.optim.groups import group_by_decay
from trainer_loop.optim.optimizers import check_optimizer, make_optimizer

CPU = torch.device("cpu")


def test_biases_and_norms_do_not_decay_and_each_parameter_stands_in_one_group():
    model = tiny.make_bert()
    decayed, spared = group_by_decay(model, 0.1)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    spared_names = {names[id(parameter)] for parameter in spared["params"]}
    assert spared_names == {name for name in names.values() if name.endswith("bias") or "LayerNorm" in name}
    assert (decayed["weight_decay"], spared["weight_decay"]) == (0.1, 0.0)
    together = [id(parameter) for parameter in [*decayed["params"], *spared["params"]]]
    assert sorted(together) == sorted(names)


def test_frozen_parameters_are_left_out():
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    model[0].requires_grad_(False)
    assert [len(group["params"]) for group in group_by_decay(model, 0.1)] == [1, 1]


@pytest.mark.parametrize("name", ["adamw", "sgd", "adafactor", "torch.optim.RAdam"])
def test_every_optimizer_takes_a_step(name):
    model = nn.Linear(4, 2)
    before = model.weight.detach().clone()
    optimizer = make_optimizer(model, name=name, lr=0.1, weight_decay=0.01, args={}, device=CPU)
    model(torch.ones(3, 4)).sum().backward()
    optimizer.step()
    assert not torch.equal(model.weight, before)
    assert optimizer.param_groups[0]["lr"] == 0.1
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.01, 0.0]


def test_adamw_is_fused_unless_told_otherwise():
    def is_fused(**args):
        made = make_optimizer(nn.Linear(2, 2), name="adamw", lr=1.0, weight_decay=0.0, args=args, device=CPU)
        return made.param_groups[0]["fused"]

    assert is_fused()
    assert not is_fused(foreach=True)
    assert not is_fused(fused=False)


@pytest.mark.parametrize(
    ("name", "args", "wanted"),
    [
        ("adamv", {}, "did you mean adamw"),
        ("adamw", {"beta": 0.9}, "did you mean betas"),
        ("sgd", {"lr": 0.1}, "optimizer.args.lr"),
        ("adamw", {"params": []}, "optimizer.args.params"),
        ("torch.optim.Nothing", {}, "Nothing"),
        ("torch.optim.Rprop", {}, "set optimizer.weight_decay=0"),
    ],
)
def test_what_is_wrong_is_told_before_there_are_parameters(name, args, wanted):
    (problem,) = check_optimizer(name, weight_decay=0.01, args=args)
    assert wanted in problem


def test_values_the_optimizer_refuses_are_a_problem_of_the_user():
    with pytest.raises(UserError, match="optimizer adamw"):
        make_optimizer(nn.Linear(2, 2), name="adamw", lr=1.0, weight_decay=0.0, args={"betas": (2.0, 0.9)}, device=CPU)
