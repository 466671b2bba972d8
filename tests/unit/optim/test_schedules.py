from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trainer_loop import UserError
from trainer_loop.optim.schedules import SCHEDULES, SchedulerPlan, count_steps, follows_metric

NEEDED = {
    "warmup_stable_decay": {"num_decay_steps": 5},
    "cosine_with_min_lr": {"min_lr": 0.1},
    "cosine_warmup_with_min_lr": {"min_lr": 0.1},
}


def make(name: str, *, warmup: float = 0.2, num_steps: int = 20, args: dict | None = None):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = SchedulerPlan(name, warmup, args or {}).make(optimizer, num_steps=num_steps)
    return optimizer, scheduler


@pytest.mark.parametrize(
    ("warmup", "num_steps", "wanted"),
    [
        (0.0, 100, 0),
        (0.1, 100, 10),
        (0.07, 100, 7),
        (0.29, 100, 29),
        (0.1, 13, 2),
        (0.999, 10, 10),
        (1, 100, 1),
        (25, 100, 25),
    ],
)
def test_warmup_is_a_share_below_one_and_a_number_of_steps_from_one(warmup, num_steps, wanted):
    assert count_steps(warmup, num_steps) == wanted


@given(digits=st.integers(1, 9999), places=st.integers(1, 6), num_steps=st.integers(1, 10**6))
def test_a_share_of_the_steps_is_that_of_the_decimal_that_was_written(digits, places, num_steps):
    share = f"0.{digits:0{places}d}"
    exact = Fraction(share) * num_steps
    assert count_steps(float(share), num_steps) == -(-exact.numerator // exact.denominator)


@pytest.mark.parametrize("name", sorted(name for name in SCHEDULES if not SchedulerPlan(name).needs_metric))
def test_every_schedule_is_made_and_ticks(name):
    SchedulerPlan(name, warmup=0.1, args=NEEDED.get(name, {})).check()
    optimizer, scheduler = make(name, args=NEEDED.get(name))
    rates = []
    for _ in range(20):
        rates.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    assert max(rates) == pytest.approx(1.0)
    if "constant" not in name:
        assert rates[-1] < 0.9


def test_linear_warms_up_and_ends_at_zero():
    optimizer, scheduler = make("linear", warmup=5)
    rates = []
    for _ in range(20):
        rates.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    assert rates[:6] == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1.0])
    assert scheduler.get_last_lr()[0] == 0


def test_a_dotted_path_gets_the_arguments_it_knows():
    _, scheduler = make("torch.optim.lr_scheduler.StepLR", args={"step_size": 3})
    assert scheduler.step_size == 3


@pytest.mark.parametrize(
    ("name", "args", "wanted"),
    [
        ("linaer", {}, "did you mean linear"),
        ("cosine", {"cycles": 1}, "num_cycles"),
        ("warmup_stable_decay", {}, "num_decay_steps"),
        ("linear", {"num_training_steps": 3}, "args.num_training_steps"),
    ],
)
def test_what_is_wrong_is_told_before_there_is_an_optimizer(name, args, wanted):
    with pytest.raises(UserError) as refused:
        SchedulerPlan(name, warmup=0.1, args=args).check()
    (problem,) = refused.value.problems
    assert wanted in problem


def test_values_the_schedule_refuses_are_a_problem_of_the_user():
    with pytest.raises(UserError, match="scheduler cosine_with_min_lr"):
        make("cosine_with_min_lr")


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_schedule_that_needs_a_metric_is_known_by_its_name(name):
    _, scheduler = make(name, args=NEEDED.get(name))
    assert SchedulerPlan(name).needs_metric == follows_metric(scheduler)


@pytest.mark.parametrize(("metric", "mode"), [("-loss", "min"), ("accuracy", "max")])
@pytest.mark.parametrize("name", ["reduce_lr_on_plateau", "greedy"])
def test_the_sign_of_the_metric_says_whether_larger_is_better(name, metric, mode):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    assert SchedulerPlan(name, metric=metric).make(optimizer, num_steps=9).mode == mode


def test_one_cycle_peaks_at_the_rate_of_each_group_when_the_warm_up_is_over():
    parameters = [torch.nn.Parameter(torch.zeros(1)) for _ in range(2)]
    optimizer = torch.optim.AdamW([{"params": [one], "lr": lr} for one, lr in zip(parameters, (1.0, 0.5), strict=True)])
    scheduler = SchedulerPlan("one_cycle", warmup=5).make(optimizer, num_steps=20)
    rates = []
    for _ in range(20):
        rates.append(scheduler.get_last_lr())
        optimizer.step()
        scheduler.step()
    assert [max(group) for group in zip(*rates, strict=True)] == pytest.approx([1.0, 0.5])
    assert rates[4] == pytest.approx([1.0, 0.5])
    assert rates[-1][0] < 1e-4


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("linear", "▁▃▅▆██▇▇▆▆▅▅▅▄▄▃▃▂▂▁ 0, at most 1, at the end 0.0625"),
        ("constant", "████████████████████ 1, at most 1, at the end 1"),
        ("reduce_lr_on_plateau", "by what evaluations find"),
    ],
)
def test_a_schedule_is_drawn_as_bars(name, wanted):
    assert SchedulerPlan(name, warmup=0.2).draw(lr=1.0, num_steps=20) == wanted


def test_a_schedule_that_is_no_function_of_the_step_is_drawn_by_taking_its_steps():
    drawn = SchedulerPlan("one_cycle", warmup=0.5).draw(lr=1.0, num_steps=200)
    assert len(drawn.split()[0]) == 60
    assert drawn.split()[0][30] == "█"
    assert "not drawn" in SchedulerPlan("one_cycle", warmup=0.5).draw(lr=1.0, num_steps=10**7)


def test_a_rate_of_zero_is_drawn_flat():
    assert SchedulerPlan("linear").draw(lr=0.0, num_steps=3).startswith("▁▁▁ ")
