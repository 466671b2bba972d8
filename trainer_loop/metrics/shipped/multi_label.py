"""Metrics on rows of several labels."""

from typing import TypedDict

import numpy as np

from trainer_loop.metrics.values import LabelProbabilities, LabelSets

_UNDEFINED = 0.0  # the score of a label that is neither predicted nor there


class LabelF1(TypedDict):
    """Both averages of F1."""

    micro_f1: float
    macro_f1: float


def label_f1(predictions: LabelSets, references: LabelSets) -> LabelF1:
    """F1 over all labels of all rows, and the mean of the F1 scores of the labels."""
    right = (predictions.astype(bool) & references.astype(bool)).sum(axis=0)
    either = predictions.sum(axis=0) + references.sum(axis=0)
    scores = np.divide(2 * right, either, out=np.full(len(right), _UNDEFINED), where=either > 0)
    return {
        "micro_f1": float(2 * right.sum() / either.sum()) if either.any() else _UNDEFINED,
        "macro_f1": float(scores.mean()),
    }


def label_set_accuracy(predictions: LabelSets, references: LabelSets) -> float:
    """The share of rows whose labels are all predicted, and no others."""
    return float((np.asarray(predictions) == np.asarray(references)).all(axis=1).mean())


def label_roc_auc(probabilities: LabelProbabilities, references: LabelSets) -> float:
    """The mean, over labels, of the area under the ROC curve; labels that all rows have, or none, are left out.

    0.5 is what guessing reaches, and the result where no label is left.
    """
    from sklearn.metrics import roc_auc_score

    counts = references.sum(axis=0)
    is_defined = (counts > 0) & (counts < len(references))
    if not is_defined.any():
        return 0.5
    return float(roc_auc_score(references[:, is_defined], probabilities[:, is_defined], average="macro"))
