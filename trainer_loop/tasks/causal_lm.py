"""The next token of a running text."""

from collections.abc import Callable
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from trainer_loop.tasks.losses import cross_entropy
from trainer_loop.tasks.task import Batch, TextTask


class CausalLM(TextTask):
    """Texts are joined and cut into chunks of `max_length` tokens; every token but a chunk's first is a target.

    loss_function: `(logits [N, V], next tokens [N]) -> sum over tokens, []`.
    append_eos: end every text with the tokenizer's end token; false where a text is only a line of a longer one.
    """

    model_class = "AutoModelForCausalLM"
    tokenizer_style = "byte_level_bpe"
    takes_pairs = False
    scores_every_token = True
    default_metrics = ("perplexity",)
    fitting_metrics = ("perplexity",)

    def __init__(self, *, append_eos: bool = True, loss_function: Callable[[Tensor, Tensor], Tensor] = cross_entropy):
        super().__init__()
        self.append_eos = append_eos
        self.loss_function = loss_function

    def settings(self) -> dict[str, Any]:
        return {"append_eos": self.append_eos}

    def encode(self, texts: list[str], pairs: list[str] | None, *, max_length: int) -> dict[str, list[Any]]:
        """Chunks of `max_length` tokens; the last chunk of this batch of texts is shorter, and nothing is dropped.

        `source` is the position of the text that a chunk begins in.
        """
        assert pairs is None, "refused before, see takes_pairs"
        end = [self.tokenizer.eos_token_id] if self.append_eos and self.tokenizer.eos_token_id is not None else []
        encoded = [ids + end for ids in self.tokenizer(texts, return_attention_mask=False, verbose=False)["input_ids"]]
        stream = list(chain.from_iterable(encoded))
        source = list(chain.from_iterable([position] * len(ids) for position, ids in enumerate(encoded)))
        starts = range(0, len(stream), max_length)
        return {
            "input_ids": [stream[start : start + max_length] for start in starts],
            "source": [source[start] for start in starts],
        }

    def count(self, batch: Batch) -> int:
        return int((batch["attention_mask"].sum(dim=1) - 1).clamp(min=0).sum())

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        logits, targets = self._predict_next(model, batch)
        return self.loss_function(logits.flatten(0, 1), targets.flatten())

    def predict(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """What perplexity needs: `predictions` `[B]` summed negative log likelihoods, `references` `[B]` targets."""
        return self._judge(*self._predict_next(model, batch))

    def loss_and_predict(self, model: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        logits, targets = self._predict_next(model, batch)
        return self.loss_function(logits.flatten(0, 1), targets.flatten()), self._judge(logits, targets)

    def _predict_next(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """Logits `[B, T-1, V]` and the tokens that came next `[B, T-1]`, -100 where there is none."""
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False).logits
        targets = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        return logits[:, :-1], targets[:, 1:]

    def _judge(self, logits: Tensor, targets: Tensor) -> dict[str, Tensor]:
        nll = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
        return {
            "predictions": nll.view(targets.shape).sum(dim=1, dtype=torch.float64),
            "references": (targets != -100).sum(dim=1),
        }
