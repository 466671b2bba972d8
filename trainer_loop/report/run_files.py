"""Reads a run directory for a report. What is missing is empty, also in a directory of an older version."""

import contextlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from trainer_loop.config.named_sets import name_sets, parse_set
from trainer_loop.config.schema import KEYS, SECTIONS
from trainer_loop.config.secrets import mask_secrets
from trainer_loop.config.yaml_core import compose, plain
from trainer_loop.errors import UserError, in_one_line, refuse
from trainer_loop.metrics.load import check_metrics, load_metrics
from trainer_loop.metrics.named_metric import NamedMetric
from trainer_loop.metrics.shipped import SHIPPED
from trainer_loop.record.export import ExportRecord
from trainer_loop.record.hub_push import mask_config
from trainer_loop.record.logs import read_metrics
from trainer_loop.record.report_facts import read_facts
from trainer_loop.record.run_dir import SEARCH_PAGE, RunDir, read_json_object
from trainer_loop.record.run_lock import read_status
from trainer_loop.report.intervals import Interval, find_intervals
from trainer_loop.report.rows import ScoredRows, read_rows
from trainer_loop.runtime.plain_json import is_count, is_number
from trainer_loop.tasks.find import list_tasks, load_task
from trainer_loop.tasks.task import Task

_T = TypeVar("_T")
_PROBLEM = re.compile(r"^\S+ (warning|error): (.*)")  # a line of train.log


@dataclass(frozen=True)
class RunFiles:
    """The content of the files of a run. No code that a config names is imported."""

    run_dir: RunDir
    config_text: str
    config: Mapping[str, Any]  # every key, by its dotted name, as in config.yaml
    environment: Mapping[str, Any]
    status: Mapping[str, Any]
    metrics: Sequence[Mapping[str, Any]]  # the rows of metrics.jsonl
    facts: Mapping[str, Any]  # of report.json
    export: ExportRecord | None
    task: str  # name or dotted path
    task_class: type[Task] | None  # of a shipped task
    sets: Mapping[str, ScoredRows]  # rows of the scored sets, by names such as `test.hard`
    operators: str  # the table of log.profile
    warnings: Sequence[str]
    error: str  # the last one, which ended the run
    notes: Sequence[str]  # about files that could not be read

    @property
    def totals(self) -> Mapping[str, Any]:
        """The numbers of the last row of a finished run; empty before the end."""
        row: Mapping[str, Any] = next((row for row in reversed(self.metrics) if "train_seconds" in row), {})
        return {name: value for name, value in row.items() if is_number(value)}

    def name_parts(self, split: str) -> list[str]:
        """Return the names of the sets of a split; empty if it has only one."""
        sets = {*name_sets(split, self.config.get(f"data.{split}")), *self.facts.get("sets", {})}
        return [part for of, part in map(parse_set, sorted(sets)) if part and of == split]

    @property
    def evaluated_step(self) -> int:
        """The step of the weights that the report describes: exported, or to be exported if the run ended now."""
        steps = [of_set["step"] or 0 for of_set in self.facts.get("sets", {}).values()]
        return max([*steps, 0 if self.export is None else self.export.step], default=0)

    @property
    def metrics_title(self) -> str:
        """The title of `set_metrics`. A running run may have exported other weights before."""
        is_exported = self.export is not None and self.evaluated_step == self.export.step
        return "Metrics of the exported weights" if is_exported else "Metrics so far"

    def list_metrics(self, split: str) -> dict[str, dict[str, float]]:
        """Return the metrics on the sets of a split, by names such as `validation.hard`.

        They are of the exported weights, or of those to be exported if the run ended now; if these are unknown, of the
        last evaluation.
        """
        rows = [row for row in self.metrics if any(name.startswith(f"{split}/") for name in row)]
        of_step = [row for row in rows if row["step"] == self.evaluated_step]
        last = (of_step if split == "validation" and of_step else rows)[-1:]
        parts = self.name_parts(split)
        metrics: dict[str, dict[str, float]] = {}
        for name, value in (pair for row in last for pair in row.items() if pair[0].startswith(f"{split}/")):
            metric = name.removeprefix(f"{split}/")
            part = next((part for part in parts if metric.startswith(f"{part}/")), "")
            if not metric.endswith("samples"):
                of_set = metrics.setdefault(f"{split}.{part}" if part else split, {})
                of_set[metric.removeprefix(f"{part}/") if part else metric] = value
        return metrics

    @property
    def set_metrics(self) -> dict[str, dict[str, float]]:
        """The metrics of all sets, by set; test sets first."""
        return {**self.list_metrics("test"), **self.list_metrics("validation")}

    def load_metrics(self, rows: ScoredRows) -> list[NamedMetric]:
        """Load the shipped metrics of the run that can be computed from its rows."""
        declared = () if self.task_class is None else self.task_class.metrics
        entries = self.facts.get("metrics") or self.config.get("evaluate.metrics") or list(declared)
        labels: dict[str, Any] = {"num_labels": len(rows.names) or None, "label_names": rows.names or None}
        loaded: list[NamedMetric] = []
        for entry in filter(_is_shipped, entries if isinstance(entries, list) else []):
            with contextlib.suppress(UserError):  # an argument that this version does not have
                refuse(check_metrics([entry], **labels))
                loaded += load_metrics([entry], **labels)
        return loaded

    def without_rows(self) -> "RunFiles":
        """Return a copy without texts of rows, folders and secrets, for readers who may not see the data.

        Raises:
            ValueError: config.yaml is damaged.
        """
        text = mask_config(self.config_text).decode() if self.config_text else ""
        sets = {name: {**of_set, "worst": []} for name, of_set in self.facts.get("sets", {}).items()}
        plan = mask_secrets(self.facts.get("plan", []))
        return replace(
            self,
            config_text=text,
            config=_flatten(_parse(text)),
            environment=mask_secrets(self.environment),
            facts={**self.facts, "sets": sets, "plan": plan} if self.facts else {},
            sets={name: rows.without_folders() for name, rows in self.sets.items()},
            warnings=[],  # warnings and errors may quote rows
            error="",
            notes=[],
        )

    def find_intervals(self) -> dict[str, dict[str, Interval]]:
        """Return the intervals of the metrics of each set, by set and by metric."""
        value = self.config.get("seed")
        seed = value if is_count(value) else 0
        return {
            name: find_intervals(self.load_metrics(rows), rows.columns, seed=seed) for name, rows in self.sets.items()
        }


def read_run(root: Path) -> RunFiles:
    """Read a run directory. Raises UserError if this is not the directory of a run."""
    run_dir, notes = RunDir(root), list[str]()
    if not run_dir.exists() or not (run_dir.config.is_file() or run_dir.metrics.is_file()):
        reason = "holds neither config.yaml nor metrics.jsonl" if run_dir.exists() else "is no directory"
        if (root / SEARCH_PAGE).is_file():
            reason = f"is of a search, whose page is {SEARCH_PAGE}"
        raise UserError(f"{root} {reason}; name the run_dir of a run, such as runs/imdb")

    def read(path: Path, how: Callable[[Path], _T], otherwise: _T) -> _T:
        try:
            return how(path)
        except FileNotFoundError:
            return otherwise
        except (OSError, ValueError, LookupError, TypeError, AttributeError, OverflowError) as error:
            notes.append(f"{path} is left out: {in_one_line(error)}")
            return otherwise

    text, log = (read(path, _read_text, "") for path in (run_dir.config, run_dir.log))
    config = _flatten(_parse(text))
    facts: dict[str, Any] = read(run_dir.report_facts, read_facts, {})
    export = read(run_dir.model, ExportRecord.read, None)
    problems = [match.groups() for match in map(_PROBLEM.match, log.splitlines()) if match]
    task = str(facts.get("task") or config.get("task.name") or "")
    task_class = load_task(task) if task in list_tasks() else None
    kinds = facts.get("outputs") or (task_class and task_class.outputs) or {}
    names = facts.get("label_names") or (None if export is None else _read_names(export))
    run = RunFiles(
        run_dir=run_dir,
        config_text=text,
        config=config,
        environment=read(run_dir.environment, _read_environment, {}),
        status=read(run_dir.status, lambda _: read_status(run_dir), {}),
        metrics=read(run_dir.metrics, read_metrics, []),
        facts=facts,
        export=export,
        task=task,
        task_class=task_class,
        sets={},
        operators=read(run_dir.profile / "operators.txt", _read_text, ""),
        warnings=list(dict.fromkeys(text for kind, text in problems if kind == "warning")),
        error=next((text for kind, text in reversed(problems) if kind == "error"), ""),
        notes=notes,
    )
    metrics = run.set_metrics
    # Other predictions are of weights that a resumed run has not reached yet, or of an earlier evaluation, if the last
    # ones could not be written. Without facts, the step of the predictions of validation sets is unknown.
    scored = {row["step"] for row in run.metrics if any(name.startswith("validation/") for name in row)}
    steps = {name: of_set["step"] for name, of_set in facts.get("sets", {}).items()}
    last = (None, run.evaluated_step) if run.evaluated_step in scored else steps.values()
    shown = [name for name, step in steps.items() if step in last] if facts else run.list_metrics("test")
    sets = {
        name: read(path, partial(read_rows, kinds=kinds, names=names, count=metrics.get(name, {}).get("rows")), None)
        for name, path in (run_dir.list_predictions() if kinds else {}).items()
        if name in shown
    }
    return replace(run, sets={name: rows for name, rows in sets.items() if rows is not None})


def _read_text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace")


def _is_shipped(entry: object) -> bool:
    """Return whether an entry of `evaluate.metrics` is a shipped metric."""
    if isinstance(entry, str):
        return entry in SHIPPED
    kinds = {"name": str, "args": dict | None, "key": str | None}
    if not isinstance(entry, dict) or not all(isinstance(entry.get(name), kind) for name, kind in kinds.items()):
        return False
    return entry["name"] in SHIPPED


def _read_names(export: ExportRecord) -> list[str] | None:
    names = export.plan.get("data.label_names")
    return names if isinstance(names, list) and all(isinstance(name, str) for name in names) else None


def _read_environment(path: Path) -> dict[str, Any]:
    values = read_json_object(path)
    for name, kind in (("command", list), ("versions", dict)):
        if not isinstance(values.get(name, kind()), kind):
            raise ValueError(f"{name} is {values[name]!r}")
    return values


def _parse(text: str) -> Any:
    """Parse the keys as they are written: references to environment variables are not resolved."""
    node, _ = compose(text)
    return {} if node is None else plain(node)


def _flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Return every key of the config by its dotted name; mappings with free keys stay whole."""
    flat: dict[str, Any] = {}
    for name, value in tree.items() if isinstance(tree, dict) else ():
        path = f"{prefix}{name}"
        if path in SECTIONS and path not in KEYS:
            flat |= _flatten(value, f"{path}.")
        else:
            flat[path] = value
    return flat
