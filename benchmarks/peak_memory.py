"""Peak memory of this process."""

import threading
from pathlib import Path

import torch

from trainer_loop.runtime.memory import read_peak_memory

_SECONDS_BETWEEN = 0.02


class PeakMemory:
    """Peak memory of the block in bytes, sampled every 20 ms: `resident`, and `of_its_own` without pages of files.

    Only Linux separates the two; elsewhere they are equal.
    """

    def __init__(self) -> None:
        self.resident = 0
        self.of_its_own = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> "PeakMemory":
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._thread.join()
        self.resident = read_peak_memory(torch.device("cpu"))
        self.of_its_own = self.of_its_own or self.resident

    def _look(self) -> None:
        status = Path("/proc/self/status")
        while status.exists() and not self._over.wait(_SECONDS_BETWEEN):
            line = next(line for line in status.read_text().splitlines() if line.startswith("RssAnon"))
            self.of_its_own = max(self.of_its_own, int(line.split()[1]) * 1024)
