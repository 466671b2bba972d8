"""Metrics on the probabilities of classes. What they reward is the order, not the threshold."""

import numpy as np

from trainer_loop.metrics.values import ClassNumbers, Probabilities


def roc_auc(probabilities: Probabilities, references: ClassNumbers) -> float:
    """The area under the ROC curve of each class against the rest, and the mean of these.

    Classes that no row has, or all rows, are left out. 0.5 is what guessing reaches, and the result where none is left.
    """
    from trainer_loop.metrics.shipped.multi_label import label_roc_auc

    return label_roc_auc(probabilities, _mark(references, probabilities.shape[1]))


def average_precision(probabilities: Probabilities, references: ClassNumbers) -> float:
    """The area under the curve of precision over recall: of the second of two classes, or the mean over more classes.

    Classes that no row has are left out.
    """
    from sklearn.metrics import average_precision_score

    marked = _mark(references, probabilities.shape[1])
    if marked.shape[1] == 2:
        marked, probabilities = marked[:, 1:], probabilities[:, 1:]
    is_there = marked.any(axis=0)
    if not is_there.any():
        return 0.0
    return float(average_precision_score(marked[:, is_there], probabilities[:, is_there], average="macro"))


def top_k(probabilities: Probabilities, references: ClassNumbers, *, k: int = 5) -> float:
    """The share of rows whose class is among the `k` likeliest; of equal ones the smaller number is first."""
    if type(k) is not int or k < 1:
        raise ValueError(f"k is {k!r}; it is a whole number from 1")
    likeliest = np.argsort(-probabilities, axis=1, kind="stable")[:, :k]
    return float((likeliest == references[:, None]).any(axis=1).mean())


def _mark(references: np.ndarray, num_classes: int) -> np.ndarray:
    """`[N, C]`, 1 for the class of each row, else 0."""
    return (references[:, None] == np.arange(num_classes)).astype(np.int64)
