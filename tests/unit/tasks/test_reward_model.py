"""Rewards of conversations: the loss against its formula, what is read and predicted, a run."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from answer_pairs import configure_run, make_tokenizer
from torch import nn
from transformers import BertConfig, BertForSequenceClassification, GPT2Config, GPT2ForSequenceClassification

from trainer_loop import Predictor, TrainingLoop, UserError, build
from trainer_loop.data.processors import train_tokenizer
from trainer_loop.record.logs import Console
from trainer_loop.tasks.find import find_by_architecture
from trainer_loop.tasks.reward_model import RewardModel
from trainer_loop.testing import assert_layout_invariant

ROWS = [dict(row) for row in RewardModel.example]
ANSWERS = ("chosen", "rejected")
TOKENIZER = make_tokenizer(ROWS)


def make_task(**arguments: Any) -> RewardModel:
    task = RewardModel(**arguments)
    task.bind(TOKENIZER)
    return task


def encode(task: RewardModel, rows: list[dict[str, Any]], *, max_length: int = 128) -> list[dict[str, Any]]:
    encoded = task.encode({name: [row[name] for row in rows] for name in rows[0]}, max_length=max_length)
    assert encoded["fault"] == [None] * len(rows)
    assert encoded["length"] == [len(row) * max(map(len, row)) for row in encoded["input_ids"]]
    return [{"input_ids": row} for row in encoded["input_ids"]]


def make_model(kind: str) -> nn.Module:
    torch.manual_seed(0)
    common = {"vocab_size": len(TOKENIZER), "num_labels": 1, "pad_token_id": TOKENIZER.pad_token_id}
    if kind == "gpt2":
        config = GPT2Config(n_embd=16, n_layer=2, n_head=2, n_positions=128, **common)
        return GPT2ForSequenceClassification(config).eval()
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    return BertForSequenceClassification(BertConfig(**sizes, **common)).eval()


@torch.no_grad()
def score(model: nn.Module, row: dict[str, Any], answer: str) -> float:
    """The reward of one conversation by itself."""
    said = [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row[answer]}]
    ids = TOKENIZER.apply_chat_template(said, return_dict=False)
    return model(input_ids=torch.tensor([ids])).logits.item()


@pytest.mark.parametrize("kind", ["gpt2", "bert"])
@pytest.mark.parametrize("coefficient", [0.0, 0.1])
def test_the_loss_is_that_of_its_formula(kind: str, coefficient: float):
    task, model = make_task(center_rewards_coefficient=coefficient), make_model(kind)
    batch = task.collate(encode(task, ROWS))
    assert task.count(batch) == len(ROWS)
    pairs = [[score(model, row, answer) for answer in ANSWERS] for row in ROWS]
    expected = sum(math.log1p(math.exp(bad - good)) + coefficient * (good + bad) ** 2 for good, bad in pairs)
    logged: dict[str, float] = {}
    with task.logging_to(lambda name, value, *, count=1: logged.update({name: value.item() / count})):
        loss, outputs = task.loss_and_predict(model, batch)
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    assert task.loss(model, batch).item() == loss.item()
    assert outputs["predictions"].tolist() == [int(good > bad) for good, bad in pairs]
    assert outputs["rewards"].tolist() == pytest.approx([good for good, _ in pairs], rel=1e-4)
    means = [sum(column) / len(ROWS) for column in zip(*pairs, strict=True)]
    assert list(logged.values()) == pytest.approx([*means, means[0] - means[1]], abs=1e-6)
    assert_layout_invariant(task, encode(task, ROWS), model=model)


def test_an_answer_alone_a_whole_conversation_and_a_text_are_scored():
    task, model = make_task(), make_model("gpt2")
    asked, said = (
        {"role": role, "content": ROWS[0][name]} for role, name in (("user", "prompt"), ("assistant", "chosen"))
    )
    pair = {"prompt": ROWS[0]["prompt"], "chosen": ROWS[0]["chosen"]}
    for row in (pair, {"chosen_messages": [asked, said]}, {"prompt": [asked, said]}):
        batch = task.collate(encode(task, [row]))
        found = task.predict(model, batch)
        assert found.keys() == {"rewards"}
        assert found["rewards"].tolist() == pytest.approx([score(model, ROWS[0], "chosen")], rel=1e-5)
    (text,) = encode(task, [{"prompt": "Is the bay wide?"}])
    assert "Is the bay wide?" in TOKENIZER.decode(text["input_ids"][0])


def test_a_long_conversation_loses_its_beginning_as_it_does_alone():
    task = make_task()
    row = {"prompt": "wide " * 90, "chosen": "Yes.", "rejected": "It is what it is."}
    (whole,), (cut,) = (encode(task, [row], max_length=length) for length in (1000, 40))
    assert max(map(len, cut["input_ids"])) == 40
    assert [ids[-40:] for ids in whole["input_ids"]] == cut["input_ids"]
    columns = {name: [value] for name, value in (row | {"rejected": "It is so. " * 50}).items()}
    assert all(1 <= len(ids) <= 40 for ids in task.encode(columns, max_length=40)["input_ids"][0])


def test_conversations_with_unlike_prompts_are_refused():
    asked, answer = {"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}
    rows = {"chosen_messages": [[asked, answer]], "rejected_messages": [[{**asked, "content": "What?"}, answer]]}
    (fault,) = make_task().encode(rows, max_length=64)["fault"]
    assert "has two conversations that differ before their last messages" in fault


def test_what_does_not_fit_is_refused():
    with pytest.raises(UserError, match=r"task\.args\.center_rewards_coefficient: -1: it must be at least 0"):
        RewardModel(center_rewards_coefficient=-1)
    with pytest.raises(UserError, match=r"model\.chat_template: null: the tokenizer has none"):
        RewardModel().bind(train_tokenizer(["a"], framed=False, vocab_size=300, max_length=8))


def test_a_model_of_one_number_from_elsewhere_is_taken_for_a_regression():
    assert find_by_architecture("BertForSequenceClassification", "regression") == "sequence_regression"
    assert find_by_architecture("GPT2LMHeadModel", None) == "causal_lm"


def make_run(folder: Path, *overrides: str) -> TrainingLoop:
    arguments = ("task.name=reward_model", "evaluate={every: 10, at_start: true}", "checkpoint.best=rewards/margins")
    config = configure_run(folder, *arguments, *overrides, rows=ROWS, tokenizer=TOKENIZER)
    return build(config, console=Console(enabled=False))


@pytest.mark.parametrize("adapter", ["model.lora.r=null", "model.lora={r: 4, merge: true}"])
def test_a_run_learns_which_answers_were_chosen_and_its_export_scores_them(adapter: str, tmp_path: Path):
    loop = make_run(tmp_path, adapter)
    loop.fit()
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    last = [row for row in rows if "validation/loss" in row][-1]
    assert last["validation/accuracy"] == 1.0 and last["validation/loss"] < 0.3
    assert last["validation/rewards/margins"] > 1
    predictor = Predictor.load(tmp_path / "run" / "model")
    assert predictor.model.config.num_labels == 1
    texts = [[row[name] for row in ROWS] for name in ("prompt", *ANSWERS)]
    good = predictor.predict(texts[0], texts[1])
    bad = predictor.predict(texts[0], texts[2])
    assert all(one["reward"] > other["reward"] for one, other in zip(good, bad, strict=True))
    known = predictor.predict_rows(dict(zip(("prompt", *ANSWERS), texts, strict=True)))
    assert [row["reward"] for row in known.rows] == pytest.approx([row["reward"] for row in good], rel=1e-4)
    assert known.metrics is not None
    assert known.metrics["accuracy"] == 1.0
    assert known.metrics["loss"] == pytest.approx(last["validation/loss"], rel=1e-4)


def test_a_loss_of_another_name_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match="the task reward_model computes its own, and takes no loss_function"):
        make_run(tmp_path, "loss.name=mse")
