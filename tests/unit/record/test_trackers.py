"""A failing tracker costs one warning, and does not affect other trackers."""

import json
import math
from pathlib import Path

import pytest
from accelerate import Accelerator
from accelerate.tracking import GeneralTracker

from trainer_loop.record.trackers import LoggedRows, TrackedRun, _name_run, check_trackers, start_trackers

LINES = {"tracker_lab.Lines": {"file": "lines.jsonl"}}
RUN = TrackedRun("p", "imdb", "0123456789abcdef", config={"lr": 1.0})

LAB = """
import json
from pathlib import Path

from accelerate.tracking import GeneralTracker


class Bare(GeneralTracker):
    name = "bare"
    requires_logging_directory = False
    tracker = None


class Lines(Bare):
    def __init__(self, run_name, logging_dir, *, file, run_id="", fails=False):
        super().__init__()
        if fails:
            raise OSError(28, "No space left on device")
        self.file = Path(logging_dir) / file
        self.tell("made", run_name, run_id)

    def tell(self, *what):
        with self.file.open("a") as file:
            file.write(json.dumps(what) + chr(10))

    def store_init_configuration(self, values):
        self.tell("config", values)

    def log(self, values, step=None):
        self.tell("log", values, step)

    def log_artifact(self, file):
        self.tell("file", Path(file).read_text())

    def finish(self):
        self.tell("finish")


class Nameless(GeneralTracker):
    tracker = None


def make(file="made.jsonl"):
    return Lines("of make", ".", file=file)


def make_nothing():
    return None


NUMBER = 3
"""


class Tracker(GeneralTracker):
    """Fails in one of its methods."""

    requires_logging_directory = False
    tracker = "its own run"

    def __init__(self, name: str, fails_in: str, error: BaseException):
        self.name = name
        super().__init__()
        self.fails_in = fails_in
        self.error = error
        self.calls: list[str] = []

    def _call(self, method: str) -> None:
        self.calls.append(method)
        if method == self.fails_in:
            raise self.error

    def start(self):
        self._call("start")

    def store_init_configuration(self, values):
        self._call("store_init_configuration")

    def log(self, values, step=None, **options):
        self._call("log")

    def finish(self):
        self._call("finish")


METHODS = ["start", "store_init_configuration", "log", "finish"]


@pytest.mark.parametrize("error", [RuntimeError("a\nb"), OSError(28, "No space left on device"), SystemExit(1)])
@pytest.mark.parametrize("fails_in", METHODS)
def test_a_failing_tracker_is_reported_once_and_does_not_affect_others(fails_in, error):
    faulty, sound = Tracker("faulty", fails_in, error), Tracker("sound", "", error)
    accelerator, warnings = Accelerator(cpu=True, log_with=[faulty, sound]), []
    start_trackers(accelerator, RUN, arguments={}, warn=warnings.append)
    for step in range(6):
        accelerator.log({"loss": 1.0}, step=step)
    accelerator.end_training()
    (warning,) = warnings
    assert warning.startswith(f"tracker faulty failed: {type(error).__name__}: ")
    assert "\n" not in warning
    assert sound.calls == ["start", "store_init_configuration", *["log"] * 6, "finish"]
    assert faulty.calls.count("log") == {"log": 3, "finish": 6}.get(fails_in, 0)


def test_accelerate_returns_the_same_tracker_as_without_a_guard():
    sound = Tracker("sound", "", RuntimeError())
    accelerator = Accelerator(cpu=True, log_with=[sound])
    start_trackers(accelerator, RUN, arguments={}, warn=pytest.fail)
    assert accelerator.get_tracker("sound", unwrap=True) == "its own run"
    assert accelerator.get_tracker("sound").calls == ["start", "store_init_configuration"]


@pytest.fixture
def lab(tmp_path, monkeypatch):
    """A module `tracker_lab` in the current directory of the user."""
    (tmp_path / "tracker_lab.py").write_text(LAB)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def read_lines(file: Path) -> list:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_a_custom_tracker_gets_its_arguments_and_the_run_arguments_that_it_has(lab):
    own = ["tracker_lab.Lines", "tracker_lab.make", "tracker_lab.Bare", "tracker_lab.Lines"]
    arguments = {"tracker_lab.Lines": {"file": "lines.jsonl"}}
    assert check_trackers(own, arguments) == []
    sound = Tracker("sound", "", RuntimeError())
    accelerator = Accelerator(cpu=True, log_with=[sound], project_dir=str(lab))
    start_trackers(accelerator, RUN, custom=own, arguments=arguments, warn=pytest.fail)
    accelerator.log({"loss": 2.0}, step=3)
    accelerator.end_training()
    calls = [["config", {"lr": 1.0}], ["log", {"loss": 2.0}, 3], ["finish"]]
    assert read_lines(lab / "lines.jsonl") == [["made", "p", "0123456789abcdef"], *calls]
    assert read_lines(lab / "made.jsonl") == [["made", "of make", ""], *calls]
    assert sound.calls == ["start", "store_init_configuration", "log", "finish"]
    assert accelerator.get_tracker("tracker_lab.Lines").file == lab / "lines.jsonl"


def test_a_custom_tracker_that_cannot_be_made_costs_a_warning_and_no_other_tracker(lab):
    own = ["tracker_lab.Lines", "tracker_lab.make_nothing", "tracker_lab.make"]
    arguments = {"tracker_lab.Lines": {"file": "lines.jsonl", "fails": True}}
    assert check_trackers(own, arguments) == []
    accelerator, warnings = Accelerator(cpu=True, project_dir=str(lab)), []
    start_trackers(accelerator, RUN, custom=own, arguments=arguments, warn=warnings.append)
    accelerator.log({"loss": 2.0}, step=3)
    accelerator.end_training()
    assert [warning.partition(";")[0] for warning in warnings] == [
        "tracker tracker_lab.Lines failed: OSError: [Errno 28] No space left on device",
        "tracker tracker_lab.make_nothing failed: TypeError: it returned None",
    ]
    assert read_lines(lab / "made.jsonl")[1:] == [["config", {"lr": 1.0}], ["log", {"loss": 2.0}, 3], ["finish"]]


@pytest.mark.parametrize(
    ("name", "arguments", "parts"),
    [
        ("tracker_lab.Line", {}, ["log.trackers: tracker_lab.Line", "did you mean Lines?"]),
        ("no_lab.Lines", {}, ["log.trackers: no_lab.Lines", "there is no module no_lab"]),
        ("tracker_lab.NUMBER", {}, ["tracker_lab.NUMBER is 3", "GeneralTracker", "function that makes one"]),
        ("json.JSONEncoder", {}, ["a tracker is a class derived from accelerate.tracking.GeneralTracker"]),
        ("tracker_lab.Nameless", {}, ["tracker_lab.Nameless lacks name, requires_logging_directory"]),
        ("tracker_lab.Lines", {}, ["needs an argument file; set log.tracker_args.tracker_lab.Lines.file"]),
        ("tracker_lab.Lines", {"file": "a", "fail": 1}, ["tracker_args.tracker_lab.Lines.fail", "did you mean fails?"]),
        ("tracker_lab.Lines", {"file": "a", "run_name": "x"}, ["Lines.run_name", "by the trainer itself"]),
        (
            "tracker_lab.Bare",
            {"file": "a"},
            ["log.tracker_args.tracker_lab.Bare.file", "takes no arguments"],
        ),
        ("tracker_lab.make", "s3cr3t", ["log.tracker_args.tracker_lab.make: str is no mapping"]),
        ("no_tracker", {}, ["log.trackers: no_tracker is unknown to accelerate", "pip install no_tracker"]),
    ],
)
def test_a_problem_is_found_before_the_run_starts(lab, name, arguments, parts):
    (problem,) = check_trackers([name], {name: arguments})
    assert [part for part in parts if part not in problem] == []
    assert "\n" not in problem
    assert "s3cr3t" not in problem


def test_arguments_of_an_unlisted_tracker_are_a_problem(lab):
    assert check_trackers(["tracker_lab.make"], {"wandb": {}, "tracker_lab": {"make": {}}}) == [
        "log.tracker_args.wandb: it is not among log.trackers; add it there",
        "log.tracker_args.tracker_lab: it is not among log.trackers; write log.tracker_args={tracker_lab.make: {...}}",
    ]


@pytest.mark.parametrize(
    ("values", "step", "expected"),
    [
        ({"loss": 0.5, "lr": 0.1, "rows_per_second": 99.0}, 20, True),  # how fast it was does not matter
        ({"loss": 0.5004, "lr": 0.1}, 20, True),  # on other processes
        ({"loss": 0.5, "lr": 0.2}, 20, False),
        ({"loss": 0.5, "z": 1.0}, 20, False),
        ({"loss": math.nan}, 20, False),
        ({"validation/loss": math.nan}, 20, True),
        ({"validation/loss": 1.0}, 20, False),
        ({"validation/samples": 1.0}, 20, False),
        ({"loss": 0.5}, 10, False),
    ],
)
def test_a_row_that_was_logged_before_is_recognised(values, step, expected):
    rows = [{"step": 20, "epoch": 1.0, "loss": 0.5, "lr": 0.1, "rows_per_second": 5.0}]
    rows += [{"step": 20, "validation/loss": None, "validation/samples": [{"text": "x"}]}]
    assert LoggedRows(rows).have(values, step) is expected


def test_a_resumed_run_sends_new_rows_and_uploads_its_files(lab):
    (lab / "report.html").write_text("<html>")
    run = TrackedRun(
        "p",
        config={"lr": 1.0},
        is_resumed=True,
        logged=[{"step": step, "loss": float(step)} for step in (1, 2, 3)],
        files=[lab / "report.html", lab / "none.html"],
    )
    accelerator = Accelerator(cpu=True, project_dir=str(lab))
    start_trackers(
        accelerator, run, custom=["tracker_lab.Lines", "tracker_lab.Bare"], arguments=LINES, warn=pytest.fail
    )
    for step in (2, 3, 4):
        accelerator.log({"loss": float(step)}, step=step)
    accelerator.end_training()
    calls = [["config", {"lr": 1.0}], ["log", {"loss": 4.0}, 4], ["file", "<html>"], ["finish"]]
    assert read_lines(lab / "lines.jsonl")[1:] == calls


def test_names_from_the_environment_have_priority(monkeypatch):
    monkeypatch.setenv("WANDB_RUN_ID", "of-a-sweep")
    monkeypatch.setenv("CLEARML_TASK", "mine")
    assert (_name_run("wandb", RUN), _name_run("clearml", RUN)) == ({"name": "imdb"}, {})
    monkeypatch.delenv("WANDB_RUN_ID")
    assert _name_run("wandb", RUN) == {"name": "imdb", "id": RUN.identity, "resume": "allow"}
