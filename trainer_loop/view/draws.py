"""How the training rows are drawn and weighed: the source of a row, the weight of its loss, and how often it comes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from trainer_loop.data.mixture import Mixture
from trainer_loop.data.tokens import TokenisedSplit


@dataclass(frozen=True)
class Draws:
    """What is known of the rows of a split beside what the model sees.

    split: the encoded rows. sources: the names of the sources of a mixture; empty without one. mixture: how an epoch is
    drawn; None: each row once, or rows that are not trained. weights: `[N]` factors of the losses; None: 1 for each.
    """

    split: TokenisedSplit
    sources: Sequence[str] = ()
    mixture: Mixture | None = None
    weights: np.ndarray | None = None

    def describe(self, row: int) -> Mapping[str, str]:
        """The facts of a row, by name, for a person."""
        facts = {}
        if self.split.origins.sources:
            facts["source"] = self.sources[self.split.origins.source_of_rows[row]]
        if self.weights is not None:
            facts["weight of its loss"] = f"{self.weights[row]:g}"
        if self.mixture is not None:
            facts["drawn"] = f"{self.mixture.count_draws(self.mixture.sources[row]):.2f} times an epoch"
        return facts
