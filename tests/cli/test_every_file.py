"""Every file of a run directory, and whatever may have happened to it: the run goes on, or says why in a line."""

import contextlib
import errno
import io
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from made_up import make_reviews, write_csv

from trainer_loop import load_config
from trainer_loop.cli.checkpoints import main as list_and_verify
from trainer_loop.cli.run import main
from trainer_loop.record.checkpoint_files import find_fault, list_checkpoints
from trainer_loop.record.logs import MACHINE_METRICS, read_metrics
from trainer_loop.record.run_dir import RunDir

RECORDS = [".lock", "config.yaml", "environment.json", "status.json", "metrics.jsonl", "train.log"]
LINKS = ["checkpoints/latest", "checkpoints/best"]
_OF_A_CHECKPOINT = ("state.json", "manifest.json")
FILES = [*RECORDS, *LINKS, "predictions/test.jsonl"]  # of which nothing is needed to go on


def make_folder(path: Path) -> None:
    path.mkdir()
    (path / "something").touch()


def cut(path: Path, content: bytes) -> None:
    path.write_bytes(content[: len(content) // 2])


FAULTS: dict[str, Callable[[Path, bytes], object]] = {
    "missing": lambda path, content: None,
    "empty": lambda path, content: path.write_bytes(b""),
    "cut": cut,
    "garbage": lambda path, content: path.write_bytes(bytes(range(256)) * 4),
    "another type": lambda path, content: path.write_bytes(b"[7, {}]\n"),
    "deep": lambda path, content: path.write_bytes(b'{"run": ' + b"[" * 100_000),
    "a folder": lambda path, content: make_folder(path),
}


@dataclass(frozen=True)
class Finished:
    """A run of four steps that has ended, the command that made it, and what two more steps make of it."""

    path: Path
    arguments: list[str]
    weights: bytes
    best_before: bytes
    rows: list[dict]


@pytest.fixture(scope="module")
def finished(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Finished]:
    with pytest.MonkeyPatch.context() as patch:
        root = tmp_path_factory.mktemp("finished")
        patch.chdir(root)
        patch.setattr(os, "fsync", lambda descriptor: None)
        train, test = (write_csv(root / f"{count}.csv", make_reviews(count)) for count in (16, 4))
        arguments = [
            *(f"model.name={tiny_model}", f"data.train={train}", f"data.validation={test}", f"data.test={test}"),
            *("data.max_length=16", "batch.size=4", "train.precision=no", "train.threads=1", "optimizer.lr=1e-3"),
            *("scheduler={name: constant, warmup: 0}", "log.every=1", "evaluate.every=4"),
            *("checkpoint={every: 2, best: -loss}", "run_dir=run"),
        ]
        assert main([*arguments, "train.steps=4"]) == 0
        shutil.copytree("run", "further", symlinks=True)
        assert main([*arguments, "train.steps=6", "run_dir=further"]) == 0
        before, further = ((root / run / "model" / "model.safetensors").read_bytes() for run in ("run", "further"))
        assert before != further
        yield Finished(root / "run", arguments, further, before, rows_of(root / "further"))


@pytest.fixture
def go_on(finished, command, tmp_path, monkeypatch):
    """Two more steps of the run, in `run` in the current directory."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    if not (tmp_path / "run").is_dir():
        shutil.copytree(finished.path, tmp_path / "run", symlinks=True)
    return lambda *more: command(*finished.arguments, "train.steps=6", *more)


def rows_of(run: Path) -> list[dict]:
    return [
        {name: value for name, value in row.items() if name not in MACHINE_METRICS}
        for row in read_metrics(run / "metrics.jsonl")
    ]


def assert_told(ended, *, code: int, problems: int = 1) -> None:
    """Without a traceback, and each thing in a line that a person can read."""
    assert ended.code == code, ended.out + ended.err
    lines = [*ended.out.splitlines(), *ended.err.splitlines()]
    assert all(line.isprintable() and len(line) < 1000 for line in lines), lines
    assert all(line.startswith("error: ") for line in ended.err.splitlines()), ended.err
    assert len(ended.problems) == (problems if code else 0), ended.err


def assert_whole(run: Path, finished: Finished, *, without: tuple[str, ...] = ()) -> None:
    """All that the run would have left in six steps, and nothing half written. without: records that could not be."""
    # What could not be saved is not the best, and the best before is exported.
    weights = finished.best_before if {*without} & {*_OF_A_CHECKPOINT} else finished.weights
    assert (run / "model" / "model.safetensors").read_bytes() == weights
    run_dir = RunDir(run)
    if "report.json" not in without:  # its rows of the validation set are those of the exported weights
        exported_step = json.loads((run / "model" / "trainer_loop.json").read_text())["step"]
        sets = json.loads(run_dir.report_facts.read_text())["sets"]
        assert sets.get("validation", {"step": exported_step})["step"] == exported_step
    assert [find_fault(path) for path in list_checkpoints(run_dir)] == [None] * len(list_checkpoints(run_dir))
    if "metrics.jsonl" not in without:
        steps = [row["step"] for row in rows_of(run)]
        assert steps == sorted(steps)
        assert steps[-1] == 6
        assert all(row in finished.rows for row in rows_of(run))
    if "status.json" not in without:
        assert json.loads(run_dir.status.read_text()) == {"ended": "finished", "exit_code": 0, "step": 6}
    assert load_config(str(run_dir.config)).train.steps == 6
    assert len(json.loads(run_dir.environment.read_text())["run"]) == 16
    assert len((run / "predictions" / "test.jsonl").read_text().splitlines()) == 4
    half = [path for path in run.rglob("*") if path.name.endswith((".tmp", ".old", ".partial"))]
    assert half == []


def warnings_of(ended) -> list[str]:
    lines = [line.removeprefix("warning: ") for line in ended.out.splitlines() if line.startswith("warning: ")]
    return [line for line in lines if "the run was planned for 4 steps" not in line]


def inflict(fault: str, path: Path) -> None:
    content = path.read_bytes() if path.is_file() else b"step-00000002"
    path.unlink()
    FAULTS[fault](path, content)


def restore(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink()


@pytest.mark.parametrize("fault", FAULTS)
def test_what_happened_to_all_files_that_a_run_can_do_without(fault, finished, go_on, tmp_path):
    run = tmp_path / "run"
    for file in FILES:
        inflict(fault, run / file)
    ended = go_on()
    if fault == "a folder":
        assert_told(ended, code=2, problems=len(RECORDS))
        assert sorted(ended.problems) == sorted(
            f"run_dir: run/{name} is a folder, in the place of a file; rename it" for name in RECORDS
        )
        for name in RECORDS:
            restore(run / name)
        ended = go_on()
        assert_told(ended, code=2)
        assert ended.problems[0].startswith("run/predictions/test.jsonl could not be written: Is a directory")
        assert [line.partition(" is a folder and stays as it is; ")[0] for line in warnings_of(ended)] == [
            f"run/{link}" for link in LINKS
        ]
        restore(run / "predictions" / "test.jsonl")
        for link in LINKS:
            restore(run / link)
        ended = go_on()
    assert_told(ended, code=0)
    if fault in ("garbage", "another type"):
        (warning,) = warnings_of(ended)
        assert warning.startswith("run/metrics.jsonl:1: this is no row of figures")
        assert warning.endswith("; set aside in metrics.jsonl.damaged")
    else:
        assert warnings_of(ended) == []
    assert_whole(run, finished)


@pytest.mark.parametrize("fault", [fault for fault in FAULTS if fault != "missing"])
def test_what_happened_to_the_record_of_an_exported_model(fault, finished, go_on, tmp_path):
    path = tmp_path / "run" / "model" / "trainer_loop.json"
    inflict(fault, path)
    before = {file: file.read_bytes() for file in (tmp_path / "run").rglob("*.j*") if file.is_file()}
    ended = go_on()
    assert_told(ended, code=2)
    assert ended.problems[0].startswith("run/model/trainer_loop.json cannot be read: ")
    assert ended.problems[0].endswith("; remove run/model, and the command that trained it writes it anew")
    del before[tmp_path / "run" / "status.json"]
    assert {file: file.read_bytes() for file in before} == before


def test_a_model_without_its_record_is_written_anew(finished, go_on, tmp_path):
    shutil.rmtree(tmp_path / "run" / "model")
    assert_told(go_on(), code=0)
    assert_whole(tmp_path / "run", finished)


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("file", ["manifest.json", "state.json", "model.safetensors", "optimizer.bin", "scheduler.bin"])
def test_what_happened_to_a_file_of_a_checkpoint(file, fault, finished, tmp_path, capfd):
    """That the one before is used then, and what comes of it is the same, is tested where runs are killed."""
    run = tmp_path / "run"
    shutil.copytree(finished.path, run, symlinks=True)
    inflict(fault, run / "checkpoints" / "step-00000004" / file)
    assert list_and_verify([str(run)]) == 2
    out, err = capfd.readouterr()
    (line,) = [line for line in out.splitlines() if "DAMAGED" in line]
    assert f"DAMAGED: {file}" in line
    assert all(line.isprintable() and len(line) < 300 for line in out.splitlines())
    assert err == ""


WRITTEN = {  # name -> how the error begins; None: training goes on
    ".lock": "run_dir: run/.lock cannot be written: ",
    "config.yaml": "run_dir: run/config.yaml cannot be written: ",
    "environment.json": "run_dir: run/environment.json cannot be written: ",
    "status.json": None,
    "metrics.jsonl": None,
    "train.log": None,
    "state.json": None,
    "manifest.json": None,
    "test.jsonl": "run/predictions/test.jsonl could not be written: ",
    "README.md": "run/model could not be written: ",
    "trainer_loop.json": "run/model could not be written: ",
}


@pytest.mark.parametrize("name", WRITTEN)
def test_a_file_for_which_there_is_no_room(name, finished, go_on, tmp_path, monkeypatch):
    open_file, told, reason = io.open, WRITTEN[name], "No space left on device"

    def refuse(file, mode="r", *args, **options):
        is_meant = isinstance(file, Path) and file.name.strip(".").removesuffix(".tmp") == name.strip(".")
        if is_meant and any(letter in mode for letter in "wax+"):
            raise OSError(errno.ENOSPC, reason, str(file))
        return open_file(file, mode, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(io, "open", refuse)
        ended = go_on()
    assert_told(ended, code=0 if told is None else 2)
    warnings = warnings_of(ended)
    if told is not None:
        assert ended.problems[0].startswith(told + reason)
        assert "; make room, and give the same command again" in ended.problems[0]
        assert warnings == []
        assert_told(go_on(), code=0)
    elif name == "status.json":
        assert warnings == []
    else:
        assert reason in warnings[0]
        assert len([warning for warning in warnings if reason in warning]) == (2 if name in _OF_A_CHECKPOINT else 1)
        assert name not in _OF_A_CHECKPOINT or warnings[-1].startswith("the last checkpoint is missing: ")
    other_weights = ("metrics.jsonl",) if name in _OF_A_CHECKPOINT else ()  # were scored at the end
    assert_whole(tmp_path / "run", finished, without=() if told is not None else (name, *other_weights))


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """`run` on a file system of 8 MB of its own."""
    directory = tmp_path / "run"
    directory.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(directory)]
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"no file system can be mounted, which root may: {done.stderr.strip()}")
    yield directory
    subprocess.run(["umount", "--lazy", str(directory)], check=True)


def fill(ballast: Path) -> None:
    """Until not one byte is free."""
    with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(bytes(4096)):
            pass


STATES = {  # what is there -> how the command ends on a disk that cannot be written
    "nothing": 2,
    "checkpoints": 2,
    "a finished run": 0,
}


@pytest.mark.parametrize("how", ["full", "read-only"])
@pytest.mark.parametrize("state", STATES)
def test_a_disk_that_cannot_be_written_at_all(state, how, disk, finished, command):
    if state != "nothing":
        shutil.copytree(finished.path, disk, symlinks=True, dirs_exist_ok=True)
    if state == "checkpoints":
        shutil.rmtree(disk / "model")
    if how == "full":
        fill(disk / "ballast")
    else:
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    ended = command(*finished.arguments, "train.steps=4")
    assert_told(ended, code=STATES[state])
    if STATES[state]:
        reason, remedy = ("No space left on device", "make room")
        if how == "read-only":
            reason, remedy = ("Read-only file system", "make it writable")
        assert f" be written: {reason}" in ended.problems[0]
        assert f"; {remedy}, and give the same command again" in ended.problems[0]
    else:
        assert "run is complete: 4 steps" in ended.out
    assert [path for path in disk.rglob("*") if path.name.endswith(".tmp")] == []
    if how == "full":
        (disk / "ballast").unlink()
    else:
        subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)
    assert_told(command(*finished.arguments, "train.steps=4"), code=0)
    weights = (disk / "model" / "model.safetensors").read_bytes()
    assert weights == (finished.path / "model" / "model.safetensors").read_bytes()
