"""Comparison of several runs: their keys, metrics, curves, and the rows on which they disagree."""

import itertools
import json
import re
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer_loop.errors import UserError
from trainer_loop.report.curves import overlay_curves
from trainer_loop.report.intervals import LEVEL
from trainer_loop.report.mistakes import spell_output
from trainer_loop.report.page import Block, Card, Cards, Cell, Charts, Lines, Row, Section, Table, code, write_page
from trainer_loop.report.paired import PairedTest, adjust, compare_rows, have_same_rows
from trainer_loop.report.run_files import RunFiles, read_run
from trainer_loop.report.wording import spell_bytes, spell_metric, spell_seconds, spell_value, title_of
from trainer_loop.runtime.text_table import align

# Runs that differ only in these keys are repeats of one config: apart from the seed, no update depends on them.
_REPEAT_KEYS = re.compile(r"run_dir|seed|resume(_anyway)?|dry_run|report|(log|hub)\..*|data\.(cache_dir|num_workers)")
_MOST_ROWS = 50
_END_OF_VALUE = 20  # characters of each end of a long value on a console


@dataclass(frozen=True)
class Group:
    """Repeats of one config with different seeds, by their short names."""

    by_name: Mapping[str, RunFiles]

    @property
    def runs(self) -> list[RunFiles]:
        return list(self.by_name.values())

    @property
    def name(self) -> str:
        first, *others = self.by_name
        return f"{first} and {len(others)} more" if others else first


@dataclass(frozen=True)
class Comparison:
    """The comparison of the first run with another run on the rows of a set."""

    set_name: str
    names: tuple[str, str]
    runs: tuple[RunFiles, RunFiles]
    result: PairedTest


def compare_runs(roots: Sequence[Path]) -> tuple[list[Table], list[str], str]:
    """Return the tables for the console, notes about what could not be compared, and the page.

    Raises:
        UserError: There are fewer than two runs, or two are copies of the same run.
    """
    if len(roots) < 2:
        raise UserError("name two run directories or more, such as runs/a runs/b")
    runs = [read_run(root) for root in roots]
    _refuse_copies(roots, runs)
    groups = _group(dict(zip(_name_runs(roots), runs, strict=True)))
    comparisons, notes = _compare_pairs(groups)
    tables = [
        *_tabulate_keys(groups),
        *_tabulate_metrics(groups),
        *_tabulate_comparisons(comparisons),
    ]
    curves = overlay_curves({name: run.metrics for group in groups for name, run in group.by_name.items()})
    sections = [
        Section("Comparison", [*tables, *([Lines(notes)] if notes else [])]),
        Section("Curves", [Charts(curves)] if curves else []),
        *(
            Section(_title_of_comparison(comparison), list(_list_disagreements(comparison)))
            for comparison in comparisons
        ),
    ]
    title = " and ".join(group.name for group in groups)
    return tables, notes, write_page(title, sections, subtitle=f"Comparison of {len(runs)} runs")


def _refuse_copies(roots: Sequence[Path], runs: Sequence[RunFiles]) -> None:
    """Raise UserError for copies of a run. A copy that was continued has other metrics, and may be compared."""
    for (root, run), (other, copy) in itertools.combinations(zip(roots, runs, strict=True), 2):
        identity = run.environment.get("run")
        if identity is not None and identity == copy.environment.get("run") and run.metrics == copy.metrics:
            raise UserError(f"{other} is a copy of {root}: they are one run, {identity}; name one of them")


def _name_runs(roots: Sequence[Path]) -> list[str]:
    """Return the names of the directories, with as many parents as are needed to distinguish them."""
    parts = [root.resolve().parts for root in roots]
    if len(set(parts)) < len(parts):
        raise UserError("a run directory is named twice; name each once")
    depth = next(
        (depth for depth in range(1, max(map(len, parts))) if len({each[-depth:] for each in parts}) == len(parts)),
        max(map(len, parts)),
    )
    return ["/".join(each[-depth:]) for each in parts]


def _group(runs: Mapping[str, RunFiles]) -> list[Group]:
    groups: dict[str, dict[str, RunFiles]] = {}
    for name, run in runs.items():
        keys = {key: value for key, value in run.config.items() if not _REPEAT_KEYS.fullmatch(key)}
        groups.setdefault(json.dumps(keys, sort_keys=True, default=str) if keys else name, {})[name] = run
    return list(map(Group, groups.values()))


# ----------------------------------------------------------------------------------------------------------- tables


def _tabulate_keys(groups: Sequence[Group]) -> Iterator[Table]:
    """Yield a table of the keys that differ between the groups, and one of the seeds of repeats."""
    if len(groups) > 1:
        configs = [group.runs[0].config for group in groups]
        names = [name for name in dict.fromkeys(itertools.chain(*configs)) if not _REPEAT_KEYS.fullmatch(name)]
        rows: list[Row] = [
            (name, *(code(spell_value(config.get(name))) for config in configs))
            for name in names
            if any(config.get(name) != configs[0].get(name) for config in configs)
        ]
        if rows:
            yield Table("Keys that differ", ("key", *(group.name for group in groups)), rows)
    seeds = {group.name: [str(run.config.get("seed")) for run in group.runs] for group in groups}
    repeats = [(name, ", ".join(values)) for name, values in seeds.items() if len(values) > 1]
    if repeats:
        unlike = [group.name for group in groups if not _are_scored_alike(group)]
        note = f"Each seed of {' and of '.join(unlike)} is scored on rows of its own." if unlike else ""
        yield Table("Repeats", ("runs", "seeds"), repeats, note=note)


def _are_scored_alike(group: Group) -> bool:
    """Return whether the runs have the same rows in all sets that they share."""
    first, *others = group.runs
    return all(
        have_same_rows(first.sets[name], run.sets[name]) for run in others for name in first.sets.keys() & run.sets
    )


def _tabulate_metrics(groups: Sequence[Group]) -> Iterator[Table]:
    """Yield tables of metrics and costs. Repeats are shown as mean and standard deviation."""
    titles = dict.fromkeys(run.metrics_title for group in groups for run in group.runs)
    metrics = [[_flatten_metrics(run) for run in group.runs] for group in groups]
    names = dict.fromkeys(itertools.chain(*itertools.chain(*metrics)))
    measured: list[Row] = [(name, *(_spell_mean(group, name, spell_metric) for group in metrics)) for name in names]
    totals = [[run.totals for run in group.runs] for group in groups]
    costs: list[Row] = [
        (name, *(_spell_mean(group, key, spell_one) for group in totals))
        for name, (key, spell_one) in _COSTS.items()
        if any(key in of_run for of_run in itertools.chain(*totals))
    ]
    for caption, rows in ((" / ".join(titles), measured), ("What it took", costs)):
        if rows:
            yield Table(caption, ("what", *(group.name for group in groups)), rows)


def _flatten_metrics(run: RunFiles) -> dict[str, float]:
    return {
        f"{title_of(of_set)} {metric}": value
        for of_set, values in run.set_metrics.items()
        for metric, value in values.items()
        if metric != "rows"
    }


_COSTS: dict[str, tuple[str, Callable[[float], str]]] = {
    "time of training": ("train_seconds", spell_seconds),
    "steps": ("step", lambda count: f"{round(count):,}"),
    "tokens": ("tokens_seen", lambda count: f"{round(count):,}"),
    "peak memory of process 0": ("peak_memory_bytes", lambda count: spell_bytes(round(count))),
}  # title -> name of the total, and its formatter


def _spell_mean(runs: Sequence[Mapping[str, Any]], name: str, spell_one: Callable[[float], str]) -> Cell | None:
    """Return the mean of a value over the runs that have it, with the standard deviation."""
    values = [run[name] for run in runs if run.get(name) is not None]
    if not values:
        return None
    spread = f" ± {spell_one(statistics.stdev(values))}" if len(values) > 1 else ""
    # Other runs have not ended, or their value was not finite.
    which = "" if len(values) == len(runs) else f"{len(values)} of "
    num_runs = f" ({which}{len(runs)} runs)" if len(runs) > 1 else ""
    return Cell(f"{spell_one(statistics.mean(values))}{spread}{num_runs}", "number")


# ------------------------------------------------------------------------------------------------------- the same rows


def _compare_pairs(groups: Sequence[Group]) -> tuple[list[Comparison], list[str]]:
    """Compare the first runs of the first group and of each other group, on each set; returns results and notes."""
    (first_name, first), *others = (next(iter(group.by_name.items())) for group in groups)
    comparisons, notes = [], []
    for name, run in others:
        for set_name in first.sets.keys() & run.sets.keys():
            rows = first.sets[set_name], run.sets[set_name]
            if not have_same_rows(*rows):
                notes.append(f"{title_of(set_name)}: the rows of {first_name} and {name} are not the same")
            elif (result := compare_rows(*rows)) is not None:
                comparisons.append(Comparison(set_name, (first_name, name), (first, run), result))
    comparisons.sort(key=lambda comparison: (not comparison.set_name.startswith("test"), comparison.set_name))
    return comparisons, sorted(notes)


def _tabulate_comparisons(comparisons: Sequence[Comparison]) -> Iterator[Table]:
    if not comparisons:
        return
    p_values = adjust([comparison.result.p_value for comparison in comparisons])
    rows: list[Row] = [
        (
            _title_of_comparison(comparison),
            comparison.result.error,
            *(Cell(f"{error:.4f}", "number") for error in comparison.result.errors),
            Cell(f"{comparison.result.errors[1] - comparison.result.errors[0]:+.4f}", "number"),
            Cell(f"{comparison.result.low:+.4f} to {comparison.result.high:+.4f}", "number"),
            Cell(f"{p_value:.2g}", "number"),
            comparison.result.test,
        )
        for comparison, p_value in zip(comparisons, p_values, strict=True)
    ]
    heads = ("rows", "error", "first", "second", "difference", f"{LEVEL:.0%} interval", "p", "test")
    note = "p: the probability of such a difference, or a larger one, between models that are equally good."
    if len(comparisons) > 1:
        note += f" It is adjusted for {len(comparisons)} comparisons (Holm)."
    yield Table("On the same rows", heads, rows, note=note)


def _title_of_comparison(comparison: Comparison) -> str:
    return f"{title_of(comparison.set_name)}: {comparison.names[0]} and {comparison.names[1]}"


def _list_disagreements(comparison: Comparison) -> Iterator[Block]:
    """Yield the rows on which one model is right, or less wrong, and the other is not."""
    result = comparison.result
    for better, rows in zip(comparison.names, (result.first_only, result.second_only), strict=True):
        cards = [_show_row(comparison, row) for row in rows[:_MOST_ROWS]]
        if cards:
            shown = f"the clearest {_MOST_ROWS} are shown" if len(rows) > _MOST_ROWS else ""
            yield Cards(f"{better} is better on {len(rows):,} rows", cards, shown)


def _show_row(comparison: Comparison, row: int) -> Card:
    sets = [run.sets[comparison.set_name] for run in comparison.runs]
    outputs = {
        name: spell_output(rows, rows.predictions[row]) for name, rows in zip(comparison.names, sets, strict=True)
    }
    reference = spell_output(sets[0], sets[0].references[row])
    return Card(sets[0].places[row], _find_inputs(comparison, row), {**outputs, "in the data": reference})


def _find_inputs(comparison: Comparison, row: int) -> dict[str, str]:
    """Return the inputs of the models; report.json has them if the row is among the worst of a run."""
    for run in comparison.runs:
        for bad in run.facts.get("sets", {}).get(comparison.set_name, {}).get("worst", []):
            if bad["row"] == row:
                return dict(bad["inputs"])
    return {}


# --------------------------------------------------------------------------------------------------------- on a console


def draw_table(table: Table) -> list[str]:
    """Return the lines of a table of texts and numbers."""
    lines = align([[_as_text(cell) for cell in row] for row in (table.heads, *table.rows)])
    return [f"{table.caption}:", *(f"  {line}" for line in [*lines, *([table.note] if table.note else [])])]


def _as_text(cell: Any) -> str:
    """Return the text of a cell; a long value of a key is shortened in the middle."""
    if not isinstance(cell, Cell):
        return "" if cell is None else str(cell)
    is_long = "code" in cell.kind and len(cell.text) > 2 * _END_OF_VALUE + 3
    return f"{cell.text[:_END_OF_VALUE]}...{cell.text[-_END_OF_VALUE:]}" if is_long else cell.text
