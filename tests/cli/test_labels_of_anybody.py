"""Names in the data may hold what a terminal acts on: shown, they are spelled out; written, they are as they were."""

import csv
import json

import pytest
from made_up import make_reviews, write_csv

from trainer_loop.cli.predict import main as predict

NAMES = {"positive": "good\n2026-01-01T00:00:00 error: forged", "negative": '\x1b[31mbad\x1b[0m, "quoted"\r\u202e'}


@pytest.fixture
def trained(command, arguments, tmp_path):
    rows = [(text, NAMES[label]) for text, label in make_reviews(40)]
    write_csv(tmp_path / "reviews.csv", rows)
    ended = command(*arguments, f"data.test={tmp_path / 'reviews.csv'}", "evaluate.metrics=[accuracy]")
    assert ended.code == 0, ended.err
    return ended


def test_they_are_spelled_out_on_the_console_and_in_the_log(trained, tmp_path):
    log = (tmp_path / "run" / "train.log").read_text()
    for shown in (trained.out, log):
        assert "\\n2026-01-01T00:00:00 error: forged" in shown
        assert "\\x1b[31mbad" in shown
        assert all(line.isprintable() for line in shown.splitlines())
        assert not [line for line in shown.splitlines() if "error: forged" in line and "labels" not in line]


def test_they_are_as_they_were_in_what_is_predicted(trained, tmp_path, capfd, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "run" / "predictions" / "test.jsonl").read_text().splitlines()]
    assert {row["reference"] for row in rows} == set(NAMES.values())
    assert predict(["model=run", "file=reviews.csv", "output=judged.csv", "text_column=text"]) == 0
    with (tmp_path / "judged.csv").open(newline="", encoding="utf-8") as file:
        judged = list(csv.DictReader(file))
    assert len(judged) == 40
    assert {row["label"] for row in judged} == set(NAMES.values())
    assert {row["predicted_label"] for row in judged} <= set(NAMES.values())
    capfd.readouterr()
    assert predict(["model=run", "text=good"]) == 0
    assert capfd.readouterr().out.rstrip("\n").isprintable()
