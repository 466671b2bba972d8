"""What a resumed run that was changed takes from its config, and what it keeps of how far it had come."""

import pytest
import schedulefree
import torch

from trainer_loop.optim.replan import read_groups, replan
from trainer_loop.optim.schedules import SchedulerPlan


def make(lr: float, head_lr: float, *, schedule: str):
    parameters = [torch.nn.Parameter(torch.ones(2)) for _ in range(2)]
    optimizer = torch.optim.SGD([{"params": [parameters[0]]}, {"params": [parameters[1]], "lr": head_lr}], lr=lr)
    args = {"cooldown": 0} if schedule == "reduce_lr_on_plateau" else {}
    return optimizer, SchedulerPlan(schedule, args=args).make(optimizer, num_steps=10)


@pytest.mark.parametrize("schedule", ["constant", "reduce_lr_on_plateau"])
def test_a_group_with_a_rate_of_its_own_keeps_it_when_that_of_the_others_is_changed(schedule: str):
    before, _ = make(1e-4, 1e-3, schedule=schedule)
    now, scheduler = make(2e-4, 1e-3, schedule=schedule)
    planned = read_groups(now)
    now.load_state_dict(before.state_dict())
    replan(now, scheduler, groups=planned, step=5)
    assert [group["lr"] for group in now.param_groups] == pytest.approx([2e-4, 1e-3])


def test_a_rate_that_evaluations_lowered_stays_lowered():
    before, _ = make(1e-4, 1e-3, schedule="reduce_lr_on_plateau")
    before.param_groups[1]["lr"] = 1e-5
    now, scheduler = make(1e-4, 2e-3, schedule="reduce_lr_on_plateau")
    planned = read_groups(now)
    now.load_state_dict(before.state_dict())
    replan(now, scheduler, groups=planned, step=5)
    assert [group["lr"] for group in now.param_groups] == pytest.approx([1e-4, 2e-5])


def test_what_an_optimizer_counts_in_its_groups_is_kept():
    def begin():
        parameter = torch.nn.Parameter(torch.ones(2))
        optimizer = schedulefree.AdamWScheduleFree([parameter], lr=0.1, weight_decay=0.0)
        return parameter, optimizer, SchedulerPlan("constant").make(optimizer, num_steps=10)

    parameter, before, _ = begin()
    before.train()
    for _ in range(7):
        parameter.grad = torch.ones(2)
        before.step()
    _, now, scheduler = begin()
    planned = [dict(group) | {"weight_decay": 0.5} for group in read_groups(now)]
    now.load_state_dict(before.state_dict())
    replan(now, scheduler, groups=planned, step=7)
    (group,) = now.param_groups
    assert group["k"] == 7
    assert group["weight_sum"] == before.param_groups[0]["weight_sum"] > 0
    assert group["weight_decay"] == 0.5


def test_arguments_that_were_changed_hold():
    now, scheduler = make(1e-4, 1e-4, schedule="constant")
    planned = [dict(group) | {"momentum": 0.5, "nesterov": True} for group in read_groups(now)]
    replan(now, scheduler, groups=planned, args={"momentum"}, step=7)
    assert [(group["momentum"], group["nesterov"]) for group in now.param_groups] == [(0.5, False)] * 2
