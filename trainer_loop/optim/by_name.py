"""Tables of what a config may name, some of which is imported only when it is asked for."""

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from trainer_loop.components import choose
from trainer_loop.errors import UserError, in_one_line


@dataclass(frozen=True)
class FromPackage:
    """An entry of such a table."""

    module: str
    name: str
    package: str  # name for pip

    def load(self, place: str) -> Any:
        """Import it; UserError where the package is not installed or does not work here."""
        try:
            return getattr(importlib.import_module(self.module), self.name)
        except ModuleNotFoundError as error:
            raise UserError(
                f"{place} needs the package {self.package}: pip install {self.package}, or trainer_loop[optimizers]"
            ) from error
        except (ImportError, OSError, RuntimeError, AttributeError) as error:
            raise UserError(f"{place}: the package {self.package} does not work here: {in_one_line(error)}") from error


def find_by_name(name: str, table: Mapping[str, Any], *, place: str) -> Any:
    """The entry of a table, or what is at a dotted path. Raises UserError, with the config key, where there is none."""
    found = choose(name, table, place=place)
    return found.load(f"{place}: {name}") if isinstance(found, FromPackage) else found
