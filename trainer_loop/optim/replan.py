"""Changes the learning rate, weight decay or schedule of a resumed run."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

Group = Mapping[str, Any]

# Values of a group that follow from the config. Other values may be state: some optimizers keep it in groups.
_PLANNED = ("weight_decay", "initial_lr", "max_lr", "min_lr")


def read_groups(optimizer: Optimizer) -> list[Group]:
    """Return the hyper-parameters of every group, without its parameters."""
    return [{name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups]


def replan(
    optimizer: Optimizer, scheduler: LRScheduler, *, groups: Sequence[Group], args: Collection[str] = (), step: int
) -> None:
    """Continue after `step` updates with the hyper-parameters of `groups` instead of the restored ones.

    A schedule that is a function of the step is set to this step. Any other schedule continues from its state, and the
    learning rate of each group is scaled by the change of its peak.

    Args:
        optimizer: the restored optimizer; it is changed.
        scheduler: the restored schedule; it is changed.
        groups: the planned hyper-parameters, one mapping for each group of the optimizer.
        args: names of further hyper-parameters that changed.
    """
    for group, new in zip(optimizer.param_groups, groups, strict=True):
        if group.get("initial_lr"):
            group["lr"] *= new["initial_lr"] / group["initial_lr"]
        group.update({name: new[name] for name in (*_PLANNED, *args) if name in new})
    if hasattr(scheduler, "base_lrs"):
        scheduler.base_lrs = [group["initial_lr"] for group in optimizer.param_groups]
    if isinstance(scheduler, LambdaLR):
        scheduler.last_epoch = step
        scheduler._step_count = step + 1
        for group, factor in zip(optimizer.param_groups, scheduler.lr_lambdas, strict=True):
            group["lr"] = group["initial_lr"] * factor(step)
    scheduler._last_lr = [group["lr"] for group in optimizer.param_groups]
