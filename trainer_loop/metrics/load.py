"""From the entries of `evaluate.metrics` to metrics that compute: check them, load them, name their results.

An entry is a name or `{name, args, key}`. A name is one of `SHIPPED`, the dotted path of a function or of an
`evaluate.Metric` class, the path of a metric script, or anything else that `evaluate.load` finds on the hub; whose code
from there runs here is for the user to say. `args` go to the function, or to the metric's `_compute`; `key` is the name
its result is reported under.

A function asks for outputs of the task's `predict` by the names of its parameters, `predictions`, `references`,
`probabilities`, ..., and returns a number or a dict of numbers.
"""

import difflib
import importlib
import inspect
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FunctionType
from typing import TYPE_CHECKING, Any

from trainer_loop.components import check_arguments, locate
from trainer_loop.errors import UserError, in_one_line
from trainer_loop.metrics.named_metric import COLUMNS, RESERVED, NamedMetric, describe_missing, name_results
from trainer_loop.runtime.host import expand_home
from trainer_loop.runtime.hub import describe_unreachable, hub_is_reachable

if TYPE_CHECKING:  # importing evaluate takes seconds
    import evaluate

Entry = str | Mapping[str, Any]

SHIPPED = {
    "accuracy": "trainer_loop.metrics.classification.Accuracy",
    "f1": "trainer_loop.metrics.classification.F1",
    "precision": "trainer_loop.metrics.classification.Precision",
    "recall": "trainer_loop.metrics.classification.Recall",
    "matthews_correlation": "trainer_loop.metrics.classification.MatthewsCorrelation",
    "glue/mrpc": "trainer_loop.metrics.classification.GlueMRPC",
    "perplexity": "trainer_loop.metrics.perplexity.Perplexity",
}

_AVERAGED = ("f1", "precision", "recall")  # those of SHIPPED that score each class and average
_AVERAGES = ("binary", "micro", "macro", "weighted", None)
_BENCHMARKS = ("glue", "super_glue", "indic_glue", "xtreme_s")  # their metrics need a data set: glue/cola, ...
_GIVEN = ("self", "predictions", "references")  # arguments of `_compute` that are not the user's


def check_metrics(
    entries: Sequence[Entry],
    *,
    num_labels: int | None,
    outputs: Sequence[str] | None = None,
    trust_remote_code: bool = False,
) -> list[str]:
    """All problems that can be found without the network, one line each.

    num_labels: classes of the task; None when it has none or they are not known. outputs: names of what its `predict`
    gives, likewise. trust_remote_code: code of anybody's on the hub may run, and not only that of evaluate's makers.
    """
    problems, known = [], []
    for entry in _parse(entries, num_labels=num_labels):
        try:
            problems += _argument_problems(entry, outputs) or _class_problems(entry, num_labels=num_labels)
            problems += [] if trust_remote_code else _foreign_code_problems(entry)
            known.append(entry)
        except UserError as error:
            problems += error.problems
    return problems + _key_problems(known)


def load_metrics(entries: Sequence[Entry], *, num_labels: int | None) -> list[NamedMetric]:
    """Load every metric; raise UserError with the problems of all entries.

    num_labels: classes of the task; with them, `average: null` reports every class and not only those that occur.
    """
    parsed = _parse(entries, num_labels=num_labels)
    no_hub = _why_no_hub() if any(_is_hub_name(entry.name) for entry in parsed) else None
    metrics, problems = [], []
    for entry in parsed:
        try:
            module = _load_module(entry, no_hub=no_hub)
        except UserError as error:
            problems += error.problems
            continue
        named = (entry.place, entry.name)
        if inspect.isfunction(module):
            metrics.append(NamedMetric(*named, module, entry.arguments, entry.key, _columns_of(module, entry)))
            continue
        problems += _module_problems(entry, module)
        if entry.per_class and entry.arguments.get("labels") is None:
            problems.append(f"{entry.place}.args: average: null needs the classes to report, such as labels: [0, 1, 2]")
        metrics.append(
            NamedMetric(*named, module.compute, entry.arguments, entry.key, COLUMNS, features=module.features)
        )
    if problems:
        raise UserError(problems)
    return metrics


def reported_keys(entries: Sequence[Entry], *, num_labels: int | None) -> list[str] | None:
    """The keys that the metrics will report.

    None when one of them is not shipped, so that only computing it tells, or when it reports one score a class and the
    classes are not known.
    """
    parsed = _parse(entries, num_labels=num_labels)
    if any(entry.name not in SHIPPED or (entry.per_class and not entry.arguments.get("labels")) for entry in parsed):
        return None
    return [name for entry in parsed for name in _expected_keys(entry)]


# ---- entries and names


@dataclass(frozen=True)
class _ParsedEntry:
    place: str
    name: str
    arguments: dict[str, Any]
    key: str | None

    @property
    def per_class(self) -> bool:
        """Whether it is a shipped metric that reports one score a class."""
        return self.name in _AVERAGED and self.arguments.get("average", "binary") is None


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


def _is_script(name: str) -> bool:
    """Whether the name is written as a path."""
    return name.endswith(".py") or name.startswith((".", "/", "~"))


def _is_dotted(name: str) -> bool:
    return not _is_script(name) and "." in name and all(part.isidentifier() for part in name.split("."))


def _is_hub_name(name: str) -> bool:
    return name not in SHIPPED and not _is_script(name) and not _is_dotted(name)


def _find_metric(entry: _ParsedEntry) -> "type[evaluate.Metric] | FunctionType":
    """The function or class of a shipped name or a dotted path; raise UserError when it is no metric."""
    import evaluate

    if entry.name in SHIPPED:
        module, _, name = SHIPPED[entry.name].rpartition(".")
        found: object = getattr(importlib.import_module(module), name)
    else:
        found = locate(entry.name, place=entry.place)
    if inspect.isfunction(found):
        if not _columns_of(found, entry):
            raise UserError(
                f"{entry.place}: {entry.name} has no parameter without a default; it must ask for predictions, "
                "references, or what else the task's `predict` gives"
            )
        return found
    if not (isinstance(found, type) and issubclass(found, evaluate.Metric)):
        raise UserError(
            f"{entry.place}: {entry.name} is {found!r}; a metric is a function, or a class derived from evaluate.Metric"
        )
    if check_arguments(found, {}, place=entry.place, given=()):
        raise UserError(f"{entry.place}: {entry.name}() needs arguments; give them defaults, since args go to _compute")
    return found


def _columns_of(function: Callable[..., Any], entry: _ParsedEntry) -> list[str]:
    """The outputs that a function asks for: its parameters without a default that `args` do not give."""
    return [
        parameter.name
        for parameter in inspect.signature(function).parameters.values()
        if parameter.default is parameter.empty
        and parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
        and parameter.name not in entry.arguments
    ]


# ---- checks


def _argument_problems(entry: _ParsedEntry, outputs: Sequence[str] | None) -> list[str]:
    """Whether the name can be a metric's (UserError if not), and which arguments and outputs do not fit it."""
    if entry.name in SHIPPED and not entry.arguments:
        return []
    if entry.name in SHIPPED or _is_dotted(entry.name):
        metric = _find_metric(entry)
        if inspect.isfunction(metric):
            columns = _columns_of(metric, entry)
            problems = check_arguments(metric, entry.arguments, place=f"{entry.place}.args", given=columns)
            missing = [name for name in columns if outputs is not None and name not in outputs]
            return problems + ([describe_missing(entry.place, entry.name, missing, outputs or ())] if missing else [])
        return check_arguments(metric._compute, entry.arguments, place=f"{entry.place}.args", given=_GIVEN)
    if _is_script(entry.name):
        _script_path(entry)
        return []
    close = difflib.get_close_matches(entry.name.lower(), SHIPPED, n=1, cutoff=0.8)
    if close:
        raise UserError(f"{entry.place}: no metric is called {entry.name!r}; did you mean {close[0]}?")
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", entry.name):
        raise UserError(f"{entry.place}: {entry.name!r} cannot be a metric's name; {_allowed()}")
    return []


def _foreign_code_problems(entry: _ParsedEntry) -> list[str]:
    """Of a name on the hub whose code is not that of evaluate's makers, and of one that means a script lying here."""
    if not _is_hub_name(entry.name):
        return []
    if Path(entry.name, f"{Path(entry.name).name}.py").is_file():
        return [f"{entry.place}: a folder {entry.name} lies here; for its script write ./{entry.name}"]
    owner, slash, _ = entry.name.partition("/")
    if not slash or owner in (*_BENCHMARKS, "evaluate-metric"):
        return []
    return [
        f"{entry.place}: {entry.name} is Python code of {owner} on the hub; model.trust_remote_code=true lets it run"
    ]


def _class_problems(entry: _ParsedEntry, *, num_labels: int | None) -> list[str]:
    """Where a shipped metric does not fit the classes of the task."""
    place, name = entry.place, entry.name
    if name == "perplexity" and num_labels is not None:
        return [f"{place}: perplexity is for language models and this task has {num_labels} classes; remove it"]
    if name == "glue/mrpc" and num_labels not in (None, 2):
        return [
            f"{place}: glue/mrpc is for 2 classes and this task has {num_labels}; "
            "instead set accuracy and {name: f1, args: {average: macro}}"
        ]
    if name not in _AVERAGED:
        return []

    average = entry.arguments.get("average", "binary")
    if average not in _AVERAGES:
        return [f"{place}.args.average: {average!r} is unknown; allowed: binary, micro, macro, weighted, null"]
    if average == "binary" and num_labels not in (None, 2):
        return [
            f"{place}: {name} with average: binary is for 2 classes and this task has {num_labels}; "
            f"set {{name: {name}, args: {{average: macro}}}} (or micro, weighted, null)"
        ]
    if average != "binary" and "pos_label" in entry.arguments:
        return [f"{place}.args.pos_label: only average: binary scores one class, not {average or 'null'}; remove one"]
    labels = entry.arguments.get("labels")
    if not isinstance(labels, list | None):
        return [f"{place}.args.labels: {labels!r} is no list; set the class numbers, such as labels: [0, 1, 2]"]
    if num_labels is None:
        return []
    classes = {"labels": labels or [], "pos_label": [entry.arguments.get("pos_label", 0)]}
    return [
        f"{place}.args.{argument}: {value!r} is not a class number; allowed: 0 to {num_labels - 1}, in the order of "
        "the label names, which is sorted unless data.label_names says another"
        for argument, values in classes.items()
        for value in values
        if value not in range(num_labels)
    ]


def _key_problems(entries: Sequence[_ParsedEntry]) -> list[str]:
    first: dict[str, _ParsedEntry] = {}
    problems = []
    for entry in entries:
        for name in _expected_keys(entry):
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


def _module_problems(entry: _ParsedEntry, module: "evaluate.Metric") -> list[str]:
    """What can be said of a metric only when it is loaded: its columns and, for a script, its arguments."""
    features = module.features if isinstance(module.features, list) else [module.features]
    if set(features[0]) != {"predictions", "references"}:
        columns = ", ".join(features[0])
        return [f"{entry.place}: {entry.name} works on {columns}; a task gives predictions and references"]
    return check_arguments(type(module)._compute, entry.arguments, place=f"{entry.place}.args", given=_GIVEN)


def _allowed() -> str:
    return f"allowed: {', '.join(SHIPPED)}, a dotted path, the path of a metric script, or a name on the hub"


# ---- results


def _expected_keys(entry: _ParsedEntry) -> list[str]:
    """What the entry will report; of a metric that is not shipped, its own name stands for all its results."""
    results = ["accuracy", "f1"] if entry.name == "glue/mrpc" else [entry.name]
    names = name_results(results, entry.key)
    labels = entry.arguments.get("labels")
    if entry.per_class and isinstance(labels, list) and len(labels) > 1:
        return [f"{name}/{label}" for name in names for label in labels]
    return names


# ---- loading


def _load_module(entry: _ParsedEntry, *, no_hub: str | None) -> "evaluate.Metric | FunctionType":
    """The function, or the metric, its rows kept in memory; raise UserError when there is none.

    no_hub: why the hub cannot be asked; a metric in evaluate's cache is still loaded then.
    """
    import evaluate

    if entry.name in SHIPPED or _is_dotted(entry.name):
        metric = _find_metric(entry)
        if inspect.isfunction(metric):
            return metric
        module: evaluate.Metric = metric()
        module.keep_in_memory = True
        return module
    path = str(_script_path(entry)) if _is_script(entry.name) else entry.name
    benchmark, _, data_set = entry.name.partition("/")
    path, config_name = (benchmark, data_set) if benchmark in _BENCHMARKS else (path, None)
    try:
        with _requests_forbidden(no_hub is not None):
            return evaluate.load(path, config_name, module_type="metric", keep_in_memory=True)
    except (OSError, ImportError, KeyError, TypeError, ValueError) as error:
        reason = no_hub if no_hub and isinstance(error, FileNotFoundError) else in_one_line(error)
        raise UserError(f"{entry.place}: metric {entry.name!r} cannot be loaded: {reason}; {_allowed()}") from error


def _script_path(entry: _ParsedEntry) -> Path:
    path = expand_home(entry.name, place=entry.place)
    script = path / f"{path.name}.py" if path.is_dir() else path
    if not script.is_file():
        raise UserError(f"{entry.place}: no metric script at {str(script)!r}; give the path of a .py file")
    return script


@contextmanager
def _requests_forbidden(forbidden: bool) -> Iterator[None]:
    """Make evaluate, which does not read HF_HUB_OFFLINE, answer at once from its cache."""
    from evaluate import config

    before = config.HF_EVALUATE_OFFLINE
    config.HF_EVALUATE_OFFLINE = before or forbidden
    try:
        yield
    finally:
        config.HF_EVALUATE_OFFLINE = before


def _why_no_hub() -> str | None:
    """Why the hub cannot be asked, found out within seconds; None when it can."""
    import evaluate

    if evaluate.config.HF_EVALUATE_OFFLINE:
        return "it is not in evaluate's cache, and HF_EVALUATE_OFFLINE is set"
    return None if hub_is_reachable() else f"it is not in evaluate's cache, and {describe_unreachable()}"
