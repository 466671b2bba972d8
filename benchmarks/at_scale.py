"""What grows with the number of processes and of rows, by simulation: plans, exchanges, checkpoints, memory of a plan.

    python -m benchmarks.at_scale
    python -m benchmarks.at_scale --processes 8 64 512 --plan-rows 10_000_000

One machine runs the code that each of so many processes would run, and nothing is sent. Plans are pure functions, so
they are the plans of a real run: rows have 10 to 2,048 tokens, and the limits are those of a GPU. Exchanges are counted
where the sharded model calls torch, in a process group whose other members are not there. Bytes and messages are then
arithmetic, for exchanges in a ring: of what is gathered or scattered among N processes each sends (N - 1) / N, in N - 1
messages, and twice that for a sum. With replicate=auto, 8 processes share a copy of the model. A checkpoint has weights
and their averages; threads write its files, so the time to save it is that of one machine and one disk. The lengths of
the rows whose plan is measured are in a file, of 4 bytes for each, in the folder for temporary files.
"""

import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.arguments import add_size, make_parser
from benchmarks.fresh_process import call
from benchmarks.measure import compare, publish, take_turns

_PASSES = 2  # microbatches of a step whose exchanges are counted
_PER_MACHINE = 8  # processes


def main(argv: list[str] | None = None) -> int:
    parser = make_parser(__doc__, rounds=3)
    parser.add_argument("--processes", type=int, nargs="+", default=[8, 128, 1024], help="numbers of processes")
    add_size(parser, "--rows-a-process", 32, "rows of an update, for each process")
    parser.add_argument(
        "--plan-rows", type=int, nargs="+", default=[10**7, 10**8, 10**9], help="rows whose plan is measured"
    )
    options = parser.parse_args(argv)
    comparisons = [
        *_compare_plans(options.processes, options.rows_a_process, rounds=options.rounds),
        *_compare_exchanges(options.processes),
        *_compare_saves(options.processes, rounds=options.rounds),
        *_compare_sizes(options.plan_rows, options.rows_a_process, rounds=options.rounds),
    ]
    settings = {
        "model": "random weights, of the size of MiniLM-L6",
        "rows_a_process": options.rows_a_process,
        "rounds": options.rounds,
    }
    publish("at_scale", comparisons, settings=settings, folder=options.results)
    return 0


def _compare_plans(processes: Sequence[int], rows_a_process: int, *, rounds: int) -> list[dict[str, Any]]:
    sides = {
        f"{_name(number)}{', packing' if packed else ''}": {
            "num_processes": number,
            "rows_a_process": rows_a_process,
            "packed": packed,
        }
        for packed in (False, True)
        for number in processes
    }
    outcomes = _start("time_plan", sides, rounds=rounds)
    return [
        compare("planning a step, on each process", "milliseconds of a processor", _take(outcomes, "milliseconds")),
        compare("what the busiest process computes in a step", "times the mean", _take(outcomes, "busiest")),
        compare("dummy microbatches under parallel.shard=full", "share of the passes", _take(outcomes, "dummies")),
        compare("padding", "share of computed tokens", _take(outcomes, "padding")),
    ]


def _compare_exchanges(processes: Sequence[int]) -> list[dict[str, Any]]:
    counted: dict[str, dict[str, float]] = {}
    for number in processes:
        wanted = {"num_processes": number, "per_machine": _PER_MACHINE, "passes": _PASSES}
        of_kinds = call("benchmarks.at_scale_sides:count_exchanges", wanted)
        counted |= {f"{_name(number)}, {kind}": count for kind, count in of_kinds.items()}
    titles = {
        "exchanges": (f"exchanges in a step of {_PASSES} microbatches", "number"),
        "megabytes": (f"bytes that a process sends in a step of {_PASSES} microbatches", "MB"),
        "messages": (f"messages that a process sends in a step of {_PASSES} microbatches", "number"),
        "padding": ("what parts of one size for each process add to the bytes", "share"),
    }
    return [
        compare(title, unit, {side: [count[kind]] for side, count in counted.items()})
        for kind, (title, unit) in titles.items()
    ]


def _compare_saves(processes: Sequence[int], *, rounds: int) -> list[dict[str, Any]]:
    comparisons = []
    for number in processes:
        rows = {"num_writers": number, "num_readers": [max(number // 2, 1), 1]}

        def save(wanted: Mapping[str, Any] = rows) -> dict[str, float]:
            with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
                return call("benchmarks.at_scale_saves:save_and_read", {"folder": folder, **wanted})

        outcomes = take_turns({"save": save}, rounds=rounds)["save"]
        manifest = outcomes[0].pop("manifest_kilobytes")
        times = {name: [outcome[name] for outcome in outcomes] for name in outcomes[0]}
        notes = [f"the manifest has {manifest:,.0f} kB"]
        comparisons.append(compare(f"a checkpoint of {_name(number)}", "seconds", times, notes=notes))
    return comparisons


def _compare_sizes(plan_rows: Sequence[int], rows_a_process: int, *, rounds: int) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        sides = {}
        for count in plan_rows:
            path = Path(folder) / f"{count}.npy"
            call("benchmarks.at_scale_sides:write_lengths", {"path": str(path), "count": count})
            sides[f"{count:,} rows"] = {"path": str(path), "batch_size": 8 * rows_a_process}
        outcomes = _start("plan_rows", sides, rounds=rounds)
    return [
        compare(
            "the order of an epoch, and the steps of its first 65,536 rows",
            "seconds of a processor",
            _take(outcomes, "first_seconds"),
        ),
        compare("65,536 rows at any other place of it", "seconds of a processor", _take(outcomes, "other_seconds")),
        compare("memory of the plan, without pages of files", "MB", _take(outcomes, "megabytes")),
    ]


def _start(function: str, sides: Mapping[str, Mapping[str, Any]], *, rounds: int) -> dict[str, list[dict[str, float]]]:
    return take_turns(
        {
            name: lambda wanted=wanted: call(f"benchmarks.at_scale_sides:{function}", wanted)
            for name, wanted in sides.items()
        },
        rounds=rounds,
    )


def _take(outcomes: Mapping[str, list[dict[str, float]]], kind: str) -> dict[str, list[float]]:
    return {name: [result[kind] for result in results] for name, results in outcomes.items()}


def _name(num_processes: int) -> str:
    return f"{num_processes:,} processes"


if __name__ == "__main__":
    sys.exit(main())
