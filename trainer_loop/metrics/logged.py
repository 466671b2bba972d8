"""Numbers that a task or a loop logs by name beside its loss, each a sum with a count."""

from collections.abc import Iterable, Sequence
from typing import Protocol

from torch import Tensor

from trainer_loop.errors import UserError
from trainer_loop.metrics.meter import LOGGED, zero_sum
from trainer_loop.metrics.named_metric import RESERVED


class LogMetric(Protocol):
    """What takes a number that is logged. value: `[]`, a sum over `count`."""

    def __call__(self, name: str, value: Tensor, *, count: float = 1) -> None: ...


class LoggedMetrics:
    """Sums and counts of what was logged, on its device, until they are taken.

    names: those that may be logged, the same on all processes.
    """

    def __init__(self, names: Sequence[str]):
        self.names = names
        self._sums: dict[str, tuple[Tensor, float]] = {}

    def add(self, name: str, value: Tensor, *, count: float = 1) -> None:
        """Add to a metric. Raises UserError where the name is not declared, or the value is not one number."""
        if name not in self.names:
            raise UserError(
                f"log_metric: {name} is none of extra_metrics: {', '.join(self.names) or 'none'}; add it there, or in "
                "__init__ of a loop with self.record.declare_metrics"
            )
        if (wrong := explain_wrong_value(value)) is not None:
            raise UserError(f"log_metric: {name} {wrong}")
        total, so_far = self._sums.get(name) or (zero_sum(value.device), 0)
        self._sums[name] = (total + value.detach(), so_far + count)

    def take(self) -> dict[str, tuple[Tensor, float]]:
        """Sum `[]` and count of each name since this was called last; of those that were logged."""
        taken, self._sums = self._sums, {}
        return taken

    def take_numbers(self) -> list[float]:
        """The sum of each name and then the count of each, zeros for one that was not logged; waits for the device."""
        taken = self.take()
        of_names = [taken.get(name, (0.0, 0)) for name in self.names]
        return [float(total) for total, _ in of_names] + [float(count) for _, count in of_names]

    def compute_means(self, numbers: Sequence[float]) -> dict[str, float]:
        """The means by name of what `take_numbers` gave, summed over processes; none of what nobody logged."""
        sums, counts = numbers[: len(self.names)], numbers[len(self.names) :]
        return {name: total / count for name, total, count in zip(self.names, sums, counts, strict=True) if count}


def explain_wrong_value(value: object) -> str | None:
    """What is wrong with a value that is logged, as the rest of a sentence; None: it is one number."""
    if isinstance(value, Tensor) and value.ndim == 0:
        return None
    given = f"a tensor of shape {list(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
    return f"is {given}; log a tensor of one number, the sum over `count`"


def check_names(names: object, *, owner: str, reported: Iterable[str] = ()) -> list[str]:
    """Problems of what a task or a loss declares as `extra_metrics`, one line each.

    owner: how lines call who declares them. reported: names of the metrics of an evaluation.
    """
    if not isinstance(names, (tuple, list)) or not all(isinstance(name, str) for name in names):
        return [f"{owner}: extra_metrics is {names!r}; it is a tuple of names, such as ('penalty',)"]
    taken = {*LOGGED, *RESERVED, *reported}
    return [
        f"{owner}: extra_metrics: {name} is the name of another metric; rename it"
        for name in names
        if name in taken or name.startswith(("validation/", "test/"))
    ]
