"""Pairs of answers: the losses against their formulas, what the model was before, its cache, bad rows."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from answer_pairs import configure_run, make_tokenizer
from transformers import GPT2Config, GPT2LMHeadModel

from trainer_loop import Predictor, TrainingLoop, UserError, build
from trainer_loop.record.logs import Console
from trainer_loop.tasks.preference import Preference

ROWS = [dict(row) for row in Preference.example]
TOKENIZER = make_tokenizer(ROWS)


def make_task(**arguments: Any) -> Preference:
    task = Preference(**arguments)
    task.bind(TOKENIZER)
    return task


def encode(task: Preference, rows: list[dict[str, Any]], *, max_length: int = 128) -> dict[str, list[Any]]:
    return task.encode({name: [row[name] for row in rows] for name in rows[0]}, max_length=max_length)


def make_batch(task: Preference, rows: list[dict[str, Any]], reference: list[list[float]] | None = None) -> Any:
    encoded = encode(task, rows)
    names = ("input_ids", "labels", "prompt")
    made = [dict(zip(names, row, strict=True)) for row in zip(*(encoded[name] for name in names), strict=True)]
    if reference is not None:
        made = [{**row, "reference": values} for row, values in zip(made, reference, strict=True)]
    return task.collate(made)


def make_model() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    sizes = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 128, "vocab_size": len(TOKENIZER)}
    return GPT2LMHeadModel(GPT2Config(**sizes)).eval()


def score_answer(model: GPT2LMHeadModel, row: dict[str, Any], answer: str) -> tuple[float, int]:
    """The log probability of an answer, token by token, without a mask or padding; and its tokens."""
    asked = [{"role": "user", "content": row["prompt"]}]
    said = [*asked, {"role": "assistant", "content": row[answer]}]
    prompt = TOKENIZER.apply_chat_template(asked, add_generation_prompt=True, return_dict=False)
    ids = TOKENIZER.apply_chat_template(said, return_dict=False)
    end = ids.index(TOKENIZER.eos_token_id, len(prompt)) + 1
    logits = model(input_ids=torch.tensor([ids[:end]])).logits[0].log_softmax(dim=-1)
    tokens = range(len(prompt), end)
    return sum(float(logits[place - 1, ids[place]].detach()) for place in tokens), len(tokens)


def test_log_probabilities_are_those_of_each_answer_alone():
    task, model = make_task(), make_model()
    found = task.refer(model, make_batch(task, ROWS))
    for row, pair in zip(ROWS, found.tolist(), strict=True):
        for answer, value in zip(("chosen", "rejected"), pair, strict=True):
            assert value == pytest.approx(score_answer(model, row, answer)[0], rel=1e-5)


REFERENCE = [[-20.0, -21.0], [-3.0, -2.5], [-9.0, -4.0]]


def compute_expected(model: GPT2LMHeadModel, loss_type: str, *, beta: float, smoothing: float) -> float:
    """The sum over the rows by the formulas of the papers."""
    total = 0.0
    for row, before in zip(ROWS, REFERENCE, strict=True):
        (chosen, long), (rejected, short) = (score_answer(model, row, answer) for answer in ("chosen", "rejected"))
        if loss_type == "ipo":
            chosen, rejected = chosen / long, rejected / short
        margin = (chosen - before[0]) - (rejected - before[1])
        if loss_type == "hinge":
            total += max(0.0, 1 - beta * margin)
        elif loss_type == "ipo":
            total += (margin - 1 / (2 * beta)) ** 2
        else:
            total -= (1 - smoothing) * math.log(1 / (1 + math.exp(-beta * margin)))
            total -= smoothing * math.log(1 / (1 + math.exp(beta * margin)))
    return total


@pytest.mark.parametrize(("loss_type", "smoothing"), [("sigmoid", 0.0), ("sigmoid", 0.2), ("hinge", 0.0), ("ipo", 0.0)])
def test_each_loss_is_that_of_its_formula(loss_type: Any, smoothing: float):
    task, model = make_task(loss_type=loss_type, beta=0.3, label_smoothing=smoothing), make_model()
    batch = make_batch(task, ROWS, REFERENCE)
    assert task.count(batch) == len(ROWS)
    expected = compute_expected(model, loss_type, beta=0.3, smoothing=smoothing)
    loss, outputs = task.loss_and_predict(model, batch)
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    logged: dict[str, float] = {}
    with task.logging_to(lambda name, value, *, count=1: logged.update({name: value.item() / count})):
        task.loss(model, batch)
    assert logged["rewards/margins"] == pytest.approx(0.3 * outputs["margins"].mean().item(), rel=1e-5)
    assert logged["rewards/chosen"] - logged["rewards/rejected"] == pytest.approx(logged["rewards/margins"], abs=1e-5)
    assert task.loss(model, batch).item() == loss.item()
    assert outputs["predictions"].tolist() == (outputs["margins"] > 0).long().tolist()


def test_an_unchanged_model_prefers_nothing():
    task, model = make_task(), make_model()
    reference = task.refer(model, make_batch(task, ROWS)).tolist()
    loss, outputs = task.loss_and_predict(model, make_batch(task, ROWS, reference))
    assert outputs["margins"].abs().max() == 0
    assert loss.item() == pytest.approx(len(ROWS) * math.log(2))


def test_gradients_raise_the_chosen_answer_and_lower_the_rejected_one():
    task, model = make_task(), make_model()
    batch = make_batch(task, ROWS[:1], REFERENCE[:1])
    task.loss(model, batch).backward()
    with torch.no_grad():
        before = task.refer(model, batch)
        for weight in model.parameters():
            weight -= 0.05 * weight.grad  # type: ignore[operator]
        chosen, rejected = (task.refer(model, batch) - before)[0].tolist()
    assert chosen > rejected


def test_whole_conversations_are_the_same_rows():
    task = make_task()
    asked = {"role": "user", "content": ROWS[0]["prompt"]}
    whole = {f"{name}_messages": [asked, {"role": "assistant", "content": ROWS[0][name]}] for name in ANSWERS}
    assert encode(task, [whole]) == encode(task, ROWS[:1])
    alone = {f"{name}_messages": [{"role": "assistant", "content": ROWS[0][name]}] for name in ANSWERS}
    assert encode(task, [alone])["fault"] == ["has an answer and no prompt; put it before the answer"]
    whole["rejected_messages"] = [{"role": "user", "content": "Why?"}, whole["rejected_messages"][-1]]
    (fault,) = encode(task, [whole])["fault"]
    assert "has two conversations that differ before their last messages" in fault


ANSWERS = ("chosen", "rejected")


def test_a_row_without_answers_is_a_prompt():
    encoded = encode(make_task(), [{"prompt": "Is the bay wide?"}])
    assert [len(row) for row in encoded["input_ids"]] == [1]
    assert encoded["prompt"] == [encoded["input_ids"][0][0]]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"beta": 0}, "task.args.beta: 0: it must be above 0"),
        ({"loss_type": "dpo"}, "task.args.loss_type: dpo; it must be sigmoid or hinge or ipo"),
        ({"label_smoothing": 0.5}, "task.args.label_smoothing: 0.5: "),
        ({"label_smoothing": 0.1, "loss_type": "ipo"}, "task.args.label_smoothing: 0.1: "),
    ],
)
def test_wrong_arguments_are_refused(arguments: dict[str, Any], told: str):
    with pytest.raises(UserError, match=told):
        Preference(**arguments)


def make_run(folder: Path, *overrides: str, rows: Sequence[Any] = ROWS) -> tuple[TrainingLoop, list[str]]:
    """A run, and the lines of its console."""
    lines: list[str] = []
    console = Console(enabled=True)
    console.say = lines.append  # type: ignore[method-assign]
    task = ("task={name: preference, args: {beta: 1.0}}", "evaluate={every: 20, at_start: true}")
    config = configure_run(folder, *task, *overrides, rows=rows, tokenizer=TOKENIZER)
    return build(config, console=console), lines


def read_validation(folder: Path) -> list[dict[str, float]]:
    rows = map(json.loads, (folder / "run" / "metrics.jsonl").read_text().splitlines())
    return [row for row in rows if "validation/loss" in row]


@pytest.mark.parametrize("adapter", ["model.lora.r=null", "model.lora={r: 4, merge: true}"])
def test_a_run_begins_at_no_preference_and_learns_the_chosen_answers(adapter: str, tmp_path: Path):
    loop, lines = make_run(tmp_path, adapter, "checkpoint.best=rewards/margins")
    assert (
        sum("computing what the model before the first update answers to 3 rows" in line for line in lines) == 1
    )  # of both splits, which are one file
    loop.fit()
    first, last = read_validation(tmp_path)
    assert first["validation/loss"] == pytest.approx(math.log(2), rel=1e-5)
    assert last["validation/accuracy"] == 1.0
    assert last["validation/loss"] < 0.3
    assert [first[f"validation/rewards/{name}"] for name in ("chosen", "rejected", "margins")] == [0, 0, 0]
    logged = [
        row for row in map(json.loads, (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) if "lr" in row
    ]
    for row, place in ((last, "validation/rewards"), (logged[-1], "rewards")):
        chosen, rejected, margin = (row[f"{place}/{name}"] for name in ("chosen", "rejected", "margins"))
        assert margin == pytest.approx(chosen - rejected, rel=1e-5) and margin > 1


def test_names_of_what_is_logged_are_no_names_of_metrics(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(Preference, "extra_metrics", ("accuracy", "chosen", "margins"))
    with pytest.raises(UserError, match="the task preference: extra_metrics: accuracy is the name of another metric"):
        make_run(tmp_path)


def test_what_the_model_was_is_read_again_and_of_another_model_computed_again(tmp_path: Path):
    make_run(tmp_path)
    _, again = make_run(tmp_path)
    assert not any("before the first update" in line for line in again)
    _, other = make_run(tmp_path, "seed=7")
    assert any("before the first update" in line for line in other)
    _, longer = make_run(tmp_path, "data.max_length=20")
    assert any("before the first update" in line for line in longer)


def test_a_model_that_computes_otherwise_is_another_model(tmp_path: Path):
    make_run(tmp_path)
    _, other = make_run(tmp_path, "model.overrides.layer_norm_epsilon=0.5")
    assert any("before the first update" in line for line in other)


def test_the_beginning_of_a_long_prompt_is_cut_off_and_answers_stay():
    task = make_task()
    row = {"prompt": "wide " * 90, "chosen": "Yes.", "rejected": "It is what it is."}
    (pair,) = encode(task, [row], max_length=40)["input_ids"]
    assert max(map(len, pair)) == 40
    texts = [task.tokenizer.decode(ids) for ids in pair]
    assert texts[0].endswith("\nassistant:\nYes.<|endoftext|>\n")
    assert texts[1].endswith("\nassistant:\nIt is what it is.<|endoftext|>\n")
    (learned,) = encode(task, [row], max_length=40)["labels"]
    assert [sum(label != -100 for label in labels) for labels in learned] == [
        len(task.tokenizer(row[name])["input_ids"]) + 1 for name in ANSWERS
    ]


def test_rows_with_answers_are_answered_too(tmp_path: Path):
    loop, _ = make_run(tmp_path)
    predictor = Predictor(
        loop.bare_model, TOKENIZER, task="preference", max_length=96, columns={name: name for name in ROWS[0]}
    )
    predictor.use_generation({"max_new_tokens": 4})
    asked = {"prompt": [row["prompt"] for row in ROWS]}
    whole = {name: [row[name] for row in ROWS] for name in ROWS[0]}
    assert predictor.predict_rows(whole).rows == predictor.predict_rows(asked).rows


def test_a_model_of_whole_conversations_answers_one(tmp_path: Path):
    asked = [{"role": "user", "content": ROWS[0]["prompt"]}]
    rows = [
        {f"{name}_messages": [*asked, {"role": "assistant", "content": ROWS[0][name]}] for name in ANSWERS}
        for _ in range(3)
    ]
    columns = "data.columns={chosen_messages: chosen_messages, rejected_messages: rejected_messages}"
    loop, _ = make_run(tmp_path, columns, rows=rows)
    loop.fit()
    predictor = Predictor.load(tmp_path / "run" / "model")
    predictor.use_generation({"max_new_tokens": 4})
    (answer,) = predictor.predict([ROWS[0]["prompt"]])
    assert predictor.predict_rows({"chosen_messages": [asked]}).rows == [answer]


def test_rows_of_later_cannot_be_compared(tmp_path: Path):
    loop, _ = make_run(tmp_path)
    with pytest.raises(UserError, match=r"it can evaluate the rows of data\.validation and data\.test alone"):
        loop.evaluate(ROWS)


def test_an_exported_model_answers(tmp_path: Path):
    loop, _ = make_run(tmp_path)
    loop.fit()
    predictor = Predictor.load(tmp_path / "run" / "model")
    predictor.use_generation({"max_new_tokens": 6})
    (answer,) = predictor.predict(["Is the bay wide?"])
    assert answer.keys() == {"text"}


def test_the_sigmoid_loss_is_the_cross_entropy_of_a_choice():
    task, model = make_task(beta=1.0), make_model()
    batch = make_batch(task, ROWS, REFERENCE)
    scores = task.refer(model, batch) - torch.tensor(REFERENCE)
    expected = F.cross_entropy(scores, torch.zeros(len(ROWS), dtype=torch.long), reduction="sum")
    assert task.loss(model, batch).item() == pytest.approx(expected.item(), rel=1e-5)
