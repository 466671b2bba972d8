"""Every number of the loop that must survive it, in one dict of plain JSON."""

from dataclasses import asdict, dataclass, field, fields
from typing import Any


@dataclass
class TrainState:
    """Where a run stands. Order and dropout are functions of (seed, step), so `step` is the whole position."""

    step: int = 0  # updates done
    num_steps: int = 0  # of the whole run, as it was planned
    rows_seen: int = 0  # training rows, over all processes
    tokens_seen: int = 0  # without padding
    targets_seen: int = 0
    train_seconds: float = 0.0  # inside training steps: without evaluation and saving
    best_by: str | None = None  # the metric that the best is the best by
    best_value: float | None = None
    best_step: int | None = None
    figures: dict[str, float] = field(default_factory=dict)  # the evaluation of the weights that would be exported
    interval: dict[str, float] = field(default_factory=dict)  # sums since the last training row of the log

    def forget_best(self) -> None:
        """There is no best so far: by another metric, or of another run, it says nothing."""
        self.best_by = self.best_value = self.best_step = None
        self.figures = {}

    def state_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "TrainState":
        """The inverse of `state_dict`; a key this version does not know is an error, not ignored."""
        known = {field.name for field in fields(cls)}
        assert set(values) <= known, f"state.json holds unknown keys {sorted(set(values) - known)}"
        return cls(**values)
