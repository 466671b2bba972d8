"""Perplexity from losses that are already known.

The metric of this name on the hub is another thing: it loads a model and scores texts with it.
"""

import math

from trainer_loop.metrics.values import NegativeLogLikelihoods, SmallerIsBetter, TargetCounts


def perplexity(negative_log_likelihoods: NegativeLogLikelihoods, num_targets: TargetCounts) -> SmallerIsBetter:
    """exp of the mean negative log likelihood of a target, over all targets of all rows; up to 709 nats.

    Args:
        negative_log_likelihoods: of each row, summed over its targets, in nats, `[N]`.
        num_targets: how many targets each row has, `[N]`.
    """
    count = int(num_targets.sum())
    if count == 0:
        raise ValueError("perplexity needs a target and the rows have none")
    mean = math.fsum(negative_log_likelihoods.tolist()) / count  # fsum: the order of the rows does not change a digit
    try:
        return math.exp(mean)
    except OverflowError:
        return math.inf
