"""Whatever happens to the console, the command goes on; a result that cannot be written is an error."""

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from trainer_loop import UserError
from trainer_loop.runtime.streams import SafeStream, put_out, report, safe_streams


def full_disk() -> io.TextIOWrapper:
    return Path("/dev/full").open("w")


def gone_reader() -> io.TextIOWrapper:
    reader, writer = os.pipe()
    os.close(reader)
    return os.fdopen(writer, "w")


def closed_file() -> io.StringIO:
    stream = io.StringIO()
    stream.close()
    return stream


BROKEN = {
    "full disk": (full_disk, "No space left on device"),
    "gone reader": (gone_reader, "Broken pipe"),
    "closed file": (closed_file, "I/O operation on closed file"),
    "no stream": (lambda: None, "it is closed"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_stream_takes_everything_and_tells_why(kind):
    make, reason = BROKEN[kind]
    stream = SafeStream(make())
    assert stream.fault is None
    for _ in range(3):
        print("x" * 10_000, file=stream, flush=True)
    assert stream.fault == reason
    assert not stream.isatty()


def test_a_working_stream_is_written_and_has_no_fault():
    inner = io.StringIO()
    stream = SafeStream(SafeStream(inner))
    print("a line", file=stream, flush=True)
    assert (inner.getvalue(), stream.fault) == ("a line\n", None)


def test_characters_that_the_encoding_lacks_are_spelled_out():
    inner = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    print("café \ud800", file=SafeStream(inner), flush=True)
    assert inner.buffer.getvalue() == b"caf\\xe9 \\ud800\n"


@pytest.mark.parametrize("kind", BROKEN)
def test_prints_of_anybody_are_safe_and_the_streams_come_back(kind, monkeypatch):
    broken = BROKEN[kind][0]()
    monkeypatch.setattr(sys, "stdout", broken)
    monkeypatch.setattr(sys, "stderr", broken)
    with safe_streams():
        print("x" * 10_000, flush=True)
        sys.stderr.write("y")
        report(UserError(["one", "two"]))
    assert sys.stdout is broken
    if kind not in ("closed file", "no stream"):
        broken.flush()  # as the interpreter does at its end: it has been sent to nowhere


@pytest.mark.parametrize(("kind", "is_error"), [("full disk", True), ("gone reader", False), ("no stream", True)])
def test_a_result_that_is_lost_is_an_error_but_for_a_reader_that_has_enough(kind, is_error, monkeypatch):
    monkeypatch.setattr(sys, "stdout", BROKEN[kind][0]())
    if is_error:
        with pytest.raises(UserError, match="standard output"):
            put_out("the result\n")
    else:
        put_out("the result\n")


def test_problems_are_one_line_each_whatever_is_in_them(capsys):
    report(UserError(["a\nb", "\x1b[2Jgone"]), speaker="process 1: ")
    assert capsys.readouterr().err == "process 1: error: a\\nb\nprocess 1: error: \\x1b[2Jgone\n"


def test_files_are_not_opened_in_the_place_of_a_closed_console(tmp_path):
    """Descriptors 0 to 2 are free then, and a library that writes to its console would write into a checkpoint."""
    program = (
        "import os\nfrom trainer_loop.runtime.streams import safe_streams\n"
        f"with safe_streams(), open({str(tmp_path / 'file')!r}, 'w') as file:\n"
        "    print(file.fileno() > 2, file=file); print('lost'); os.write(1, b'lost too')\n"
    )
    code = subprocess.run(
        ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", sys.executable, "-c", program], check=False
    ).returncode
    assert code == 0
    assert (tmp_path / "file").read_text() == "True\n"


def test_a_full_disk_does_not_change_the_exit_code_of_a_command(tmp_path):
    """The interpreter flushes at its end, and would end with 120."""
    with full_disk() as full:
        done = subprocess.run(
            [sys.executable, "-m", "trainer_loop.run", "config=none.yaml"],
            cwd=tmp_path,
            stdout=full,
            stderr=full,
            check=False,
        )
    assert done.returncode == 2
