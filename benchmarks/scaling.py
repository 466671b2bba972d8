"""Several processes on as many cores against one on one core: tokens per second, and the bytes reduced in a step.

    python -m benchmarks.scaling --data path/to/imdb

One process and `--num-processes` processes run the same config and batches, so they make the same updates. Each process
has one thread and is kept on its own core. The processes are started by `accelerate launch` and connected by gloo.
Reductions are counted in short runs with different token budgets, so with different numbers of microbatches in a step.
The expected time of a step by docs/scaling.md is computed from the run on one process and the time of one reduction of
as many bytes.
"""

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.arguments import add_size, add_texts, make_parser
from benchmarks.fresh_process import call
from benchmarks.measure import compare, publish, take_turns
from benchmarks.our_run import files_of
from benchmarks.same_work import find_differences, tell_differences
from benchmarks.workplace import Workplace, make_workplace

_TOLERANCE = 0.1  # of the loss on held-out rows; dropout draws differ between processes
_CONFIG = Path(__file__).parents[1] / "launch/accelerate/cpu_2.yaml"


def main(argv: list[str] | None = None) -> int:
    parser = make_parser(__doc__, rounds=3)
    add_texts(parser, rows=512, held_out=128)
    add_size(parser, "--batch-size", 32, "rows of an update, over all processes")
    add_size(parser, "--num-processes", 2, "processes, each with a core of its own")
    parser.add_argument("--budgets", type=int, nargs="+", default=[1024, 4096, 16384], help="tokens, see above")
    options = parser.parse_args(argv)
    several = options.num_processes
    with make_workplace(rows=options.rows, held_out=options.held_out, data=options.data, model=options.model) as place:
        runs = _Runs(place, max_length=options.max_length, batch_size=options.batch_size)
        names = {"1 process": 1, f"{several} processes": several}
        sides = {name: lambda number=number: runs.train(number) for name, number in names.items()}
        outcomes = take_turns(sides, rounds=options.rounds)
        counts = {f"at most {budget:,} tokens": runs.count(several, max_tokens=budget) for budget in options.budgets}
        num_bytes = max(count["bytes"] for count in counts.values())
        reductions = [runs.time_reduction(several, num_bytes) for _ in range(options.rounds)]
        settings = place.described | {
            name: getattr(options, name) for name in ("rows", "max_length", "batch_size", "num_processes", "rounds")
        }
    if differences := find_differences(outcomes, equal=["updates", "rows", "tokens"], close={"loss": _TOLERANCE}):
        tell_differences(differences)
        return 1
    comparisons = [
        _compare_rates(outcomes),
        _compare_with_model(outcomes["1 process"], outcomes[f"{several} processes"], reductions),
        *_compare_counts(counts),
    ]
    publish("scaling", comparisons, settings=settings, folder=options.results)
    return 0


def run_side(**wanted: Any) -> dict[str, Any]:
    """Train in this process; returns seconds, updates, rows and tokens of all processes, and the held-out loss."""
    from benchmarks.scaling_sides import train

    keep_to_one_core()
    return train(wanted)


def count_reductions(**wanted: Any) -> dict[str, float]:
    """The average number of reductions over the processes in a step of this run."""
    from benchmarks.scaling_sides import count

    keep_to_one_core()
    return count(wanted)


def time_reduction(*, num_bytes: int) -> float:
    """Seconds of one sum of `num_bytes` bytes over the processes."""
    from benchmarks.scaling_sides import time_all_reduce

    keep_to_one_core()
    return time_all_reduce(num_bytes)


class _Runs:
    """Starts the processes of one side."""

    def __init__(self, place: Workplace, *, max_length: int, batch_size: int):
        self._place = place
        self._sizes = {"max_length": max_length, "batch_size": batch_size}
        self._count = 0

    def train(self, num_processes: int) -> dict[str, Any]:
        return self._start("run_side", num_processes, self._wanted(max_tokens=None))

    def count(self, num_processes: int, *, max_tokens: int) -> dict[str, float]:
        return self._start("count_reductions", num_processes, self._wanted(max_tokens=max_tokens))

    def time_reduction(self, num_processes: int, num_bytes: float) -> float:
        return self._start("time_reduction", num_processes, {"num_bytes": int(num_bytes)})

    def _wanted(self, *, max_tokens: int | None) -> dict[str, Any]:
        self._count += 1
        folder = str(self._place.root / f"run-{self._count}")
        return {**files_of(self._place), **self._sizes, "folder": folder, "max_tokens": max_tokens}

    def _start(self, function: str, num_processes: int, arguments: Mapping[str, Any]) -> Any:
        return launch(f"benchmarks.scaling:{function}", self._place, num_processes, arguments)


def launch(function: str, place: Workplace, num_processes: int, arguments: Mapping[str, Any]) -> Any:
    """What a function of a module returns on process 0 of so many."""
    words = ["accelerate.commands.launch", "--config_file", str(_CONFIG), "--main_process_port", "0"]
    launcher = [] if num_processes == 1 else [*words, "--num_processes", str(num_processes)]
    return call(function, arguments, launcher=launcher, environment={**place.environment, "OMP_NUM_THREADS": "1"})


def keep_to_one_core() -> None:
    if hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[int(os.environ.get("RANK", 0)) % len(cores)]})


def _compare_rates(outcomes: Mapping[str, list[dict[str, Any]]]) -> dict[str, Any]:
    rates = {name: [result["tokens"] / result["seconds"] for result in results] for name, results in outcomes.items()}
    return compare("training, the same updates", "tokens a second", rates, base="1 process")


def _compare_with_model(
    alone: list[dict[str, Any]], together: list[dict[str, Any]], reductions: list[float]
) -> dict[str, Any]:
    """Milliseconds per step: measured, and computed by docs/scaling.md with no overlap."""
    figures = {
        "measured": [1000 * result["seconds"] / result["updates"] for result in together],
        "by the model": [
            1000 * (one["seconds"] / one["updates"] * many["dearest_share"] + reduction)
            for one, many, reduction in zip(alone, together, reductions, strict=True)
        ],
        "of it the reduction": [1000 * reduction for reduction in reductions],
    }
    share = together[0]["dearest_share"]
    notes = [f"the process with most to do computes {share:.1%} of the padded tokens of a step"]
    return compare("a step on several processes", "milliseconds", figures, base="measured", notes=notes)


def _compare_counts(counts: Mapping[str, dict[str, float]]) -> list[dict[str, Any]]:
    kinds = {
        "microbatches": "microbatches of process 0 in a step",
        "times_reduced": "times that a gradient is reduced in a step",
        "megabytes": "gradients that are reduced in a step",
        "small_sums": "further sums over the processes in a step, of a few numbers each",
    }
    units = {"megabytes": "MB"}
    return [
        compare(title, units.get(kind, "number"), {name: [count[kind]] for name, count in counts.items()})
        for kind, title in kinds.items()
    ]


if __name__ == "__main__":
    sys.exit(main())
