"""report.json: facts of a run that the report needs and that no other file holds."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from trainer_loop.config.named_sets import parse_set
from trainer_loop.data.split_facts import SplitFacts
from trainer_loop.errors import in_one_line
from trainer_loop.record.run_dir import describe_refusal, read_json_object, write_json
from trainer_loop.runtime.plain_json import check_fields

FORMAT = 1  # version of the file format


@dataclass
class _Start:
    time: str
    step: int
    ended: str | None


@dataclass
class _Row:
    row: int
    inputs: dict[str, str]


@dataclass
class _Set:
    step: int | None
    worst: list[_Row]


@dataclass
class _Facts:
    """The keys of the file and the types of their values."""

    format: int
    run: str | None = None
    starts: list[_Start] = field(default_factory=list)
    sets: dict[str, _Set] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    task: str | None = None
    outputs: dict[str, str] | None = None
    label_names: list[str] | None = None
    metrics: list[str | dict[str, Any]] | None = None
    plan: list[str] = field(default_factory=list)
    data: dict[str, SplitFacts] = field(default_factory=dict)


class ReportFacts:
    """The facts of one run, over all of its starts. An error of the file is only a warning.

    `values` has `run`, `starts` (each with its `time`, its `step`, and how it `ended`), `seconds` by part, `sets` (the
    last scored validation and test sets, by name), and further facts from `begin`.
    """

    def __init__(self, path: Path, *, warn: Callable[[str], None]):
        self.path = path
        self.warn = warn
        self.values: dict[str, Any] = {}
        self._before: Mapping[str, float] = {}  # seconds of the earlier starts
        self._has_warned = False

    def begin(self, run: str, *, step: int, **facts: Any) -> None:
        """Continue the facts of this run after `step` updates, or create them."""
        try:
            before = read_facts(self.path)
        except (OSError, ValueError):
            before = {}
        if before.get("run") != run:
            before = {}
        start = {"time": datetime.now().isoformat(timespec="seconds"), "step": step, "ended": None}
        sets = before.get("sets", {}).items()
        self.values = {
            "format": FORMAT,
            "run": run,
            "starts": [*before.get("starts", []), start],
            "sets": {name: of_set for name, of_set in sets if of_set["step"] is not None and of_set["step"] <= step},
            "seconds": before.get("seconds", {}),
            **facts,
        }
        self._before = self.values["seconds"]
        self._write()

    def add_set(self, name: str, facts: Mapping[str, Any]) -> None:
        """Add the facts of a scored set. name: such as validation or test.hard."""
        self.values["sets"][name] = facts
        self._write()

    def remove_sets(self, split: str) -> None:
        """Remove the facts of all sets of a split."""
        self.values["sets"] = {
            name: of_set for name, of_set in self.values["sets"].items() if parse_set(name)[0] != split
        }
        self._write()

    def end(self, ended: str, seconds: Mapping[str, float]) -> None:
        """Record how this start of the run ended, and its seconds by part."""
        self.values["starts"][-1]["ended"] = ended
        parts = dict.fromkeys([*self._before, *seconds])
        self.values["seconds"] = {
            part: round(self._before.get(part, 0.0) + seconds.get(part, 0.0), 3) for part in parts
        }
        self._write()

    def _write(self) -> None:
        try:
            write_json(self.path, self.values)
            self._has_warned = False
        except (OSError, TypeError, ValueError) as error:  # a custom metric may have arguments of any type
            if not self._has_warned:
                reason = (
                    describe_refusal(error, self.path)
                    if isinstance(error, OSError)
                    else f"{self.path}: {in_one_line(error)}"
                )
                self.warn(f"{reason}; the run goes on without it")
            self._has_warned = True


def read_facts(path: Path) -> dict[str, Any]:
    """Read the facts of a run. Raises OSError if the file cannot be read, ValueError for another version."""
    values = read_json_object(path)
    if values.get("format") != FORMAT:
        raise ValueError("it is of another version")
    check_fields(_Facts, values)
    return values
