"""Perplexity, computed from the losses of an evaluation.

The metric with this name on the hub differs: it loads a model and scores texts with it.
"""

import math

from trainer_loop.metrics.values import NegativeLogLikelihoods, SmallerIsBetter, TargetCounts


def perplexity(negative_log_likelihoods: NegativeLogLikelihoods, num_targets: TargetCounts) -> SmallerIsBetter:
    """Exponential of the mean negative log likelihood over all targets of all rows; infinite above 709 nats.

    Args:
        negative_log_likelihoods: Sum over the targets of each row, in nats, `[N]`.
        num_targets: Number of targets of each row, `[N]`.
    """
    count = int(num_targets.sum())
    if count == 0:
        raise ValueError("perplexity needs a target and the rows have none")
    mean = math.fsum(negative_log_likelihoods.tolist()) / count  # fsum: the result does not depend on the order of rows
    try:
        return math.exp(mean)
    except OverflowError:
        return math.inf
