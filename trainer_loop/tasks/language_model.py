"""Base class of language model tasks: the loss over tokens, and the outputs for perplexity."""

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

_AFTER_THE_HEAD = ("final_logit_softcapping", "logit_scale", "logits_scaling")  # config fields of transformers
LANGUAGE_MODEL_OUTPUTS = {
    "predictions": "negative_log_likelihood",
    "references": "num_targets",
    "negative_log_likelihoods": "negative_log_likelihood",
    "num_targets": "num_targets",
}


class LanguageModel(Task):
    """A task whose targets are tokens. A subclass implements `find_targets`.

    Args:
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
        """Return the vocabulary size if the model changes its logits in a way that `OutputHead` lacks, else None."""
        changes_logits = any(getattr(model_config, field, None) not in (None, 1) for field in _AFTER_THE_HEAD)
        return count_vocabulary(model_config) if changes_logits else None

    @abstractmethod
    def find_targets(self, batch: Batch) -> tuple[Tensor | None, Tensor, Sequence[int] | int]:
        """Find the targets of the tokens of a batch, `[B * T]` row by row.

        Returns:
            The positions of the N tokens that have a target, `[N]`, or None for all tokens; the targets, `[N]`, in
            which -100 means none; and how many of the N belong to each row, as one number if all rows have the same.
        """

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        head, outputs = self._run(model, batch)
        positions, targets, _ = self.find_targets(batch)
        with self.logging_to(None):  # the trial uses made-up tokens
            head.try_loss(self.loss_function)
        return head.loss(outputs if positions is None else outputs[positions], targets, self.loss_function)

    def predict(self, model: nn.Module, batch: Batch) -> dict[str, Any]:
        """Return the summed `negative_log_likelihoods` `[B]` and `num_targets` `[B]` of each row.

        They are also the `predictions` and `references`, if the task compares nothing else.
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
        defaults = {"predictions": sums, "references": counts}
        return torch.stack(losses).sum(), {**defaults, "negative_log_likelihoods": sums, "num_targets": counts}

    def decode(self, outputs: Mapping[str, Any], row: Mapping[str, Any]) -> dict[str, Any]:
        """Return `loss` in nats per target, and `perplexity`; None for a row without targets."""
        count = outputs["num_targets"].item()
        loss = outputs["negative_log_likelihoods"].item() / count if count else None
        return {"loss": loss, "perplexity": None if loss is None else math.exp(min(loss, 700.0))}

    def forward(self, model: Callable[..., Any], inputs: Batch) -> Tensor:
        """Run the model without cache. Returns its logits, or what an `OutputHead` returns instead, `[B, T, ...]`."""
        options = {"use_cache": False} if self.writes else {}
        return model(**inputs, **options).logits  # type: ignore[no-any-return]

    def _run(self, model: nn.Module, batch: Batch) -> tuple[OutputHead | NoOutputHead, Tensor]:
        """Run the model. Returns the head, and its input for each token, `[B * T, ...]`."""
        inputs = self.model_inputs(batch)
        head = find_output_head(model, lambda forward: self.forward(forward, _first_tokens(inputs)))
        with head.returning_hidden_states(), padded_on_the_right():
            return head, self.forward(model, inputs).flatten(0, 1)


def count_labels(rows: Sequence[Mapping[str, Any]]) -> tuple[int, ...]:
    """Return the number of targets of each row: `labels` that are not -100."""
    return tuple(sum(label != -100 for label in row["labels"]) for row in rows)


def select_targets(labels: Tensor, lengths: Sequence[int]) -> tuple[Tensor, Tensor, Sequence[int]]:
    """Return the result of `find_targets` from labels `[B * T]` and the number of targets of each row."""
    positions = torch.nonzero_static(labels != -100, size=sum(lengths))[:, 0]  # does not wait for the device
    return positions, labels[positions], lengths


def _first_tokens(inputs: Batch) -> Batch:
    """Return the first few tokens of the first row of the model inputs."""
    if "row_lengths" in inputs:
        few = {name: inputs[name][:, : inputs["row_lengths"][0]][:, :4] for name in ("input_ids", "position_ids")}
        lengths = (few["input_ids"].shape[1],)
        return {**few, "row_lengths": lengths, "row_ends": inputs["row_ends"].new_tensor([0, *lengths])}
    return {name: values[:1, :4] for name, values in inputs.items()}


def negative_log_likelihood(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the negative log likelihood of each target in nats, `[N]`; 0 for a target of -100. logits: `[N, V]`."""
    return torch.nn.functional.cross_entropy(logits, targets, reduction="none")


def _sum_over_rows(nll: Sequence[Tensor], lengths: int | Sequence[int]) -> Tensor:
    """Sum over the targets of each row, `[B]`. nll: values of all rows, in chunks. lengths: targets of each row."""
    values = torch.cat(list(nll))
    wide = torch.float32 if values.device.type == "mps" else torch.float64
    return torch.stack([row.sum(dtype=wide) for row in values.split(lengths)])  # type: ignore[no-untyped-call]
