"""Several runs beside each other: their keys, metrics, curves, and the rows on which they disagree."""

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

# Runs that differ in nothing else are repeats of one config: the rest of these says nothing of what is learned.
_OF_A_COPY = re.compile(r"run_dir|seed|resume(_anyway)?|dry_run|report|(log|hub)\..*|data\.(cache_dir|num_workers)")
_MOST_ROWS = 50
_END_OF_VALUE = 20  # characters on a console


@dataclass(frozen=True)
class Group:
    """Runs of one config, which differ in their seeds, by their short names."""

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
    """The first run beside another one, on the rows of one set."""

    set_name: str
    names: tuple[str, str]
    runs: tuple[RunFiles, RunFiles]
    result: PairedTest


def compare_runs(roots: Sequence[Path]) -> tuple[list[Table], list[str], str]:
    """The tables for the console, what could not be compared, and the page.

    Raises UserError where these are not two runs or more.
    """
    if len(roots) < 2:
        raise UserError("name two run directories or more, such as runs/a runs/b")
    runs = [read_run(root) for root in roots]
    _refuse_copies(roots, runs)
    groups = _group(dict(zip(_name_runs(roots), runs, strict=True)))
    comparisons, notes = _compare_pairs(groups)
    tables = [
        *_tabulate_keys(groups),
        *_tabulate_figures(groups),
        *_tabulate_comparisons(comparisons),
    ]
    curves = overlay_curves({name: run.metrics for group in groups for name, run in group.by_name.items()})
    sections = [
        Section("Comparison", [*tables, *([Lines(notes)] if notes else [])]),
        Section("Curves", [Charts(curves)] if curves else []),
        *(Section(_title_of_comparison(one), list(_list_disagreements(one))) for one in comparisons),
    ]
    title = " and ".join(group.name for group in groups)
    return tables, notes, write_page(title, sections, subtitle=f"Comparison of {len(runs)} runs")


def _refuse_copies(roots: Sequence[Path], runs: Sequence[RunFiles]) -> None:
    """One that was copied and went on otherwise has other metrics, and may be compared."""
    for (root, run), (other, copy) in itertools.combinations(zip(roots, runs, strict=True), 2):
        identity = run.environment.get("run")
        if identity is not None and identity == copy.environment.get("run") and run.metrics == copy.metrics:
            raise UserError(f"{other} is a copy of {root}: they are one run, {identity}; name one of them")


def _name_runs(roots: Sequence[Path]) -> list[str]:
    """The names of the directories, with as much of their paths as tells them apart."""
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
        keys = {key: value for key, value in run.config.items() if not _OF_A_COPY.fullmatch(key)}
        groups.setdefault(json.dumps(keys, sort_keys=True, default=str) if keys else name, {})[name] = run
    return list(map(Group, groups.values()))


# ----------------------------------------------------------------------------------------------------------- tables


def _tabulate_keys(groups: Sequence[Group]) -> Iterator[Table]:
    """The keys that differ between the groups, and the seeds of repeats, which may be scored on unlike rows."""
    if len(groups) > 1:
        configs = [group.runs[0].config for group in groups]
        names = [name for name in dict.fromkeys(itertools.chain(*configs)) if not _OF_A_COPY.fullmatch(name)]
        rows: list[Row] = [
            (name, *(code(spell_value(config.get(name))) for config in configs))
            for name in names
            if any(config.get(name) != configs[0].get(name) for config in configs)
        ]
        if rows:
            yield Table("Keys that differ", ("key", *(group.name for group in groups)), rows)
    seeds = {group.name: [str(run.config.get("seed")) for run in group.runs] for group in groups}
    repeats = [(name, ", ".join(of_runs)) for name, of_runs in seeds.items() if len(of_runs) > 1]
    if repeats:
        unlike = [group.name for group in groups if not _are_scored_alike(group)]
        note = f"Each seed of {' and of '.join(unlike)} is scored on rows of its own." if unlike else ""
        yield Table("Repeats", ("runs", "seeds"), repeats, note=note)


def _are_scored_alike(group: Group) -> bool:
    """Whether the runs have the same rows in the sets that they share."""
    first, *others = group.runs
    return all(
        have_same_rows(first.sets[name], run.sets[name]) for run in others for name in first.sets.keys() & run.sets
    )


def _tabulate_figures(groups: Sequence[Group]) -> Iterator[Table]:
    """Metrics of the exported weights, and what they took; of repeats the mean and the standard deviation."""
    titles = dict.fromkeys(run.title_of_figures for group in groups for run in group.runs)
    figures = [[_name_figures(run) for run in group.runs] for group in groups]
    names = dict.fromkeys(itertools.chain(*itertools.chain(*figures)))
    measured: list[Row] = [(name, *(_spell_mean(of_runs, name, spell_metric) for of_runs in figures)) for name in names]
    totals = [[run.totals for run in group.runs] for group in groups]
    costs: list[Row] = [
        (name, *(_spell_mean(of_runs, key, spell_one) for of_runs in totals))
        for name, (key, spell_one) in _COSTS.items()
        if any(key in of_run for of_run in itertools.chain(*totals))
    ]
    for caption, rows in ((" / ".join(titles), measured), ("What it took", costs)):
        if rows:
            yield Table(caption, ("what", *(group.name for group in groups)), rows)


def _name_figures(run: RunFiles) -> dict[str, float]:
    return {
        f"{title_of(of_set)} {metric}": value
        for of_set, values in run.figures.items()
        for metric, value in values.items()
        if metric != "rows"
    }


_COSTS: dict[str, tuple[str, Callable[[float], str]]] = {
    "time of training": ("train_seconds", spell_seconds),
    "steps": ("step", lambda count: f"{round(count):,}"),
    "tokens": ("tokens_seen", lambda count: f"{round(count):,}"),
    "peak memory of process 0": ("peak_memory_bytes", lambda count: spell_bytes(round(count))),
}  # names of totals, and how they are spelled


def _spell_mean(runs: Sequence[Mapping[str, Any]], name: str, spell_one: Callable[[float], str]) -> Cell | None:
    """The mean of the numbers that the runs have by this name, and their spread."""
    known = [run[name] for run in runs if run.get(name) is not None]
    if not known:
        return None
    spread = f" ± {spell_one(statistics.stdev(known))}" if len(known) > 1 else ""
    which = "" if len(known) == len(runs) else f"{len(known)} of "  # others did not end, or not with a number
    of_runs = f" ({which}{len(runs)} runs)" if len(runs) > 1 else ""
    return Cell(f"{spell_one(statistics.mean(known))}{spread}{of_runs}", "number")


# ------------------------------------------------------------------------------------------------------- the same rows


def _compare_pairs(groups: Sequence[Group]) -> tuple[list[Comparison], list[str]]:
    """The first run of the first group beside that of each other group, on each set; and what cannot be compared."""
    (first_name, first), *others = (next(iter(group.by_name.items())) for group in groups)
    comparisons, notes = [], []
    for name, run in others:
        for set_name in first.sets.keys() & run.sets.keys():
            rows = first.sets[set_name], run.sets[set_name]
            if not have_same_rows(*rows):
                notes.append(f"{title_of(set_name)}: the rows of {first_name} and {name} are not the same")
            elif (result := compare_rows(*rows)) is not None:
                comparisons.append(Comparison(set_name, (first_name, name), (first, run), result))
    return sorted(comparisons, key=lambda one: (not one.set_name.startswith("test"), one.set_name)), sorted(notes)


def _tabulate_comparisons(comparisons: Sequence[Comparison]) -> Iterator[Table]:
    if not comparisons:
        return
    rows: list[Row] = [
        (
            _title_of_comparison(one),
            one.result.error,
            *(Cell(f"{error:.4f}", "number") for error in one.result.errors),
            Cell(f"{one.result.errors[1] - one.result.errors[0]:+.4f}", "number"),
            Cell(f"{one.result.low:+.4f} to {one.result.high:+.4f}", "number"),
            Cell(f"{p_value:.2g}", "number"),
            one.result.test,
        )
        for one, p_value in zip(comparisons, adjust([one.result.p_value for one in comparisons]), strict=True)
    ]
    heads = ("rows", "error", "first", "second", "difference", f"{LEVEL:.0%} interval", "p", "test")
    note = "p: the probability of such a difference, or a larger one, between models that are equally good."
    if len(comparisons) > 1:
        note += f" It is adjusted for {len(comparisons)} comparisons (Holm)."
    yield Table("On the same rows", heads, rows, note=note)


def _title_of_comparison(one: Comparison) -> str:
    return f"{title_of(one.set_name)}: {one.names[0]} and {one.names[1]}"


def _list_disagreements(one: Comparison) -> Iterator[Block]:
    """The rows that one model gets right, or less wrong, and the other does not."""
    for better, rows in zip(one.names, (one.result.first_only, one.result.second_only), strict=True):
        cards = [_show_row(one, row) for row in rows[:_MOST_ROWS]]
        if cards:
            shown = f"the clearest {_MOST_ROWS} are shown" if len(rows) > _MOST_ROWS else ""
            yield Cards(f"{better} is better on {len(rows):,} rows", cards, shown)


def _show_row(one: Comparison, row: int) -> Card:
    of_runs = [run.sets[one.set_name] for run in one.runs]
    outputs = {name: spell_output(rows, rows.predictions[row]) for name, rows in zip(one.names, of_runs, strict=True)}
    known = spell_output(of_runs[0], of_runs[0].references[row])
    return Card(of_runs[0].places[row], _find_inputs(one, row), {**outputs, "in the data": known})


def _find_inputs(one: Comparison, row: int) -> dict[str, str]:
    """What the models read, where the row is one of the worst of either."""
    for run in one.runs:
        for bad in run.facts.get("sets", {}).get(one.set_name, {}).get("worst", []):
            if bad["row"] == row:
                return dict(bad["inputs"])
    return {}


# --------------------------------------------------------------------------------------------------------- on a console


def draw_table(table: Table) -> list[str]:
    """The lines of a table of texts and numbers."""
    lines = align([[_as_text(cell) for cell in row] for row in (table.heads, *table.rows)])
    return [f"{table.caption}:", *(f"  {line}" for line in [*lines, *([table.note] if table.note else [])])]


def _as_text(cell: Any) -> str:
    """The text of a cell; of a long value of a key, how it begins and ends."""
    if not isinstance(cell, Cell):
        return "" if cell is None else str(cell)
    is_long = "code" in cell.kind and len(cell.text) > 2 * _END_OF_VALUE + 3
    return f"{cell.text[:_END_OF_VALUE]}...{cell.text[-_END_OF_VALUE:]}" if is_long else cell.text
