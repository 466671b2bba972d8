"""Code of the user's own: which file is meant, that a change of it is told, and where it failed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import fork_server
import pytest

LOSS = """
import torch.nn.functional as F

CALLS = []

def mine(logits, targets):
    CALLS.append(1)
    assert len(CALLS) < {most}, "called too often"
    return {factor} * F.cross_entropy(logits, targets, reduction="sum")
"""

SIGNALLED = """
import os, signal, time
import torch.nn.functional as F

CALLS = []

def mine(logits, targets):
    CALLS.append(1)
    if len(CALLS) == {most}:
        os.kill(os.getpid(), signal.SIGTERM); time.sleep(1); raise RuntimeError("no compiler any more")
    return {factor} * F.cross_entropy(logits, targets, reduction="sum")
"""


@pytest.fixture
def own(arguments, tmp_path):
    """A run with a loss of this factor, in a process of its own, which imports it anew."""

    def run(*options: str, code: str = LOSS, factor: float = 1.0, most: int = 1000):
        (tmp_path / "own_losses.py").write_text(code.format(factor=factor, most=most))
        words = [*arguments, "loss.name=own_losses.mine", "checkpoint.every=4", *options]
        return fork_server.run(["-m", "trainer_loop.run", *words], cwd=tmp_path)

    return run


def test_a_changed_loss_is_told_when_a_run_goes_on_and_refused_where_it_has_no_effect(own):
    first = own()
    assert first.returncode == 0, first.stderr
    assert "loss.name (its code): own_losses.py " in first.stdout
    again = own()
    assert "is complete" in again.stdout
    changed = own(factor=3.0)
    assert changed.returncode == 2
    assert "is complete, so this has no effect: loss.name (its code) was own_losses.py" in changed.stderr
    longer = own("train.epochs=2", factor=3.0)
    assert longer.returncode == 0, longer.stderr
    assert "changed since the checkpoint: loss.name (its code) was own_losses.py" in longer.stdout


def test_where_a_loss_fails_in_training_is_in_the_log(own, tmp_path):
    ended = own("train.threads=1", most=6)
    assert ended.returncode == 1
    assert "Traceback" in ended.stderr
    told = "ended by own_losses.py:8: AssertionError: called too often"
    assert told in ended.stdout
    assert told in (tmp_path / "run" / "train.log").read_text()


def test_a_step_that_fails_after_the_signal_that_ends_the_job_is_preempted(own, tmp_path):
    """As torch.compile does, whose compilers get the signal, too."""
    ended = own("train.threads=1", code=SIGNALLED, most=6)
    assert ended.returncode == 75, ended.stderr
    assert "RuntimeError: no compiler any more" in ended.stderr
    told = "preempted by SIGTERM; what was under way was lost (own_losses.py:10: RuntimeError: no compiler any more); "
    assert f"{told}nothing is saved: the same command goes on from there" in ended.stdout
    assert json.loads((tmp_path / "run" / "status.json").read_text())["ended"] == "preempted"
    again = own("train.threads=1")
    assert again.returncode == 0, again.stderr


def test_the_current_directory_comes_before_a_checkout_that_is_installed(tmp_path):
    elsewhere, here = tmp_path / "elsewhere", tmp_path / "here"
    for place in (elsewhere, here):
        place.mkdir()
        (place / "own_parts.py").write_text(f"def loss(logits, targets): return {place.name!r}\n")
    code = f"import sys; sys.path[0] = 'bin'; sys.path.append({str(elsewhere)!r}); "
    code += "from trainer_loop.components import locate; print(locate('own_parts.loss', place='loss.name')(1, 2))"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    told = subprocess.run(
        [sys.executable, "-c", code], cwd=here, env=environment, capture_output=True, text=True, check=True
    )
    assert told.stdout == "here\n"
