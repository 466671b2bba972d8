"""One run of a trial: starts the process that trains it, follows its evaluations, and reads how it ended."""

import contextlib
import ctypes
import functools
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from trainer_loop.errors import Diverged, Preempted, ProcessLost, UserError
from trainer_loop.record.logs import read_metrics
from trainer_loop.record.run_dir import EXPORT_RECORD, RunDir, describe_refusal, read_json_object
from trainer_loop.record.run_lock import read_status, try_to_lock
from trainer_loop.runtime.plain_json import is_number

_PR_SET_PDEATHSIG = 1
_TRIES = 3  # starts in a row without progress
_OUTPUT = "output.txt"  # in a run directory: the output of its processes
_STOPPED = "the search was asked to stop; its trial has saved, and the same command goes on"
_OUT_OF_MEMORY = ("out of memory", "MemoryError", "can't allocate memory")

Report = Callable[[int, float], bool]  # (number of the evaluation, from 1, its value) -> whether to stop the run


@dataclass(frozen=True)
class Ending:
    """How a run ended: `finished`, `pruned`, `diverged`, `out of memory`, `refused` or `error`."""

    how: str
    reason: str = ""
    value: float | None = None  # of the metric, by the exported model
    step: int = 0  # the last step
    seconds: float = 0.0  # running time of its processes here


@dataclass(frozen=True)
class Watch:
    """The callbacks and settings by which a run is watched."""

    metric: str  # name without a sign
    report: Report
    should_stop: Callable[[], bool]  # whether the search must stop
    say: Callable[[str], None]  # receives lines for the user
    poll_seconds: float = 0.2


def run_to_end(command: Sequence[str], root: Path, watch: Watch) -> Ending:
    """Start a run, restart it after it was preempted or lost a process, and return how it ended.

    Raises:
        Preempted: The search must stop. The run has saved a checkpoint.
    """
    run_dir, evaluations, seconds, tries, newest = RunDir(root), _Evaluations(root, watch), 0.0, 0, -1
    while True:
        _wait_until_free(run_dir, watch)
        started = time.monotonic()
        code = _run_once(command, run_dir, evaluations, watch)
        seconds += time.monotonic() - started
        step = _count_steps(run_dir)
        if code is None or evaluations.check():  # also after the end: the result must not depend on timing
            return Ending("pruned", f"at evaluation {evaluations.seen}", evaluations.last, step, seconds)
        ending = read_ending(run_dir, code, watch.metric)
        if ending is not None:
            return replace(ending, step=step, seconds=seconds)
        if watch.should_stop():
            raise Preempted(_STOPPED)
        tries, newest = (1 if step > newest else tries + 1), max(step, newest)
        if tries > _TRIES:
            reason = _find_problem(run_dir) or f"exit code {code}"
            return Ending("error", f"started {tries} times without progress: {reason}", step=step, seconds=seconds)
        watch.say(f"{root}: ended with exit code {code}; started again")


def _run_once(command: Sequence[str], run_dir: RunDir, evaluations: "_Evaluations", watch: Watch) -> int | None:
    """Run the command once; returns its exit code, or None if it was stopped because of its evaluations."""
    try:
        run_dir.make()
        run_dir.status.unlink(missing_ok=True)
        output = (run_dir.root / _OUTPUT).open("w", encoding="utf-8")
    except OSError as error:
        raise UserError(f"search.dir: {describe_refusal(error, run_dir.root)}") from error
    with output:
        process = start_process(command, output)
    try:
        while process.poll() is None and not watch.should_stop():
            if evaluations.check():
                return None
            time.sleep(watch.poll_seconds)
        return stop(process)
    finally:
        stop(process)  # also if an evaluation could not be stored


def start_process(command: Sequence[str], output: Any) -> "subprocess.Popen[bytes]":
    """Start a command in its own session, so that the terminal signals only the search, which then signals the run.

    If this process is killed, the command gets SIGTERM. Raises UserError if it cannot be started.
    """
    try:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=functools.partial(_end_with_parent, os.getpid(), _libc()),
        )
    except OSError as error:
        raise UserError(f"search.launch: {command[0]} cannot be started: {error.strerror}") from error


@functools.cache
def _libc() -> Any:
    return ctypes.CDLL(None) if sys.platform == "linux" else None


def _end_with_parent(parent: int, libc: Any) -> None:
    """Let the kernel send SIGTERM to this process when its parent ends."""
    if libc is not None:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # the parent has ended already
            os.kill(os.getpid(), signal.SIGTERM)


def stop(process: "subprocess.Popen[bytes]") -> int:
    """Ask a command and its child processes to save and end; returns the exit code. It may have ended before."""
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)  # a launcher may not pass it on
    return process.wait()


def _wait_until_free(run_dir: RunDir, watch: Watch) -> None:
    """Wait until a run of an earlier search, which is still saving, has ended."""
    is_reported = False
    while not watch.should_stop():
        try:
            with run_dir.lock.open("a+b") as file:
                if try_to_lock(file):
                    return
                holder = file.seek(0) or file.read(200).decode(errors="replace").strip()
        except OSError:  # the directory does not exist yet
            return
        if not is_reported:
            watch.say(f"{run_dir.root}: waiting for {holder or 'another process'}, which is saving")
            is_reported = True
        time.sleep(watch.poll_seconds)
    raise Preempted(_STOPPED)


class _Evaluations:
    """Reports each evaluation in metrics.jsonl once, in order."""

    def __init__(self, root: Path, watch: Watch):
        self._path, self._watch = RunDir(root).metrics, watch
        self._size = -1
        self.seen = 0
        self.last: float | None = None

    def check(self) -> bool:
        """Report new evaluations; returns whether the run must be stopped."""
        try:
            size = self._path.stat().st_size
            if size == self._size:
                return False
            rows = read_metrics(self._path)
        except OSError:
            return False
        self._size = size
        name = f"validation/{self._watch.metric}"
        values = [row[name] for row in rows if name in row]
        for value in values[self.seen :]:
            self.seen += 1
            self.last = math.nan if value is None else float(value)
            if self._watch.report(self.seen, self.last):
                return True
        return False


def read_ending(run_dir: RunDir, code: int, metric: str) -> Ending | None:
    """Return how a run ended; None if the same command must be started again.

    The code of status.json has priority, because a launcher may end with another code than its processes.
    """
    status = _read_status(run_dir)
    code = status.get("exit_code", code)
    if code == 0:
        value = _read_value(run_dir, metric)
        if value is None or not math.isfinite(value):
            return Ending("diverged", f"its {metric} is {'missing' if value is None else value}")
        return Ending("finished", value=value)
    problem = _find_problem(run_dir)
    if code in (Preempted.exit_code, ProcessLost.exit_code, 130) or code < 0:
        return None
    if "is in use by" in problem or (not status and code != UserError.exit_code):
        return None  # another process works there, or process 0 was killed
    if any(text in problem for text in _OUT_OF_MEMORY):
        return Ending("out of memory", problem)
    how = {UserError.exit_code: "refused", Diverged.exit_code: "diverged"}.get(code, "error")
    return Ending(how, problem)


def _read_status(run_dir: RunDir) -> dict[str, Any]:
    try:
        return read_status(run_dir)
    except (OSError, ValueError):
        return {}


def _read_value(run_dir: RunDir, metric: str) -> float | None:
    """Return the metric of the exported model: of the best step by checkpoint.best, else of the last evaluation."""
    try:
        metrics = read_json_object(run_dir.model / EXPORT_RECORD).get("metrics")
    except (OSError, ValueError):
        return None
    value = metrics.get(metric) if isinstance(metrics, dict) else None
    return float(value) if is_number(value) else None


def _count_steps(run_dir: RunDir) -> int:
    """Return the number of steps of a run, as far as it is known."""
    try:
        steps = [row["step"] for row in read_metrics(run_dir.metrics)]
    except OSError:
        steps = []
    return max([*steps, _read_status(run_dir).get("step") or 0])


def read_problems(text: str) -> list[str]:
    """Return the problems that a command has printed, without `error: `."""
    return [line.partition("error: ")[2] for line in text.splitlines() if line.startswith(("error: ", "process "))]


def _find_problem(run_dir: RunDir) -> str:
    """Return the first problem that the run has printed, else its last line."""
    try:
        text = (run_dir.root / _OUTPUT).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    problems = [problem for problem in read_problems(text) if problem]
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return (problems or lines[-1:] or [""])[0]
