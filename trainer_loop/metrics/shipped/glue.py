"""Combined metrics of data sets of the GLUE benchmark (arXiv 1804.07461)."""

from collections.abc import Sequence
from typing import TypedDict

from trainer_loop.metrics.shipped.regression import Score, pearson, spearman
from trainer_loop.metrics.values import ClassNumbersOfTwo, Numbers


class AccuracyAndF1(TypedDict):
    """Both metrics of MRPC and QQP."""

    accuracy: float
    f1: float


class PearsonAndSpearman(TypedDict):
    """Both metrics of STS-B."""

    pearson: Score
    spearmanr: Score


def stsb(predictions: Numbers, references: Numbers, *, label_names: Sequence[str] | None = None) -> PearsonAndSpearman:
    """Correlation of predictions and references, and of their ranks."""
    return {
        "pearson": pearson(predictions, references, label_names=label_names),
        "spearmanr": spearman(predictions, references, label_names=label_names),
    }


def mrpc(predictions: ClassNumbersOfTwo, references: ClassNumbersOfTwo) -> AccuracyAndF1:
    """Accuracy, and F1 of class 1 (the pair is a paraphrase)."""
    from sklearn.metrics import accuracy_score, f1_score

    return {
        "accuracy": float(accuracy_score(references, predictions)),
        "f1": float(f1_score(references, predictions, zero_division=0.0)),
    }
