"""Each benchmark's command on tiny sizes: it runs, and its result is complete. What it measures is not looked at."""

import importlib
import json
from pathlib import Path

import pytest

TEXTS = ("--max-length", "32")
COMMANDS = {
    "loop_overhead": ("--steps", "20"),
    "step_profile": ("--rows", "24", "--batch-size", "8", "--steps", "1", *TEXTS),
    "fine_tune": ("--rows", "16", "--held-out", "8", "--batch-size", "8", *TEXTS),
    "padding": ("--rows", "200", *TEXTS),
    "evaluation": ("--rows", "16", "--held-out", "20", "--batch-size", "8", *TEXTS),
    "serving": ("--rows", "16", "--clients", "4", "--seconds", "1", "--memory-seconds", "4"),
    "startup": ("--rows", "16", "--batch-size", "8", *TEXTS),
    "memory": ("--rows", "40", "--held-out", "8", "--steps", "1", "--times", "1", *TEXTS),
    "scaling": ("--rows", "16", "--held-out", "8", "--batch-size", "8", "--budgets", "64", *TEXTS),
    "sharding": ("--rows", "16", "--held-out", "8", "--batch-size", "8", *TEXTS),
    "at_scale": ("--processes", "2", "16", "--plan-rows", "100", "20000"),
    "checkpoint": (),
    "gpu": ("--tiny", "--batch-size", "4", "--steps", "4", "--warm", "1", "--curve-steps", "10"),
}
RESULT = {"gpu": "gpu_tiny"}
SIDES = {
    "loop_overhead": ("bare PyTorch", "trainer_loop", "accelerate", "transformers.Trainer"),
    "fine_tune": ("trainer_loop", "bare PyTorch", "Trainer, tutorial", "Trainer, best"),
    "evaluation": ("trainer_loop", "Trainer, tutorial", "Trainer, best"),
    "serving": ("trainer_loop", "one request at a time", "one client"),
}


QUICK = ("padding", "checkpoint")  # the others take minutes: `make test-slow`


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in COMMANDS]
)
def test_a_benchmark_runs_on_tiny_sizes(name: str, tmp_path: Path, tiny_model: Path):
    command = [*COMMANDS[name], "--rounds", "1", "--results", str(tmp_path)]
    if name == "serving" or ("--max-length" in command and name != "memory"):
        command += ["--model", str(tiny_model)]
    code = importlib.import_module(f"benchmarks.{name}").main(command)
    assert not code
    result = json.loads((tmp_path / f"{RESULT.get(name, name)}.json").read_text())
    assert result["machine"]["versions"]["torch"]
    assert result["comparisons"]
    for comparison in result["comparisons"]:
        assert all(len(side["rounds"]) == 1 for side in comparison["sides"].values()), comparison["title"]
    sides = result["comparisons"][0]["sides"]
    assert {*SIDES.get(name, ())} <= {*sides}


@pytest.mark.slow
def test_the_parity_table_has_every_side_of_every_model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    from benchmarks import parity

    names = ["BERT", "Llama causal LM"]
    monkeypatch.setattr(parity, "MODELS", names)
    assert parity.main(["--results", str(tmp_path), "--page", str(tmp_path / "parity.md")]) == 0
    models = json.loads((tmp_path / "parity.json").read_text())["models"]
    page = (tmp_path / "parity.md").read_text()
    assert list(models) == names
    for name, figures in models.items():
        assert list(figures) == list(parity.SIDES)
        assert figures["trainer_loop"]["one"] == {"norm_ratio": 1.0, "difference": 0.0}
        ratios = " | ".join(f"{side['four']['norm_ratio']:.6g}" for side in figures.values())
        assert f"| {name} | {ratios} |" in page
    assert page.count("| BERT | ") == 3


@pytest.mark.slow
def test_the_race_to_an_accuracy_ends_when_it_is_reached(tmp_path: Path, tiny_model: Path):
    from benchmarks.fine_tune import main

    words = ["--rows", "32", "--held-out", "40", "--batch-size", "8", "--evaluate-every", "2", *TEXTS, "--rounds", "1"]
    code = main([*words, "--until-accuracy", "0.05", "--model", str(tiny_model), "--results", str(tmp_path)])
    assert code == 0
    result = json.loads((tmp_path / "fine_tune_until_accuracy.json").read_text())
    _, updates = result["comparisons"]
    assert [side["median"] for side in updates["sides"].values()] == [2, 2]  # of 4: the first look was enough


def test_a_side_that_did_other_work_is_told_and_nothing_is_compared(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, tmp_path: Path
):
    from benchmarks import loop_overhead

    def call(function, arguments, *, environment):
        loss = 0.5 if arguments["side"] == "trainer_loop" else 0.4
        return {"seconds": 0.001, "updates": 20, "rows": 7, "loss": loss}

    monkeypatch.setattr(loop_overhead, "call", call)
    assert loop_overhead.main(["--rounds", "1", "--results", str(tmp_path)]) == 1
    assert "loss: trainer_loop 0.5, bare PyTorch 0.4" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_without_a_gpu_its_benchmark_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    import torch

    from benchmarks.gpu import main

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main([]) == 2
    (line,) = capsys.readouterr().out.splitlines()
    assert "no GPU" in line
