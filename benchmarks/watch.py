"""Records the training of one side: time from the first step to the last, rows, and when it reached the target."""

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn


class Watch:
    """The clock of one side. The sides call `begin_step`, `see` for every batch, and `end_step`.

    Args:
        score: model -> accuracy; called after every `every` steps with the clock stopped. None trains to the end.
        target: training stops when the accuracy reaches it.
        warm: number of first steps that are not timed.
        last: the step after which the watch waits for the GPU; None for never.
    """

    def __init__(
        self,
        *,
        score: Callable[[nn.Module], float] | None = None,
        every: int = 1,
        target: float | None = None,
        warm: int = 0,
        last: int | None = None,
    ):
        self._score = score
        self._every = every
        self._target = target
        self._warm = warm
        self._last = last
        self._mark: float | None = None
        self.seconds = 0.0
        self.updates = 0
        self.rows = 0
        self.tokens = 0
        self.token_sum = 0  # sum of all ids; distinguishes sets of rows with equally many tokens
        self.scores: list[tuple[int, float, float]] = []  # (step, seconds, accuracy)

    def begin_step(self) -> None:
        if self.updates == self._warm and self.seconds == 0.0:
            wait_for_gpu()
            self._mark = time.perf_counter()

    def see(self, batch: dict[str, Any]) -> None:
        """Count a batch: `input_ids` and `attention_mask` `[B, T]`, or packed rows."""
        if "row_lengths" in batch:
            self.rows += len(batch["row_lengths"])
            self.tokens += sum(batch["row_lengths"])
            self.token_sum += int(batch["input_ids"].sum())
            return
        mask = batch["attention_mask"]
        self.rows += len(mask)
        self.tokens += int(mask.sum())
        self.token_sum += int((batch["input_ids"] * mask).sum())

    def end_step(self, model: nn.Module) -> bool:
        """End a step; returns whether the target is reached."""
        self.updates += 1
        if self._mark is None:
            return False
        if self.updates == self._last:
            wait_for_gpu()
        now = time.perf_counter()
        self.seconds += now - self._mark
        self._mark = now
        if self._score is None or self._target is None or self.updates % self._every:
            return False
        accuracy = self._score(model)
        model.train()
        self.scores.append((self.updates, self.seconds, accuracy))
        print(f"step {self.updates}: {self.seconds:.1f} s, accuracy {accuracy:.4f}", flush=True)
        self._mark = time.perf_counter()
        return accuracy >= self._target

    def outcome(self) -> dict[str, Any]:
        """The record as plain JSON."""
        names = ("seconds", "updates", "rows", "tokens", "token_sum", "scores")
        return {name: getattr(self, name) for name in names}


def wait_for_gpu() -> None:
    """Wait until the GPU has finished; returns at once if there is none."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
