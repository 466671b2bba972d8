"""Finds optimizers and schedules by name. Those of optional packages are imported only when a config names them."""

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from trainer_loop.components import choose
from trainer_loop.errors import UserError, in_one_line


@dataclass(frozen=True)
class FromPackage:
    """A table entry that is imported when it is used."""

    module: str
    name: str
    package: str  # name for pip

    def load(self, place: str) -> Any:
        """Import and return the object. Raises UserError if the package is not installed or does not work here.

        Args:
            place: config key and value for the message.
        """
        try:
            return getattr(importlib.import_module(self.module), self.name)
        except ModuleNotFoundError as error:
            raise UserError(
                f"{place} needs the package {self.package}: pip install {self.package}, or trainer_loop[optimizers]"
            ) from error
        except (ImportError, OSError, RuntimeError, AttributeError) as error:
            raise UserError(f"{place}: the package {self.package} does not work here: {in_one_line(error)}") from error


def find_by_name(name: str, table: Mapping[str, Any], *, place: str) -> Any:
    """Return the table entry `name`, or the object at the dotted path `name`.

    Raises:
        UserError: if there is neither; the message names the config key `place`.
    """
    entry = choose(name, table, place=place)
    return entry.load(f"{place}: {name}") if isinstance(entry, FromPackage) else entry
