"""The sections `task` and `loss`: which task is learnt, and by which loss."""

import inspect
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trainer_loop.components import check_arguments, choose
from trainer_loop.errors import UserError, in_one_line, refuse
from trainer_loop.metrics.logged import LogMetric, check_names, explain_wrong_value
from trainer_loop.tasks.find import find_task
from trainer_loop.tasks.losses import LOSSES, explain_wrong_loss
from trainer_loop.tasks.task import Task

# What targets are, by the problem type of a task, and what a loss of the package compares; class numbers elsewhere.
_TARGETS: dict[str | None, str] = {"regression": "numbers", "multi_label_classification": "labels"}
_COMPARES = {"mse": "numbers", "l1": "numbers", "huber": "numbers", "binary_cross_entropy": "labels"}
# Weights of classes that `auto` computes from how many of the N training rows have each of the C classes.
_AUTO: dict[str, Callable[[np.ndarray, int], np.ndarray]] = {
    "class_weights": lambda counts, num_rows: counts.sum() / (len(counts) * counts),
    "pos_weight": lambda counts, num_rows: (num_rows - counts) / counts,
}


@dataclass(eq=False)
class LossPlan:
    """A loss that the config names, with its arguments: `(logits [N, C], targets [N]) -> sum over targets, []`.

    `class_weights: auto` and `pos_weight: auto` wait for `weigh_classes`.
    """

    key: str  # of the section `loss`, and its value
    name: str
    function: Callable[..., Tensor]
    args: dict[str, Any]
    extra_metrics: tuple[str, ...] = ()  # names that it logs, by an argument `log_metric`; empty: it has none
    log_metric: LogMetric | None = None  # of the task that is trained by it

    def __call__(self, logits: Tensor, targets: Tensor) -> Tensor:
        logged = {} if self.log_metric is None else {"log_metric": self.log_metric}
        return self.function(logits, targets, **self.args, **logged)

    @property
    def needs_counts(self) -> list[str]:
        """The arguments that wait."""
        return [name for name in _AUTO if self.args.get(name) == "auto"]

    def weigh_classes(self, counts: np.ndarray, num_rows: int) -> None:
        """Compute the arguments that wait, so that every class counts as much as the others.

        Args:
            counts: How often each class is there in training, `[C]`; one that no row has, or every row, gets the weight
                1.
            num_rows: Training rows.
        """
        for name in self.needs_counts:
            weights = np.ones(len(counts))
            found = _AUTO[name](counts[counts > 0], num_rows)
            weights[counts > 0] = np.where(found > 0, found, 1)
            self.args[name] = weights.tolist()

    def check_fits(self, problem_type: str | None) -> None:
        """Raise UserError where a loss of the package has targets of another kind than the task.

        problem_type: see `Task`.
        """
        fitting = [name for name in LOSSES if _COMPARES.get(name) == _TARGETS.get(problem_type)]
        if self.name in LOSSES and self.name not in fitting:
            raise UserError(f"{self.key} does not fit the targets of this task; those that do: {', '.join(fitting)}")

    def check_sum(self, outputs: Tensor, targets: Tensor) -> None:
        """Raise UserError where rows given twice do not add up to twice as much: a mean depends on the cut.

        Args:
            outputs: What a model could answer to a few rows, `[N, ...]`.
            targets: Of these rows, `[N, ...]`.
        """
        outputs = outputs.requires_grad_()
        logged: dict[str, Tensor] = {}
        listening = self
        if self.extra_metrics:
            listening = replace(self, log_metric=lambda name, value, *, count=1: logged.update({name: value}))
        try:
            once = listening(outputs, targets)
            twice = listening(torch.cat([outputs, outputs]), torch.cat([targets, targets]))
        except Exception as error:  # the user's code may raise anything, and the error says where
            frame = traceback.extract_tb(error.__traceback__)[-1]
            raise UserError(
                f"{self.key} fails on logits {list(outputs.shape)} and targets {list(targets.shape)}: "
                f"{type(error).__name__}: "
                f"{in_one_line(error, at_most=200)} ({frame.filename}:{frame.lineno})"
            ) from error
        if (wrong := explain_wrong_loss(once)) is not None:
            raise UserError(f"{self.key} {wrong}")
        names = ", ".join(self.extra_metrics)
        refuse(
            [f"{self.key} logs {name}; its extra_metrics are {names}" for name in logged.keys() - {*self.extra_metrics}]
            + [
                f"{self.key} logs {name}, which {bad}"
                for name, value in logged.items()
                if (bad := explain_wrong_value(value))
            ]
        )
        if not torch.isfinite(once):
            raise UserError(
                f"{self.key} is {once.item()} for logits between -9 and 9; is something divided by 0, or a log of 0?"
            )
        if not torch.isclose(twice, 2 * once, rtol=1e-3):
            raise UserError(
                f"{self.key} gives {once.item():.4g} for four rows and {twice.item():.4g} for them twice; "
                "it must be a sum over the targets (reduction='sum'), for the loop alone divides"
            )


def make_up_outputs(problem_type: str | None, num_classes: int) -> tuple[Tensor, Tensor]:
    """Outputs of four rows between -1 and 1, and targets, as a loss function takes them.

    problem_type: see `Task`. num_classes: or numbers of a row.
    """
    outputs = torch.linspace(-9, 9, 4 * num_classes).sin().view(4, num_classes)
    if problem_type == "regression":
        targets = (outputs > 0).float()
        return (outputs, targets) if num_classes > 1 else (outputs[:, 0], targets[:, 0])
    targets = torch.tensor([0, 1, 1, 0])
    return outputs, (outputs > 0).float() if problem_type == "multi_label_classification" else targets


def name_own_loss(task: Task | type[Task] | None) -> str:
    """The name of the loss that a task, or its class, has if none is named. None: there is no such task."""
    if task is None:
        return "cross_entropy"
    parameter = inspect.signature(task if isinstance(task, type) else type(task)).parameters.get("loss_function")
    own = None if parameter is None else parameter.default
    return next((name for name, loss in LOSSES.items() if loss is own), "cross_entropy")


def plan_loss(*, name: str | None, args: Mapping[str, Any], own: str = "cross_entropy") -> LossPlan | None:
    """Check the section `loss`, whose keys the parameters are; None: the task's own loss. Raises UserError.

    own: the name of the task's own loss, which `args` without a name are for.
    """
    if name is None and not args:
        return None
    function = choose(name or own, LOSSES, place="name")
    if not callable(function):
        raise UserError(f"name: {name} is no function (logits, targets) -> sum")
    # The first two parameters are what the task passes, whatever they are called.
    try:
        parameters = list(inspect.signature(function).parameters)
    except ValueError:  # a built-in that does not say: calling it will
        parameters = []
    key = f"name: {name}" if name is not None else f"args: {own}"
    extra_metrics = getattr(function, "extra_metrics", ())
    problems = check_names(extra_metrics, owner=key)
    if bool(extra_metrics) != ("log_metric" in parameters):
        problems.append(
            f"{key}: a loss that logs has a parameter log_metric, and an attribute extra_metrics with the names: "
            f"{name}.extra_metrics = ('penalty',); it has only one of them"
        )
    refuse(problems + check_arguments(function, args, place="args", given=[*parameters[:2], "log_metric"]))
    return LossPlan(key, name or own, function, dict(args), tuple(extra_metrics))


def plan_task(*, name: str, args: Mapping[str, Any], loss: LossPlan | None) -> Task:
    """Check the section `task` and make the task. loss: in the place of the task's own. Raises UserError."""
    task_class: Any = find_task(name, place="task.name")
    problems = check_arguments(task_class, args, place="task.args", given=("loss_function",))
    arguments = dict(args)
    if loss is not None:
        arguments["loss_function"] = loss
        if "loss_function" not in inspect.signature(task_class).parameters:
            problems.append(
                f"loss: the task {name} computes its own, and takes no loss_function; remove loss.name and loss.args"
            )
    refuse(problems)
    task: Task = task_class(**arguments)
    if loss is not None:
        task.extra_metrics = (*task.extra_metrics, *loss.extra_metrics)
        loss.log_metric = task.log_metric if loss.extra_metrics else None
    return task
