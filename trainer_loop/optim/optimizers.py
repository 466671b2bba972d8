"""Optimizers by name or dotted path, their arguments checked against the signature before anything loads."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from trainer_loop.config.component import check_arguments, choose
from trainer_loop.errors import UserError
from trainer_loop.optim.groups import group_by_decay

OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {
    "adamw": torch.optim.AdamW,
    "sgd": torch.optim.SGD,
    "adafactor": torch.optim.Adafactor,
}
_GIVEN = ("params", "lr", "weight_decay")  # what `make_optimizer` passes itself


def check_optimizer(name: str, *, weight_decay: float, args: Mapping[str, Any]) -> list[str]:
    """All that is wrong with an optimizer's name and arguments."""
    try:
        factory = choose(name, OPTIMIZERS, place="optimizer.name")
    except UserError as error:
        return error.problems
    problems = check_arguments(factory, args, place="optimizer.args", given=_GIVEN)
    if weight_decay and "weight_decay" not in inspect.signature(factory).parameters:
        problems.append(f"optimizer.weight_decay: {name} takes no weight_decay; set optimizer.weight_decay=0")
    return problems


def make_optimizer(
    model: nn.Module, *, name: str, lr: float, weight_decay: float, args: Mapping[str, Any], device: torch.device
) -> Optimizer:
    """The optimizer over the model's trainable parameters; fused on devices where torch has it.

    Biases and norm weights do not decay. Raises UserError where the optimizer refuses its arguments.
    """
    factory = choose(name, OPTIMIZERS, place="optimizer.name")
    arguments = {"lr": lr, **args}
    if "fused" not in args and _can_fuse(factory, model, device, args):
        arguments["fused"] = True
    try:
        return factory(group_by_decay(model, weight_decay), **arguments)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(
            f"optimizer {name}: {error}; see optimizer.lr, optimizer.weight_decay and optimizer.args"
        ) from error


def _can_fuse(
    factory: Callable[..., Optimizer], model: nn.Module, device: torch.device, args: Mapping[str, Any]
) -> bool:
    return (
        "fused" in inspect.signature(factory).parameters
        and not ({"foreach", "capturable", "differentiable"} & set(args))
        and device.type in ("cpu", "cuda", "xpu", "mps")
        and all(parameter.is_floating_point() for parameter in model.parameters() if parameter.requires_grad)
    )
