"""Time to fine-tune a small encoder on texts as long as IMDb's: from the first step to the last, or to an accuracy.

    python -m benchmarks.fine_tune --data path/to/imdb
    python -m benchmarks.fine_tune --data path/to/imdb --attention-dropout
    python -m benchmarks.fine_tune --data path/to/imdb --until-accuracy 0.85 --rows 4800 --held-out 2000

Every side runs in a process of its own. It starts from the same weights and trains the same rows once, in batches of
the same size, with the same fused AdamW, learning rate, schedule and clipping. The differences are:

- trainer_loop: the command with configs/imdb.yaml (attention dropout 0, precision auto) and its token budget.
- bare PyTorch: a loop written by hand over the same microbatches, with the same model config and precision. It uses
  torch's own attention, dropout and embedding gradients; trainer_loop has faster ones on a CPU (ops/cpu_kernels.py).
- Trainer, tutorial: random batches padded to their longest row, fp32, the model's own dropout.
- Trainer, best: batches grouped by length (so they are not random), the precision and model config of trainer_loop.

With --attention-dropout, all sides keep the model's own attention dropout. With --until-accuracy, trainer_loop and the
tutorial's Trainer train until they reach that accuracy on the held-out rows. It is measured every --evaluate-every
steps, and the time of the measurement is not counted. The losses on held-out rows may differ by a tenth, because
dropout draws differ and Trainer takes the rows in another order. After a few updates these losses show that all sides
learn the same; they do not show which side learns best.
"""

import sys
import tempfile
from collections.abc import Mapping
from typing import Any

from benchmarks.arguments import add_size, add_texts, make_parser
from benchmarks.fresh_process import call
from benchmarks.measure import compare, publish, take_turns
from benchmarks.our_run import files_of
from benchmarks.same_work import find_differences, tell_differences
from benchmarks.workplace import make_workplace
from trainer_loop.runtime.host import prepare_environment

_TOLERANCE = 0.1  # of the loss on held-out rows; dropout draws differ, and so does Trainer's order of rows


def main(argv: list[str] | None = None) -> int:
    parser = make_parser(__doc__, rounds=3)
    add_texts(parser, rows=1024, held_out=256)
    add_size(parser, "--batch-size", 32, "rows of an update")
    parser.add_argument("--attention-dropout", action="store_true", help="leave the model's own on, everywhere")
    parser.add_argument("--until-accuracy", type=float, help="stop at this accuracy on the held-out rows")
    add_size(parser, "--evaluate-every", 15, "with --until-accuracy: steps between two looks")
    options = parser.parse_args(argv)
    with make_workplace(rows=options.rows, held_out=options.held_out, data=options.data, model=options.model) as place:
        wanted = {
            **files_of(place),
            "max_length": options.max_length,
            "batch_size": options.batch_size,
            "attention_dropout": options.attention_dropout,
            "until_accuracy": options.until_accuracy,
            "evaluate_every": options.evaluate_every,
        }
        names = _SIDES if options.until_accuracy is None else _RACERS
        outcomes = take_turns(
            {name: lambda name=name: _call(name, wanted, place.environment) for name in names}, rounds=options.rounds
        )
        settings = place.described | {
            name: getattr(options, name)
            for name in ("rows", "held_out", "max_length", "batch_size", "rounds", "attention_dropout")
        }
    if options.until_accuracy is None:
        return _publish_times(outcomes, settings, options)
    return _publish_race(outcomes, settings, options)


def run_side(*, side: str, until_accuracy: float | None, evaluate_every: int, **wanted: Any) -> dict[str, Any]:
    """Train on one side; returns what the watch recorded, and the scores on held-out rows."""
    from pathlib import Path

    if side == "trainer_loop":
        prepare_environment()  # before torch is imported, like the command

    from benchmarks import fine_tune_sides
    from benchmarks.scoring import Scorer
    from benchmarks.watch import Watch
    from trainer_loop.parallel.processes import choose_precision

    precision = choose_precision("auto")
    scorer = Scorer(
        Path(wanted["held_out"]), Path(wanted["model"]), max_length=wanted["max_length"], precision=precision
    )
    watch = Watch(score=lambda model: scorer.score(model).accuracy, every=evaluate_every, target=until_accuracy)
    train = {
        "trainer_loop": fine_tune_sides.train_with_ours,
        "bare PyTorch": fine_tune_sides.train_bare,
        "Trainer, tutorial": fine_tune_sides.train_as_tutorial,
        "Trainer, best": fine_tune_sides.train_with_best_trainer,
    }[side]
    with tempfile.TemporaryDirectory() as folder:
        model = train(fine_tune_sides.Wanted(**wanted, folder=folder, precision=precision), watch)
    scored = scorer.score(model)
    return watch.outcome() | {"loss": scored.loss, "accuracy": scored.accuracy}


_SIDES = ("trainer_loop", "bare PyTorch", "Trainer, tutorial", "Trainer, best")
_RACERS = ("trainer_loop", "Trainer, tutorial")


def _call(side: str, wanted: Mapping[str, Any], environment: Mapping[str, str]) -> dict[str, Any]:
    arguments = {"side": side, **wanted}
    return call("benchmarks.fine_tune:run_side", arguments, environment=environment)


def _publish_times(outcomes: Mapping[str, list[dict[str, Any]]], settings: dict[str, Any], options: Any) -> int:
    same = ["updates", "rows", "tokens", "token_sum"]
    if differences := find_differences(outcomes, equal=same, close={"loss": _TOLERANCE}):
        tell_differences(differences)
        return 1
    dropout = "the model's own attention dropout" if options.attention_dropout else "attention dropout 0, but tutorial"
    updates = outcomes["trainer_loop"][0]["updates"]
    seconds = {name: [result["seconds"] for result in results] for name, results in outcomes.items()}
    losses = {name: [result["loss"] for result in results] for name, results in outcomes.items()}
    comparisons = [
        compare(f"{updates} updates, first step to last, {dropout}", "seconds", seconds, base="trainer_loop"),
        compare("loss on held-out rows afterwards", "nats a row", losses),
    ]
    name = "fine_tune_attention_dropout" if options.attention_dropout else "fine_tune"
    publish(name, comparisons, settings=settings, folder=options.results)
    return 0


def _publish_race(outcomes: Mapping[str, list[dict[str, Any]]], settings: dict[str, Any], options: Any) -> int:
    behind = [
        f"{name} ended at accuracy {result['accuracy']:.4f} after {result['updates']} updates"
        for name, results in outcomes.items()
        for result in results
        if result["accuracy"] < options.until_accuracy
    ]
    if behind:
        print(f"not every side reached {options.until_accuracy}, so nothing is compared; raise --rows:")
        print("\n".join(f"  {line}" for line in behind))
        return 1
    seconds = {name: [result["seconds"] for result in results] for name, results in outcomes.items()}
    updates = {name: [float(result["updates"]) for result in results] for name, results in outcomes.items()}
    target = f"to {options.until_accuracy:.0%} of {options.held_out:,} held-out rows"
    comparisons = [
        compare(target, "seconds of training", seconds, base="trainer_loop"),
        compare(target, "updates", updates, base="trainer_loop"),
    ]
    settings |= {"until_accuracy": options.until_accuracy, "evaluate_every": options.evaluate_every}
    publish("fine_tune_until_accuracy", comparisons, settings=settings, folder=options.results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
