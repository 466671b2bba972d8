"""launch/slurm/train.sbatch in a real Slurm with two nodes, which are two slurmd on one machine."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from machines import ROOT, Machine, count_steps, read_status, read_weights, require, wait_until

pytestmark = pytest.mark.cluster

SBATCH = ROOT / "launch" / "slurm" / "train.sbatch"

# cred_expire: seconds until a requeued job starts again. Each node has an address besides 127.0.0.1, because Slurm
# needs one to resolve names.
_SLURM_CONF = """
ClusterName=test
SlurmctldHost=localhost
SlurmUser=root
AuthType=auth/munge
AuthInfo=cred_expire=5
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SchedulerParameters=batch_sched_delay=0,sched_interval=1
SlurmdParameters=config_overrides
GresTypes=gpu
KillWait=20
StateSaveLocation={state}/controller
SlurmdSpoolDir={state}/%n
SlurmctldPidFile=/run/slurmctld.pid
SlurmdPidFile=/run/slurmd-%n.pid
SlurmctldLogFile={state}/slurmctld.log
SlurmdLogFile={state}/%n.log
NodeName=n1 NodeHostname=localhost NodeAddr=10.0.0.1 Port=17001 CPUs=4 Gres=gpu:2
NodeName=n2 NodeHostname=localhost NodeAddr=10.0.0.2 Port=17002 CPUs=4 Gres=gpu:2
PartitionName=main Nodes=n1,n2 Default=YES MaxTime=INFINITE State=UP
"""

_START = """
ip addr add 10.0.0.1/32 dev lo
ip addr add 10.0.0.2/32 dev lo
printf '127.0.0.1 localhost\\n10.0.0.1 n1\\n10.0.0.2 n2\\n' >/run/hosts
mount --bind /run/hosts /etc/hosts
touch /run/gpu0 /run/gpu1
mkdir /run/munge
(umask 077 && head -c 128 /dev/urandom >/run/munge/key)
munged --key-file=/run/munge/key --pid-file=/run/munge/pid --log-file=/run/munge/log --seed-file=/run/munge/seed
slurmctld
slurmd -N n1
slurmd -N n2
"""


class Slurm:
    """The cluster and one job in it."""

    def __init__(self, machine: Machine):
        self.machine = machine
        self.job = ""
        self.output = Path()

    def submit(self, *options: str, arguments: list[str]) -> None:
        """Submit the shipped sbatch file as a user does."""
        self.job = self.machine.run("sbatch", "--parsable", *options, SBATCH, *arguments).strip()
        self.output = self.machine.directory / f"slurm-{self.job}.out"

    def signal(self, *options: str) -> None:
        self.machine.run("scancel", *options, self.job)

    def show(self, name: str) -> str:
        """Return a field of `scontrol show job`."""
        match = re.search(rf"\b{name}=(\S+)", self.machine.run("scontrol", "show", "job", self.job))
        assert match is not None
        return match[1]

    def has_ended(self) -> bool:
        return self.show("JobState") not in ("PENDING", "RUNNING", "COMPLETING")

    def wait_until(self, condition: Callable[[], bool], what: str) -> None:
        # Check seldom: each check calls the controller of Slurm, which then has less time for the job.
        wait_until(lambda: condition() or self.has_ended(), what, output=self.output, every=0.5)
        assert condition(), self.output.read_text()


@pytest.fixture(scope="session", autouse=True)
def required() -> None:
    require("slurmctld", "slurmd", "munged", "ip")


@pytest.fixture
def slurm(directory: Path, switch_on: Callable[..., Machine]) -> Slurm:
    state = directory / "slurm"
    (state / "controller").mkdir(parents=True)
    (state / "slurm.conf").write_text(_SLURM_CONF.format(state=state))
    (state / "gres.conf").write_text("Name=gpu File=/run/gpu[0-1]\n")  # GPUs that Slurm counts and the job does not use
    environment = {"SLURM_CONF": str(state / "slurm.conf"), "GLOO_SOCKET_IFNAME": "lo"}
    machine = switch_on(setup=_START, environment=environment)
    wait_until(
        lambda: machine.run("sinfo", "--noheader", "--format=%T %D").split() == ["idle", "2"],
        "two idle nodes",
        output=state / "slurmctld.log",
        every=0.5,
    )
    return Slurm(machine)


def test_a_preempted_job_on_two_nodes_is_requeued_and_ends_with_the_same_weights(
    slurm: Slurm, arguments: list[str], directory: Path, uninterrupted: bytes
):
    run = directory / "run"
    slurm.submit("--nodes=2", arguments=arguments)
    slurm.wait_until(lambda: count_steps(run) >= 3, "three steps")
    slurm.signal("--batch", "--signal=USR1")  # as Slurm does when the time is nearly over
    slurm.wait_until(lambda: slurm.show("Restarts") == "1", "requeued")
    saved = read_status(run)
    assert saved["ended"] == "preempted"

    slurm.wait_until(lambda: count_steps(run) >= saved["step"] + 3, "three more steps")
    slurm.signal("--signal=TERM")  # as Slurm does when it preempts, to all processes of all nodes
    slurm.wait_until(lambda: slurm.show("Restarts") == "2", "requeued again")
    (directory / "slow").unlink()

    slurm.wait_until(slurm.has_ended, "done")
    output = slurm.output.read_text()
    assert slurm.show("JobState") == "COMPLETED", output
    assert "2 x cpu" in output
    assert output.count("preempted at step") == 2
    assert f"resumed at step {saved['step']} of" in output
    assert read_weights(run) == uninterrupted


@pytest.mark.slow
def test_a_cancelled_job_is_saved_and_stays_cancelled(slurm: Slurm, arguments: list[str], directory: Path):
    run = directory / "run"
    slurm.submit("--nodes=1", "--gpus-per-node=2", "--cpus-per-task=2", arguments=arguments)
    slurm.wait_until(lambda: count_steps(run) >= 2, "two steps")
    slurm.signal()
    slurm.wait_until(slurm.has_ended, "ended")
    assert slurm.show("JobState") == "CANCELLED"
    assert slurm.show("Restarts") == "0"
    assert read_status(run)["ended"] == "preempted"
    assert "2 x cpu" in slurm.output.read_text(), "one process for each GPU"


def test_a_job_that_is_stopped_before_training_is_requeued(slurm: Slurm, arguments: list[str]):
    slurm.submit("--nodes=1", arguments=arguments)
    slurm.wait_until(lambda: slurm.output.exists(), "started")
    slurm.signal("--batch", "--signal=USR1")
    slurm.wait_until(lambda: slurm.show("Restarts") == "1", "requeued")
    # The message comes from the script, because a process may not have started yet.
    slurm.wait_until(lambda: "is back in the queue" in slurm.output.read_text(), "a line that says so")
    assert "step=" not in slurm.output.read_text()


@pytest.mark.slow
def test_a_failed_job_is_not_requeued_because_of_an_old_status_file(
    slurm: Slurm, arguments: list[str], directory: Path
):
    (directory / "run").mkdir()
    (directory / "run" / "status.json").write_text('{"ended": "preempted", "exit_code": 75, "step": 3}')
    slurm.submit("--nodes=1", arguments=[*arguments, "data.columns.text=txt"])
    slurm.wait_until(slurm.has_ended, "ended")
    assert slurm.show("JobState") == "FAILED", slurm.output.read_text()
    assert slurm.show("Restarts") == "0"
    assert "error: data.columns.text=txt: data.train has no such column" in slurm.output.read_text()
