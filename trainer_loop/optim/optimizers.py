"""Optimizers by name or dotted path. Their arguments are checked against the signature before anything is loaded."""

import importlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.optim import Optimizer

from trainer_loop.components import check_arguments, choose
from trainer_loop.errors import UserError, in_one_line
from trainer_loop.optim.groups import ParameterGroup
from trainer_loop.optim.muon import MuonWithAdamW

OptimizerFactory = Callable[..., Optimizer]


@dataclass(frozen=True)
class FromPackage:
    """An optimizer of an optional package."""

    module: str
    name: str
    package: str  # name for pip

    def load(self, place: str) -> OptimizerFactory:
        """Import the optimizer class.

        Raises:
            UserError: the package is not installed or does not work here.
        """
        try:
            found: OptimizerFactory = getattr(importlib.import_module(self.module), self.name)
        except ModuleNotFoundError as error:
            raise UserError(
                f"{place} needs the package {self.package}: pip install {self.package}, or trainer_loop[optimizers]"
            ) from error
        except (ImportError, OSError, RuntimeError, AttributeError) as error:
            raise UserError(f"{place}: the package {self.package} does not work here: {in_one_line(error)}") from error
        return found


OPTIMIZERS: dict[str, OptimizerFactory | FromPackage] = {
    "adamw": torch.optim.AdamW,
    "adam": torch.optim.Adam,
    "sgd": torch.optim.SGD,
    "adagrad": torch.optim.Adagrad,
    "rmsprop": torch.optim.RMSprop,
    "adafactor": torch.optim.Adafactor,
    "muon": MuonWithAdamW,
    "lion": FromPackage("lion_pytorch", "Lion", "lion-pytorch"),
    "schedule_free_adamw": FromPackage("schedulefree", "AdamWScheduleFree", "schedulefree"),
    "adamw_8bit": FromPackage("bitsandbytes.optim", "AdamW8bit", "bitsandbytes"),
}
GIVEN = ("params", "lr", "weight_decay")  # arguments that `make_optimizer` passes


def find_optimizer(name: str) -> OptimizerFactory:
    """The optimizer with this name or dotted path.

    Raises:
        UserError: there is no such optimizer.
    """
    found = choose(name, OPTIMIZERS, place="optimizer.name")
    return found.load(f"optimizer.name: {name}") if isinstance(found, FromPackage) else found


def check_optimizer(name: str, *, weight_decay: float, args: Mapping[str, Any]) -> list[str]:
    """All problems with an optimizer's name and arguments, one message each."""
    try:
        factory = find_optimizer(name)
    except UserError as error:
        return error.problems
    problems = check_arguments(factory, args, place="optimizer.args", given=GIVEN)
    if weight_decay and "weight_decay" not in inspect.signature(factory).parameters:
        problems.append(f"optimizer.weight_decay: {name} takes no weight_decay; set optimizer.weight_decay=0")
    return problems


def takes_hidden_matrices_apart(name: str) -> bool:
    """Whether the optimizer treats the matrices of hidden layers differently from other parameters."""
    return find_optimizer(name) is MuonWithAdamW


def make_optimizer(
    groups: Sequence[ParameterGroup], *, name: str, lr: float, args: Mapping[str, Any], device: torch.device
) -> Optimizer:
    """Make the optimizer over the groups; it is fused on devices where torch supports this.

    Args:
        groups: parameter groups with their learning rates and weight decays.
        name: name or dotted path.
        lr: default learning rate of the optimizer.
        args: further arguments of the optimizer.
        device: device of the parameters.

    Raises:
        UserError: the optimizer rejects its arguments.
    """
    factory = find_optimizer(name)
    given = [group.for_optimizer() for group in groups]
    if takes_hidden_matrices_apart(name):
        given = [
            {**group, "is_hidden_matrix": described.is_hidden_matrix}
            for group, described in zip(given, groups, strict=True)
        ]
    arguments = {"lr": lr, **args}
    if "fused" not in args and _can_fuse(factory, groups, device, args):
        arguments["fused"] = True
    try:
        made = factory(given, **arguments)
    except (TypeError, ValueError, RuntimeError, AssertionError) as error:  # some packages check user input with assert
        raise UserError(
            f"optimizer {name}: {error}; see optimizer.lr, optimizer.weight_decay and optimizer.args"
        ) from error
    made.defaults.setdefault("lr", lr)
    return made


def _can_fuse(
    factory: OptimizerFactory, groups: Sequence[ParameterGroup], device: torch.device, args: Mapping[str, Any]
) -> bool:
    return (
        "fused" in inspect.signature(factory).parameters
        and not ({"foreach", "capturable", "differentiable"} & set(args))
        and device.type in ("cpu", "cuda", "xpu", "mps")
        and all(parameter.is_floating_point() for group in groups for parameter in group.parameters.values())
    )
