"""From the entries of `evaluate.metrics` to metrics that compute: check them, load them, name their results.

An entry is a name or `{name, args, key}`. A name is one of `SHIPPED`, the dotted path of a function or of an
`evaluate.Metric` class, the path of a metric script, or anything else that `evaluate.load` finds on the hub; whose code
from there runs here is for the user to say. `args` go to the function, or to the metric's `_compute`; `key` is the name
its result is reported under.

A function asks for outputs of the task's `predict` by the names of its parameters, `predictions`, `references`,
`probabilities`, ..., and returns a number or a dict of numbers.
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
    """All problems that can be found without the network, one line each.

    Args:
        num_labels: classes of the task; None when it has none or they are not known.
        outputs: kinds of what the task's `predict` gives, by name; None when they are not known.
        written: kinds of what it gives besides where `evaluate.generate.max_new_tokens` is set.
        label_names: names of the classes, as far as they are known.
        trust_remote_code: code of anybody's on the hub may run, and not only that of evaluate's makers.
    """
    problems, known = Problems(), []
    for entry in _parse(entries, num_labels=num_labels):
        found = problems.collect("", _check_entry, entry, num_labels=num_labels, outputs=outputs, written=written)
        if found is not None:
            found += _check_label_names(entry, label_names or ())
            problems.lines += found if trust_remote_code else found + _foreign_code_problems(entry)
            known.append(entry)
    return problems.lines + _key_problems(known)


def load_metrics(
    entries: Sequence[Entry], *, num_labels: int | None, label_names: Sequence[str] | None = None
) -> list[NamedMetric]:
    """Load every metric; raise UserError with the problems of all entries.

    num_labels: classes of the task; with them, `average: null` reports every class and not only those that occur.
    label_names: their names, for shipped metrics that have a parameter of this name.
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
    """The keys that the metrics will report.

    None when one of them is not shipped, so that only computing it tells, or when it reports one score a class and the
    classes are not known. label_names: their names; empty where there are no classes.
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
        """What the name is; one that is nothing else may be known on the hub."""
        if self.name in SHIPPED:
            return "shipped"
        if self.name.endswith(".py") or self.name.startswith((".", "/", "~")):
            return "script"
        return "dotted" if "." in self.name and all(part.isidentifier() for part in self.name.split(".")) else "hub"

    @property
    def per_class(self) -> bool:
        """Whether it is a shipped metric that reports one score a class."""
        has_average = self.shipped is not None and self.shipped.has_average
        return has_average and self.arguments.get("average", "") is None


def _parse(entries: Sequence[Entry], *, num_labels: int | None) -> list[_ParsedEntry]:
    """The entries in one form. Scores a class get the numbers of all: else f1/1 is class 2 when class 1 is absent."""
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
    """Names that are numbers say nothing to a metric that reads names, such as one of entities."""
    metric = entry.shipped
    reads_tags = metric is not None and any(of.kind == "tags" for of in metric.columns.values()) and metric.reads_names
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
    """Whether the name can be a metric's (UserError if not), and whether arguments, outputs and classes fit it."""
    place = entry.place
    if entry.shipped is not None:
        return entry.shipped.check(
            entry.arguments, place=place, num_labels=num_labels, outputs=outputs, written=written
        )
    if entry.kind == "dotted":
        found = locate(entry.name, place=place)
        if not inspect.isfunction(found):
            return evaluate_modules.check_class(found, entry.arguments, name=entry.name, place=place)
        columns = _columns_of(found, entry)
        problems = check_arguments(found, entry.arguments, place=f"{place}.args", given=columns)
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
    """The outputs that a function asks for: its parameters without a default that `args` do not give."""
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
    """Of a name on the hub whose code is not that of evaluate's makers, and of one that means a script lying here."""
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
    """What the entry will report; of a metric that is not shipped, its own name stands for all its results."""
    given = entry.arguments.get("label_names")
    label_names = [str(name) for name in given] if isinstance(given, list) else label_names
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
    """Raise UserError when there is no such metric, and when only loading it tells that something does not fit it.

    no_hub: why the hub cannot be asked.
    """
    if entry.per_class and entry.arguments.get("labels") is None:
        raise UserError(f"{entry.place}.args: average: null needs the classes to report, such as labels: [0, 1, 2]")
    named = (entry.place, entry.name)
    if entry.shipped is not None:
        dtypes = {name: values.dtype for name, values in entry.shipped.columns.items()}
        return NamedMetric(*named, entry.shipped.function, entry.arguments, entry.key, dtypes)
    if entry.kind == "dotted":
        found = locate(entry.name, place=entry.place)
        if inspect.isfunction(found):
            columns = _columns_of(found, entry)
            return NamedMetric(*named, found, entry.arguments, entry.key, dict.fromkeys(columns))
        evaluate_modules.check_class(found, entry.arguments, name=entry.name, place=entry.place)
        module = cast("type[evaluate.Metric]", found)()
        module.keep_in_memory = True
    else:
        script = evaluate_modules.find_script(entry.name, place=entry.place) if entry.kind == "script" else None
        try:
            module = evaluate_modules.load_module(entry.name, script=script, no_hub=no_hub)
        except UserError as error:
            told = f"{entry.place}: metric {entry.name!r} cannot be loaded: {error}; {_ALLOWED}"
            raise UserError(told) from error
    refuse(evaluate_modules.check_module(module, entry.arguments, name=entry.name, place=entry.place))
    return NamedMetric(*named, module.compute, entry.arguments, entry.key, evaluate_modules.read_columns(module))
