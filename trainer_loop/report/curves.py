"""Charts of metrics.jsonl: training and validation over the steps, with marks where the run was resumed."""

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from trainer_loop.report.charts import Chart, Point, Series
from trainer_loop.report.wording import is_count

_MEMORY = "peak_memory_bytes"
_TITLES = {
    "loss": "Loss",
    "lr": "Learning rate",
    "grad_norm": "Gradient norm",
    "tokens_per_second": "Tokens a second",
    "rows_per_second": "Rows a second",
    "padding": "Padding, share of all tokens",
    "data_wait": "Waiting for data, share of the time",
    "skipped_steps": "Skipped steps",
    "tokens_per_second_per_device": "Tokens a second and device",
    "mfu": "Model FLOPs, share of the peak (mfu)",
    _MEMORY: "Peak memory, in GB",
}
_FIRST = ("loss", "lr", "grad_norm", "tokens_per_second", "rows_per_second", "padding", "data_wait")
_SOURCE_METRICS = ("loss", "row_share", "token_share")  # of each source of a mixture
_LEFT_OUT = ("step", "epoch")
_TOKENS_PER_DEVICE = "tokens_per_second_per_device"
_TOTALS = "train_seconds"  # a metric of the last row, which has totals and belongs to no step
_MOST_SERIES = 8


def draw_curves(
    rows: Sequence[Mapping[str, Any]], *, sets: Collection[str] = (), marks: Sequence[float] = ()
) -> list[Chart]:
    """Make a chart for each metric of training, with that of validation in it, and for each other metric of validation.

    Args:
        rows: Of metrics.jsonl. Null is a number that was not finite; it leaves a gap.
        sets: Names of the validation sets, if there are several.
        marks: Steps at which the run was started again.
    """
    left_out = _list_left_out(rows)
    lines: dict[str, dict[str, list[Point]]] = {}  # by chart, by name of the line
    for name, point in _list_points(rows, left_out):
        chart, line = _place(name, sets)
        if chart != "rows" and not is_count(chart):
            lines.setdefault(chart, {}).setdefault(line, []).append(point)
    order = sorted(lines, key=lambda chart: _FIRST.index(chart) if chart in _FIRST else len(_FIRST))
    return [_make_chart(chart, lines[chart], marks) for chart in order]


def overlay_curves(runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[Chart]:
    """Make a chart for each metric, with a line for each run. runs: rows of metrics.jsonl by the name of the run."""
    left_out = _list_left_out([row for rows in runs.values() for row in rows])
    lines: dict[str, dict[str, list[Point]]] = {}  # by metric, by run
    for run, rows in runs.items():
        for name, point in _list_points(rows, left_out):
            if not name.endswith("/rows"):
                lines.setdefault(name, {}).setdefault(run, []).append(point)
    if len(runs) <= _MOST_SERIES:  # then a run has the same colour in all charts
        lines = {name: {run: by_run.get(run, []) for run in runs} for name, by_run in lines.items()}
    first = [name for name in lines if "loss" in name]
    return [_make_chart(name, lines[name], ()) for name in dict.fromkeys([*first, *lines])]


def _list_points(rows: Sequence[Mapping[str, Any]], left_out: Collection[str]) -> Iterator[tuple[str, Point]]:
    """Yield the name and the point of each metric of each step. A test metric has one value, and no chart."""
    for row in rows:
        for name, value in row.items() if _TOTALS not in row else ():
            if name not in left_out and not name.startswith("test/") and not isinstance(value, (list, str)):
                height = float(value) if isinstance(value, (int, float)) else math.nan
                yield name, (row["step"], height / 2**30 if name == _MEMORY else height)


def _list_left_out(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the names of values that get no chart, because they are no metrics or equal another metric."""

    def differ(one: str, other: str) -> bool:
        return any(row.get(one) != row.get(other) for row in rows)

    if not differ("tokens_per_second", "rows_per_second"):
        return [*_LEFT_OUT, "tokens_per_second", _TOKENS_PER_DEVICE, "padding"]
    is_repeated = not differ(_TOKENS_PER_DEVICE, "tokens_per_second")
    return [*_LEFT_OUT, "rows_per_second", *([_TOKENS_PER_DEVICE] if is_repeated else [])]


def _place(name: str, sets: Collection[str]) -> tuple[str, str]:
    """Return the chart of a metric, and the name of its line. sets: names of validation sets."""
    split, _, metric = name.partition("/")
    if split == "validation":
        part, _, rest = metric.partition("/")
        of_set, metric = (part, rest) if part in sets else ("", metric)
        base, _, part = metric.partition("/")
        return base, " ".join(filter(None, (split, of_set, part)))
    source, _, metric = name.rpartition("/")
    if source and metric in _SOURCE_METRICS:
        return ("loss" if metric == "loss" else f"{metric} of sources"), source
    base, _, part = name.partition("/")
    return base, part or "training"


def _make_chart(name: str, lines: Mapping[str, Sequence[Point]], marks: Sequence[float]) -> Chart:
    shown = list(lines)[:_MOST_SERIES]
    more = len(lines) - len(shown)
    has_gap = any(not math.isfinite(y) for line in shown for _, y in lines[line])
    note = [f"{more} more are left out"] * (more > 0) + ["gaps: not a finite number"] * has_gap
    series = [Series(line, lines[line]) for line in shown]
    return Chart(_TITLES.get(name, name.replace("_", " ")), "step", series, marks=marks, note="; ".join(note))
