"""One number, or several, for one text, or for a pair of texts."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from trainer_loop.data.column_values import read_numbers
from trainer_loop.data.columns import Column
from trainer_loop.tasks.losses import mse
from trainer_loop.tasks.sequence_classification import SequenceClassification
from trainer_loop.tasks.task import Batch, Rows


class SequenceRegression(SequenceClassification):
    """A row is a text (or a pair of texts) with a number, or with several; a target is one number of one row.

    Several numbers of a row are a list of the same length in each, or a column for each: list these, as in
    `data.columns={label: [valence, arousal]}`. Metrics are reported for each number and as their mean.

    loss_function: `(predictions [N], numbers [N]) -> sum over rows, []`; of several numbers, both are `[N, K]`, and the
        sum is over rows and numbers.
    """

    columns: ClassVar[Mapping[str, Column]] = {
        "text": Column("text"),
        "text_pair": Column("text", optional=True),
        "label": Column("numbers", target=True),
    }
    metrics = ("pearson", "spearman")
    outputs: ClassVar[Mapping[str, str] | None] = {"predictions": "number", "references": "number"}
    problem_type = "regression"
    example: ClassVar[Sequence[Mapping[str, Any]]] = (
        {"text": "A delight from the first page to the last.", "label": 4.8},
        {"text": "It broke after a week.", "label": 1.5},
        {"text": "I would buy it again, and again, and tell all my friends.", "label": 5.0},
        {"text": "Never.", "label": 0},
    )

    def __init__(self, *, loss_function: Callable[[Tensor, Tensor], Tensor] = mse):
        super().__init__(loss_function=loss_function)

    def encode(self, rows: Rows, *, max_length: int) -> dict[str, list[Any]]:
        encoded = super().encode(rows, max_length=max_length)
        return encoded | ({"label": [read_numbers(value) for value in rows["label"]]} if "label" in rows else {})

    def count(self, batch: Batch) -> int:
        """Numbers, of all rows."""
        return int(batch["labels"].numel())

    def predict(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """`predictions` `[B]`, or `[B, K]` for several numbers; `references` likewise where they are known."""
        return super().predict(model, batch)

    def decode(self, outputs: Mapping[str, Any], row: Mapping[str, Any]) -> dict[str, Any]:
        """`value`: the number; or `values`: several by their names."""
        if outputs["predictions"].ndim == 0:
            return {"value": float(outputs["predictions"])}
        assert self.label_names is not None, "the task is bound to the names of several numbers"
        return {"values": dict(zip(self.label_names, outputs["predictions"].tolist(), strict=True))}

    def _logits(self, model: nn.Module, batch: Batch) -> Tensor:
        logits = super()._logits(model, batch)
        logits = logits[:, 0] if logits.shape[1] == 1 else logits
        return logits.to(torch.promote_types(logits.dtype, torch.float32))

    def _make_outputs(self, logits: Tensor, batch: Batch) -> dict[str, Tensor]:
        return {"predictions": logits} | ({"references": batch["labels"]} if "labels" in batch else {})
