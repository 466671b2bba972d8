"""Metrics on answers and on texts that a model writes."""

import numpy as np
import pytest
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics import BLEU, CHRF

from trainer_loop.metrics.shipped.summaries import rouge
from trainer_loop.metrics.shipped.texts import answer_f1, exact_match
from trainer_loop.metrics.shipped.translation import chrf, sacrebleu


def lists(*rows: list[str]) -> np.ndarray:
    column = np.empty(len(rows), dtype=object)
    column[:] = rows
    return column


@pytest.mark.parametrize(
    ("prediction", "references", "f1", "exact"),
    [
        ("The Eiffel Tower", ["eiffel tower"], 1.0, 1.0),  # articles and case do not count
        ("Eiffel-Tower.", ["eiffeltower"], 1.0, 1.0),  # punctuation is removed, not replaced
        ("in Paris", ["Paris", "in  paris!"], 1.0, 1.0),  # the best reference counts
        ("in Paris, France", ["Paris"], 2 / 4, 0.0),
        ("the the Paris Paris", ["Paris"], 2 / 3, 0.0),  # a word counts as often as both have it
        ("Rome", ["Paris"], 0.0, 0.0),
        ("", [], 1.0, 1.0),  # there is no answer
        ("Paris", [], 0.0, 0.0),
        ("", ["Paris"], 0.0, 0.0),
        ("the", ["a"], 1.0, 1.0),  # nothing is left of a reference: it counts as no answer
        ("Paris", ["the", "Paris"], 1.0, 1.0),
    ],
)
def test_answers_are_scored_by_the_rules_of_squad(prediction: str, references: list[str], f1: float, exact: float):
    scores = answer_f1(np.array([prediction], dtype=object), lists(references))
    assert scores == {"answer_f1": pytest.approx(f1), "answer_exact_match": exact}


def test_scores_of_answers_are_means_over_the_questions():
    scores = answer_f1(np.array(["Paris", "Rome"], dtype=object), lists(["Paris"], ["Bern"]))
    assert scores == {"answer_f1": 0.5, "answer_exact_match": 0.5}


def test_an_exact_match_heeds_everything_but_spaces_at_the_ends():
    predictions = np.array([" a b ", "A b", "c"], dtype=object)
    assert exact_match(predictions, lists(["a b"], ["a b"], ["d", "c"])) == pytest.approx(2 / 3)


def test_translations_are_scored_as_sacrebleu_does():
    predictions = np.array(["the cat sat on the mat", "it is raining again"], dtype=object)
    references = lists(["the cat sits on the mat", "a cat sat on the mat"], ["it rains again"])
    streams = [["the cat sits on the mat", "it rains again"], ["a cat sat on the mat", None]]
    assert sacrebleu(predictions, references) == BLEU().corpus_score(list(predictions), streams).score > 0
    assert (
        chrf(predictions, references, word_order=2) == CHRF(word_order=2).corpus_score(list(predictions), streams).score
    )


def test_summaries_are_scored_as_rouge_score_does_by_the_best_reference():
    predictions = np.array(["the cat sat.\nit slept", "running"], dtype=object)
    scores = rouge(predictions, lists(["no cat", "the cat sat.\nit sleeps"], ["runs"]))
    scorer = RougeScorer(["rouge1", "rougeLsum"])
    own = scorer.score("the cat sat.\nit sleeps", predictions[0])
    assert scores["rouge1"] == pytest.approx(own["rouge1"].fmeasure / 2)
    assert scores["rougeLsum"] == pytest.approx(own["rougeLsum"].fmeasure / 2)
    assert rouge(predictions[1:], lists(["runs"]), use_stemmer=True)["rouge1"] == 1.0


def test_a_row_without_references_has_the_empty_text():
    predictions, none = np.array(["", "a"], dtype=object), lists([], [])
    assert exact_match(predictions, none) == 0.5
    assert chrf(predictions, none) < 100
