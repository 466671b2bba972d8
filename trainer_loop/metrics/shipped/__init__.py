"""The metrics of the package. To add a metric, write a function in a file of this folder.

The name of the function is the name of the metric. A file named after a benchmark adds its name as a prefix: `mrpc` in
glue.py is `glue/mrpc`. The signature determines the rest:

- Parameters without a default are outputs of the task's `predict`. Their types, see `trainer_loop.metrics.values`, say
  which kinds of outputs the metric compares, and so which tasks it fits.
- Parameters with a default are the `args` of an entry. `average`, together with `labels`, says how the scores of
  several classes are averaged; `average=None` returns the list of scores.
- The function returns a number, which is reported under the name of the metric, or a TypedDict of numbers, whose keys
  are reported. `checkpoint.best` cannot maximise a result of type `SmallerIsBetter`. A result `InParts` also has a
  value for each part; `Annotated[InParts, PartsOf(...)]` declares their names.

`PACKAGE` in a file names an optional package that the metrics of the file import. The functions import their libraries
themselves, so that checking a config does not import them.
"""

import importlib.util
import inspect
import pkgutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import Annotated, Any, get_args, get_origin, get_type_hints, is_typeddict

from trainer_loop.components import check_arguments
from trainer_loop.metrics.values import SMALLER_IS_BETTER, Average, PartsOf, Values

BENCHMARKS = ("glue", "super_glue", "indic_glue", "xtreme_s")  # their metrics are called glue/mrpc, ..., as on the hub


@dataclass(frozen=True)
class ShippedMetric:
    """A function that computes a metric, and what its signature declares."""

    name: str
    function: Callable[..., Any]
    columns: Mapping[str, Values]  # outputs that it compares
    results: Sequence[str]  # keys that it always reports
    smaller_is_better: Sequence[str]  # keys for which smaller is better
    package: str | None = None  # optional package that it needs
    parts: Mapping[str, PartsOf] = field(default_factory=dict)  # parts of results, by key

    @property
    def reads_names(self) -> bool:
        """Whether it takes the names of the classes."""
        return "label_names" in inspect.signature(self.function).parameters

    @property
    def has_average(self) -> bool:
        """Whether it averages scores over classes."""
        return "average" in inspect.signature(self.function).parameters

    @property
    def num_classes(self) -> int | None:
        """The number of classes that it requires, or None."""
        return next((values.num_classes for values in self.columns.values() if values.num_classes is not None), None)

    def asks_for_parts(self, arguments: Mapping[str, Any]) -> bool:
        """Return whether it reports parts with these arguments."""
        return any(part.argument is None or bool(arguments.get(part.argument)) for part in self.parts.values())

    def list_keys(self, arguments: Mapping[str, Any], label_names: Sequence[str]) -> dict[str, list[str]]:
        """Return the reported keys of each result and of its parts. label_names: names of the classes."""
        keys = {result: [result] if result in self.results else [] for result in [*self.results, *self.parts]}
        for result, parts in self.parts.items() if self.asks_for_parts(arguments) else ():
            keys[result] += [f"{result}/{part}" for part in parts.name_parts(label_names)]
        return keys

    def fits(self, outputs: Mapping[str, str]) -> bool:
        """Return whether a task has the outputs that the metric compares. outputs: kinds of the outputs by name."""
        return all(outputs.get(name) == values.kind for name, values in self.columns.items())

    def check(
        self,
        arguments: Mapping[str, Any],
        *,
        place: str,
        num_labels: int | None,
        outputs: Mapping[str, str] | None,
        written: Mapping[str, str],
    ) -> list[str]:
        """Return all problems of using the metric for a task, one line each.

        Args:
            place: The config key of the entry. For the other arguments see `check_metrics`.
        """
        if outputs is not None and not self.fits(outputs) and self.fits({**outputs, **written}):
            return [
                f"{place}: {self.name} compares texts that the model writes, and without a length it writes none in an "
                "evaluation; set evaluate.generate.max_new_tokens, such as 64"
            ]
        if outputs is not None and not self.fits(outputs):
            fitting = ", ".join(other.name for other in SHIPPED.values() if other.fits(outputs)) or "none"
            return [f"{place}: {self.name} does not fit this task; those that do: {fitting}"]
        problems = check_arguments(self.function, arguments, place=f"{place}.args", given=self.columns)
        if self.package is not None and importlib.util.find_spec(self.package) is None:
            problems.append(f"{place}: {self.name} needs the package {self.package}: pip install {self.package}")
        if self.num_classes is not None and num_labels not in (None, self.num_classes):
            problems.append(
                f"{place}: {self.name} is for {self.num_classes} classes and this task has {num_labels}; "
                "instead set accuracy and {name: f1, args: {average: macro}}"
            )
        if self.has_average and not problems:
            return self._check_average(arguments, place=place, num_labels=num_labels)
        return problems

    def _check_average(self, arguments: Mapping[str, Any], *, place: str, num_labels: int | None) -> list[str]:
        """Return the problems of the arguments `average`, `labels` and `pos_label`."""
        average = arguments.get("average", inspect.signature(self.function).parameters["average"].default)
        if average not in (*get_args(Average), None):
            return [f"{place}.args.average: {average!r} is unknown; allowed: {', '.join(get_args(Average))}, null"]
        if average == "binary" and num_labels not in (None, 2):
            return [
                f"{place}: {self.name} with average: binary is for 2 classes and this task has {num_labels}; "
                f"set {{name: {self.name}, args: {{average: macro}}}} (or micro, weighted, null)"
            ]
        if average != "binary" and "pos_label" in arguments:
            return [
                f"{place}.args.pos_label: only average: binary scores one class, not {average or 'null'}; remove one"
            ]
        labels = arguments.get("labels")
        if not isinstance(labels, list | None):
            return [f"{place}.args.labels: {labels!r} is no list; set the class numbers, such as labels: [0, 1, 2]"]
        if num_labels is None:
            return []
        classes = {"labels": labels or [], "pos_label": [arguments.get("pos_label", 0)]}
        return [
            f"{place}.args.{argument}: {value!r} is not a class number; allowed: 0 to {num_labels - 1}, in the order "
            "of the label names, which is sorted unless data.label_names says another"
            for argument, values in classes.items()
            for value in values
            if value not in range(num_labels)
        ]


def find_metrics(package: str, folders: Iterable[str]) -> dict[str, ShippedMetric]:
    """Return all public functions that the modules of a package define, by metric name."""
    modules = [importlib.import_module(f"{package}.{module.name}") for module in pkgutil.iter_modules(folders)]
    return {metric.name: metric for module in modules for metric in _read(module)}


def _read(module: ModuleType) -> Iterator[ShippedMetric]:
    """Yield the metrics of one module in the order of their definition."""
    stem = module.__name__.rpartition(".")[2]
    prefix = f"{stem}/" if stem in BENCHMARKS else ""
    for name, function in vars(module).items():
        if inspect.isfunction(function) and function.__module__ == module.__name__ and not name.startswith("_"):
            yield _describe(prefix + name, function, package=getattr(module, "PACKAGE", None))


def _describe(name: str, function: Callable[..., Any], *, package: str | None) -> ShippedMetric:
    hints = get_type_hints(function, include_extras=True)
    returned = hints.pop("return")
    annotated = {parameter: get_args(hint)[1] for parameter, hint in hints.items() if get_origin(hint) is Annotated}
    columns = {parameter: values for parameter, values in annotated.items() if isinstance(values, Values)}
    parameters = inspect.signature(function).parameters.values()
    required = [parameter.name for parameter in parameters if parameter.default is parameter.empty]
    assert list(columns) == required, f"metric {name}: each of {required} needs a type of metrics/values.py"
    results = get_type_hints(returned, include_extras=True) if is_typeddict(returned) else {name: returned}
    smaller = [key for key, hint in results.items() if SMALLER_IS_BETTER in get_args(hint)]
    parts = {key: note for key, hint in results.items() for note in get_args(hint) if isinstance(note, PartsOf)}
    always = [key for key in results if key not in parts or parts[key].has_whole]
    return ShippedMetric(name, function, columns, always, smaller, package, parts)


SHIPPED = find_metrics(__name__, __path__)
