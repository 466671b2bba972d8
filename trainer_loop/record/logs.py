"""What a run tells: lines on the console and in train.log, one progress bar on a terminal, rows in metrics.jsonl."""

import contextlib
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Protocol, TextIO, TypeVar

from tqdm import tqdm

Values = Mapping[str, float | int]
T = TypeVar("T", covariant=True)

_SECONDS_BETWEEN_LINES = 30.0


class SizedIterable(Protocol[T]):
    """What can be gone through and has a length."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[T]: ...


class Console:
    """Lines for people. Only the main process speaks; the others are given `enabled=False`.

    On a terminal there is one progress bar and lines appear above it; elsewhere nothing but whole lines is written.
    """

    def __init__(self, *, enabled: bool = True, stream: TextIO | None = None):
        self.enabled = enabled
        self.stream = stream or sys.stdout
        self.on_terminal = enabled and self.stream.isatty()
        self._log_path: Path | None = None
        self._unkept: list[str] = []  # said before there was a file to keep it in, or while the disk refused
        self._bar: tqdm | None = None

    def keep_in(self, path: Path) -> None:
        """Every line also goes into this file, with its time: those said so far, and from now on."""
        if not self.enabled:
            return
        self._log_path = path
        if append_text(path, "".join(self._unkept)) is None:
            self._unkept.clear()

    def say(self, line: str = "") -> None:
        if not self.enabled:
            return
        if self._bar is not None:
            self._bar.write(line, file=self.stream)
        else:
            print(line, file=self.stream, flush=True)
        self._keep(line)

    def _keep(self, line: str) -> None:
        self._unkept.append(f"{datetime.now().isoformat(timespec='seconds')} {line}\n")
        if self._log_path is not None and append_text(self._log_path, "".join(self._unkept)) is None:
            self._unkept.clear()  # else the disk refused: what matters is on the console, and kept once it can be

    def warn(self, line: str) -> None:
        self.say(f"warning: {line}")

    def start_progress(self, *, total: int, done: int) -> None:
        if self.on_terminal:
            self._bar = tqdm(total=total, initial=done, unit="step", dynamic_ncols=True, file=self.stream, leave=True)

    def advance_progress(self) -> None:
        if self._bar is not None:
            self._bar.update()

    def follow(self, work: SizedIterable[T], *, doing: str) -> Iterator[T]:
        """Iterate, and tell how far it is: beside the progress bar, else in a line every half minute."""
        told = time.monotonic()
        for done, item in enumerate(work, start=1):
            yield item
            if self._bar is not None:
                self._bar.set_description(f"{doing} {done / len(work):.0%}" if done < len(work) else "")
            elif time.monotonic() - told > _SECONDS_BETWEEN_LINES:
                told = time.monotonic()
                self.say(f"{doing}: {done / len(work):.0%}")

    def stop_progress(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def tell_training(self, values: Values) -> None:
        """One line per logging interval, or the figures beside the progress bar."""
        if self._bar is not None:
            self._bar.set_postfix_str(
                f"loss={values['loss']:.4g}, {values['rows_per_second']:.3g} rows/s", refresh=False
            )
        else:
            self.say(" ".join(f"{name}={format_value(value)}" for name, value in values.items()))

    def tell_evaluation(self, title: str, values: Values) -> None:
        """A small table."""
        width = max(len(name) for name in values)
        self.say(title)
        for name, value in values.items():
            self.say(f"  {name:<{width}}  {format_value(value)}")


class MetricLog:
    """metrics.jsonl: one JSON object a row, each with its `step`; `pandas.read_json(path, lines=True)` reads it."""

    def __init__(self, path: Path, *, warn: Callable[[str], None] = print):
        self.path = path
        self.warn = warn
        self._unwritten: list[str] = []  # rows the disk refused; written before the next one

    def append(self, values: Values) -> None:
        # JSON has no nan or inf, and pandas reads null as nan.
        row = {name: value if math.isfinite(value) else None for name, value in values.items()}
        self._unwritten.append(json.dumps(row) + "\n")
        fault = append_text(self.path, "".join(self._unwritten))
        if fault is None:
            self._unwritten.clear()
        elif len(self._unwritten) == 1:
            self.warn(f"{self.path} cannot be written: {fault}; its rows are kept in memory until it can be")

    def forget_after(self, step: int, *, evaluated: bool) -> None:
        """Drop what a run that goes on after `step` updates writes again; a row cut off by a crash goes too.

        evaluated: the evaluation of this very step is among what was done.
        """
        if not self.path.exists():
            return
        kept = []
        for line in self.path.read_text(encoding="utf-8").splitlines():
            try:
                row = json.loads(line)
            except json.JSONDecodeError:
                continue
            is_evaluation = any(name.startswith("validation/") for name in row)
            is_again = row["step"] == step and not evaluated and is_evaluation
            if row["step"] <= step and not is_again and not _belongs_to_the_end(row):
                kept.append(line)
        temporary = self.path.with_name(f".{self.path.name}.tmp")
        temporary.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
        os.replace(temporary, self.path)


def _belongs_to_the_end(row: Values) -> bool:
    """Totals and test rows stand after the last step, whenever the run gets there."""
    return "train_seconds" in row or any(name.startswith("test/") for name in row)


def append_text(path: Path, text: str) -> str | None:
    """Append to a file, whole or not at all; returns what the disk refused. A folder that is gone is made again."""
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
    """Whole numbers with thousands marks, others with four significant digits."""
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.4g}"
