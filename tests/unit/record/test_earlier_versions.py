"""Runs of version 0.1, which had a config key for the column of a text, of a second text and of a label."""

import json
from pathlib import Path

import pytest

from trainer_loop.record.checkpoint_files import find_changes, use_current_names
from trainer_loop.record.export import ExportRecord

BEFORE = {"seed": 1, "data.text": "sentence1", "data.text_pair": "sentence2", "data.label": "label"}


@pytest.mark.parametrize(
    ("columns", "changes"),
    [
        ({"text": "sentence1", "text_pair": "sentence2", "label": "label"}, {}),
        ({"text": "sentence1"}, {}),  # a task that reads no label, whose default name was noted all the same
        (
            {"text": "other", "label": "label"},
            {"data.columns": ({"text": "sentence1", "label": "label"}, {"text": "other", "label": "label"})},
        ),
    ],
)
def test_a_run_resumes_from_an_old_checkpoint_with_the_same_columns(columns, changes):
    assert find_changes(BEFORE, {"seed": 1, "data.columns": columns}) == changes


def test_old_names_are_replaced_and_current_values_stay():
    now = {"seed": 1, "data.columns": {"text": "a"}}
    assert use_current_names(BEFORE, now).keys() == {"seed", "data.columns"}
    assert use_current_names(now, now) == now


def test_the_record_of_an_old_model_is_read(tmp_path: Path):
    record = {
        "task": "sequence_classification", "text": "review", "text_pair": None, "max_length": 8, "step": 2,
        "num_steps": 3, "metrics": {}, "plan": {},
        "evaluation": {"label": "stars", "values": [1, 2], "metrics": [], "loss": {}},
    }  # fmt: skip
    (tmp_path / "trainer_loop.json").write_text(json.dumps(record))
    read = ExportRecord.read(tmp_path)
    assert read is not None
    assert read.columns == {"text": "review", "label": "stars"}
    assert (read.max_length, read.step) == (8, 2)
