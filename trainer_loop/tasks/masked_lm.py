"""Masked language modelling: predict tokens that are hidden in a text."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from trainer_loop.data.columns import Column
from trainer_loop.errors import UserError
from trainer_loop.tasks.causal_lm import CausalLM, join_and_cut
from trainer_loop.tasks.language_model import LanguageModel, count_labels, select_targets
from trainer_loop.tasks.losses import cross_entropy
from trainer_loop.tasks.task import Batch, Rows

_MASKED, _KEPT = 0.8, 0.1  # shares of the chosen tokens; the rest becomes random tokens (BERT, arXiv 1810.04805)


class MaskedLM(LanguageModel):
    """Texts are joined and cut into chunks of `data.max_length` tokens. A target is a token that is hidden.

    Of the chosen tokens, 80 % are replaced by the mask token, 10 % by a random token, and 10 % are kept. In training
    other tokens are chosen in each step; in evaluations always the same. `predict` fills in the mask tokens of a text.

    Args:
        mask_probability: Probability that a token is chosen.
        whole_words: Choose words, with all their tokens.
        join_texts: false: each text is a row, truncated to `data.max_length` tokens; empty texts are left out.
        loss_function: `(logits [N, V], tokens [N]) -> sum over tokens, []`.
    """

    auto_model = "AutoModelForMaskedLM"
    of_tokens = ("labels",)
    columns: ClassVar[Mapping[str, Column]] = {"text": Column("text", blank=True)}  # texts may have blank lines
    pad: ClassVar[Mapping[str, int]] = {"labels": -100, "word": -1, "row_targets": 0}
    pipeline_tag = "fill-mask"
    draws = True
    predicted: ClassVar[Mapping[str, str]] = {
        "tokens": "most likely token for each mask token of the text",
        "probabilities": "probability of each of these tokens",
    }
    example: ClassVar[Sequence[Mapping[str, Any]]] = CausalLM.example

    def __init__(
        self,
        *,
        mask_probability: float = 0.15,
        whole_words: bool = False,
        join_texts: bool = True,
        loss_function: Callable[[Tensor, Tensor], Tensor] = cross_entropy,
    ):
        if not 0 < mask_probability < 1:
            raise UserError(f"task.args.mask_probability: {mask_probability}: it must lie between 0 and 1")
        super().__init__(loss_function=loss_function)
        self.mask_probability = mask_probability
        self.whole_words = whole_words
        self.joins_texts = join_texts

    def bind(self, processor: Any, **others: Any) -> None:
        """See `Task.bind`. Raises UserError if the tokenizer has no mask token."""
        super().bind(processor, **others)
        if processor.mask_token_id is None:
            raise UserError(
                "task.name: masked_lm: the tokenizer has no mask token; choose a model that fills in tokens, such as "
                "bert-base-cased, or another task"
            )
        self._special = set(processor.all_special_ids)
        self._ordinary = np.array([token for token in range(len(processor)) if token not in self._special])

    @property
    def example_texts(self) -> Sequence[str]:
        return (f"I am super {self.tokenizer.mask_token}.",)

    def settings(self) -> dict[str, Any]:
        return {"whole_words": self.whole_words, "join_texts": self.joins_texts}

    def encode(self, rows: Rows, *, max_length: int) -> dict[str, list[Any]]:
        """Make chunks, each inside special tokens. `word` is the number of the word of each token, or -1."""
        before, after = self._find_special_tokens()
        room = max_length - len(before) - len(after)
        if room < 1:
            raise UserError(f"data.max_length: {max_length}: {len(before) + len(after)} special tokens leave no room")
        encoded = self.tokenizer(
            list(rows["text"]), add_special_tokens=False, return_attention_mask=False, verbose=False
        )
        texts, words = encoded["input_ids"], self._number_words(encoded)
        if self.joins_texts:
            (chunks, sources), (words, _) = join_and_cut(texts, room), join_and_cut(words, room)
        else:
            sources = [number for number, ids in enumerate(texts) if ids]
            chunks, words = ([rows[number][:room] for number in sources] for rows in (texts, words))
        return {
            "input_ids": [[*before, *ids, *after] for ids in chunks],
            "word": [[-1] * len(before) + numbers + [-1] * len(after) for numbers in words],
            "source": sources,
            "truncated": [not self.joins_texts and len(texts[number]) > room for number in sources],
        }

    def encode_alone(self, rows: Rows, *, max_length: int) -> dict[str, list[Any]]:
        """Make one row for each text, truncated to `max_length` tokens. Only the mask tokens of the text are hidden."""
        encoded = super().encode(rows, max_length=max_length)
        mask, token = self.tokenizer.mask_token, self.tokenizer.mask_token_id
        fault = f"has no {mask} to fill in; write {mask} where a token is missing"
        return {**encoded, "fault": [None if token in ids else fault for ids in encoded["input_ids"]]}

    def collate(self, rows: list[dict[str, Any]]) -> Batch:
        """Hide tokens. `labels` `[B, T]` are the hidden tokens, else -100; `row_targets` are their numbers per row."""
        if "word" not in rows[0]:
            return super().collate(rows)
        rows = [self._hide_tokens(row) for row in rows]
        return super().collate(rows) | {"row_targets": count_labels(rows)}

    def find_targets(self, batch: Batch) -> tuple[Tensor, Tensor, Sequence[int]]:
        """Return the hidden tokens as targets."""
        return select_targets(batch["labels"].flatten(), batch["row_targets"])

    def predict(self, model: nn.Module, batch: Batch) -> dict[str, Any]:
        """Return the outputs for perplexity, see `LanguageModel.predict`.

        For texts with mask tokens, return the most likely `tokens` `[M]` of each row, and their `probabilities`.
        """
        if "labels" in batch:
            return super().predict(model, batch)
        head, outputs = self._run(model, batch)
        is_mask = batch["input_ids"] == self.tokenizer.mask_token_id
        best = [logits.softmax(dim=-1).max(dim=-1) for _, logits in head.chunks(outputs[is_mask.flatten()])]
        counts = is_mask.sum(dim=1).tolist()
        tokens, probabilities = torch.cat([part.indices for part in best]), torch.cat([part.values for part in best])
        return {"tokens": list(tokens.split(counts)), "probabilities": list(probabilities.split(counts))}

    def decode(self, outputs: Mapping[str, Any], row: Mapping[str, Any]) -> dict[str, Any]:
        """Return `tokens` for the mask tokens of the text, and their `probabilities`; or `loss` and `perplexity`."""
        if "tokens" not in outputs:
            return super().decode(outputs, row)
        tokens = [self.tokenizer.decode([token]).strip() for token in outputs["tokens"].tolist()]
        return {"tokens": tokens, "probabilities": outputs["probabilities"].tolist()}

    def _find_special_tokens(self) -> tuple[list[int], list[int]]:
        """Return the special tokens before and after a text."""
        encoded = self.tokenizer("a", return_special_tokens_mask=True)
        ids, mask = encoded["input_ids"], encoded["special_tokens_mask"]
        start, end = mask.index(0), len(mask) - mask[::-1].index(0)
        return ids[:start], ids[end:]

    def _number_words(self, encoded: Any) -> list[list[int]]:
        """Number the words, or tokens without `whole_words`, of each text. Special tokens get -1."""
        numbers, first = [], 0
        for text, ids in enumerate(encoded["input_ids"]):
            words = encoded.word_ids(text) if self.whole_words else range(len(ids))
            pairs = zip(ids, words, strict=True)
            numbers.append([-1 if word is None or token in self._special else first + word for token, word in pairs])
            first += len(ids)
        return numbers

    def _hide_tokens(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Hide some tokens of a row, chosen by its seed `draw`."""
        ids, words = np.array(row["input_ids"]), np.array(row["word"])
        draws = np.random.Generator(np.random.Philox(row["draw"]))
        numbers, word = np.unique(words, return_inverse=True)
        is_chosen = (draws.random(len(numbers)) < self.mask_probability)[word] & (words >= 0)
        share = draws.random(len(ids))
        random_tokens = draws.choice(self._ordinary, len(ids))
        kept_or_random = np.where(share < _MASKED + _KEPT, ids, random_tokens)
        replaced = np.where(share < _MASKED, self.tokenizer.mask_token_id, kept_or_random)
        labels = np.where(is_chosen, ids, -100)
        return {"input_ids": np.where(is_chosen, replaced, ids).tolist(), "labels": labels.tolist()}
