"""Comparison of runs: tests on the same rows, compared with known results, and the page."""

import itertools
import json
import shutil
from math import comb
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_run_report import OF_CLASSES, Page, make_run

from trainer_loop.cli.compare import main
from trainer_loop.config.load import load_config, spell_config
from trainer_loop.record.predictions import Scores
from trainer_loop.report.paired import adjust, compare_rows, have_same_rows
from trainer_loop.report.rows import ScoredRows

OF_NUMBERS = {"predictions": "number", "references": "number"}


def make_rows(kinds: dict[str, str], predictions: Any, references: Any) -> ScoredRows:
    places = [f"a.csv row {number}" for number in range(len(references))]
    return ScoredRows(kinds, places, np.asarray(predictions), np.asarray(references), {}, [])


@pytest.mark.parametrize(("first_only", "second_only"), [(3, 12), (0, 1), (0, 0), (40, 40), (1, 9)])
def test_classes_are_compared_by_mcnemars_exact_test(first_only: int, second_only: int):
    count = first_only + second_only
    references = np.zeros(count + 50, dtype=int)
    first, second = references.copy(), references.copy()
    second[:first_only] = 1
    first[first_only:count] = 1
    first[-5:] = second[-5:] = 1  # both are wrong
    found = compare_rows(make_rows(OF_CLASSES, first, references), make_rows(OF_CLASSES, second, references))
    assert found is not None
    tail = sum(comb(count, number) for number in range(min(first_only, second_only) + 1)) / 2**count
    assert found.p_value == pytest.approx(min(1.0, 2 * tail))
    assert found.test == "McNemar's exact test"
    assert found.errors == pytest.approx(((second_only + 5) / (count + 50), (first_only + 5) / (count + 50)))
    assert list(found.first_only) == list(range(first_only))
    assert list(found.second_only) == list(range(first_only, count))
    assert found.low <= found.errors[1] - found.errors[0] <= found.high


def test_rows_with_the_largest_difference_in_confidence_come_first():
    references, second = np.zeros(4, dtype=int), np.array([1, 1, 0, 1])
    sure = [
        ScoredRows(OF_CLASSES, ["a", "b", "c", "d"], own, references, {"reference_probability": np.array(sure)}, [])
        for own, sure in ((references, [0.6, 0.9, 0.9, 0.8]), (second, [0.4, 0.1, 0.6, 0.3]))
    ]
    found = compare_rows(*sure)
    assert found is not None
    assert list(found.first_only) == [1, 3, 0]


def test_numbers_are_compared_by_all_signs_of_their_differences():
    references = np.zeros(8)
    first, second = np.array([1, 2, 3, 1, 5, 2, 1, 1.0]), np.array([0.5, 1, 3.5, 0.2, 2, 1.9, 1, 0.3])
    found = compare_rows(make_rows(OF_NUMBERS, first, references), make_rows(OF_NUMBERS, second, references))
    differences = (second - first)[second != first]
    sums = [sum(signs * differences) for signs in itertools.product((1, -1), repeat=len(differences))]
    assert found is not None
    assert found.p_value == pytest.approx(np.mean(np.abs(sums) >= abs(differences.sum()) - 1e-12))
    assert found.first_only[0] == 2
    assert found.second_only[0] == 4


@pytest.mark.parametrize("differs", [0, 1, 2])
def test_few_different_rows_give_a_large_p_value(differs: int):
    second = np.array([1.0] * differs + [0.0] * (5 - differs))
    found = compare_rows(make_rows(OF_NUMBERS, np.zeros(5), np.zeros(5)), make_rows(OF_NUMBERS, second, np.zeros(5)))
    assert found is not None
    assert found.p_value == (0.5 if differs == 2 else 1.0)


def test_a_loss_that_is_larger_by_the_same_amount_a_token_has_no_spread():
    counts = np.random.default_rng(0).integers(1, 500, 60)
    first, of_tokens = counts * 2.0, {"predictions": "negative_log_likelihood", "references": "num_targets"}
    found = compare_rows(make_rows(of_tokens, first, counts), make_rows(of_tokens, first + 0.1 * counts, counts))
    assert found is not None
    assert (found.low, found.high) == pytest.approx((0.1, 0.1))


def test_equal_models_differ_significantly_as_often_as_the_level_says():
    generator = np.random.default_rng(1)
    references = np.zeros(40)
    p_values, covered = [], 0
    for _ in range(200):
        first, second = generator.normal(size=(2, 40))
        found = compare_rows(make_rows(OF_NUMBERS, first, references), make_rows(OF_NUMBERS, second, references))
        assert found is not None
        p_values.append(found.p_value)
        covered += found.low <= 0 <= found.high
    assert 0.01 <= np.mean(np.array(p_values) < 0.05) <= 0.10
    assert 0.90 <= covered / 200 <= 0.99


def test_p_values_of_several_comparisons_are_adjusted_as_holm_does():
    assert adjust([0.01, 0.04, 0.03, 0.5]) == pytest.approx([0.04, 0.09, 0.09, 0.5])
    assert adjust([0.7, 0.6]) == [1.0, 1.0]
    assert adjust([]) == []


def test_other_rows_or_other_labels_are_not_compared():
    rows = make_rows(OF_CLASSES, [0, 1], [0, 0])
    assert have_same_rows(rows, make_rows(OF_CLASSES, [1, 1], [0, 0]))
    assert not have_same_rows(rows, make_rows(OF_CLASSES, [1, 1], [0, 1]))
    assert not have_same_rows(rows, make_rows(OF_CLASSES, [1], [0]))


def make_runs(folder: Path) -> list[str]:
    """Two repeats of one config, a better run of another config, and a run with other rows."""
    generator = np.random.default_rng(0)
    references = generator.integers(0, 2, 120)
    runs = []
    for name, seed, lr, errors in (("a1", 1, 0.5, 40), ("a2", 2, 0.5, 30), ("b", 1, 0.1, 5), ("c", 1, 0.2, 5)):
        predictions = references.copy()
        predictions[:errors] = 1 - predictions[:errors]
        count = 119 if name == "c" else 120
        accuracy = float((predictions == references).mean())
        scores = Scores(
            {"accuracy": accuracy, "rows": count}, range(count), predictions[:count], references[:count], {}
        )
        (folder / name).mkdir()
        texts = [f"text <b>{number}</b>" for number in range(errors)]
        run = make_run(folder / name, scores, names=["no", "yes"], outputs=OF_CLASSES, texts=texts)
        run = run.rename(folder / f"run_{name}")
        overrides = [f"optimizer.lr={lr}", f"seed={seed}", f"run_dir={run}", f"data.train={'long/' * 20}{name[0]}.csv"]
        (run / "config.yaml").write_text(spell_config(load_config(None, overrides)))
        runs.append(str(run))
    return runs


def test_repeats_are_one_column_and_other_configs_are_tested_on_the_same_rows(tmp_path: Path, capsys):
    page = tmp_path / "compare.html"
    assert main([*make_runs(tmp_path), f"html={page}"]) == 0
    out = capsys.readouterr().out
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert "key run_a1 and 1 more run_b run_c" in lines
    assert "optimizer.lr 0.5 0.1 0.2" in lines
    begin, end = "long/" * 4, "long/" * 3  # a long value is cut in its middle
    assert "data.train " + " ".join(f"{begin}...{end}{name}.csv" for name in "abc") in lines
    assert "run_a1 and 1 more 1, 2" in lines
    assert any(line.startswith("test accuracy 0.70833 ± 0.058926 (2 runs) 0.95833") for line in lines)
    assert any(
        line.startswith("test: run_a1 and run_b share of errors 0.3333 0.0417 -0.2917 -0.3750 to -0.2")
        for line in lines
    )
    assert "test: the rows of run_a1 and run_c are not the same" in lines
    shown = Page(page).text
    for message in (
        "run_b is better on 35 rows",
        "text <b>7</b>",
        "test: the rows of run_a1 and run_c are not the same",
    ):
        assert message in shown, message
    assert "run_a1 is better" not in shown


def test_a_mean_says_how_many_of_the_repeats_have_a_number(tmp_path: Path, capsys):
    first, second, other, _ = map(Path, make_runs(tmp_path))
    config = other / "config.yaml"
    config.write_text(config.read_text().replace("weight_decay: 0.01", 'weight_decay: "a\\nb"'))
    metrics = first / "metrics.jsonl"
    metrics.write_text(metrics.read_text().replace('"test/accuracy": 0.6', '"test/accuracy": null, "was": 0.6'))
    assert main([str(first), str(second), str(other), f"html={tmp_path / 'compare.html'}"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "test accuracy 0.75 (1 of 2 runs) 0.95833" in out
    assert "optimizer.weight_decay 0.01 a\\nb" in out  # in one line
    assert "1 min 10 s ± 0.0 s (2 runs)" in out


def test_a_copy_of_a_run_is_refused_and_repeats_on_other_rows_are_reported(tmp_path: Path, capsys):
    first, second, other, _ = map(Path, make_runs(tmp_path))
    for run, identity in ((first, "1"), (second, "2"), (other, "1")):  # other: a copy of the first that went on
        (run / "environment.json").write_text(json.dumps({"run": identity}))
    copy = shutil.copytree(first, tmp_path / "copy")
    assert main([str(first), str(other), str(copy), f"html={tmp_path / 'compare.html'}"]) == 2
    assert f"{copy} is a copy of {first}: they are one run, 1; name one of them" in capsys.readouterr().err
    assert main([str(first), str(other), f"html={tmp_path / 'compare.html'}"]) == 0
    predictions = second / "predictions" / "test.jsonl"
    predictions.write_text(predictions.read_text().replace("b.csv", "c.csv"))
    (second / "config.yaml").write_text(
        (second / "config.yaml").read_text().replace("project: trainer_loop", "project: p")
    )
    assert main([str(first), str(second), f"html={tmp_path / 'compare.html'}"]) == 0
    assert "Each seed of run_a1 and 1 more is scored on rows of its own." in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{run}"], "name two run directories or more"),
        (["{run}", "{run}/../run_b"], "a run directory is named twice"),
        (["{run}", "{folder}/nothing"], "nothing is no directory"),
        (["{run}", "{run}", "html=/nowhere/page.html"], "html=/nowhere/page.html: it must be a file in a folder"),
    ],
)
def test_runs_that_cannot_be_compared_are_refused(arguments: list[str], message: str, tmp_path: Path, capsys):
    run = make_runs(tmp_path)[2]
    assert main([argument.format(run=run, folder=tmp_path) for argument in arguments]) == 2
    assert message in capsys.readouterr().err
