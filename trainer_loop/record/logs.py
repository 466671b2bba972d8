"""The logs of a run: lines on the console and in train.log, a progress bar on a terminal, rows in metrics.jsonl."""

import contextlib
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, TextIO, TypeVar

from tqdm import tqdm

from trainer_loop.errors import printable
from trainer_loop.record.run_dir import describe_refusal, write_text
from trainer_loop.runtime.plain_json import is_count, is_number, parse_json
from trainer_loop.runtime.streams import SafeStream

Values = Mapping[str, float | int]
MACHINE_METRICS = (  # metrics that differ between two identical runs
    *("rows_per_second", "tokens_per_second", "tokens_per_second_per_device", "mfu", "data_wait", "peak_memory_bytes"),
    "train_seconds",
)
_T = TypeVar("_T")

_SECONDS_BETWEEN_LINES = 30.0


class Console:
    """Prints lines for the user. Only the main process prints; the others have `enabled=False`.

    On a terminal there is one progress bar, and lines appear above it; elsewhere only whole lines are written. An error
    of the console or of the log file is reported once, on the other one, and does not end the run.
    """

    def __init__(self, *, enabled: bool = True, stream: TextIO | None = None):
        self.enabled = enabled
        self.stream = SafeStream(stream or sys.stdout)
        self.on_terminal = enabled and self.stream.isatty()
        self._log_path: Path | None = None
        self._unwritten: list[str] = []  # lines that are not in the log file: it is not open yet, or the disk is full
        self._bar: tqdm | None = None
        self._reported: set[str] = set()  # `console` and `log`, once an error of it was reported

    def log_to(self, path: Path) -> None:
        """Also write every line to this file, with its time: the lines so far and all later ones."""
        if self.enabled:
            self._log_path = path
            self._write_log()

    def say(self, line: str = "") -> None:
        """Show a line and write it to the log file. Control characters are escaped."""
        if not self.enabled:
            return
        self._show(printable(line))
        self.log(line)
        if self.stream.fault is not None and "console" not in self._reported:
            self._reported.add("console")
            fault = self.stream.fault
            message = f"the console cannot be written: {fault}; the run goes on, and train.log has every line"
            print(f"warning: {message}", file=SafeStream(sys.stderr), flush=True)
            self.warn(message)

    def log(self, line: str) -> None:
        """Write a line, which the caller shows, to the log file."""
        if self.enabled:
            self._unwritten.append(f"{datetime.now().isoformat(timespec='seconds')} {printable(line)}\n")
            self._write_log()

    def _show(self, line: str) -> None:
        if self._bar is not None:
            self._bar.write(line, file=self.stream)
        else:
            print(line, file=self.stream, flush=True)

    def _write_log(self) -> None:
        if self._log_path is None:
            return
        fault = append_text(self._log_path, "".join(self._unwritten))
        if fault is None:
            self._unwritten.clear()
        elif "log" not in self._reported:  # the lines wait in memory until the file can be written
            self._reported.add("log")
            self._show(f"warning: {self._log_path} cannot be written: {fault}; the run goes on without it")

    def warn(self, line: str) -> None:
        self.say(f"warning: {line}")

    def start_progress(self, *, total: int, done: int) -> None:
        if self.on_terminal:
            self._bar = tqdm(total=total, initial=done, unit="step", dynamic_ncols=True, file=self.stream, leave=True)

    def advance_progress(self) -> None:
        if self._bar is not None:
            self._bar.update()

    def follow(self, work: Iterable[_T], *, total: int, doing: str) -> Iterator[_T]:
        """Iterate over `total` items and report the progress: on the progress bar, or every 30 seconds as a line."""
        reported = time.monotonic()
        for done, item in enumerate(work, start=1):
            yield item
            if self._bar is not None:
                self._bar.set_description(f"{doing} {done / total:.0%}" if done < total else "")
            elif time.monotonic() - reported > _SECONDS_BETWEEN_LINES:
                reported = time.monotonic()
                self.say(f"{doing}: {done / total:.0%}")

    def stop_progress(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def show_training(self, values: Values) -> None:
        """Show the values of a logging interval on a line, or beside the progress bar."""
        if self._bar is not None:
            text = f"loss={values['loss']:.4g}, {values['rows_per_second']:.3g} rows/s"
            self._bar.set_postfix_str(text, refresh=False)
        else:
            self.say(" ".join(f"{name}={format_value(value)}" for name, value in values.items()))

    def show_evaluation(self, title: str, values: Values) -> None:
        """Show the values of an evaluation as a small table."""
        width = max(len(name) for name in values)
        self.say(title)
        for name, value in values.items():
            self.say(f"  {name:<{width}}  {format_value(value)}")


class MetricLog:
    """Writes metrics.jsonl: one JSON object a row, each with its `step`; `pandas.read_json(path, lines=True)` reads it.

    The run does not depend on it, so an error of the file is only a warning.
    """

    def __init__(self, path: Path, *, warn: Callable[[str], None] = print):
        self.path = path
        self.warn = warn
        self._unwritten: list[str] = []  # rows that could not be written yet
        self._content: str | None = None  # what the file must hold before these rows; None: it has it
        self._has_warned = False  # about errors of the disk, since the last successful write

    def append(self, values: Mapping[str, Any]) -> None:
        """Add a row of numbers, and optionally lists of samples."""
        # JSON has no nan or inf, and pandas reads null as nan.
        row = {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in values.items()
        }
        self._unwritten.append(json.dumps(row) + "\n")
        self._write()

    def forget_after(self, step: int, *, evaluated: bool) -> None:
        """Remove an incomplete last row, and the rows that a run which continues after `step` will write again.

        Lines that are not rows are moved to another file.

        Args:
            evaluated: The evaluation of `step` is done already.
        """
        try:
            rows, others = _read_rows(self.path)
        except FileNotFoundError:
            return
        except OSError as error:
            self.warn(f"{self.path} cannot be read: {error.strerror}; its rows stay as they are")
            return
        if others:
            self._set_aside(others)
        last = step if evaluated else step - 1  # the last step whose evaluation stays
        self._content = "".join(
            f"{line}\n"
            for line, row in rows
            if row["step"] <= (last if _has(row, "validation/") else step)
            # A finished run writes totals and test rows again, at any step.
            and not (_has(row, "test/") or "train_seconds" in row)
        )
        self._write()

    def _set_aside(self, lines: Mapping[int, bytes]) -> None:
        """Move lines to a file beside metrics.jsonl. lines: by their numbers, from 1."""
        damaged = self.path.with_name(f"{self.path.name}.damaged")
        where = f"{self.path}:{next(iter(lines))}: this is no row of figures"
        others = len(lines) - 1
        more = {0: "", 1: ", nor is 1 other line"}.get(others, f", nor are {others:,} other lines")
        try:
            with damaged.open("ab") as file:
                file.writelines(line + b"\n" for line in lines.values())
            self.warn(f"{where}{more}; set aside in {damaged.name}")
        except OSError as error:
            self.warn(f"{where}{more}; left out, for {describe_refusal(error, damaged)}")

    def _write(self) -> None:
        fault = None
        if self._content is not None:
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                write_text(self.path, self._content)
                self._content = None
            except OSError as error:
                fault = error.strerror or str(error)
        if self._content is None and self._unwritten:
            fault = append_text(self.path, "".join(self._unwritten))
        if fault is None:
            self._unwritten.clear()
        elif not self._has_warned:
            self.warn(f"{self.path} cannot be written: {fault}; its rows are kept in memory until it can be")
        self._has_warned = fault is not None


def _read_rows(path: Path) -> tuple[list[tuple[str, dict[str, Any]]], dict[int, bytes]]:
    """Return the rows as text and as values, and all other lines by number, without an incomplete last line."""
    rows, others = [], {}
    *lines, cut_off = path.read_bytes().split(b"\n")
    for number, line in enumerate([*lines, cut_off], start=1):
        try:
            text = line.decode()
            row = parse_json(text)
        except ValueError:
            row = None
        if _is_row(row):
            rows.append((text, row))
        elif line.strip() and number <= len(lines):
            others[number] = line
    return rows, others


def _is_row(row: object) -> bool:
    """Return whether a value is a row: a step, with finite numbers, null for other numbers, and lists of samples."""
    if not isinstance(row, dict) or not is_count(row.get("step")):
        return False
    numbers = [value for name, value in row.items() if not (name.endswith("samples") and isinstance(value, list))]
    return all(value is None or (is_number(value) and math.isfinite(value)) for value in numbers)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a metrics.jsonl without other lines. Raises OSError if it cannot be read."""
    return [row for _, row in _read_rows(path)[0]]


def _has(row: Mapping[str, Any], prefix: str) -> bool:
    """Return whether a row holds a metric of a split."""
    return any(name.startswith(prefix) for name in row)


def append_text(path: Path, text: str) -> str | None:
    """Append all of a text to a file, or nothing; returns the error of the disk. A missing folder is created."""
    size = 0
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as file:
            size = file.tell()
            file.write(text.encode())
        return None
    except OSError as error:
        with contextlib.suppress(OSError):
            if path.stat().st_size > size:
                os.truncate(path, size)
        return error.strerror or str(error)


def format_value(value: float | int) -> str:
    """Format integers with thousands separators, and floats with four significant digits."""
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
