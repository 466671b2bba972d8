"""Learning rate schedules: those of transformers' get_scheduler, one_cycle, or any at a dotted path."""

import functools
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR

from trainer_loop.components import check_arguments
from trainer_loop.errors import UserError, refuse
from trainer_loop.optim.by_name import FromPackage, find_by_name
from trainer_loop.runtime.shares import take_share

_NEED_METRICS = ("reduce_lr_on_plateau", "greedy")
_BARS = "▁▂▃▄▅▆▇█"
_COLUMNS = 60
_MOST_STEPS_TO_TRY = 100_000  # these take one second


def _make_constant(optimizer: Optimizer) -> LRScheduler:
    """Constant at the peak."""
    return LambdaLR(optimizer, functools.partial(_compute_constant, warmup=0))


def _make_constant_with_warmup(optimizer: Optimizer, num_warmup_steps: int) -> LRScheduler:
    """Constant at the peak after the warm-up."""
    return LambdaLR(optimizer, functools.partial(_compute_constant, warmup=num_warmup_steps))


def _make_linear(optimizer: Optimizer, num_warmup_steps: int, num_training_steps: int) -> LRScheduler:
    """Linear from the peak to 0 after the warm-up."""
    factor = functools.partial(_compute_linear, warmup=num_warmup_steps, num_steps=num_training_steps)
    return LambdaLR(optimizer, factor)


def _make_cosine(
    optimizer: Optimizer, num_warmup_steps: int, num_training_steps: int, num_cycles: float = 0.5
) -> LRScheduler:
    """Cosine from the peak to 0 after the warm-up, in `num_cycles` periods."""
    steps = {"warmup": num_warmup_steps, "num_steps": num_training_steps}
    return LambdaLR(optimizer, functools.partial(_compute_cosine, **steps, num_cycles=num_cycles))


def _compute_constant(step: int, *, warmup: int) -> float:
    return step / warmup if step < warmup else 1.0


def _compute_linear(step: int, *, warmup: int, num_steps: int) -> float:
    return step / warmup if step < warmup else max(0.0, (num_steps - step) / max(1, num_steps - warmup))


def _compute_cosine(step: int, *, warmup: int, num_steps: int, num_cycles: float) -> float:
    if step < warmup:
        return step / warmup
    progress = (step - warmup) / max(1, num_steps - warmup)
    return max(0.0, 0.5 * (1.0 + math.cos(math.pi * num_cycles * 2.0 * progress)))


def _make_one_cycle(
    optimizer: Optimizer,
    num_warmup_steps: int,
    num_training_steps: int,
    anneal_strategy: str = "cos",
    cycle_momentum: bool = False,
    base_momentum: float = 0.85,
    max_momentum: float = 0.95,
    div_factor: float = 25.0,
    final_div_factor: float = 1e4,
    three_phase: bool = False,
) -> LRScheduler:
    """torch's OneCycleLR. Its peak is the learning rate of each group, reached at the end of the warm-up."""
    if num_warmup_steps == 1 or num_warmup_steps >= num_training_steps:
        raise ValueError(
            f"one_cycle cannot warm up in {num_warmup_steps:,} of {num_training_steps:,} steps; give it none, or two "
            "and more, and fewer than all"
        )
    return OneCycleLR(
        optimizer,
        max_lr=[group["lr"] for group in optimizer.param_groups],
        total_steps=num_training_steps,
        pct_start=num_warmup_steps / num_training_steps,
        anneal_strategy=anneal_strategy,  # type: ignore[arg-type]
        cycle_momentum=cycle_momentum,
        base_momentum=base_momentum,
        max_momentum=max_momentum,
        div_factor=div_factor,
        final_div_factor=final_div_factor,
        three_phase=three_phase,
    )


def _of_transformers(name: str) -> FromPackage:
    # The import is delayed, because transformers.optimization imports peft and bitsandbytes, which takes two seconds.
    return FromPackage("transformers.optimization", name, "transformers")


SCHEDULES: dict[str, Callable[..., LRScheduler] | FromPackage] = {
    "linear": _make_linear,
    "cosine": _make_cosine,
    "constant": _make_constant,
    "constant_with_warmup": _make_constant_with_warmup,
    "one_cycle": _make_one_cycle,
    "cosine_with_restarts": _of_transformers("get_cosine_with_hard_restarts_schedule_with_warmup"),
    "polynomial": _of_transformers("get_polynomial_decay_schedule_with_warmup"),
    "inverse_sqrt": _of_transformers("get_inverse_sqrt_schedule"),
    "reduce_lr_on_plateau": _of_transformers("get_reduce_on_plateau_schedule"),
    "cosine_with_min_lr": _of_transformers("get_cosine_with_min_lr_schedule_with_warmup"),
    "cosine_warmup_with_min_lr": _of_transformers("get_cosine_with_min_lr_schedule_with_warmup_lr_rate"),
    "warmup_stable_decay": _of_transformers("get_wsd_schedule"),
    "greedy": _of_transformers("get_greedy_schedule"),
}
PLAN_ARGUMENTS = ("optimizer", "num_warmup_steps", "num_training_steps")  # arguments that the plan sets


@dataclass(frozen=True)
class SchedulerPlan:
    """A `scheduler` section; the fields are its keys."""

    name: str
    warmup: float = 0
    args: Mapping[str, Any] = field(default_factory=dict)
    metric: str | None = None

    @property
    def factory(self) -> Callable[..., LRScheduler]:
        factory: Callable[..., LRScheduler] = find_by_name(self.name, SCHEDULES, place="name")
        return factory

    @property
    def needs_metric(self) -> bool:
        """Whether the schedule follows evaluations instead of steps."""
        factory = self.factory
        return self.name in _NEED_METRICS or (isinstance(factory, type) and _steps_by_metric(factory))

    @property
    def followed_metric(self) -> str:
        """The metric that a schedule with `needs_metric` follows; `-metric` if smaller is better."""
        return self.metric or "-loss"

    def check(self) -> "SchedulerPlan":
        """Return the plan. Raises UserError with all problems of the section."""
        problems = check_arguments(self.factory, self.args, place="args", given=PLAN_ARGUMENTS)
        if self.metric is not None and not self.needs_metric:
            problems.append(f"metric: {self.metric}: {self.name} follows none; remove it")
        refuse(problems)
        return self

    def describe_warmup(self, num_steps: int) -> str:
        """Describe the effect of `warmup`; some schedules have no warm-up."""
        if "num_warmup_steps" not in inspect.signature(self.factory).parameters:
            return "no warm-up"
        count = count_steps(self.warmup, num_steps)
        return f"{count:,} warm-up step{'' if count == 1 else 's'}"

    def make(self, optimizer: Optimizer, *, num_steps: int) -> LRScheduler:
        """Create the schedule over `num_steps` updates. It is stepped once per update on any number of processes.

        Args:
            optimizer: the torch optimizer, not accelerate's wrapper.

        Raises:
            UserError: if the schedule rejects its arguments.
        """
        accepted = inspect.signature(self.factory).parameters
        step_counts = {"num_warmup_steps": count_steps(self.warmup, num_steps), "num_training_steps": num_steps}
        arguments: dict[str, Any] = {name: value for name, value in step_counts.items() if name in accepted}
        if self.needs_metric:
            arguments["mode"] = "min" if self.followed_metric.startswith("-") else "max"
        for group in optimizer.param_groups:
            group.setdefault("initial_lr", group["lr"])  # most schedules set it themselves; `replan` reads it
        # Some of transformers' schedules read the peak from the defaults, and not all optimizers set it.
        optimizer.defaults.setdefault("lr", max(group["lr"] for group in optimizer.param_groups))
        try:
            scheduler = self.factory(optimizer, **(arguments | dict(self.args)))
        except (TypeError, ValueError, ArithmeticError) as error:
            raise UserError(f"scheduler {self.name}: {error}; see scheduler.warmup and scheduler.args") from error
        for floor, group in zip(getattr(scheduler, "min_lrs", ()), optimizer.param_groups, strict=False):
            if floor >= group["lr"]:
                raise UserError(
                    f"scheduler {self.name}: its least learning rate, {floor:g}, is not below the {group['lr']:g} it "
                    "begins with, so it could never lower it; set scheduler.args.min_lr"
                )
        return scheduler

    def draw(self, *, lr: float, num_steps: int) -> str:
        """Draw the learning rate over all steps as a line of bars; the highest bar is the peak."""
        # A separate optimizer for the trial; AdamW, because some schedules also cycle betas.
        scheduler = self.make(torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=lr), num_steps=num_steps)
        if follows_metric(scheduler):
            return "by what evaluations find"
        if not isinstance(scheduler, LambdaLR) and num_steps > _MOST_STEPS_TO_TRY:
            return f"not drawn: a {type(scheduler).__name__} would have to take all {num_steps:,} steps"
        columns = min(_COLUMNS, num_steps)
        steps = [round(column * (num_steps - 1) / max(1, columns - 1)) for column in range(columns)]
        rates = _compute_rates(scheduler, steps)
        peak = max(rates)
        bars = [_BARS[round(rate / peak * (len(_BARS) - 1))] if peak > 0 else _BARS[0] for rate in rates]
        return f"{''.join(bars)} {rates[0]:.3g}, at most {peak:.3g}, at the end {rates[-1]:.3g}"


def follows_metric(scheduler: LRScheduler) -> bool:
    """Whether a schedule follows a metric of the evaluations instead of the step."""
    return _steps_by_metric(type(scheduler))  # type: ignore[arg-type] # a class can be hashed


@functools.cache
def _steps_by_metric(scheduler: type) -> bool:
    """Whether the method `step` of this class takes a metric, as in ReduceLROnPlateau."""
    step = getattr(scheduler, "step", None)
    return step is not None and "metrics" in inspect.signature(step).parameters


def count_steps(setting: float, num_steps: int) -> int:
    """Return the number of steps of a setting: below 1 a share of all steps, rounded up; from 1 the number itself.

    >>> count_steps(0.1, 782), count_steps(100, 782)
    (79, 100)
    """
    return math.ceil(take_share(setting, num_steps)) if setting < 1 else int(setting)


def _compute_rates(scheduler: LRScheduler, steps: Sequence[int]) -> list[float]:
    """Compute the learning rates at these steps, which are ascending from 0."""
    if isinstance(scheduler, LambdaLR):
        return [float(scheduler.base_lrs[0] * scheduler.lr_lambdas[0](step)) for step in steps]
    rates = []
    for step in range(steps[-1] + 1):
        if step in steps:
            rates.append(float(scheduler.get_last_lr()[0]))
        scheduler.optimizer.step()  # torch warns if a schedule is stepped without it
        scheduler.step()
    return rates
