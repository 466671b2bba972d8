"""Two hosts with an address each and a link between them, one process on each; the link is cut in mid-run."""

import re
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from machines import ROOT, Machine, count_steps, read_weights, require, wait_until

pytestmark = pytest.mark.cluster

TIMEOUT_SECONDS = 9


@pytest.fixture(scope="session", autouse=True)
def required() -> None:
    require("ip")


@pytest.fixture
def hosts(switch_on: Callable[..., Machine]) -> list[Machine]:
    hosts = [switch_on(environment={"GLOO_SOCKET_IFNAME": "wire"}) for _ in range(2)]
    wire = ["ip", "link", "add", "wire", "type", "veth", "peer", "name", "wire", "netns", str(hosts[1].pid)]
    subprocess.run(["nsenter", "--target", str(hosts[0].pid), "--net", *wire], check=True)
    for host, address in zip(hosts, ("10.0.0.1", "10.0.0.2"), strict=True):
        host.run("ip", "address", "add", f"{address}/24", "dev", "wire")
        host.run("ip", "link", "set", "wire", "up")
    return hosts


def launch(hosts: list[Machine], arguments: list[str], outputs: list[Path]) -> list[subprocess.Popen[str]]:
    """The command of launch/accelerate/multi_node.yaml on each host."""
    config = ROOT / "launch" / "accelerate" / "multi_node.yaml"
    command = ["accelerate", "launch", "--config_file", str(config), "--num_processes", "2"]
    command += ["--main_process_ip", "10.0.0.1"]
    return [
        host.start(*command, "--machine_rank", str(rank), "-m", "trainer_loop.run", *arguments, output=output)
        for rank, (host, output) in enumerate(zip(hosts, outputs, strict=True))
    ]


def test_a_cut_link_ends_both_sides_with_a_message_and_the_run_goes_on_when_it_is_back(
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
    told = [output.read_text() for output in outputs]
    assert all(codes), told
    assert seconds < TIMEOUT_SECONDS + 30, f"{seconds:.1f} seconds: {told}"
    assert re.search(r"^error: process 1 .*no longer answers.*the same command goes on", told[0], re.M), told[0]
    assert re.search(r"^process 1: error: process 0.* no longer answers.*the same command goes on", told[1], re.M), (
        told[1]
    )
    assert "Traceback" not in told[0].partition("error: ")[0]

    hosts[0].run("ip", "link", "set", "wire", "up")
    (directory / "slow").unlink()
    processes = launch(hosts, arguments, outputs)
    codes = [process.wait(timeout=300) for process in processes]
    assert codes == [0, 0], outputs[0].read_text() + outputs[1].read_text()
    assert "resumed at step 5 of" in outputs[0].read_text()
    assert read_weights(run) == uninterrupted
