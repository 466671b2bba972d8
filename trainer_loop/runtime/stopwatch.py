"""Measures the time of the parts of a run other than its training steps."""

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager


class Stopwatch:
    """Sums up the seconds that this process spends in each part of a run.

    The first part is `preparation`, which lasts until `begin_run` is called.
    """

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._started = time.perf_counter()

    def begin_run(self) -> None:
        """End the part `preparation`: the rows and the model are loaded."""
        self.seconds["preparation"] = time.perf_counter() - self._started

    @contextmanager
    def measuring(self, part: str) -> Iterator[None]:
        """Add the time of the block to `part`."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[part] += time.perf_counter() - started
