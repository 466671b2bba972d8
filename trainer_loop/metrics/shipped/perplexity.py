"""Perplexity from losses that are already known.

The metric of this name on the hub is another thing: it loads a model and scores texts with it.
"""

import math

from trainer_loop.metrics.values import NegativeLogLikelihoods, SmallerIsBetter, TargetCounts


def perplexity(predictions: NegativeLogLikelihoods, references: TargetCounts) -> SmallerIsBetter:
    """exp of the mean negative log likelihood of a target, over all targets of all rows; up to 709 nats.

    Args:
        predictions: the negative log likelihood of each row, summed over its targets, in nats, `[N]`.
        references: how many targets each row has, `[N]`.
    """
    num_targets = int(references.sum())
    if num_targets == 0:
        raise ValueError("perplexity needs a target and the rows have none")
    mean = math.fsum(predictions.tolist()) / num_targets  # fsum: the order of the rows does not change a digit
    try:
        return math.exp(mean)
    except OverflowError:
        return math.inf
