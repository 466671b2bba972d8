"""Sequence to sequence: generate a text from another one, such as a translation or a summary."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

from torch import Tensor, nn
from torch.nn import functional

from trainer_loop.components import refuse_less
from trainer_loop.data.columns import Column
from trainer_loop.tasks.generation import count_vocabulary, cut_at_end
from trainer_loop.tasks.losses import cross_entropy
from trainer_loop.tasks.task import Batch, Rows, Task

_LENGTH = 128  # default length of a target, in tokens


class Seq2Seq(Task):
    """A row is a source text and a target text. The targets of the loss are the tokens of the target text.

    Metrics compare the texts that the model generates, see `evaluate.generate`, with the target texts.

    Args:
        loss_function: `(logits [N, V], tokens [N]) -> sum over tokens, []`; a token of -100 is no target.
        prefix: Text before each source, such as `summarize: `.
        max_target_length: Maximum number of tokens of a target in training; null: 128, or the number of positions of
            the model if that is smaller.
    """

    auto_model = "AutoModelForSeq2SeqLM"
    auto_processor = "AutoTokenizer"
    of_tokens = ()
    columns: ClassVar[Mapping[str, Column]] = {"source": Column("text"), "target": Column("text", target=True)}
    metrics = ("exact_match",)
    outputs: ClassVar[Mapping[str, str] | None] = {"predictions": "text", "references": "texts"}
    peft_type = "SEQ_2_SEQ_LM"
    pipeline_tag = "text2text-generation"
    is_tried = False
    generates = True
    predicted: ClassVar[Mapping[str, str]] = {"text": "generated text"}
    example: ClassVar[Sequence[Mapping[str, Any]]] = (
        {"source": "one two", "target": "two one"},
        {"source": "a b c d", "target": "d c b a"},
        {"source": "The ferry crosses the bay.", "target": "bay. the crosses ferry The"},
    )

    def __init__(
        self,
        *,
        prefix: str = "",
        max_target_length: int | None = None,
        loss_function: Callable[[Tensor, Tensor], Tensor] = cross_entropy,
    ):
        self.max_target_length = _LENGTH if max_target_length is None else max_target_length
        refuse_less({"max_target_length": self.max_target_length}, {"max_target_length": 2}, place="task.args")
        self._max_target_argument = max_target_length
        self.prefix = prefix
        self.loss_function = loss_function

    def settings(self) -> dict[str, Any]:
        return {"prefix": self.prefix, "max_target_length": self.max_target_length}

    def fit_positions(self, positions: int | None) -> list[str]:
        if positions is None:
            return []
        if self._max_target_argument is None:
            self.max_target_length = min(_LENGTH, positions)
        self.generation = replace(self.generation, positions=positions)
        lengths = {
            "task.args.max_target_length": self._max_target_argument,
            "evaluate.generate.max_new_tokens": self.generation.max_new_tokens,
        }
        return [
            f"{key}: {value} is more than the {positions} positions of the model; set it to {positions}"
            for key, value in lengths.items()
            if value is not None and value > positions
        ]

    def logits_per_token(self, model_config: Any) -> int | None:
        return count_vocabulary(model_config)

    def encode(self, rows: Rows, *, max_length: int) -> dict[str, list[Any]]:
        """Tokenise sources, and targets as `labels`. The length of a row is the sum of both."""
        sources = [self.prefix + source for source in rows["source"]]
        encoded = self.tokenizer(  # without token types: `generate` refuses them if the model has none
            sources,
            truncation=True,
            max_length=max_length,
            return_attention_mask=False,
            return_token_type_ids=False,
        )
        columns = {**encoded, "truncated": [bool(encoding.overflowing) for encoding in encoded.encodings]}
        if "target" in rows:
            columns["labels"] = self._encode_targets(rows["target"])
            pairs = zip(columns["input_ids"], columns["labels"], strict=True)
            columns["length"] = [len(source) + len(target) for source, target in pairs]
        return columns

    def collate(self, rows: list[dict[str, Any]]) -> Batch:
        """Pad sources, `[B, T]`, and targets, `[B, U]`."""
        batch = super().collate(rows)
        if "labels" in batch:
            tokens = batch["labels"].shape[1]
            padding = self.widen(tokens, longest=self.max_target_length) - tokens
            batch["labels"] = functional.pad(batch["labels"], (0, padding), value=-100)
        return batch

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        labels = batch["labels"]
        shift = getattr(getattr(model, "module", model), "prepare_decoder_input_ids_from_labels", None)
        # A model without this method shifts the labels itself, and computes a loss that is not used.
        decoder_inputs = {"labels": labels} if shift is None else {"decoder_input_ids": shift(labels=labels)}
        logits = model(**self.model_inputs(batch), **decoder_inputs, use_cache=False).logits
        return self.loss_function(logits.flatten(0, 1), labels.flatten())

    def predict(self, model: nn.Module, batch: Batch) -> dict[str, list[Tensor]]:
        """Return the generated `tokens` for each source."""
        tokens = self.generation.write(model, self.model_inputs(batch))
        return {"tokens": list(tokens[:, 1:])}  # without the decoder's start token

    def merge(self, parts: Sequence[Mapping[str, Any]], row: Mapping[str, Any]) -> dict[str, Any]:
        """Return the generated text as `predictions`, and the target in a list as `references`."""
        (part,) = parts
        tokens = cut_at_end(part["tokens"].tolist(), {self.tokenizer.eos_token_id})
        text = self.tokenizer.decode(tokens, skip_special_tokens=True)
        return {"predictions": text.strip(), **({"references": [row["target"]]} if "target" in row else {})}

    def decode(self, outputs: Mapping[str, Any], row: Mapping[str, Any]) -> dict[str, Any]:
        """Return the generated `text`."""
        return {"text": outputs["predictions"]}

    def _encode_targets(self, targets: Sequence[str]) -> list[list[int]]:
        """Tokenise each target. It has an end token, so that the model learns where to stop."""
        end = self.tokenizer.eos_token_id
        encoded = self.tokenizer(
            text_target=list(targets), truncation=True, max_length=self.max_target_length, return_attention_mask=False
        )["input_ids"]
        if end is None:
            return list(encoded)
        return [ids if end in ids else [*ids[: self.max_target_length - 1], end] for ids in encoded]
