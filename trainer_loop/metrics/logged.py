"""Metrics that a task or a loop logs by name with `log_metric`, each as a sum and a count."""

from collections.abc import Iterable, Sequence
from typing import Protocol

from torch import Tensor

from trainer_loop.errors import UserError
from trainer_loop.metrics.meter import LOGGED, zero_sum
from trainer_loop.metrics.named_metric import RESERVED


class LogMetric(Protocol):
    """A function that takes a logged metric. `value` is the sum over `count` elements, `[]`."""

    def __call__(self, name: str, value: Tensor, *, count: float = 1) -> None: ...


class LoggedMetrics:
    """Sums and counts of logged metrics. They stay on their device until they are taken.

    Args:
        names: Names that may be logged, the same on all processes.
    """

    def __init__(self, names: Sequence[str]):
        self.names = names
        self._sums: dict[str, tuple[Tensor, float]] = {}

    def add(self, name: str, value: Tensor, *, count: float = 1) -> None:
        """Add to a metric. Raises UserError if the name is not declared, or the value is not a single number."""
        if name not in self.names:
            raise UserError(
                f"log_metric: {name} is none of extra_metrics: {', '.join(self.names) or 'none'}; add it there, or in "
                "__init__ of a loop with self.record.declare_metrics"
            )
        if (wrong := explain_wrong_value(value)) is not None:
            raise UserError(f"log_metric: {name} {wrong}")
        total, total_count = self._sums.get(name) or (zero_sum(value.device), 0)
        self._sums[name] = (total + value.detach(), total_count + count)

    def take(self) -> dict[str, tuple[Tensor, float]]:
        """Return and reset the sum `[]` and count of each name that was logged since the last call."""
        sums, self._sums = self._sums, {}
        return sums

    def take_numbers(self) -> list[float]:
        """Return all sums and then all counts in the order of `names`, and reset them. Waits for the device."""
        sums = self.take()
        entries = [sums.get(name, (0.0, 0)) for name in self.names]
        return [float(total) for total, _ in entries] + [float(count) for _, count in entries]

    def compute_means(self, numbers: Sequence[float]) -> dict[str, float]:
        """Return the means of logged metrics, from the result of `take_numbers` summed over processes."""
        sums, counts = numbers[: len(self.names)], numbers[len(self.names) :]
        return {name: total / count for name, total, count in zip(self.names, sums, counts, strict=True) if count}


def explain_wrong_value(value: object) -> str | None:
    """Return what is wrong with a logged value, as the rest of a sentence; None if it is a tensor of one number."""
    if isinstance(value, Tensor) and value.ndim == 0:
        return None
    kind = f"a tensor of shape {list(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
    return f"is {kind}; log a tensor of one number, the sum over `count`"


def check_names(names: object, *, owner: str, reported: Iterable[str] = ()) -> list[str]:
    """Return the problems of the `extra_metrics` of a task or a loss, one line each.

    Args:
        owner: Name of the task or loss in messages.
        reported: Names of the metrics of an evaluation.
    """
    if not isinstance(names, (tuple, list)) or not all(isinstance(name, str) for name in names):
        return [f"{owner}: extra_metrics is {names!r}; it is a tuple of names, such as ('penalty',)"]
    taken = {*LOGGED, *RESERVED, *reported}
    return [
        f"{owner}: extra_metrics: {name} is the name of another metric; rename it"
        for name in names
        if name in taken or name.startswith(("validation/", "test/"))
    ]
