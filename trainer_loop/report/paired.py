"""Whether two models differ on the same rows by more than chance."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from trainer_loop.report.intervals import LEVEL, draw_means
from trainer_loop.report.rows import ScoredRows

_DRAWS = 9999  # of signs
_FEW_ROWS = 20_000  # of more, fewer draws
_SEED = 0


@dataclass(frozen=True)
class PairedTest:
    """Two models on the same rows.

    error: what is compared, of which less is better. errors: of the first and of the second. low, high: limits of the
    second minus the first, between which `LEVEL` of the bootstrap draws lie. p_value: the probability of a difference
    as large, or larger, between models that are equally good. test: its name. first_only, second_only: numbers of the
    rows that the first, or the second, gets right and the other does not, or on which it is better, the clearest first.
    """

    error: str
    errors: tuple[float, float]
    low: float
    high: float
    p_value: float
    test: str
    first_only: Sequence[int]
    second_only: Sequence[int]


def have_same_rows(first: ScoredRows, second: ScoredRows) -> bool:
    """Whether the rows are the same, in the same order, with the same labels."""
    if list(first.places) != list(second.places) or first.kind != second.kind:
        return False
    if list(first.names) != list(second.names):
        return False
    pairs = zip(first.references, second.references, strict=True)
    return all(np.array_equal(one, other) for one, other in pairs)


def compare_rows(first: ScoredRows, second: ScoredRows) -> PairedTest | None:
    """Compare the errors of two models row by row; None for predictions of which it is not known how wrong they are.

    Right and wrong classes are compared by McNemar's exact test, other errors by a test of random signs: under the
    assumption that the models are equally good, each row's difference could as well have the other sign.
    """
    one, other = first.measure_errors(), second.measure_errors()
    if one is None or other is None:
        return None
    differences = other.amounts - one.amounts
    everything = np.arange(len(differences))
    errors = one.of(everything), other.of(everything)
    # An error is a share of words, or of tokens, of which each draw has another number. What a row adds to the
    # difference beyond its share is drawn, as for any ratio of means (linearised, Davison and Hinkley 1997).
    difference, count = errors[1] - errors[0], max(float(one.counts.mean()), 1e-12)
    draws = difference + draw_means(differences - difference * one.counts, np.random.default_rng(_SEED)) / count
    low, high = np.percentile(draws, [50 - 50 * LEVEL, 50 + 50 * LEVEL]).tolist()
    is_class = first.kind == "class"
    p_value = _mcnemar(differences) if is_class else _test_signs(differences)
    # Of rows of which one is right and one wrong, first those of which the models are most unlike in how sure they are.
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
    """The p-values of several comparisons, by Holm's method (1979): any of them is this small by chance."""
    order = np.argsort(p_values, kind="stable")
    factors = len(p_values) - np.arange(len(p_values))
    grown = np.maximum.accumulate(np.asarray(p_values, dtype=float)[order] * factors)
    adjusted = np.empty(len(p_values))
    adjusted[order] = np.minimum(grown, 1.0)
    return adjusted.tolist()


def _mcnemar(differences: np.ndarray) -> float:
    """differences: `[N]` of errors that are 0 or 1."""
    from scipy.stats import binomtest  # half a second

    worse, better = int((differences > 0).sum()), int((differences < 0).sum())
    return 1.0 if worse + better == 0 else float(binomtest(worse, worse + better).pvalue)


def _test_signs(differences: np.ndarray) -> float:
    """differences: `[N]` of errors; equal rows say nothing."""
    from scipy.stats import permutation_test

    unequal = differences[differences != 0]
    if len(unequal) < 2:  # one difference is as large with the other sign
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
