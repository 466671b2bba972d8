"""The command line of trainer_loop's side: a shipped config with another model, data and sizes."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.workplace import Workplace

CONFIGS = Path(__file__).parents[1] / "configs"


def imdb_words(
    *,
    model: str,
    train: str,
    held_out: str | None,
    folder: str,
    max_length: int,
    batch_size: int,
    attention_dropout: float | None = None,
    evaluates: bool = False,
    steps: int | None = None,
) -> list[str]:
    """Arguments that run configs/imdb.yaml for one epoch, or `steps` updates, on these files, without checkpoints.

    Args:
        attention_dropout: replaces the 0 of the config.
        evaluates: whether `held_out` is scored after training.
    """
    words = [
        f"config={CONFIGS / 'imdb.yaml'}",
        f"run_dir={folder}",
        f"model.name={model}",
        "data.name=null",
        f"data.train={train}",
        f"data.validation={held_out or 'null'}",
        f"data.max_length={max_length}",
        f"batch.size={batch_size}",
        *(["train.epochs=1"] if steps is None else ["train.epochs=null", f"train.steps={steps}"]),
        "checkpoint.every=never",
        "checkpoint.best=null",
    ]
    if attention_dropout is not None:
        words.append(f"model.overrides={{attention_probs_dropout_prob: {attention_dropout}}}")
    return words if evaluates else [*words, "evaluate.every=never"]


def files_of(place: Workplace) -> Mapping[str, Any]:
    """The arguments that name files, for all sides, as plain JSON."""
    return {"model": str(place.model), "train": str(place.train), "held_out": str(place.held_out)}
