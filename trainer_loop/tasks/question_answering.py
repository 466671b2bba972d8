"""Extractive question answering: find the part of a context that answers a question."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from trainer_loop.components import refuse_less
from trainer_loop.data.columns import Column
from trainer_loop.errors import UserError
from trainer_loop.tasks.losses import cross_entropy
from trainer_loop.tasks.task import Batch, OnePassTask, Rows

# Least tokens of a window: half of them for the question, a few special tokens, a quarter that windows share.
_SHORTEST = 24

_LEAST = {"stride": 0, "max_answer_tokens": 1}


class QuestionAnswering(OnePassTask):
    """A row is a question, a context, and answers that occur in the context. Without an answer the list is empty.

    If question and context have more than `data.max_length` tokens, they are read in overlapping windows. A target is
    a window: the span of its answer, or the first token if the window does not contain the whole answer. Of several
    answers the first one is learned. The prediction of a row is the best span of all its windows. `batch.size` and
    epochs count windows, metrics count questions.

    Args:
        loss_function: `(logits [N, T], positions [N]) -> sum over windows, []`. It is called for the first and for the
            last token of the answer, and the loss is the mean of both.
        stride: Number of context tokens that two windows share, at most a quarter of `data.max_length`.
        max_answer_tokens: Maximum length of a predicted answer.
        null_answers: Predict the empty text if the first token scores better than any span.
        null_threshold: Margin by which it must score better.
    """

    auto_model = "AutoModelForQuestionAnswering"
    auto_processor = "AutoTokenizer"
    of_tokens = ("char_start", "char_end")
    columns: ClassVar[Mapping[str, Column]] = {
        "question": Column("text"),
        "context": Column("text"),
        "answers": Column("spans", target=True, per="context"),
    }
    pad: ClassVar[Mapping[str, int]] = {"char_start": -1, "char_end": -1, "first": 0, "start": 0, "end": 0}
    metrics = ("answer_f1",)
    outputs: ClassVar[Mapping[str, str] | None] = {
        "predictions": "text",
        "references": "texts",
        "start": "character",
        "score": "score",
    }
    peft_type = "QUESTION_ANS"
    pipeline_tag = "question-answering"
    predicted: ClassVar[Mapping[str, str]] = {
        "answer": "part of the context that answers the question; empty if there is no answer",
        "start": "position of its first character in the context, from 0; -1 if there is no answer",
        "score": "sum of its two logits minus that of no answer",
    }
    example: ClassVar[Sequence[Mapping[str, Any]]] = (
        {
            "question": "Where did she live?",
            "context": "Ada was born in London. She lived in Ockham.",
            "answers": {"text": ["Ockham", "in Ockham"], "answer_start": [37, 34]},
        },
        {
            "question": "Who came?",
            "context": "Nobody came but Grace, who was late.",
            "answers": {"text": ["Grace"], "answer_start": [16]},
        },
        {
            "question": "What did it cost?",
            "context": "It was sold in Bern.",
            "answers": {"text": [], "answer_start": []},
        },
    )

    def __init__(
        self,
        *,
        stride: int = 128,
        max_answer_tokens: int = 30,
        null_answers: bool = False,
        null_threshold: float = 0.0,
        loss_function: Callable[[Tensor, Tensor], Tensor] = cross_entropy,
    ):
        refuse_less({"stride": stride, "max_answer_tokens": max_answer_tokens}, _LEAST, place="task.args")
        self.stride = stride
        self.max_answer_tokens = max_answer_tokens
        self.null_answers = null_answers
        self.null_threshold = null_threshold
        self.loss_function = loss_function

    def settings(self) -> dict[str, Any]:
        return {"stride": self.stride}

    def encode(self, rows: Rows, *, max_length: int) -> dict[str, list[Any]]:
        """Make windows.

        `char_start` and `char_end` are the characters of each token in the context, -1 for other tokens. `first` is the
        token that means no answer. `start` and `end` are the first and last token of the answer.
        """
        if max_length < _SHORTEST:
            raise UserError(f"data.max_length: {max_length} holds no question and context; set {_SHORTEST} or more")
        encoded = self.tokenizer(
            self._shorten(rows["question"], max_tokens=max_length // 2),
            list(rows["context"]),
            truncation="only_second",
            max_length=max_length,
            stride=min(self.stride, max_length // 4),
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
            return_attention_mask=False,
        )
        places = encoded.pop("offset_mapping")
        sources = encoded.pop("overflow_to_sample_mapping")
        in_context = [[part == 1 for part in encoded.sequence_ids(row)] for row in range(len(sources))]
        windows = {
            **encoded,
            "source": sources,
            "char_start": _mask_others(places, in_context, 0),
            "char_end": _mask_others(places, in_context, 1),
            "first": [self._find_first(ids) for ids in encoded["input_ids"]],
        }
        if "answers" in rows:
            answers = [rows["answers"][source] for source in sources]
            columns = (windows["char_start"], windows["char_end"], windows["first"], answers)
            spans = [_find_span(*window) for window in zip(*columns, strict=True)]
            windows |= {"start": [start for start, _ in spans], "end": [end for _, end in spans]}
        return windows

    def merge(self, parts: Sequence[Mapping[str, Any]], row: Mapping[str, Any]) -> dict[str, Any]:
        """Return the best span of all windows as `predictions`, its first character as `start`, and the references.

        `score` is the sum of its two logits minus that of no answer.
        """
        best = max(parts, key=lambda part: part["score"])
        score = float(best["score"]) - min(float(part["none"]) for part in parts)
        start, text = int(best["char_start"]), row["context"][best["char_start"] : best["char_end"]]
        start, text = start + len(text) - len(text.lstrip()), text.strip()
        if self.null_answers and -score > self.null_threshold:
            start, text = -1, ""
        references = {"references": list(row["answers"]["text"])} if "answers" in row else {}
        return {"predictions": text, "start": start, "score": score, **references}

    def decode(self, outputs: Mapping[str, Any], row: Mapping[str, Any]) -> dict[str, Any]:
        """Return `answer`, the position of its first character in the context as `start`, and `score`."""
        return {"answer": outputs["predictions"], "start": int(outputs["start"]), "score": float(outputs["score"])}

    def _shorten(self, questions: Sequence[str], *, max_tokens: int) -> list[str]:
        """Truncate questions to `max_tokens` tokens."""
        encoded = self.tokenizer(
            list(questions),
            add_special_tokens=False,
            truncation=True,
            max_length=max_tokens,
            return_offsets_mapping=True,
        )
        ends = [places[-1][1] if places else 0 for places in encoded["offset_mapping"]]
        return [question[:end] for question, end in zip(questions, ends, strict=True)]

    def _find_first(self, ids: Sequence[int]) -> int:
        """Return the position of the token that means no answer: the CLS token, else the first one."""
        return ids.index(self.tokenizer.cls_token_id) if self.tokenizer.cls_token_id in ids else 0

    def _logits(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the logits of the first and of the last token of the answer, `[B, T]`."""
        outputs = model(**self.model_inputs(batch))
        return outputs.start_logits, outputs.end_logits

    def _sum_loss(self, logits: tuple[Tensor, Tensor], batch: Batch) -> Tensor:
        """Sum the loss over windows, without padding, so that a window does not depend on others of the batch."""
        starts, ends = logits
        lengths = batch["attention_mask"].sum(dim=1).tolist()
        first, last = batch["start"], batch["end"]
        if min(lengths) == starts.shape[1]:
            return (self.loss_function(starts, first) + self.loss_function(ends, last)) / 2
        losses = [
            self.loss_function(scores[row : row + 1, :length], positions[row : row + 1])
            for scores, positions in ((starts, first), (ends, last))
            for row, length in enumerate(lengths)
        ]
        return torch.stack(losses).sum() / 2

    def _make_outputs(self, logits: tuple[Tensor, Tensor], batch: Batch) -> dict[str, Tensor]:
        """Return the best span of each window, `char_start` to `char_end`, its `score`, and the score of `none`."""
        starts, ends, first = logits[0].float(), logits[1].float(), batch["first"][:, None]
        none = (starts.gather(1, first) + ends.gather(1, first))[:, 0]
        outside = batch["char_start"] < 0
        starts, ends = starts.masked_fill(outside, -torch.inf), ends.masked_fill(outside, -torch.inf)
        width = starts.shape[1]
        best = [  # best spans of 1 token, of 2 tokens, ...
            (starts[:, : width - more] + ends[:, more:]).max(dim=1)
            for more in range(min(self.max_answer_tokens, width))
        ]
        score, more = torch.stack([part.values for part in best], dim=1).max(dim=1)
        start = torch.stack([part.indices for part in best], dim=1).gather(1, more[:, None])
        return {
            "char_start": batch["char_start"].gather(1, start)[:, 0],
            "char_end": batch["char_end"].gather(1, start + more[:, None])[:, 0],
            "score": score,
            "none": none,
        }


def _mask_others(
    places: Sequence[Sequence[tuple[int, int]]], masks: Sequence[Sequence[bool]], side: int
) -> list[list[int]]:
    """Return the start (side 0) or end (side 1) of each token in the mask; -1 for other tokens."""
    return [
        [place[side] if is_inside else -1 for place, is_inside in zip(row, mask, strict=True)]
        for row, mask in zip(places, masks, strict=True)
    ]


def _find_span(
    char_starts: Sequence[int], char_ends: Sequence[int], first: int, answers: Mapping[str, Sequence[Any]]
) -> tuple[int, int]:
    """Return the first and last token of the first answer; `first` twice if the window does not contain all of it."""
    tokens = [token for token, char_start in enumerate(char_starts) if char_start >= 0]
    if not answers["text"] or answers["text"][0].isspace() or not tokens:
        return first, first
    text = answers["text"][0]
    start = answers["answer_start"][0] + len(text) - len(text.lstrip())  # spaces may not be tokens
    end = start + len(text.strip())
    if start < char_starts[tokens[0]] or end > char_ends[tokens[-1]]:
        return first, first
    return (
        next(token for token in tokens if char_ends[token] > start),
        next(token for token in reversed(tokens) if char_starts[token] < end),
    )
