"""Questions: windows, the place of the answer in them, the best part of each, and answers from several windows."""

import itertools
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing
from transformers import BertConfig, BertForQuestionAnswering, PreTrainedTokenizerFast

from trainer_loop import UserError
from trainer_loop.tasks.question_answering import QuestionAnswering

WORDS = [f"w{number}" for number in range(40)]
CONTEXT = " ".join(WORDS)
KNOWN = ["who", "came", *WORDS]


def make_task(**arguments: Any) -> QuestionAnswering:
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=_make_words(), pad_token="[PAD]", cls_token="[CLS]")
    task = QuestionAnswering(**arguments)
    task.bind(tokenizer)
    return task


def _make_words() -> Tokenizer:
    """One token for each word."""
    words = Tokenizer(WordLevel({word: number for number, word in enumerate(["[PAD]", "[CLS]", "[SEP]", *KNOWN])}))
    words.pre_tokenizer = WhitespaceSplit()
    words.post_processor = TemplateProcessing(
        single="[CLS] $A", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    return words


def make_model() -> torch.nn.Module:
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    torch.manual_seed(0)
    return BertForQuestionAnswering(BertConfig(vocab_size=100, **sizes)).double().eval()


def make_rows(answer: str | None, *, context: str = CONTEXT) -> dict[str, list[Any]]:
    texts = [] if answer is None else [answer]
    answers = {"text": texts, "answer_start": [context.index(text) for text in texts]}
    return {"question": ["who came"], "context": [context], "answers": [answers]}


def make_batch(task: QuestionAnswering, rows: dict[str, list[Any]], *, max_length: int = 24) -> dict[str, Any]:
    encoded = task.encode(rows, max_length=max_length)
    names = [name for name in encoded if name != "source"]
    return task.collate([dict(zip(names, row, strict=True)) for row in zip(*(encoded[n] for n in names), strict=True)])


@pytest.mark.parametrize("answer", ["w0", "w7 w8 w9", "w39", "w11"])
def test_each_window_that_has_the_whole_answer_points_at_it_and_the_others_at_the_first_token(answer: str):
    encoded = make_task(stride=4).encode(make_rows(answer), max_length=24)
    windows = len(encoded["input_ids"])
    assert windows > 2
    assert encoded["source"] == [0] * windows
    found = 0
    for window in range(windows):
        start, end = encoded["start"][window], encoded["end"][window]
        begin, stop = encoded["char_start"][window][start], encoded["char_end"][window][end]
        if start == 0 == end:
            assert begin == -1
            there = [place for place in encoded["char_start"][window] if place >= 0]
            assert not CONTEXT[min(there) : max(encoded["char_end"][window])].count(f"{answer} ")
        else:
            found += 1
            assert CONTEXT[begin:stop] == answer
    assert found


def test_windows_share_the_stride_and_leave_no_token_out():
    encoded = make_task(stride=3).encode(make_rows(None), max_length=24)
    parts = [[place for place in window if place >= 0] for window in encoded["char_start"]]
    assert sorted({place for part in parts for place in part}) == [CONTEXT.index(f"{word} ") for word in WORDS[:-1]] + [
        CONTEXT.index("w39")
    ]
    assert all(one[-3:] == other[:3] for one, other in itertools.pairwise(parts))
    assert set(encoded["start"]) == {0}


def test_a_question_that_is_too_long_is_cut_and_the_context_is_read():
    rows = make_rows("w3") | {"question": [CONTEXT]}
    encoded = make_task().encode(rows, max_length=24)
    assert max(map(len, encoded["input_ids"])) <= 24
    assert any(start > 0 for start in encoded["start"])


def test_the_loss_is_that_of_the_head_and_does_not_depend_on_padding():
    task, model = make_task(stride=4), make_model()
    batch = make_batch(task, make_rows("w7 w8"))
    assert batch["attention_mask"].sum(dim=1).unique().numel() > 1
    alone = []
    for row, length in enumerate(batch["attention_mask"].sum(dim=1).tolist()):
        one = {name: value[row : row + 1] for name, value in batch.items()}
        one = {name: value[:, :length] if value.ndim == 2 else value for name, value in one.items()}
        head = model(**task.model_inputs(one), start_positions=one["start"], end_positions=one["end"]).loss
        assert task.loss(model, one).item() == pytest.approx(head.item(), rel=1e-6)
        alone.append(head.item())
    assert task.loss(model, batch).item() == pytest.approx(sum(alone), rel=1e-6)
    assert task.count(batch) == len(alone)


@pytest.mark.parametrize("longest", [1, 3, 30])
def test_the_best_part_is_the_best_of_all_that_are_allowed(longest: int):
    task, model = make_task(stride=4, max_answer_tokens=longest), make_model()
    batch = make_batch(task, make_rows("w7"))
    _, predicted = task.loss_and_predict(model, batch)
    logits = model(**task.model_inputs(batch))
    for row in range(len(batch["input_ids"])):
        tokens = (batch["char_start"][row] >= 0).nonzero().flatten().tolist()
        scores = {
            (start, end): logits.start_logits[row, start].item() + logits.end_logits[row, end].item()
            for start in tokens
            for end in tokens
            if start <= end < start + longest
        }
        start, end = max(scores, key=lambda pair: scores[pair])
        assert predicted["score"][row].item() == pytest.approx(scores[start, end], rel=1e-5)
        assert predicted["char_start"][row] == batch["char_start"][row, start]
        assert predicted["char_end"][row] == batch["char_end"][row, end]
        none = logits.start_logits[row, 0] + logits.end_logits[row, 0]
        assert predicted["none"][row].item() == pytest.approx(none.item(), rel=1e-5)


def test_the_answer_is_that_of_the_best_window():
    parts = [
        {"char_start": 0, "char_end": 2, "score": np.float32(1), "none": np.float32(3)},
        {"char_start": 2, "char_end": 5, "score": np.float32(2), "none": np.float32(4)},
    ]
    row = {"question": "who", "context": CONTEXT, "answers": {"text": ["w1", "w2"], "answer_start": [3, 6]}}
    merged = make_task().merge(parts, row)
    assert merged == {"predictions": "w1", "start": 3, "score": -1.0, "references": ["w1", "w2"]}
    assert make_task(null_answers=True).merge(parts, row)["predictions"] == ""
    assert make_task(null_answers=True, null_threshold=1.5).merge(parts, row)["predictions"] == "w1"
    del row["answers"]
    assert "references" not in make_task().merge(parts, row)


def test_padding_takes_no_part_in_a_loss_of_ones_own():
    def smoothed(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(logits, targets, label_smoothing=0.1, reduction="sum")

    task, model = make_task(stride=4, loss_function=smoothed), make_model()
    batch = make_batch(task, make_rows("w7"))
    few, more = task.loss(model, batch), 0.0
    for row in range(len(batch["input_ids"])):
        length = int(batch["attention_mask"][row].sum())
        one = {name: value[row : row + 1] for name, value in batch.items()}
        more += task.loss(
            model, {name: value[:, :length] if value.ndim == 2 else value for name, value in one.items()}
        ).item()
    assert few.item() == pytest.approx(more, rel=1e-6)


def test_a_window_too_short_for_question_and_context_is_refused():
    with pytest.raises(UserError, match=r"data.max_length: 23 holds no question and context; set 24 or more"):
        make_task().encode(make_rows("w3"), max_length=23)
    make_task(stride=100).encode(make_rows("w3") | {"question": [CONTEXT]}, max_length=24)


def test_spaces_around_an_answer_do_not_hide_it():
    context = " w1 w2 w3 "
    answers = [{"text": [text], "answer_start": [context.index(text)]} for text in (" w1", "w3 ", " ")]
    rows = {"question": ["who"] * 3, "context": [context] * 3, "answers": answers}
    encoded = make_task().encode(rows, max_length=24)
    found = [(encoded["char_start"][row][encoded["start"][row]], encoded["end"][row]) for row in range(3)]
    assert [place for place, _ in found] == [1, 7, -1]


@pytest.mark.parametrize("wrong", [{"stride": -1}, {"max_answer_tokens": 0}])
def test_arguments_out_of_range_are_refused(wrong: dict[str, int]):
    with pytest.raises(UserError, match=rf"task.args.{next(iter(wrong))}: "):
        QuestionAnswering(**wrong)
