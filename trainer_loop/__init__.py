"""A training loop on Hugging Face Accelerate that you can read in one sitting, change, and trust.

What `__all__` lists is public and is imported from here: `from trainer_loop import build`. Everything else is private.
A name is imported when it is first used, so `import trainer_loop` alone does not import torch.
"""

from trainer_loop.search_path import leave_out_current_directory

leave_out_current_directory()  # before any command imports what a file of the user's could hide

TYPE_CHECKING = False  # type checkers take it for true; importing it from typing would cost each command time
if TYPE_CHECKING:
    from trainer_loop import testing as testing
    from trainer_loop.assembly import build as build
    from trainer_loop.config.load import load_config as load_config
    from trainer_loop.data.columns import Column as Column
    from trainer_loop.errors import Diverged as Diverged
    from trainer_loop.errors import Preempted as Preempted
    from trainer_loop.errors import UserError as UserError
    from trainer_loop.loop import TrainingLoop as TrainingLoop
    from trainer_loop.predictor import Predictor as Predictor
    from trainer_loop.tasks import losses as losses
    from trainer_loop.tasks.task import Task as Task

__version__ = "0.1.0"

# Each public name and its module, which is the value itself where it has that name.
_MODULES = {
    "build": "trainer_loop.assembly",
    "load_config": "trainer_loop.config.load",
    "TrainingLoop": "trainer_loop.loop",
    "Task": "trainer_loop.tasks.task",
    "Column": "trainer_loop.data.columns",
    "Predictor": "trainer_loop.predictor",
    "losses": "trainer_loop.tasks.losses",
    "testing": "trainer_loop.testing",
    "UserError": "trainer_loop.errors",
    "Preempted": "trainer_loop.errors",
    "Diverged": "trainer_loop.errors",
}

__all__ = ["__version__", *_MODULES]

if not TYPE_CHECKING:  # else type checkers would take any name for one of this package

    def __getattr__(name: str) -> object:
        """Import a public name when it is first used (PEP 562)."""
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        import importlib

        module = importlib.import_module(_MODULES[name])
        value = module if module.__name__.endswith(f".{name}") else getattr(module, name)
        globals()[name] = value
        return value

    def __dir__() -> list[str]:
        return sorted(__all__)
