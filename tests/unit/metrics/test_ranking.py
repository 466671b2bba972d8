"""Metrics on probabilities, beside what scikit-learn gives."""

from typing import Any

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score, top_k_accuracy_score

from trainer_loop import UserError
from trainer_loop.metrics.load import load_metrics


def make_rows(num_classes: int, seed: int = 0) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(seed)
    probabilities = draw.dirichlet(np.ones(num_classes), size=60)
    return {"probabilities": probabilities, "references": draw.integers(num_classes, size=60)}


def compute(entry: Any, rows: dict[str, np.ndarray]) -> float:
    (metric,) = load_metrics([entry], num_labels=rows["probabilities"].shape[1])
    (value,) = metric.compute(rows).values()
    return value


def test_of_two_classes_the_second_counts():
    rows = make_rows(2)
    second = rows["probabilities"][:, 1]
    assert compute("roc_auc", rows) == pytest.approx(roc_auc_score(rows["references"], second))
    assert compute("average_precision", rows) == pytest.approx(average_precision_score(rows["references"], second))


def test_of_more_classes_the_mean_counts():
    rows = make_rows(4)
    probabilities, references = rows["probabilities"], rows["references"]
    assert compute("roc_auc", rows) == pytest.approx(roc_auc_score(references, probabilities, multi_class="ovr"))
    marked = np.eye(4, dtype=int)[references]
    assert compute("average_precision", rows) == pytest.approx(average_precision_score(marked, probabilities))


@pytest.mark.parametrize("k", [1, 2, 3, 4, 9])
def test_the_class_is_among_the_likeliest(k: int):
    rows = make_rows(4)
    expected = top_k_accuracy_score(rows["references"], rows["probabilities"], k=min(k, 4)) if k < 4 else 1.0
    assert compute({"name": "top_k", "args": {"k": k}}, rows) == pytest.approx(expected)


def test_classes_without_rows_are_left_out():
    rows = make_rows(4)
    rows["references"] = rows["references"] % 3
    marked = np.eye(4, dtype=int)[rows["references"]]
    expected = roc_auc_score(marked[:, :3], rows["probabilities"][:, :3], average="macro")
    assert compute("roc_auc", rows) == pytest.approx(expected)
    rows["references"] = np.zeros(60, dtype=int)
    assert compute("roc_auc", rows) == 0.5
    assert compute("average_precision", rows) == 1.0


@pytest.mark.parametrize("k", [0, -1, 1.5, True])
def test_k_is_a_whole_number(k: Any):
    with pytest.raises(UserError, match="it is a whole number from 1"):
        compute({"name": "top_k", "args": {"k": k}}, make_rows(3))
