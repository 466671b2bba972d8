"""How long the parts of a run take beside its training steps."""

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager


class Stopwatch:
    """Adds up seconds by the part that they went into; of this process.

    It begins with the part `preparation`, which lasts until `begin_run` is called.
    """

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._began = time.perf_counter()

    def begin_run(self) -> None:
        """All is prepared: rows are read and the model is there."""
        self.seconds["preparation"] = time.perf_counter() - self._began

    @contextmanager
    def measuring(self, part: str) -> Iterator[None]:
        """Add the time of the block to `part`."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[part] += time.perf_counter() - began
