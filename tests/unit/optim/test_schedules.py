import pytest
import torch

from trainer_loop.errors import UserError
from trainer_loop.optim.schedules import SCHEDULES, check_scheduler, count_warmup_steps, make_scheduler

NEEDED = {
    "warmup_stable_decay": {"num_decay_steps": 5},
    "cosine_with_min_lr": {"min_lr": 0.1},
    "cosine_warmup_with_min_lr": {"min_lr": 0.1},
}


def make(name: str, *, warmup: float = 0.2, num_steps: int = 20, args: dict | None = None):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = make_scheduler(optimizer, name=name, warmup=warmup, num_steps=num_steps, args=args or {})
    return optimizer, scheduler


@pytest.mark.parametrize(
    ("warmup", "num_steps", "wanted"),
    [(0.0, 100, 0), (0.1, 100, 10), (0.1, 13, 2), (0.999, 10, 10), (1, 100, 1), (25, 100, 25)],
)
def test_warmup_is_a_share_below_one_and_a_number_of_steps_from_one(warmup, num_steps, wanted):
    assert count_warmup_steps(warmup, num_steps) == wanted


@pytest.mark.parametrize("name", sorted(set(SCHEDULES) - {"reduce_lr_on_plateau", "greedy"}))
def test_every_schedule_of_transformers_is_made_and_ticks(name):
    assert check_scheduler(name, args=NEEDED.get(name, {})) == []
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
        ("linear", {"num_training_steps": 3}, "scheduler.args.num_training_steps"),
    ],
)
def test_what_is_wrong_is_told_before_there_is_an_optimizer(name, args, wanted):
    (problem,) = check_scheduler(name, args=args)
    assert wanted in problem


def test_values_the_schedule_refuses_are_a_problem_of_the_user():
    with pytest.raises(UserError, match="scheduler cosine_with_min_lr"):
        make("cosine_with_min_lr")
