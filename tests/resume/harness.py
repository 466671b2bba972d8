"""Runs of the command that are killed and started again, and checks of what they leave.

Each start is a separate process from the fork server, which can be killed like any other.
"""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import fork_server
from made_up import make_reviews, write_csv
from scenarios import make_ranks

from trainer_loop.record.checkpoint_files import find_fault, list_checkpoints
from trainer_loop.record.logs import MACHINE_METRICS
from trainer_loop.record.run_dir import RunDir

HERE = Path(__file__).parent
KILLED = -signal.SIGKILL
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}  # rounding depends on the number of threads
_TIMEOUT = 300.0
_TIMES_OF_STATE = {"train_seconds", "interval"}

# Three to six microbatches a step, eight steps an epoch; saves, evaluations and log rows are at different steps.
BASE = (
    "seed=56",  # the evaluations at steps 3 and 12 are the best so far
    "data.max_length=32",
    "batch={size: 8, max_tokens: 40}",
    "train={epochs: 2, precision: no, threads: 1, timeout_minutes: 1}",
    "optimizer.lr=3e-2",
    "evaluate={every: 3, max_tokens: 100}",
    "checkpoint={every: 2, best: accuracy}",
    "log.every=5",
)
DROPOUT = "model.overrides={hidden_dropout_prob: 0.1, attention_probs_dropout_prob: 0.1}"
NO_DROPOUT = "model.overrides={hidden_dropout_prob: 0.0, attention_probs_dropout_prob: 0.0}"
CASES = {
    "plain": (),
    "workers": ("data.num_workers=1",),
    "ema": ("ema.decay=0.9",),
    "plateau": ("scheduler={name: reduce_lr_on_plateau, args: {patience: 0, factor: 0.5}}",),
    "patience": ("train.patience=2",),
    "patience by a metric": ("train.patience=2", "train.patience_metric=-accuracy"),
    "bf16": ("train.precision=bf16",),
    "background": ("checkpoint.background=true",),
    "neftune": ("model.neftune_alpha=5",),
    "unfreezing": (
        "optimizer.unfreeze_every=6",
        "optimizer.layer_decay=0.5",
        "optimizer.groups=[{match: '*.pooler.*', lr: 1e-3, unfreeze_at: 9}]",
        "optimizer.freeze=[bert.embeddings.token_type_embeddings.weight]",
    ),
    "mixture": (
        "data.mixture=[{name: one, train: TRAIN, weight: 0.7}, {name: two, train: VALIDATION, weight: 0.3, "
        "loss_weight: 0.5}]",
    ),
    "lora": ("model.lora={r: 2, dropout: 0.1}", "train.max_grad_value=0.01"),
}
# For several processes, each of which holds a part of the model.
SHARDED = {
    "zero2": ("parallel.shard=zero2", "checkpoint.background=true"),
    "full": (
        *("parallel.shard=full", "ema.decay=0.9", "data.streaming=true", "data.label_names=[negative, positive]"),
    ),
}


# ------------------------------------------------------------------------------------------------------- processes


@dataclass(frozen=True)
class Ended:
    """How a process ended; a negative code is the signal that ended it."""

    code: int
    out: str
    err: str

    @property
    def problems(self) -> list[str]:
        """Error lines of stderr, without their `error: `."""
        return [line.partition("error: ")[2] for line in self.err.splitlines() if "error: " in line]

    @property
    def warnings(self) -> list[str]:
        return [line.removeprefix("warning: ") for line in self.out.splitlines() if line.startswith("warning: ")]

    def describe(self) -> str:
        return f"exit code {self.code}\n{self.out}\n{self.err}"


@dataclass
class Process:
    """One start of the command by the fork server, with its output in unnamed temporary files."""

    started: fork_server.Process
    out: IO[str]
    err: IO[str]

    @classmethod
    def start(cls, arguments: Sequence[str], *, directory: Path, environment: dict[str, str]) -> "Process":
        out, err = (tempfile.TemporaryFile("a+") for _ in range(2))  # noqa: SIM115 - closed with this object
        command = [str(HERE / "driver.py"), *arguments]
        env = os.environ | ENVIRONMENT | environment
        return cls(fork_server.start(command, cwd=directory, env=env, stdout=out, stderr=err), out, err)

    @property
    def pid(self) -> int:
        return self.started.pid

    def send(self, number: int) -> None:
        self.started.send_signal(number)

    def kill(self) -> None:
        """Kill the process and all its children."""
        self.started.kill_group()

    def is_running(self) -> bool:
        return self.started.poll() is None

    def wait(self, seconds: float = _TIMEOUT) -> Ended:
        timed_out = False
        try:
            code = self.started.wait(seconds)
        except subprocess.TimeoutExpired:
            timed_out = True
            self.kill()
            code = self.started.wait(seconds)
        for file in (self.out, self.err):
            file.seek(0)
        ended = Ended(code, self.out.read(), self.err.read())
        assert not timed_out, f"still running after {seconds} seconds\n{ended.describe()}"
        return ended


def launch(run: "Run", *options: str, program: Sequence[str], **environment: str) -> "subprocess.Popen[str]":
    """Start `accelerate launch` as a user does, with its output in `launch.log`. End it with `end_tree`."""
    with (run.directory / "launch.log").open("a") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "accelerate.commands.launch", *options, *program, *run.arguments, "run_dir=run"],
            cwd=run.directory,
            env=os.environ | ENVIRONMENT | environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            text=True,
        )


def end_tree(process: "subprocess.Popen[str]") -> None:
    """Kill a process and all its descendants, in any process group."""
    pids = [process.pid]
    for pid in pids:  # the loop also visits the pids that it appends
        pids += list_children(pid)
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait()


def list_children(pid: int) -> list[int]:
    """Return the running children of a process."""
    children = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = stat.read_text().rpartition(")")[2].split()  # after the name, which may contain any character
            if int(fields[1]) == pid and fields[0] != "Z":
                children.append(int(stat.parent.name))
    return children


def wait_until(condition: Callable[[], Any], *, what: str, seconds: float = 300.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds} seconds in vain: {what}"
        time.sleep(0.002)


# ------------------------------------------------------------------------------------------------------------ runs


@dataclass
class Run:
    """A run directory, named `run` in a separate directory, and the command that is started repeatedly."""

    directory: Path
    arguments: tuple[str, ...]
    num_processes: int = 1
    newest: int = 0  # step of the newest complete checkpoint seen so far
    processes: list[Process] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)

    @property
    def path(self) -> Path:
        return self.directory / "run"

    def start(self, *more: str, num_processes: int | None = None, **environment: str) -> list[Process]:
        """Start all processes of the command. `environment` has variables of driver.py, such as FAULT_AT."""
        number = num_processes or self.num_processes
        ranks = make_ranks(number) if number > 1 else [{}]
        arguments = [*self.arguments, "run_dir=run", *more]
        self.processes = [
            Process.start(arguments, directory=self.directory, environment=environment | rank) for rank in ranks
        ]
        return self.processes

    def kill(self) -> None:
        for process in self.processes:
            process.kill()

    def wait(self, seconds: float = _TIMEOUT) -> list[Ended]:
        try:
            return [process.wait(seconds) for process in self.processes]
        finally:
            self.kill()

    def run(self, *more: str, num_processes: int | None = None, **environment: str) -> list[Ended]:
        self.start(*more, num_processes=num_processes, **environment)
        return self.wait()

    def kill_at(self, place: str, *, rank: int = 0, together: bool = True) -> list[Ended]:
        """Start the run and let process `rank` kill itself at `place`; with `together`, kill all others at once."""
        self.start(FAULT_AT=place, FAULT_RANK=str(rank))
        if together:
            self.processes[rank].wait()
            self.kill()
        ended = self.wait()
        outputs = "\n".join(process.describe() for process in ended)
        assert ended[rank].code == KILLED, f"{place} was not reached\n{outputs}"
        self.check()
        return ended

    def finish(self, *more: str, num_processes: int | None = None, **environment: str) -> str:
        """Start the run, let it end with 0, and return the standard output of process 0."""
        ended = self.run(*more, num_processes=num_processes, **environment)
        assert all(process.code == 0 for process in ended), "\n".join(process.describe() for process in ended)
        assert all("Traceback" not in process.err for process in ended), ended[0].err
        self.check()
        return ended[0].out

    # -------------------------------------------------------------------------------------------------- afterwards

    def checkpoints(self) -> dict[int, str | None]:
        """Return step -> the fault of its checkpoint; None if it is complete."""
        return {int(path.name.partition("-")[2]): find_fault(path) for path in list_checkpoints(RunDir(self.path))}

    def check(self) -> None:
        """Check what always holds: no saved checkpoint is lost, and links point to complete checkpoints only."""
        complete = [step for step, fault in self.checkpoints().items() if fault is None]
        newest = max(complete, default=0)
        assert newest >= self.newest, f"step {self.newest} was saved, and {complete} are complete now"
        self.newest = newest
        for name in ("latest", "best"):
            link = self.path / "checkpoints" / name
            if link.is_symlink():
                assert find_fault(link.resolve()) is None, f"{name} -> {link.readlink()}: {find_fault(link)}"
        if (self.path / "metrics.jsonl").exists():
            *whole, _last = (self.path / "metrics.jsonl").read_text().split("\n")
            for line in whole[:-1]:
                json.loads(line)

    def rows(self) -> list[dict[str, Any]]:
        """Return the rows of metrics.jsonl without metrics that depend on time or machine."""
        rows = [json.loads(line) for line in (self.path / "metrics.jsonl").read_text().splitlines()]
        return [{name: value for name, value in row.items() if name not in MACHINE_METRICS} for row in rows]

    def remember(self) -> "Outcome":
        return Outcome.read(self)


@dataclass(frozen=True)
class Outcome:
    """Everything that a finished run leaves, except what depends on time."""

    rows: list[dict[str, Any]]
    model: dict[str, bytes]
    checkpoint: dict[str, Any]  # file of the newest checkpoint -> its content
    listed: dict[str, str]  # checkpoint or link -> where the link points
    status: dict[str, Any]
    predictions: dict[str, bytes]
    scored: dict[str, Any]  # from the report: step and worst rows of each set

    @classmethod
    def read(cls, run: Run) -> "Outcome":
        checkpoints = run.path / "checkpoints"
        newest = list_checkpoints(RunDir(run.path))[-1]
        state = json.loads((newest / "state.json").read_text())
        return cls(
            rows=run.rows(),
            model={file.name: file.read_bytes() for file in sorted((run.path / "model").iterdir())},
            checkpoint={
                file.name: _read(file)
                for file in sorted(newest.iterdir())
                if file.name.startswith(("model", "optimizer", "scheduler", "averages", "part"))
            }
            | {"state": {name: value for name, value in state.items() if name not in _TIMES_OF_STATE}},
            listed={
                path.name: str(path.readlink()) if path.is_symlink() else "" for path in sorted(checkpoints.iterdir())
            },
            status=json.loads((run.path / "status.json").read_text()),
            predictions={path.name: path.read_bytes() for path in sorted((run.path / "predictions").rglob("*.jsonl"))},
            scored=json.loads((run.path / "report.json").read_text())["sets"],
        )


def _read(file: Path) -> Any:
    """Return the content of a file for comparison bit by bit. Files of torch.save may differ with equal content."""
    import torch

    def spell_out(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return str(value.dtype), list(value.shape), value.contiguous().flatten().view(torch.uint8).numpy().tobytes()
        if isinstance(value, dict):
            return [(name, spell_out(item)) for name, item in value.items()]
        return [spell_out(item) for item in value] if isinstance(value, (list, tuple)) else repr(value)

    return spell_out(torch.load(file, weights_only=True)) if file.suffix == ".bin" else file.read_bytes()


def assert_same(run: Run, whole: Outcome) -> None:
    """Check that a run left the same bits as the uninterrupted run."""
    other = run.remember()
    steps = [row["step"] for row in other.rows if "lr" in row]
    assert steps == sorted(set(steps)), f"a step twice: {steps}"
    for row, same in zip(other.rows, whole.rows, strict=False):
        assert row == same, f"{row} instead of {same}"
    assert len(other.rows) == len(whole.rows), f"{len(other.rows)} rows instead of {len(whole.rows)}"
    for what in ("model", "checkpoint", "predictions"):
        one, two = getattr(whole, what), getattr(other, what)
        assert list(two) == list(one)
        for name, content in one.items():
            assert two[name] == content, f"{what}: {name} differs"
    assert other.listed == whole.listed, f"{other.listed} instead of {whole.listed}"
    assert other.status == whole.status, f"{other.status} instead of {whole.status}"
    assert other.scored == whole.scored, f"{other.scored} instead of {whole.scored}"


@dataclass
class Bench:
    """A model and reviews: creates runs, and stores the outcome of each uninterrupted run."""

    directory: Path
    model: Path
    train: Path
    validation: Path
    wholes: dict[tuple[Any, ...], Outcome] = field(default_factory=dict)
    seconds: dict[tuple[Any, ...], float] = field(default_factory=dict)

    @classmethod
    def make(cls, directory: Path) -> "Bench":
        return cls(
            directory,
            make_model(directory / "tiny"),
            write_csv(directory / "train.csv", make_reviews(61)),
            write_csv(directory / "validation.csv", make_reviews(20, seed=3)),
        )

    def run(self, directory: Path, *options: str, num_processes: int = 1) -> Run:
        """Create a run without starting it."""
        options = tuple(
            option.replace("TRAIN", str(self.train)).replace("VALIDATION", str(self.validation)) for option in options
        )
        is_mixed = any(option.startswith("data.mixture=") for option in options)
        arguments = (
            f"model.name={self.model}",
            f"data.train={'train' if is_mixed else self.train}",
            f"data.validation={self.validation}",
            f"data.cache_dir={self.directory / 'cache'}",
            *BASE,
            *(option for option in (DROPOUT,) if not any(other.startswith("model.overrides=") for other in options)),
            *options,
        )
        return Run(directory, arguments, num_processes)

    def whole(self, *options: str, num_processes: int = 1) -> Outcome:
        """Return the outcome of the uninterrupted run; trained once per set of options."""
        key = (*options, num_processes)
        if key not in self.wholes:
            run = self.run(self.directory / f"whole-{len(self.wholes)}", *options, num_processes=num_processes)
            start = time.monotonic()
            run.finish()
            self.seconds[key] = time.monotonic() - start
            self.wholes[key] = run.remember()
        return self.wholes[key]


def make_model(directory: Path) -> Path:
    """Write a model directory as on the hub: config, weights and tokenizer of a BERT without a head."""
    import torch
    from transformers import BertConfig, BertModel
    from wordpiece import make_wordpiece

    texts = [text for text, _ in make_reviews(300)]
    tokenizer = make_wordpiece(texts, vocab_size=300, max_length=64)
    tokenizer.save_pretrained(directory)
    torch.manual_seed(0)
    BertModel(
        BertConfig(
            vocab_size=len(tokenizer),
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=32,
            max_position_embeddings=64,
            pad_token_id=tokenizer.pad_token_id,
        )
    ).save_pretrained(directory)
    return directory


# ---------------------------------------------------------------------------------------------------- random kills


def kill_at_random(run: Run, dice: random.Random, *, seconds: float) -> bool:
    """Start the run and kill one or all of its processes at a random moment.

    The moment is a random change to a file, or at most `seconds` after the start of the command or of the training.

    Returns:
        Whether a process was killed; false if the run had already ended.
    """
    is_alone, only_one = run.num_processes == 1, False
    if dice.random() < 0.3:
        rank = 0 if is_alone else dice.randrange(run.num_processes)
        run.start(FAULT_AT=f"file:{dice.randint(1, 60 if rank == 0 else 12)}", FAULT_RANK=str(rank))
        run.processes[rank].wait()
    else:
        mark = run.directory / "training"
        mark.unlink(missing_ok=True)
        run.start(FAULT_AT="fit", FAULT=f"touch:{mark}", FAULT_RANK="0")
        if dice.random() < 0.8:
            wait_until(lambda: mark.exists() or not run.processes[0].is_running(), what="training begins")
        time.sleep(dice.uniform(0, seconds))  # the random moment
        only_one = not is_alone and mark.exists() and dice.random() < 0.3  # the others notice the lost process
    processes = list(run.processes)
    dice.shuffle(processes)
    for process in processes[:1] if only_one else processes:
        process.kill()
        time.sleep(dice.choice([0.0, 0.0, 0.01]))
    ended = run.wait()
    # If its data worker is killed first, a process may report this and end by itself.
    is_killed = [process.code == KILLED or "killed by signal: Killed" in process.err for process in ended]
    is_expected = [each or process.code in (0, 4) for each, process in zip(is_killed, ended, strict=True)]
    assert all(is_expected), "\n".join(process.describe() for process in ended)
    run.check()
    return any(is_killed)
