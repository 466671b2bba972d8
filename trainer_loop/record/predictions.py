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
    """How the rows of a set were judged, in their order.

    predictions, references: `[N, ...]`, or `[N]` arrays of unlike lengths, or texts, or lists of them; `[N, C]` truth
    values for sets of classes. details: `[N]` numbers of each row besides, by name, see `Task.rate_rows`.
    """

    metrics: dict[str, float]  # the mean loss, the metrics, and the number of rows
    rows: Sequence[int]  # [N] numbers of the encoded rows; of merged rows those of the first
    predictions: np.ndarray
    references: np.ndarray
    details: Mapping[str, np.ndarray] = field(default_factory=dict)

    def take_texts(self, number: int) -> list[Sample]:
        """The first texts that were written, each with its first reference; none if no texts are compared."""
        rows = zip(self.predictions[:number], self.references, strict=False)
        return [
            {"prediction": text, "reference": known[0] if known else None} for text, known in rows if type(text) is str
        ]


def write_predictions(
    path: Path, scores: Scores, *, origin_of: Callable[[int], str], label_names: Sequence[str] | None
) -> None:
    """Write one JSON object for each row, in the order of the rows.

    It has its origin as `place`, `prediction` and `reference`, and the details of the row.

    origin_of: where a row stands in the user's data. label_names: of the classes, written in place of their indices.
    """
    names = label_names if scores.predictions.ndim == 1 or scores.predictions.dtype == np.bool_ else None
    lines = []
    details = {name: column.tolist() for name, column in scores.details.items()}
    for place, row in enumerate(scores.rows):
        pair = {"prediction": scores.predictions[place], "reference": scores.references[place]}
        values = {name: _to_json(value, names) for name, value in pair.items()}
        values |= {name: _round(column[place]) for name, column in details.items()}
        lines.append(json.dumps({"place": origin_of(row), **values}, ensure_ascii=False) + "\n")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, "".join(lines))
    except OSError as error:
        raise UserError(
            f"{path} could not be written: {explain_disk_error(error, path.parent)}; {find_remedy(error)}"
        ) from error


def _to_json(value: Any, names: Sequence[str] | None) -> Any:
    """A number or a list of numbers; whole numbers as names of classes, if there are any; a text, or a list of such.

    Of truth values, one for each class, the names of those that are true.
    """
    if not hasattr(value, "dtype"):
        return value
    if names is not None and value.dtype == np.bool_ and len(value) == len(names):
        return [name for name, is_there in zip(names, value, strict=True) if is_there]
    if names is None or not np.issubdtype(value.dtype, np.integer):
        return value.tolist()
    return _name(value, names) if value.ndim == 0 else [_name(index, names) for index in value]


def _round(value: float) -> float | None:
    """Six digits of a fraction; JSON has no nan."""
    if isinstance(value, int):
        return value
    return float(f"{value:.6g}") if math.isfinite(value) else None


def _name(index: int, names: Sequence[str]) -> str | None:
    return names[index] if index >= 0 else None  # -100 is no target
