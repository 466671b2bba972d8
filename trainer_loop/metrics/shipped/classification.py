"""Metrics on class numbers, one a row, most of them computed by scikit-learn.

Result keys, arguments and defaults are those of the metrics of the same name on the hub. There is no `sample_weight`: a
config would have to name a number for each row of a set.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from trainer_loop.metrics.values import Average, ClassNumber, ClassNumbers

_UNDEFINED = 0.0  # the score of a class that is neither predicted nor there, as scikit-learn has it with a warning


def accuracy(predictions: ClassNumbers, references: ClassNumbers, *, normalize: bool = True) -> float:
    """The share of rows whose predicted class is the reference; with normalize=False their number."""
    is_right = predictions == references  # scikit-learn gives the same, and takes a second to import
    return float(is_right.mean() if normalize else is_right.sum())


def f1(
    predictions: ClassNumbers,
    references: ClassNumbers,
    *,
    labels: Sequence[int] | None = None,
    pos_label: ClassNumber = 1,
    average: Average | None = "binary",
) -> float | list[float]:
    """The harmonic mean of precision and recall: of one class, averaged over classes, or a list of them."""
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
    """The share of rows predicted as a class that are of it: of one class, averaged, or a list of them."""
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
    """The share of rows of a class that are predicted as it: of one class, averaged, or a list of them."""
    from sklearn.metrics import recall_score

    return _score_classes(recall_score, predictions, references, labels, pos_label, average, zero_division)


def matthews_correlation(predictions: ClassNumbers, references: ClassNumbers) -> float:
    """The correlation of predicted and reference classes, from -1 to 1; 0 is what guessing reaches."""
    from sklearn.metrics import matthews_corrcoef

    if len(np.union1d(predictions, references)) == 1:  # scikit-learn gives the same, with a warning
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
    """A function of scikit-learn that scores each class: one number as a float, one a class as a list."""
    scored = score(
        references,
        predictions,
        labels=labels,
        pos_label=pos_label if average == "binary" else 1,  # elsewhere it means nothing
        average=average,
        zero_division=_UNDEFINED if zero_division == "warn" else zero_division,
    )
    scores = np.asarray(scored, dtype=float)
    return float(scores.item()) if scores.size == 1 else scores.tolist()
