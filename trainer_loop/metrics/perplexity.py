"""Perplexity from losses that are already known."""

import math

import evaluate
from datasets import Features, Value

from trainer_loop.metrics.classification import InMemoryMetric


class Perplexity(InMemoryMetric):
    """exp of the mean negative log likelihood of a target, over all targets of all rows.

    predictions: `[N]` floats, the negative log likelihood of a row summed over its targets, in nats.
    references: `[N]` integers, how many targets each row has.

    The hub's metric of this name is another thing: it loads a model and scores texts with it.
    """

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="exp of the mean negative log likelihood of a target, over all targets of all rows",
            citation="",
            features=Features({"predictions": Value("float64"), "references": Value("int64")}),
        )  # as lists: with format="numpy" datasets would round the losses to float32

    def _compute(self, *, predictions: list[float], references: list[int]) -> dict[str, float]:
        """Raise ValueError when the rows have no target; inf when the mean is above 709 nats."""
        num_targets = sum(references)
        if num_targets == 0:
            raise ValueError("perplexity needs a target and the rows have none")
        mean = math.fsum(predictions) / num_targets  # fsum: the order of the rows does not change a digit
        try:
            return {"perplexity": math.exp(mean)}
        except OverflowError:
            return {"perplexity": math.inf}
