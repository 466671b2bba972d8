"""Time to fine-tune taggers, span finders, sequence-to-sequence models and assistants, beside transformers.Trainer.

    python -m benchmarks.tasks
    python -m benchmarks.tasks --tasks chat --rows 1024 --rounds 3

Rows are made up, with the spread of lengths of real ones, and models are small and begin with random weights: the same
for both sides. Every side runs in a process of its own and trains the same tokens once, in batches of the same size,
with the same fused AdamW, learning rate, schedule, clipping and precision. Both sides group rows by length
(`batch.order=window`, `train_sampling_strategy`). The peer is Trainer; for chat it is SFTTrainer of TRL, if that is
installed (`pip install trl`). Both sides get the rows as trainer_loop encodes them, so tokenising is in neither time.
The loss at the end is that of held-out rows, computed by trainer_loop for both models. Trainer takes the rows in
another order, so the losses may differ by a tenth.
"""

import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.arguments import add_size, make_parser
from benchmarks.fresh_process import call
from benchmarks.measure import compare, publish, take_turns
from benchmarks.same_work import find_differences, tell_differences

TASKS = ("tags", "spans", "seq2seq", "chat")
_TOLERANCE = 0.1  # of the loss on held-out rows


def main(argv: list[str] | None = None) -> int:
    from benchmarks.tasks_rows import prepare

    parser = make_parser(__doc__, rounds=1)
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=TASKS, help="all by default")
    add_size(parser, "--rows", 512, "training rows of each task")
    add_size(parser, "--held-out", 128, "rows that are scored and not trained on")
    add_size(parser, "--batch-size", 32, "rows of an update")
    add_size(parser, "--layers", 4, "layers of each model")
    options = parser.parse_args(argv)
    comparisons, failed = [], False
    with tempfile.TemporaryDirectory() as folder:
        for task in options.tasks:
            place = Path(folder) / task
            prepare(place, task, rows=options.rows, held_out=options.held_out, layers=options.layers)
            peer = _name_peer(task)
            wanted = {"task": task, "folder": str(place), "batch_size": options.batch_size}
            outcomes = take_turns(
                {side: lambda side=side, wanted=wanted: _call(side, wanted) for side in ("trainer_loop", peer)},
                rounds=options.rounds,
            )
            same = ["updates", "rows", "tokens", "token_sum"]
            if differences := find_differences(outcomes, equal=same, close={"loss": _TOLERANCE}):
                print(f"{task}:")
                tell_differences(differences)
                failed = True
                continue
            comparisons += _compare(task, outcomes)
    if failed:
        return 1
    names = ("rows", "held_out", "batch_size", "layers", "rounds")
    publish("tasks", comparisons, settings={name: getattr(options, name) for name in names}, folder=options.results)
    return 0


def run_side(*, side: str, task: str, folder: str, batch_size: int) -> dict[str, Any]:
    """Train on one side; returns what the watch recorded, the share of padding, and the loss on held-out rows."""
    from benchmarks.tasks_sides import Work, train_with_ours, train_with_peer

    work = Work(task, Path(folder), batch_size)
    return train_with_ours(work) if side == "trainer_loop" else train_with_peer(work)


def _name_peer(task: str) -> str:
    from importlib.util import find_spec

    return "SFTTrainer" if task == "chat" and find_spec("trl") is not None else "Trainer"


def _call(side: str, wanted: Mapping[str, Any]) -> dict[str, Any]:
    caches = {"HF_DATASETS_CACHE": f"{wanted['folder']}/datasets", "TRAINER_LOOP_CACHE": f"{wanted['folder']}/tokens"}
    return call("benchmarks.tasks:run_side", {"side": side, **wanted}, environment={"HF_HUB_OFFLINE": "1", **caches})


def _compare(task: str, outcomes: Mapping[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    updates = outcomes["trainer_loop"][0]["updates"]
    by_name = {
        name: {side: [result[name] for result in results] for side, results in outcomes.items()}
        for name in ("seconds", "padding", "loss")
    }
    return [
        compare(f"{task}: {updates} updates, first step to last", "seconds", by_name["seconds"], base="trainer_loop"),
        compare(f"{task}: padding", "share of the tokens that are computed", by_name["padding"]),
        compare(f"{task}: loss on held-out rows afterwards", "nats a target", by_name["loss"]),
    ]


if __name__ == "__main__":
    sys.exit(main())
