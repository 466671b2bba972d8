"""search.html of a search: the best trial, the effect of each key on the metric, and all trials."""

import itertools
from collections.abc import Iterator, Mapping, Sequence

from trainer_loop.data.wording import plural
from trainer_loop.record.run_dir import RunDir
from trainer_loop.report.charts import Chart, Point, Series, spell
from trainer_loop.report.page import Block, Cell, Charts, Code, Facts, Section, Table, code, number, write_page
from trainer_loop.report.page import Row as TableRow
from trainer_loop.report.wording import spell_seconds
from trainer_loop.search.plan import Plan, name_trial
from trainer_loop.search.space import Choices, Range
from trainer_loop.search.study import Row
from trainer_loop.search.table import FEWEST_FOR_IMPORTANCE, count_finished, explain_importance, spell_value

_FOLDED = 100  # a table with more trials is folded
_CHOICE = 14  # most characters of a choice below the axis


def make_page(plan: Plan, rows: Sequence[Row], best: Row | None, importance: Mapping[str, float], config: str) -> str:
    """Return the page.

    Args:
        plan: The plan of the search.
        rows: All trials.
        best: The best trial; None if none has finished.
        importance: From 0 to 1 by key; empty if it is not known yet.
        config: The text of best.yaml; empty if there is none.
    """
    sections = [
        Section("Summary", list(_summarise(plan, rows, best, importance, config))),
        Section("Charts", list(_draw(plan, rows))),
        Section("Runs", list(_tabulate_runs(plan, rows, best))),
        Section("Trials", [_tabulate_trials(plan, rows, best)]),
    ]
    subtitle = f"Search for the {'largest' if plan.maximize else 'smallest'} {plan.metric_name} in {plan.directory}"
    return write_page(plan.directory.absolute().name, sections, subtitle=subtitle)


def _summarise(
    plan: Plan, rows: Sequence[Row], best: Row | None, importance: Mapping[str, float], config: str
) -> Iterator[Block]:
    endings = [row.ended for row in rows]
    counts = {how: f"{endings.count(how)}" for how in dict.fromkeys(endings)}
    values = {} if best is None or best.value is None else {f"best {plan.metric_name}": spell(best.value)}
    if best is not None:
        spread = best.result.get("spread")
        values |= {"spread of its runs": spell(spread)} if spread is not None else {}
        values["best trial"] = str(best.number)
    seconds = sum(row.result.get("seconds", 0.0) for row in rows)
    settings = {"time of all trials": spell_seconds(seconds), "sampler": plan.sampler, "pruner": plan.pruner}
    yield Facts({**values, "trials": f"{len(rows)} of {plan.trials}", **counts, **(settings if plan.space else {})})
    if plan.space:
        yield _tabulate_keys(plan, rows, best, importance)
    if config:
        yield Code("best.yaml, a config with the best values", config)


def _tabulate_keys(plan: Plan, rows: Sequence[Row], best: Row | None, importance: Mapping[str, float]) -> Table:
    note = ""
    if importance:
        note = "Importance: the share of the differences between finished trials that comes from this key (fANOVA)."
    elif len(plan.space) > 1 and count_finished(rows) < FEWEST_FOR_IMPORTANCE:
        note = f"{explain_importance(rows).capitalize()}."
    table: list[TableRow] = []
    for key in [*importance, *(key for key in plan.space if key not in importance)]:
        share = importance.get(key, 0.0)
        best_cells = [code(spell_value(best.values.get(key)))] if best else []
        weight = [number(f"{share:.0%}", share=share)] if importance else []
        table.append((code(key), code(_spell_space(plan.space[key])), *best_cells, *weight))
    heads = ["key", "searched", *(["best"] if best else []), *(["importance"] if importance else [])]
    return Table("Keys", heads, table, note=note)


def _spell_space(parameter: Range | Choices) -> str:
    if isinstance(parameter, Choices):
        return ", ".join(map(spell_value, parameter.values))
    how = ", by order of magnitude" if parameter.log else f", step {parameter.step:g}" if parameter.step else ""
    return f"{parameter.low:g} to {parameter.high:g}{how}"


# ----------------------------------------------------------------------------------------------------------- charts


def _draw(plan: Plan, rows: Sequence[Row]) -> Iterator[Block]:
    """Yield charts of the metric over the trials, and over the values of each key."""
    evaluated = [row for row in rows if row.last_value is not None]
    if len(evaluated) < 2:
        return
    left_out = len(rows) - len(evaluated)
    note = (
        f"{plural(left_out, 'trial')} without a value {'is' if left_out == 1 else 'are'} left out" if left_out else ""
    )
    trials = [*_scatter(evaluated, {row.number: float(row.number) for row in evaluated}), _follow_best(plan, evaluated)]
    charts = [Chart(f"{plan.metric_name} of each trial", "trial", trials, note=note)]
    for key, parameter in plan.space.items():
        title = f"{plan.metric_name} by {key}"
        if isinstance(parameter, Range):
            series = _scatter(evaluated, {row.number: float(row.values[key]) for row in evaluated})
            limits = (float(parameter.low), float(parameter.high))
            charts.append(Chart(title, key, series, x_range=limits, x_log=parameter.log))
        else:
            indices = {row.number: float(parameter.values.index(row.values[key])) for row in evaluated}
            series = _scatter(evaluated, indices)
            charts.append(
                Chart(title, key, series, x_names=[_shorten(spell_value(value)) for value in parameter.values])
            )
    yield Charts(charts)


def _scatter(rows: Sequence[Row], places: Mapping[int, float]) -> list[Series]:
    """Draw trials as dots, and stopped ones as rings at their last evaluation. places: by number of a trial."""
    finished = [(places[row.number], row.value) for row in rows if row.value is not None]
    stopped = [(places[row.number], float(row.result["value"])) for row in rows if row.value is None]
    rings = [Series("stopped: last evaluation", stopped, "rings")] if stopped else []
    return [Series("finished", finished, "dots"), *rings]


def _follow_best(plan: Plan, rows: Sequence[Row]) -> Series:
    """Draw the best value so far as steps."""
    finished = [row for row in rows if row.value is not None]
    values = (row.value for row in finished if row.value is not None)
    best = list(itertools.accumulate(values, max if plan.maximize else min))
    points: list[Point] = []
    for row, before, value in zip(finished, [*best[:1], *best], best, strict=False):
        points += [(row.number, before), (row.number, value)]
    return Series("best so far", [*points, *((row.number, best[-1]) for row in rows[-1:] if best)], "dashed")


def _shorten(text: str) -> str:
    return text if len(text) <= _CHOICE else f"{text[: _CHOICE - 1]}…"


# ----------------------------------------------------------------------------------------------------------- tables


def _tabulate_trials(plan: Plan, rows: Sequence[Row], best: Row | None) -> Table:
    has_spread = any(row.result.get("spread") is not None for row in rows)
    heads = ["trial", plan.metric_name, *(["spread"] if has_spread else []), *plan.space, "steps", "time", "ended"]
    table: list[TableRow] = []
    for row in rows:
        result = row.result
        ended = row.ended + (", best" if best is not None and row.number == best.number else "")
        table.append(
            (
                _link(plan, str(row.number), name_trial(row.number)),
                row.last_value,
                *([result.get("spread")] if has_spread else []),
                *(_show_value(row.values.get(key)) for key in plan.space),
                int(result.get("steps", 0)),
                number(spell_seconds(result.get("seconds", 0.0))),
                ": ".join(filter(None, (ended, result.get("reason")))),
            )
        )
    return Table("All trials", heads, table, folded=len(table) > _FOLDED)


def _show_value(value: object) -> Cell:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return number(spell_value(value)) if is_number else code(spell_value(value))


def _tabulate_runs(plan: Plan, rows: Sequence[Row], best: Row | None) -> Iterator[Table]:
    """Yield tables of the seeds and folds of the best trial, and of all trials."""
    names = list(plan.runs)
    if len(names) < 2:
        return
    if best is not None:
        best_values: Mapping[str, float | None] = best.result.get("runs", {})
        root = name_trial(best.number)
        firsts, lasts = (
            list(dict.fromkeys(parts)) for parts in zip(*(name.partition("/")[::2] for name in names), strict=True)
        )
        has_both = lasts != [""]  # as in seed-1/fold-2
        yield Table(
            f"Runs of the best trial: {plan.metric_name}",
            ("run", *(lasts if has_both else [plan.metric_name])),
            [
                (
                    first if has_both else _link(plan, first, f"{root}/{first}"),
                    *(_link_value(plan, best_values, root, f"{first}/{last}".rstrip("/")) for last in lasts),
                )
                for first in firsts
            ],
            note="The value of a trial is the mean of its runs, their spread the standard deviation of a sample.",
        )
    if len(rows) > 1:
        yield Table(
            f"Runs of all trials: {plan.metric_name}",
            ("trial", *names),
            [
                (
                    str(row.number),
                    *(_link_value(plan, row.result.get("runs", {}), name_trial(row.number), name) for name in names),
                )
                for row in rows
            ],
            folded=True,
        )


def _link_value(plan: Plan, values: Mapping[str, float | None], root: str, name: str) -> Cell:
    value = values.get(name)
    return _link(plan, "" if value is None else spell(value), f"{root}/{name}", kind="number")


def _link(plan: Plan, text: str, run: str, *, kind: str = "text") -> Cell:
    """Make a cell with a link to the report of a run, if it has one."""
    has_report = RunDir(plan.directory / run).report.is_file()
    return Cell(text, kind, link=f"{run}/report.html" if has_report else "")
