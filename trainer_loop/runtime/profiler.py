"""Traces some training steps with torch.profiler, and lists the operators that take the most time."""

import os
import weakref
from collections.abc import Callable
from pathlib import Path

from torch.profiler import profile, record_function

_OPERATORS = 50  # rows of the table


class StepProfiler:
    """Traces steps `first` to `last`, both included and counted from 1, and the time between them.

    A run that resumes between these steps traces the remaining ones. A disk error causes only a warning.

    Args:
        folder: folder for `operators.txt` and the traces: `trace-0.json` of process 0 and so on.
        say: receives one line about the files that were written.
        warn: receives one line about a disk error.
    """

    def __init__(
        self,
        first: int,
        last: int,
        *,
        folder: Path,
        process_index: int,
        say: Callable[[str], None],
        warn: Callable[[str], None],
    ):
        self.first, self.last = first, last
        self._traced_from = first
        self.folder, self.process_index = folder, process_index
        self.say, self.warn = say, warn
        self._profile: profile | None = None
        self._span: record_function | None = None  # of the current step

    def begin_step(self, step: int) -> None:
        """Start step `step`. Call this at the start of each step."""
        self.end_step(step - 1)  # a custom training step may not call it
        if not self.first <= step <= self.last:
            return
        if self._profile is None:
            self._traced_from = step
            self._profile = profile(record_shapes=True)
            self._profile.start()
            # torch crashes if a process ends while a profiler runs.
            self._stop = weakref.finalize(self, self._profile.stop)
        self._span = record_function(f"step {step}")
        self._span.__enter__()

    def end_step(self, step: int) -> None:
        """End step `step`. Call this at the end of each step. The last step waits for the device and writes files."""
        if self._span is None:
            return
        self._span.__exit__(None, None, None)
        self._span = None
        if step == self.last:
            self._write()

    def _write(self) -> None:
        assert self._profile is not None
        finished, self._profile = self._profile, None
        self._stop()
        trace = self.folder / f"trace-{self.process_index}.json"
        temporary = trace.with_name(f".{trace.name}.tmp")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            finished.export_chrome_trace(str(temporary))
            os.replace(temporary, trace)  # if kineto failed to write, it only printed that; this raises
            if self.process_index == 0:
                device = finished.profiler.use_device if finished.profiler is not None else None
                sort_by = f"self_{device or 'cpu'}_time_total"
                operators = finished.key_averages()
                for step in [operator for operator in operators if operator.key.startswith("step ")]:
                    operators.remove(step)
                table = operators.table(sort_by=sort_by, row_limit=_OPERATORS, max_name_column_width=80)
                (self.folder / "operators.txt").write_text(table, encoding="utf-8")
        except OSError as error:
            self.warn(f"log.profile: {error.filename or trace} cannot be written: {error.strerror}")
            return
        self.say(
            f"profile of steps {self._traced_from:,} to {self.last:,}: {self.folder}; open {trace.name} at "
            "https://ui.perfetto.dev"
        )
