"""`LoopOptions`: length of the run, intervals, clipping and early stopping, as plain values."""

from dataclasses import dataclass
from typing import NamedTuple


class Due(NamedTuple):
    """Actions that follow an update."""

    log: bool
    save: bool
    evaluate: bool


@dataclass(frozen=True)
class LoopOptions:
    """Settings of a loop. Intervals are in steps; None: never."""

    num_steps: int  # length of the whole run
    log_every: int = 10
    checkpoint_every: int | None = None
    evaluate_every: int | None = None
    evaluate_at_start: bool = False
    max_grad_norm: float | None = 1.0  # gradients are scaled down to this L2 norm
    max_grad_value: float | None = None  # then each element is clamped to +- this value
    skip_nonfinite: bool = False  # skip an update whose loss or gradient is not finite, instead of ending the run
    best: str | None = None  # metric that selects the exported weights, -metric if smaller is better; None: last ones
    patience: int | None = None  # the run ends after this many evaluations without improvement; None: never
    patience_metric: str | None = None  # metric of early stopping, written like `best`; None: the metric `best`
    plateau_metric: str = "-loss"  # metric that a plateau scheduler follows
    resume: str = "auto"  # auto, never, or the path of a checkpoint
    max_minutes: float | None = None  # time limit: the run saves, and ends as preempted; None: no limit

    def due(self, step: int) -> Due:
        """Return what is due after update `step` (from 1). Everything is due after the last one, except what is off."""
        is_last = step == self.num_steps
        evaluate = self.is_due(self.evaluate_every, step, is_last=is_last)
        return Due(
            log=self.is_due(self.log_every, step, is_last=is_last or evaluate),
            save=self.is_due(self.checkpoint_every, step, is_last=is_last),
            evaluate=evaluate,
        )

    @staticmethod
    def is_due(every: int | None, step: int, *, is_last: bool) -> bool:
        return every is not None and (is_last or step % every == 0)
