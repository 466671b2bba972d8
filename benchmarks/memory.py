"""Peak memory of a process that trains or evaluates, by the number of rows on disk: trainer_loop beside Trainer.

    python -m benchmarks.memory --data path/to/imdb

A small model trains a few steps on parquet files of 1, 10 and 100 times as many rows (tokenising included), and scores
1, 10 and 100 times as many rows. `resident` is all memory that the process held at once. It includes pages of files
mapped into memory, which the kernel can take back. `of its own` excludes these pages. Trainer needs less memory. Part
of the difference is code that oneDNN compiles for every shape of a microbatch (docs/decisions.md).
"""

import functools
import sys
import tempfile
from typing import Any

from benchmarks.arguments import add_size, add_texts, make_parser
from benchmarks.fresh_process import call
from benchmarks.measure import compare, publish, take_turns
from benchmarks.our_run import imdb_words
from benchmarks.texts import write_texts
from benchmarks.workplace import FILES, ModelSize, Workplace, make_workplace

_SMALL = ModelSize(
    "bert",
    {
        "vocab_size": 8000,
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "max_position_embeddings": 512,
    },
)
_SIDES = ("trainer_loop", "Trainer")


def main(argv: list[str] | None = None) -> int:
    parser = make_parser(__doc__, rounds=1)
    add_texts(parser, rows=1000, held_out=1000, max_length=128)
    add_size(parser, "--steps", 10, "updates")
    parser.add_argument("--times", type=int, nargs="+", default=[1, 10, 100], help="how many times as many rows")
    options = parser.parse_args(argv)
    comparisons: list[dict[str, Any]] = []
    with make_workplace(
        rows=options.rows, held_out=options.held_out, data=options.data, model=options.model, made_model=_SMALL
    ) as place:
        comparisons += _measure_growth(place, "train", options)
        comparisons += _measure_growth(place, "held_out", options)
        settings = place.described | {
            name: getattr(options, name) for name in ("rows", "held_out", "max_length", "steps", "rounds")
        }
    publish("memory", comparisons, settings=settings, folder=options.results)
    return 0


def run_side(
    *, side: str, model: str, train: str, held_out: str | None, max_length: int, steps: int
) -> dict[str, float]:
    """Train, and evaluate if there are held-out rows; returns the peak in bytes."""
    from benchmarks.peak_memory import PeakMemory

    with tempfile.TemporaryDirectory() as folder, PeakMemory() as peak:
        if side == "trainer_loop":
            _run_ours(model, train, held_out, folder, max_length, steps)
        else:
            _run_trainer(model, train, held_out, folder, max_length, steps)
    return {"resident": peak.resident, "of its own": peak.of_its_own}


def _run_ours(model: str, train: str, held_out: str | None, folder: str, max_length: int, steps: int) -> None:
    from trainer_loop.cli.run import main as run

    words = imdb_words(
        model=model,
        train=train,
        held_out=held_out,
        folder=folder,
        max_length=max_length,
        batch_size=32,
        evaluates=held_out is not None,
        steps=steps,
    )
    code = run(words)
    assert code == 0, f"the command ended with exit code {code}"


def _run_trainer(model: str, train: str, held_out: str | None, folder: str, max_length: int, steps: int) -> None:
    from benchmarks.peer_trainer import make_trainer
    from trainer_loop.parallel.processes import choose_precision

    trainer = make_trainer(
        model=model,
        train=train,
        held_out=held_out,
        folder=folder,
        max_length=max_length,
        precision=choose_precision("auto"),
        max_steps=steps,
    )
    trainer.train()
    if held_out is not None:
        trainer.evaluate()


def _measure_growth(place: Workplace, grown: str, options: Any) -> list[dict[str, Any]]:
    """Run both sides on growing numbers of rows of one file: `train`, or `held_out`, which is then scored."""
    rows = options.rows if grown == "train" else options.held_out
    source = None if options.data is None else options.data / f"{FILES[grown]}.parquet"
    sides = {}
    for times in options.times:
        path = place.root / f"{grown}-{times}.parquet"
        write_texts(path, rows=times * rows, source=source, seed=times)
        for side in _SIDES:
            arguments = {
                "side": side,
                "model": str(place.model),
                "train": str(place.train),
                "held_out": None,
                "max_length": options.max_length,
                "steps": options.steps,
                grown: str(path),
            }
            sides[f"{side}, {times * rows:,} rows"] = functools.partial(
                call, "benchmarks.memory:run_side", arguments, environment=place.environment
            )
    outcomes = take_turns(sides, rounds=options.rounds)
    what = "training" if grown == "train" else "training and then evaluation"
    return [
        compare(
            f"peak memory of {what}, {kind}",
            "MB",
            {name: [result[kind] / 2**20 for result in results] for name, results in outcomes.items()},
        )
        for kind in ("resident", "of its own")
    ]


if __name__ == "__main__":
    sys.exit(main())
