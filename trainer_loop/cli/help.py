"""`--help KEY`: describes a key or section of the config, and the names it accepts with their arguments."""

import inspect
from collections.abc import Callable, Collection, Mapping
from typing import Any

from trainer_loop.config.reference import describe_keys
from trainer_loop.config.schema import KEYS, SECTIONS
from trainer_loop.errors import UserError
from trainer_loop.metrics.shipped import SHIPPED
from trainer_loop.migrate.translations import describe_unknown
from trainer_loop.optim.by_name import FromPackage
from trainer_loop.optim.optimizers import OPTIMIZERS
from trainer_loop.optim.optimizers import PLAN_ARGUMENTS as GIVEN_TO_OPTIMIZERS
from trainer_loop.optim.schedules import PLAN_ARGUMENTS as GIVEN_TO_SCHEDULES
from trainer_loop.optim.schedules import SCHEDULES
from trainer_loop.tasks.describe import describe_task
from trainer_loop.tasks.find import find_task, list_tasks, load_task
from trainer_loop.tasks.losses import LOSSES

# Key -> its names, and the arguments that trainer_loop passes itself.
_NAMES: dict[str, tuple[Mapping[str, Any], Collection[str]]] = {
    "task.name": ({name: load_task(name) for name in list_tasks()}, ("loss_function",)),
    "loss.name": (LOSSES, ("logits", "targets")),
    "optimizer.name": (OPTIMIZERS, GIVEN_TO_OPTIMIZERS),
    "scheduler.name": (SCHEDULES, (*GIVEN_TO_SCHEDULES, "last_epoch", "kwargs")),
}


def help_about(name: str) -> str:
    """Return the help for a key, a section or `task.name=NAME`. Raises UserError for an unknown name."""
    key, _, task = name.partition("=")
    if task:
        return "\n".join(describe_task(find_task(task, place=key))) + "\n"
    if name in SECTIONS:
        return "\n".join([f"{name}: {SECTIONS[name]}", *describe_keys(name)]) + "\n"
    if name not in KEYS:
        raise UserError(describe_unknown(name))
    section = name.rpartition(".")[0]
    lines = describe_keys(section, only=name)
    if name in _NAMES:
        table, passed = _NAMES[name]
        lines += ["", f"Names, and the arguments that {section}.args may have:"]
        lines += [f"  {entry}{_describe_arguments(component, passed)}" for entry, component in table.items()]
    if name == "evaluate.metrics":
        lines += ["", f"Metrics that need no network: {', '.join(SHIPPED)}"]
    return "\n".join(lines) + "\n"


def _describe_arguments(component: Any, passed: Collection[str]) -> str:
    """Describe the arguments of a component, without those in `passed`."""
    try:
        function = component.load("") if isinstance(component, FromPackage) else component
    except UserError:
        return f": pip install {component.package}"
    arguments = [
        parameter.name if parameter.default is parameter.empty else f"{parameter.name}={_show(parameter.default)}"
        for parameter in inspect.signature(function).parameters.values()
        if parameter.name not in passed
    ]
    return f"({', '.join(arguments)})"


def _show(default: object) -> str:
    name: Callable[..., Any] | str = getattr(default, "__name__", "")
    return str(name) if callable(default) and name else repr(default)
