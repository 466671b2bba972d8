"""Checks and loads the metrics of `evaluate.metrics`, and names their results.

An entry is a name or `{name, args, key}`. A name is one of `SHIPPED`, the dotted path of a function or of an
`evaluate.Metric` class, the path of a metric script, or a metric that `evaluate.load` finds on the hub. Code from the
hub runs only if the user allows it. `args` are passed to the function, or to the metric's `_compute`. `key` is the name
under which the result is reported.

The parameters of a function name outputs of the task's `predict`: `predictions`, `references`, `probabilities`, ....
It returns a number or a dict of numbers.
"""

import difflib
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, cast

from trainer_loop.components import check_arguments, locate
from trainer_loop.errors import Problems, UserError, refuse
from trainer_loop.metrics import evaluate_modules
from trainer_loop.metrics.named_metric import RESERVED, NamedMetric, describe_missing, name_results
from trainer_loop.metrics.shipped import BENCHMARKS, SHIPPED, ShippedMetric

if TYPE_CHECKING:
    import evaluate

Entry = str | Mapping[str, Any]

_ALLOWED = f"allowed: {', '.join(SHIPPED)}, a dotted path, the path of a metric script, or a name on the hub"


def check_metrics(
    entries: Sequence[Entry],
    *,
    num_labels: int | None,
    outputs: Mapping[str, str] | None = None,
    written: Mapping[str, str] = MappingProxyType({}),
    label_names: Sequence[str] | None = None,
    trust_remote_code: bool = False,
) -> list[str]:
    """Return all problems that can be found without the network, one line each.

    Args:
        num_labels: Number of classes of the task; None if it has none or they are unknown.
        outputs: Kinds of the outputs of the task's `predict`, by name; None if they are unknown.
        written: Kinds of the additional outputs if `evaluate.generate.max_new_tokens` is set.
        label_names: Names of the classes, if they are known.
        trust_remote_code: Code of any hub user may run. Without it, only metrics of the evaluate library may run.
    """
    problems, checked = Problems(), []
    for entry in _parse(entries, num_labels=num_labels):
        lines = problems.collect("", _check_entry, entry, num_labels=num_labels, outputs=outputs, written=written)
        if lines is not None:
            lines += _check_label_names(entry, label_names or ())
            problems.lines += lines if trust_remote_code else lines + _foreign_code_problems(entry)
            checked.append(entry)
    return problems.lines + _key_problems(checked)


def load_metrics(
    entries: Sequence[Entry], *, num_labels: int | None, label_names: Sequence[str] | None = None
) -> list[NamedMetric]:
    """Load all metrics. Raises UserError with the problems of all entries.

    Args:
        num_labels: Number of classes of the task. With it, `average: null` reports all classes, not only those that
            occur.
        label_names: Names of the classes, for shipped metrics that have a parameter of this name.
    """
    parsed, problems = _parse(entries, num_labels=num_labels), Problems()
    for entry in parsed:
        if entry.shipped is not None and entry.shipped.reads_names:
            entry.arguments.setdefault("label_names", label_names)
    no_hub = evaluate_modules.why_no_hub() if any(entry.kind == "hub" for entry in parsed) else None
    metrics = [problems.collect("", _load, entry, no_hub=no_hub) for entry in parsed]
    problems.refuse()
    return [metric for metric in metrics if metric is not None]


def reported_keys(
    entries: Sequence[Entry], *, num_labels: int | None, label_names: Sequence[str] | None = None
) -> list[str] | None:
    """Return the keys that the metrics will report, or None if they are not known before the metrics are computed.

    They are unknown for metrics that are not shipped, and for scores per class if the classes are unknown.

    Args:
        label_names: Names of the classes; empty if the task has no classes.
    """
    parsed = _parse(entries, num_labels=num_labels)
    if any(entry.shipped is None or (entry.per_class and not entry.arguments.get("labels")) for entry in parsed):
        return None
    if label_names is None and any(entry.shipped and entry.shipped.asks_for_parts(entry.arguments) for entry in parsed):
        return None
    return [name for entry in parsed for name in _expected_keys(entry, label_names or ())]


# ---- entries and names


@dataclass(frozen=True)
class _ParsedEntry:
    place: str
    name: str
    arguments: dict[str, Any]
    key: str | None

    @property
    def shipped(self) -> ShippedMetric | None:
        return SHIPPED.get(self.name)

    @property
    def kind(self) -> Literal["shipped", "script", "dotted", "hub"]:
        """What the name refers to. Every name that is nothing else is looked up on the hub."""
        if self.name in SHIPPED:
            return "shipped"
        if self.name.endswith(".py") or self.name.startswith((".", "/", "~")):
            return "script"
        return "dotted" if "." in self.name and all(part.isidentifier() for part in self.name.split(".")) else "hub"

    @property
    def per_class(self) -> bool:
        """Whether this is a shipped metric that reports one score for each class."""
        has_average = self.shipped is not None and self.shipped.has_average
        return has_average and self.arguments.get("average", "") is None


def _parse(entries: Sequence[Entry], *, num_labels: int | None) -> list[_ParsedEntry]:
    """Parse the entries. Scores per class get all class ids: else f1/1 would be class 2 if class 1 is absent."""
    parsed = []
    for index, fields in enumerate(entries):
        if isinstance(fields, str):
            fields = {"name": fields}
        arguments = dict(fields.get("args") or {})
        entry = _ParsedEntry(f"evaluate.metrics[{index}]", fields["name"], arguments, fields.get("key"))
        if entry.per_class and arguments.get("labels") is None and num_labels is not None:
            arguments["labels"] = list(range(num_labels))
        parsed.append(entry)
    return parsed


def _check_label_names(entry: _ParsedEntry, names: Sequence[str]) -> list[str]:
    """Report tag names that are numbers, for a metric that needs names such as B-PER."""
    metric = entry.shipped
    reads_tags = metric is not None and metric.reads_names and any(v.kind == "tags" for v in metric.columns.values())
    if not reads_tags or "label_names" in entry.arguments or not names or not all(map(str.isdecimal, names)):
        return []
    return [
        f"{entry.place}: {entry.name} reads the names of the tags, and these are numbers ({', '.join(names[:3])}, ...)"
        "; name them, data.label_names=[O, B-PER, I-PER]"
    ]


# ---- checks


def _check_entry(
    entry: _ParsedEntry, *, num_labels: int | None, outputs: Mapping[str, str] | None, written: Mapping[str, str]
) -> list[str]:
    """Return problems of arguments, outputs and classes. Raises UserError if the name cannot be that of a metric."""
    place = entry.place
    if entry.shipped is not None:
        return entry.shipped.check(
            entry.arguments, place=place, num_labels=num_labels, outputs=outputs, written=written
        )
    if entry.kind == "dotted":
        component = locate(entry.name, place=place)
        if not inspect.isfunction(component):
            return evaluate_modules.check_class(component, entry.arguments, name=entry.name, place=place)
        columns = _columns_of(component, entry)
        problems = check_arguments(component, entry.arguments, place=f"{place}.args", given=columns)
        missing = [name for name in columns if outputs is not None and name not in outputs]
        return problems + ([describe_missing(place, entry.name, missing, outputs or ())] if missing else [])
    if entry.kind == "script":
        evaluate_modules.find_script(entry.name, place=place)
        return []
    close = difflib.get_close_matches(entry.name.lower(), SHIPPED, n=1, cutoff=0.8)
    if close:
        raise UserError(f"{place}: no metric is called {entry.name!r}; did you mean {close[0]}?")
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", entry.name):
        raise UserError(f"{place}: {entry.name!r} cannot be a metric's name; {_ALLOWED}")
    return []


def _columns_of(function: Callable[..., Any], entry: _ParsedEntry) -> list[str]:
    """Return the outputs that a function needs: its parameters without a default and without a value in `args`."""
    columns = [
        parameter.name
        for parameter in inspect.signature(function).parameters.values()
        if parameter.default is parameter.empty
        and parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
        and parameter.name not in entry.arguments
    ]
    if not columns:
        raise UserError(
            f"{entry.place}: {entry.name} has no parameter without a default; it must ask for predictions, "
            "references, or what else the task's `predict` gives"
        )
    return columns


def _foreign_code_problems(entry: _ParsedEntry) -> list[str]:
    """Report code of other hub users, and names that evaluate would take for a local script."""
    place, name = entry.place, entry.name
    if entry.kind != "hub":
        return []
    if Path(name, f"{Path(name).name}.py").is_file():
        return [f"{place}: a folder {name} lies here; for its script write ./{name}"]
    owner, slash, _ = name.partition("/")
    if not slash or owner in (*BENCHMARKS, "evaluate-metric"):
        return []
    return [f"{place}: {name} is Python code of {owner} on the hub; model.trust_remote_code=true lets it run"]


def _key_problems(entries: Sequence[_ParsedEntry]) -> list[str]:
    first: dict[str, _ParsedEntry] = {}
    problems = []
    for entry in entries:
        for name in _expected_keys(entry, ()):
            if name in RESERVED:
                problems.append(f"{entry.place}: {name} is a key of the loop itself; choose another key")
            elif name in first:
                other = first[name]
                problems.append(
                    f"{entry.place}: {entry.name} reports {name}, as {other.name} of {other.place} does; "
                    f"give one of them a key: {{name: {entry.name}, key: another_name}}"
                )
            first.setdefault(name, entry)
    return problems


def _expected_keys(entry: _ParsedEntry, label_names: Sequence[str]) -> list[str]:
    """Return the keys that an entry will report. For a metric that is not shipped this is its name alone."""
    names_argument = entry.arguments.get("label_names")
    label_names = [str(name) for name in names_argument] if isinstance(names_argument, list) else label_names
    results = (
        {entry.name: [entry.name]} if entry.shipped is None else entry.shipped.list_keys(entry.arguments, label_names)
    )
    renamed = dict(zip(results, name_results(list(results), entry.key), strict=True))
    names = [renamed[result] + key.removeprefix(result) for result, keys in results.items() for key in keys]
    labels = entry.arguments.get("labels")
    if entry.per_class and isinstance(labels, list) and len(labels) > 1:
        return [f"{name}/{label}" for name in names for label in labels]
    return names


# ---- loading


def _load(entry: _ParsedEntry, *, no_hub: str | None) -> NamedMetric:
    """Load a metric. Raises UserError if it cannot be loaded, or does not fit the task.

    Args:
        no_hub: Why the hub cannot be reached, or None.
    """
    if entry.per_class and entry.arguments.get("labels") is None:
        raise UserError(f"{entry.place}.args: average: null needs the classes to report, such as labels: [0, 1, 2]")
    source = (entry.place, entry.name)
    if entry.shipped is not None:
        dtypes = {name: values.dtype for name, values in entry.shipped.columns.items()}
        return NamedMetric(*source, entry.shipped.function, entry.arguments, entry.key, dtypes)
    if entry.kind == "dotted":
        component = locate(entry.name, place=entry.place)
        if inspect.isfunction(component):
            columns = _columns_of(component, entry)
            return NamedMetric(*source, component, entry.arguments, entry.key, dict.fromkeys(columns))
        evaluate_modules.check_class(component, entry.arguments, name=entry.name, place=entry.place)
        module = cast("type[evaluate.Metric]", component)()
        module.keep_in_memory = True
    else:
        script = evaluate_modules.find_script(entry.name, place=entry.place) if entry.kind == "script" else None
        try:
            module = evaluate_modules.load_module(entry.name, script=script, no_hub=no_hub)
        except UserError as error:
            raise UserError(f"{entry.place}: metric {entry.name!r} cannot be loaded: {error}; {_ALLOWED}") from error
    refuse(evaluate_modules.check_module(module, entry.arguments, name=entry.name, place=entry.place))
    return NamedMetric(*source, module.compute, entry.arguments, entry.key, evaluate_modules.read_columns(module))
