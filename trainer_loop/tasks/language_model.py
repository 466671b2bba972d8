"""What the tasks of language models share: the loss of single tokens, and what perplexity needs."""

import math
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from trainer_loop.ops.attention import padded_on_the_right
from trainer_loop.ops.output_head import NoOutputHead, OutputHead, find_output_head
from trainer_loop.tasks.generation import count_vocabulary
from trainer_loop.tasks.losses import cross_entropy
from trainer_loop.tasks.task import Batch, Task

_BEHIND_THE_HEAD = ("final_logit_softcapping", "logit_scale", "logits_scaling")  # fields of configs of transformers
LANGUAGE_MODEL_OUTPUTS = {
    "predictions": "negative_log_likelihood",
    "references": "num_targets",
    "negative_log_likelihoods": "negative_log_likelihood",
    "num_targets": "num_targets",
}


class LanguageModel(Task):
    """A task whose targets are tokens. A subclass implements `find_targets`.

    loss_function: `(logits [N, V], tokens [N]) -> sum over tokens, []`.
    """

    auto_processor = "AutoTokenizer"
    metrics = ("perplexity",)
    outputs: ClassVar[Mapping[str, str] | None] = LANGUAGE_MODEL_OUTPUTS
    can_pack = True
    rows_at_head = False

    def __init__(self, *, loss_function: Callable[[Tensor, Tensor], Tensor] = cross_entropy):
        self.loss_function = loss_function

    def logits_per_token(self, model_config: Any) -> int | None:
        """The vocabulary, where the model does more with its logits than an `OutputHead` can."""
        changed = any(getattr(model_config, field, None) not in (None, 1) for field in _BEHIND_THE_HEAD)
        return count_vocabulary(model_config) if changed else None

    @abstractmethod
    def find_targets(self, batch: Batch) -> tuple[Tensor | None, Tensor, Sequence[int] | int]:
        """What the model learns to predict from the tokens of the batch, `[B * T]` one row after the other.

        Returns:
            The positions of the N tokens that have a target, `[N]`, None for all tokens; the targets, `[N]`, where -100
            is none; and how many of the N belong to each row, one number if all rows have as many.
        """

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        head, outputs = self._run(model, batch)
        positions, targets, _ = self.find_targets(batch)
        with self.logging_to(None):  # of made-up tokens
            head.try_loss(self.loss_function)
        return head.loss(outputs if positions is None else outputs[positions], targets, self.loss_function)

    def predict(self, model: nn.Module, batch: Batch) -> dict[str, Any]:
        """Of each row the summed `negative_log_likelihoods` `[B]` and `num_targets` `[B]`.

        These are the `predictions` and the `references` too, if the task compares nothing else.
        """
        return self.loss_and_predict(model, batch)[1]

    def loss_and_predict(self, model: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Any]]:
        head, outputs = self._run(model, batch)
        positions, targets, lengths = self.find_targets(batch)
        losses, nll = [], []
        for tokens, logits in head.chunks(outputs if positions is None else outputs[positions]):
            losses.append(self.loss_function(logits, targets[tokens]))
            nll.append(negative_log_likelihood(logits, targets[tokens]))
        counts = torch.stack([row.sum() for row in (targets != -100).split(lengths)])
        sums = _sum_over_rows(nll, lengths)
        compared = {"predictions": sums, "references": counts}
        return torch.stack(losses).sum(), {**compared, "negative_log_likelihoods": sums, "num_targets": counts}

    def decode(self, outputs: Mapping[str, Any], row: Mapping[str, Any]) -> dict[str, Any]:
        """`loss` in nats a target, and `perplexity`; None for a row without a target."""
        count = outputs["num_targets"].item()
        loss = outputs["negative_log_likelihoods"].item() / count if count else None
        return {"loss": loss, "perplexity": None if loss is None else math.exp(min(loss, 700.0))}

    def forward(self, model: Callable[..., Any], inputs: Batch) -> Tensor:
        """What stands for the logits, `[B, T, ...]`; a decoder keeps no keys and values to go on with."""
        options = {"use_cache": False} if self.writes else {}
        return model(**inputs, **options).logits  # type: ignore[no-any-return]

    def _run(self, model: nn.Module, batch: Batch) -> tuple[OutputHead | NoOutputHead, Tensor]:
        """The head, and what it makes logits of, for every token: `[B * T, ...]`."""
        inputs = self.model_inputs(batch)
        head = find_output_head(model, lambda forward: self.forward(forward, _first_tokens(inputs)))
        with head.handing_on(), padded_on_the_right():
            return head, self.forward(model, inputs).flatten(0, 1)


def count_labels(rows: Sequence[Mapping[str, Any]]) -> tuple[int, ...]:
    """How many `labels` each row has that are targets."""
    return tuple(sum(label != -100 for label in row["labels"]) for row in rows)


def select_targets(labels: Tensor, lengths: Sequence[int]) -> tuple[Tensor, Tensor, Sequence[int]]:
    """What `find_targets` returns, from labels `[B * T]` and how many of each row are targets."""
    positions = torch.nonzero_static(labels != -100, size=sum(lengths))[:, 0]  # does not wait for a device
    return positions, labels[positions], lengths


def _first_tokens(inputs: Batch) -> Batch:
    """The first few tokens of the first row of what a model is called with."""
    if "row_lengths" in inputs:
        few = {name: inputs[name][:, : inputs["row_lengths"][0]][:, :4] for name in ("input_ids", "position_ids")}
        lengths = (few["input_ids"].shape[1],)
        return {**few, "row_lengths": lengths, "row_ends": inputs["row_ends"].new_tensor([0, *lengths])}
    return {name: values[:1, :4] for name, values in inputs.items()}


def negative_log_likelihood(logits: Tensor, targets: Tensor) -> Tensor:
    """Of each target, in nats, `[N]`. logits: `[N, V]`. targets: `[N]`; 0 for a target of -100."""
    return torch.nn.functional.cross_entropy(logits, targets, reduction="none")


def _sum_over_rows(nll: Sequence[Tensor], lengths: int | Sequence[int]) -> Tensor:
    """The sums of each row, `[B]`. nll: of all rows, one after the other, in pieces. lengths: of the rows."""
    of_tokens = torch.cat(list(nll))
    wide = torch.float32 if of_tokens.device.type == "mps" else torch.float64
    return torch.stack([row.sum(dtype=wide) for row in of_tokens.split(lengths)])  # type: ignore[no-untyped-call]
