"""Every optimizer with every schedule: weights and rates are, bit for bit, those of their libraries."""

import importlib

import pytest
import tiny
import torch
from torch.optim.lr_scheduler import OneCycleLR
from transformers import get_scheduler

from trainer_loop.optim.averages import is_schedule_free
from trainer_loop.optim.by_name import FromPackage
from trainer_loop.optim.groups import make_groups
from trainer_loop.optim.optimizers import OPTIMIZERS, OptimizerPlan
from trainer_loop.optim.schedules import SCHEDULES, SchedulerPlan

LR, STEPS, WARMUP = 0.01, 8, 2
NEEDED = {
    "warmup_stable_decay": {"num_decay_steps": 3},
    "cosine_with_min_lr": {"min_lr": 0.001},
    "cosine_warmup_with_min_lr": {"min_lr": 0.001},
    "reduce_lr_on_plateau": {"patience": 0},
    "greedy": {"patience": 0, "min_lr": 1e-5},
}
LOSSES = [1.0, 0.9, 1.1, 1.2, 0.8, 1.3, 1.4, 1.5]  # of evaluations, for schedules that follow them


class WithoutDefaults(torch.optim.Optimizer):
    """One of somebody's own, which notes nothing but its groups."""

    def __init__(self, groups):
        super().__init__(groups, {})

    def step(self, closure=None):
        pass


def theirs(name, groups):
    found = OPTIMIZERS[name]
    factory = getattr(importlib.import_module(found.module), found.name) if isinstance(found, FromPackage) else found
    plain = [{**group.for_optimizer(), "is_hidden_matrix": group.is_hidden_matrix} for group in groups]
    if name != "muon":
        plain = [group.for_optimizer() for group in groups]
    return factory(plain, lr=LR, **({"fused": True} if name in ("adamw", "adam", "sgd", "adagrad", "muon") else {}))


def their_schedule(name, optimizer):
    if name == "one_cycle":
        rates = [group["lr"] for group in optimizer.param_groups]
        return OneCycleLR(
            optimizer,
            max_lr=rates,
            total_steps=STEPS,
            pct_start=WARMUP / STEPS,
            cycle_momentum=False,
        )
    if name == "greedy":
        return SCHEDULES[name].load("")(optimizer, mode="min", **NEEDED[name])
    optimizer.defaults.setdefault("lr", LR)
    return get_scheduler(
        name,
        optimizer,
        num_warmup_steps=WARMUP,
        num_training_steps=STEPS,
        scheduler_specific_kwargs=NEEDED.get(name),
    )


def train(optimizer_of, schedule_of):
    """-> the rate of the first group before each step, and the weights at the end."""
    model = tiny.make_bert()
    groups = make_groups(model, lr=LR, weight_decay=0.1, hidden_matrices_apart=optimizer_of[0] == "muon")
    optimizer = optimizer_of[1](groups)
    scheduler = schedule_of(optimizer)
    if is_schedule_free(optimizer):
        optimizer.train()
    rates = []
    for step in range(STEPS):
        torch.manual_seed(step)
        model(torch.randint(2, 50, (4, 7)), labels=torch.tensor([0, 1, 2, 1])).loss.backward()
        rates.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        optimizer.zero_grad()
        scheduler.step(*([LOSSES[step]] if SchedulerPlan(schedule_name(scheduler)).needs_metric else []))
    return rates, [weight.detach().clone() for weight in model.parameters()]


def schedule_name(scheduler):
    return {"ReduceLROnPlateau": "reduce_lr_on_plateau", "GreedyLR": "greedy"}.get(type(scheduler).__name__, "linear")


# make test has each name with a common partner; make test-slow has all pairs.
PAIRS = [
    pytest.param(name, schedule, marks=[] if name == "adamw" or schedule == "linear" else [pytest.mark.slow])
    for name in OPTIMIZERS
    for schedule in SCHEDULES
]


@pytest.mark.parametrize(("name", "schedule"), PAIRS)
def test_a_run_is_that_of_the_libraries(name, schedule):
    def ours(groups):
        plan = OptimizerPlan(name, LR)
        assert plan.takes_hidden_matrices_apart == (name == "muon")
        return plan.make(groups)

    def our_schedule(optimizer):
        return SchedulerPlan(schedule, WARMUP, NEEDED.get(schedule, {}), "-loss").make(optimizer, num_steps=STEPS)

    rates, weights = train((name, ours), our_schedule)
    their_rates, their_weights = train(
        (name, lambda groups: theirs(name, groups)), lambda optimizer: their_schedule(schedule, optimizer)
    )
    assert rates == their_rates
    for mine, other in zip(weights, their_weights, strict=True):
        torch.testing.assert_close(mine, other, rtol=0, atol=0)


@pytest.mark.parametrize("schedule", [name for name in SCHEDULES if not SchedulerPlan(name).needs_metric])
@pytest.mark.parametrize("name", ["muon", "somebody's own"])
def test_a_schedule_is_the_same_over_an_optimizer_that_notes_no_defaults(name, schedule):
    def read(optimizer):
        args = NEEDED.get(schedule, {})
        scheduler = SchedulerPlan(schedule, WARMUP, args).make(optimizer, num_steps=STEPS)
        rates = []
        for _ in range(STEPS):
            rates.append(scheduler.get_last_lr()[0])
            optimizer.step()
            scheduler.step()
        return rates

    model = tiny.make_bert()
    groups = make_groups(model, lr=LR, weight_decay=0.1)
    if name == "muon":
        other = OptimizerPlan("muon", LR).make(groups)
    else:
        other = WithoutDefaults([group.for_optimizer() for group in groups])
    plain = OptimizerPlan("sgd", LR).make(groups)
    assert read(other) == read(plain)
