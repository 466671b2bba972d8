import pytest
import tiny
import torch
import torch.nn.functional as F

from trainer_loop import Task, UserError
from trainer_loop.tasks.causal_lm import CausalLM
from trainer_loop.tasks.losses import cross_entropy


def make_batch(name: str, rows: list[dict]) -> tuple[Task, torch.nn.Module, dict[str, torch.Tensor]]:
    task = tiny.make_task(name)
    task.bind(tiny.make_tokenizer())
    return task, tiny.make_model(name).double().eval(), task.collate(rows)


def test_cross_entropy_is_a_sum_over_the_targets_that_count():
    logits, targets = torch.randn(5, 3, dtype=torch.float64), torch.tensor([0, 2, -100, 1, -100])
    counted = F.cross_entropy(logits[[0, 1, 3]], targets[[0, 1, 3]], reduction="mean") * 3
    assert cross_entropy(logits, targets).item() == pytest.approx(counted.item(), abs=1e-12)


@pytest.mark.parametrize("name", ["sequence_classification", "causal_lm"])
def test_loss_and_count_of_a_batch_are_the_sums_over_its_rows(name):
    rows = tiny.make_rows(7, labelled=name != "causal_lm")
    task, model, batch = make_batch(name, rows)
    alone = [task.collate([row]) for row in rows]
    assert task.count(batch) == sum(task.count(one) for one in alone)
    total = sum(task.loss(model, one).item() for one in alone)
    assert task.loss(model, batch).item() == pytest.approx(total, abs=1e-9)


@pytest.mark.parametrize("name", ["sequence_classification", "causal_lm"])
def test_one_forward_pass_gives_the_loss_and_the_predictions(name):
    task, model, batch = make_batch(name, tiny.make_rows(5, labelled=name != "causal_lm"))
    calls = []
    model.register_forward_hook(lambda *_: calls.append(1))
    loss, predicted = task.loss_and_predict(model, batch)
    assert len(calls) == 1
    assert loss.item() == task.loss(model, batch).item()
    for key, value in task.predict(model, batch).items():
        assert torch.equal(value, predicted[key]), key


def test_causal_lm_counts_every_token_but_the_first_of_a_row():
    task, model, batch = make_batch("causal_lm", [{"input_ids": [5, 6, 7]}, {"input_ids": [8]}, {"input_ids": [9, 2]}])
    assert task.count(batch) == 3
    judged = task.predict(model, batch)
    assert judged["references"].tolist() == [2, 0, 1]
    assert judged["predictions"].sum().item() == pytest.approx(task.loss(model, batch).item())


def test_causal_lm_joins_texts_into_chunks_and_drops_nothing():
    task = CausalLM()
    tokenizer = tiny.make_tokenizer()
    tokenizer.eos_token = "[UNK]"
    task.bind(tokenizer)
    texts = ["w1 w2 w3", "w4", "w5 w6 w7 w8 w9"]
    encoded = task.encode({"text": texts}, max_length=4)
    joined = [token for text in texts for token in [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]]
    assert [len(chunk) for chunk in encoded["input_ids"]] == [4, 4, 4]
    assert [token for chunk in encoded["input_ids"] for token in chunk] == joined
    assert encoded["source"] == [0, 1, 2]
    without = CausalLM(append_eos=False)
    without.bind(tokenizer)
    assert sum(map(len, without.encode({"text": texts}, max_length=4)["input_ids"])) == 9
    assert task.settings() != without.settings()


def test_padding_on_the_left_would_change_the_targets_so_it_is_on_the_right():
    task = CausalLM()
    tokenizer = tiny.make_tokenizer()
    tokenizer.padding_side = "left"
    task.bind(tokenizer)
    assert task.collate([{"input_ids": [5]}, {"input_ids": [6, 7]}])["attention_mask"].tolist() == [[1, 0], [1, 1]]


def test_a_task_without_loss_and_predict_cannot_be_made():
    class Half(Task):
        def loss(self, model, batch): ...

    with pytest.raises(TypeError, match=r"abstract.*predict"):
        Half()


def test_a_language_models_batch_with_tokens_after_padding_is_refused():
    task = CausalLM()
    batch = {"input_ids": torch.tensor([[0, 5, 6]]), "attention_mask": torch.tensor([[0, 1, 1]])}
    with pytest.raises(UserError, match="tokens after padding"):
        task.count(batch)
