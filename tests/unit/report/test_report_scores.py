"""Scores by class, confidence and row: compared with scikit-learn, and computed by hand."""

import numpy as np
import pytest
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

from trainer_loop.report.scores import calibrate, confuse, count_confusions, measure_errors, score_classes

GENERATOR = np.random.default_rng(0)
REFERENCES, PREDICTIONS = GENERATOR.integers(0, 5, (2, 200))
PREDICTIONS = np.where(PREDICTIONS == 4, 3, PREDICTIONS)  # class 4 is never predicted


def test_scores_of_classes_equal_those_of_scikit_learn():
    scores = score_classes(PREDICTIONS, REFERENCES, 6)  # class 5 has no rows
    expected = precision_recall_fscore_support(REFERENCES, PREDICTIONS, labels=range(6), zero_division=0)
    for own, other in zip((scores.precision, scores.recall, scores.f1, scores.support), expected, strict=True):
        assert own == pytest.approx(other)


def test_scores_of_sets_of_classes_equal_those_of_scikit_learn():
    references, predictions = GENERATOR.integers(0, 2, (2, 50, 3)).astype(bool)
    scores = score_classes(predictions, references, 3)
    expected = precision_recall_fscore_support(references, predictions, zero_division=0)
    for own, other in zip((scores.precision, scores.recall, scores.f1, scores.support), expected, strict=True):
        assert own == pytest.approx(other)


def test_confusions_equal_those_of_scikit_learn_and_other_classes_are_summed():
    expected = confusion_matrix(REFERENCES, PREDICTIONS, labels=range(5))
    table = confuse(PREDICTIONS, REFERENCES, np.arange(5))
    assert (table[:, :-1] == expected).all()
    assert not table[:, -1].any()
    few = confuse(PREDICTIONS, REFERENCES, np.array([1, 3]))
    assert (few[:, :-1] == expected[[1, 3]][:, [1, 3]]).all()
    assert (few.sum(axis=1) == expected[[1, 3]].sum(axis=1)).all()
    pairs = count_confusions(PREDICTIONS, REFERENCES)
    assert all(expected[right, predicted] == count for right, predicted, count in pairs)
    assert sum(count for *_, count in pairs) == (PREDICTIONS != REFERENCES).sum()
    assert [count for *_, count in pairs] == sorted((count for *_, count in pairs), reverse=True)


def test_the_calibration_error_by_hand():
    found = calibrate(np.array([0.55, 0.6, 0.95, 1.0, 0.0]), np.array([True, False, True, True, False]))
    assert found.rows.tolist() == [1, 0, 0, 0, 0, 2, 0, 0, 0, 2]
    assert found.accuracy[[0, 5, 9]].tolist() == [0, 0.5, 1]
    assert found.confidence[[5, 9]] == pytest.approx([0.575, 0.975])
    assert np.isnan(found.accuracy[1])
    assert found.error == pytest.approx((2 * 0.075 + 2 * 0.025) / 5)


def test_a_calibrated_model_has_almost_no_calibration_error():
    probability = GENERATOR.uniform(0.5, 1, 100_000)
    is_right = GENERATOR.uniform(size=100_000) < probability
    assert calibrate(probability, is_right).error < 0.01
    assert calibrate(probability, np.zeros(100_000, dtype=bool)).error == pytest.approx(0.75, abs=0.01)


def as_rows(*values: object) -> np.ndarray:
    return np.fromiter(values, dtype=object, count=len(values))


@pytest.mark.parametrize(
    ("kind", "predictions", "references", "error", "worst"),
    [
        ("class", np.array([0, 1, 1]), np.array([0, 1, 0]), 1 / 3, 2),
        ("tags", as_rows(np.array([0, 1]), np.array([1])), as_rows(np.array([0, -100]), np.array([0])), 1 / 2, 1),
        ("label_set", np.array([[1, 0], [1, 1]], bool), np.array([[1, 0], [0, 0]], bool), 1 / 2, 1),
        ("number", np.array([1.0, 2.0]), np.array([1.5, 5.0]), 1.75, 1),
        ("number", np.array([[1.0, 0.0], [9.0, 0.0]]), np.array([[0.0, 0.0], [9.0, 0.1]]), 0.275, 1),
        ("text", as_rows("in the bay", "yes"), as_rows(["the bay", "no"], ["yes"]), 1 / 6, 0),
        ("negative_log_likelihood", np.array([6.0, 5.0]), np.array([3, 1]), 11 / 4, 1),
    ],
)
def test_errors_of_each_kind_of_prediction(
    kind: str, predictions: np.ndarray, references: np.ndarray, error: float, worst: int
):
    errors = measure_errors(kind, predictions, references, {})
    assert errors is not None
    assert errors.of(np.ones(len(predictions), dtype=bool)) == pytest.approx(error)
    assert errors.rank.argmax() == worst


def test_the_least_probable_right_class_is_the_worst():
    probable = {"reference_probability": np.array([0.1, 0.4, 0.05])}
    errors = measure_errors("class", np.array([1, 0, 1]), np.array([0, 0, 0]), probable)
    assert errors is not None
    assert errors.rank.argmax() == 2
    assert measure_errors("anything", np.zeros(1), np.zeros(1), {}) is None
