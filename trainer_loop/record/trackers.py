"""Experiment trackers. They only show a run: a tracker that fails costs a warning, and the run continues."""

from collections.abc import Callable, Mapping
from typing import Any

from accelerate import Accelerator
from accelerate.tracking import GeneralTracker

from trainer_loop.errors import in_one_line

_FAILURES = 3  # failures in a row, then the tracker is not called again; each may have waited for a network


def start_trackers(
    accelerator: Accelerator,
    *,
    project: str,
    config: Mapping[str, Any],
    arguments: Mapping[str, Mapping[str, Any]],
    warn: Callable[[str], None],
) -> None:
    """Start the trackers of the accelerator, one by one.

    Args:
        accelerator: the Accelerator of this process.
        project: name of the project.
        config: the values that the trackers show of the run.
        arguments: arguments of each tracker, by its name.
        warn: called once for each tracker that fails, at its start or later.
    """
    if not accelerator.is_main_process:
        return  # accelerate gives trackers only to process 0
    started = []
    asked = list(accelerator.log_with)
    for tracker in asked:
        accelerator.log_with, accelerator.trackers = [tracker], []
        guard = TrackerGuard(tracker.name if isinstance(tracker, GeneralTracker) else str(tracker), warn)
        if guard.attempt(accelerator.init_trackers, project, config=dict(config), init_kwargs=dict(arguments)):
            guard.guarded = accelerator.trackers[0]
            started.append(guard)
    accelerator.log_with, accelerator.trackers = asked, started


class TrackerGuard:
    """A tracker of accelerate whose errors are reported once instead of raised.

    Args:
        name: name of the tracker.
        warn: called with the message.
    """

    def __init__(self, name: str, warn: Callable[[str], None]):
        self.name = name
        self.guarded: Any = None
        self._warn = warn
        self._has_warned = False
        self._failures = 0  # in a row

    def log(self, values: Mapping[str, Any], step: int | None = None, **options: Any) -> None:
        """Log values, unless the tracker failed too often in a row."""
        if self._failures < _FAILURES:
            self.attempt(self.guarded.log, values, step=step, **options)

    def finish(self) -> None:
        """Finish the tracker."""
        self.attempt(self.guarded.finish)

    def attempt(self, function: Callable[..., Any], *args: Any, **options: Any) -> bool:
        """Call a function of the tracker; returns whether it succeeded."""
        try:
            function(*args, **options)
        except (Exception, SystemExit) as error:  # noqa: BLE001 - errors of a tracker must not end a run
            self._failures += 1
            if not self._has_warned:
                self._has_warned = True
                self._warn(
                    f"tracker {self.name} failed: {type(error).__name__}: {in_one_line(error, at_most=200)}; "
                    "the run goes on, and metrics.jsonl has every figure"
                )
            return False
        self._failures = 0
        return True

    def __getattr__(self, name: str) -> Any:
        """Other attributes of the tracker, for code that gets the tracker from accelerate."""
        if name == "guarded":  # during a copy of the object
            raise AttributeError(name)
        return getattr(self.guarded, name)
