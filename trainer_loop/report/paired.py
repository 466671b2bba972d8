"""Tests whether two models differ on the same rows by more than chance."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from trainer_loop.report.intervals import LEVEL, draw_means
from trainer_loop.report.rows import ScoredRows

_DRAWS = 9999  # of signs
_FEW_ROWS = 20_000  # with more rows there are fewer draws
_SEED = 0


@dataclass(frozen=True)
class PairedTest:
    """Two models compared on the same rows."""

    error: str  # name of the compared error; less is better
    errors: tuple[float, float]  # of the first and of the second model
    low: float  # the limits of the second error minus the first that contain the share `LEVEL` of the bootstrap draws
    high: float
    p_value: float  # probability of a difference as large or larger between equally good models
    test: str  # name of the test
    first_only: Sequence[int]  # rows on which only the first model is right, or it is better, the clearest first
    second_only: Sequence[int]


def have_same_rows(first: ScoredRows, second: ScoredRows) -> bool:
    """Return whether both have the same rows, in the same order, with the same labels."""
    if list(first.places) != list(second.places) or first.kind != second.kind:
        return False
    if list(first.names) != list(second.names):
        return False
    pairs = zip(first.references, second.references, strict=True)
    return all(np.array_equal(one, other) for one, other in pairs)


def compare_rows(first: ScoredRows, second: ScoredRows) -> PairedTest | None:
    """Compare the errors of two models row by row; None for predictions without a measure of errors.

    Right and wrong classes are compared by McNemar's exact test. Other errors are compared by a test of random signs:
    if the models were equally good, the difference of each row could have the other sign.
    """
    one, other = first.measure_errors(), second.measure_errors()
    if one is None or other is None:
        return None
    differences = other.amounts - one.amounts
    everything = np.arange(len(differences))
    errors = one.of(everything), other.of(everything)
    # An error is a sum over words or tokens divided by their number, which differs between draws. So the contribution
    # of a row minus its share is drawn, as for any ratio of means (linearised, Davison and Hinkley 1997).
    difference, count = errors[1] - errors[0], max(float(one.counts.mean()), 1e-12)
    draws = difference + draw_means(differences - difference * one.counts, np.random.default_rng(_SEED)) / count
    low, high = np.percentile(draws, [50 - 50 * LEVEL, 50 + 50 * LEVEL]).tolist()
    is_class = first.kind == "class"
    p_value = _mcnemar(differences) if is_class else _test_signs(differences)
    # Sort by the difference of the errors. Rows with the same difference: the largest difference in confidence first.
    by_size = np.lexsort((-np.abs(other.rank - one.rank), -np.abs(differences)))
    return PairedTest(
        error=one.title,
        errors=errors,
        low=low,
        high=high,
        p_value=p_value,
        test="McNemar's exact test" if is_class else "test of random signs",
        first_only=by_size[differences[by_size] > 0].tolist(),
        second_only=by_size[differences[by_size] < 0].tolist(),
    )


def adjust(p_values: Sequence[float]) -> list[float]:
    """Adjust the p-values of several comparisons by Holm's method (1979)."""
    order = np.argsort(p_values, kind="stable")
    factors = len(p_values) - np.arange(len(p_values))
    grown = np.maximum.accumulate(np.asarray(p_values, dtype=float)[order] * factors)
    adjusted = np.empty(len(p_values))
    adjusted[order] = np.minimum(grown, 1.0)
    return adjusted.tolist()


def _mcnemar(differences: np.ndarray) -> float:
    """Return the p-value of McNemar's exact test. differences: `[N]` of errors that are 0 or 1."""
    from scipy.stats import binomtest  # the import takes half a second

    worse, better = int((differences > 0).sum()), int((differences < 0).sum())
    return 1.0 if worse + better == 0 else float(binomtest(worse, worse + better).pvalue)


def _test_signs(differences: np.ndarray) -> float:
    """Return the p-value of a test of random signs. differences: `[N]` of errors; zeros do not count."""
    from scipy.stats import permutation_test

    unequal = differences[differences != 0]
    if len(unequal) < 2:  # the mean of one difference is as large with the other sign
        return 1.0
    draws = max(999, min(_DRAWS, _DRAWS * _FEW_ROWS // len(unequal)))
    result = permutation_test(
        (unequal,),
        lambda values, axis: values.mean(axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=draws,
        batch=max(1, 10_000_000 // len(unequal)),
        rng=np.random.default_rng(_SEED),
    )
    return float(result.pvalue)
