"""The metrics that come with the package. A new metric is one function in one file of this folder.

The name of the function is the name of the metric. A file that is named after a benchmark of several metrics gives its
name too: `mrpc` in glue.py is `glue/mrpc`. All else follows from the signature:

- Parameters without a default are outputs of the task's `predict`. Their types, see `trainer_loop.metrics.values`, say
  which kinds of outputs the metric compares, and so which tasks it fits.
- Parameters with a default are the `args` of an entry. `average`, which comes with `labels`, says how the scores of
  several classes become one; `average=None` returns the list of them.
- The function returns a number, which is reported under the name of the metric, or a TypedDict of numbers, whose keys
  are reported.

`PACKAGE` in a file names a package that trainer_loop does not require and that the metrics of the file import. The
functions import their libraries themselves, because a config is checked before anything is computed.
"""

import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Annotated, Any, get_args, get_origin, get_type_hints, is_typeddict

from trainer_loop.metrics.values import Values

BENCHMARKS = ("glue", "super_glue", "indic_glue", "xtreme_s")  # on the hub too, their metrics are glue/mrpc, ...


@dataclass(frozen=True)
class ShippedMetric:
    """A function that computes a metric, and what its signature says of it.

    Args:
        columns: the outputs that it compares.
        results: the keys that it reports.
        package: what must be installed beside the packages that trainer_loop requires.
    """

    name: str
    function: Callable[..., Any]
    columns: Mapping[str, Values]
    results: Sequence[str]
    package: str | None = None

    @property
    def has_average(self) -> bool:
        """Whether it scores each class, and averages."""
        return "average" in inspect.signature(self.function).parameters

    @property
    def num_classes(self) -> int | None:
        """The only number of classes that it is defined for, where there is one."""
        return next((values.num_classes for values in self.columns.values() if values.num_classes is not None), None)

    def fits(self, outputs: Mapping[str, str]) -> bool:
        """Whether a task gives what it compares. outputs: the kinds of the task's outputs by their names."""
        return all(outputs.get(name) == values.kind for name, values in self.columns.items())


def find_metrics(package: str, folders: Iterable[str]) -> dict[str, ShippedMetric]:
    """All public functions that the modules of a package define, by the names of the metrics."""
    modules = [importlib.import_module(f"{package}.{module.name}") for module in pkgutil.iter_modules(folders)]
    return {metric.name: metric for module in modules for metric in _read(module)}


def _read(module: ModuleType) -> Iterator[ShippedMetric]:
    """The metrics of one module, in the order in which they are defined."""
    stem = module.__name__.rpartition(".")[2]
    prefix = f"{stem}/" if stem in BENCHMARKS else ""
    for name, function in vars(module).items():
        if inspect.isfunction(function) and function.__module__ == module.__name__ and not name.startswith("_"):
            columns = {
                parameter: get_args(hint)[1]
                for parameter, hint in get_type_hints(function, include_extras=True).items()
                if get_origin(hint) is Annotated and isinstance(get_args(hint)[1], Values)
            }
            parameters = inspect.signature(function).parameters.values()
            required = [parameter.name for parameter in parameters if parameter.default is parameter.empty]
            assert list(columns) == required, f"{module.__name__}.{name}: each of {required} needs a type of values.py"
            returned = get_type_hints(function)["return"]
            results = list(returned.__annotations__) if is_typeddict(returned) else [prefix + name]
            yield ShippedMetric(prefix + name, function, columns, results, getattr(module, "PACKAGE", None))


SHIPPED = find_metrics(__name__, __path__)
