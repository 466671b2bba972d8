"""Metrics on numbers, one a row, computed by SciPy and scikit-learn."""

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from trainer_loop.metrics.values import Numbers, SmallerIsBetter


def pearson(predictions: Numbers, references: Numbers) -> float:
    """The linear correlation of predictions and references, from -1 to 1; 0 where either are all equal."""
    from scipy.stats import pearsonr

    return _correlate(pearsonr, predictions, references)


def spearman(predictions: Numbers, references: Numbers) -> float:
    """The correlation of their ranks, from -1 to 1; 0 where either are all equal."""
    from scipy.stats import spearmanr

    return _correlate(spearmanr, predictions, references)


def mse(predictions: Numbers, references: Numbers) -> SmallerIsBetter:
    """The mean of the squared errors."""
    from sklearn.metrics import mean_squared_error

    return float(mean_squared_error(references, predictions))


def mae(predictions: Numbers, references: Numbers) -> SmallerIsBetter:
    """The mean of the absolute errors."""
    from sklearn.metrics import mean_absolute_error

    return float(mean_absolute_error(references, predictions))


def r2(predictions: Numbers, references: Numbers) -> float:
    """The share of the variance of the references that the predictions explain; at most 1, and 0 for their mean."""
    from sklearn.metrics import r2_score

    return float(r2_score(references, predictions)) if len(references) > 1 else 0.0


def _correlate(correlation: Callable[..., Any], predictions: np.ndarray, references: np.ndarray) -> float:
    """A correlation is not defined where all numbers are equal: 0 then, as for a guess."""
    if len(np.unique(predictions)) < 2 or len(np.unique(references)) < 2:
        return 0.0
    with warnings.catch_warnings():  # of numbers that are nearly equal
        warnings.simplefilter("ignore")
        return float(correlation(predictions, references).statistic)
