"""How long a run is, and what happens when: plain values that the loop goes by."""

from dataclasses import dataclass
from typing import NamedTuple


class Due(NamedTuple):
    """What follows an update."""

    log: bool
    save: bool
    evaluate: bool


@dataclass(frozen=True)
class LoopOptions:
    """The settings of a loop. Intervals are in steps; None: never."""

    num_steps: int  # of the whole run
    log_every: int = 10
    checkpoint_every: int | None = None
    evaluate_every: int | None = None
    evaluate_at_start: bool = False
    max_grad_norm: float | None = 1.0  # gradients are scaled down to this L2 norm
    max_grad_value: float | None = None  # then each number is cut to +- this value
    skip_nonfinite: bool = False  # leave out an update whose loss or gradient is not finite, instead of ending the run
    best: str | None = None  # metric that picks the exported weights, -metric where smaller is better; None: the last
    patience: int | None = None  # evaluations without a better one after which the run ends; None: never
    patience_metric: str | None = None  # metric that patience goes by, likewise; None: `best`
    plateau_metric: str = "-loss"  # what a schedule that moves by evaluations follows
    resume: str = "auto"  # auto, never, or the path of a checkpoint
    max_minutes: float | None = None  # after which the run is saved and ends as preempted; None: never

    def due(self, step: int) -> Due:
        """What is due after update `step` (from 1); at the end of the run all is, but for what never is."""
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
