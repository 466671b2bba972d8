"""Fixtures: a tiny pretrained model, a small CSV of made-up reviews, and the command in this or another process."""

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from made_up import make_reviews, write_csv
from transformers import BertConfig, BertModel
from wordpiece import make_wordpiece

from trainer_loop.cli.run import main


@dataclass(frozen=True)
class Ended:
    code: int
    out: str
    err: str

    @property
    def problems(self) -> list[str]:
        """Lines of stderr without their `error: `."""
        return [line.removeprefix("error: ") for line in self.err.splitlines() if line.startswith("error: ")]


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory of a model as on the hub: config, weights and tokenizer of a BERT without a head."""
    directory = tmp_path_factory.mktemp("tiny-bert")
    tokenizer = make_wordpiece([text for text, _ in make_reviews(300)], vocab_size=300, max_length=64)
    tokenizer.save_pretrained(directory)
    torch.manual_seed(0)
    BertModel(
        BertConfig(
            vocab_size=len(tokenizer),
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=32,
            max_position_embeddings=64,
            pad_token_id=tokenizer.pad_token_id,
        )
    ).save_pretrained(directory)
    return directory


@pytest.fixture
def reviews(tmp_path: Path) -> Path:
    return write_csv(tmp_path / "reviews.csv", make_reviews(80))


@pytest.fixture
def arguments(tiny_model: Path, reviews: Path, tmp_path: Path) -> list[str]:
    """Arguments of a complete small run, to which a test adds its own."""
    return [
        f"model.name={tiny_model}",
        f"data.train={reviews}",
        "data.validation_fraction=0.25",
        "data.max_length=32",
        "batch.size=8",
        "train.epochs=1",
        "train.precision=no",
        "optimizer.lr=1e-3",
        f"run_dir={tmp_path / 'run'}",
    ]


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture) -> Callable[..., Ended]:
    """A function that runs the command in this process, with tmp_path as the current directory."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> Ended:
        from accelerate.state import AcceleratorState, GradientState

        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()
        capfd.readouterr()
        code = main(list(arguments))
        captured = capfd.readouterr()
        return Ended(code, captured.out, captured.err)

    return run


@pytest.fixture
def subprocess_command(tmp_path: Path) -> Callable[..., Ended]:
    """A function that runs the command in a separate process, as a user does."""

    def run(*arguments: str, launcher: tuple[str, ...] = (), environment: dict[str, str] | None = None) -> Ended:
        result = subprocess.run(
            [sys.executable, "-m", *launcher, *(("-m",) if launcher else ()), "trainer_loop.run", *arguments],
            cwd=tmp_path,
            env={**os.environ, **(environment or {})},
            capture_output=True,
            text=True,
            timeout=300,
        )
        return Ended(result.returncode, result.stdout, result.stderr)

    return run
