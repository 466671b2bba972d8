"""predictions/test.jsonl: the predictions of the exported model for every row of a test set."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from trainer_loop.errors import UserError
from trainer_loop.record.run_dir import explain_disk_error, find_remedy, write_text


def write_predictions(
    path: Path,
    *,
    predictions: np.ndarray,
    references: np.ndarray,
    origin_of: Callable[[int], str],
    label_names: Sequence[str] | None,
) -> None:
    """Write one JSON object for each row, in the order of the rows: `place` (its origin), `prediction`, `reference`.

    predictions, references: `[N, ...]`. origin_of: where a row stands in the user's data. label_names: of the classes,
    written in place of their indices.
    """
    are_classes = predictions.ndim == 1 and np.issubdtype(predictions.dtype, np.integer)
    name = label_names.__getitem__ if label_names is not None and are_classes else lambda value: value
    lines = []
    for row, (predicted, reference) in enumerate(zip(predictions.tolist(), references.tolist(), strict=True)):
        line = {"place": origin_of(row), "prediction": name(predicted), "reference": name(reference)}
        lines.append(json.dumps(line, ensure_ascii=False) + "\n")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, "".join(lines))
    except OSError as error:
        raise UserError(
            f"{path} could not be written: {explain_disk_error(error, path.parent)}; {find_remedy(error)}"
        ) from error
