"""Bytes that a process holds, the time of a step, a save and a load: every process with the model, zero2, and full.

    python -m benchmarks.sharding --data path/to/imdb

All sides run the same config on the same processes and batches, with fp32 weights and AdamW, so they make the same
updates. Each process has one thread and is kept on its own core; gloo connects them. Bytes are counted in the
tensors of process 0 between its last backward pass and its update, beside the formula of docs/scaling.md. A save is
timed on process 0 until all files are flushed and the checkpoint is sealed; a load from its begin to the restored
optimizer, checksums included. The files are in the page cache then.
"""

import sys
from collections.abc import Mapping
from typing import Any

from benchmarks.arguments import add_size, add_texts, make_parser
from benchmarks.measure import compare, publish, take_turns
from benchmarks.our_run import files_of
from benchmarks.same_work import find_differences, tell_differences
from benchmarks.scaling import keep_to_one_core, launch
from benchmarks.workplace import make_workplace

SHARDS = ("none", "zero2", "full")
_TOLERANCE = 0.01  # of the loss on held-out rows
_WORDS = {"weights": 4, "gradients": 4, "optimizer": 8}  # bytes for each parameter, with AdamW


def main(argv: list[str] | None = None) -> int:
    parser = make_parser(__doc__, rounds=3)
    add_texts(parser, rows=256, held_out=64)
    add_size(parser, "--batch-size", 32, "rows of an update, over all processes")
    add_size(parser, "--num-processes", 2, "processes, each with a core of its own")
    options = parser.parse_args(argv)
    with make_workplace(rows=options.rows, held_out=options.held_out, data=options.data, model=options.model) as place:
        runs = 0

        def train(shard: str) -> dict[str, Any]:
            nonlocal runs
            runs += 1
            wanted = {
                **files_of(place),
                "max_length": options.max_length,
                "batch_size": options.batch_size,
                "folder": str(place.root / f"run-{runs}"),
                "shard": shard,
            }
            return launch("benchmarks.sharding:run_side", place, options.num_processes, wanted)

        outcomes = take_turns({shard: lambda shard=shard: train(shard) for shard in SHARDS}, rounds=options.rounds)
        settings = place.described | {
            name: getattr(options, name) for name in ("rows", "max_length", "batch_size", "num_processes", "rounds")
        }
    if differences := find_differences(outcomes, equal=["updates", "rows", "tokens"], close={"loss": _TOLERANCE}):
        tell_differences(differences)
        return 1
    publish("sharding", _compare(outcomes, options.num_processes), settings=settings, folder=options.results)
    return 0


def run_side(**wanted: Any) -> dict[str, Any]:
    """Train in this process; returns seconds, counts, bytes held and the held-out loss."""
    from benchmarks.sharding_sides import train

    keep_to_one_core()
    return train(wanted)


def _compare(outcomes: Mapping[str, list[dict[str, Any]]], num_processes: int) -> list[dict[str, Any]]:
    def take(name: str) -> dict[str, list[float]]:
        return {shard: [result[name] for result in results] for shard, results in outcomes.items()}

    parameters = outcomes["none"][0]["parameters"]
    held = [
        compare(
            f"bytes of {part} that a process holds",
            "MB",
            {
                **{shard: [value / 2**20 for value in values] for shard, values in take(part).items()},
                "a part, by the formula": [parameters * size / num_processes / 2**20] * len(outcomes["none"]),
            },
            base="none",
        )
        for part, size in _WORDS.items()
    ]
    steps = {
        shard: [1000 * result["seconds"] / result["updates"] for result in results]
        for shard, results in outcomes.items()
    }
    return [
        *held,
        compare("a step", "milliseconds", steps, base="none"),
        compare("saving a checkpoint, until it lies on disk", "seconds", take("save_seconds"), base="none"),
        compare("loading that checkpoint", "seconds", take("load_seconds"), base="none"),
    ]


if __name__ == "__main__":
    sys.exit(main())
