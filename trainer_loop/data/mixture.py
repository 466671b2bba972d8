"""Training rows of several sources, drawn by weights: a pure function of (seed, epoch)."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from trainer_loop.data.origins import Indices
from trainer_loop.data.permutation import MANY_ROWS, Order, Permutation
from trainer_loop.runtime.randomness import permute


@dataclass(frozen=True, eq=False)
class Mixture:
    """Draws an epoch of N rows from the N rows of several sources, by weights.

    Each source is an endless sequence of passes over its rows, each pass in a new order. An epoch takes the next rows
    of each sequence. So, from the start of the run, the draws of two rows of a source differ by at most one.
    """

    names: Sequence[str]  # of the sources
    weights: Sequence[float]  # of the sources, in any unit
    sources: Indices  # [N] number of the source of each row
    title: str = "mixture"  # the name of the mixture in messages

    @property
    def counts(self) -> list[int]:
        """Draws from each source in an epoch."""
        exact = np.array(self.weights, dtype=np.float64) / sum(self.weights) * len(self.sources)
        counts = np.floor(exact).astype(np.int64)
        by_remainder = np.argsort(counts - exact, kind="stable")
        counts[by_remainder[: len(self.sources) - int(counts.sum())]] += 1
        return counts.tolist()  # type: ignore[no-any-return]

    def draw(self, *, seed: int, epoch: int) -> Order:
        """Return the rows of an epoch in their order, `[N]`."""
        if len(self.sources) > MANY_ROWS:
            return _LazyEpoch(self, seed, epoch)
        rows = [
            _take_rows(np.flatnonzero(self.sources == number), epoch * count, count, seed, self.names[number])
            for number, count in enumerate(self.counts)
        ]
        return np.concatenate(rows)[permute(len(self.sources), seed, "order", epoch)]

    @functools.cached_property
    def rows_by_source(self) -> list[Indices]:
        """The rows of each source."""
        sizes = np.bincount(self.sources, minlength=len(self.names))
        return np.split(np.argsort(self.sources, kind="stable"), np.cumsum(sizes)[:-1])

    def count_draws(self, source: int) -> float:
        """Return how often each row of a source is drawn in an epoch, on average."""
        return self.counts[source] / int((self.sources == source).sum())

    def describe(self) -> str:
        """Return a one-line summary of the shares."""
        parts = []
        for number, (name, count) in enumerate(zip(self.names, self.counts, strict=True)):
            num_rows = int((self.sources == number).sum())
            share, times = count / len(self.sources), self.count_draws(number)
            parts.append(f"{name} {share:.1%} = {count:,} rows an epoch of {num_rows:,} (each {times:.2f} times)")
        return f"{self.title}: {'; '.join(parts)}"


@dataclass(frozen=True)
class _LazyEpoch:
    """The rows of an epoch of a mixture, computed on request."""

    mixture: Mixture
    seed: int
    epoch: int

    def __getitem__(self, places: slice) -> Indices:
        draws = Permutation(len(self.mixture.sources), self.seed, "order", self.epoch)[places]
        counts = self.mixture.counts
        ends = np.cumsum(counts)
        rows = np.empty_like(draws)
        for number, (count, end) in enumerate(zip(counts, ends.tolist(), strict=True)):
            mine = (end - count <= draws) & (draws < end)
            rows[mine] = self._find(number, self.epoch * count + draws[mine] - (end - count))
        return rows

    def _find(self, source: int, places: Indices) -> Indices:
        """Return the rows at these positions of the endless sequence of shuffled passes over a source."""
        name, rows = self.mixture.names[source], self.mixture.rows_by_source[source]
        passes, places = np.divmod(places, len(rows))
        for number in np.unique(passes).tolist():
            mine = passes == number
            places[mine] = Permutation(len(rows), self.seed, "mixture", name, number)[places[mine]]
        return rows[places]


def _take_rows(rows: Indices, start: int, count: int, seed: int, name: str) -> Indices:
    """Return rows `start` to `start + count` of the endless sequence of shuffled passes over `rows`, `[count]`."""
    parts, place = [np.empty(0, dtype=np.int64)], start
    while place < start + count:
        number, begin = divmod(place, len(rows))
        part = rows[permute(len(rows), seed, "mixture", name, number)][begin : begin + start + count - place]
        parts.append(part)
        place += len(part)
    return np.concatenate(parts)
