"""The assertions for researchers: what is right passes, and each classic mistake is called by its name."""

import pytest
import tiny
import torch
import torch.nn.functional as F
from made_up import make_reviews, write_csv

from trainer_loop import Task, load_config
from trainer_loop.data.processors import train_tokenizer
from trainer_loop.tasks.sequence_classification import SequenceClassification
from trainer_loop.testing import assert_layout_invariant, assert_resumes_exactly

ROWS = tiny.make_rows(6, shortest=3, longest=20)


def check(task: Task, *, model=None, rows=None) -> None:
    task.bind(tiny.make_tokenizer())
    assert_layout_invariant(task, rows or ROWS, model=model or tiny.make_bert(dropout=0.1))


def logits_of(model, batch):
    return model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits


class Mean(SequenceClassification):
    def loss(self, model, batch):
        return F.cross_entropy(logits_of(model, batch), batch["labels"])


class Padded(SequenceClassification):
    """Forgets the attention mask."""

    def loss(self, model, batch):
        return F.cross_entropy(model(input_ids=batch["input_ids"]).logits, batch["labels"], reduction="sum")


class PerToken(SequenceClassification):
    """Divides by the width of the batch."""

    def loss(self, model, batch):
        losses = F.cross_entropy(logits_of(model, batch), batch["labels"], reduction="sum")
        return losses * batch["input_ids"].shape[1]


class Neighbours(SequenceClassification):
    """Compares rows with each other."""

    def loss(self, model, batch):
        logits = logits_of(model, batch)
        return F.cross_entropy(logits - logits.mean(dim=0), batch["labels"], reduction="sum")


class Wrong(SequenceClassification):
    def count(self, batch):
        return batch["input_ids"].numel()


class Shaped(SequenceClassification):
    def loss(self, model, batch):
        return F.cross_entropy(logits_of(model, batch), batch["labels"], reduction="none")


class Detached(SequenceClassification):
    def loss(self, model, batch):
        return F.cross_entropy(logits_of(model, batch).detach(), batch["labels"], reduction="sum")


class Guesses(SequenceClassification):
    def predict(self, model, batch):
        logits = model(input_ids=batch["input_ids"]).logits
        return {"predictions": logits.softmax(dim=-1), "references": batch["labels"]}


class HalfDetached(SequenceClassification):
    """Its value is right and its gradient is not."""

    def loss(self, model, batch):
        losses = F.cross_entropy(logits_of(model, batch), batch["labels"], reduction="none")
        weights = torch.arange(len(losses), 0, -1) / len(losses)
        return (losses * weights + (losses * (1 - weights)).detach()).sum()


@pytest.mark.parametrize("name", ["sequence_classification", "causal_lm"])
def test_what_is_shipped_passes(name):
    rows = tiny.make_rows(6, labelled=name != "causal_lm")
    check(tiny.make_task(name), model=tiny.make_model(name, dropout=0.1), rows=rows)


@pytest.mark.parametrize(
    ("task", "wanted"),
    [
        (Mean(), r"Mean\.loss \(.*test_testing\.py:\d+\) returns .* it is a mean; return the sum"),
        (Padded(), r"Padded\.loss .* it includes padding, or lets rows see it"),
        (PerToken(), r"PerToken\.loss .* it includes padding"),
        (Neighbours(), r"Neighbours\.loss .* depends on the other rows of its microbatch"),
        (Wrong(), r"Wrong\.count \(.*\) returns \d+ for all rows together, and \d+ is the sum"),
        (Shaped(), r"Shaped\.loss .* returns a tensor of shape \[1\]"),
        (Detached(), r"Detached\.loss .* depends on nothing that learns"),
        (Guesses(), r"Guesses\.predict .*: predictions of row \d is .* if the row is alone and .* among the others"),
        (HalfDetached(), r"HalfDetached\.loss .* returns the same value .* but the gradient of .* differs"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Task) else "",
)
def test_each_mistake_is_called_by_its_name(task, wanted):
    with pytest.raises(AssertionError, match=wanted):
        check(task)


def test_a_mean_by_weights_is_told_from_a_mean():
    class Weighted(SequenceClassification):
        def loss(self, model, batch):
            weights = torch.tensor([1.0, 5.0, 0.2], dtype=torch.float64)
            return F.cross_entropy(logits_of(model, batch), batch["labels"], weight=weights)

    with pytest.raises(AssertionError, match=r"it divides by something"):
        check(Weighted())


CALLS = []


def drifting_loss(logits, targets):
    """Depends on how often it was called in this process; not where a loss is tried, on four and eight rows."""
    CALLS.append(len(targets))
    drift = 0.0 if len(targets) in (4, 8) else len(CALLS) / 100
    return F.cross_entropy(logits, targets, reduction="sum") * (1 + drift)


@pytest.fixture
def settings(tmp_path):
    tokenizer = train_tokenizer([text for text, _ in make_reviews(100)], framed=True, vocab_size=300, max_length=64)
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    return [
        "model.type=bert",
        f"model.tokenizer={tmp_path / 'tokenizer'}",
        "model.overrides={hidden_size: 16, num_hidden_layers: 1, num_attention_heads: 2, intermediate_size: 32}",
        f"data.train={write_csv(tmp_path / 'train.csv', make_reviews(60))}",
        "data.max_length=32",
        "batch.size=6",
        "train.precision=no",
        f"run_dir={tmp_path / 'run'}",
    ]


def test_a_config_that_resumes_exactly_passes_and_leaves_nothing_behind(settings, tmp_path):
    assert_resumes_exactly(load_config(None, settings))
    assert not list(tmp_path.glob("run*"))


def test_a_loss_with_a_memory_of_its_own_is_found_out(settings):
    CALLS.clear()
    config = load_config(None, [*settings, f"loss.name={__name__}.drifting_loss"])
    with pytest.raises(AssertionError, match=r"differs by .* neither a function of the step nor in the checkpoint"):
        assert_resumes_exactly(config)
