"""Text regression: one or several numbers for a text, or for a pair of texts."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from trainer_loop.data.columns import Column
from trainer_loop.data.values import read_numbers
from trainer_loop.errors import UserError
from trainer_loop.tasks.losses import mse
from trainer_loop.tasks.sequence_classification import SequenceClassification
from trainer_loop.tasks.task import Batch, Rows


@dataclass(frozen=True)
class Scale:
    """Mean and standard deviation of each number of a row."""

    mean: list[float]
    std: list[float]


class SequenceRegression(SequenceClassification):
    """A row is a text (or a pair of texts) with one or several numbers. A target is one number of one row.

    Several numbers are a list of the same length in each row, or a column for each number. List these columns, as in
    `data.columns={label: [valence, arousal]}`. Metrics are reported for each number, and as their mean.

    Args:
        scale: true: learn `(number - mean) / standard deviation`, computed from the training rows. The loss has these
            units, and so have the outputs of the exported model in transformers; predictions and metrics have the
            units of the data. For a stream, write `{mean: 3.2, std: 1.1}`, with lists for several numbers.
        loss_function: `(predictions [N], numbers [N]) -> sum over rows, []`; for K numbers per row both are `[N, K]`,
            and the sum is over rows and numbers.
    """

    of_tokens = ()
    columns: ClassVar[Mapping[str, Column]] = {
        **SequenceClassification.columns,
        "label": Column("numbers", target=True),
    }
    pad: ClassVar[Mapping[str, int]] = {"labels": -100, "scaled": 0}
    metrics = ("pearson", "spearman")
    outputs: ClassVar[Mapping[str, str] | None] = {"predictions": "number", "references": "number"}
    problem_type = "regression"
    predicted: ClassVar[Mapping[str, str]] = {
        "value": "number, if the model predicts one",
        "values": "numbers by name, if the model predicts several",
    }
    example: ClassVar[Sequence[Mapping[str, Any]]] = (
        {"text": "A delight from the first page to the last.", "label": 4.8},
        {"text": "It broke after a week.", "label": 1.5},
        {"text": "I would buy it again, and again, and tell all my friends.", "label": 5.0},
        {"text": "Never.", "label": 0},
    )

    def __init__(
        self,
        *,
        scale: bool | Mapping[str, Any] = False,
        loss_function: Callable[[Tensor, Tensor], Tensor] = mse,
    ):
        super().__init__(loss_function=loss_function)
        self.scales = scale is True
        self.keeps_state = scale is not False
        self._scale = None if isinstance(scale, bool) else read_scale(scale)

    def bind(self, processor: Any, **others: Any) -> None:
        """See `Task.bind`. Raises UserError if the scale has another length than the numbers of a row."""
        super().bind(processor, **others)
        count = max(len(self.label_names or ()), 1)
        if self._scale is not None and not self.scales and len(self._scale.mean) != count:
            raise UserError(f"task.args.scale: it is for {len(self._scale.mean)} numbers, and a row has {count}")

    @property
    def tuned(self) -> dict[str, Any]:
        return {} if self._scale is None else {"scale": asdict(self._scale)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._scale = read_scale(state["scale"])

    def scale_by(self, numbers: np.ndarray) -> None:
        """See `Task.scale_by`. Raises UserError if a number is the same in all rows."""
        self._scale = find_scale(numbers)
        for place, (mean, std) in enumerate(zip(self._scale.mean, self._scale.std, strict=True)):
            if not 0 < std < math.inf:
                name = f" of {self.label_names[place]}" if numbers.ndim == 2 and self.label_names else ""
                raise UserError(
                    f"task.args.scale: true: the training rows{name} have the mean {mean} and the standard deviation "
                    f"{std}, by which nothing can be divided; set it to false"
                )

    def encode(self, rows: Rows, *, max_length: int) -> dict[str, list[Any]]:
        encoded = super().encode(rows, max_length=max_length)
        return encoded | ({"label": [read_numbers(value) for value in rows["label"]]} if "label" in rows else {})

    def collate(self, rows: list[dict[str, Any]]) -> Batch:
        """See `Task.collate`. With a scale, `scaled` has the scaled labels, and `labels` are float64."""
        batch = super().collate(rows)
        if self._scale is not None and "label" in rows[0]:
            numbers = np.array([row["label"] for row in rows], dtype=np.float64)
            mean, std = self._shift(numbers.ndim)
            batch["scaled"] = torch.tensor((numbers - mean) / std, dtype=batch["labels"].dtype)
            batch["labels"] = torch.tensor(numbers, dtype=_find_widest_type())
        return batch

    def count(self, batch: Batch) -> int:
        """Return the number of numbers in all rows."""
        return int(batch["labels"].numel())

    def decode(self, outputs: Mapping[str, Any], row: Mapping[str, Any]) -> dict[str, Any]:
        """Return the number as `value`, or several numbers by name as `values`."""
        if outputs["predictions"].ndim == 0:
            return {"value": float(outputs["predictions"])}
        assert self.label_names is not None, "the task is bound to the names of several numbers"
        return {"values": dict(zip(self.label_names, outputs["predictions"].tolist(), strict=True))}

    def _logits(self, model: nn.Module, batch: Batch) -> Tensor:
        logits = super()._logits(model, batch)
        logits = logits[:, 0] if logits.shape[1] == 1 else logits
        return logits.to(torch.promote_types(logits.dtype, torch.float32))

    def _sum_loss(self, logits: Tensor, batch: Batch) -> Tensor:
        return self.loss_function(logits, batch["labels" if self._scale is None else "scaled"])

    def _make_outputs(self, logits: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Return `predictions` `[B]`, or `[B, K]` for several numbers; and `references` if they are known."""
        if self._scale is not None:
            logits = logits.to(_find_widest_type())  # numbers far from zero need the precision
            mean, std = (logits.new_tensor(part) for part in self._shift(logits.ndim))
            logits = logits * std + mean
        return {"predictions": logits} | ({"references": batch["labels"]} if "labels" in batch else {})

    def _shift(self, ndim: int) -> tuple[Any, Any]:
        """Return mean and standard deviation: `[]` for one number per row (`ndim` 1), else `[K]`."""
        assert self._scale is not None
        mean, std = self._scale.mean, self._scale.std
        return (mean[0], std[0]) if ndim == 1 else (mean, std)


def _find_widest_type() -> torch.dtype:
    """Return float64, or float32 if the device is a Mac GPU, which lacks float64."""
    return torch.float32 if torch.backends.mps.is_available() else torch.float64


def find_scale(numbers: np.ndarray) -> Scale:
    """Compute mean and standard deviation (with divisor N) of each column of `numbers`, `[N]` or `[N, K]`.

    `fsum` rounds each sum once, so the result depends neither on the machine nor on the order of the rows.

    >>> find_scale(np.array([[1.0, 0.0], [3.0, 10.0]]))
    Scale(mean=[2.0, 5.0], std=[1.0, 5.0])
    """
    columns = numbers.reshape(len(numbers), -1).T
    means = [math.fsum(column) / len(column) for column in columns]
    stds = [
        0.0 if column.min() == column.max() else math.sqrt(math.fsum((column - mean) ** 2) / len(column))
        for column, mean in zip(columns, means, strict=True)
    ]
    return Scale(means, stds)


def read_scale(value: Any) -> Scale:
    """Read a scale from a config or an export. Raises UserError if it is invalid."""
    parts = dict(value) if isinstance(value, Mapping) else {}
    lists = {name: list(part) if isinstance(part, (list, tuple)) else [part] for name, part in parts.items()}
    are_numbers = all(
        isinstance(number, (int, float)) and not isinstance(number, bool) and math.isfinite(number)
        for numbers in lists.values()
        for number in numbers
    )
    is_scale = lists.keys() == {"mean", "std"} and len(lists["mean"]) == len(lists["std"]) > 0 and are_numbers
    if not is_scale or min(lists["std"]) <= 0:
        raise UserError(
            f"task.args.scale: {value}: it must be true, false, or {{mean: 3.2, std: 1.1}} with std above 0, and with "
            "lists for several numbers"
        )
    return Scale([float(number) for number in lists["mean"]], [float(number) for number in lists["std"]])
