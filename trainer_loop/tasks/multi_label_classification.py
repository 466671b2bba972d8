"""Multi-label classification: any number of labels for a text, or for a pair of texts."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from trainer_loop.data.columns import Column
from trainer_loop.errors import UserError
from trainer_loop.tasks.losses import binary_cross_entropy
from trainer_loop.tasks.sequence_classification import SequenceClassification
from trainer_loop.tasks.task import Batch

_LEAST = 1e-6  # smallest threshold
_UNTUNED = 0.5  # threshold before `tune` chooses one


class MultiLabelClassification(SequenceClassification):
    """A row is a text (or a pair of texts) with a list of labels, which may be empty. A target is one label of one row.

    Instead of a list, a row may have a column for each label, with 0 or 1, or true or false. List these columns, as in
    `data.columns={label: [toxic, obscene, threat]}`. Their names become the names of the labels, in this order.

    Args:
        threshold: A label is predicted if its probability is above this value. `tuned`: the threshold with the best F1
            over all labels of the validation rows.
        loss_function: `(logits [N, C], targets [N, C]) -> sum over rows and labels, []`; a target is 1 or 0.
    """

    of_tokens = ()
    columns: ClassVar[Mapping[str, Column]] = {
        **SequenceClassification.columns,
        "label": Column("classes", target=True),
    }
    pad: ClassVar[Mapping[str, int]] = {"labels": -1}
    metrics = ("label_f1",)
    outputs: ClassVar[Mapping[str, str] | None] = {
        "predictions": "label_set",
        "probabilities": "label_probabilities",
        "references": "label_set",
    }
    problem_type = "multi_label_classification"
    predicted: ClassVar[Mapping[str, str]] = {
        "labels": "labels whose probability is above the threshold",
        "probabilities": "probability of each label, by name",
    }
    example: ClassVar[Sequence[Mapping[str, Any]]] = (
        {"text": "A delight from the first page to the last.", "label": ["joy", "admiration"]},
        {"text": "It broke after a week.", "label": ["anger"]},
        {"text": "It arrived on Monday, in a brown box, as all the others before it.", "label": []},
        {"text": "Never again!", "label": ["anger", "disgust"]},
    )

    def __init__(
        self,
        *,
        threshold: float | Literal["tuned"] = 0.5,
        loss_function: Callable[[Tensor, Tensor], Tensor] = binary_cross_entropy,
    ):
        if threshold != "tuned" and not (isinstance(threshold, float) and 0 < threshold < 1):
            raise UserError(f"task.args.threshold: {threshold}: it must be a number between 0 and 1, or tuned")
        super().__init__(loss_function=loss_function)
        self.tunes = threshold == "tuned"
        self.threshold = None if isinstance(threshold, str) else threshold  # None until `tune` is called

    def count(self, batch: Batch) -> int:
        assert self.label_names is not None, "the task is bound to the names of its classes"
        return len(batch["labels"]) * len(self.label_names)

    @property
    def tuned(self) -> dict[str, Any]:
        return {"threshold": self.threshold} if self.tunes and self.threshold is not None else {}

    def tune(self, outputs: dict[str, Any]) -> dict[str, Any]:
        if not self.tunes:
            return outputs
        self.threshold = find_threshold(outputs["probabilities"].ravel(), outputs["references"].ravel())
        return outputs | {"predictions": outputs["probabilities"] > self.threshold}

    def decode(self, outputs: Mapping[str, Any], row: Mapping[str, Any]) -> dict[str, Any]:
        """Return the predicted `labels`, and the `probabilities` of all labels by name."""
        assert self.label_names is not None, "the task is bound to the names of its classes"
        probabilities = dict(zip(self.label_names, outputs["probabilities"].tolist(), strict=True))
        predictions = zip(self.label_names, outputs["predictions"].tolist(), strict=True)
        return {"labels": [name for name, is_predicted in predictions if is_predicted], "probabilities": probabilities}

    def _sum_loss(self, logits: Tensor, batch: Batch) -> Tensor:
        return self.loss_function(logits, _multi_hot(batch["labels"], logits))

    def _make_outputs(self, logits: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Return `predictions` (booleans) and `probabilities`, `[B, C]`; and `references` if they are known."""
        probabilities = logits.sigmoid()
        threshold = _UNTUNED if self.threshold is None else self.threshold
        outputs = {"predictions": probabilities > threshold, "probabilities": probabilities}
        return outputs | ({"references": _multi_hot(batch["labels"], logits).bool()} if "labels" in batch else {})


def find_threshold(probabilities: np.ndarray, references: np.ndarray) -> float:
    """Return the threshold with the best F1, half way between two probabilities; 0.5 if no threshold has F1 above 0.

    Args:
        probabilities: `[N]`.
        references: `[N]`, 1 or 0.

    >>> find_threshold(np.array([0.9, 0.2, 0.3, 0.1]), np.array([1, 0, 1, 0]))
    0.25
    """
    order = np.argsort(-probabilities, kind="stable")
    ranked, num_correct = probabilities[order], np.cumsum(references[order])
    f1 = 2 * num_correct / (np.arange(1, len(ranked) + 1) + references.sum())
    f1[:-1][ranked[:-1] == ranked[1:]] = 0.0  # no threshold lies between equal probabilities
    f1[ranked <= _LEAST] = 0.0
    if not f1.any():
        return _UNTUNED
    best = int(f1.argmax())
    above, below = ranked[best], ranked[best + 1] if best + 1 < len(ranked) else 0.0
    middle = (float(above) + float(below)) / 2
    return max(middle if ranked.dtype.type(middle) < above else float(below), _LEAST)


def _multi_hot(labels: Tensor, logits: Tensor) -> Tensor:
    """Return `[B, C]`: 1 for each label of a row, else 0, in the dtype of the logits. labels: ids `[B, L]` or -1."""
    one_hot = F.one_hot(labels.clamp(min=0), logits.shape[1]) * (labels >= 0)[..., None]
    return one_hot.sum(dim=1).clamp(max=1).to(logits.dtype)
