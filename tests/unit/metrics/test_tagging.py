"""Entities as spans of words. The expected values are those of the script conlleval of CoNLL-2000, by hand."""

import numpy as np
import pytest

from trainer_loop.metrics.load import load_metrics, reported_keys
from trainer_loop.metrics.shipped.tagging import _find_entities, entity_f1, tag_accuracy
from trainer_loop.metrics.values import InParts

NAMES = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]


def ragged(*rows: list[int]) -> np.ndarray:
    joined = np.empty(len(rows), dtype=object)
    for number, row in enumerate(rows):
        joined[number] = np.array(row, dtype=np.int64)
    return joined


@pytest.mark.parametrize(
    ("tags", "entities"),
    [
        ([], []),
        (["O", "O"], []),
        (["B-PER", "I-PER", "O"], [("PER", 0, 2)]),
        (["B-PER", "B-PER"], [("PER", 0, 1), ("PER", 1, 2)]),
        (["I-PER", "I-PER", "I-LOC"], [("PER", 0, 2), ("LOC", 2, 3)]),  # IOB1: an entity may begin with I
        (["B-PER", "I-LOC"], [("PER", 0, 1), ("LOC", 1, 2)]),
        (["S-PER", "S-PER", "B-LOC", "I-LOC", "E-LOC", "I-LOC"], [
            ("PER", 0, 1), ("PER", 1, 2), ("LOC", 2, 5), ("LOC", 5, 6),
        ]),
        (["NOUN", "NOUN", "VERB"], [("NOUN", 0, 2), ("VERB", 2, 3)]),  # tags without a prefix
        (["B-event-sport", "I-event-sport"], [("event-sport", 0, 2)]),
    ],
)  # fmt: skip
def test_entities_are_spans_of_words_with_a_type(tags, entities):
    assert _find_entities(tags) == entities


def test_an_entity_counts_only_with_the_right_words_and_type():
    references = ragged([1, 2, 0, 3], [0, 1], [3, 4])
    predictions = ragged([1, 2, 0, 1], [0, 1], [3, 0])  # right: one of PER in row 0, and the one of row 1
    scores = entity_f1(predictions, references, label_names=NAMES, per_type=True)
    assert scores == {
        "entity_f1": InParts(0.5, {"PER": pytest.approx(0.8), "LOC": 0.0}),
        "entity_precision": InParts(0.5, {"PER": 2 / 3, "LOC": 0.0}),
        "entity_recall": InParts(0.5, {"PER": 1.0, "LOC": 0.0}),
        "entity_support": InParts(None, {"PER": 2, "LOC": 2}),
    }
    assert tag_accuracy(predictions, references) == pytest.approx(6 / 8)


def test_nothing_predicted_and_nothing_there_is_zero_and_no_error():
    nothing = ragged([0, 0], [0])
    for predictions in (nothing, ragged([0, 1], [0])):
        scores = entity_f1(predictions, nothing, label_names=NAMES, per_type=True)
        of_types = {"PER": 0.0, "LOC": 0.0}
        assert scores == dict.fromkeys(scores, InParts(0.0, of_types)) | {"entity_support": InParts(None, of_types)}


def test_each_type_of_entity_has_keys_of_its_own():
    """By the definition of seqeval, which has the same figures in its default mode."""
    entry = {"name": "entity_f1", "args": {"per_type": True}, "key": "ner"}
    names = ["O", "B-PER", "E-PER", "S-LOC", "NOUN"]
    (metric,) = load_metrics([entry], num_labels=5, label_names=names)
    results = metric.compute({"predictions": ragged([1, 2, 3, 0, 4]), "references": ragged([1, 2, 3, 3, 0])})
    assert results == pytest.approx({
        "ner/entity_f1": 2 / 3, "ner/entity_f1/PER": 1.0, "ner/entity_f1/LOC": 2 / 3, "ner/entity_f1/NOUN": 0.0,
        "ner/entity_precision": 2 / 3,
        "ner/entity_precision/PER": 1.0, "ner/entity_precision/LOC": 1.0, "ner/entity_precision/NOUN": 0.0,
        "ner/entity_recall": 2 / 3,
        "ner/entity_recall/PER": 1.0, "ner/entity_recall/LOC": 0.5, "ner/entity_recall/NOUN": 0.0,
        "ner/entity_support/PER": 1, "ner/entity_support/LOC": 2, "ner/entity_support/NOUN": 0,
    })  # fmt: skip
    assert reported_keys([entry], num_labels=5, label_names=names) == list(results)
    assert reported_keys([entry], num_labels=5) is None  # the types are not known
    named = {"name": "entity_f1", "args": {"label_names": ["O", "B-X"], "per_type": True}}
    assert "entity_f1/X" in (reported_keys([named], num_labels=2, label_names=names) or [])
    assert reported_keys(["entity_f1"], num_labels=5) == ["entity_f1", "entity_precision", "entity_recall"]
