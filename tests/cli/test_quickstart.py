"""The embedded default: it learns what counting words cannot, and its model is used at once."""

import json
import shlex
import subprocess
import sys
from pathlib import Path

import fork_server
import pytest
from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from trainer_loop.quickstart import reviews as synthetic_reviews


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory) -> tuple[Path, str]:
    """The run directory and the output of `python -m trainer_loop.run` without any argument."""
    directory = tmp_path_factory.mktemp("quickstart")
    done = subprocess.run(
        [sys.executable, "-m", "trainer_loop.run"], cwd=directory, capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    return directory / "runs" / "quickstart", done.stdout


def test_it_ends_above_95_percent_where_counting_words_stays_clearly_below(quickstart):
    run, _ = quickstart
    record = json.loads((run / "model" / "trainer_loop.json").read_text())
    train, validation = synthetic_reviews.train(), synthetic_reviews.validation()
    counted = []
    for vectorizer in (CountVectorizer(), TfidfVectorizer()):
        classifier = make_pipeline(vectorizer, LogisticRegression(max_iter=1000))
        classifier.fit([row["text"] for row in train], [row["label"] for row in train])
        counted.append(classifier.score([row["text"] for row in validation], [row["label"] for row in validation]))
    assert record["metrics"]["accuracy"] > 0.95
    assert record["metrics"]["rows"] == len(validation)
    assert max(counted) < 0.80


def test_it_prints_where_the_model_lies_and_the_command_that_predicts(quickstart):
    run, output = quickstart
    *_, model, predict = output.splitlines()
    assert model == "model: runs/quickstart/model"
    command = predict.removeprefix("predict: ")
    done = subprocess.run(command, shell=True, cwd=run.parents[1], capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stderr) == (0, "")
    labels = [done.stdout.partition(" ")[0]]
    for text in ("I am not happy.", "I am very unhappy with this phone."):
        _, *words = shlex.split(command.replace('"I am super delighted."', shlex.quote(text)))
        done = fork_server.run(words, cwd=run.parents[1])
        assert done.returncode == 0, done.stderr
        labels.append(done.stdout.partition(" ")[0])
    assert labels == ["label=positive", "label=negative", "label=negative"]
