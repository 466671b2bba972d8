"""Every number of the loop that must survive it, in one dict of plain JSON."""

from dataclasses import asdict, dataclass, field
from typing import Any

from trainer_loop.runtime.plain_json import check_fields

Best = tuple[str | None, float | None, int | None, dict[str, float]]  # metric, value, step, all metrics
_NAMES_ON_DISK = {"metrics": "figures"}


@dataclass
class TrainState:
    """Where a run stands: `step`, of which order and dropout are functions, and for a stream where it was read to."""

    step: int = 0  # updates done
    num_steps: int = 0  # of the whole run, as it was planned
    rows_seen: int = 0  # training rows, over all processes; these three as of the last training row of the log
    tokens_seen: int = 0  # without padding
    targets_seen: float = 0
    train_seconds: float = 0.0  # inside training steps: without evaluation and saving
    skipped_steps: int = 0  # whose loss or gradient was not finite
    schedule_step: int | None = None  # updates that the schedule followed; None: all of them, as in older versions
    max_tokens: int | None = None  # of a microbatch, where the one planned did not fit into memory
    evaluated_step: int | None = None  # the step whose weights were evaluated last
    best_by: str | None = None  # the metric that the best is the best by
    best_value: float | None = None
    best_step: int | None = None
    evaluations_without_best: int = 0  # since the best: what early stopping counts
    patience_by: str | None = None  # the metric that early stopping goes by, where it has one of its own
    patience_value: float | None = None  # the best of it; larger is better
    metrics: dict[str, float] = field(default_factory=dict)  # the evaluation of the weights that would be exported
    interval: dict[str, float] = field(default_factory=dict)  # sums since the last training row of the log
    stream: dict[str, Any] | None = None  # position in a data set that is streamed

    def forget_best(self) -> None:
        """There is no best so far: by another metric, or of another run, it says nothing."""
        self.best_by = self.best_value = self.best_step = None
        self.metrics = {}
        if self.patience_by is None:
            self.evaluations_without_best = 0

    def restart_patience(self) -> None:
        """Early stopping begins to count anew."""
        self.evaluations_without_best = 0
        self.patience_by = self.patience_value = None

    def count_evaluation(self, *, is_better: bool, patience_by: str | None, value: float) -> None:
        """For early stopping. patience_by: its own metric, where it has one. value: of that metric."""
        self.evaluations_without_best = 0 if is_better else self.evaluations_without_best + 1
        if patience_by is not None:
            self.patience_by = patience_by
            self.patience_value = value if is_better else self.patience_value

    def take_best(self, metric: str, value: float, metrics: dict[str, float]) -> Best:
        """The weights of now are the best so far; returns what was. value: of the metric; larger is better."""
        before = (self.best_by, self.best_value, self.best_step, self.metrics)
        self.put_back_best((metric, value, self.step, metrics))
        return before

    def put_back_best(self, best: Best) -> None:
        """What `take_best` returned is the best again."""
        self.best_by, self.best_value, self.best_step, self.metrics = best

    def state_dict(self) -> dict[str, Any]:
        """As state.json has it; there, `metrics` has an older name."""
        values = asdict(self)
        return {_NAMES_ON_DISK.get(name, name): value for name, value in values.items()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "TrainState":
        """The inverse of `state_dict`. Raises ValueError where it is none: a key this version does not know, ..."""
        renamed = {on_disk: name for name, on_disk in _NAMES_ON_DISK.items()}
        values = {renamed.get(name, name): value for name, value in values.items()}
        check_fields(cls, values)
        return cls(**values)
