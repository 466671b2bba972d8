"""Metrics on class numbers as `evaluate.Metric` classes that need no network, computed by scikit-learn.

Result keys, arguments and defaults are those of the metrics of the same name on the hub. Predictions and references
are class numbers, one a row. Without rows `compute` raises ValueError.
"""

from collections.abc import Sequence
from typing import Any

import evaluate
import numpy as np
from datasets import Features, Value

_UNDEFINED = 0.0  # the score of a class that is neither predicted nor there, as scikit-learn has it with a warning


class InMemoryMetric(evaluate.Metric):
    """An `evaluate.Metric` that touches no file, so any number of objects and processes may compute at once.

    The base class makes a folder in the home directory when it is built, and writes every row to a locked Arrow file
    in there when it computes.
    """

    def __init__(self) -> None:
        super().__init__(keep_in_memory=True)

    def _build_data_dir(self) -> str:
        return str(self._data_dir_root)  # the base class would create a folder below it


class _ClassMetric(InMemoryMetric):
    """Two columns of class numbers; `definition` says in one sentence what is computed from them."""

    definition: str

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=self.definition,
            citation="",
            features=Features({"predictions": Value("int64"), "references": Value("int64")}),
            format="numpy",
        )


class Accuracy(_ClassMetric):
    definition = "The share of rows whose predicted class is the reference; with normalize=False their number."

    def _compute(
        self,
        *,
        predictions: np.ndarray,
        references: np.ndarray,
        normalize: bool = True,
        sample_weight: Sequence[float] | None = None,
    ) -> dict[str, float]:
        from sklearn.metrics import accuracy_score

        score = accuracy_score(references, predictions, normalize=normalize, sample_weight=sample_weight)
        return {"accuracy": float(score)}


class F1(_ClassMetric):
    definition = "The harmonic mean of precision and recall: of one class, averaged over classes, or a list of them."

    def _compute(
        self,
        *,
        predictions: np.ndarray,
        references: np.ndarray,
        labels: Sequence[int] | None = None,
        pos_label: int = 1,
        average: str | None = "binary",
        sample_weight: Sequence[float] | None = None,
    ) -> dict[str, float | list[float]]:
        from sklearn.metrics import f1_score

        score = f1_score(
            references,
            predictions,
            labels=labels,
            pos_label=pos_label if average == "binary" else 1,  # elsewhere it means nothing
            average=average,
            sample_weight=sample_weight,
            zero_division=_UNDEFINED,
        )
        return {"f1": _float_or_list(score)}


class Precision(_ClassMetric):
    definition = "The share of rows predicted as a class that are of it: of one class, averaged, or a list of them."

    def _compute(
        self,
        *,
        predictions: np.ndarray,
        references: np.ndarray,
        labels: Sequence[int] | None = None,
        pos_label: int = 1,
        average: str | None = "binary",
        sample_weight: Sequence[float] | None = None,
        zero_division: float | str = "warn",
    ) -> dict[str, float | list[float]]:
        from sklearn.metrics import precision_score

        score = precision_score(
            references,
            predictions,
            labels=labels,
            pos_label=pos_label if average == "binary" else 1,  # elsewhere it means nothing
            average=average,
            sample_weight=sample_weight,
            zero_division=_UNDEFINED if zero_division == "warn" else zero_division,
        )
        return {"precision": _float_or_list(score)}


class Recall(_ClassMetric):
    definition = "The share of rows of a class that are predicted as it: of one class, averaged, or a list of them."

    def _compute(
        self,
        *,
        predictions: np.ndarray,
        references: np.ndarray,
        labels: Sequence[int] | None = None,
        pos_label: int = 1,
        average: str | None = "binary",
        sample_weight: Sequence[float] | None = None,
        zero_division: float | str = "warn",
    ) -> dict[str, float | list[float]]:
        from sklearn.metrics import recall_score

        score = recall_score(
            references,
            predictions,
            labels=labels,
            pos_label=pos_label if average == "binary" else 1,  # elsewhere it means nothing
            average=average,
            sample_weight=sample_weight,
            zero_division=_UNDEFINED if zero_division == "warn" else zero_division,
        )
        return {"recall": _float_or_list(score)}


class MatthewsCorrelation(_ClassMetric):
    definition = "The correlation of predicted and reference classes, from -1 to 1; 0 is what guessing reaches."

    def _compute(
        self,
        *,
        predictions: np.ndarray,
        references: np.ndarray,
        sample_weight: Sequence[float] | None = None,
    ) -> dict[str, float]:
        from sklearn.metrics import matthews_corrcoef

        if len(np.union1d(predictions, references)) == 1:  # scikit-learn gives the same, with a warning
            return {"matthews_correlation": 0.0}
        return {"matthews_correlation": float(matthews_corrcoef(references, predictions, sample_weight=sample_weight))}


class GlueMRPC(_ClassMetric):
    definition = "What GLUE reports on MRPC: accuracy, and F1 of class 1 (the pair is a paraphrase)."

    def _compute(self, *, predictions: np.ndarray, references: np.ndarray) -> dict[str, float]:
        from sklearn.metrics import accuracy_score, f1_score

        return {
            "accuracy": float(accuracy_score(references, predictions)),
            "f1": float(f1_score(references, predictions, zero_division=_UNDEFINED)),
        }


def _float_or_list(score: Any) -> float | list[float]:
    """One number as a float; one a class as a list."""
    scores = np.asarray(score, dtype=float)
    return float(scores.item()) if scores.size == 1 else scores.tolist()
