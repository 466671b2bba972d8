"""predictions/test.jsonl: the predictions of the exported model for every row of a test set."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from trainer_loop.errors import UserError
from trainer_loop.record.run_dir import explain_disk_error, find_remedy, write_text

Sample = dict[str, str | None]  # `prediction` and `reference`


@dataclass(frozen=True)
class Scores:
    """Metrics and predictions of a set, in the order of its rows.

    predictions and references are `[N, ...]`, or `[N]` arrays of unlike lengths, texts, or lists of texts; `[N, C]`
    booleans for sets of classes.
    """

    metrics: dict[str, float]  # the mean loss, the metrics, and the number of rows
    rows: Sequence[int]  # [N] numbers of the encoded rows; for merged rows the number of the first
    predictions: np.ndarray
    references: np.ndarray
    details: Mapping[str, np.ndarray] = field(default_factory=dict)  # [N] further numbers by name, see `Task.rate_rows`

    def take_texts(self, number: int) -> list[Sample]:
        """Return the first generated texts, each with its first reference; empty if the predictions are not texts."""
        rows = zip(self.predictions[:number], self.references, strict=False)
        return [
            {"prediction": text, "reference": texts[0] if texts else None} for text, texts in rows if type(text) is str
        ]


def write_predictions(
    path: Path, scores: Scores, *, origin_of: Callable[[int], str], label_names: Sequence[str] | None
) -> None:
    """Write one JSON object for each row, in order: `place`, `prediction`, `reference`, and the details of the row.

    Args:
        origin_of: Returns the place of a row in the user's data.
        label_names: Names of the classes, written instead of their indices.
    """
    names = label_names if scores.predictions.ndim == 1 or scores.predictions.dtype == np.bool_ else None
    lines = []
    details = {name: column.tolist() for name, column in scores.details.items()}
    for position, row in enumerate(scores.rows):
        pair = {"prediction": scores.predictions[position], "reference": scores.references[position]}
        values = {name: _to_json(value, names) for name, value in pair.items()}
        values |= {name: _round(column[position]) for name, column in details.items()}
        lines.append(json.dumps({"place": origin_of(row), **values}, ensure_ascii=False) + "\n")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, "".join(lines))
    except OSError as error:
        raise UserError(
            f"{path} could not be written: {explain_disk_error(error, path.parent)}; {find_remedy(error)}"
        ) from error


def _to_json(value: Any, names: Sequence[str] | None) -> Any:
    """Convert a number, a text, or a list of them to JSON; integers and booleans become names of classes."""
    if not hasattr(value, "dtype"):
        return value
    if names is not None and value.dtype == np.bool_ and len(value) == len(names):
        return [name for name, is_predicted in zip(names, value, strict=True) if is_predicted]
    if names is None or not np.issubdtype(value.dtype, np.integer):
        return value.tolist()
    return _name(value, names) if value.ndim == 0 else [_name(index, names) for index in value]


def _round(value: float) -> float | None:
    """Round to six significant digits; nan becomes None, because JSON has no nan."""
    if isinstance(value, int):
        return value
    return float(f"{value:.6g}") if math.isfinite(value) else None


def _name(index: int, names: Sequence[str]) -> str | None:
    return names[index] if index >= 0 else None  # -100 is no target
