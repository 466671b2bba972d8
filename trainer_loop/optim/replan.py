"""A resumed run that was given another learning rate, weight decay or schedule."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

Group = Mapping[str, Any]


def read_groups(optimizer: Optimizer) -> list[Group]:
    """The hyper-parameters of every group, without its parameters."""
    return [{name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups]


def replan(
    optimizer: Optimizer, scheduler: LRScheduler, *, groups: Sequence[Group], lr_ratio: float, step: int
) -> None:
    """Go on after `step` updates with the hyper-parameters of `groups` instead of those that were restored.

    lr_ratio: the new learning rate over the old one. A schedule that is a function of the step is put to its place
    there; any other goes on where it stood, its learning rates times `lr_ratio`.
    """
    for group, new in zip(optimizer.param_groups, groups, strict=True):
        group["lr"] *= lr_ratio
        group.update({name: value for name, value in new.items() if name != "lr"})
    if hasattr(scheduler, "base_lrs"):
        scheduler.base_lrs = [group["initial_lr"] for group in optimizer.param_groups]
    if isinstance(scheduler, LambdaLR):
        scheduler.last_epoch = step
        scheduler._step_count = step + 1
        for group, base_lr, factor in zip(
            optimizer.param_groups, scheduler.base_lrs, scheduler.lr_lambdas, strict=True
        ):
            group["lr"] = base_lr * factor(step)
    scheduler._last_lr = [group["lr"] for group in optimizer.param_groups]
