"""A process of the fork server is one of its own: what it is given, and how it ends."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import fork_server
import pytest

TELL = """
import json, os, signal, sys
told = [sys.argv, sys.path[0], os.getcwd(), os.environ.get("RANK"), oct(os.umask(0)), sys.stdin.read()]
plain = {"0", "1", str(signal.default_int_handler)}  # default, ignored, and Python's own
told += [sorted({str(signal.getsignal(number)) for number in signal.valid_signals()} - plain)]
told += [sys.stdout.encoding, sys.stdout.line_buffering]
print(json.dumps(told))
print("an error", file=sys.stderr)
"""


@pytest.fixture
def script(tmp_path: Path):
    def make(code: str) -> str:
        path = tmp_path / "script.py"
        path.write_text(code)
        return str(path)

    return make


def test_it_is_given_what_a_process_of_the_shell_is_given(script, tmp_path):
    command, env = [script(TELL), "one", "two words"], os.environ | {"RANK": "7"}
    real = subprocess.run(
        [sys.executable, *command],
        cwd=tmp_path,
        env=env,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    forked = fork_server.run(command, cwd=tmp_path, env=env)
    assert (forked.returncode, forked.stderr) == (0, real.stderr)
    differences = [
        pair for pair in zip(json.loads(forked.stdout), json.loads(real.stdout), strict=True) if pair[0] != pair[1]
    ]
    assert not differences


@pytest.mark.parametrize(
    ("code", "wanted"),
    [
        ("", 0),
        ("raise SystemExit", 0),
        ("raise SystemExit(75)", 75),
        ("raise SystemExit('told')", 1),
        ("raise ValueError('told')", 1),
        ("import os, signal; os.kill(os.getpid(), signal.SIGTERM)", -signal.SIGTERM),
        ("raise KeyboardInterrupt", -signal.SIGINT),
        ("import atexit, os; atexit.register(os._exit, 5)", 5),
    ],
)
def test_it_ends_as_a_process_of_the_shell_does(code, wanted, script, tmp_path):
    ended = fork_server.run([script(code)], cwd=tmp_path)
    assert ended.returncode == wanted
    assert ("told" in ended.stderr) == ("told" in code)


def test_two_of_them_draw_other_numbers(script, tmp_path):
    command = [script("import random, numpy, torch; print(random.random(), numpy.random.rand(), torch.rand(1))")]
    first, second = (fork_server.run(command, cwd=tmp_path).stdout.split() for _ in range(2))
    assert all(one != other for one, other in zip(first, second, strict=True))


def test_it_is_waited_for_and_killed_with_what_it_has_started(script, tmp_path):
    code = "import subprocess, time; print(subprocess.Popen(['sleep', '60']).pid, flush=True); time.sleep(60)"
    reader, writer = os.pipe()
    process = fork_server.start([script(code)], cwd=tmp_path, stdout=writer, stderr=writer)
    os.close(writer)
    with open(reader) as output:  # noqa: PTH123 - a file descriptor
        assert output.readline().strip().isdigit()
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.01)
        assert process.poll() is None
        process.kill_group()
        assert process.wait(10) == process.poll() == -signal.SIGKILL
        assert output.read() == "", "nobody is left who could write"
