"""Learning rate schedules: the names of transformers' get_scheduler, or a dotted path."""

import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from transformers.optimization import TYPE_TO_SCHEDULER_FUNCTION

from trainer_loop.config.component import check_arguments, choose
from trainer_loop.errors import UserError

SCHEDULES: dict[str, Callable[..., LRScheduler]] = {
    kind.value: make for kind, make in TYPE_TO_SCHEDULER_FUNCTION.items()
}
_GIVEN = ("optimizer", "num_warmup_steps", "num_training_steps")  # what `make_scheduler` passes itself


def check_scheduler(name: str, *, args: Mapping[str, Any]) -> list[str]:
    """All that is wrong with a schedule's name and arguments."""
    try:
        factory = choose(name, SCHEDULES, place="scheduler.name")
    except UserError as error:
        return error.problems
    return check_arguments(factory, args, place="scheduler.args", given=_GIVEN)


def count_warmup_steps(warmup: float, num_steps: int) -> int:
    """Below 1: that share of all steps, rounded up. From 1: that many steps."""
    return math.ceil(warmup * num_steps) if warmup < 1 else int(warmup)


def describe_warmup(name: str, warmup: float, num_steps: int) -> str:
    """What comes of `warmup`: some schedules have none."""
    if "num_warmup_steps" not in inspect.signature(choose(name, SCHEDULES, place="scheduler.name")).parameters:
        return "no warm-up"
    return f"{count_warmup_steps(warmup, num_steps):,} warm-up steps"


def make_scheduler(
    optimizer: Optimizer, *, name: str, warmup: float, num_steps: int, args: Mapping[str, Any]
) -> LRScheduler:
    """The schedule over `num_steps` updates; it is ticked once per update on any number of processes.

    optimizer: the torch optimizer itself, not accelerate's wrapper. Raises UserError where the schedule refuses
    its arguments.
    """
    factory = choose(name, SCHEDULES, place="scheduler.name")
    given = {
        "num_warmup_steps": count_warmup_steps(warmup, num_steps),
        "num_training_steps": num_steps,
    }
    accepted = inspect.signature(factory).parameters
    arguments = {key: value for key, value in given.items() if key in accepted and key not in args}
    try:
        return factory(optimizer, **arguments, **args)
    except (TypeError, ValueError) as error:
        raise UserError(f"scheduler {name}: {error}; see scheduler.warmup and scheduler.args") from error
