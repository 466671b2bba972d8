"""predictions/test.jsonl: what the exported model said of every row of a test set."""

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
    """One JSON object a row, in the order of the rows: its `place` in the user's data, `prediction` and `reference`.

    predictions, references: `[N, ...]`. label_names: of class indices, which are then written by their names.
    Raises UserError where the disk refuses.
    """
    are_classes = predictions.ndim == 1 and np.issubdtype(predictions.dtype, np.integer)
    name = label_names.__getitem__ if label_names is not None and are_classes else lambda value: value
    lines = []
    for row, (said, was) in enumerate(zip(predictions.tolist(), references.tolist(), strict=True)):
        told = {"place": origin_of(row), "prediction": name(said), "reference": name(was)}
        lines.append(json.dumps(told, ensure_ascii=False) + "\n")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, "".join(lines))
    except OSError as error:
        raise UserError(
            f"{path} could not be written: {explain_disk_error(error, path.parent)}; {find_remedy(error)}"
        ) from error
