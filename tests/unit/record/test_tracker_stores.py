"""Real trackers and what is in their stores afterwards: a run that was ended or killed goes on as the same run there.

TensorBoard is in `make test`; the others take seconds to import, and processes of their own to kill.
"""

import json
import os
import sqlite3
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from accelerate import Accelerator

from trainer_loop.record.trackers import TrackedRun, start_trackers

IDENTITY = "0123456789abcdef"
LOSSES = {step: 1 / 2**step for step in range(1, 7)}
CONFIG = {"optimizer.lr": 0.5, "model.name": "bert"}


def track(name: str, steps: range, *, is_resumed: bool, is_killed: bool = False, identity: str = IDENTITY) -> None:
    """Log a part of a run in the current directory; a resumed one had logged up to its second step."""
    logged = [{"step": step, "loss": LOSSES[step]} for step in range(1, steps[0] + 2)] if is_resumed else []
    run = TrackedRun("spoons", "imdb", identity, CONFIG, is_resumed, logged, [Path("report.html").absolute()])
    accelerator = Accelerator(cpu=True, log_with=[name], project_dir=".")
    start_trackers(accelerator, run, arguments={}, warn=pytest.fail)
    for step in steps:
        accelerator.log({"loss": LOSSES[step]}, step=step)
    if is_killed:
        import time

        time.sleep(1)  # trackio writes twice a second
        os.kill(os.getpid(), 9)
    accelerator.end_training()


def track_in_a_process(name: str, steps: range, **options: Any) -> None:
    """The same; `is_killed` may kill it there."""
    program = f"from test_tracker_stores import track; track({name!r}, {steps!r}, **{options!r})"
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    environment = os.environ | {
        "PYTHONPATH": path,
        "WANDB_MODE": "offline",
        "MLFLOW_TRACKING_URI": f"sqlite:///{Path('mlflow.db').absolute()}",
        "TRACKIO_DIR": str(Path("trackio").absolute()),
        "CLEARML_OFFLINE_MODE": "1",
        "CLEARML_CACHE_DIR": str(Path("clearml").absolute()),
    }
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert done.returncode == (-9 if options.get("is_killed") else 0), done.stdout + done.stderr


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("report.html").write_text("<html>")


# ----------------------------------------------------------------------------------------------------- TensorBoard


def read_tensorboard(folder: Path) -> dict[int, list[float]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    losses: dict[int, list[float]] = {}
    for event in events.Scalars("loss"):
        losses.setdefault(event.step, []).append(event.value)
    return losses


def test_tensorboard_has_one_value_a_step_of_a_resumed_run_and_none_of_another_run():
    pytest.importorskip("tensorboard")
    track("tensorboard", range(1, 5), is_resumed=False, identity="of a run whose checkpoints were deleted")
    track("tensorboard", range(1, 5), is_resumed=False)
    track("tensorboard", range(3, 7), is_resumed=True)
    assert read_tensorboard(Path("spoons")) == {step: [loss] for step, loss in LOSSES.items()}
    written = [path.read_text() for path in Path("spoons").rglob("hparams.yml")]
    assert written == ["model.name: bert\noptimizer.lr: 0.5\n"] * 2, "one a run"


# ------------------------------------------------------------------------------------------------------- the others


def read_rows(database: str, query: str) -> list[tuple]:
    with sqlite3.connect(database) as connection:
        return connection.execute(query).fetchall()


@pytest.mark.slow
def test_mlflow():
    pytest.importorskip("mlflow")
    track_in_a_process("mlflow", range(1, 5), is_resumed=False, is_killed=True)
    track_in_a_process("mlflow", range(3, 7), is_resumed=True)
    ((run, name),) = read_rows("mlflow.db", "select run_uuid, name from runs")
    assert name == "imdb"
    assert read_rows("mlflow.db", "select step, value from metrics order by step") == list(LOSSES.items())
    assert dict(read_rows("mlflow.db", "select key, value from params")) == {
        "optimizer.lr": "0.5",
        "model.name": "bert",
    }
    assert dict(read_rows("mlflow.db", "select key, value from tags"))["trainer_loop.run"] == IDENTITY
    assert [path.read_text() for path in Path().glob(f"mlruns/*/{run}/artifacts/report.html")] == ["<html>"]


@pytest.mark.slow
def test_trackio():
    pytest.importorskip("trackio")
    track_in_a_process("trackio", range(1, 5), is_resumed=False, is_killed=True)
    track_in_a_process("trackio", range(3, 7), is_resumed=True)
    rows = read_rows("trackio/spoons.db", "select step, metrics, run_name from metrics order by step")
    assert [(step, json.loads(metrics)["loss"]) for step, metrics, _ in rows] == list(LOSSES.items())
    assert {name for *_, name in rows} == {"imdb-01234567"}
    ((config,),) = read_rows("trackio/spoons.db", "select config from configs")
    assert json.loads(config).items() >= CONFIG.items()
    assert read_rows("trackio/spoons.db", "select name, type from artifacts") == [("report.html", "report")]


def read_wandb(path: Path) -> Iterator[Any]:
    """The records of an offline run: a log of LevelDB behind 7 bytes, in blocks of 32 KiB."""
    from wandb.proto.wandb_internal_pb2 import Record

    content, place, parts = path.read_bytes(), 7, b""
    while place + 7 <= len(content):
        if (left := 32768 - place % 32768) < 7:
            place += left
            continue
        _, size, kind = struct.unpack_from("<IHB", content, place)
        parts += content[place + 7 : place + 7 + size]
        place += 7 + size
        if kind in (1, 4):  # whole, or the last part
            yield Record.FromString(parts)
            parts = b""


@pytest.mark.slow
def test_wandb_offline():
    """It does not keep what it got in the last seconds before a kill, so the first start ends by itself."""
    pytest.importorskip("wandb")
    track_in_a_process("wandb", range(1, 5), is_resumed=False)
    track_in_a_process("wandb", range(3, 7), is_resumed=True)
    losses = []
    for path in sorted(Path("wandb").glob("offline-run-*/*.wandb")):
        records = list(read_wandb(path))
        (run,) = [record.run for record in records if record.HasField("run")]
        assert (run.run_id, run.project, run.display_name) == (IDENTITY, "spoons", "imdb")
        (config,) = [record.config for record in records if record.HasField("config")]
        assert {item.key: json.loads(item.value_json) for item in config.update} == CONFIG
        for record in records:
            if record.HasField("history"):
                values = {item.key or item.nested_key[0]: item.value_json for item in record.history.item}
                losses.append((int(values["_step"]), json.loads(values["loss"])))
        assert (path.parent / "files" / "report.html").read_text() == "<html>"
    assert losses == list(LOSSES.items())


@pytest.mark.slow
def test_aim():
    """Each start is a run of its own, which is found when `aim up` has indexed it."""
    aim = pytest.importorskip("aim")
    track_in_a_process("aim", range(1, 7), is_resumed=False)
    (name,) = aim.Repo.from_path(".").list_all_runs()
    run = aim.Run(name, repo=".", force_resume=True, system_tracking_interval=None)
    assert run["hparams"] == CONFIG
    (losses,) = [metric.values.sparse_numpy()[1] for metric in run.metrics() if metric.name == "loss"]
    assert sorted(losses.tolist(), reverse=True) == pytest.approx(list(LOSSES.values()))
    run.close()


@pytest.mark.slow
def test_clearml_gets_a_task_for_each_start():
    """Without a server it finds no task again."""
    pytest.importorskip("clearml")
    losses = []
    for steps, is_resumed in ((range(1, 5), False), (range(5, 7), True)):
        track_in_a_process("clearml", steps, is_resumed=is_resumed)
    for path in sorted(Path("clearml").rglob("offline-*.zip"), key=os.path.getmtime):
        with zipfile.ZipFile(path) as session:
            losses += read_clearml(session.read)
            assert any(name.endswith("report.html") for name in session.namelist())
    assert losses == list(LOSSES.items())


def read_clearml(read: Callable[[str], bytes]) -> list[tuple[int, float]]:
    task = json.loads(read("task.json"))
    assert (task["project_name"], task["name"]) == ("spoons", "imdb")
    lines = [json.loads(line) for line in read("metrics.jsonl").splitlines()]
    events = [event for line in lines for event in (line if isinstance(line, list) else [line])]
    return [(event["iter"], event["value"]) for event in events if event.get("metric") == "loss"]
