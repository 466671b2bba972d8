"""Text classification: one class for a text, or for a pair of texts."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor

from trainer_loop.data.columns import Column
from trainer_loop.tasks.losses import cross_entropy
from trainer_loop.tasks.task import Batch, OnePassTask


class SequenceClassification(OnePassTask):
    """A row is a text (or a pair of texts) with one label. A target is a row.

    Args:
        loss_function: `(logits [B, C], labels [B]) -> sum over rows, []`.
    """

    auto_model = "AutoModelForSequenceClassification"
    auto_processor = "AutoTokenizer"
    of_tokens = ()
    columns: ClassVar[Mapping[str, Column]] = {
        "text": Column("text"),
        "text_pair": Column("text", optional=True),
        "label": Column("class", target=True),
    }
    metrics: ClassVar[tuple[str, ...]] = ("accuracy",)
    outputs: ClassVar[Mapping[str, str] | None] = {
        "predictions": "class",
        "probabilities": "probabilities",
        "references": "class",
    }
    peft_type: ClassVar[str | None] = "SEQ_CLS"
    problem_type: ClassVar[str | None] = "single_label_classification"
    pipeline_tag = "text-classification"
    can_pack = True
    padding_sides: ClassVar[tuple[str, ...]] = ("right", "left")  # some heads read the last position
    reads_end = True
    predicted: ClassVar[Mapping[str, str]] = {"label": "most likely label", "probability": "probability of this label"}
    example: ClassVar[Sequence[Mapping[str, Any]]] = (
        {"text": "A delight from the first page to the last.", "label": "positive"},
        {"text": "It broke after a week.", "label": "negative"},
        {"text": "I would buy it again, and again, and tell all my friends.", "label": "positive"},
        {"text": "Never.", "label": "negative"},
    )

    def __init__(self, *, loss_function: Callable[[Tensor, Tensor], Tensor] = cross_entropy):
        self.loss_function = loss_function

    def count(self, batch: Batch) -> int:
        return len(batch["labels"])

    def decode(self, outputs: Mapping[str, Any], row: Mapping[str, Any]) -> dict[str, Any]:
        """Return the most likely `label`, and its `probability`."""
        assert self.label_names is not None, "the task is bound to the names of its classes"
        probabilities = outputs["probabilities"]
        best = int(probabilities.argmax())
        return {"label": self.label_names[best], "probability": float(probabilities[best])}

    def _sum_loss(self, logits: Tensor, batch: Batch) -> Tensor:
        return self.loss_function(logits, batch["labels"])

    def _make_outputs(self, logits: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Return `predictions` `[B]` (class ids), `probabilities` `[B, C]`; and `references` `[B]` if known."""
        outputs = {"predictions": logits.argmax(dim=-1), "probabilities": logits.softmax(dim=-1)}
        return outputs | ({"references": batch["labels"]} if "labels" in batch else {})
