"""Questions with choices: how an answer names one, the loss of the head, unlike numbers of choices, bad rows."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import BertConfig, BertForMultipleChoice, BertForSequenceClassification

from trainer_loop import Predictor, UserError, build, load_config
from trainer_loop.data.processors import train_tokenizer
from trainer_loop.data.values import find_choice, find_fault
from trainer_loop.record.logs import Console
from trainer_loop.tasks.multiple_choice import MultipleChoice

ROWS = {
    "question": ["Ice is", "What do bees make?", "Which is the largest?"],
    "choices": [["frozen water", "burnt wood", "a kind of stone"], ["milk", "honey"], ["a mouse", "a cat", "a whale"]],
    "answer": ["A", 1, "a whale"],
}
TEXTS = [*ROWS["question"], *(choice for choices in ROWS["choices"] for choice in choices)]
TOKENIZER = train_tokenizer(TEXTS, framed=True, vocab_size=300, max_length=64)


def make_task(**arguments: Any) -> MultipleChoice:
    task = MultipleChoice(**arguments)
    task.bind(TOKENIZER)
    return task


def make_batch(task: MultipleChoice, *numbers: int) -> dict[str, Any]:
    encoded = task.encode(
        {name: [values[number] for number in numbers] for name, values in ROWS.items()}, max_length=32
    )
    names = [name for name in encoded if name not in ("length", "truncated")]
    return task.collate([dict(zip(names, row, strict=True)) for row in zip(*(encoded[n] for n in names), strict=True)])


def make_model() -> BertForMultipleChoice:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    return BertForMultipleChoice(BertConfig(vocab_size=len(TOKENIZER), max_position_embeddings=64, **sizes)).eval()


@given(st.lists(st.text("abc", min_size=2), min_size=2, max_size=26, unique=True), st.data())
def test_a_choice_is_found_by_its_number_its_letter_and_its_text(choices: list[str], data: st.DataObject):
    number = data.draw(st.integers(0, len(choices) - 1))
    assert find_choice(number, choices) == number
    assert find_choice(choices[number], choices) == number
    letter, digits = chr(ord("A") + number), f" {number} "
    assert find_choice(letter, choices) == find_choice(letter.lower(), choices) == number
    assert find_choice(digits, choices) == number


@pytest.mark.parametrize("value", [2, -1, "C", "2", "-1", "neither", "", None, 1.0, True, "²", "ä"])
def test_other_values_name_no_choice(value: Any):
    assert find_choice(value, ["yes", "no"]) is None


def test_a_text_that_stands_twice_names_no_choice():
    assert find_choice("yes", ["yes", "yes"]) is None


@pytest.mark.parametrize(
    ("value", "choices"), [("A", ["AB", "A", "B", "O"]), ("1", ["1", "2", "3"]), ("a", ["A", "a"]), ("b", ["b", "a"])]
)
def test_a_text_of_one_choice_that_is_the_place_of_another_is_refused(value: str, choices: list[str]):
    assert find_choice(value, choices) is None
    assert "is the text of one choice and the place of another" in (find_fault(value, "choice", choices) or "")
    assert find_choice("A", ["A", "B"]) == 0
    assert find_choice("1", ["0", "1"]) == 1


def test_choices_may_have_labels_which_alone_name_them():
    choices = {"text": ["two", "three", "one"], "label": ["1", "2", "3"]}
    assert [find_choice(value, choices) for value in ("1", 2, "3", "0", "A", "one")] == [0, 1, 2, None, None, None]
    assert find_choice("a", {"text": ["x", "y"], "label": None}) == 0
    rows = {"question": ["How many?"], "choices": [choices], "answer": ["2"]}
    encoded = make_task().encode(rows, max_length=32)
    assert encoded["label"] == [1]
    assert len(encoded["input_ids"][0]) == 3


def test_the_loss_is_the_sum_of_that_of_the_head():
    task, model = make_task(), make_model().double()
    batch = make_batch(task, 0, 2)
    inputs = {name: values.view(2, 3, -1) for name, values in task.model_inputs(batch).items()}
    head = model(**inputs, labels=batch["labels"])
    assert batch["labels"].tolist() == [0, 2]
    assert task.loss(model, batch).item() == pytest.approx(2 * head.loss.item(), rel=1e-6)
    predicted = task.predict(model, batch)["predictions"]
    assert predicted.tolist() == head.logits.argmax(dim=1).tolist()


def test_a_row_is_answered_alike_beside_rows_with_more_choices():
    task, model = make_task(), make_model().double()
    together, outputs = task.loss_and_predict(model, make_batch(task, 0, 1, 2))
    alone = [task.loss_and_predict(model, make_batch(task, number)) for number in range(3)]
    assert together.item() == pytest.approx(sum(loss.item() for loss, _ in alone), rel=1e-9)
    assert task.count(make_batch(task, 0, 1, 2)) == 3
    for number, (_, own) in enumerate(alone):
        assert outputs["predictions"][number] == own["predictions"][0]
        torch.testing.assert_close(outputs["probabilities"][number], own["probabilities"][0])


def test_a_row_that_was_cut_is_told_and_its_length_is_that_of_all_pairs():
    encoded = make_task().encode(ROWS, max_length=12)
    assert encoded["length"] == [len(row) * max(map(len, row)) for row in encoded["input_ids"]]
    assert encoded["truncated"][0] is True
    assert all(len(ids) <= 12 for row in encoded["input_ids"] for ids in row)


@pytest.mark.parametrize("choices", ["milk, honey", "milk || honey", ""])
def test_choices_that_are_not_separated_are_refused(choices: str):
    columns = {"question": "question", "choices": "choices"}
    predictor = Predictor(make_model(), TOKENIZER, task="multiple_choice", max_length=32, columns=columns)
    with pytest.raises(UserError, match=r"choices: has .*; separate them by \|"):
        predictor.predict(["What do bees make?"], [choices])


def test_one_question_is_answered_with_its_choices():
    columns = {"question": "question", "choices": "choices"}
    predictor = Predictor(make_model(), TOKENIZER, task="multiple_choice", max_length=32, columns=columns)
    (row,) = predictor.predict(["What do bees make?"], ["milk | honey"])
    assert row["choice"] == ["milk", "honey"][row["answer"]]
    assert 0.5 <= row["probability"] <= 1


def test_a_model_with_a_head_of_classes_gets_one_for_choices(tmp_path: Path):
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    config = BertConfig(vocab_size=len(TOKENIZER), max_position_embeddings=64, num_labels=3, **sizes)
    BertForSequenceClassification(config).save_pretrained(tmp_path / "model")
    TOKENIZER.save_pretrained(tmp_path / "model")
    rows = [dict(zip(ROWS, row, strict=True)) for row in zip(*ROWS.values(), strict=True)]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row | {"answer": str(row["answer"])}) + "\n" for row in rows))
    overrides = [
        f"data={{train: {path}, max_length: 32, cache_dir: {tmp_path}}}",
        f"model.name={tmp_path / 'model'}",
        "batch.size=2",
    ]
    overrides += ["task.name=multiple_choice", "train={steps: 1, precision: no}", f"run_dir={tmp_path / 'run'}"]
    loop = build(load_config(None, overrides), console=Console(enabled=False))
    loop.fit()
    assert loop.bare_model.classifier.weight.shape == (1, 16)


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"answer": "2"}, "'answer' holds '2', which is none of the 2 choices"),
        ({"answer": "C"}, "'answer' holds 'C', which is none of the 2 choices"),
        ({"choices": ["milk"]}, "'choices' has 1 choices where it needs 2"),
        ({"choices": ["milk", ""]}, "'choices' has an empty choice"),
        ({"choices": ["milk", None]}, "'choices' holds None among its choices"),
        ({"choices": {"text": ["milk", "honey"], "label": ["A"]}}, "'choices' has 2 texts and 1 labels"),
        ({"question": " "}, "'question'"),
    ],
)
@pytest.mark.parametrize("streaming", ["true", "false"])
def test_a_bad_row_is_refused_with_its_place(row: dict[str, Any], told: str, streaming: str, tmp_path: Path):
    rows = [{"question": "What do bees make?", "choices": ["milk", "honey"], "answer": "B"}] * 3
    if isinstance(row.get("choices"), dict):
        rows = [one | {"choices": {"text": ["milk", "honey"], "label": ["A", "B"]}} for one in rows]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(one) + "\n" for one in [*rows, rows[0] | row]))
    config = load_config(
        None,
        [
            "task.name=multiple_choice",
            f"data={{train: {path}, streaming: {streaming}, cache_dir: {tmp_path}}}",
            "model={type: bert, tokenizer: train}" if streaming == "false" else "model.name=nothing",
            f"run_dir={tmp_path / 'run'}",
            "train.steps=1",
            "checkpoint.every=1",
            "batch.size=2",
        ],
    )
    with pytest.raises(UserError) as refused:
        build(config, console=Console(enabled=False))
    assert any(told in line and "rows.jsonl line 4" in line for line in refused.value.problems), refused.value.problems
