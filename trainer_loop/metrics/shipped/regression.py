"""Metrics on numbers, computed by SciPy and scikit-learn.

If a row has several numbers, each metric is reported for each of them, as pearson/valence, and as their mean.
"""

import warnings
from collections.abc import Callable, Sequence
from typing import Annotated, Any, TypeAlias

import numpy as np

from trainer_loop.metrics.values import SMALLER_IS_BETTER, InParts, Numbers, PartsOf

Score: TypeAlias = Annotated[InParts, PartsOf(list)]
Error: TypeAlias = Annotated[InParts, PartsOf(list), SMALLER_IS_BETTER]


def pearson(predictions: Numbers, references: Numbers, *, label_names: Sequence[str] | None = None) -> Score:
    """The linear correlation of predictions and references, from -1 to 1; 0 where either are all equal."""
    from scipy.stats import pearsonr

    return _score_each(lambda ours, theirs: _correlate(pearsonr, ours, theirs), predictions, references, label_names)


def spearman(predictions: Numbers, references: Numbers, *, label_names: Sequence[str] | None = None) -> Score:
    """The correlation of their ranks, from -1 to 1; 0 where either are all equal."""
    from scipy.stats import spearmanr

    return _score_each(lambda ours, theirs: _correlate(spearmanr, ours, theirs), predictions, references, label_names)


def mse(predictions: Numbers, references: Numbers, *, label_names: Sequence[str] | None = None) -> Error:
    """The mean of the squared errors."""
    from sklearn.metrics import mean_squared_error

    return _score_each(mean_squared_error, predictions, references, label_names)


def mae(predictions: Numbers, references: Numbers, *, label_names: Sequence[str] | None = None) -> Error:
    """The mean of the absolute errors."""
    from sklearn.metrics import mean_absolute_error

    return _score_each(mean_absolute_error, predictions, references, label_names)


def r2(predictions: Numbers, references: Numbers, *, label_names: Sequence[str] | None = None) -> Score:
    """The share of the variance of the references that the predictions explain; at most 1, and 0 for their mean."""
    from sklearn.metrics import r2_score

    def explain(ours: np.ndarray, theirs: np.ndarray) -> float:
        return float(r2_score(theirs, ours)) if len(theirs) > 1 else 0.0

    return _score_each(explain, predictions, references, label_names)


def _score_each(
    score: Callable[[np.ndarray, np.ndarray], float],
    predictions: np.ndarray,
    references: np.ndarray,
    label_names: Sequence[str] | None,
) -> InParts:
    """The score of the only number of each row; or of each number by its name, and their mean."""
    predictions, references = (np.asarray(column, dtype=np.float64) for column in (predictions, references))
    shape = predictions.shape
    if shape != references.shape or len(shape) > 2:
        raise ValueError(f"predictions has the shape {list(shape)}, and references {list(references.shape)}")
    if len(shape) == 1:
        return InParts(float(score(predictions, references)), {})
    names = list(map(str, range(shape[1]))) if label_names is None else label_names
    pairs = zip(names, predictions.T, references.T, strict=True)
    parts = {name: float(score(ours, theirs)) for name, ours, theirs in pairs}
    return InParts(float(np.mean(list(parts.values()))), parts)


def _correlate(correlation: Callable[..., Any], predictions: np.ndarray, references: np.ndarray) -> float:
    """A correlation is not defined where all numbers are equal: 0 then, as for a guess."""
    if len(np.unique(predictions)) < 2 or len(np.unique(references)) < 2:
        return 0.0
    with warnings.catch_warnings():  # of numbers that are nearly equal
        warnings.simplefilter("ignore")
        return float(correlation(predictions, references).statistic)
