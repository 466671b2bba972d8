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
    """How an epoch is drawn from rows of several sources; it has as many rows as there are.

    A source is gone through again and again, in a new order each time, by its share of each epoch. So within a source
    no row is drawn twice more often than another.

    names: of the sources. weights: of the sources, in any unit. sources: `[N]` number of the source of each row.
    title: what the sources together are called.
    """

    names: Sequence[str]
    weights: Sequence[float]
    sources: Indices
    title: str = "mixture"

    @property
    def counts(self) -> list[int]:
        """Rows of each source in an epoch."""
        exact = np.array(self.weights, dtype=np.float64) / sum(self.weights) * len(self.sources)
        counts = np.floor(exact).astype(np.int64)
        by_remainder = np.argsort(counts - exact, kind="stable")
        counts[by_remainder[: len(self.sources) - int(counts.sum())]] += 1
        return counts.tolist()  # type: ignore[no-any-return]

    def draw(self, *, seed: int, epoch: int) -> Order:
        """`[N]` the rows of an epoch, in their order."""
        if len(self.sources) > MANY_ROWS:
            return _Drawn(self, seed, epoch)
        drawn = [
            _go_through(np.flatnonzero(self.sources == number), epoch * count, count, seed, self.names[number])
            for number, count in enumerate(self.counts)
        ]
        return np.concatenate(drawn)[permute(len(self.sources), seed, "order", epoch)]

    @functools.cached_property
    def rows_by_source(self) -> list[Indices]:
        """The rows of each source."""
        sizes = np.bincount(self.sources, minlength=len(self.names))
        return np.split(np.argsort(self.sources, kind="stable"), np.cumsum(sizes)[:-1])

    def count_draws(self, source: int) -> float:
        """How often each row of a source is drawn in an epoch, on average."""
        return self.counts[source] / int((self.sources == source).sum())

    def describe(self) -> str:
        """A line for a person."""
        parts = []
        for number, (name, count) in enumerate(zip(self.names, self.counts, strict=True)):
            there = int((self.sources == number).sum())
            share, times = count / len(self.sources), self.count_draws(number)
            parts.append(f"{name} {share:.1%} = {count:,} rows an epoch of {there:,} (each {times:.2f} times)")
        return f"{self.title}: {'; '.join(parts)}"


@dataclass(frozen=True)
class _Drawn:
    """The rows of an epoch of a mixture, each found when it is asked for."""

    mixture: Mixture
    seed: int
    epoch: int

    def __getitem__(self, places: slice) -> Indices:
        drawn = Permutation(len(self.mixture.sources), self.seed, "order", self.epoch)[places]
        counts = self.mixture.counts
        ends = np.cumsum(counts)
        rows = np.empty_like(drawn)
        for number, (count, end) in enumerate(zip(counts, ends.tolist(), strict=True)):
            mine = (end - count <= drawn) & (drawn < end)
            rows[mine] = self._find(number, self.epoch * count + drawn[mine] - (end - count))
        return rows

    def _find(self, source: int, places: Indices) -> Indices:
        """The rows at these places of an endless sequence of shuffled passes over the rows of a source."""
        name, of_source = self.mixture.names[source], self.mixture.rows_by_source[source]
        passes, places = np.divmod(places, len(of_source))
        for number in np.unique(passes).tolist():
            mine = passes == number
            places[mine] = Permutation(len(of_source), self.seed, "mixture", name, number)[places[mine]]
        return of_source[places]


def _go_through(rows: Indices, start: int, count: int, seed: int, name: str) -> Indices:
    """`[count]` of the rows, from the place `start` on of an endless sequence of shuffled passes over them."""
    parts, place = [np.empty(0, dtype=np.int64)], start
    while place < start + count:
        number, begin = divmod(place, len(rows))
        part = rows[permute(len(rows), seed, "mixture", name, number)][begin : begin + start + count - place]
        parts.append(part)
        place += len(part)
    return np.concatenate(parts)
