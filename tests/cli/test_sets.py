"""Several validation and test sets by name, evaluation within an epoch, and the predictions of the test sets."""

import json

import pytest
from made_up import make_reviews, write_csv


@pytest.fixture
def sets(tmp_path, arguments):
    """The arguments of a run with two validation sets, of 12 and 20 rows."""
    files = {
        name: write_csv(tmp_path / f"{name}.csv", make_reviews(count, seed=seed))
        for name, count, seed in (("few", 12, 5), ("many", 20, 6))
    }
    kept = [argument for argument in arguments if not argument.startswith("data.validation_fraction")]
    return [*kept, f"data.validation={{few: {files['few']}, many: [{files['many']}]}}"], files


def rows_of(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_each_set_is_scored_by_its_name_and_one_of_their_figures_picks_the_best(command, sets, tmp_path):
    arguments, files = sets
    ended = command(
        *arguments, "evaluate.every=0.5", "checkpoint={every: 5, best: many/accuracy}", "data.train=train.csv"
    )
    assert ended.code == 2  # not there
    ended = command(*arguments, "evaluate.every=0.5", "checkpoint={every: 5, best: many/accuracy}")
    assert ended.code == 0, ended.err
    evaluated = [row for row in rows_of(tmp_path / "run") if "validation/few/loss" in row]
    assert [row["step"] for row in evaluated] == [5, 10]
    assert {row["validation/few/rows"] for row in evaluated} == {12}
    assert {row["validation/many/rows"] for row in evaluated} == {20}
    assert "validation.many: 20 rows" in ended.out
    assert "  many/accuracy" in ended.out
    figures = json.loads((tmp_path / "run" / "model" / "trainer_loop.json").read_text())["metrics"]
    assert figures["many/accuracy"] == max(row["validation/many/accuracy"] for row in evaluated)
    alone = command(
        *[argument for argument in arguments if not argument.startswith("data.validation=")],
        f"data.validation={files['many']}",
        "evaluate.every=0.5",
        "checkpoint.every=5",
        f"run_dir={tmp_path / 'alone'}",
    )
    assert alone.code == 0, alone.err
    losses = [row["validation/loss"] for row in rows_of(tmp_path / "alone") if "validation/loss" in row]
    assert losses == [row["validation/many/loss"] for row in evaluated]


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        (["checkpoint.best=accuracy"], "evaluations have: few/accuracy, few/loss, many/accuracy, many/loss"),
        (["checkpoint.best=many/loss"], "smaller is better: write -many/loss"),
        (["train={patience: 1, patience_metric: few/f1}"], "train.patience_metric: few/f1 is not reported"),
        (["scheduler.name=reduce_lr_on_plateau"], "set scheduler.metric, such as -few/loss"),
        (["data.validation={a b: x.csv}"], "'a b' is no name"),
        (["data.validation={a: 3.csv}"], "data.validation.a=3.csv"),
        (["data.validation={a: validation}"], "data.validation.a is 'validation', the name of a split"),
    ],
)
def test_what_is_wrong_with_sets_is_told_by_their_names(command, sets, options, wanted):
    ended = command(*sets[0], *options)
    assert ended.code == 2
    assert any(wanted in problem for problem in ended.problems), ended.err


def test_the_plateau_of_one_set_is_followed(command, sets, tmp_path):
    ended = command(
        *sets[0],
        "scheduler={name: reduce_lr_on_plateau, metric: few/accuracy, args: {patience: 0, threshold: 10.0}}",
        "evaluate.every=2",
        "log.every=1",
    )
    assert ended.code == 0, ended.err
    rates = [row["lr"] for row in rows_of(tmp_path / "run") if "lr" in row]
    assert rates == pytest.approx([1e-3] * 4 + [1e-4] * 2 + [1e-5] * 2 + [1e-6] * 2)


def test_what_was_said_of_every_test_row_is_kept_with_its_place(command, sets, tmp_path):
    arguments, files = sets
    ended = command(*arguments, f"data.test={{few: {files['few']}}}")
    assert ended.code == 0, ended.err
    kept = [json.loads(line) for line in (tmp_path / "run" / "predictions" / "few.jsonl").read_text().splitlines()]
    assert [row["place"].rpartition("/")[2] for row in kept] == [f"few.csv row {number}" for number in range(1, 13)]
    labels = [label for _, label in make_reviews(12, seed=5)]
    assert [row["reference"] for row in kept] == [str(label) for label in labels]
    (scored,) = [row for row in rows_of(tmp_path / "run") if "test/few/accuracy" in row]
    right = sum(row["prediction"] == row["reference"] for row in kept)
    assert scored["test/few/accuracy"] == pytest.approx(right / 12)


def test_a_run_killed_before_its_evaluation_scores_every_set_once(command, sets, tmp_path):
    arguments, _ = sets
    assert command(*arguments, "checkpoint.every=5", "evaluate.every=5").code == 0
    whole = rows_of(tmp_path / "run")
    again = [f"run_dir={tmp_path / 'again'}", f"resume={tmp_path / 'run' / 'checkpoints' / 'step-00000005'}"]
    ended = command(*arguments, "checkpoint.every=5", "evaluate.every=5", *again)
    assert ended.code == 0, ended.err
    evaluations = [row for row in rows_of(tmp_path / "again") if "validation/many/loss" in row]
    assert evaluations == [row for row in whole if "validation/many/loss" in row][-len(evaluations) :]
