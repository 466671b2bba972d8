"""Hidden tokens: which are chosen, what stands for them, the loss of the head, and how a text is filled in."""

from typing import Any

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertForMaskedLM, pipeline

from trainer_loop import Predictor, UserError
from trainer_loop.data.loader import add_draws
from trainer_loop.data.processors import train_tokenizer
from trainer_loop.models.packing import use_packing
from trainer_loop.ops.attention import use_attention
from trainer_loop.tasks.masked_lm import MaskedLM

TEXTS = [
    "The ferry crosses the bay twice a day.",
    "",
    "In winter, when the ice is thick, people walk across instead of sailing.",
    "Nobody has fallen in for years.",
]
TOKENIZER = train_tokenizer(TEXTS, framed=True, vocab_size=300, max_length=64)
FIRST, LAST, MASK = TOKENIZER.cls_token_id, TOKENIZER.sep_token_id, TOKENIZER.mask_token_id


def make_task(**arguments: Any) -> MaskedLM:
    task = MaskedLM(**arguments)
    task.bind(TOKENIZER)
    return task


def make_rows(task: MaskedLM, texts: list[str] = TEXTS, *, max_length: int = 32, seed: int = 0) -> list[dict[str, Any]]:
    encoded = task.encode({"text": texts}, max_length=max_length)
    pairs = zip(encoded["input_ids"], encoded["word"], strict=True)
    rows = [{"input_ids": ids, "word": word} for ids, word in pairs]
    return add_draws(rows, list(range(len(rows))), seed)


def make_model() -> BertForMaskedLM:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    return BertForMaskedLM(BertConfig(vocab_size=len(TOKENIZER), max_position_embeddings=64, **sizes)).eval()


def test_a_chunk_is_framed_and_no_token_of_the_texts_is_lost():
    task = make_task()
    encoded = task.encode({"text": TEXTS}, max_length=10)
    assert all(ids[0] == FIRST and ids[-1] == LAST and len(ids) <= 10 for ids in encoded["input_ids"])
    inner = [token for ids in encoded["input_ids"] for token in ids[1:-1]]
    assert inner == [token for ids in TOKENIZER(TEXTS, add_special_tokens=False)["input_ids"] for token in ids]
    assert encoded["source"][0] == 0
    assert encoded["source"] == sorted(encoded["source"])


def test_texts_that_are_not_joined_are_rows_and_empty_ones_are_none():
    encoded = make_task(join_texts=False).encode({"text": TEXTS}, max_length=10)
    assert encoded["source"] == [0, 2, 3]
    assert encoded["truncated"] == [len(ids) > 8 for ids in TOKENIZER(TEXTS, add_special_tokens=False).input_ids if ids]
    assert all(len(ids) <= 10 for ids in encoded["input_ids"])


def test_so_many_tokens_are_chosen_and_most_of_them_masked():
    task = make_task(mask_probability=0.3)
    rows = [row for seed in range(300) for row in make_rows(task, seed=seed)]
    batches = [task.collate([row]) for row in rows]
    ids = np.concatenate([row["input_ids"] for row in rows])
    hidden, labels = (np.concatenate([batch[name][0] for batch in batches]) for name in ("input_ids", "labels"))
    is_special = np.isin(ids, [FIRST, LAST])
    chosen = labels != -100
    assert not chosen[is_special].any()
    assert (hidden == ids)[~chosen].all()
    assert (labels == ids)[chosen].all()
    assert chosen[~is_special].mean() == pytest.approx(0.3, abs=0.01)
    assert (hidden == MASK)[chosen].mean() == pytest.approx(0.8, abs=0.02)
    assert (hidden == ids)[chosen].mean() == pytest.approx(0.1, abs=0.02)
    assert not np.isin(hidden[chosen & (hidden != MASK)], TOKENIZER.all_special_ids).any()


def test_the_choice_is_a_function_of_the_draw():
    task = make_task()
    rows = make_rows(task, max_length=8)
    alone = [task.collate([row])["input_ids"][0].tolist() for row in rows]
    together = task.collate(rows[::-1])["input_ids"].tolist()[::-1]
    assert [ids[: len(one)] for one, ids in zip(alone, together, strict=True)] == alone
    assert [task.collate([row])["input_ids"][0].tolist() for row in make_rows(task, max_length=8, seed=1)] != alone


def test_the_tokens_of_a_word_are_chosen_together():
    task = make_task(whole_words=True, mask_probability=0.5)
    num_split = 0
    for seed in range(20):
        for row in make_rows(task, seed=seed):
            labels = task.collate([row])["labels"][0].tolist()
            for word in set(row["word"]) - {-1}:
                chosen = {label != -100 for label, own in zip(labels, row["word"], strict=True) if own == word}
                assert len(chosen) == 1
                num_split += row["word"].count(word) > 1
    assert num_split


@pytest.mark.parametrize("probability", [0.3, 1e-9])
def test_the_loss_is_the_sum_of_that_of_the_head(probability: float):
    task, model = make_task(mask_probability=probability), make_model().double()
    batch = task.collate(make_rows(task, max_length=8))
    count = task.count(batch)
    loss, outputs = task.loss_and_predict(model, batch)
    assert count == sum(batch["row_targets"]) == int(outputs["references"].sum())
    if probability == 1e-9:
        assert count == 0
        assert loss.item() == task.loss(model, batch).item() == 0
        return
    mean = model(**task.model_inputs(batch), labels=batch["labels"]).loss
    assert loss.item() == pytest.approx(mean.item() * count, rel=1e-6)
    assert task.loss(model, batch).item() == pytest.approx(loss.item(), rel=1e-6)
    assert float(outputs["predictions"].sum()) == pytest.approx(loss.item(), rel=1e-6)
    assert task.decode({name: values[0].detach().numpy() for name, values in outputs.items()}, {})["loss"] > 0


def test_packed_rows_have_the_loss_of_padded_ones():
    padding, packing = make_task(), make_task()
    packing.packs = True
    rows = make_rows(padding, max_length=12)
    padded = padding.loss(make_model(), padding.collate(rows))
    model = make_model()
    use_attention(model)
    use_packing(model, rows_at_head=False)
    batch = packing.collate(rows)
    assert packing.count(batch) == padding.count(padding.collate(rows)) > 0
    torch.testing.assert_close(packing.loss(model, batch), padded, rtol=1e-5, atol=1e-5)


def test_a_text_is_filled_in_as_the_pipeline_fills_it():
    model = make_model()
    text = "The [MASK] crosses the bay [MASK] a day."
    predictor = Predictor(model, TOKENIZER, task="masked_lm", max_length=32, columns={"text": "text"})
    (row,) = predictor.predict([text])
    answers = pipeline("fill-mask", model=model, tokenizer=TOKENIZER, top_k=1)(text)
    assert row["tokens"] == [answer["token_str"].strip() for (answer,) in answers]
    assert row["probabilities"] == pytest.approx([answer["score"] for (answer,) in answers], rel=1e-4)


def test_a_text_without_a_mask_token_is_refused():
    predictor = Predictor(make_model(), TOKENIZER, task="masked_lm", max_length=32, columns={"text": "text"})
    with pytest.raises(UserError, match=r"text 2 has no \[MASK\] to fill in"):
        predictor.predict(["The [MASK].", "The ferry."])


def test_a_tokenizer_without_a_mask_token_is_refused():
    with pytest.raises(UserError, match="the tokenizer has no mask token"):
        MaskedLM().bind(train_tokenizer(TEXTS, framed=False, vocab_size=300, max_length=64))


@pytest.mark.parametrize("probability", [0.0, 1.0, -1.0, float("nan")])
def test_a_probability_that_is_none_is_refused(probability: float):
    with pytest.raises(UserError, match=r"task\.args\.mask_probability: .* between 0 and 1"):
        MaskedLM(mask_probability=probability)


def test_special_tokens_must_leave_room():
    with pytest.raises(UserError, match="2 special tokens leave no room"):
        make_task().encode({"text": TEXTS}, max_length=2)
