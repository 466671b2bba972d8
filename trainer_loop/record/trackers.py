"""Trackers only show a run: one that fails costs a warning, and the run goes on."""

from collections.abc import Callable, Mapping
from typing import Any

from accelerate import Accelerator
from accelerate.tracking import GeneralTracker

from trainer_loop.errors import in_one_line

_FAILURES = 3  # in a row, after which a tracker is left alone: each may have waited for a network


def start_trackers(
    accelerator: Accelerator,
    *,
    project: str,
    config: Mapping[str, Any],
    arguments: Mapping[str, Mapping[str, Any]],
    warn: Callable[[str], None],
) -> None:
    """Start the trackers that the accelerator was made with, each by itself.

    Args:
        config: what they show of the run.
        arguments: what each is set up with, by its name.
        warn: is called once for each tracker that fails, at its start or later.
    """
    if not accelerator.is_main_process:
        return  # accelerate gives the other processes none
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
    """A tracker of accelerate whose errors are reported once instead of raised."""

    def __init__(self, name: str, warn: Callable[[str], None]):
        self.name = name
        self.guarded: Any = None
        self._warn = warn
        self._has_warned = False
        self._failures = 0  # in a row

    def log(self, values: Mapping[str, Any], step: int | None = None, **options: Any) -> None:
        if self._failures < _FAILURES:
            self.attempt(self.guarded.log, values, step=step, **options)

    def finish(self) -> None:
        self.attempt(self.guarded.finish)

    def attempt(self, function: Callable[..., Any], *args: Any, **options: Any) -> bool:
        """Call it; returns whether it went well."""
        try:
            function(*args, **options)
        except (Exception, SystemExit) as error:  # noqa: BLE001 - code of others, which must not end a run
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
        """Whatever else the tracker has, for code that asks accelerate for it."""
        if name == "guarded":  # while it is copied
            raise AttributeError(name)
        return getattr(self.guarded, name)
