"""Trackers only show a run: one that fails costs a warning, and the run goes on.

A tracker is known to accelerate by its name, or it is one's own: the dotted path of a class derived from
`accelerate.tracking.GeneralTracker`, or of a function that makes such a tracker.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from accelerate import Accelerator
from accelerate.tracking import GeneralTracker, get_available_trackers

from trainer_loop.components import check_arguments, locate
from trainer_loop.errors import UserError, in_one_line

_FAILURES = 3  # in a row, after which a tracker is left alone: each may have waited for a network
_GIVEN = ("run_name", "logging_dir")  # passed to a tracker of one's own that has them; accelerate's own have them too
_REQUIRED = ("name", "requires_logging_directory", "tracker")  # attributes without which accelerate refuses a tracker


def is_own(name: str) -> bool:
    """Whether the name of a tracker is a dotted path."""
    return "." in name


def check_trackers(names: Sequence[str], arguments: Mapping[str, Any]) -> list[str]:
    """All problems of `log.trackers` and `log.tracker_args`, one line each."""
    problems = []
    for name, values in arguments.items():
        if name not in names:
            own = next((own for own in names if own.startswith(f"{name}.")), None)
            remedy = f"write log.tracker_args={{{own}: {{...}}}}" if own is not None else "add it there"
            problems.append(f"log.tracker_args.{name}: it is not among log.trackers; {remedy}")
        elif not isinstance(values, Mapping | None):
            kind = type(values).__name__  # the value itself may be a secret
            problems.append(f"log.tracker_args.{name}: {kind} is no mapping of arguments; write {{name: value}}")
    installed = [str(tracker) for tracker in get_available_trackers()]
    for name in names:
        if is_own(name):
            values = arguments.get(name)
            problems += _check_own(name, values if isinstance(values, Mapping) else {})
        elif name not in installed:
            problems.append(
                f"log.trackers: {name} is unknown to accelerate or not installed; "
                f"installed: {', '.join(installed) or 'none'}; try pip install {name}"
            )
    return problems


def _check_own(dotted: str, arguments: Mapping[str, Any]) -> list[str]:
    try:
        maker = _find_own(dotted)
    except UserError as error:
        return error.problems
    if isinstance(maker, type) and maker.__init__ is GeneralTracker.__init__:  # type: ignore[misc] # it is not called
        if missing := [name for name in _REQUIRED if not hasattr(maker, name)]:
            return [f"log.trackers: {dotted} lacks {', '.join(missing)}; accelerate needs {', '.join(_REQUIRED)}"]
        return [
            f"log.tracker_args.{dotted}.{argument}: {dotted} has no __init__ and takes no arguments; remove it"
            for argument in arguments
        ]
    return check_arguments(maker, arguments, place=f"log.tracker_args.{dotted}", given=_GIVEN)


def _find_own(dotted: str) -> Callable[..., Any]:
    found = locate(dotted, place="log.trackers")
    if inspect.isfunction(found) or (isinstance(found, type) and issubclass(found, GeneralTracker)):
        return found
    raise UserError(
        f"log.trackers: {dotted} is {found!r}; a tracker is a class derived from accelerate.tracking.GeneralTracker, "
        "or a function that makes one"
    )


def start_trackers(
    accelerator: Accelerator,
    *,
    own: Sequence[str] = (),
    project: str,
    config: Mapping[str, Any],
    arguments: Mapping[str, Mapping[str, Any]],
    warn: Callable[[str], None],
) -> None:
    """Start the trackers that the accelerator was made with, and those of one's own, each by itself.

    own: dotted paths. config: shown by the trackers. arguments: of each tracker, by its name. warn: called once for
    each tracker that fails, at its start or later.
    """
    if not accelerator.is_main_process:
        return  # accelerate gives trackers only to process 0
    started = []
    asked = list(accelerator.log_with)
    for tracker in [*asked, *dict.fromkeys(own)]:
        guard = TrackerGuard(tracker.name if isinstance(tracker, GeneralTracker) else str(tracker), warn)
        if guard.attempt(_start, accelerator, tracker, project, config, arguments):
            guard.guarded = accelerator.trackers[0]
            started.append(guard)
    accelerator.log_with, accelerator.trackers = asked, started


def _start(
    accelerator: Accelerator, tracker: Any, project: str, config: Mapping[str, Any], arguments: Mapping[str, Any]
) -> None:
    """Start one tracker; it is then the only one that the accelerator has."""
    if isinstance(tracker, str) and is_own(tracker):
        maker, given = _find_own(tracker), {"run_name": project, "logging_dir": accelerator.logging_dir}
        parameters = inspect.signature(maker).parameters
        given = {name: value for name, value in given.items() if name in parameters}
        tracker = maker(**given, **arguments.get(tracker, {}))
        if not isinstance(tracker, GeneralTracker):
            raise TypeError(f"it returned {tracker!r}; a tracker derives from accelerate.tracking.GeneralTracker")
    accelerator.log_with, accelerator.trackers = [tracker], []
    accelerator.init_trackers(project, config=dict(config), init_kwargs=dict(arguments))


@dataclass(eq=False)
class TrackerGuard:
    """A tracker of accelerate whose errors are reported once, to `warn`, instead of raised."""

    name: str
    warn: Callable[[str], None]
    guarded: Any = None
    _has_warned = False
    _failures = 0  # in a row

    def log(self, values: Mapping[str, Any], step: int | None = None, **options: Any) -> None:
        """Log values, unless the tracker failed too often in a row."""
        if self._failures < _FAILURES:
            self.attempt(self.guarded.log, values, step=step, **options)

    def finish(self) -> None:
        self.attempt(self.guarded.finish)

    def attempt(self, function: Callable[..., Any], *args: Any, **options: Any) -> bool:
        """Call a function of the tracker; returns whether it succeeded."""
        try:
            function(*args, **options)
        except (Exception, SystemExit) as error:  # noqa: BLE001 - errors of a tracker must not end a run
            self._failures += 1
            if not self._has_warned:
                self._has_warned = True
                self.warn(
                    f"tracker {self.name} failed: {type(error).__name__}: {in_one_line(error, at_most=200)}; "
                    "the run goes on, and metrics.jsonl has every figure"
                )
            return False
        self._failures = 0
        return True

    def __getattr__(self, name: str) -> Any:
        """Other attributes of the tracker, for code that gets the tracker from accelerate."""
        return getattr(self.guarded, name)
