"""Entities as spans of words. The expected values are those of the script conlleval of CoNLL-2000, by hand."""

import numpy as np
import pytest

from trainer_loop.metrics.shipped.tagging import _find_entities, entity_f1, tag_accuracy

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
    scores = entity_f1(predictions, references, label_names=NAMES)
    assert scores == {"entity_f1": 0.5, "entity_precision": 0.5, "entity_recall": 0.5}
    assert tag_accuracy(predictions, references) == pytest.approx(6 / 8)


def test_nothing_predicted_and_nothing_there_is_zero_and_no_error():
    nothing = ragged([0, 0], [0])
    assert entity_f1(nothing, nothing, label_names=NAMES)["entity_f1"] == 0.0
    assert entity_f1(ragged([1]), ragged([0]), label_names=NAMES) == {
        "entity_f1": 0.0, "entity_precision": 0.0, "entity_recall": 0.0,
    }  # fmt: skip
