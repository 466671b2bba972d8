"""Metrics for one class per row, most of them computed by scikit-learn.

Result keys, arguments and defaults are those of the metrics with the same name on the hub. There is no `sample_weight`,
because a config cannot hold a number for each row.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from trainer_loop.metrics.values import Average, ClassNumber, ClassNumbers

_UNDEFINED = 0.0  # score of a class without predictions and references; scikit-learn returns it with a warning


def accuracy(predictions: ClassNumbers, references: ClassNumbers, *, normalize: bool = True) -> float:
    """Share of rows whose predicted class is the reference; with normalize=False the number of such rows."""
    is_correct = predictions == references  # importing scikit-learn for this would take a second
    return float(is_correct.mean() if normalize else is_correct.sum())


def f1(
    predictions: ClassNumbers,
    references: ClassNumbers,
    *,
    labels: Sequence[int] | None = None,
    pos_label: ClassNumber = 1,
    average: Average | None = "binary",
) -> float | list[float]:
    """Harmonic mean of precision and recall: of one class, averaged over classes, or a list of all classes."""
    from sklearn.metrics import f1_score

    return _score_classes(f1_score, predictions, references, labels, pos_label, average, "warn")


def precision(
    predictions: ClassNumbers,
    references: ClassNumbers,
    *,
    labels: Sequence[int] | None = None,
    pos_label: ClassNumber = 1,
    average: Average | None = "binary",
    zero_division: float | str = "warn",
) -> float | list[float]:
    """Share of the rows predicted as a class that have this class: of one class, averaged, or a list of all."""
    from sklearn.metrics import precision_score

    return _score_classes(precision_score, predictions, references, labels, pos_label, average, zero_division)


def recall(
    predictions: ClassNumbers,
    references: ClassNumbers,
    *,
    labels: Sequence[int] | None = None,
    pos_label: ClassNumber = 1,
    average: Average | None = "binary",
    zero_division: float | str = "warn",
) -> float | list[float]:
    """Share of the rows of a class that are predicted as this class: of one class, averaged, or a list of all."""
    from sklearn.metrics import recall_score

    return _score_classes(recall_score, predictions, references, labels, pos_label, average, zero_division)


def matthews_correlation(predictions: ClassNumbers, references: ClassNumbers) -> float:
    """Correlation of predicted and reference classes, from -1 to 1; guessing gives 0."""
    from sklearn.metrics import matthews_corrcoef

    if len(np.union1d(predictions, references)) == 1:  # scikit-learn also returns 0, with a warning
        return 0.0
    return float(matthews_corrcoef(references, predictions))


def _score_classes(
    score: Callable[..., Any],
    predictions: ClassNumbers,
    references: ClassNumbers,
    labels: Sequence[int] | None,
    pos_label: ClassNumber,
    average: Average | None,
    zero_division: float | str,
) -> float | list[float]:
    """Call a function of scikit-learn. Returns a float, or a list with a score for each class."""
    result = score(
        references,
        predictions,
        labels=labels,
        pos_label=pos_label if average == "binary" else 1,  # ignored for other averages
        average=average,
        zero_division=_UNDEFINED if zero_division == "warn" else zero_division,
    )
    scores = np.asarray(result, dtype=float)
    return float(scores.item()) if scores.size == 1 else scores.tolist()
