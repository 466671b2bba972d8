"""Metrics for several labels per row."""

from typing import TypedDict

import numpy as np

from trainer_loop.metrics.values import LabelProbabilities, LabelSets

_UNDEFINED = 0.0  # score of a label without predictions and references


class LabelF1(TypedDict):
    """Both averages of F1."""

    micro_f1: float
    macro_f1: float


def label_f1(predictions: LabelSets, references: LabelSets) -> LabelF1:
    """F1 over all labels of all rows (micro), and the mean of the F1 scores of the labels (macro)."""
    num_correct = (predictions.astype(bool) & references.astype(bool)).sum(axis=0)
    num_total = predictions.sum(axis=0) + references.sum(axis=0)
    scores = np.divide(2 * num_correct, num_total, out=np.full(len(num_correct), _UNDEFINED), where=num_total > 0)
    return {
        "micro_f1": float(2 * num_correct.sum() / num_total.sum()) if num_total.any() else _UNDEFINED,
        "macro_f1": float(scores.mean()),
    }


def label_set_accuracy(predictions: LabelSets, references: LabelSets) -> float:
    """Share of rows whose predicted labels are exactly the reference labels."""
    return float((np.asarray(predictions) == np.asarray(references)).all(axis=1).mean())


def label_roc_auc(probabilities: LabelProbabilities, references: LabelSets) -> float:
    """Mean over labels of the area under the ROC curve. Labels that all rows or no rows have are left out.

    Guessing gives 0.5, which is also the result if no label is left.
    """
    from sklearn.metrics import roc_auc_score

    counts = references.sum(axis=0)
    is_defined = (counts > 0) & (counts < len(references))
    if not is_defined.any():
        return 0.5
    return float(roc_auc_score(references[:, is_defined], probabilities[:, is_defined], average="macro"))
