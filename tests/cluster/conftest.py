"""Fixtures: a run that a test can slow down, its uninterrupted result, and machines that are stopped after the test."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fork_server
import pytest
from machines import Machine, read_weights
from made_up import make_reviews, write_csv
from scenarios import make_ranks

# While a file named `slow` exists, each step waits, so that a test has time to act. The numbers stay the same.
_LAB = """
import time
from pathlib import Path
from torch.nn.functional import cross_entropy

def summed(logits, targets):
    if Path("slow").exists():
        time.sleep(0.2)
    return cross_entropy(logits, targets, reduction="sum")
"""


@pytest.fixture(scope="session")
def arguments(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Arguments of a run from scratch with dropout, which saves only when it is asked to stop; it writes into `run`."""
    directory = tmp_path_factory.mktemp("data")
    return [
        "model={type: bert, tokenizer: train, vocab_size: 300}",
        "model.overrides={hidden_size: 16, num_hidden_layers: 1, num_attention_heads: 2, intermediate_size: 32}",
        f"data.train={write_csv(directory / 'train.csv', make_reviews(61))}",
        "data.validation=",
        "data.max_length=32",
        f"data.cache_dir={directory / 'cache'}",
        "batch.size=8",
        "train={steps: 40, precision: no, threads: 1}",
        "optimizer.lr=1e-3",
        "loss.name=lab.summed",
        "checkpoint.every=never",
        "log.every=1",
        "run_dir=run",
    ]


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Working directory of a slowed-down run."""
    (tmp_path / "lab.py").write_text(_LAB)
    (tmp_path / "slow").touch()
    return tmp_path


@pytest.fixture(scope="session")
def uninterrupted(arguments: list[str], tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Weights of the run after training with two processes on this machine."""
    directory = tmp_path_factory.mktemp("uninterrupted")
    (directory / "lab.py").write_text(_LAB)
    output = directory / "output.txt"
    with output.open("w") as file:
        processes = [
            fork_server.start(
                ["-m", "trainer_loop.run", *arguments],
                cwd=directory,
                env=os.environ | {"OMP_NUM_THREADS": "1"} | rank,
                stdout=file,
                stderr=file,
            )
            for rank in make_ranks(2)
        ]
    assert [process.wait(300) for process in processes] == [0, 0], output.read_text()
    return read_weights(directory / "run")


@pytest.fixture
def switch_on(directory: Path) -> Iterator[Callable[..., Machine]]:
    """A function that starts machines, which are stopped after the test."""
    machines: list[Machine] = []

    def make(**options: Any) -> Machine:
        machines.append(Machine(directory, **options))
        return machines[-1]

    yield make
    for machine in machines:
        machine.switch_off()
