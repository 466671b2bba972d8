"""The shell command of launch/kubernetes/trainjob.yaml, as Kubeflow Trainer starts it in two pods."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from machines import ROOT, count_steps, read_weights, wait_until
from scenarios import find_free_port

pytestmark = pytest.mark.cluster


class Pods:
    """Two pods of the TrainJob, simulated by two shells."""

    def __init__(self, directory: Path):
        self.directory = directory
        self.output = directory / "pods.out"
        self.shells: list[subprocess.Popen[bytes]] = []

    def start(self, arguments: list[str]) -> None:
        job = next(yaml.safe_load_all((ROOT / "launch" / "kubernetes" / "trainjob.yaml").read_text()))
        environment = {
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "OMP_NUM_THREADS": "1",
            "RUN_DIR": "run",
            "PET_NNODES": "2",
            "PET_NPROC_PER_NODE": "1",
            "PET_MASTER_ADDR": "127.0.0.1",
            "PET_MASTER_PORT": str(find_free_port()),
        }
        with self.output.open("a") as output:
            self.shells = [
                subprocess.Popen(
                    [*job["spec"]["trainer"]["command"], *arguments],
                    cwd=self.directory,
                    env={**environment, "PET_NODE_RANK": str(rank)},
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
                for rank in range(2)
            ]

    def wait(self) -> list[int]:
        return [shell.wait(timeout=300) for shell in self.shells]


@pytest.fixture
def pods(directory: Path) -> Iterator[Pods]:
    pods = Pods(directory)
    yield pods
    for shell in pods.shells:
        if shell.poll() is None:  # its launcher ends the processes it started
            os.killpg(shell.pid, signal.SIGTERM)
            shell.wait(timeout=300)


def test_pods_are_preempted_when_one_is_evicted_and_resume_when_they_are_recreated(
    pods: Pods, arguments: list[str], directory: Path, uninterrupted: bytes
):
    run = directory / "run"
    arguments = [argument for argument in arguments if not argument.startswith("run_dir=")]
    pods.start(arguments)
    wait_until(lambda: count_steps(run) >= 3, "three steps", output=pods.output)
    pods.shells[1].send_signal(signal.SIGTERM)  # as Kubernetes does: only to the first process of the pod
    codes = pods.wait()
    assert codes[0] == 75, pods.output.read_text()
    assert codes[1] in (75, 1), "this pod may end before the first has written its status"

    (directory / "slow").unlink()
    pods.start(arguments)
    assert pods.wait() == [0, 0], pods.output.read_text()
    assert "resumed at step" in pods.output.read_text()
    assert read_weights(run) == uninterrupted
