"""Scores of the predictions of a set besides its metrics: by class, by confidence, by group of rows."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from trainer_loop.metrics.shipped.texts import answer_f1

_BINS = 10  # of probabilities


@dataclass(frozen=True)
class ClassScores:
    """Counts and scores of C classes, `[C]` each."""

    support: np.ndarray  # rows of the class
    predicted: np.ndarray  # rows that are predicted as the class
    precision: np.ndarray  # 0 for a class that is never predicted
    recall: np.ndarray  # 0 for a class without rows
    f1: np.ndarray


def score_classes(predictions: np.ndarray, references: np.ndarray, num_classes: int) -> ClassScores:
    """Score each class. predictions, references: `[N]` numbers of classes, or `[N, C]` booleans for sets of classes."""
    if predictions.ndim == 2:
        support, predicted, right = (marks.sum(axis=0) for marks in (references, predictions, predictions & references))
    else:
        counted = (references, predictions, references[predictions == references])
        support, predicted, right = (np.bincount(numbers, minlength=num_classes) for numbers in counted)
    precision, recall = right / np.maximum(predicted, 1), right / np.maximum(support, 1)
    return ClassScores(support, predicted, precision, recall, 2 * right / np.maximum(support + predicted, 1))


def count_confusions(predictions: np.ndarray, references: np.ndarray) -> list[tuple[int, int, int]]:
    """Return (label, predicted class, count), the most frequent confusion first. Both arguments: `[N]`."""
    wrong = predictions != references
    pairs, counts = np.unique(np.stack([references[wrong], predictions[wrong]], axis=1), axis=0, return_counts=True)
    table = np.column_stack([pairs, counts])[np.argsort(-counts, kind="stable")]
    return [(right, predicted, count) for right, predicted, count in table.tolist()]


def confuse(predictions: np.ndarray, references: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Return how often each of the K classes was predicted as each: `[K, K + 1]`, the last column for all others."""
    place = np.full(max(int(predictions.max()), int(references.max()), int(classes.max())) + 1, len(classes))
    place[classes] = np.arange(len(classes))
    table = np.zeros((len(classes) + 1, len(classes) + 1), dtype=np.int64)
    np.add.at(table, (place[references], place[predictions]), 1)
    return table[:-1]


@dataclass(frozen=True)
class Calibration:
    """Rows by the probability of the prediction, in bins of the same width: `[B]` each; nan in empty bins."""

    edges: np.ndarray  # [B + 1]
    rows: np.ndarray
    confidence: np.ndarray  # mean probability
    accuracy: np.ndarray
    error: float  # expected calibration error: mean difference of both, weighted by rows (Naeini et al. 2015)


def calibrate(probability: np.ndarray, is_right: np.ndarray) -> Calibration:
    """Compare probabilities with accuracy. probability: `[N]` of the predictions. is_right: `[N]`."""
    edges = np.linspace(0, 1, _BINS + 1)
    numbers = np.clip(np.ceil(probability * _BINS).astype(int) - 1, 0, _BINS - 1)  # the upper edge belongs to a bin
    rows, confidence, right = (
        np.bincount(numbers, weights=weights, minlength=_BINS) for weights in (None, probability, is_right)
    )
    with np.errstate(invalid="ignore"):
        means, shares = confidence / rows, right / rows
    error = float(np.abs(confidence - right).sum() / len(probability))
    return Calibration(edges, rows.astype(int), means, shares, error)


@dataclass(frozen=True)
class Errors:
    """Errors of rows. The error of a group of rows is the sum of its `amounts` divided by the sum of its `counts`."""

    title: str  # name of the error
    amounts: np.ndarray  # [N]
    counts: np.ndarray  # [N]
    rank: np.ndarray  # [N], larger for worse rows
    order: str  # describes the order by `rank`

    @property
    def is_share(self) -> bool:
        """Whether the error is between 0 and 1."""
        return self.title.startswith("share")

    def of(self, rows: np.ndarray) -> float:
        """Return the error of the rows that `rows` selects."""
        return float(self.amounts[rows].sum() / max(self.counts[rows].sum(), 1e-12))


def measure_errors(
    kind: str | None, predictions: np.ndarray, references: np.ndarray, details: Mapping[str, np.ndarray]
) -> Errors | None:
    """Measure errors by the kind of the predictions, see metrics/values.py; None for a kind without a measure."""
    ones = np.ones(len(predictions))
    if kind == "class":
        wrong = (predictions != references).astype(float)
        probability = details.get("reference_probability")
        if probability is None:
            return Errors("share of errors", wrong, ones, wrong, "in the order of the data")
        return Errors("share of errors", wrong, ones, -probability, "the least probable right labels first")
    if kind == "tags":
        wrong = np.array(
            [float(((of != to) & (to >= 0)).sum()) for of, to in zip(predictions, references, strict=True)]
        )
        words = np.array([float((to >= 0).sum()) for to in references])
        return Errors("share of wrong tags", wrong, words, wrong, "the most wrong tags first")
    if kind == "label_set":
        wrong = (predictions != references).sum(axis=1)
        title = "share of rows that are not all right"
        return Errors(title, (wrong > 0).astype(float), ones, wrong, "the most wrong labels first")
    if kind == "number":
        distance = np.abs(predictions - references).reshape(len(predictions), -1)
        scale = np.maximum(references.reshape(len(references), -1).std(axis=0), 1e-12)
        rank = (distance / scale).mean(axis=1)
        return Errors("mean absolute error", distance.mean(axis=1), ones, rank, "the largest errors first")
    if kind == "text":
        pairs = zip(predictions, references, strict=True)
        missed = np.array(
            [1 - answer_f1(np.array([text]), np.array([known], dtype=object))["answer_f1"] for text, known in pairs]
        )
        return Errors("share of words that differ (1 - F1)", missed, ones, missed, "the fewest right words first")
    if kind == "negative_log_likelihood":
        rank = predictions / np.maximum(references, 1)
        return Errors("loss a target, in nats", predictions, references, rank, "the largest loss a target first")
    return None
