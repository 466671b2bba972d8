"""Trackers. They only display a run: one that fails costs a warning, and the run continues.

A tracker is a name that accelerate knows, or the dotted path of a custom tracker: a class derived from
`accelerate.tracking.GeneralTracker`, or a function that makes such a tracker. A resumed run is the same run to its
trackers, and repeated values are not sent again.
"""

import inspect
import math
import os
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.tracking import GeneralTracker, get_available_trackers

from trainer_loop.components import check_arguments, locate
from trainer_loop.errors import UserError, in_one_line
from trainer_loop.record.logs import MACHINE_METRICS

_MOST_FAILURES = 3  # in a row; then the tracker is not called again, because each call may wait for a network
_RUN_ARGUMENTS = ("run_name", "logging_dir", "run_id")  # arguments that a custom tracker gets if it has them
_TAG = "trainer_loop.run"  # tag of a run of MLflow, which has its own run ids
_SAME = 1e-2  # relative difference: a closer value is a repeated one, perhaps from other processes
_REQUIRED = ("name", "requires_logging_directory", "tracker")  # attributes without which accelerate refuses a tracker


def is_custom(name: str) -> bool:
    """Return whether the name of a tracker is a dotted path."""
    return "." in name


def check_trackers(names: Sequence[str], arguments: Mapping[str, Any]) -> list[str]:
    """Return all problems of `log.trackers` and `log.tracker_args`, one line each."""
    problems = []
    for name, values in arguments.items():
        if name not in names:
            dotted = next((other for other in names if other.startswith(f"{name}.")), None)
            remedy = f"write log.tracker_args={{{dotted}: {{...}}}}" if dotted is not None else "add it there"
            problems.append(f"log.tracker_args.{name}: it is not among log.trackers; {remedy}")
        elif not isinstance(values, Mapping | None):
            kind = type(values).__name__  # the value itself may be a secret, so it is not shown
            problems.append(f"log.tracker_args.{name}: {kind} is no mapping of arguments; write {{name: value}}")
    installed = [str(tracker) for tracker in get_available_trackers()]
    for name in names:
        if is_custom(name):
            values = arguments.get(name)
            problems += _check_custom(name, values if isinstance(values, Mapping) else {})
        elif name not in installed:
            problems.append(
                f"log.trackers: {name} is unknown to accelerate or not installed; "
                f"installed: {', '.join(installed) or 'none'}; try pip install {name}"
            )
    return problems


def _check_custom(dotted: str, arguments: Mapping[str, Any]) -> list[str]:
    try:
        maker = _find_custom(dotted)
    except UserError as error:
        return error.problems
    if isinstance(maker, type) and maker.__init__ is GeneralTracker.__init__:  # type: ignore[misc] # it is not called
        if missing := [name for name in _REQUIRED if not hasattr(maker, name)]:
            return [f"log.trackers: {dotted} lacks {', '.join(missing)}; accelerate needs {', '.join(_REQUIRED)}"]
        return [
            f"log.tracker_args.{dotted}.{argument}: {dotted} has no __init__ and takes no arguments; remove it"
            for argument in arguments
        ]
    return check_arguments(maker, arguments, place=f"log.tracker_args.{dotted}", given=_RUN_ARGUMENTS)


def _find_custom(dotted: str) -> Callable[..., Any]:
    maker = locate(dotted, place="log.trackers")
    if inspect.isfunction(maker) or (isinstance(maker, type) and issubclass(maker, GeneralTracker)):
        return maker
    raise UserError(
        f"log.trackers: {dotted} is {maker!r}; a tracker is a class derived from accelerate.tracking.GeneralTracker, "
        "or a function that makes one"
    )


@dataclass(frozen=True)
class TrackedRun:
    """The facts of a run for its trackers."""

    project: str
    name: str = ""
    identity: str = ""  # the same each time the run is started
    config: Mapping[str, Any] = field(default_factory=dict)  # shown by the trackers
    is_resumed: bool = False  # the run was started before
    logged: Sequence[Mapping[str, Any]] = ()  # the rows that were logged before
    files: Sequence[Path] = ()  # uploaded at the end, if they exist


def start_trackers(
    accelerator: Accelerator,
    run: TrackedRun,
    *,
    custom: Sequence[str] = (),
    arguments: Mapping[str, Mapping[str, Any]],
    warn: Callable[[str], None],
) -> None:
    """Start the trackers of the accelerator, and custom ones. One that fails does not affect the others.

    Args:
        custom: Dotted paths.
        arguments: Of each tracker, by its name.
        warn: Called once for each tracker that fails, at its start or later.
    """
    if not accelerator.is_main_process:
        return  # accelerate gives trackers only to process 0
    started, logged = [], LoggedRows(run.logged)
    names = list(accelerator.log_with)
    for tracker in [*names, *dict.fromkeys(custom)]:
        name = tracker.name if isinstance(tracker, GeneralTracker) else str(tracker)
        guard = TrackerGuard(name, warn, files=run.files)
        if guard.attempt(_start, guard, accelerator, tracker, run, dict(arguments.get(name, {})), logged):
            guard.guarded = accelerator.trackers[0]
            started.append(guard)
    accelerator.log_with, accelerator.trackers = names, started


def _start(
    guard: "TrackerGuard",
    accelerator: Accelerator,
    tracker: Any,
    run: TrackedRun,
    arguments: dict[str, Any],
    logged: "LoggedRows",
) -> None:
    """Start one tracker. Afterwards it is the only one of the accelerator."""
    name, stored_run = guard.name, {}
    if isinstance(tracker, str) and is_custom(tracker):
        values = {"run_name": run.project, "logging_dir": accelerator.logging_dir, "run_id": run.identity}
        maker = _find_custom(tracker)
        parameters = inspect.signature(maker).parameters
        values = {name: value for name, value in values.items() if name in parameters}
        tracker = maker(**values, **arguments)
        if not isinstance(tracker, GeneralTracker):
            raise TypeError(f"it returned {tracker!r}; a tracker derives from accelerate.tracking.GeneralTracker")
    elif not isinstance(tracker, GeneralTracker):
        stored_run = _find_in_mlflow(run.identity) if name == "mlflow" and run.is_resumed else {}
        arguments = _name_run(name, run) | stored_run | arguments
    accelerator.log_with, accelerator.trackers = [tracker], []
    # MLflow refuses other parameters for a resumed run, and TensorBoard would show a separate run for them.
    is_stored = bool(stored_run) or (name == "tensorboard" and run.is_resumed)
    accelerator.init_trackers(
        run.project, config=None if is_stored else dict(run.config), init_kwargs={name: arguments}
    )
    (tracker,) = accelerator.trackers
    if name == "mlflow":
        import mlflow

        mlflow.set_tag(_TAG, run.identity)
    # Online, W&B ignores steps that it has, and gets lost steps again. The other trackers start a new run.
    has_rows = getattr(tracker.tracker, "offline", True) if name == "wandb" else name in ("tensorboard", "trackio")
    if has_rows or stored_run or is_custom(name):
        guard.logged = logged


def _name_run(name: str, run: TrackedRun) -> dict[str, Any]:
    """Return arguments by which a tracker of accelerate names a run; some trackers find the run again by them.

    A name or an identity from the environment has priority, because agents of sweeps set it.
    """
    match name:
        case "wandb" if "WANDB_RUN_ID" in os.environ:
            return {"name": run.name}
        case "wandb":
            return {"name": run.name, "id": run.identity, "resume": "allow"}
        case "trackio":  # it identifies runs by name only
            return {"name": f"{run.name}-{run.identity[:8]}", "resume": "allow"}
        case "tensorboard":  # hides points of another run in the same directory
            return {} if run.is_resumed else {"purge_step": 0}
        case "mlflow":
            return {"run_name": run.name}
        case "clearml" if "CLEARML_TASK" not in os.environ:
            return {"task_name": run.name}
        case "swanlab":
            return {"experiment_name": run.name}
    return {}


def _find_in_mlflow(identity: str) -> dict[str, Any]:
    import mlflow

    query = f"tags.`{_TAG}` = '{identity}'"
    runs = mlflow.search_runs(filter_string=query, search_all_experiments=True, max_results=1, output_format="list")
    return {"run_id": runs[0].info.run_id} if runs else {}


class LoggedRows:
    """The rows that trackers got before this start. rows: each with its `step`."""

    def __init__(self, rows: Sequence[Mapping[str, Any]]):
        self._rows_by_step: dict[int, list[Mapping[str, Any]]] = defaultdict(list)
        for row in rows:
            self._rows_by_step[row["step"]].append(row)
        self._last = max(self._rows_by_step, default=-1)

    def have(self, values: Mapping[str, Any], step: int | None) -> bool:
        """Return whether a row of this step has the same values, except for metrics of the machine."""
        if step is None or step > self._last:
            self._rows_by_step.clear()  # steps only go up
            return False
        compared = {name: value for name, value in values.items() if name not in MACHINE_METRICS}
        return any(
            all(name in row and _is_same(row[name], value) for name, value in compared.items())
            for row in self._rows_by_step.get(step, ())
        )


def _is_same(written: Any, value: Any) -> bool:
    """Compare a value with the one in metrics.jsonl, where a number that is not finite is null."""
    if written is None:
        return isinstance(value, float) and not math.isfinite(value)
    are_numbers = isinstance(written, (int, float)) and isinstance(value, (int, float))
    return are_numbers and math.isclose(written, value, rel_tol=_SAME)


def _upload(tracker: GeneralTracker, file: Path) -> None:
    """Upload a file to a tracker that stores files."""
    if hasattr(tracker, "log_artifact"):  # MLflow, or a custom tracker
        tracker.log_artifact(str(file))
    elif tracker.name == "wandb":
        tracker.tracker.save(str(file), base_path=str(file.parent), policy="now")
    elif tracker.name == "trackio":
        tracker.tracker.log_artifact(file, type="report")
    elif tracker.name == "clearml":
        tracker.tracker.upload_artifact(file.name, artifact_object=str(file))
    elif tracker.name == "comet_ml":
        tracker.tracker.log_asset(str(file))


@dataclass(eq=False)
class TrackerGuard:
    """Wraps a tracker of accelerate: its errors are reported once, to `warn`, instead of raised."""

    name: str
    warn: Callable[[str], None]
    files: Sequence[Path] = ()
    guarded: Any = None
    logged: LoggedRows | None = None  # rows that the tracker has and would show twice
    _has_warned = False
    _failures = 0  # in a row

    def log(self, values: Mapping[str, Any], step: int | None = None, **options: Any) -> None:
        """Log values, unless the tracker has them, or failed too often in a row."""
        if self._failures < _MOST_FAILURES:
            self.attempt(self._send, values, step, **options)

    def _send(self, values: Mapping[str, Any], step: int | None, **options: Any) -> None:
        if self.logged is None or not self.logged.have(values, step):
            self.guarded.log(values, step=step, **options)

    def finish(self) -> None:
        """Upload the existing files, and close the tracker."""
        for file in self.files:
            if self._failures < _MOST_FAILURES and file.is_file():
                self.attempt(_upload, self.guarded, file)
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
        """Return other attributes of the tracker, for code that gets the tracker from accelerate."""
        return getattr(self.guarded, name)
