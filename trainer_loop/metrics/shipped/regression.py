"""Metrics for numbers, computed by SciPy and scikit-learn.

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
    """Linear correlation of predictions and references, from -1 to 1; 0 if all predictions or references are equal."""
    from scipy.stats import pearsonr

    return _score_each(lambda p, r: _correlate(pearsonr, p, r), predictions, references, label_names)


def spearman(predictions: Numbers, references: Numbers, *, label_names: Sequence[str] | None = None) -> Score:
    """Rank correlation of predictions and references, from -1 to 1; 0 if all predictions or references are equal."""
    from scipy.stats import spearmanr

    return _score_each(lambda p, r: _correlate(spearmanr, p, r), predictions, references, label_names)


def mse(predictions: Numbers, references: Numbers, *, label_names: Sequence[str] | None = None) -> Error:
    """Mean squared error."""
    from sklearn.metrics import mean_squared_error

    return _score_each(mean_squared_error, predictions, references, label_names)


def mae(predictions: Numbers, references: Numbers, *, label_names: Sequence[str] | None = None) -> Error:
    """Mean absolute error."""
    from sklearn.metrics import mean_absolute_error

    return _score_each(mean_absolute_error, predictions, references, label_names)


def r2(predictions: Numbers, references: Numbers, *, label_names: Sequence[str] | None = None) -> Score:
    """Share of the variance of the references that the predictions explain; at most 1; predicting the mean gives 0."""
    from sklearn.metrics import r2_score

    def explain(predictions: np.ndarray, references: np.ndarray) -> float:
        return float(r2_score(references, predictions)) if len(references) > 1 else 0.0

    return _score_each(explain, predictions, references, label_names)


def _score_each(
    score: Callable[[np.ndarray, np.ndarray], float],
    predictions: np.ndarray,
    references: np.ndarray,
    label_names: Sequence[str] | None,
) -> InParts:
    """Score the single number of each row; or score each number by name, and average the scores."""
    predictions, references = (np.asarray(column, dtype=np.float64) for column in (predictions, references))
    shape = predictions.shape
    if shape != references.shape or len(shape) > 2:
        raise ValueError(f"predictions has the shape {list(shape)}, and references {list(references.shape)}")
    if len(shape) == 1:
        return InParts(float(score(predictions, references)), {})
    names = list(map(str, range(shape[1]))) if label_names is None else label_names
    pairs = zip(names, predictions.T, references.T, strict=True)
    parts = {name: float(score(predicted, reference)) for name, predicted, reference in pairs}
    return InParts(float(np.mean(list(parts.values()))), parts)


def _correlate(correlation: Callable[..., Any], predictions: np.ndarray, references: np.ndarray) -> float:
    """Compute a correlation. It is undefined if all numbers are equal; the result is then 0, as for a guess."""
    if len(np.unique(predictions)) < 2 or len(np.unique(references)) < 2:
        return 0.0
    with warnings.catch_warnings():  # warns if the numbers are nearly equal
        warnings.simplefilter("ignore")
        return float(correlation(predictions, references).statistic)
