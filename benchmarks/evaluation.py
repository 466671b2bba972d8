"""Scoring a trained classifier on held-out rows: rows per second of trainer_loop's evaluation and of Trainer.evaluate.

    python -m benchmarks.evaluation --data path/to/imdb

The model is first trained briefly, so that it is certain about most rows. Each side loads it in a process of its own
and scores the same rows. Loading and tokenising are not counted. The differences are:

- trainer_loop: the command's own evaluation, rows sorted and cut by the token budget, precision auto.
- Trainer, tutorial: batches of 8 in the order of the file, padded to their longest row, the same precision.
- Trainer, best: batches grouped by length, of --trainer-batch-size rows.

Loss and metrics must be equal, up to the bf16 rounding of batches with other shapes.
"""

import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.arguments import add_size, add_texts, make_parser
from benchmarks.fresh_process import call
from benchmarks.measure import compare, publish, take_turns
from benchmarks.our_run import files_of, imdb_words
from benchmarks.same_work import find_differences, tell_differences
from benchmarks.workplace import make_workplace

_TOLERANCES = {"loss": 0.01, "accuracy": 0.01, "f1": 0.02}  # bf16 changes rows about which the model is uncertain


def main(argv: list[str] | None = None) -> int:
    parser = make_parser(__doc__, rounds=3)
    add_texts(parser, rows=1024, held_out=25_000)
    add_size(parser, "--batch-size", 32, "rows of an update of the short training")
    add_size(parser, "--trainer-batch-size", 32, "rows of an evaluation batch of Trainer at its best")
    options = parser.parse_args(argv)
    with make_workplace(rows=options.rows, held_out=options.held_out, data=options.data, model=options.model) as place:
        wanted = {**files_of(place), "max_length": options.max_length}
        trained = call(
            "benchmarks.evaluation:train_model",
            {**wanted, "batch_size": options.batch_size, "folder": str(place.root / "run")},
            environment=place.environment,
        )
        wanted |= {"model": trained, "trainer_batch_size": options.trainer_batch_size}
        outcomes = take_turns(
            {name: lambda name=name: _call(name, wanted, place.environment) for name in _SIDES}, rounds=options.rounds
        )
        settings = place.described | {
            name: getattr(options, name) for name in ("held_out", "max_length", "trainer_batch_size", "rounds")
        }
    if differences := find_differences(outcomes, equal=["rows"], close=_TOLERANCES):
        tell_differences(differences)
        return 1
    rates = {name: [result["rows"] / result["seconds"] for result in results] for name, results in outcomes.items()}
    accuracies = {name: [result["accuracy"] for result in results] for name, results in outcomes.items()}
    comparisons = [
        compare(f"evaluation of {options.held_out:,} rows", "rows a second", rates, base="Trainer, tutorial"),
        compare("accuracy that was found", "share of rows", accuracies),
    ]
    publish("evaluation", comparisons, settings=settings, folder=options.results)
    return 0


def train_model(*, folder: str, **wanted: Any) -> str:
    """The folder of a briefly trained model."""
    from trainer_loop.cli.run import main

    code = main(imdb_words(**wanted, folder=folder))
    assert code == 0, f"the command ended with exit code {code}"
    return str(Path(folder) / "model")


def run_side(
    *, side: str, model: str, train: str, held_out: str, max_length: int, trainer_batch_size: int
) -> dict[str, Any]:
    """Score on one side: seconds, rows, loss, accuracy and f1."""
    with tempfile.TemporaryDirectory() as folder:
        evaluate = _SIDES[side](model, train, held_out, max_length, trainer_batch_size, folder)
        began = time.perf_counter()
        values = evaluate()
        seconds = time.perf_counter() - began
    return {"seconds": seconds, **values}


def _load_ours(
    model: str, train: str, held_out: str, max_length: int, trainer_batch_size: int, folder: str
) -> Callable[[], dict[str, float]]:
    from trainer_loop.runtime.host import prepare_environment

    prepare_environment()  # before torch is imported, like the command

    from trainer_loop import build, load_config
    from trainer_loop.config.load import split_arguments

    words = imdb_words(
        model=model, train=train, held_out=held_out, folder=folder, max_length=max_length, batch_size=32, evaluates=True
    )
    name, overrides, _ = split_arguments(words)
    loop = build(load_config(name, overrides))
    (loader,) = loop.data.validation.values()
    return lambda: loop.evaluate(loader)


def _load_tutorial(
    model: str, train: str, held_out: str, max_length: int, trainer_batch_size: int, folder: str
) -> Callable[[], dict[str, float]]:
    return _load_trainer(model, held_out, max_length, folder, batch_size=8, group_by_length=False)


def _load_best_trainer(
    model: str, train: str, held_out: str, max_length: int, trainer_batch_size: int, folder: str
) -> Callable[[], dict[str, float]]:
    return _load_trainer(model, held_out, max_length, folder, batch_size=trainer_batch_size, group_by_length=True)


def _load_trainer(
    model: str, held_out: str, max_length: int, folder: str, *, batch_size: int, group_by_length: bool
) -> Callable[[], dict[str, float]]:
    from benchmarks.peer_trainer import make_trainer
    from trainer_loop.parallel.processes import choose_precision

    trainer = make_trainer(
        model=model,
        train=None,
        held_out=held_out,
        folder=folder,
        max_length=max_length,
        evaluation_batch_size=batch_size,
        precision=choose_precision("auto"),
        group_by_length=group_by_length,
        compute_metrics=_compute_metrics,
    )

    def evaluate() -> dict[str, float]:
        values = trainer.evaluate()
        return {name: values[f"eval_{name}"] for name in ("loss", "accuracy", "f1", "rows")}

    return evaluate


def _compute_metrics(predicted: Any) -> dict[str, float]:
    """The metrics of configs/imdb.yaml over all rows."""
    from sklearn.metrics import accuracy_score, f1_score

    labels = predicted.label_ids
    classes = predicted.predictions.argmax(axis=-1)
    return {"accuracy": accuracy_score(labels, classes), "f1": f1_score(labels, classes), "rows": len(labels)}


_SIDES = {
    "trainer_loop": _load_ours,
    "Trainer, tutorial": _load_tutorial,
    "Trainer, best": _load_best_trainer,
}


def _call(side: str, wanted: Mapping[str, Any], environment: Mapping[str, str]) -> dict[str, Any]:
    return call("benchmarks.evaluation:run_side", {"side": side, **wanted}, environment=environment)


if __name__ == "__main__":
    sys.exit(main())
