"""report.html of run directories that these tests write file by file."""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from trainer_loop import UserError
from trainer_loop.cli.report import main
from trainer_loop.config.load import load_config, spell_config
from trainer_loop.record.predictions import Scores, write_predictions
from trainer_loop.record.report_facts import FORMAT
from trainer_loop.report.page import Table
from trainer_loop.report.rows import read_rows
from trainer_loop.report.run_files import read_run
from trainer_loop.report.run_report import _describe_data, make_report, make_report_to_share, write_report

GENERATOR = np.random.default_rng(0)
OF_CLASSES = {"predictions": "class", "probabilities": "probabilities", "references": "class"}


class Page(HTMLParser):
    """Checks that every tag is closed and nothing is loaded or run, and collects texts for assertions."""

    def __init__(self, path: Path):
        super().__init__()
        self.text = ""
        self.headings: list[int] = []
        self._open: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))
        assert not self._open
        assert self.headings[0] == 1
        assert all(below - above <= 1 for above, below in zip(self.headings, self.headings[1:], strict=False))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        assert tag not in ("script", "iframe", "link")
        assert not any(name.startswith("on") for name in given)
        assert str(given.get("href", "#")).startswith("#")
        assert str(given.get("src", "data:image/")).startswith("data:image/")
        assert tag != "img" or given["alt"]
        assert tag != "th" or given["scope"] in ("row", "col")
        if tag == "svg":
            assert given.get("aria-label") or given["aria-hidden"] == "true"
        if tag in ("h1", "h2", "h3", "h4"):
            self.headings.append(int(tag[1]))
        if tag not in ("meta", "img", "wbr"):
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in ("meta", "img", "wbr"):
            assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self._open:
            self.text += data


def make_run(
    folder: Path, scores: Scores, *, names: Sequence[str] | None, outputs: Mapping[str, str], texts: Sequence[str] = ()
) -> Path:
    """A finished run with a test set. texts: of the rows that are listed as the worst."""
    run = folder / "run"
    run.mkdir()
    (run / "config.yaml").write_text(spell_config(load_config(None, ["optimizer.lr=0.5", f"run_dir={run}"])))
    rows = [
        {"step": 1, "epoch": 0.5, "loss": 2.0, "grad_norm": None, "lr": 0.1, "rows_per_second": 9.0, "data_wait": 0.1},
        {"step": 2, "epoch": 1.0, "loss": None, "grad_norm": 1.0, "lr": 0.1, "rows_per_second": 8.0, "data_wait": 0.1},
        {"step": 2, "epoch": 1.0, "test/loss": None, **{f"test/{name}": one for name, one in scores.metrics.items()}},
        {"step": 2, "train_seconds": 70.0, "rows_seen": 64, "tokens_seen": 640, "peak_memory_bytes": 2**31},
    ]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_predictions(run / "predictions" / "test.jsonl", scores, origin_of="a/b.csv row {}".format, label_names=names)
    worst = [{"row": row, "inputs": {"text": text}} for row, text in enumerate(texts)]
    starts = [{"time": "2020-01-01T00:00:00", "step": 0, "ended": "preempted"}]
    starts.append({"time": "2020-01-01T01:00:00", "step": 1, "ended": "finished"})
    facts = {
        "format": FORMAT,
        "run": "0",
        "task": "sequence_classification",
        "outputs": outputs,
        "label_names": names,
        "starts": starts,
        "seconds": {"preparation": 3.0},
        "sets": {"test": {"step": None, "worst": worst}},
    }
    (run / "report.json").write_text(json.dumps(facts))
    return run


def score_classes(count: int, num_classes: int) -> Scores:
    references, predictions = GENERATOR.integers(0, num_classes, (2, count))
    metrics = {"accuracy": float((references == predictions).mean()), "rows": count}
    details = {"probability": np.full(count, 0.7), "reference_probability": np.full(count, 0.3)}
    return Scores(metrics, range(count), predictions, references, details | {"tokens": np.arange(count)})


def test_a_page_of_many_labels_with_odd_names_and_texts(tmp_path: Path):
    names = [f"label {number}" for number in range(200)]
    names[0], names[1] = "x" * 200, "<script>alert(1)</script>"
    texts = ["</p><img src=x onerror=alert(2)>", "a\nb\u202e{{ 7 * 7 }}"]
    run = make_run(tmp_path, score_classes(900, 200), names=names, outputs=OF_CLASSES, texts=texts)
    page = Page(write_report(run))
    assert all(text in page.text for text in (*names[:2], *texts))
    for message in (
        "test accuracy",
        "95% interval",
        "All 200 labels",
        "the 12 labels that are confused most",
        "Most frequent confusions",
        "Expected calibration error",
        "By length",
        "not finite",
        "gaps: not a finite number",
        "step 1: resumed on 2020-01-01 at 01:00:00, after the run was preempted",
        "1 min 10 s",
        "2.00 GB",
        "optimizer.lr",
    ):
        assert message in page.text, message
    assert (run / "report.html").stat().st_size < 500_000


@pytest.mark.parametrize(
    ("outputs", "predictions", "references", "names", "message"),
    [
        ({"predictions": "class", "references": "class"}, [1, 0, 1], [1, 1, 1], None, "share of errors"),
        (OF_CLASSES, [1, 1, 1], [1, 1, 1], ["no", "yes"], "By label"),
        ({"predictions": "number", "references": "number"}, [0.5, 1.0, 2.0], [0.0, 1.0, 2.0], None, "Predicted"),
        (
            {"predictions": "number", "references": "number"},
            [[0.5, 1.0]] * 3,
            [[0.0, 1.0]] * 3,
            ["a", "b"],
            "Predicted b",
        ),
        (
            {"predictions": "negative_log_likelihood", "references": "num_targets"},
            [5.0, 2.0, 3.0],
            [2, 1, 3],
            None,
            "nats",
        ),
        (
            {"predictions": "label_set", "references": "label_set"},
            [[True, False]] * 3,
            [[True, True]] * 3,
            ["a", "b"],
            "F1",
        ),
        (
            {"predictions": "tags", "references": "tags"},
            [[0, 1], [1]],
            [[1, -100], [1]],
            ["O", "B-PER"],
            "Confusion matrix",
        ),
        ({"predictions": "text", "references": "texts"}, ["yes", "no"], [["yes"], ["it is", "no"]], None, "1 - F1"),
        ({"predictions": "anything", "references": "anything"}, [1, 2], [1, 2], None, "Summary"),
    ],
)
def test_each_kind_of_prediction_is_read_as_it_was_and_shown(
    outputs: dict[str, str],
    predictions: list[Any],
    references: list[Any],
    names: list[str] | None,
    message: str,
    tmp_path: Path,
):
    def as_column(values: list[Any]) -> np.ndarray:
        if outputs["predictions"] in ("tags", "text"):
            lists = [np.array(one) if outputs["predictions"] == "tags" else one for one in values]
            return np.fromiter(lists, dtype=object, count=len(lists))
        return np.array(values)

    columns = as_column(predictions), as_column(references)
    scores = Scores(
        {"rows": len(predictions)}, range(len(predictions)), *columns, {"tokens": np.arange(len(predictions))}
    )
    run = make_run(tmp_path, scores, names=names, outputs=outputs, texts=["first", "second"])
    read = read_rows(run / "predictions" / "test.jsonl", outputs, names)
    for own, other in zip((read.predictions, read.references), columns, strict=True):
        assert own.shape == other.shape
        for one, known in zip(own, other, strict=True):
            are_tags = outputs["predictions"] == "tags"
            assert np.array_equal(one, np.maximum(known, -1) if are_tags else known)  # of a tag that is no target -1
    assert read.details["tokens"].tolist() == list(range(len(predictions)))
    assert message in Page(write_report(run)).text


def test_data_without_texts_has_no_columns_of_tokens():
    (table,) = _describe_data({"train": {"rows": 3, "texts": 3}, "test": {"rows": 2, "texts": 2}})
    assert isinstance(table, Table)
    assert (table.heads, table.rows) == (("split", "rows"), [("train", 3), ("test", 2)])


def test_two_entries_of_one_metric_have_their_own_intervals(tmp_path: Path):
    run = make_run(tmp_path, score_classes(60, 3), names=["a", "b", "c"], outputs=OF_CLASSES)
    facts = json.loads((run / "report.json").read_text())
    averages = ("macro", "micro")
    facts["metrics"] = [{"name": "f1", "key": name, "args": {"average": name}} for name in averages]
    (run / "report.json").write_text(json.dumps(facts))
    read = read_run(run)
    assert [metric.key for metric in read.load_metrics(read.sets["test"])] == ["macro", "micro"]


def test_the_page_to_share_has_no_rows_and_no_secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LAB_TOKEN", "0123456789abcdef")
    texts = np.array(["wrote this", "and that"], dtype=object)
    known = np.fromiter([["known one"], ["known two"]], dtype=object, count=2)
    scores = Scores({"rows": 2, "exact_match": 0.0}, range(2), texts, known, {"tokens": np.arange(2)})
    outputs = {"predictions": "text", "references": "texts"}
    run = make_run(tmp_path, scores, names=None, outputs=outputs, texts=["read this", "and that too"])
    (run / "config.yaml").write_text((run / "config.yaml").read_text().replace("lr: 0.5", "lr: 0123456789abcdef"))
    (run / "environment.json").write_text(json.dumps({"command": ["x", "token=0123456789abcdef"], "python": "3.11"}))
    (run / "train.log").write_text("12:00 warning: row 3 reads 'a secret diary'\n")
    facts = json.loads((run / "report.json").read_text()) | {"plan": ["train: with 0123456789abcdef"]}
    (run / "report.json").write_text(json.dumps(facts))
    write_report(run)
    hidden = ("wrote this", "known two", "read this", "and that too", "a/b.csv", "secret diary", "0123456789abcdef")
    whole = Page(run / "report.html").text
    assert all(text in whole for text in hidden)
    (tmp_path / "shared.html").write_text(make_report_to_share(run))
    shared = Page(tmp_path / "shared.html").text
    assert not any(text in shared for text in hidden)
    for message in ("exact_match", "Mistakes: test", "optimizer.lr", "***", "train: with ***", "3.11", "1 - F1"):
        assert message in shared, message


def keep_only_metrics(run: Path) -> None:
    for name in ("config.yaml", "report.json", "predictions/test.jsonl"):
        (run / name).unlink()


def drop_facts(run: Path) -> None:
    (run / "report.json").unlink()


def damage(run: Path) -> None:
    (run / "predictions" / "test.jsonl").write_text('{"place": "a 1", "prediction": "nobody", "reference": "a"}\n')
    (run / "environment.json").write_text("{")
    (run / "metrics.jsonl").write_text('{"step": 1, "loss": 1.0}\nnonsense\n{"step": 2, "lo')


@pytest.mark.parametrize(
    ("change", "there", "missing"),
    [
        (keep_only_metrics, "Learning rate", "By label"),
        (drop_facts, "By label", "Starts"),
        (damage, "environment.json is left out", "By label"),
    ],
)
def test_missing_or_damaged_files_are_left_out(
    change: Callable[[Path], None], there: str, missing: str, tmp_path: Path
):
    run = make_run(tmp_path, score_classes(40, 3), names=["a", "b", "c"], outputs=OF_CLASSES)
    change(run)
    text = Page(write_report(run)).text
    assert there in text
    assert missing not in text


@pytest.mark.parametrize(
    ("name", "before", "after", "message"),
    [
        ("status.json", '"finished"', "[]", "ended is []"),
        ("environment.json", '["x"]', "null", "command is None"),
        ("report.json", '"worst": [', '"worst": [7, ', "sets is {"),
        ("report.json", '"inputs": {"text": "one"}', '"inputs": {"text": null}', "sets is {"),
        ("report.json", '"starts": [', '"starts": [{"step": 1}, ', "starts is [{"),
        ("report.json", '"preparation": 3.0', f'"preparation": {10**400}', "seconds is {"),
        ("report.json", '"run": "0"', '"run": "0", "data": {"train": {"rows": "many"}}', "data is {"),
        ("predictions/test.jsonl", '"place": "a/b.csv row 0"', '"place": null', "a place that is no text"),
        ("predictions/test.jsonl", '"prediction": "a"', '"prediction": -1', "a class that is none"),
        ("predictions/test.jsonl", '"prediction": "a"', f'"prediction": {10**40}', "too large"),
    ],
)
def test_a_file_with_values_of_other_types_is_left_out_and_reported(
    name: str, before: str, after: str, message: str, tmp_path: Path
):
    run = make_run(tmp_path, score_classes(40, 3), names=["a", "b", "c"], outputs=OF_CLASSES, texts=["one"])
    (run / "status.json").write_text('{"ended": "finished", "exit_code": 0, "step": 2}')
    (run / "environment.json").write_text('{"command": ["x"]}')
    assert read_run(run).notes == []
    text = (run / name).read_text()
    assert before in text
    (run / name).write_text(text.replace(before, after, 1))
    read = read_run(run)
    assert len(read.notes) == 1
    assert read.notes[0].startswith(f"{run / name} is left out: ")
    assert message in read.notes[0]
    make_report(read, name="run", intervals={})


@pytest.mark.parametrize("value", ["[]", '"low"', "true", "NaN", str(10**400), "{}"])
def test_a_row_with_an_invalid_value_is_no_row(value: str, tmp_path: Path):
    run = make_run(tmp_path, score_classes(40, 3), names=["a", "b", "c"], outputs=OF_CLASSES)
    whole = (run / "metrics.jsonl").read_text()
    (run / "metrics.jsonl").write_text(whole.replace('"loss": 2.0', f'"loss": {value}'))
    assert len(read_run(run).metrics) == whole.count("\n") - 1


def test_the_last_counts_are_shown_as_far_as_they_are_known(tmp_path: Path):
    run = make_run(tmp_path, score_classes(40, 3), names=["a", "b", "c"], outputs=OF_CLASSES)
    whole = (run / "metrics.jsonl").read_text()
    (run / "metrics.jsonl").write_text(whole.replace('"train_seconds": 70.0, "rows_seen": 64', '"train_seconds": null'))
    page = Page(write_report(run, {})).text
    assert "2.00 GB" in page
    assert "time of training" not in page


@pytest.mark.parametrize(
    ("keys", "found"),
    [
        ({"seed": "x"}, ["accuracy"]),
        ({"seed": -1}, ["accuracy"]),
        ({"evaluate.metrics": ["accuracy", {"name": []}, {"name": "f1", "args": 5}, 7]}, ["accuracy"]),
        ({"evaluate.metrics": ["accuracy", {"name": "f1", "args": {"colour": 1}}]}, ["accuracy"]),
        ({"evaluate.metrics": 5}, []),
    ],
)
def test_metrics_that_can_be_computed_have_intervals(keys: dict[str, Any], found: list[str], tmp_path: Path):
    run = make_run(tmp_path, score_classes(40, 3), names=["a", "b", "c"], outputs=OF_CLASSES)
    read = read_run(run)
    read = replace(read, config={**read.config, "evaluate.metrics": ["accuracy"], **keys})
    assert list(read.find_intervals()["test"]) == found


def test_two_commands_may_write_one_page_at_the_same_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    run = make_run(tmp_path, score_classes(40, 3), names=["a", "b", "c"], outputs=OF_CLASSES)
    replace, others = os.replace, [write_report]

    def come_between(source: Path, target: Path) -> None:
        if others:
            others.pop()(run)
        replace(source, target)

    monkeypatch.setattr(os, "replace", come_between)
    write_report(run)
    assert not others
    assert sorted(path.name for path in run.glob("*report*")) == ["report.html", "report.json"]
    assert not list(run.glob(".*"))


def test_the_command(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    run = make_run(tmp_path, score_classes(40, 3), names=["a", "b", "c"], outputs=OF_CLASSES)
    assert main([str(run)]) == 0
    assert capfd.readouterr().out == f"written to {run / 'report.html'}\n"
    assert main([str(tmp_path)]) == 2
    assert "holds neither config.yaml nor metrics.jsonl" in capfd.readouterr().err
    (tmp_path / "search.html").touch()
    assert main([str(tmp_path)]) == 2
    assert "is of a search, whose page is search.html" in capfd.readouterr().err
    assert main([]) == 2
    odd = run.rename(tmp_path / os.fsdecode(b"\xff"))  # a name that is no UTF-8
    assert main([str(odd)]) == 0
    odd.rename(run)
    capfd.readouterr()
    with pytest.raises(UserError, match="is no directory"):
        write_report(tmp_path / "nowhere")
    (run / "report.html").unlink()
    (run / "report.html").mkdir()
    assert main([str(run)]) == 2
    assert "a folder is in its place" in capfd.readouterr().err
