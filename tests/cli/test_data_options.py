"""`data.missing` and `data.files` in runs, and what `predict` says of a file with labels beside what the run said."""

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
from made_up import make_reviews, write_csv
from test_bad_input import assert_refused
from test_predict import predict
from test_streaming import go_through_and_killed

from trainer_loop import Predictor


def last_row(run: Path, prefix: str) -> dict[str, float]:
    """The figures of the last evaluation of a split."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    row = [row for row in rows if any(name.startswith(prefix) for name in row)][-1]
    return {name.removeprefix(prefix): value for name, value in row.items() if name.startswith(prefix)}


def make_holes(rows: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Every tenth text and every tenth label is missing."""
    return [
        ("" if number % 10 == 3 else text, "" if number % 10 == 7 else label)
        for number, (text, label) in enumerate(rows)
    ]


def test_a_file_with_holes_is_refused_or_trained_without_them_and_predicted_beside_its_rows(
    command, arguments, reviews, tmp_path, capfd
):
    write_csv(reviews, make_holes(make_reviews(80)))
    assert_refused(
        command(*arguments),
        "data.train: column 'text' is null in ",
        "data.train: column 'label' is null in ",
        "fill it in or remove the row, or set data.missing=drop",
    )
    ended = command(*arguments, "data.missing=drop")
    assert ended.code == 0, ended.err
    assert f"train: {reviews}: 8 rows without 'text', 8 without 'label' were dropped" in ended.out
    assert "train: 48 rows; labels: " in ended.out
    assert "validation: 16 rows; labels: " in ended.out
    run = tmp_path / "run"
    assert_refused(command(*arguments, "data.missing=empty", f"run_dir={tmp_path / 'other'}"), "column 'label' is null")

    code, _, err = predict(capfd, f"model={run}", f"file={reviews}")
    assert code == 2
    assert err.strip().endswith("fill it in or remove the row, or set missing=drop (or empty)")
    code, out, err = predict(capfd, f"model={run}", f"file={reviews}", "missing=drop")
    assert (code, err) == (0, "")
    assert "80 rows written to" in out
    assert "8 rows without 'text' were written without a prediction (missing=drop)" in out
    assert "8 rows without a label in column 'label': left out of the metrics" in out
    assert "  rows      64\n" in out
    given = pd.read_csv(reviews)
    written = pd.read_csv(run / "predictions" / "reviews.csv")
    pd.testing.assert_frame_equal(written[["text", "label"]], given)
    assert (written["predicted_label"].isna() == given["text"].isna()).all()
    assert (written["probability"].isna() == given["text"].isna()).all()


def test_a_killed_stream_with_holes_goes_on_bit_for_bit_and_counts_no_dropped_row(
    command, arguments, tmp_path, monkeypatch
):
    rows = make_holes(make_reviews(80))
    write_csv(tmp_path / "part0.csv", rows[:35])
    write_csv(tmp_path / "part1.csv", rows[35:])
    write_csv(tmp_path / "validation.csv", make_reviews(20, seed=3))
    streaming = [
        *(argument for argument in arguments if "fraction" not in argument),
        f"data.train={tmp_path}/part*.csv",
        f"data.validation={tmp_path}/validation.csv",
        "data={streaming: true, shuffle_rows: 20, label_names: [negative, positive], missing: drop}",
        *("train.epochs=2", "checkpoint.every=3", "log.every=1"),
    ]
    ended = go_through_and_killed(command, streaming, tmp_path, monkeypatch, killed_in=[11])
    assert "train: 64 rows counted in" in ended.out
    assert "rows: 64, 8 per step; 8 steps per epoch, 16 steps in all" in ended.out
    assert f"train: {tmp_path}/part0.csv: 4 rows without 'text', 3 without 'label' were dropped" in ended.out
    assert f"train: {tmp_path}/part1.csv: 4 rows without 'text', 5 without 'label' were dropped" in ended.out


def test_raw_files_are_read_by_the_keys_that_the_errors_name(command, arguments, tmp_path):
    rows = [(f'"{text}' if number % 3 else text, label) for number, (text, label) in enumerate(make_reviews(60))]
    lines = ["text;label", *(f"{text.replace(';', ',')};{label}" for text, label in rows)]
    Path(tmp_path / "raw.csv").write_bytes("\n".join(lines).encode("utf-16"))
    train = f"data.train={tmp_path / 'raw.csv'}"
    assert_refused(command(*arguments, train), "set data.files.encoding=utf-16")
    more = ["data.files.encoding=utf-16"]
    assert_refused(command(*arguments, train, *more), "set data.files.delimiter=';'")
    more.append("data.files.delimiter=;")
    assert_refused(command(*arguments, train, *more), "set data.files.quoting=none")
    more.append("data.files.quoting=none")
    ended = command(*arguments, train, *more, "dry_run=true")
    assert ended.code == 0, ended.err
    assert "train: 45 rows; labels: " in ended.out
    assert_refused(command(*arguments, train, "data.files.encoding=utf-61"), "Python knows no encoding of this name")
    assert_refused(command(*arguments, train, "data.files.delimiter=::"), "allowed: one character, or tab")


@pytest.mark.parametrize("pairs", [False, True], ids=["texts", "pairs"])
def test_predict_gives_the_figures_of_the_run(command, arguments, tmp_path, capfd, pairs):
    """Loss with its arguments, metrics with theirs, names for other values: on the file the run evaluated on."""
    number_of = {"negative": 7, "positive": 3}
    table = [(text, number_of[label], text[::-1]) for text, label in make_reviews(120)]
    columns = ("review", "stars", "other")
    write_csv(tmp_path / "train.csv", table[:80], header=columns)
    write_csv(tmp_path / "dev.csv", table[80:], header=columns)
    ended = command(
        *(argument for argument in arguments if "fraction" not in argument and "data.train" not in argument),
        f"data.train={tmp_path / 'train.csv'}",
        f"data.validation={tmp_path / 'dev.csv'}",
        "data={columns: {text: review, label: stars}, label_names: {bad: 7, good: 3}}",
        *(["data.columns.text_pair=other"] if pairs else []),
        "loss.args={label_smoothing: 0.1, class_weights: [1.0, 3.0]}",
        "evaluate.metrics=[accuracy, {name: f1, args: {average: macro}, key: macro}, matthews_correlation]",
        "optimizer.lr=1e-2",
    )
    assert ended.code == 0, ended.err
    run = tmp_path / "run"
    wanted = last_row(run, "validation/")
    predictor = Predictor.load(run / "model")
    texts, others = [row[0] for row in table[80:]], [row[2] for row in table[80:]]
    labels = [predictor.label_values.index(row[1]) for row in table[80:]]
    rows = {"text": texts} | ({"text_pair": others} if pairs else {})
    metrics = predictor.predict_rows(rows, labels=labels).metrics
    assert metrics == pytest.approx(wanted, abs=1e-6)
    assert list(metrics) == list(wanted)

    shutil.copytree(run / "model", tmp_path / "copied")  # what it needs is in the exported model
    code, out, err = predict(capfd, f"model={tmp_path / 'copied'}", f"file={tmp_path / 'dev.csv'}", "output=out.csv")
    assert (code, err) == (0, "")
    printed = dict(line.split() for line in out.splitlines() if line.startswith("  "))
    assert printed == {name: f"{value:.4g}" for name, value in wanted.items()}
    assert "compared with column 'stars':" in out
    named = pd.read_csv(tmp_path / "dev.csv")
    named["stars"] = named["stars"].map({7: "bad", 3: "good"})
    named.to_parquet(tmp_path / "named.parquet")
    code, again, _ = predict(capfd, f"model={run}", f"file={tmp_path / 'named.parquet'}", "output=named.jsonl")
    assert [line for line in again.splitlines() if line.startswith("  ")] == [
        line for line in out.splitlines() if line.startswith("  ")
    ]
    code, out, _ = predict(capfd, f"model={run}", f"file={tmp_path / 'dev.csv'}", "output=no.csv", "metrics=false")
    assert (code, len(out.splitlines())) == (0, 1)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["text=x", "missing=drop"], "missing= goes with file=, not with text="),
        (["file=x.csv", "missing=skip"], "missing=skip: allowed: refuse, drop, empty"),
        (["file=x.csv", "quoting=single"], "quoting=single: allowed: auto, double, none"),
        (["file=x.csv", "delimiter=::"], "delimiter=::: it must be one character, or tab"),
        (["file=x.csv", "encoding=latin-one"], "encoding=latin-one: Python knows no encoding of this name"),
        (["file=x.csv", "overwrite=yes"], "overwrite=yes: allowed: true, false"),
        (["file=x.csv", "overwrite=true"], "overwrite=true goes with output="),
        (["file=x.csv", "metrics=false", "label_column=y"], "label_column= is for metrics, and metrics=false"),
    ],
)
def test_keys_of_files_are_checked(capfd, arguments, told):
    code, _, err = predict(capfd, "model=none", *arguments)
    assert code == 2
    (line,) = err.splitlines()
    assert told in line
