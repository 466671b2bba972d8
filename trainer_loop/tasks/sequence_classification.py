"""One class for one text, or for a pair of texts."""

from collections.abc import Callable, Mapping
from typing import ClassVar

from torch import Tensor, nn

from trainer_loop.tasks.losses import cross_entropy
from trainer_loop.tasks.task import Batch, TextTask


class SequenceClassification(TextTask):
    """A row is a text (or a pair) with one label; the target is the row.

    loss_function: `(logits [B, C], labels [B]) -> sum over rows, []`.
    """

    model_class = "AutoModelForSequenceClassification"
    needs_label = True
    adapter_type = "SEQ_CLS"
    can_pack = True
    padding_sides = ("right", "left")  # some heads read the last position, whatever stands there
    reads_end = True
    default_metrics = ("accuracy",)
    outputs: ClassVar[Mapping[str, str] | None] = {
        "predictions": "class",
        "probabilities": "probabilities",
        "references": "class",
    }

    def __init__(self, *, loss_function: Callable[[Tensor, Tensor], Tensor] = cross_entropy):
        super().__init__()
        self.loss_function = loss_function

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        return self.loss_function(self._logits(model, batch), batch["labels"])

    def count(self, batch: Batch) -> int:
        return len(batch["labels"])

    def predict(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """`predictions` `[B]` class indices, `probabilities` `[B, C]`; `references` `[B]` where labels are known."""
        return self._judge(self._logits(model, batch), batch)

    def loss_and_predict(self, model: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        logits = self._logits(model, batch)
        return self.loss_function(logits, batch["labels"]), self._judge(logits, batch)

    def _logits(self, model: nn.Module, batch: Batch) -> Tensor:
        # Labels stay outside: most heads would turn them into a mean over the microbatch.
        return model(**{name: tensor for name, tensor in batch.items() if name != "labels"}).logits

    def _judge(self, logits: Tensor, batch: Batch) -> dict[str, Tensor]:
        judged = {"predictions": logits.argmax(dim=-1), "probabilities": logits.softmax(dim=-1)}
        if "labels" in batch:
            judged["references"] = batch["labels"]
        return judged
