"""A report shows metrics, predictions and rows of the same weights; those of other weights are left out or marked."""

import json
from pathlib import Path

import pytest
from test_run_report import OF_CLASSES, Page, make_run, score_classes

from trainer_loop.record.run_dir import EXPORT_RECORD
from trainer_loop.report.run_files import read_run
from trainer_loop.report.run_report import write_report


def evaluate(folder: Path, *, exported: int | None, scored: int | None) -> Path:
    """A run with evaluations at step 1 and 2. exported, scored: the steps of the weights and of the predictions."""
    run = make_run(folder, score_classes(9, 2), names=["no", "yes"], outputs=OF_CLASSES)
    rows = [{"step": step, "validation/accuracy": step / 10, "validation/rows": 9} for step in (1, 2)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    facts = json.loads((run / "report.json").read_text())
    facts["sets"] = {} if scored is None else {"validation": {"step": scored, "worst": []}}
    (run / "report.json").write_text(json.dumps(facts))
    if exported is not None:
        record = {
            "task": "a",
            "columns": {},
            "max_length": 8,
            "step": exported,
            "num_steps": 2,
            "metrics": {},
            "plan": {},
        }
        (run / "model").mkdir()
        (run / "model" / EXPORT_RECORD).write_text(json.dumps(record))
    return run


@pytest.mark.parametrize(
    ("exported", "scored", "accuracy", "title"),
    [
        (1, 1, 0.1, "Metrics of the exported weights"),
        (1, None, 0.1, "Metrics of the exported weights"),
        (None, 1, 0.1, "Metrics so far"),  # killed; the weights of step 1 are the best
        (None, None, 0.2, "Metrics so far"),
        (1, 2, 0.2, "Metrics so far"),  # made longer after its end, and under way
        (2, 1, 0.2, "Metrics of the exported weights"),
        (3, 2, 0.2, "Metrics of the exported weights"),  # without an evaluation after the last step
    ],
)
def test_metrics_are_those_of_the_predictions(
    exported: int | None, scored: int | None, accuracy: float, title: str, tmp_path: Path
):
    run = evaluate(tmp_path, exported=exported, scored=scored)
    assert read_run(run).list_metrics("validation")["validation"]["accuracy"] == accuracy
    assert title in Page(write_report(run)).text


@pytest.mark.parametrize(("exported", "scored", "is_shown"), [(1, 1, True), (2, 1, False), (3, 2, True)])
def test_predictions_of_other_weights_are_left_out(exported: int, scored: int, is_shown: bool, tmp_path: Path):
    run = evaluate(tmp_path, exported=exported, scored=scored)
    (run / "predictions" / "validation").mkdir()
    rows = (run / "predictions" / "test.jsonl").read_text()
    (run / "predictions" / "validation" / "validation.jsonl").write_text(rows)
    assert list(read_run(run).sets) == ["validation"] * is_shown


def test_incomplete_predictions_are_left_out(tmp_path: Path):
    run = make_run(tmp_path, score_classes(40, 3), names=["a", "b", "c"], outputs=OF_CLASSES)
    path = run / "predictions" / "test.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:30]))
    text = Page(write_report(run)).text
    assert f"{path} is left out: it has 30 rows, and 40 were scored" in text
    assert "By label" not in text
    path.write_text("[1]\n")
    assert f"{path} is left out: " in Page(write_report(run)).text


def test_without_facts_only_test_sets_that_were_scored_are_shown(tmp_path: Path):
    run = make_run(tmp_path, score_classes(40, 3), names=["a", "b", "c"], outputs=OF_CLASSES)
    (run / "report.json").unlink()
    (run / "predictions" / "validation").mkdir()
    path = run / "predictions" / "test.jsonl"
    (run / "predictions" / "validation" / "validation.jsonl").write_text(path.read_text())
    assert list(read_run(run).sets) == ["test"]
    rows = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run / "metrics.jsonl").write_text("".join(row for row in rows if "test/" not in row))
    assert not read_run(run).sets


def test_a_checkpoint_that_is_removed_during_the_report_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    run = make_run(tmp_path, score_classes(40, 3), names=["a", "b", "c"], outputs=OF_CLASSES)
    for step in (1, 2):
        (run / "checkpoints" / f"step-{step:08}").mkdir(parents=True)
        (run / "checkpoints" / f"step-{step:08}" / "state.json").write_text("{}")
    stat = Path.stat

    def find_it_gone(path: Path, **options: bool):
        if path.name == "state.json" and "step-00000001" in path.parts:
            raise FileNotFoundError(path)
        return stat(path, **options)

    monkeypatch.setattr(Path, "stat", find_it_gone)
    assert "step-00000002" in Page(write_report(run)).text
