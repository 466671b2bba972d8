"""The shipped metrics against scikit-learn and against figures worked out by hand."""

import inspect
import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn import metrics as sklearn_metrics

from trainer_loop.metrics.classification import F1, Accuracy, GlueMRPC, MatthewsCorrelation, Precision, Recall

# One row a letter: 2 true positives, 1 false positive, 2 false negatives, 3 true negatives.
REFERENCES = np.array([1, 1, 0, 1, 1, 0, 0, 0])
PREDICTIONS = np.array([1, 1, 1, 0, 0, 0, 0, 0])

RANDOM = np.random.default_rng(0)
MANY_REFERENCES = RANDOM.integers(0, 4, 500)
MANY_PREDICTIONS = np.where(RANDOM.random(500) < 0.6, MANY_REFERENCES, RANDOM.integers(0, 4, 500))
WEIGHTS = RANDOM.random(500).tolist()

AVERAGED = [
    (F1, "f1", sklearn_metrics.f1_score),
    (Precision, "precision", sklearn_metrics.precision_score),
    (Recall, "recall", sklearn_metrics.recall_score),
]


@pytest.mark.parametrize(
    ("metric", "expected"),
    [
        (Accuracy, {"accuracy": 5 / 8}),
        (Precision, {"precision": 2 / 3}),
        (Recall, {"recall": 2 / 4}),
        (F1, {"f1": 4 / 7}),
        (MatthewsCorrelation, {"matthews_correlation": (2 * 3 - 1 * 2) / np.sqrt(3 * 4 * 4 * 5)}),
        (GlueMRPC, {"accuracy": 5 / 8, "f1": 4 / 7}),
    ],
)
def test_figures_worked_out_by_hand(metric: Any, expected: dict[str, float]) -> None:
    assert metric().compute(predictions=PREDICTIONS, references=REFERENCES) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(("metric", "name", "function"), AVERAGED)
@pytest.mark.parametrize("average", ["micro", "macro", "weighted"])
def test_averages_are_those_of_sklearn(metric: Any, name: str, function: Any, average: str) -> None:
    result = metric().compute(predictions=MANY_PREDICTIONS, references=MANY_REFERENCES, average=average)
    assert result == {name: pytest.approx(function(MANY_REFERENCES, MANY_PREDICTIONS, average=average), abs=1e-12)}
    assert type(result[name]) is float


@pytest.mark.parametrize(("metric", "name", "function"), AVERAGED)
def test_without_average_one_score_a_class_is_a_list(metric: Any, name: str, function: Any) -> None:
    result = metric().compute(predictions=MANY_PREDICTIONS, references=MANY_REFERENCES, average=None, labels=[3, 0, 1])
    assert type(result[name]) is list
    expected = function(MANY_REFERENCES, MANY_PREDICTIONS, average=None, labels=[3, 0, 1])
    assert result[name] == pytest.approx(expected.tolist(), abs=1e-12)


@pytest.mark.parametrize(("metric", "name", "function"), AVERAGED)
def test_arguments_reach_sklearn(metric: Any, name: str, function: Any) -> None:
    weights = WEIGHTS[: len(REFERENCES)]
    result = metric().compute(predictions=PREDICTIONS, references=REFERENCES, pos_label=0, sample_weight=weights)
    assert result[name] == pytest.approx(function(REFERENCES, PREDICTIONS, pos_label=0, sample_weight=weights))
    assert result[name] != pytest.approx(function(REFERENCES, PREDICTIONS))


@pytest.mark.parametrize("metric", [Accuracy, MatthewsCorrelation])
def test_sample_weights_count(metric: Any) -> None:
    function = {Accuracy: sklearn_metrics.accuracy_score, MatthewsCorrelation: sklearn_metrics.matthews_corrcoef}[
        metric
    ]
    (value,) = (
        metric().compute(predictions=MANY_PREDICTIONS, references=MANY_REFERENCES, sample_weight=WEIGHTS).values()
    )
    assert value == pytest.approx(function(MANY_REFERENCES, MANY_PREDICTIONS, sample_weight=WEIGHTS), abs=1e-12)


def test_accuracy_can_count_instead() -> None:
    assert Accuracy().compute(predictions=PREDICTIONS, references=REFERENCES, normalize=False) == {"accuracy": 5.0}


@pytest.mark.parametrize("metric", [Precision, Recall])
@pytest.mark.parametrize("value", [0, 1])
def test_zero_division_is_the_score_of_a_class_that_does_not_occur(metric: Any, value: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # sklearn only warns when it was not told what to do
        result = metric().compute(
            predictions=[0, 1], references=[0, 1], average=None, labels=[0, 2], zero_division=value
        )
    assert list(result.values()) == [[1.0, float(value)]]


@pytest.mark.parametrize("predicted", [[0, 0, 0], [1, 1, 1], [0, 1, 1]])
@pytest.mark.parametrize(
    ("metric", "function", "arguments"),
    [
        *[
            (metric, function, arguments)
            for metric, _, function in AVERAGED
            for arguments in ({}, {"average": "macro"}, {"average": "weighted", "pos_label": 0}, {"average": None})
        ],
        (MatthewsCorrelation, sklearn_metrics.matthews_corrcoef, {}),
        (GlueMRPC, sklearn_metrics.f1_score, {}),
    ],
)
def test_classes_that_are_absent_give_the_numbers_of_sklearn_without_its_warnings(
    metric: Any, function: Any, arguments: dict[str, Any], predicted: list[int]
) -> None:
    references = [0, 0, 0]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = metric().compute(predictions=predicted, references=references, **arguments)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wanted = function(references, predicted, **arguments)
    np.testing.assert_array_equal(list(found.values())[-1], wanted)


def test_a_class_predicted_but_never_seen_counts_as_wrong() -> None:
    result = F1().compute(predictions=[0, 0, 2], references=[0, 0, 1], average="macro")
    assert result["f1"] == pytest.approx((1 + 0 + 0) / 3)
    assert Accuracy().compute(predictions=[7, 1], references=[0, 1]) == {"accuracy": 0.5}


@pytest.mark.parametrize(
    ("metric", "arguments"),
    [
        (Accuracy, {"normalize": True, "sample_weight": None}),
        (F1, {"labels": None, "pos_label": 1, "average": "binary", "sample_weight": None}),
        *[
            (
                metric,
                {"labels": None, "pos_label": 1, "average": "binary", "sample_weight": None, "zero_division": "warn"},
            )
            for metric in (Precision, Recall)
        ],
        (MatthewsCorrelation, {"sample_weight": None}),
        (GlueMRPC, {}),
    ],
)
def test_arguments_and_defaults_are_those_of_the_hub(metric: Any, arguments: dict[str, Any]) -> None:
    parameters = inspect.signature(metric._compute).parameters
    own = {name: parameter.default for name, parameter in parameters.items() if name in arguments}
    assert own == arguments
    assert set(parameters) == {"self", "predictions", "references", *arguments}


def test_one_object_computes_again_and_two_at_once_do_not_mix() -> None:
    first, second = Accuracy(), Accuracy()
    first.add_batch(predictions=[0, 0], references=[0, 1])
    second.add_batch(predictions=[1, 1, 1], references=[1, 1, 1])
    first.add_batch(predictions=[0, 0], references=[1, 1])
    assert second.compute() == {"accuracy": 1.0}
    assert first.compute() == {"accuracy": 0.25}
    assert first.compute(predictions=[1], references=[1]) == {"accuracy": 1.0}


def test_an_object_computes_after_it_has_failed() -> None:
    metric = F1()
    with pytest.raises(ValueError, match="average='binary'"):
        metric.compute(predictions=[0, 1, 2], references=[0, 1, 2])
    with pytest.raises(ValueError, match="Mismatch"):
        metric.compute(predictions=[0, 1, 2], references=[0, 1])
    assert metric.compute(predictions=[1, 1], references=[1, 1]) == {"f1": 1.0}


@pytest.mark.parametrize("metric", [Accuracy, F1, Precision, Recall, MatthewsCorrelation, GlueMRPC])
def test_no_rows_are_an_error(metric: Any) -> None:
    with pytest.raises(ValueError, match="empty"):
        metric().compute(predictions=[], references=[])


PROCESS = """
import sys, time
from pathlib import Path
from trainer_loop.metrics.classification import Accuracy
from trainer_loop.metrics.perplexity import Perplexity
own, other = Path(sys.argv[1]), Path(sys.argv[2])
accuracy, perplexity = Accuracy(), Perplexity()
accuracy.add_batch(predictions=[0, 1], references=[1, 1])
own.touch()  # both processes hold rows at the same time
limit = time.monotonic() + 60
while not other.exists() and time.monotonic() < limit:
    time.sleep(0.01)
assert other.exists()
print(accuracy.compute()["accuracy"], perplexity.compute(predictions=[0.0], references=[3])["perplexity"])
"""


def test_processes_share_a_home_and_leave_nothing_in_it(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "XDG_"))}
    environment = {**kept, "HOME": str(home), "HF_HUB_OFFLINE": "1"}
    flags = [tmp_path / "a", tmp_path / "b"]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS, *map(str, order)], env=environment, stdout=subprocess.PIPE, text=True
        )
        for order in (flags, flags[::-1])
    ]
    outputs = [process.communicate(timeout=120)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert outputs == ["0.5 1.0\n"] * 2
    assert list(home.rglob("*")) == []
