"""Checks the config sections `task` and `loss`, and creates task and loss."""

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

# Kinds of targets by problem type, and by loss of the package. Other tasks and losses have class ids.
_TARGETS: dict[str | None, str] = {"regression": "numbers", "multi_label_classification": "labels"}
_COMPARES = {"mse": "numbers", "l1": "numbers", "huber": "numbers", "binary_cross_entropy": "labels"}
# Arguments that `auto` computes from the number of training rows with each of the C classes.
_AUTO: dict[str, Callable[[np.ndarray, int], np.ndarray]] = {
    "class_weights": lambda counts, num_rows: counts.sum() / (len(counts) * counts),
    "pos_weight": lambda counts, num_rows: (num_rows - counts) / counts,
}


@dataclass(eq=False)
class LossPlan:
    """A loss that the config names, with its arguments: `(logits [N, C], targets [N]) -> sum over targets, []`.

    `weigh_classes` must replace `class_weights: auto` and `pos_weight: auto` before the loss is called.
    """

    key: str  # the key of the section `loss`, and its value, for messages
    name: str
    function: Callable[..., Tensor]
    args: dict[str, Any]
    extra_metrics: tuple[str, ...] = ()  # metrics that it logs; empty: it takes no argument `log_metric`
    log_metric: LogMetric | None = None  # that of the task

    def __call__(self, logits: Tensor, targets: Tensor) -> Tensor:
        extra = {} if self.log_metric is None else {"log_metric": self.log_metric}
        return self.function(logits, targets, **self.args, **extra)

    @property
    def needs_counts(self) -> list[str]:
        """Arguments that are `auto`."""
        return [name for name in _AUTO if self.args.get(name) == "auto"]

    def weigh_classes(self, counts: np.ndarray, num_rows: int) -> None:
        """Compute the arguments that are `auto`, so that all classes have equal influence.

        Args:
            counts: Number of training rows with each class, `[C]`. A class that no row or every row has gets the
                weight 1.
            num_rows: Number of training rows.
        """
        for name in self.needs_counts:
            weights = np.ones(len(counts))
            computed = _AUTO[name](counts[counts > 0], num_rows)
            weights[counts > 0] = np.where(computed > 0, computed, 1)
            self.args[name] = weights.tolist()

    def check_fits(self, problem_type: str | None) -> None:
        """Raise UserError if a loss of the package has targets of another kind than the task.

        Args:
            problem_type: `Task.problem_type`.
        """
        fitting = [name for name in LOSSES if _COMPARES.get(name) == _TARGETS.get(problem_type)]
        if self.name in LOSSES and self.name not in fitting:
            raise UserError(f"{self.key} does not fit the targets of this task; those that do: {', '.join(fitting)}")

    def check_sum(self, outputs: Tensor, targets: Tensor) -> None:
        """Raise UserError if the loss is no sum: twice the same rows must give twice the loss.

        Args:
            outputs: Made-up outputs of a model for a few rows, `[N, ...]`.
            targets: Targets of these rows, `[N, ...]`.
        """
        outputs = outputs.requires_grad_()
        logged: dict[str, Tensor] = {}
        loss = self
        if self.extra_metrics:
            loss = replace(self, log_metric=lambda name, value, *, count=1: logged.update({name: value}))
        try:
            once = loss(outputs, targets)
            twice = loss(torch.cat([outputs, outputs]), torch.cat([targets, targets]))
        except Exception as error:  # the user's code may raise anything
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
                f"{self.key} logs {name}, which {fault}"
                for name, value in logged.items()
                if (fault := explain_wrong_value(value))
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
    """Make up outputs of four rows, between -1 and 1, and targets, to try a loss function.

    Args:
        problem_type: `Task.problem_type`.
        num_classes: Number of classes, or of numbers per row.
    """
    outputs = torch.linspace(-9, 9, 4 * num_classes).sin().view(4, num_classes)
    if problem_type == "regression":
        targets = (outputs > 0).float()
        return (outputs, targets) if num_classes > 1 else (outputs[:, 0], targets[:, 0])
    targets = torch.tensor([0, 1, 1, 0])
    return outputs, (outputs > 0).float() if problem_type == "multi_label_classification" else targets


def name_own_loss(task: Task | type[Task] | None) -> str:
    """Return the name of the default loss of a task or of its class. For None, return cross_entropy."""
    if task is None:
        return "cross_entropy"
    parameter = inspect.signature(task if isinstance(task, type) else type(task)).parameters.get("loss_function")
    default = None if parameter is None else parameter.default
    return next((name for name, loss in LOSSES.items() if loss is default), "cross_entropy")


def plan_loss(*, name: str | None, args: Mapping[str, Any], default: str = "cross_entropy") -> LossPlan | None:
    """Check the section `loss`. Returns None for the default loss of the task. Raises UserError.

    Args:
        default: Name of the default loss of the task, which gets `args` if no name is given.
    """
    if name is None and not args:
        return None
    function = choose(name or default, LOSSES, place="name")
    if not callable(function):
        raise UserError(f"name: {name} is no function (logits, targets) -> sum")
    # The task passes the first two parameters, whatever their names.
    try:
        parameters = list(inspect.signature(function).parameters)
    except ValueError:  # a built-in without a signature; the trial call will show problems
        parameters = []
    key = f"name: {name}" if name is not None else f"args: {default}"
    extra_metrics = getattr(function, "extra_metrics", ())
    problems = check_names(extra_metrics, owner=key)
    if bool(extra_metrics) != ("log_metric" in parameters):
        problems.append(
            f"{key}: a loss that logs has a parameter log_metric, and an attribute extra_metrics with the names: "
            f"{name}.extra_metrics = ('penalty',); it has only one of them"
        )
    refuse(problems + check_arguments(function, args, place="args", given=[*parameters[:2], "log_metric"]))
    return LossPlan(key, name or default, function, dict(args), tuple(extra_metrics))


def plan_task(*, name: str, args: Mapping[str, Any], loss: LossPlan | None) -> Task:
    """Check the section `task` and create the task. `loss` replaces its default loss. Raises UserError."""
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
