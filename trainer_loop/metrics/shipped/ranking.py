"""Metrics on the probabilities of classes. They depend on the ranking of the rows, not on a threshold."""

import numpy as np

from trainer_loop.metrics.values import ClassNumbers, Probabilities


def roc_auc(probabilities: Probabilities, references: ClassNumbers) -> float:
    """Mean over classes of the area under the ROC curve of the class against the rest.

    Classes that all rows or no rows have are left out. Guessing gives 0.5; so does a set without such classes.
    """
    from trainer_loop.metrics.shipped.multi_label import label_roc_auc

    return label_roc_auc(probabilities, _one_hot(references, probabilities.shape[1]))


def average_precision(probabilities: Probabilities, references: ClassNumbers) -> float:
    """Area under the curve of precision over recall: of the second of two classes, or the mean over more classes.

    Classes that no row has are left out.
    """
    from sklearn.metrics import average_precision_score

    one_hot = _one_hot(references, probabilities.shape[1])
    if one_hot.shape[1] == 2:
        one_hot, probabilities = one_hot[:, 1:], probabilities[:, 1:]
    is_present = one_hot.any(axis=0)
    if not is_present.any():
        return 0.0
    return float(average_precision_score(one_hot[:, is_present], probabilities[:, is_present], average="macro"))


def top_k(probabilities: Probabilities, references: ClassNumbers, *, k: int = 5) -> float:
    """Share of rows whose class is among the `k` most probable ones. Ties go to the smaller class id."""
    if type(k) is not int or k < 1:
        raise ValueError(f"k is {k!r}; it is a whole number from 1")
    top = np.argsort(-probabilities, axis=1, kind="stable")[:, :k]
    return float((top == references[:, None]).any(axis=1).mean())


def _one_hot(references: np.ndarray, num_classes: int) -> np.ndarray:
    """Return `[N, C]`: 1 for the class of each row, else 0."""
    return (references[:, None] == np.arange(num_classes)).astype(np.int64)
