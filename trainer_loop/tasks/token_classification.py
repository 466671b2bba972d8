"""One class for each word of a text: named entities, parts of speech."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor, nn

from trainer_loop.data.columns import Column
from trainer_loop.tasks.losses import cross_entropy
from trainer_loop.tasks.task import Batch, Rows, Task


class TokenClassification(Task):
    """A row is a list of words with one tag for each; a target is a word.

    The first token of a word stands for the word. Words behind `data.max_length` tokens are neither trained on nor
    predicted.

    loss_function: `(logits [N, C], tags [N]) -> sum over words, []`; a tag of -100 is no target.
    """

    auto_model = "AutoModelForTokenClassification"
    auto_processor = "AutoTokenizer"
    columns: ClassVar[Mapping[str, Column]] = {
        "words": Column("words"),
        "tags": Column("classes", target=True, per="words"),
    }
    pad: ClassVar[Mapping[str, int]] = {"labels": -100, "begins_word": 0}
    metrics = ("entity_f1",)
    outputs: ClassVar[Mapping[str, str] | None] = {"predictions": "tags", "references": "tags"}
    peft_type = "TOKEN_CLS"
    example: ClassVar[Sequence[Mapping[str, Any]]] = (
        {
            "words": ["Ada", "Lovelace", "lived", "in", "London", "."],
            "tags": ["B-PER", "I-PER", "O", "O", "B-LOC", "O"],
        },
        {"words": ["Nobody", "answered"], "tags": ["O", "O"]},
        {"words": ["Bern", "is", "small"], "tags": ["B-LOC", "O", "O"]},
        {
            "words": ["Grace", "Hopper", "came", "from", "New", "York"],
            "tags": ["B-PER", "I-PER", "O", "O", "B-LOC", "I-LOC"],
        },
    )

    def __init__(self, *, loss_function: Callable[[Tensor, Tensor], Tensor] = cross_entropy):
        self.loss_function = loss_function

    def encode(self, rows: Rows, *, max_length: int) -> dict[str, list[Any]]:
        """The tokens of all words; `labels` has the tag of a word at its first token, and -100 at all others."""
        words = [list(row) for row in rows["words"]]
        encoded = self.tokenizer(
            words, is_split_into_words=True, truncation=True, max_length=max_length, return_attention_mask=False
        )
        word_ids = [encoded.word_ids(row) for row in range(len(words))]
        columns = {**encoded, "begins_word": [[int(first) for first in _find_firsts(ids)] for ids in word_ids]}
        if "tags" in rows:
            columns["labels"] = [
                [tags[word] if first else -100 for word, first in zip(ids, _find_firsts(ids), strict=True)]
                for ids, tags in zip(word_ids, rows["tags"], strict=True)
            ]
        return {**columns, "truncated": [bool(encoding.overflowing) for encoding in encoded.encodings]}

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        return self._sum_loss(self._logits(model, batch), batch)

    def predict(self, model: nn.Module, batch: Batch) -> dict[str, list[Tensor]]:
        """`predictions` and, where tags are known, `references`: for each row the tags of its words, `[words]`."""
        return self._make_outputs(self._logits(model, batch), batch)

    def loss_and_predict(self, model: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, list[Tensor]]]:
        logits = self._logits(model, batch)
        return self._sum_loss(logits, batch), self._make_outputs(logits, batch)

    def decode(self, outputs: Mapping[str, Any], row: Mapping[str, Any]) -> dict[str, Any]:
        """`tags`: one for each word; None for words that were cut off."""
        assert self.label_names is not None, "the task is bound to the names of its classes"
        tags = [self.label_names[index] for index in outputs["predictions"].tolist()]
        return {"tags": [*tags, *[None] * (len(row["words"]) - len(tags))]}

    def _logits(self, model: nn.Module, batch: Batch) -> Tensor:
        """`[B, T, C]`."""
        return model(**self.model_inputs(batch)).logits

    def _sum_loss(self, logits: Tensor, batch: Batch) -> Tensor:
        return self.loss_function(logits.flatten(0, 1), batch["labels"].flatten())

    def _make_outputs(self, logits: Tensor, batch: Batch) -> dict[str, list[Tensor]]:
        begins = batch["begins_word"].bool()
        counts = begins.sum(dim=1).tolist()
        outputs = {"predictions": logits.argmax(dim=-1)[begins].split(counts)}
        if "labels" in batch:
            outputs["references"] = batch["labels"][begins].split(counts)
        return {name: list(tensors) for name, tensors in outputs.items()}


def _find_firsts(word_ids: Sequence[int | None]) -> list[bool]:
    """Whether each token is the first of its word. word_ids: the word of each token; None for special tokens."""
    before = [None, *word_ids]
    return [word is not None and word != last for word, last in zip(word_ids, before, strict=False)]
