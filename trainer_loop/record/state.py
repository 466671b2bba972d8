"""Every number of the loop that a checkpoint must hold, as plain JSON."""

from dataclasses import asdict, dataclass, field
from typing import Any

from trainer_loop.runtime.plain_json import check_fields

Best = tuple[str | None, float | None, int | None, dict[str, float]]  # metric, value, step, all metrics
_NAMES_ON_DISK = {"metrics": "figures"}


@dataclass
class TrainState:
    """Progress of a run. Order and dropout are functions of `step`; a stream also needs its position."""

    step: int = 0  # updates done
    num_steps: int = 0  # of the whole run, as it was planned
    rows_seen: int = 0  # training rows, over all processes; this and the next two as of the last logged row
    tokens_seen: int = 0  # without padding
    targets_seen: float = 0
    train_seconds: float = 0.0  # inside training steps: without evaluation and saving
    skipped_steps: int = 0  # steps whose loss or gradient was not finite
    schedule_step: int | None = None  # updates that the schedule counted; None: all, as in older versions
    max_tokens: int | None = None  # limit of a microbatch, if the planned one did not fit into memory
    evaluated_step: int | None = None  # the step whose weights were evaluated last
    best_by: str | None = None  # the metric that selects the best weights
    best_value: float | None = None
    best_step: int | None = None
    evaluations_without_best: int = 0  # since the best one; early stopping counts them
    patience_by: str | None = None  # the metric of early stopping, if it is another one
    patience_value: float | None = None  # its best value; larger is better
    metrics: dict[str, float] = field(default_factory=dict)  # of the weights that would be exported
    interval: dict[str, float] = field(default_factory=dict)  # sums since the last training row of the log
    stream: dict[str, Any] | None = None  # position in a data set that is streamed

    def forget_best(self) -> None:
        """Forget the best weights: they were selected by another metric, or belong to another run."""
        self.best_by = self.best_value = self.best_step = None
        self.metrics = {}
        if self.patience_by is None:
            self.evaluations_without_best = 0

    def restart_patience(self) -> None:
        """Reset the counter of early stopping."""
        self.evaluations_without_best = 0
        self.patience_by = self.patience_value = None

    def count_evaluation(self, *, is_better: bool, patience_by: str | None, value: float) -> None:
        """Count an evaluation for early stopping.

        Args:
            patience_by: The metric of early stopping, if it is another one than the metric of the best weights.
            value: The value of this metric.
        """
        self.evaluations_without_best = 0 if is_better else self.evaluations_without_best + 1
        if patience_by is not None:
            self.patience_by = patience_by
            self.patience_value = value if is_better else self.patience_value

    def take_best(self, metric: str, value: float, metrics: dict[str, float]) -> Best:
        """Mark the current weights as the best; returns the best before. value: of the metric; larger is better."""
        before = (self.best_by, self.best_value, self.best_step, self.metrics)
        self.put_back_best((metric, value, self.step, metrics))
        return before

    def put_back_best(self, best: Best) -> None:
        """Restore the best weights that `take_best` returned."""
        self.best_by, self.best_value, self.best_step, self.metrics = best

    def state_dict(self) -> dict[str, Any]:
        """Return the content of state.json, where `metrics` has an older name."""
        values = asdict(self)
        return {_NAMES_ON_DISK.get(name, name): value for name, value in values.items()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "TrainState":
        """Return the inverse of `state_dict`. Raises ValueError for other content, such as an unknown key."""
        renamed = {on_disk: name for name, on_disk in _NAMES_ON_DISK.items()}
        values = {renamed.get(name, name): value for name, value in values.items()}
        check_fields(cls, values)
        return cls(**values)
