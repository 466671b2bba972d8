"""Two machines, here two processes with separate search directories, share a study in PostgreSQL."""

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("optuna")
pytest.importorskip("psycopg")

from test_search import SPACE, fork, rows_of, wait

POSTGRES = next(iter(sorted(Path("/usr/lib/postgresql").glob("*/bin"))), None)


@pytest.fixture
def database() -> Iterator[str]:
    """The address of an empty PostgreSQL server."""
    if POSTGRES is None or (os.geteuid() == 0 and shutil.which("runuser") is None):
        pytest.skip("needs apt-get install postgresql")
    as_postgres = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []  # it refuses to run as root
    with tempfile.TemporaryDirectory() as folder, socket.socket() as found:
        if as_postgres:
            shutil.chown(folder, "postgres")
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
        found.close()
        data = f"{folder}/data"
        make = [*as_postgres, str(POSTGRES / "initdb"), "-A", "trust", "-U", "me", "-D", data, "--no-sync"]
        subprocess.run(make, check=True, capture_output=True, cwd="/")
        serve = [str(POSTGRES / "postgres"), "-D", data, "-p", str(port), "-k", folder, "-h", "127.0.0.1"]
        server = subprocess.Popen([*as_postgres, *serve], stderr=subprocess.DEVNULL, cwd="/")
        try:
            ready = [str(POSTGRES / "pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(port)]
            for _ in range(200):
                if subprocess.run(ready).returncode == 0:
                    break
                time.sleep(0.1)
            yield f"postgresql+psycopg://me@127.0.0.1:{port}/postgres"
        finally:
            server.terminate()
            server.wait()


@pytest.mark.slow
def test_machines_share_a_study_and_restart_only_their_own_trials(database: str, tmp_path: Path):
    shared = [SPACE, "search.trials=12", "search.name=shared", f"search.storage={database}"]
    one, other = tmp_path / "one", tmp_path / "other"
    first, second = fork(one, *shared), fork(other, *shared)
    while not list(one.glob("trial-*")):
        time.sleep(0.01)
    os.kill(first, signal.SIGKILL)
    assert wait(first) == -signal.SIGKILL
    assert wait(second) == 0, other.with_suffix(".txt").read_text()
    assert wait(fork(one, *shared)) == 0, one.with_suffix(".txt").read_text()
    rows = rows_of(one, *shared)
    assert [row[0] for row in rows] in ([*range(12)], [*range(13)])  # both may begin the last one at once
    assert None not in {row[3] for row in rows}
    trained = [{path.name for path in folder.glob("trial-*")} for folder in (one, other)]
    assert not trained[0] & trained[1]
    assert len(trained[0] | trained[1]) == len(rows)
    assert all(trained)
