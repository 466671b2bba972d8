"""A search whose trials run the command that trains."""

import os
import re
from pathlib import Path

import pytest

pytest.importorskip("optuna")

import fork_server
from made_up import make_reviews, write_csv

from trainer_loop.cli.search import main
from trainer_loop.search import runs, worker

MODEL = "model={type: bert, tokenizer: train, vocab_size: 300, overrides: {hidden_size: 16, num_hidden_layers: 1, \
num_attention_heads: 2, intermediate_size: 32}}"


def test_trials_are_runs_and_the_best_config_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    def start(command, output):
        assert command[1:3] == ["-m", "trainer_loop.run"]
        return fork_server.start(command[1:], cwd=tmp_path, stdout=output, stderr=output, env=dict(os.environ))

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(runs, "start_process", start)
    monkeypatch.setattr(worker, "start_process", start)
    write_csv(tmp_path / "reviews.csv", make_reviews(60))
    base = [MODEL, "data={train: reviews.csv, max_length: 32}", "train={epochs: 2, precision: no}", "run_dir=tiny"]
    searched = ["search.space={optimizer.lr: [1e-3, 1e-9]}", "search.sampler=grid", "search.folds=2"]
    wrong = main([*base, *searched, "search.metric=acuracy"], poll_seconds=0.02)
    assert (wrong, capsys.readouterr().err) == (
        2,
        "error: search.metric: acuracy is not reported; evaluations have: accuracy, loss\n",
    )
    assert main([*base, *searched, "search.metric=-loss"], poll_seconds=0.02) == 0
    output = capsys.readouterr().out
    assert "best: trial 0, loss" in output
    assert len(re.findall(r"  4  +\d+\.\d  finished$", output, re.MULTILINE)) == 2, output  # steps of both folds
    found = tmp_path / "tiny-search"
    assert sorted(path.parent.name for path in found.rglob("model/trainer_loop.json")) == ["model"] * 4
    assert "fold: 2/2" in (found / "trial-0001" / "fold-2" / "config.yaml").read_text()
    done = fork_server.run(["-m", "trainer_loop.run", f"config={found / 'best.yaml'}", "dry_run=true"], cwd=tmp_path)
    assert done.returncode == 0, done.stderr
