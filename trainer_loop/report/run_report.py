"""report.html of a run directory: what the run was, how it progressed, and what its model gets wrong."""

import itertools
import shlex
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from trainer_loop.config.schema import KEYS
from trainer_loop.config.secrets import find_secret
from trainer_loop.data.wording import plural
from trainer_loop.errors import UserError
from trainer_loop.record.checkpoint_files import list_checkpoints, named_step
from trainer_loop.record.run_dir import write_text
from trainer_loop.report.charts import draw_bars
from trainer_loop.report.curves import draw_curves
from trainer_loop.report.intervals import LEVEL, Interval, Intervals
from trainer_loop.report.mistakes import describe_mistakes
from trainer_loop.report.page import (
    Block,
    Cell,
    Charts,
    Code,
    Facts,
    Lines,
    Row,
    Section,
    Table,
    code,
    number,
    write_page,
)
from trainer_loop.report.run_files import RunFiles, read_run
from trainer_loop.report.wording import spell_bytes, spell_interval, spell_metric, spell_seconds, spell_value, title_of

_MOST_LABELS = 30  # of the table of the data; a longer one is folded
_MOST_WARNINGS = 50
_ENDINGS = {None: "running, or killed", "error": "ended by an error"}


def write_report(root: Path, intervals: Intervals | None = None) -> Path:
    """Write report.html into a run directory; returns its path.

    Args:
        intervals: Of the metrics; None: they are computed.

    Raises:
        UserError: This is not the directory of a run.
        OSError: The file cannot be written.
    """
    run = read_run(root)
    path = run.run_dir.report
    write_text(path, make_report(run, name=str(root), intervals=intervals), shared=True)
    return path


def make_report_to_share(root: Path, intervals: Intervals | None = None) -> str:
    """Return the page without texts of rows, for readers who may not see the data. See `write_report`.

    Raises:
        UserError: This is not the directory of a run, or the page would hold a secret.
        ValueError: config.yaml is damaged.
    """
    page = make_report(read_run(root).without_rows(), name=root.resolve().name, intervals=intervals)
    if (secret := find_secret(page)) is not None:
        raise UserError(f"it would hold {secret}")
    return page


def make_report(run: RunFiles, *, name: str, intervals: Intervals | None = None) -> str:
    """Return the page. name: of the run. intervals: of its metrics; None: they are computed."""
    intervals = run.find_intervals() if intervals is None else intervals
    metrics = run.set_metrics
    worst = {name: of_set.get("worst", []) for name, of_set in run.facts.get("sets", {}).items()}
    sections = [
        Section("Summary", list(_summarise(run, metrics, intervals))),
        Section("Curves", list(_draw(run))),
        Section("Metrics", list(_tabulate_metrics(run.metrics_title, metrics, intervals))),
        *(
            Section(f"Mistakes: {title_of(name)}", describe_mistakes(run.sets[name], worst.get(name, [])))
            for name in sorted(run.sets, key=lambda name: (not name.startswith("test"), name))
        ),
        Section("Data", list(_describe_data(run.facts.get("data", {})))),
        Section("Run", list(_describe_run(run))),
        Section("Config", list(_describe_config(run))),
        Section("Warnings", [Lines(run.warnings[-_MOST_WARNINGS:])] if run.warnings else []),
        Section("Left out of this report", [Lines(run.notes)] if run.notes else []),
    ]
    return write_page(run.run_dir.root.resolve().name, sections, subtitle=f"Report of the run {name}")


def _summarise(run: RunFiles, metrics: Mapping[str, Any], intervals: Mapping[str, Any]) -> Iterator[Block]:
    saved = map(named_step, list_checkpoints(run.run_dir))
    steps = [*(row["step"] for row in run.metrics), *(step for step in saved if step is not None)]
    starts = run.facts.get("starts", [])
    ended = (starts[-1]["ended"] if starts else None) or run.status.get("ended")
    planned = None if run.export is None else run.export.num_steps
    values = {
        "status": _ENDINGS.get(ended, ended),
        "started": _spell_time(starts[0]["time"]) if starts else None,
        "task": run.task.replace("_", " "),
        "model": run.config.get("model.name") or run.config.get("model.type"),
        "steps": f"{max(steps):,}" + (f" of {planned:,}" if planned is not None and planned > max(steps) else "")
        if steps
        else None,
        "step of the exported weights": None if run.export is None else f"{run.export.step:,}",
    }
    for name in sorted(metrics, key=lambda name: not name.startswith("test")):
        for metric, value in metrics[name].items():
            if metric != "rows" and "/" not in metric and len(values) < 12:
                interval = _match(value, intervals.get(name, {}).get(metric))
                spread = "" if interval is None else f" ({spell_interval(interval.low, interval.high)})"
                values[f"{title_of(name)} {metric}"] = spell_metric(value) + spread
    if "train_seconds" in run.totals:
        values["time of training"] = spell_seconds(run.totals["train_seconds"])
    if "peak_memory_bytes" in run.totals:
        values["peak memory"] = spell_bytes(run.totals["peak_memory_bytes"])
    yield Facts({name: str(value) for name, value in values.items() if value})
    if ended in ("diverged", "error") and run.error:
        yield Lines([run.error], "Ended by")


def _spell_time(iso: str) -> str:
    return iso.replace("T", " at ")


def _draw(run: RunFiles) -> Iterator[Block]:
    marks = [start["step"] for start in run.facts.get("starts", [])[1:]]
    if charts := draw_curves(run.metrics, sets=run.name_parts("validation"), marks=marks):
        yield Charts(charts)
    if marks:
        starts = run.facts["starts"]
        lines = [
            f"step {after['step']:,}: resumed on {_spell_time(after['time'])}, after the run was "
            f"{before['ended'] or 'killed'}"
            for before, after in itertools.pairwise(starts)
        ]
        yield Lines(lines, "Starts")


def _tabulate_metrics(
    title: str, metrics: Mapping[str, Mapping[str, Any]], intervals: Mapping[str, Mapping[str, Interval]]
) -> Iterator[Block]:
    rows: list[Row] = []
    for name, of_set in metrics.items():
        for metric, value in of_set.items():
            interval = _match(value, intervals.get(name, {}).get(metric))
            spread = None if interval is None else number(spell_interval(interval.low, interval.high))
            if metric != "rows":
                rows.append((title_of(name), metric, number(spell_metric(value)), spread, of_set.get("rows")))
    if rows:
        columns = zip(("set", "metric", "value", f"{LEVEL:.0%} interval", "rows"), *rows, strict=True)
        heads, *shown = _without_empty(columns)
        note = "Intervals are percentiles of the metric over rows drawn anew with replacement (bootstrap)."
        yield Table(title, heads, shown, note=note if any(row[3] is not None for row in rows) else "")


def _without_empty(columns: Iterable[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    """Return the rows of a table of columns, without columns that are empty below their heads."""
    return list(zip(*(column for column in columns if any(cell is not None for cell in column[1:])), strict=True))


def _match(value: Any, interval: Interval | None) -> Interval | None:
    return interval if interval is not None and interval.is_of(value) else None


def _describe_data(data: Mapping[str, Mapping[str, Any]]) -> Iterator[Block]:
    if not data:
        return
    lengths = {name: facts["lengths"] for name, facts in data.items() if facts.get("lengths")}
    heads = ("rows", "texts", "median tokens", "95 % within", "longest", "cut short", "repeated", "also in train")
    rows: list[Row] = []
    for name, facts in data.items():
        of_lengths = [lengths.get(name, {}).get(key) for key in ("median", "p95", "longest")]
        counts = [facts["truncated"] if name in lengths else None, facts.get("repeated"), facts.get("in_train")]
        shares = [None if one is None else number(f"{one:,} ({one / max(facts['texts'], 1):.1%})") for one in counts]
        rows.append((title_of(name), facts["rows"], facts["texts"] if lengths else None, *of_lengths, *shares))
    shown_heads, *shown_rows = _without_empty(zip(("split", *heads), *rows, strict=True))
    yield Table("Rows", shown_heads, shown_rows)
    labelled = {name: facts for name, facts in data.items() if facts.get("labels")}
    if labelled:
        labels = list(next(iter(labelled.values()))["labels"])
        yield Table(
            "Labels",
            ("label", *map(title_of, labelled)),
            [(label, *(_share_of_label(facts, label) for facts in labelled.values())) for label in labels],
            folded=len(labels) > _MOST_LABELS,
        )
    if lengths:
        bars = [(f"Tokens of a row: {title_of(name)}", of["counts"], of["edges"]) for name, of in lengths.items()]
        yield Charts([draw_bars(*of_split, "tokens") for of_split in bars])


def _share_of_label(facts: Mapping[str, Any], label: str) -> Cell:
    count, total = facts["labels"].get(label, 0), max(facts["labelled"], 1)
    return number(f"{count:,} ({count / total:.1%})", share=count / total)


def _describe_run(run: RunFiles) -> Iterator[Block]:
    if plan := run.facts.get("plan"):
        yield Lines(plan, "Plan")
    seconds = dict(run.facts.get("seconds", {}))
    if "train_seconds" in run.totals:
        seconds["training steps"] = run.totals["train_seconds"]
    if seconds:
        longest = max(max(seconds.values()), 1e-9)
        yield Table(
            "Time by part",
            ("part", "time"),
            [(part, number(spell_seconds(value), share=value / longest)) for part, value in seconds.items()],
        )
    counts = {name: run.totals[name] for name in ("rows_seen", "tokens_seen", "targets_seen") if name in run.totals}
    totals = {name.replace("_", " "): f"{value:,}" for name, value in counts.items()}
    if "peak_memory_bytes" in run.totals:
        totals["peak memory of process 0"] = spell_bytes(run.totals["peak_memory_bytes"])
    if totals:
        yield Facts(totals)
    if run.operators:
        yield Code("Operators that took most of the time of the traced steps (log.profile)", run.operators)
    links = {name: run.run_dir.checkpoints / name for name in ("latest", "best")}
    marked = {name: link.resolve().name for name, link in links.items()}
    checkpoints: list[Row] = [
        (
            path.name,
            number(_spell_size(path)),
            ", ".join(name for name, target in marked.items() if target == path.name),
        )
        for path in list_checkpoints(run.run_dir)
    ]
    if checkpoints:
        yield Table("Checkpoints", ("checkpoint", "size", "marks"), checkpoints)
    if environment := dict(run.environment):
        command = environment.pop("command", [])
        versions = environment.pop("versions", {})
        values = {"command": shlex.join(map(str, command)), **environment, **versions}
        yield Table(
            "Environment",
            ("what", "value"),
            [(name.replace("_", " "), str(value)) for name, value in values.items() if value],
        )


def _spell_size(folder: Path) -> str:
    """Return the size of the files of a folder; empty if a running run removes the folder at the same time."""
    try:
        return spell_bytes(sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()))
    except FileNotFoundError:
        return ""


def _describe_config(run: RunFiles) -> Iterator[Block]:
    changed = [name for name, value in run.config.items() if name not in KEYS or value != KEYS[name].default]
    if changed:
        yield Table(
            f"{plural(len(changed), 'key')} with other values than their defaults",
            ("key", "value", "default", "meaning"),
            [_describe_key(name, run.config[name]) for name in changed],
        )
    if run.config_text:
        yield Code("config.yaml, every key", run.config_text)


def _describe_key(name: str, value: Any) -> Row:
    key = KEYS.get(name)
    default, comment = ("", "") if key is None else (spell_value(key.default), key.comment)
    return (name, code(spell_value(value)), code(default), comment)
