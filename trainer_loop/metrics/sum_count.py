"""`SumCount`: a mean that can still be added to."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class SumCount:
    """A sum over `count` targets or rows. Parts merge in any grouping; `SumCount()` is the neutral one.

    Means of parts of unlike size cannot be averaged; their sums and counts can be added. Grouping changes the
    total by rounding alone, and not at all while the sums are exact.

    >>> SumCount(6.0, 2).merge(SumCount(1.0, 5)).compute()
    1.0
    """

    total: float = 0.0
    count: int = 0

    def merge(self, other: "SumCount") -> "SumCount":
        return SumCount(self.total + other.total, self.count + other.count)

    def compute(self) -> float:
        """The mean; nan when nothing was counted."""
        return self.total / self.count if self.count else math.nan
