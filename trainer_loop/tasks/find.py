"""Finds tasks by name. The task `x` is the class in tasks/x.py, which is imported on demand."""

import importlib
import pkgutil

import transformers

import trainer_loop.tasks
from trainer_loop.components import choose
from trainer_loop.errors import UserError
from trainer_loop.tasks.task import Task

# Files of this folder that are no tasks.
_NO_TASKS = (
    *("chat_template", "describe", "fill_in_the_middle", "find", "generation", "language_model", "losses", "merge"),
    *("plan", "task"),
)


def list_tasks() -> list[str]:
    """Return the names of the tasks of the package."""
    names = [module.name for module in pkgutil.iter_modules(trainer_loop.tasks.__path__)]
    return sorted(name for name in names if name not in _NO_TASKS)


def is_shipped(task_class: type) -> bool:
    """Return whether a class is a task of the package."""
    module = task_class.__module__
    return issubclass(task_class, Task) and module != Task.__module__ and module.startswith(trainer_loop.tasks.__name__)


def load_task(name: str) -> type[Task]:
    """Return the class of a task of the package."""
    module = importlib.import_module(f"trainer_loop.tasks.{name}")
    (task,) = (
        value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, Task) and value.__module__ == module.__name__
    )
    return task


def find_by_architecture(architecture: str, problem_type: str | None) -> str | None:
    """Return the name of a task whose auto class loads models of this architecture, or None.

    Tasks on conversations are left out, because the model may have no chat template.

    Args:
        problem_type: `problem_type` of the model's config. None, or an unknown one, means a single label.
    """
    tasks: dict[str | None, str] = {}
    for name in list_tasks():
        task = load_task(name)
        if any(column.form for column in task.columns.values()):
            continue
        mapping = getattr(transformers, task.auto_model)._model_mapping._model_mapping if task.auto_model else {}
        if any(architecture in ([names] if isinstance(names, str) else names) for names in mapping.values()):
            tasks.setdefault(task.problem_type, name)
    return tasks.get(problem_type) or tasks.get("single_label_classification") or next(iter(tasks.values()), None)


def find_task(name: str, *, place: str) -> type[Task]:
    """Return the class that a config names: a task of the package, or a class at a dotted path.

    Raises:
        UserError: There is no such task, or it is no Task, or it lacks methods. The message names `place`.
    """
    names = list_tasks()
    if name in names:
        return load_task(name)
    task: object = choose(name, dict.fromkeys(names), place=place)
    if not (isinstance(task, type) and issubclass(task, Task)):
        raise UserError(f"{place}: {name} is no subclass of trainer_loop.Task")
    if missing := sorted(task.__abstractmethods__):
        raise UserError(f"{place}: {name} lacks {', '.join(missing)}; see trainer_loop/tasks/task.py")
    return task
