"""A trace of some training steps by torch.profiler, and a table of the operators that took most of their time."""

import os
import weakref
from collections.abc import Callable
from pathlib import Path

from torch.profiler import profile, record_function

_OPERATORS = 50  # rows of the table


class StepProfiler:
    """Traces steps `first` to `last`, both included and counted from 1, and what happens between them.

    A run that goes on among them traces those that it makes. A disk that refuses costs a warning.

    Args:
        folder: where `trace-0.json` of process 0 and so on, and `operators.txt` are written.
        say: called with a line about what was written.
        warn: called with a line about what the disk refused.
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
        """Call it at the beginning of each step."""
        self.end_step(step - 1)  # of a loop of one's own that does not say so
        if not self.first <= step <= self.last:
            return
        if self._profile is None:
            self._traced_from = step
            self._profile = profile(record_shapes=True)
            self._profile.start()
            # torch crashes where a process ends with a profiler that was not stopped.
            self._stop = weakref.finalize(self, self._profile.stop)
        self._span = record_function(f"step {step}")
        self._span.__enter__()

    def end_step(self, step: int) -> None:
        """Call it at the end of each step; the last one waits for the device."""
        if self._span is None:
            return
        self._span.__exit__(None, None, None)
        self._span = None
        if step == self.last:
            self._write()

    def _write(self) -> None:
        assert self._profile is not None
        done, self._profile = self._profile, None
        self._stop()
        trace = self.folder / f"trace-{self.process_index}.json"
        unfinished = trace.with_name(f".{trace.name}.tmp")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            done.export_chrome_trace(str(unfinished))
            os.replace(unfinished, trace)  # kineto only prints that it could not write
            if self.process_index == 0:
                device = done.profiler.use_device if done.profiler is not None else None
                by = f"self_{device or 'cpu'}_time_total"
                operators = done.key_averages()
                for step in [one for one in operators if one.key.startswith("step ")]:
                    operators.remove(step)
                table = operators.table(sort_by=by, row_limit=_OPERATORS, max_name_column_width=80)
                (self.folder / "operators.txt").write_text(table, encoding="utf-8")
        except OSError as error:
            self.warn(f"log.profile: {error.filename or trace} cannot be written: {error.strerror}")
            return
        self.say(
            f"profile of steps {self._traced_from:,} to {self.last:,}: {self.folder}; open {trace.name} at "
            "https://ui.perfetto.dev"
        )
