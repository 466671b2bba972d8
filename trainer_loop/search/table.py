"""The results of a search as lines of text."""

import math
import statistics
from collections.abc import Mapping, Sequence

from trainer_loop.errors import cut_short
from trainer_loop.runtime.text_table import align
from trainer_loop.search.study import Row

FEWEST_FOR_IMPORTANCE = 10  # finished trials
_LONGEST = 60  # most characters of the reason why a trial ended


def find_best(rows: Sequence[Row], *, maximize: bool) -> Row | None:
    """Return the finished trial with the best value; of equal ones the first."""
    finished = [row for row in rows if row.value is not None]
    if not finished:
        return None
    return max(finished, key=lambda row: ((row.value or 0.0) if maximize else -(row.value or 0.0), -row.number))


def average(values: Sequence[float]) -> tuple[float, float | None]:
    """Return the mean, and the standard deviation of a sample; None for one value.

    >>> average([1.0, 3.0]), average([2.0])
    ((2.0, 1.4142135623730951), (2.0, None))
    """
    return math.fsum(values) / len(values), statistics.stdev(values) if len(values) > 1 else None


def describe_trials(rows: Sequence[Row], metric: str, keys: Sequence[str], *, best: Row | None) -> list[str]:
    """Return a table of all trials. metric: its name without a sign. keys: of the space."""
    has_spread = any(row.result.get("spread") is not None for row in rows)
    heads = ["", "trial", metric, *(["spread"] if has_spread else []), *keys, "steps", "minutes", "ended"]
    lines = [heads]
    for row in rows:
        result = row.result
        spread = [spell_value(result.get("spread"))] if has_spread else []
        ended = ": ".join(filter(None, (row.ended, result.get("reason"))))
        lines.append(
            [
                "*" if best is not None and row.number == best.number else "",
                str(row.number),
                spell_value(row.last_value),
                *spread,
                *(spell_value(row.values.get(key)) for key in keys),
                f"{result.get('steps', 0):,}",
                f"{result.get('seconds', 0.0) / 60:.1f}",
                cut_short(ended, at_most=_LONGEST),
            ]
        )
    return align(lines, left=(len(heads) - 1,))


def describe_runs(row: Row, metric: str) -> list[str]:
    """Return a table of the runs of a trial with several seeds or folds; empty for a single run."""
    runs: Mapping[str, float] = row.result.get("runs", {})
    if len(runs) < 2:
        return []
    lines = align([["run", metric], *([name, spell_value(value)] for name, value in runs.items())], left=(0, 1))
    return [f"trial {row.number}, run by run", *(f"  {line}" for line in lines)]


def count_finished(rows: Sequence[Row]) -> int:
    """Count the trials with a final value: not stopped, not failed, and not running."""
    return sum(row.value is not None for row in rows)


def explain_importance(rows: Sequence[Row]) -> str:
    """Say why the importance of the keys is not shown."""
    finished = count_finished(rows)
    return f"importance of each key: shown from {FEWEST_FOR_IMPORTANCE} finished trials on (so far {finished})"


def describe_importance(importance: Mapping[str, float]) -> list[str]:
    """Return a line for each key, the most important first."""
    lines = align([[key, f"{share:.0%}", "#" * round(20 * share)] for key, share in importance.items()], left=(0, 2))
    return ["importance of each key", *(f"  {line}" for line in lines)]


def spell_value(value: object) -> str:
    """Format a value of a key or of the metric, in few characters."""
    if isinstance(value, float):
        return f"{value:.4g}"
    return "" if value is None else str(value)
