"""The next token of a running text."""

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from trainer_loop.data.columns import Column
from trainer_loop.errors import UserError
from trainer_loop.ops.attention import padded_on_the_right
from trainer_loop.ops.output_head import NoOutputHead, OutputHead, find_output_head
from trainer_loop.tasks.losses import cross_entropy
from trainer_loop.tasks.task import Batch, Rows, Task

_BEHIND_THE_HEAD = ("final_logit_softcapping", "logit_scale", "logits_scaling")  # fields of configs of transformers


class CausalLM(Task):
    """Texts are joined and cut into chunks of `max_length` tokens; every token but a chunk's first is a target.

    loss_function: `(logits [N, V], next tokens [N]) -> sum over tokens, []`.
    append_eos: end every text with the tokenizer's end token; false where a text is only a line of a longer one.
    """

    auto_model = "AutoModelForCausalLM"
    auto_processor = "AutoTokenizer"
    columns: ClassVar[Mapping[str, Column]] = {"text": Column("text", blank=True)}  # a running text has blank lines
    metrics = ("perplexity",)
    outputs: ClassVar[Mapping[str, str] | None] = {
        "predictions": "negative_log_likelihood",
        "references": "num_targets",
    }
    peft_type = "CAUSAL_LM"
    pipeline_tag = "text-generation"
    can_pack = True
    rows_at_head = False
    continues = True
    example: ClassVar[Sequence[Mapping[str, Any]]] = (
        {"text": "The ferry crosses the bay twice a day."},
        {"text": "In winter, when the ice is thick, people walk across instead."},
        {"text": ""},
        {"text": "Nobody has fallen in for years."},
    )

    def __init__(self, *, append_eos: bool = True, loss_function: Callable[[Tensor, Tensor], Tensor] = cross_entropy):
        self.append_eos = append_eos
        self.loss_function = loss_function

    def logits_per_token(self, model_config: Any) -> int | None:
        """The vocabulary, where the model does more with its logits than an `OutputHead` can."""
        changed = any(getattr(model_config, field, None) not in (None, 1) for field in _BEHIND_THE_HEAD)
        return model_config.vocab_size if changed else None

    def settings(self) -> dict[str, Any]:
        return {"append_eos": self.append_eos}

    def encode(self, rows: Rows, *, max_length: int) -> dict[str, list[Any]]:
        """Chunks of `max_length` tokens; the last chunk of these texts is shorter, and nothing is dropped.

        `source` is the position of the text that a chunk begins in.
        """
        end = [self.tokenizer.eos_token_id] if self.append_eos and self.tokenizer.eos_token_id is not None else []
        tokenised = self.tokenizer(list(rows["text"]), return_attention_mask=False, verbose=False)["input_ids"]
        chunks, sources = join_and_cut([ids + end for ids in tokenised], max_length)
        return {"input_ids": chunks, "source": sources}

    def encode_alone(self, rows: Rows, *, max_length: int) -> dict[str, list[Any]]:
        """One row for each text, without an end token, cut at `max_length` tokens."""
        return super().encode(rows, max_length=max_length)

    def count(self, batch: Batch) -> int:
        if "row_lengths" in batch:
            return sum(batch["row_lengths"]) - len(batch["row_lengths"])
        mask = batch["attention_mask"]
        if (mask[:, 1:] > mask[:, :-1]).any():
            raise UserError("a batch for a language model has tokens after padding; let collate pad on the right")
        return int((mask.sum(dim=1) - 1).clamp(min=0).sum())

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        head, outputs = self._run(model, batch)
        return head.loss(outputs, _next_tokens(batch), self.loss_function)

    def predict(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """What perplexity needs: `predictions` `[B]` summed negative log likelihoods, `references` `[B]` targets."""
        head, outputs = self._run(model, batch)
        targets = _next_tokens(batch)
        nll = [negative_log_likelihood(logits, targets[tokens]) for tokens, logits in head.chunks(outputs)]
        return _make_outputs(nll, targets, batch)

    def loss_and_predict(self, model: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        head, outputs = self._run(model, batch)
        targets = _next_tokens(batch)
        losses, nll = [], []
        for tokens, logits in head.chunks(outputs):
            losses.append(self.loss_function(logits, targets[tokens]))
            nll.append(negative_log_likelihood(logits, targets[tokens]))
        return torch.stack(losses).sum(), _make_outputs(nll, targets, batch)

    def decode(self, outputs: Mapping[str, Any], row: Mapping[str, Any]) -> dict[str, Any]:
        """`loss` in nats a token, and `perplexity`; None for a text of one token."""
        return describe_loss(outputs)

    def _run(self, model: nn.Module, batch: Batch) -> tuple[OutputHead | NoOutputHead, Tensor]:
        """The head, and what it makes logits of, for every token: `[B * T, ...]`."""
        head = find_output_head(model, lambda forward: _forward(forward, first_tokens(batch)))
        with head.handing_on(), padded_on_the_right():
            return head, _forward(model, batch).flatten(0, 1)


def join_and_cut(rows: Sequence[Sequence[Any]], length: int) -> tuple[list[list[Any]], list[int]]:
    """Chunks of so many elements of all rows, one row after the other, and the row that each chunk begins in.

    >>> join_and_cut([[1, 2], [], [3, 4, 5]], 3)
    ([[1, 2, 3], [4, 5]], [0, 2])
    """
    stream = list(chain.from_iterable(rows))
    sources = list(chain.from_iterable([number] * len(row) for number, row in enumerate(rows)))
    starts = range(0, len(stream), length)
    return [stream[start : start + length] for start in starts], [sources[start] for start in starts]


def first_tokens(batch: Batch) -> Batch:
    """The first few tokens of the first row of a batch."""
    if "row_lengths" in batch:
        few = {name: batch[name][:, : batch["row_lengths"][0]][:, :4] for name in ("input_ids", "position_ids")}
        lengths = (few["input_ids"].shape[1],)
        return {**few, "row_lengths": lengths, "row_ends": batch["row_ends"].new_tensor([0, *lengths])}
    return {name: values[:1, :4] for name, values in batch.items()}


def _forward(model: Callable[..., Any], batch: Batch) -> Tensor:
    """What stands for the logits, `[B, T, ...]`."""
    return model(**batch, use_cache=False).logits  # type: ignore[no-any-return]


def _next_tokens(batch: Batch) -> Tensor:
    """The token that comes next after each, `[B * T]`; -100 after the last one of a row, and for padding."""
    targets = batch["input_ids"].roll(-1, dims=1)
    if "row_ends" in batch:
        targets[0, batch["row_ends"][1:].long() - 1] = -100
    else:
        targets[:, -1] = -100
        targets[:, :-1].masked_fill_(batch["attention_mask"][:, 1:] == 0, -100)
    return targets.flatten()


def _make_outputs(nll: Sequence[Tensor], targets: Tensor, batch: Batch) -> dict[str, Tensor]:
    """nll: of all tokens `[B * T]`, in pieces."""
    lengths = batch["row_lengths"] if "row_lengths" in batch else batch["input_ids"].shape[1]
    counts = torch.stack([row.sum() for row in (targets != -100).split(lengths)])
    return {"predictions": sum_over_rows(nll, lengths), "references": counts}


def negative_log_likelihood(logits: Tensor, targets: Tensor) -> Tensor:
    """Of each target, in nats, `[N]`. logits: `[N, V]`. targets: `[N]`; 0 for a target of -100."""
    return torch.nn.functional.cross_entropy(logits, targets, reduction="none")


def sum_over_rows(nll: Sequence[Tensor], lengths: int | Sequence[int]) -> Tensor:
    """The sums of each row, `[B]`. nll: of all rows, one after the other, in pieces. lengths: of the rows."""
    of_tokens = torch.cat(list(nll))
    wide = torch.float32 if of_tokens.device.type == "mps" else torch.float64
    return torch.stack([row.sum(dtype=wide) for row in of_tokens.split(lengths)])  # type: ignore[no-untyped-call]


def describe_loss(outputs: Mapping[str, Any]) -> dict[str, Any]:
    """`loss` in nats a target, and `perplexity`; None for a row without a target."""
    count = outputs["references"].item()
    loss = outputs["predictions"].item() / count if count else None
    return {"loss": loss, "perplexity": None if loss is None else math.exp(min(loss, 700.0))}
