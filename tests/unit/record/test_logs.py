import io
import json
import sys

import pytest

from trainer_loop.record import logs
from trainer_loop.record.logs import Console, MetricLog, read_metrics


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


ROW = {"step": 5, "epoch": 0.5, "loss": 0.25, "rows_per_second": 12.0}


def test_rows_after_the_step_totals_test_rows_and_incomplete_lines_are_removed(tmp_path):
    log = MetricLog(tmp_path / "metrics.jsonl")
    for row in (
        {"step": 5, "loss": 1.0},
        {"step": 10, "validation/loss": 1.0},
        {"step": 10, "test/loss": 1.0},
        {"step": 10, "train_seconds": 3.0},
        {"step": 15, "loss": 0.5},
    ):
        log.append(row)
    with log.path.open("a") as file:
        file.write('{"step": 16, "lo')
    log.forget_after(10, evaluated=True)
    assert [json.loads(line) for line in log.path.read_text().splitlines()] == [
        {"step": 5, "loss": 1.0},
        {"step": 10, "validation/loss": 1.0},
    ]


def test_numbers_that_are_not_finite_are_written_as_null(tmp_path):
    log = MetricLog(tmp_path / "metrics.jsonl")
    log.append({"step": 1, "grad_norm": float("inf"), "loss": float("nan")})
    assert log.path.read_text() == '{"step": 1, "grad_norm": null, "loss": null}\n'


def test_without_a_terminal_there_is_no_bar_and_no_carriage_return():
    stream = io.StringIO()
    console = Console(stream=stream)
    console.start_progress(total=10, done=0)
    for _ in range(10):
        console.advance_progress()
    console.show_training(ROW)
    console.stop_progress()
    assert stream.getvalue() == "step=5 epoch=0.5 loss=0.25 rows_per_second=12\n"


def test_on_a_terminal_one_bar_shows_step_loss_rate_and_time_left():
    stream = Terminal()
    console = Console(stream=stream)
    console.start_progress(total=10, done=4)
    console.advance_progress()
    console.show_training(ROW)
    console.say("a line above the bar")
    console.stop_progress()
    shown = stream.getvalue()
    assert "5/10" in shown
    assert "loss=0.25" in shown
    assert "12 rows/s" in shown
    assert "a line above the bar\n" in shown


def test_other_processes_are_silent_and_write_no_log(tmp_path):
    stream = Terminal()
    console = Console(enabled=False, stream=stream)
    console.log_to(tmp_path / "train.log")
    console.say("hello")
    console.start_progress(total=3, done=0)
    console.advance_progress()
    assert stream.getvalue() == ""
    assert not (tmp_path / "train.log").exists()


def test_lines_before_the_log_file_is_open_are_written_later(tmp_path):
    console = Console(stream=io.StringIO())
    console.say("before")
    console.log_to(tmp_path / "train.log")
    console.warn("after")
    lines = (tmp_path / "train.log").read_text().splitlines()
    assert [line.split(" ", 1)[1] for line in lines] == ["before", "warning: after"]


def test_the_progress_of_long_work_is_reported(monkeypatch):
    seconds = iter(range(0, 1000, 20))
    monkeypatch.setattr("trainer_loop.record.logs.time.monotonic", lambda: float(next(seconds)))
    stream = io.StringIO()
    assert list(Console(stream=stream).follow([1, 2, 3, 4], total=4, doing="evaluating")) == [1, 2, 3, 4]
    assert stream.getvalue().splitlines()[0].startswith("evaluating: ")


def test_on_a_terminal_the_bar_shows_the_progress_of_long_work():
    terminal = Terminal()
    console = Console(stream=terminal)
    console.start_progress(total=10, done=0)
    assert list(console.follow([1, 2], total=2, doing="evaluating")) == [1, 2]
    console.stop_progress()
    assert "evaluating 50%" in terminal.getvalue()


def test_control_characters_are_escaped_on_the_console_and_in_the_log(tmp_path):
    stream = io.StringIO()
    console = Console(stream=stream)
    console.log_to(tmp_path / "train.log")
    console.say("labels: good\n2026-01-01 error: forged, \x1b[2Jgone, \r, \u202egnorw, café")
    expected = "labels: good\\n2026-01-01 error: forged, \\x1b[2Jgone, \\r, \\u202egnorw, café\n"
    assert stream.getvalue() == expected
    (line,) = (tmp_path / "train.log").read_text().splitlines(keepends=True)
    assert line.split(" ", 1)[1] == expected


@pytest.mark.parametrize("on_terminal", [False, True])
def test_a_failing_console_is_reported_once_in_the_log_and_on_the_other_stream(on_terminal, tmp_path, monkeypatch):
    class Broken(io.StringIO):
        def isatty(self) -> bool:
            return on_terminal

        def write(self, _text):
            raise BrokenPipeError(32, "Broken pipe")

    other = io.StringIO()
    monkeypatch.setattr(sys, "stderr", other)
    console = Console(stream=Broken())
    console.log_to(tmp_path / "train.log")
    console.say("first")
    console.start_progress(total=3, done=0)
    for _ in range(3):
        console.advance_progress()
        console.show_training(ROW)
    console.show_evaluation("validation", {"loss": 0.5})
    list(console.follow([1, 2], total=2, doing="evaluating"))
    console.stop_progress()
    lines = [line.split(" ", 1)[1] for line in (tmp_path / "train.log").read_text().splitlines()]
    message = "warning: the console cannot be written: Broken pipe; the run goes on, and train.log has every line"
    assert lines[:2] == ["first", message]
    assert lines.count(message) == 1
    assert lines[-2:] == ["validation", "  loss  0.5"]
    assert other.getvalue() == f"{message}\n"


def test_a_failing_log_is_reported_once_on_the_console_and_has_every_line_later(tmp_path, monkeypatch):
    stream = io.StringIO()
    console = Console(stream=stream)
    (tmp_path / "train.log").mkdir()
    console.log_to(tmp_path / "train.log")
    console.say("one")
    console.say("two")
    message = f"warning: {tmp_path / 'train.log'} cannot be written: Is a directory; the run goes on without it"
    assert stream.getvalue().splitlines() == [message, "one", "two"]
    (tmp_path / "train.log").rmdir()
    console.say("three")
    lines = (tmp_path / "train.log").read_text().splitlines()
    assert [line.split(" ", 1)[1] for line in lines] == ["one", "two", "three"]


NO_ROWS = {
    "a text": b"nothing",
    "a list": b"[1, 2]",
    "a number": b"7",
    "no step": b'{"loss": 1.0}',
    "a step of another type": b'{"step": "5"}',
    "a step below 0": b'{"step": -1}',
    "deep": b"[" * 100_000,
    "many digits": b'{"step": ' + b"9" * 5000 + b"}",
    "no UTF-8": b'{"step": 5, "a": "\xff\xfe"}',
    "zeros": bytes(40),
}


@pytest.mark.parametrize("kind", NO_ROWS)
def test_an_invalid_line_is_set_aside_with_a_warning_and_the_rows_stay(kind, tmp_path):
    path, warnings = tmp_path / "metrics.jsonl", []
    rows = [b'{"step": 1, "loss": 1.0}', b'{"step": 2, "loss": 0.5}']
    path.write_bytes(b"\n".join([rows[0], NO_ROWS[kind], rows[1], NO_ROWS[kind], b'{"step": 3, "lo']))
    assert [row["step"] for row in read_metrics(path)] == [1, 2]
    MetricLog(path, warn=warnings.append).forget_after(2, evaluated=True)
    assert path.read_bytes() == b"".join(row + b"\n" for row in rows)
    assert (tmp_path / "metrics.jsonl.damaged").read_bytes() == (NO_ROWS[kind] + b"\n") * 2
    message = f"{path}:2: this is no row of figures, nor is 1 other line; set aside in metrics.jsonl.damaged"
    assert warnings == [message]
    MetricLog(path, warn=pytest.fail).forget_after(2, evaluated=True)


def test_rows_are_removed_later_if_the_disk_refuses_at_first(tmp_path, monkeypatch):
    path, warnings = tmp_path / "metrics.jsonl", []
    log = MetricLog(path, warn=warnings.append)
    for step in (1, 2, 3):
        log.append({"step": step})

    def refuse(*_args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(logs, "write_text", refuse)
    log.forget_after(1, evaluated=True)
    log.append({"step": 2, "loss": 0.5})
    (warning,) = warnings
    assert warning.startswith(f"{path} cannot be written: No space left on device; its rows are kept in memory")
    monkeypatch.undo()
    log.append({"step": 3, "loss": 0.25})
    assert read_metrics(path) == [{"step": 1}, {"step": 2, "loss": 0.5}, {"step": 3, "loss": 0.25}]
