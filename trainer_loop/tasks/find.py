"""Tasks by name: the task `x` is the class in tasks/x.py, which is imported when it is asked for."""

import importlib
import pkgutil

import transformers

import trainer_loop.tasks
from trainer_loop.components import choose
from trainer_loop.errors import UserError
from trainer_loop.tasks.task import Task

# Files of this folder that hold none.
_NO_TASKS = (
    *("chat_template", "describe", "fill_in_the_middle", "find", "generation", "language_model", "losses", "merge"),
    *("plan", "task"),
)


def list_tasks() -> list[str]:
    """The names of the tasks that come with the package."""
    names = [module.name for module in pkgutil.iter_modules(trainer_loop.tasks.__path__)]
    return sorted(name for name in names if name not in _NO_TASKS)


def is_shipped(task_class: type) -> bool:
    """Whether a class is one of the tasks that come with the package."""
    module = task_class.__module__
    return issubclass(task_class, Task) and module != Task.__module__ and module.startswith(trainer_loop.tasks.__name__)


def load_task(name: str) -> type[Task]:
    """The class of a task that comes with the package."""
    module = importlib.import_module(f"trainer_loop.tasks.{name}")
    (task,) = (
        found
        for found in vars(module).values()
        if isinstance(found, type) and issubclass(found, Task) and found.__module__ == module.__name__
    )
    return task


def find_by_architecture(architecture: str, problem_type: str | None) -> str | None:
    """The name of the task whose class of transformers loads models of this architecture; of several, see below.

    No task on conversations, for which a model that was not exported here may have no chat template.

    problem_type: in the model's config. None, and any that is not known, stand for one label.
    """
    found: dict[str | None, str] = {}
    for name in list_tasks():
        task = load_task(name)
        if any(column.form for column in task.columns.values()):
            continue
        known = getattr(transformers, task.auto_model)._model_mapping._model_mapping if task.auto_model else {}
        if any(architecture in ([made] if isinstance(made, str) else made) for made in known.values()):
            found.setdefault(task.problem_type, name)
    return found.get(problem_type) or found.get("single_label_classification") or next(iter(found.values()), None)


def find_task(name: str, *, place: str) -> type[Task]:
    """The class that a config names: a task of the package, or a class at a dotted path.

    Raises:
        UserError: There is no such task, or it is no Task, or it lacks methods. The message names `place`.
    """
    known = list_tasks()
    if name in known:
        return load_task(name)
    found: object = choose(name, dict.fromkeys(known), place=place)
    if not (isinstance(found, type) and issubclass(found, Task)):
        raise UserError(f"{place}: {name} is no subclass of trainer_loop.Task")
    if missing := sorted(found.__abstractmethods__):
        raise UserError(f"{place}: {name} lacks {', '.join(missing)}; see trainer_loop/tasks/task.py")
    return found
