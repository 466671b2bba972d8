"""Streams of several sources as one, whose rows are drawn by weights and which never ends."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass

import numpy as np

from trainer_loop.data.mixture import naming_source
from trainer_loop.data.row_stream import Row, Stream
from trainer_loop.data.shards import Mark, Reading
from trainer_loop.data.split import Indices
from trainer_loop.errors import UserError
from trainer_loop.runtime.randomness import derive_seed

_GOLDEN = 0x9E3779B97F4A7C15  # 2^64 divided by the golden ratio
_DRAWN = 1000  # rows whose sources are found together


@dataclass(frozen=True)
class MixedStream:
    """The rows of several streams, each of which is read again and again, epoch after epoch.

    It has one epoch without an end. A mark holds how many rows were drawn, and the epoch and the mark of each source.

    streams: by the names of the sources. weights: of the sources, in any unit. loss_weights: factors of the weights of
    their rows.
    """

    streams: Mapping[str, Stream]
    _: KW_ONLY
    weights: Sequence[float]
    loss_weights: Sequence[float]
    seed: int

    def read(self, epoch: int, mark: Mark | None = None) -> Reading[Row]:
        start = mark or {"drawn": 0, "sources": {}}
        if epoch or "sources" not in start:
            raise UserError(
                "data.mixture: the checkpoint is of a stream without a mixture, so there is no place in the sources to "
                "go on from; choose another run_dir"
            )
        return Reading(self._read(start), start)

    def _read(self, start: Mark) -> Iterator[tuple[Row, Mark]]:
        names, drawn = list(self.streams), start["drawn"]
        places = {name: start["sources"].get(name, {"epoch": 0, "from": None}) for name in names}
        readers = [
            self._go_through(name, loss_weight, places[name])
            for name, loss_weight in zip(names, self.loss_weights, strict=True)
        ]
        while True:
            for number in draw_sources(drawn, _DRAWN, weights=self.weights, seed=self.seed).tolist():
                row, places[names[number]] = next(readers[number])
                drawn += 1
                yield row, {"drawn": drawn, "sources": dict(places)}

    def _go_through(self, name: str, loss_weight: float, start: Mark) -> Iterator[tuple[Row, Mark]]:
        """The rows of a source from a place on, without end, each with the place behind it."""
        epoch, mark = start["epoch"], start["from"]
        with naming_source(name):
            while True:
                reading = self.streams[name].read(epoch, mark)
                is_empty = mark is None
                for row in reading:
                    is_empty = False
                    mixed = row._replace(weight=row.weight * loss_weight, source=name)
                    yield mixed, {"epoch": epoch, "from": reading.mark()}
                if is_empty:
                    raise UserError("data.train has no rows")
                epoch, mark = epoch + 1, None

    def describe(self) -> str:
        """A line for a person."""
        total = sum(self.weights)
        shares = [f"{name} {weight / total:.1%}" for name, weight in zip(self.streams, self.weights, strict=True)]
        return f"mixture: {'; '.join(shares)}"


def draw_sources(start: int, count: int, *, weights: Sequence[float], seed: int) -> Indices:
    """`[count]` the numbers of the sources of the rows `start`, `start + 1`, ... of a mixed stream.

    Row i stands at i times the golden ratio, plus a hash of the seed, modulo 1 (a Weyl sequence), and each source has
    a part of the interval from 0 to 1 that is as long as its share. The places fill the interval evenly, wherever the
    sequence is entered: of any 10,000 consecutive rows each source has its share, give or take five rows.

    >>> draw_sources(0, 12, weights=[2, 1], seed=0).tolist()
    [0, 1, 0, 1, 0, 0, 1, 0, 0, 1, 0, 1]
    >>> draw_sources(9, 3, weights=[2, 1], seed=0).tolist()
    [1, 0, 1]
    """
    rows = np.arange(start, start + count, dtype=np.uint64)
    places = rows * np.uint64(_GOLDEN) + np.uint64(2 * derive_seed(seed, "mixture"))  # modulo 2^64: exact for any row
    ends = np.cumsum(np.asarray(weights, dtype=np.float64) / sum(weights))[:-1]
    return np.searchsorted(ends, places / 2.0**64, side="right")
