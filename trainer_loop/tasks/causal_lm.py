"""Causal language modelling: predict the next token of a running text."""

from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from typing import Any, ClassVar

import torch
from torch import Tensor

from trainer_loop.components import refuse_less
from trainer_loop.data.columns import Column
from trainer_loop.errors import UserError
from trainer_loop.tasks.fill_in_the_middle import TextSplitter, read_settings
from trainer_loop.tasks.language_model import LanguageModel
from trainer_loop.tasks.losses import cross_entropy
from trainer_loop.tasks.task import Batch, Rows


class CausalLM(LanguageModel):
    """Texts are joined and cut into chunks of `max_length` tokens. Every token except the first of a chunk is a target.

    Args:
        loss_function: `(logits [N, V], next tokens [N]) -> sum over tokens, []`.
        append_eos: End every text with the tokenizer's end token. Set it to false if a text is only a line of a
            longer one.
        stride: Evaluations read overlapping windows of `max_length` tokens, which start every `stride` tokens. Each
            token is scored once, in the first window that has it, so it has more context than in a chunk. Perplexity is
            lower, and takes `max_length / stride` times as long. null: chunks, as in training.
        fim: Fill in the middle (arXiv 2207.14255), `{rate: 0.5, spm_rate: 0.5}`. In training each text of a chunk is
            split with probability `rate` at two random tokens, new ones at each step, and its middle is moved to the
            end. The parts start with `prefix_token`, `suffix_token` and `middle_token`, by default `<fim_prefix>`,
            `<fim_suffix>` and `<fim_middle>`. A share `spm_rate` of the split texts has the suffix first. A text keeps
            its length: its suffix, or else its prefix, loses three tokens. With `append_eos: false` a chunk is one
            text. Evaluations do not split texts.
    """

    auto_model = "AutoModelForCausalLM"
    of_tokens = ()
    columns: ClassVar[Mapping[str, Column]] = {"text": Column("text", blank=True)}  # texts may have blank lines
    pad: ClassVar[Mapping[str, int]] = {"labels": -100, "context": 0}
    peft_type = "CAUSAL_LM"
    pipeline_tag = "text-generation"
    continues = True
    joins_texts = True
    predicted: ClassVar[Mapping[str, str]] = {
        "loss": "mean loss of the text, in nats per token; null for a text of one token",
        "perplexity": "exponential of the loss",
        "continuation": "continuation of the text, with `max_new_tokens=` or `num_beams=`",
    }
    example: ClassVar[Sequence[Mapping[str, Any]]] = (
        {"text": "The ferry crosses the bay twice a day."},
        {"text": "In winter, when the ice is thick, people walk across instead."},
        {"text": ""},
        {"text": "Nobody has fallen in for years."},
    )

    def __init__(
        self,
        *,
        append_eos: bool = True,
        stride: int | None = None,
        fim: Mapping[str, Any] | None = None,
        loss_function: Callable[[Tensor, Tensor], Tensor] = cross_entropy,
    ):
        super().__init__(loss_function=loss_function)
        if stride is not None:
            refuse_less({"stride": stride}, {"stride": 1}, place="task.args")
        self.append_eos = append_eos
        self.stride = stride
        self.fim = None if fim is None else read_settings(fim)
        self.draws = fim is not None

    def bind(self, processor: Any, **others: Any) -> None:
        """See `Task.bind`. Raises UserError if the tokenizer lacks a token of `fim`."""
        super().bind(processor, **others)
        if self.fim is not None:
            end = processor.eos_token_id if self.append_eos else None
            self._splitter = TextSplitter(self.fim, self.fim.find_ids(processor), processor.bos_token_id, end)

    def settings(self) -> dict[str, Any]:
        return {"append_eos": self.append_eos, "stride": self.stride, "fim": self.fim is not None}

    def encode(self, rows: Rows, *, max_length: int) -> dict[str, list[Any]]:
        """Make chunks of `max_length` tokens. The last chunk is shorter, and no token is dropped.

        `source` is the position of the text in which a chunk starts.
        """
        chunks, sources = join_and_cut(self._tokenise(rows), max_length)
        return {"input_ids": chunks, "source": sources}

    def encode_for_evaluation(self, rows: Rows, *, max_length: int) -> dict[str, list[Any]]:
        """Make chunks, or windows with a `stride`. The first `context` tokens of a window are no targets."""
        if self.stride is None:
            chunks = self.encode(rows, max_length=max_length)
            return chunks if self.fim is None else chunks | {"context": [1] * len(chunks["source"])}
        if self.stride >= max_length:
            raise UserError(
                f"task.args.stride: {self.stride}: it must be below data.max_length, {max_length}, so that each window "
                "begins with tokens that are scored already; null reads chunks"
            )
        windows, sources = join_and_cut(self._tokenise(rows), max_length, stride=self.stride)
        context = [max_length - self.stride if number else 1 for number in range(len(windows))]
        return {"input_ids": windows, "context": context, "source": sources}

    def _tokenise(self, rows: Rows) -> list[list[int]]:
        """Return the tokens of each text, with an end token if `append_eos` is set."""
        end = [self.tokenizer.eos_token_id] if self.append_eos and self.tokenizer.eos_token_id is not None else []
        texts = self.tokenizer(list(rows["text"]), return_attention_mask=False, verbose=False)["input_ids"]
        return [ids + end for ids in texts]

    def encode_alone(self, rows: Rows, *, max_length: int) -> dict[str, list[Any]]:
        """Make one row for each text, without an end token, truncated to `max_length` tokens."""
        encoded = super().encode(rows, max_length=max_length)
        # A model cannot run on a row without tokens. A row of one token has no target, either.
        names = [name for name in self.tokenizer.model_input_names if name in encoded]
        return encoded | {name: [ids or [0] for ids in encoded[name]] for name in names}

    def collate(self, rows: list[dict[str, Any]]) -> Batch:
        """Make a batch. With `fim`, split the texts of training rows; rows of evaluations have a `context`."""
        if self.fim is not None and "draw" in rows[0] and "context" not in rows[0]:
            rows = [{**row, "input_ids": self._splitter.split(row["input_ids"], row["draw"])} for row in rows]
        return super().collate(rows)

    def count(self, batch: Batch) -> int:
        context = batch.get("context", 1)  # the first token of a row is never a target
        if "row_lengths" in batch:
            return int((torch.tensor(batch["row_lengths"]) - context).sum())
        mask = batch["attention_mask"]
        if (mask[:, 1:] > mask[:, :-1]).any():
            raise UserError("a batch for a language model has tokens after padding; let collate pad on the right")
        return int((mask.sum(dim=1) - context).clamp(min=0).sum())

    def find_targets(self, batch: Batch) -> tuple[None, Tensor, Sequence[int] | int]:
        """Return the next token of each token. The last token of a row, its context and padding have no target."""
        targets, context = batch["input_ids"].roll(-1, dims=1), batch.get("context")
        if "row_ends" in batch:
            targets[0, batch["row_ends"][1:].long() - 1] = -100
            if context is not None:
                token_context = context.repeat_interleave(batch["row_ends"].diff(), output_size=targets.shape[1])
                targets[0].masked_fill_(batch["position_ids"][0] < token_context - 1, -100)
            return None, targets.flatten(), batch["row_lengths"]
        targets[:, -1] = -100
        targets[:, :-1].masked_fill_(batch["attention_mask"][:, 1:] == 0, -100)
        if context is not None:
            positions = torch.arange(targets.shape[1], device=targets.device)
            targets.masked_fill_(positions < context[:, None] - 1, -100)
        return None, targets.flatten(), targets.shape[1]


def join_and_cut(
    rows: Sequence[Sequence[Any]], length: int, *, stride: int | None = None
) -> tuple[list[list[Any]], list[int]]:
    """Join all rows and cut them into chunks. Returns the chunks, and the row in which each chunk starts.

    Args:
        length: The length of a chunk.
        stride: A chunk starts every `stride` elements, until one has the last element. None: chunks do not overlap.

    >>> join_and_cut([[1, 2], [], [3, 4, 5]], 3)
    ([[1, 2, 3], [4, 5]], [0, 2])
    >>> join_and_cut([[1, 2], [], [3, 4, 5]], 3, stride=1)
    ([[1, 2, 3], [2, 3, 4], [3, 4, 5]], [0, 0, 2])
    """
    stream = list(chain.from_iterable(rows))
    sources = list(chain.from_iterable([number] * len(row) for number, row in enumerate(rows)))
    overlap = 0 if stride is None else length - stride
    starts = range(0, max(len(stream) - overlap, min(len(stream), 1)), stride or length)
    return [stream[start : start + length] for start in starts], [sources[start] for start in starts]
