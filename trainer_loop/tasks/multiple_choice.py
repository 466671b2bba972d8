"""Multiple choice: one of several answers to a question."""

from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from trainer_loop.data.columns import Column
from trainer_loop.data.values import find_choice, read_choices
from trainer_loop.tasks.losses import cross_entropy
from trainer_loop.tasks.task import Batch, OnePassTask, Rows


class MultipleChoice(OnePassTask):
    """A row is a question with choices, of which one is correct. A target is a row.

    The model reads the question with each choice as a pair of texts. Rows may have different numbers of choices.

    Args:
        loss_function: `(logits [N, C], answers [N]) -> sum over rows, []`.
    """

    auto_model = "AutoModelForMultipleChoice"
    auto_processor = "AutoTokenizer"
    of_tokens = ()
    columns: ClassVar[Mapping[str, Column]] = {
        "question": Column("text"),
        "choices": Column("choices"),
        "answer": Column("choice", target=True, per="choices"),
    }
    pad: ClassVar[Mapping[str, int]] = {"labels": -100, "num_choices": 0}
    metrics = ("accuracy",)
    outputs: ClassVar[Mapping[str, str] | None] = {"predictions": "class", "references": "class"}
    is_tried = False  # the model reads several texts per row
    predicted: ClassVar[Mapping[str, str]] = {
        "answer": "number of the most likely choice, from 0",
        "choice": "text of this choice",
        "probability": "probability of this choice",
    }
    example: ClassVar[Sequence[Mapping[str, Any]]] = (
        {"question": "Ice is", "choices": ["frozen water", "burnt wood", "a kind of stone"], "answer": "A"},
        {"question": "What do bees make?", "choices": ["milk", "honey"], "answer": "B"},
        {"question": "Which of these is the largest?", "choices": ["a mouse", "a cat", "a whale"], "answer": "C"},
    )

    def __init__(self, *, loss_function: Callable[[Tensor, Tensor], Tensor] = cross_entropy):
        self.loss_function = loss_function

    def encode(self, rows: Rows, *, max_length: int) -> dict[str, list[Any]]:
        """Encode the pairs of each row, `[C][T]`. The length of a row counts all pairs as long as the longest one."""
        texts = [read_choices(choices) for choices in rows["choices"]]
        counts = [len(choices) for choices in texts]
        questions = [question for question, count in zip(rows["question"], counts, strict=True) for _ in range(count)]
        choices = list(chain.from_iterable(texts))
        encoded = self.tokenizer(
            questions, choices, truncation=True, max_length=max_length, return_attention_mask=False
        )
        truncated = _split([bool(encoding.overflowing) for encoding in encoded.encodings], counts)
        columns: dict[str, list[Any]] = {name: _split(values, counts) for name, values in encoded.items()}
        columns["length"] = [len(row) * max(map(len, row)) for row in columns["input_ids"]]
        columns["truncated"] = [any(row) for row in truncated]
        if "answer" in rows:
            answers = zip(rows["answer"], rows["choices"], strict=True)
            columns["label"] = [find_choice(answer, choices) for answer, choices in answers]
        return columns

    def collate(self, rows: list[dict[str, Any]]) -> Batch:
        """Stack the pairs of all rows, `[N, T]`. `num_choices` has their number per row, `labels` `[B]` the answers."""
        counts = tuple(len(row["input_ids"]) for row in rows)
        names = [name for name in rows[0] if name != "label"]
        pairs = [{name: row[name][place] for name in names} for row in rows for place in range(len(row["input_ids"]))]
        labels = {"labels": torch.tensor([row["label"] for row in rows])} if "label" in rows[0] else {}
        return {**super().collate(pairs), **labels, "num_choices": counts}

    def model_inputs(self, batch: Batch) -> Batch:
        """Return all pairs as one row, `[1, N, T]`, because the model scores each pair by itself."""
        return {name: values[None] for name, values in super().model_inputs(batch).items()}

    def count(self, batch: Batch) -> int:
        return len(batch["num_choices"])

    def decode(self, outputs: Mapping[str, Any], row: Mapping[str, Any]) -> dict[str, Any]:
        """Return the `answer` (number from 0), its text as `choice`, and its `probability`."""
        best = int(outputs["predictions"])
        probability = float(outputs["probabilities"][best])
        return {"answer": best, "choice": read_choices(row["choices"])[best], "probability": probability}

    def _logits(self, model: nn.Module, batch: Batch) -> Sequence[Tensor]:
        """Return the scores of the choices of each row, `[C]`."""
        scores: Tensor = super()._logits(model, batch)
        return scores.flatten().split(batch["num_choices"])

    def _sum_loss(self, logits: Sequence[Tensor], batch: Batch) -> Tensor:
        """Call the loss function once if all rows have the same number of choices, else once per row."""
        if len(set(batch["num_choices"])) == 1:
            return self.loss_function(torch.stack(list(logits)), batch["labels"])
        rows = zip(logits, batch["labels"].split(1), strict=True)
        return torch.stack([self.loss_function(scores[None], answer) for scores, answer in rows]).sum()

    def _make_outputs(self, logits: Sequence[Tensor], batch: Batch) -> dict[str, Any]:
        """Return `predictions` `[B]`, and `probabilities` as a list of `[C]`; and `references` `[B]` if known."""
        outputs: dict[str, Any] = {
            "predictions": torch.stack([scores.argmax() for scores in logits]),
            "probabilities": [scores.softmax(dim=0) for scores in logits],
        }
        return outputs | ({"references": batch["labels"]} if "labels" in batch else {})


def _split(values: Sequence[Any], counts: Sequence[int]) -> list[list[Any]]:
    """Split values into one list per row. counts: number of values per row."""
    iterator = iter(values)
    return [[next(iterator) for _ in range(count)] for count in counts]
