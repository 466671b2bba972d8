"""Token classification: one class for each word of a text, such as named entities or parts of speech."""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal

from torch import Tensor

from trainer_loop.components import refuse_others
from trainer_loop.data.columns import Column
from trainer_loop.tasks.losses import cross_entropy
from trainer_loop.tasks.task import Batch, OnePassTask, Rows


class TokenClassification(OnePassTask):
    """A row is a list of words with one tag for each. A target is a word, or a token of a word, see `pieces`.

    The prediction of a word is that of its first token. Words after `data.max_length` tokens, and words without a
    token, are neither trained on nor predicted.

    Args:
        pieces: The tokens of a word that are targets: the `first`, or `all`, each with the tag of the word.
        loss_function: `(logits [N, C], tags [N]) -> sum over targets, []`; a tag of -100 is no target.
    """

    auto_model = "AutoModelForTokenClassification"
    auto_processor = "AutoTokenizer"
    of_tokens = ("labels", "word")
    columns: ClassVar[Mapping[str, Column]] = {
        "words": Column("words"),
        "tags": Column("classes", target=True, per="words"),
    }
    pad: ClassVar[Mapping[str, int]] = {"labels": -100, "word": -1}
    metrics = ("entity_f1",)
    outputs: ClassVar[Mapping[str, str] | None] = {"predictions": "tags", "references": "tags", "words": "word_numbers"}
    peft_type = "TOKEN_CLS"
    pipeline_tag = "token-classification"
    predicted: ClassVar[Mapping[str, str]] = {
        "tags": "tag of each word; null for a word that the model did not read",
    }
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

    def __init__(
        self,
        *,
        pieces: Literal["first", "all"] = "first",
        loss_function: Callable[[Tensor, Tensor], Tensor] = cross_entropy,
    ):
        refuse_others({"pieces": pieces}, {"pieces": ("first", "all")}, place="task.args")
        self.pieces = pieces
        self.loss_function = loss_function

    def settings(self) -> dict[str, Any]:
        return {**super().settings(), "pieces": self.pieces}

    def encode(self, rows: Rows, *, max_length: int) -> dict[str, list[Any]]:
        """Tokenise all words. `labels` has the tag of a word at its targets, and -100 at all other tokens.

        `word` has the number of the word that starts at a token, else -1.
        """
        space = " " if _needs_space(self.tokenizer) else ""  # the space between words of a running text
        words = [[*row[:1], *(space + word for word in row[1:])] for row in map(list, rows["words"])]
        encoded = self.tokenizer(
            words, is_split_into_words=True, truncation=True, max_length=max_length, return_attention_mask=False
        )
        word_ids = [encoded.word_ids(row) for row in range(len(words))]
        columns = {**encoded, "word": [_find_word_starts(row) for row in word_ids]}
        if "tags" in rows:
            targets = columns["word"] if self.pieces == "first" else word_ids
            columns["labels"] = [
                [-100 if word is None or word < 0 else tags[word] for word in numbers]
                for numbers, tags in zip(targets, rows["tags"], strict=True)
            ]
        return {**columns, "truncated": [bool(encoding.overflowing) for encoding in encoded.encodings]}

    def decode(self, outputs: Mapping[str, Any], row: Mapping[str, Any]) -> dict[str, Any]:
        """Return the `tags` of all words; None for a word without a prediction."""
        assert self.label_names is not None, "the task is bound to the names of its classes"
        tags: list[str | None] = [None] * len(row["words"])
        for word, index in zip(outputs["words"].tolist(), outputs["predictions"].tolist(), strict=True):
            tags[word] = self.label_names[index]
        return {"tags": tags}

    def _sum_loss(self, logits: Tensor, batch: Batch) -> Tensor:
        return self.loss_function(logits.flatten(0, 1), batch["labels"].flatten())

    def _make_outputs(self, logits: Tensor, batch: Batch) -> dict[str, list[Tensor]]:
        """Return the tags of the words of each row, `[W]`, as `predictions`, and `references` if they are known.

        `words` are the positions of these words in the row.
        """
        starts_word = batch["word"] >= 0
        counts = starts_word.sum(dim=1).tolist()
        values = {"predictions": logits.argmax(dim=-1), "words": batch["word"]}
        values |= {"references": batch["labels"]} if "labels" in batch else {}
        outputs = {name: tensor[starts_word].split(counts) for name, tensor in values.items()}
        return {name: list(tensors) for name, tensors in outputs.items()}


def _find_word_starts(word_ids: Sequence[int | None]) -> list[int]:
    """Return the number of the word that starts at each token; -1 for other tokens. word_ids: word of each token."""
    previous = [None, *word_ids]
    return [-1 if word is None or word == before else word for word, before in zip(word_ids, previous, strict=False)]


def _needs_space(tokenizer: Any) -> bool:
    """Return whether a word has other tokens after a space than at the start of a text, as in byte-level BPE."""
    splitter = tokenizer.backend_tokenizer.pre_tokenizer
    if splitter is None:
        return False
    state = json.loads(splitter.__getstate__())  # the JSON of the whole tokenizer would include the vocabulary
    parts = state.get("pretokenizers", [state])
    return any(part.get("type") == "ByteLevel" and not part["add_prefix_space"] for part in parts)
