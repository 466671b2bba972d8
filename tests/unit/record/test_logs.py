import io
import json

from trainer_loop.record.logs import Console, MetricLog


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


ROW = {"step": 5, "epoch": 0.5, "loss": 0.25, "rows_per_second": 12.0}


def test_rows_past_the_step_go_and_with_them_totals_test_rows_and_half_lines(tmp_path):
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


def test_what_is_not_finite_is_written_as_null_because_json_has_no_nan(tmp_path):
    log = MetricLog(tmp_path / "metrics.jsonl")
    log.append({"step": 1, "grad_norm": float("inf"), "loss": float("nan")})
    assert log.path.read_text() == '{"step": 1, "grad_norm": null, "loss": null}\n'


def test_without_a_terminal_there_is_no_bar_and_no_carriage_return():
    stream = io.StringIO()
    console = Console(stream=stream)
    console.start_progress(total=10, done=0)
    for _ in range(10):
        console.advance_progress()
    console.tell_training(ROW)
    console.stop_progress()
    assert stream.getvalue() == "step=5 epoch=0.5 loss=0.25 rows_per_second=12\n"


def test_on_a_terminal_one_bar_tells_step_loss_rate_and_time_left():
    stream = Terminal()
    console = Console(stream=stream)
    console.start_progress(total=10, done=4)
    console.advance_progress()
    console.tell_training(ROW)
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
    console.keep_in(tmp_path / "train.log")
    console.say("hello")
    console.start_progress(total=3, done=0)
    console.advance_progress()
    assert stream.getvalue() == ""
    assert not (tmp_path / "train.log").exists()


def test_lines_said_before_there_was_a_log_are_kept_too(tmp_path):
    console = Console(stream=io.StringIO())
    console.say("before")
    console.keep_in(tmp_path / "train.log")
    console.warn("after")
    lines = (tmp_path / "train.log").read_text().splitlines()
    assert [line.split(" ", 1)[1] for line in lines] == ["before", "warning: after"]


def test_long_work_tells_how_far_it_is(monkeypatch):
    seconds = iter(range(0, 1000, 20))
    monkeypatch.setattr("trainer_loop.record.logs.time.monotonic", lambda: float(next(seconds)))
    stream = io.StringIO()
    assert list(Console(stream=stream).follow([1, 2, 3, 4], doing="evaluating")) == [1, 2, 3, 4]
    assert stream.getvalue().splitlines()[0].startswith("evaluating: ")


def test_on_a_terminal_the_bar_tells_how_far_long_work_is():
    terminal = Terminal()
    console = Console(stream=terminal)
    console.start_progress(total=10, done=0)
    assert list(console.follow([1, 2], doing="evaluating")) == [1, 2]
    console.stop_progress()
    assert "evaluating 50%" in terminal.getvalue()
