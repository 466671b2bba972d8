"""Batches that are wider than their longest row: every column goes along, and answers stay as they are."""

from typing import Any

import pytest
import tiny
import torch

from trainer_loop.tasks.seq2seq import Seq2Seq
from trainer_loop.tasks.sequence_classification import SequenceClassification
from trainer_loop.tasks.token_classification import TokenClassification


def bind(task: Any, *, step: int = 1, longest: int = 64) -> Any:
    task.bind(tiny.make_tokenizer())
    task.use_widths(step, longest=longest)
    return task


def test_columns_of_tokens_are_as_wide_as_the_tokens():
    rows = [
        {"input_ids": [5, 6, 7], "labels": [1, -100, 2], "word": [0, -1, 1]},
        {"input_ids": [5], "labels": [0], "word": [0]},
    ]
    batch = bind(TokenClassification(), step=8).collate(rows)
    assert batch["input_ids"].shape == batch["attention_mask"].shape == batch["labels"].shape == (2, 8)
    assert batch["attention_mask"].sum().item() == 4
    assert batch["labels"].tolist()[0] == [1, -100, 2, *[-100] * 5]
    assert batch["word"].tolist()[1] == [0, *[-1] * 7]


def test_a_batch_is_no_wider_than_the_longest_allowed_row():
    assert bind(SequenceClassification(), step=16, longest=20).collate([{"input_ids": [5] * 17}])[
        "input_ids"
    ].shape == (1, 20)
    assert bind(SequenceClassification(), step=16, longest=20).collate([{"input_ids": [5] * 23}])[
        "input_ids"
    ].shape == (1, 23)


def test_a_row_of_labels_of_another_kind_keeps_its_width():
    class Scored(SequenceClassification):
        pass

    rows = [{"input_ids": [5, 6, 7], "label": [0.1, 0.2, 0.7]}]
    assert bind(Scored(), step=8).collate(rows)["labels"].shape == (1, 3)


def test_targets_are_widened_by_themselves():
    task = bind(Seq2Seq(max_target_length=6), step=4)
    batch = task.collate([{"input_ids": [5] * 9, "labels": [4] * 5}])
    assert batch["input_ids"].shape == (1, 12)
    assert batch["labels"].tolist() == [[4, 4, 4, 4, 4, -100]]


def test_a_task_whose_columns_are_not_known_is_not_widened():
    class Own(SequenceClassification):
        def collate(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
            return super().collate(rows)

    class Told(Own):
        of_tokens = ()

    assert SequenceClassification().may_widen and not Own().may_widen and Told().may_widen


@pytest.mark.parametrize("name", ["sequence_classification", "causal_lm"])
def test_the_loss_and_the_gradients_are_those_of_narrow_batches(name: str):
    rows = tiny.make_rows(5, labelled=name != "causal_lm")
    gradients = []
    for step in (1, 16):
        task, model = bind(tiny.make_task(name), step=step), tiny.make_model(name).double()
        batch = task.collate(rows)
        loss = task.loss(model, batch)
        loss.backward()
        found = [parameter.grad.flatten() for parameter in model.parameters() if parameter.grad is not None]
        gradients.append(torch.cat([loss[None], *found]))
        assert task.count(batch) == task.count(task.collate(rows))
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-9, atol=1e-9)
