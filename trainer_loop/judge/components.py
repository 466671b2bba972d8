"""Names and arguments of everything the config names, judged by signature, and what must go together."""

import functools
import importlib.util
import inspect
import traceback
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from trainer_loop.components import check_arguments, choose
from trainer_loop.config.fields import Config
from trainer_loop.errors import UserError, in_one_line
from trainer_loop.judge.parts import Given
from trainer_loop.metrics.load import reported_keys
from trainer_loop.metrics.shipped import SHIPPED
from trainer_loop.models.adapters import add_adapter, check_adapter, check_targets
from trainer_loop.optim.groups import GroupRule, check_patterns
from trainer_loop.optim.optimizers import check_optimizer, find_optimizer
from trainer_loop.optim.schedule_free import is_schedule_free
from trainer_loop.optim.schedules import check_scheduler, needs_metric
from trainer_loop.record.trackers import check_trackers
from trainer_loop.tasks.losses import LOSSES, explain_wrong_loss
from trainer_loop.tasks.shipped import TASKS
from trainer_loop.tasks.task import RowTask, TextTask

_SMALLER_IS_BETTER = {"loss", *(key for metric in SHIPPED.values() for key in metric.smaller_is_better)}


def metric_entries(config: Config, task: RowTask) -> list[str | Mapping[str, Any]]:
    """The metrics the config names, else the task's own."""
    return list(config.evaluate.metrics or task.default_metrics)


def adapter_of(config: Config) -> tuple[str, dict[str, Any], str] | None:
    """The adapter that the config names, its arguments and the section they are from; None: the model itself learns."""
    lora, peft = config.model.lora, config.model.peft
    if lora.r is not None:
        arguments = {
            "r": lora.r,
            "lora_alpha": 2 * lora.r if lora.alpha is None else lora.alpha,
            "lora_dropout": lora.dropout,
            "target_modules": lora.target_modules or "all-linear",
            "use_dora": lora.dora,
        }
        return "lora", arguments, "model.lora"
    return None if peft.name is None else (peft.name, dict(peft.args), "model.peft")


def make_task(config: Config) -> RowTask:
    factory: Any = choose(config.task.name, TASKS, place="task.name")
    if not (isinstance(factory, type) and issubclass(factory, RowTask)):
        raise UserError(
            f"task.name: {config.task.name} is no subclass of TextTask or RowTask, see trainer_loop/tasks/task.py"
        )
    if missing := sorted(factory.__abstractmethods__):
        raise UserError(f"task.name: {config.task.name} lacks {', '.join(missing)}; see trainer_loop/tasks/task.py")
    problems = check_arguments(factory, config.task.args, place="task.args", given=("loss_function",))
    arguments: dict[str, Any] = dict(config.task.args)
    if config.loss.name is not None or config.loss.args:
        loss = choose(config.loss.name or "cross_entropy", LOSSES, place="loss.name")
        if not callable(loss):
            raise UserError(f"loss.name: {config.loss.name} is no function (logits, targets) -> sum")
        # The first two parameters are what the task passes, whatever they are called.
        try:
            passed = list(inspect.signature(loss).parameters)[:2]
        except ValueError:  # a built-in that does not tell: calling it will
            passed = []
        problems += check_arguments(loss, config.loss.args, place="loss.args", given=passed)
        arguments["loss_function"] = functools.partial(loss, **config.loss.args)
        if "loss_function" not in inspect.signature(factory).parameters:
            problems.append(
                f"loss: the task {config.task.name} computes its own, and takes no loss_function; remove loss.name and "
                "loss.args"
            )
    problems += _check_task_fits(config, factory, name=config.task.name)
    if problems:
        raise UserError(problems)
    return factory(**arguments)


def check_given_task(config: Config, task: RowTask) -> list[str]:
    """Keys that a task made in Python has no use for, or cannot serve."""
    name = type(task).__name__
    unused = {"task.args": config.task.args, "loss.name": config.loss.name, "loss.args": config.loss.args}
    return _check_task_fits(config, type(task), name=name) + [
        f"{place}: {value}: the task that was given, a {name}, has its own; remove it"
        for place, value in unused.items()
        if value
    ]


def _check_task_fits(config: Config, task_class: type[RowTask], *, name: str) -> list[str]:
    problems = []
    if config.data.text_pair is not None and not (issubclass(task_class, TextTask) and task_class.takes_pairs):
        problems.append(f"data.text_pair: {config.data.text_pair}: the task {name} takes one text; remove it")
    if config.model.packing and not (issubclass(task_class, TextTask) and task_class.can_pack):
        problems.append(f"model.packing: the task {name} knows no packed batches; set model.packing=false")
    return problems


def check_loss(config: Config, task: TextTask, num_classes: int) -> list[str]:
    """A loss that the config names must add up: of rows given twice it is twice as much. A mean depends on the cut."""
    loss_function = getattr(task, "loss_function", None)
    if loss_function is None or (config.loss.name is None and not config.loss.args):
        return []
    place = f"loss.name: {config.loss.name}" if config.loss.name is not None else "loss.args: cross_entropy"
    targets = torch.tensor([0, 1, 1, 0])
    logits = torch.linspace(-9, 9, 4 * num_classes).sin().view(4, num_classes).requires_grad_()
    try:
        once = loss_function(logits, targets)
        twice = loss_function(logits.repeat(2, 1), targets.repeat(2))
    except Exception as error:  # noqa: BLE001 - the user's code may raise anything, and is told where
        frame = traceback.extract_tb(error.__traceback__)[-1]
        told = in_one_line(error, at_most=200)
        return [
            f"{place} fails on logits [4, {num_classes}] and targets [4]: {type(error).__name__}: {told} "
            f"({frame.filename}:{frame.lineno})"
        ]
    if (wrong := explain_wrong_loss(once)) is not None:
        return [f"{place} {wrong}"]
    if not torch.isfinite(once):
        return [f"{place} is {once.item()} for logits between -9 and 9; is something divided by 0, or a log of 0?"]
    if not torch.isclose(twice, 2 * once, rtol=1e-3):
        return [
            f"{place} gives {once.item():.4g} for four rows and {twice.item():.4g} for them twice; "
            "it must be a sum over the targets (reduction='sum'), for the loop alone divides"
        ]
    return []


def _check_quantize(config: Config, given: Given) -> list[str]:
    """Weights in 4 bits are loaded so, stay as they are, and have an adapter beside them that learns."""
    model = config.model
    if model.quantize is None:
        return []
    place = f"model.quantize: {model.quantize}"
    problems = []
    if given.model is not None or model.name is None or model.from_scratch:
        problems.append(f"{place}: weights are made small while they load, and here none are; set it to null")
    if adapter_of(config) is None:
        problems.append(f"{place}: such weights do not learn; let an adapter do so beside them: model.lora.r=16")
    if model.lora.merge or model.peft.merge:
        problems.append(f"{place}: an adapter cannot be merged with them but for a loss; set merge to false")
    if importlib.util.find_spec("bitsandbytes") is None:
        problems.append(f"{place} needs the package bitsandbytes: pip install bitsandbytes")
    return problems


def check_components(config: Config, task: RowTask | None, given: Given) -> list[str]:
    """Names and arguments of everything the config names, by signature."""
    problems = check_optimizer(
        config.optimizer.name, weight_decay=config.optimizer.weight_decay, args=config.optimizer.args
    )
    if not problems and config.ema.decay is not None and is_schedule_free(find_optimizer(config.optimizer.name)):
        problems.append(
            f"ema.decay: {config.ema.decay}: {config.optimizer.name} keeps an average of the weights itself; "
            "set it to null"
        )
    unfreezes = config.optimizer.unfreeze_every is not None or any(
        isinstance(entry, dict) and entry.get("unfreeze_at") for entry in config.optimizer.groups
    )
    if not problems and unfreezes and is_schedule_free(find_optimizer(config.optimizer.name)):
        problems.append(
            f"optimizer.name: {config.optimizer.name} counts the steps of what is frozen too, and would begin with "
            "steps far too large; choose another, or unfreeze nothing later"
        )
    problems += check_scheduler(config.scheduler.name, args=config.scheduler.args)
    problems += _check_schedule_metric(config, given)
    problems += _check_quantize(config, given)
    if (adapter := adapter_of(config)) is not None:
        kind, arguments, place = adapter
        problems += check_adapter(kind, arguments, name_place=place, place=f"{place}.args")
    for place, figure in _figures(config).items():
        if figure.rpartition("/")[2] in _SMALLER_IS_BETTER and not figure.startswith("-"):
            problems.append(f"{place}: {figure} would pick the largest {figure}; smaller is better: write -{figure}")
    problems += check_trackers(config.log.trackers, config.log.tracker_args)
    return problems


def _figures(config: Config) -> dict[str, str]:
    """The figures of an evaluation that something follows, by the key that names them."""
    named = {"checkpoint.best": config.checkpoint.best, "scheduler.metric": config.scheduler.metric}
    return {place: figure for place, figure in named.items() if figure is not None}


def _name_validation_sets(config: Config, given: Given) -> list[str]:
    """Those that have names."""
    named = list(config.data.validation) if isinstance(config.data.validation, dict) else []
    return named + [name for name in given.sets if name]


def check_figures(config: Config, task: RowTask, num_labels: int | None, given: Given) -> list[str]:
    """Figures that something follows and no evaluation has. num_labels: classes of the task, where they are known."""
    keys = reported_keys(metric_entries(config, task), num_labels=num_labels)
    if keys is None:
        return []
    reported = [*keys, "loss"]
    sets = _name_validation_sets(config, given)
    all_reported = [f"{name}/{figure}" for name in sets for figure in reported] or list(reported)
    return [
        f"{place}: {figure} is not reported; evaluations have: {', '.join(all_reported)}"
        for place, figure in _figures(config).items()
        if figure.removeprefix("-") not in all_reported
    ]


def _check_schedule_metric(config: Config, given: Given) -> list[str]:
    """A schedule that moves by evaluations needs them, and no other has a metric."""
    name, metric = config.scheduler.name, config.scheduler.metric
    if not needs_metric(name):
        return [] if metric is None else [f"scheduler.metric: {metric}: {name} follows none; remove it"]
    figure = "the validation loss" if metric is None else metric.removeprefix("-")
    if config.evaluate.every == "never":
        return [f"scheduler.name: {name} follows {figure}; set evaluate.every"]
    if config.data.validation is None and config.data.validation_fraction is None and not given.sets:
        return [f"scheduler.name: {name} follows {figure}; set data.validation or data.validation_fraction"]
    if metric is None and (sets := _name_validation_sets(config, given)):
        return [f"scheduler.name: {name} follows one of several sets; set scheduler.metric, such as -{sets[0]}/loss"]
    return []


def check_model_parts(config: Config, task: TextTask, empty: nn.Module) -> list[str]:
    """The adapter, and patterns of parameter names. empty: the model without weights, or the one that was given."""
    optimizer, adapter = config.optimizer, adapter_of(config)
    if not optimizer.freeze and not optimizer.groups and adapter is None:
        return []
    rules = [GroupRule(entry["match"]) for entry in optimizer.groups]
    if adapter is not None:
        kind, arguments, place = adapter
        if problems := check_targets(empty, config.model.lora.target_modules, place="model.lora.target_modules"):
            return problems
        try:
            empty = add_adapter(
                empty, kind=kind, arguments=arguments, task_type=task.adapter_type, place=place, seed=config.seed
            )
        except UserError as error:
            # What torch refuses here for want of numbers, as PiSSA, which splits the weights, is tried when they are.
            return [] if isinstance(error.__cause__, RuntimeError) else error.problems
    return check_patterns(empty, frozen=optimizer.freeze, rules=rules)
