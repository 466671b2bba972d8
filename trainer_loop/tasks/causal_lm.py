"""The next token of a running text."""

from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from typing import Any, ClassVar

from torch import Tensor

from trainer_loop.data.columns import Column
from trainer_loop.errors import UserError
from trainer_loop.tasks.language_model import LanguageModel, call_decoder
from trainer_loop.tasks.losses import cross_entropy
from trainer_loop.tasks.task import Batch, Rows


class CausalLM(LanguageModel):
    """Texts are joined and cut into chunks of `max_length` tokens; every token but a chunk's first is a target.

    loss_function: `(logits [N, V], next tokens [N]) -> sum over tokens, []`.
    append_eos: end every text with the tokenizer's end token; false where a text is only a line of a longer one.
    """

    auto_model = "AutoModelForCausalLM"
    columns: ClassVar[Mapping[str, Column]] = {"text": Column("text", blank=True)}  # a running text has blank lines
    peft_type = "CAUSAL_LM"
    pipeline_tag = "text-generation"
    continues = True
    example: ClassVar[Sequence[Mapping[str, Any]]] = (
        {"text": "The ferry crosses the bay twice a day."},
        {"text": "In winter, when the ice is thick, people walk across instead."},
        {"text": ""},
        {"text": "Nobody has fallen in for years."},
    )

    def __init__(self, *, append_eos: bool = True, loss_function: Callable[[Tensor, Tensor], Tensor] = cross_entropy):
        super().__init__(loss_function=loss_function)
        self.append_eos = append_eos

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

    def find_targets(self, batch: Batch) -> tuple[None, Tensor, Sequence[int] | int]:
        """The token that comes next after each; none after the last one of a row, and for padding."""
        targets = batch["input_ids"].roll(-1, dims=1)
        if "row_ends" in batch:
            targets[0, batch["row_ends"][1:].long() - 1] = -100
            return None, targets.flatten(), batch["row_lengths"]
        targets[:, -1] = -100
        targets[:, :-1].masked_fill_(batch["attention_mask"][:, 1:] == 0, -100)
        return None, targets.flatten(), targets.shape[1]

    def forward(self, model: Callable[..., Any], inputs: Batch) -> Tensor:
        return call_decoder(model, inputs)


def join_and_cut(rows: Sequence[Sequence[Any]], length: int) -> tuple[list[list[Any]], list[int]]:
    """Chunks of so many elements of all rows, one row after the other, and the row that each chunk begins in.

    >>> join_and_cut([[1, 2], [], [3, 4, 5]], 3)
    ([[1, 2, 3], [4, 5]], [0, 2])
    """
    stream = list(chain.from_iterable(rows))
    sources = list(chain.from_iterable([number] * len(row) for number, row in enumerate(rows)))
    starts = range(0, len(stream), length)
    return [stream[start : start + length] for start in starts], [sources[start] for start in starts]
