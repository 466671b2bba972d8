"""Optimizers by name or dotted path. `OptimizerPlan.check` checks the whole section before anything loads."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from trainer_loop.components import check_arguments
from trainer_loop.errors import UserError, refuse
from trainer_loop.optim.averages import is_schedule_free
from trainer_loop.optim.by_name import FromPackage, find_by_name
from trainer_loop.optim.groups import GroupRule, ParameterGroup, check_patterns, freeze_parameters, make_groups
from trainer_loop.optim.muon import MuonWithAdamW
from trainer_loop.optim.schedules import count_steps
from trainer_loop.parallel.sharding import FUSED_ON_PARTS, is_spread

OptimizerFactory = Callable[..., Optimizer]
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
PLAN_ARGUMENTS = ("params", "lr", "weight_decay")  # arguments that the plan sets


@dataclass(frozen=True)
class OptimizerPlan:
    """An `optimizer` section; the fields are its keys."""

    name: str
    lr: float
    weight_decay: float = 0.0
    args: Mapping[str, Any] = field(default_factory=dict)
    layer_decay: float | None = None
    groups: Sequence[Mapping[str, Any]] = ()
    freeze: Sequence[str] = ()
    unfreeze_every: float | None = None

    @property
    def keeps_averaged_weights(self) -> bool:
        return is_schedule_free(find_optimizer(self.name))

    @property
    def takes_hidden_matrices_apart(self) -> bool:
        """Whether the optimizer treats the matrices of hidden layers differently from other parameters."""
        return find_optimizer(self.name) is MuonWithAdamW

    @property
    def unfreezes(self) -> bool:
        """Whether training of some parameters starts later than that of others."""
        return self.unfreeze_every is not None or any(group.get("unfreeze_at") for group in self.groups)

    def check(self) -> "OptimizerPlan":
        """Return the plan. Raises UserError with all problems of the section."""
        factory = find_optimizer(self.name)
        problems = check_arguments(factory, self.args, place="args", given=PLAN_ARGUMENTS)
        if self.weight_decay and "weight_decay" not in inspect.signature(factory).parameters:
            problems.append(f"weight_decay: {self.name} takes no weight_decay; set optimizer.weight_decay=0")
        if not problems and self.unfreezes and self.keeps_averaged_weights:
            problems.append(
                f"name: {self.name} counts the steps of what is frozen too, and would begin with steps far too large; "
                "choose another, or unfreeze nothing later"
            )
        refuse(problems)
        return self

    def group(self, model: nn.Module, *, num_steps: int, calls: Sequence[str] = ()) -> list[ParameterGroup]:
        """Freeze the parameters that match `freeze`, and put all others into groups.

        Args:
            num_steps: number of steps of the run.
            calls: see `find_depths`.

        Raises:
            UserError: if a pattern matches nothing in this model, or a group would never be trained.
        """
        rules = [
            GroupRule(
                group["match"],
                group.get("lr"),
                group.get("weight_decay"),
                None if group.get("unfreeze_at") is None else count_steps(group["unfreeze_at"], num_steps),
            )
            for group in self.groups
        ]
        check_patterns(model, frozen=self.freeze, rules=rules)
        freeze_parameters(model, self.freeze)
        groups = make_groups(
            model,
            lr=self.lr,
            weight_decay=self.weight_decay,
            rules=rules,
            layer_decay=self.layer_decay or 1.0,
            unfreeze_every=count_steps(self.unfreeze_every or 0, num_steps),
            hidden_matrices_apart=self.takes_hidden_matrices_apart,
            calls=calls,
        )
        _refuse_untrained_groups(groups, num_steps)
        return groups

    def make(self, groups: Sequence[ParameterGroup]) -> Optimizer:
        """Create the optimizer; it is fused if torch supports this for the devices of the weights.

        Raises:
            UserError: if the optimizer rejects its arguments.
        """
        group_dicts = [group.for_optimizer() for group in groups]
        if self.takes_hidden_matrices_apart:
            for group, options in zip(groups, group_dicts, strict=True):
                options["is_hidden_matrix"] = group.is_hidden_matrix
        arguments = {"lr": self.lr, **self.args}
        if "fused" not in self.args and self._can_fuse(groups):
            arguments["fused"] = True
        try:
            optimizer = find_optimizer(self.name)(group_dicts, **arguments)
        except (TypeError, ValueError, RuntimeError, AssertionError) as error:  # some packages check input with assert
            raise UserError(
                f"optimizer {self.name}: {error}; see optimizer.lr, optimizer.weight_decay and optimizer.args"
            ) from error
        optimizer.defaults.setdefault("lr", self.lr)
        return optimizer

    def _can_fuse(self, groups: Sequence[ParameterGroup]) -> bool:
        parameters = [parameter for group in groups for parameter in group.parameters.values()]
        return (
            "fused" in inspect.signature(find_optimizer(self.name)).parameters
            and not ({"foreach", "capturable", "differentiable"} & set(self.args))
            and all(parameter.device.type in ("cpu", "cuda", "xpu", "mps") for parameter in parameters)
            and all(parameter.is_floating_point() for parameter in parameters)
            and (find_optimizer(self.name) in FUSED_ON_PARTS or not any(map(is_spread, parameters)))
        )


def find_optimizer(name: str) -> OptimizerFactory:
    """Return the optimizer of a name or dotted path. Raises UserError if there is none."""
    factory: OptimizerFactory = find_by_name(name, OPTIMIZERS, place="name")
    return factory


def _refuse_untrained_groups(groups: Sequence[ParameterGroup], num_steps: int) -> None:
    """Raise UserError if a group would never be trained, or if no group is trained from the first step on."""
    never = [group.title for group in groups if group.unfreeze_at >= num_steps]
    if never:
        raise UserError(
            f"unfreeze_every and optimizer.groups: {', '.join(never)} would not learn in any of the {num_steps:,} "
            "steps; unfreeze earlier, or say so with optimizer.freeze"
        )
    if all(group.unfreeze_at for group in groups):
        raise UserError("groups: no parameter learns at the first step; let one begin with unfreeze_at: 0")
