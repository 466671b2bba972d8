"""Two hosts on one network, with processes on each: the link is cut during a run, or a host is lost."""

import json
import os
import re
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import fork_server
import pytest
import torch
from machines import ROOT, Machine, count_steps, read_weights, require, wait_until
from safetensors.torch import load_file

pytestmark = pytest.mark.cluster

TIMEOUT_SECONDS = 9
LONG_TIMEOUT_SECONDS = 30  # on few cores, four processes start at different times


@pytest.fixture(scope="session", autouse=True)
def required() -> None:
    require("ip")


@pytest.fixture
def hosts(switch_on: Callable[..., Machine]) -> list[Machine]:
    """Two hosts and a switch, so that the link of one host stays up when the other is lost."""
    hosts = [switch_on(environment={"GLOO_SOCKET_IFNAME": "wire"}) for _ in range(2)]
    switch = switch_on(setup="ip link add hub type bridge\nip link set hub up")
    for number, host in enumerate(hosts, start=1):
        wire = ["ip", "link", "add", "wire", "type", "veth", "peer", "name", f"port{number}", "netns", str(switch.pid)]
        subprocess.run(["nsenter", "--target", str(host.pid), "--net", *wire], check=True)
        switch.run("ip", "link", "set", f"port{number}", "master", "hub", "up")
        host.run("ip", "address", "add", f"10.0.0.{number}/24", "dev", "wire")
        host.run("ip", "link", "set", "wire", "up")
    return hosts


def launch(
    hosts: list[Machine], arguments: list[str], outputs: list[Path], *, num_processes: int = 2
) -> list[subprocess.Popen[str]]:
    """Start the command of launch/accelerate/multi_node.yaml on each host."""
    config = ROOT / "launch" / "accelerate" / "multi_node.yaml"
    command = ["accelerate", "launch", "--config_file", str(config), "--num_processes", str(num_processes)]
    command += ["--num_machines", str(len(hosts)), "--main_process_ip", "10.0.0.1"]
    return [
        host.start(*command, "--machine_rank", str(rank), "-m", "trainer_loop.run", *arguments, output=output)
        for rank, (host, output) in enumerate(zip(hosts, outputs, strict=True))
    ]


def test_a_cut_link_ends_both_sides_with_a_message_and_the_run_resumes_when_it_is_back(
    hosts: list[Machine], arguments: list[str], directory: Path, uninterrupted: bytes
):
    run = directory / "run"
    arguments = [*arguments, "checkpoint.every=5", f"train.timeout_minutes={TIMEOUT_SECONDS / 60}"]
    outputs = [directory / "0.out", directory / "1.out"]
    processes = launch(hosts, arguments, outputs)
    wait_until(lambda: count_steps(run) >= 7, "seven steps", output=outputs[0])
    hosts[0].run("ip", "link", "set", "wire", "down")
    cut = time.monotonic()
    codes = [process.wait(timeout=60) for process in processes]
    seconds = time.monotonic() - cut
    texts = [output.read_text() for output in outputs]
    assert all(codes), texts
    assert seconds < TIMEOUT_SECONDS + 30, f"{seconds:.1f} seconds: {texts}"
    assert re.search(r"^error: process 1 .*no longer answers.*the same command goes on", texts[0], re.M), texts[0]
    assert re.search(r"^process 1: error: process 0.* no longer answers.*the same command goes on", texts[1], re.M), (
        texts[1]
    )
    assert "Traceback" not in texts[0].partition("error: ")[0]

    hosts[0].run("ip", "link", "set", "wire", "up")
    (directory / "slow").unlink()
    processes = launch(hosts, arguments, outputs)
    codes = [process.wait(timeout=300) for process in processes]
    assert codes == [0, 0], outputs[0].read_text() + outputs[1].read_text()
    assert "resumed at step 5 of" in outputs[0].read_text()
    assert read_weights(run) == uninterrupted


# Each process records the rows of its steps.
_RECORDER = """
import json, os
from trainer_loop.data.loader import TrainLoader

make = TrainLoader.__getitem__

def recorded(loader, step):
    step_batch = make(loader, step)
    rows = [row for microbatch in step_batch.microbatches if not microbatch.is_dummy for row in microbatch.rows]
    with Path(f"rows-{os.environ.get('WORLD_SIZE', 1)}-{os.environ.get('RANK', 0)}").open("a") as file:
        file.write(json.dumps([step, rows]) + chr(10))
    return step_batch

TrainLoader.__getitem__ = recorded
"""


def read_rows(directory: Path, num_processes: int) -> dict[int, list[int]]:
    """Return step -> the sorted rows of all processes, from the files of a run with `num_processes`."""
    steps: dict[int, list[int]] = {}
    for rank in range(num_processes):
        for line in (directory / f"rows-{num_processes}-{rank}").read_text().splitlines():
            step, rows = json.loads(line)
            steps[step] = sorted(steps.get(step, []) + rows)
    return steps


def test_a_sharded_run_that_loses_a_host_resumes_on_the_other(
    hosts: list[Machine], arguments: list[str], directory: Path, tmp_path_factory: pytest.TempPathFactory
):
    """The run has two copies of the model, each sharded over the two processes of a host."""
    arguments = [
        *arguments,
        "model.overrides.hidden_dropout_prob=0",  # its random numbers depend on the process
        "model.overrides.attention_probs_dropout_prob=0",
        "batch.max_tokens=40",
        "checkpoint.every=5",
    ]
    sharded = [
        *arguments, "parallel={shard: full, replicate: auto}", f"train.timeout_minutes={LONG_TIMEOUT_SECONDS / 60}",
    ]  # fmt: skip
    alone = tmp_path_factory.mktemp("alone")
    lab = (directory / "lab.py").read_text() + _RECORDER
    for folder in (directory, alone):
        (folder / "lab.py").write_text(lab)
    with (alone / "output").open("w") as output:
        words = ["-m", "trainer_loop.run", *arguments]
        undisturbed = fork_server.start(words, cwd=alone, env=dict(os.environ), stdout=output, stderr=output)

    run = directory / "run"
    outputs = [directory / "0.out", directory / "1.out"]
    processes = launch(hosts, sharded, outputs, num_processes=4)
    wait_until(lambda: count_steps(run) >= 7 or processes[0].poll() is not None, "seven steps", output=outputs[0])
    hosts[1].switch_off()
    lost = time.monotonic()
    code = processes[0].wait(timeout=90)
    seconds = time.monotonic() - lost
    text = outputs[0].read_text()
    assert code, text
    assert seconds < LONG_TIMEOUT_SECONDS + 30, f"{seconds:.1f} seconds: {text}"
    assert re.search(r"^error: process [0-9, ]*[23] no longer answers.*the same command goes on", text, re.M), text

    (directory / "slow").unlink()
    (process,) = launch(hosts[:1], sharded, outputs[:1], num_processes=2)
    assert process.wait(timeout=300) == 0, outputs[0].read_text()
    assert "resumed at step 5 of" in outputs[0].read_text()
    assert undisturbed.wait(300) == 0, (alone / "output").read_text()

    steps = read_rows(alone, 1)
    before, after = read_rows(directory, 4), read_rows(directory, 2)
    assert sorted(steps) == list(range(40))
    assert list(after) == list(range(5, 40))
    assert {step: before.get(step) for step in range(5)} | after == steps
    assert all(steps[step] == before[step] for step in range(7))
    weights, expected = (load_file(folder / "run" / "model" / "model.safetensors") for folder in (directory, alone))
    assert weights.keys() == expected.keys()
    for name, weight in weights.items():
        torch.testing.assert_close(weight, expected[name], rtol=0, atol=1e-5)
