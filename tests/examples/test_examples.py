"""Every example as its page says it: it runs, is no longer than promised, and goes on after a kill, bit for bit."""

import inspect
import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests" / "resume"))

from harness import Run, assert_same  # noqa: E402

NAMES = sorted(path.parent.name for path in (ROOT / "examples").glob("*/config.yaml"))
SHORT = (
    "train.epochs=",
    "train={steps: 12, threads: 1, timeout_minutes: 1}",
    "data.limit={train: 200, validation: 40}",
    "checkpoint={every: 4, best: null}",
    "evaluate.every=6",
    "log.every=3",
)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = make_run(tmp_path_factory.mktemp("teacher"), ROOT / "configs" / "quickstart.yaml")
    run.finish()
    return run.path / "model"


def make_run(directory: Path, config: Path, *options: str, num_processes: int = 1) -> Run:
    """A short run of a config, in a directory that sees the examples as the root of the project does."""
    run = Run(directory, (f"config={config}", *SHORT, *options), num_processes)
    (directory / "examples").symlink_to(ROOT / "examples")
    return run


def test_there_are_examples():
    assert len(NAMES) >= 8


# On two processes make test has those with a step of their own; make test-slow has all.
WITH_A_STEP = ("adversarial", "distillation", "gan")
CASES = [(name, 1) for name in NAMES] + [
    pytest.param(name, 2, marks=[] if name in WITH_A_STEP else [pytest.mark.slow]) for name in NAMES
]


@pytest.mark.parametrize(("name", "num_processes"), CASES)
def test_it_learns_and_goes_on_after_a_kill_bit_for_bit(name, num_processes, teacher, tmp_path):
    options = [f"loop.args={{teacher: {teacher}}}", f"model.name={teacher}"] if name == "distillation" else []
    config = ROOT / "examples" / name / "config.yaml"
    whole = make_run(tmp_path / "whole", config, *options, num_processes=num_processes)
    whole.finish()
    losses = [row["loss"] for row in whole.rows() if "lr" in row]
    assert len(losses) == 4
    assert len(set(losses)) == 4, "nothing was learnt"
    killed = make_run(tmp_path / "killed", config, *options, num_processes=num_processes)
    killed.kill_at("half_checkpoint:8")
    assert "resumed at step 4" in killed.finish()
    assert_same(killed, whole.remember())


@pytest.mark.parametrize(
    ("place", "at_most"),
    [
        ("focal_loss.focal.focal", 5),
        ("contrastive_pairs.contrastive.ContrastivePairs", 40),
        ("distillation.distil.Distillation", 25),
        ("r_drop.r_drop.RDrop", 25),
        ("adversarial.fgm.Fgm", 25),
        ("gan.gan.GanLoop", 25),
        ("table.mlp.Diagnosis", 40),
        ("images.cnn.Digits", 40),
    ],
)
def test_it_is_no_longer_than_promised(place, at_most, monkeypatch):
    monkeypatch.syspath_prepend(ROOT)
    from examples.page import count_lines
    from trainer_loop.components import locate

    source = inspect.cleandoc(inspect.getsource(locate(f"examples.{place}", place="test")))
    assert 2 <= count_lines(source) <= at_most


@pytest.mark.parametrize(("name", "figure"), [("table", "accuracy"), ("images", "accuracy")])
def test_models_without_transformers_learn_what_they_are_shown(name, figure, tmp_path):
    run = Run(tmp_path, (f"config={ROOT / 'examples' / name / 'config.yaml'}",))
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    run.finish()
    record = json.loads((run.path / "model" / "trainer_loop.json").read_text())
    assert record["metrics"][figure] > 0.9
