"""Bootstrap intervals: compared with scipy, and their coverage of a known truth."""

import sys

import numpy as np
import pytest
from scipy import stats

from trainer_loop.metrics.load import load_metrics
from trainer_loop.report.intervals import draw_means, find_intervals


def find(name: str, predictions: np.ndarray, references: np.ndarray, seed: int = 0):
    metrics = load_metrics([name], num_labels=2)
    return find_intervals(metrics, {"predictions": predictions, "references": references}, seed=seed)


def test_intervals_equal_those_of_scipy():
    generator = np.random.default_rng(1)
    references = generator.integers(0, 2, 300)
    predictions = np.where(generator.uniform(size=300) < 0.8, references, 1 - references)
    found = find("accuracy", predictions, references)["accuracy"]
    right = (predictions == references).astype(float)
    expected = stats.bootstrap((right,), np.mean, method="percentile", rng=2).confidence_interval
    assert found.value == right.mean()
    assert (found.low, found.high) == pytest.approx(tuple(expected), abs=0.008)


def test_a_metric_that_is_no_mean_over_rows_is_computed_for_each_draw():
    generator = np.random.default_rng(1)
    references = generator.integers(0, 2, 200)
    predictions = np.where(generator.uniform(size=200) < 0.7, references, 1 - references)
    found = find("f1", predictions, references)["f1"]
    rows = (predictions, references)
    expected = stats.bootstrap(
        rows, lambda p, r: 2 * (p & r).sum() / (p.sum() + r.sum()), paired=True, vectorized=False, n_resamples=999,
        method="percentile", rng=2,
    ).confidence_interval  # fmt: skip
    assert (found.low, found.high) == pytest.approx(tuple(expected), abs=0.03)


def test_rows_of_texts_are_compared_each_once():
    texts = np.array(["a", "b", "c", "d"], dtype=object)
    known = np.fromiter([["a"], ["b"], ["x"], ["d"]], dtype=object, count=4)
    found = find("exact_match", texts, known)["exact_match"]
    assert found.value == 0.75
    assert (found.low, found.high) == (0.25, 1.0)


def test_about_95_of_100_intervals_contain_the_truth():
    generator = np.random.default_rng(3)
    held = 0
    for seed in range(200):
        predictions = (generator.uniform(size=150) < 0.7).astype(np.int64)
        found = find("accuracy", predictions, np.ones(150, dtype=np.int64), seed=seed)["accuracy"]
        held += found.low <= 0.7 <= found.high
    assert 0.90 <= held / 200 <= 0.985


def test_numbers_of_many_values_are_drawn_like_those_of_few():
    values = np.random.default_rng(4).normal(size=400)
    low, high = np.percentile(draw_means(values, np.random.default_rng(0), draws=1000), [2.5, 97.5])
    half = 1.96 * values.std() / 20
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.02)


def test_the_same_seed_gives_the_same_interval_and_a_failing_metric_has_none():
    rows = np.arange(40) % 2, np.arange(40) % 3 % 2
    assert find("f1", *rows, seed=5) == find("f1", *rows, seed=5)
    assert find("mae", np.ones(0), np.ones(0)) == {}
    metrics = load_metrics(["accuracy"], num_labels=2)
    assert find_intervals(metrics, {"predictions": rows[0]}) == {}


def test_a_constant_metric_and_a_count_of_the_data_have_no_interval():
    assert find("accuracy", np.ones(20, dtype=np.int64), np.ones(20, dtype=np.int64)) == {}
    tags = np.fromiter([np.array([0, 1]), np.array([1, 0]), np.array([0, 0])] * 9, dtype=object, count=27)
    wrong = np.fromiter([np.array([0, 1]), np.array([0, 0]), np.array([0, 0])] * 9, dtype=object, count=27)
    metrics = load_metrics([{"name": "entity_f1", "args": {"per_type": True}}], num_labels=2, label_names=["O", "B-X"])
    found = find_intervals(metrics, {"predictions": wrong, "references": tags})
    assert "entity_f1/X" in found
    assert not any("support" in name for name in found)


def test_a_metric_that_few_draws_change_has_no_interval():
    rows = (np.arange(100) < 4).astype(np.int64)  # two draws of a hundred hold no row of class 1: their F1 is 0
    assert find("f1", rows, rows) == {}


@pytest.mark.parametrize("name", ["matthews_correlation", "pearson"])
def test_a_metric_that_is_zero_for_one_row_and_for_all_is_no_mean_over_rows(name: str):
    found = find(name, np.array([0, 0, 1, 1] * 5), np.array([0, 1, 0, 1] * 5))[name]
    assert found.value == pytest.approx(0)
    assert found.low < -0.2
    assert found.high > 0.2


def test_a_single_row_has_no_interval():
    assert find("accuracy", np.ones(1, dtype=np.int64), np.ones(1, dtype=np.int64)) == {}


def test_a_metric_without_its_package_has_no_interval(monkeypatch: pytest.MonkeyPatch):
    for name in ["sacrebleu", *(name for name in sys.modules if name.startswith("sacrebleu."))]:
        monkeypatch.setitem(sys.modules, name, None)
    known = np.fromiter([["a b"], ["c d"]], dtype=object, count=2)
    columns = {"predictions": np.array(["a b", "c"], dtype=object), "references": known}
    assert list(find_intervals(load_metrics(["sacrebleu", "exact_match"], num_labels=None), columns)) == ["exact_match"]


def test_fewer_of_many_rows_are_drawn_and_the_interval_is_as_wide(monkeypatch: pytest.MonkeyPatch):
    generator = np.random.default_rng(5)
    references = generator.integers(0, 2, 4000)
    rows = np.where(generator.uniform(size=4000) < 0.7, references, 1 - references), references
    whole = find("f1", *rows)["f1"]
    monkeypatch.setattr("trainer_loop.report.intervals._ROWS_TO_COMPUTE", 40_000)
    few = find("f1", *rows)["f1"]
    assert few.low < few.value == whole.value < few.high
    assert few.high - few.low == pytest.approx(whole.high - whole.low, rel=0.25)
