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

from trainer_loop import UserError
from trainer_loop.metrics.load import load_metrics
from trainer_loop.metrics.named_metric import NamedMetric
from trainer_loop.metrics.shipped import SHIPPED

# One row a letter: 2 true positives, 1 false positive, 2 false negatives, 3 true negatives.
REFERENCES = np.array([1, 1, 0, 1, 1, 0, 0, 0])
PREDICTIONS = np.array([1, 1, 1, 0, 0, 0, 0, 0])

RANDOM = np.random.default_rng(0)
MANY_REFERENCES = RANDOM.integers(0, 4, 500)
MANY_PREDICTIONS = np.where(RANDOM.random(500) < 0.6, MANY_REFERENCES, RANDOM.integers(0, 4, 500))

AVERAGED = [
    ("f1", sklearn_metrics.f1_score),
    ("precision", sklearn_metrics.precision_score),
    ("recall", sklearn_metrics.recall_score),
]


def compute(name: str, predictions: Any, references: Any, **arguments: Any) -> Any:
    """What the function of a shipped metric returns."""
    return SHIPPED[name].function(np.asarray(predictions), np.asarray(references), **arguments)


def load(name: str) -> NamedMetric:
    (metric,) = load_metrics([name], num_labels=2)
    return metric


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("accuracy", 5 / 8),
        ("precision", 2 / 3),
        ("recall", 2 / 4),
        ("f1", 4 / 7),
        ("matthews_correlation", (2 * 3 - 1 * 2) / np.sqrt(3 * 4 * 4 * 5)),
        ("glue/mrpc", {"accuracy": 5 / 8, "f1": 4 / 7}),
    ],
)
def test_figures_worked_out_by_hand(name: str, expected: Any) -> None:
    assert compute(name, PREDICTIONS, REFERENCES) == pytest.approx(expected, abs=1e-12)
    results = load(name).compute({"predictions": PREDICTIONS, "references": REFERENCES})
    assert results == pytest.approx(expected if isinstance(expected, dict) else {name: expected}, abs=1e-12)


@pytest.mark.parametrize(("name", "function"), AVERAGED)
@pytest.mark.parametrize("average", ["micro", "macro", "weighted"])
def test_averages_are_those_of_sklearn(name: str, function: Any, average: str) -> None:
    result = compute(name, MANY_PREDICTIONS, MANY_REFERENCES, average=average)
    assert result == pytest.approx(function(MANY_REFERENCES, MANY_PREDICTIONS, average=average), abs=1e-12)
    assert type(result) is float


@pytest.mark.parametrize(("name", "function"), AVERAGED)
def test_without_average_one_score_a_class_is_a_list(name: str, function: Any) -> None:
    result = compute(name, MANY_PREDICTIONS, MANY_REFERENCES, average=None, labels=[3, 0, 1])
    assert type(result) is list
    expected = function(MANY_REFERENCES, MANY_PREDICTIONS, average=None, labels=[3, 0, 1])
    assert result == pytest.approx(expected.tolist(), abs=1e-12)


@pytest.mark.parametrize(("name", "function"), AVERAGED)
def test_arguments_reach_sklearn(name: str, function: Any) -> None:
    result = compute(name, PREDICTIONS, REFERENCES, pos_label=0)
    assert result == pytest.approx(function(REFERENCES, PREDICTIONS, pos_label=0))
    assert result != pytest.approx(function(REFERENCES, PREDICTIONS))


@pytest.mark.parametrize(
    ("name", "function"),
    [("accuracy", sklearn_metrics.accuracy_score), ("matthews_correlation", sklearn_metrics.matthews_corrcoef)],
)
def test_metrics_without_an_average_are_those_of_sklearn(name: str, function: Any) -> None:
    value = compute(name, MANY_PREDICTIONS, MANY_REFERENCES)
    assert value == pytest.approx(function(MANY_REFERENCES, MANY_PREDICTIONS), abs=1e-12)


def test_accuracy_can_count_instead() -> None:
    assert compute("accuracy", PREDICTIONS, REFERENCES, normalize=False) == 5.0


@pytest.mark.parametrize("name", ["precision", "recall"])
@pytest.mark.parametrize("value", [0, 1])
def test_zero_division_is_the_score_of_a_class_that_does_not_occur(name: str, value: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # sklearn only warns when it was not told what to do
        result = compute(name, [0, 1], [0, 1], average=None, labels=[0, 2], zero_division=value)
    assert result == [1.0, float(value)]


@pytest.mark.parametrize("predicted", [[0, 0, 0], [1, 1, 1], [0, 1, 1]])
@pytest.mark.parametrize(
    ("name", "function", "arguments"),
    [
        *[
            (name, function, arguments)
            for name, function in AVERAGED
            for arguments in ({}, {"average": "macro"}, {"average": "weighted", "pos_label": 0}, {"average": None})
        ],
        ("matthews_correlation", sklearn_metrics.matthews_corrcoef, {}),
        ("glue/mrpc", sklearn_metrics.f1_score, {}),
    ],
)
def test_classes_that_are_absent_give_the_numbers_of_sklearn_without_its_warnings(
    name: str, function: Any, arguments: dict[str, Any], predicted: list[int]
) -> None:
    references = [0, 0, 0]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = compute(name, predicted, references, **arguments)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wanted = function(references, predicted, **arguments)
    np.testing.assert_array_equal(found["f1"] if isinstance(found, dict) else found, wanted)


def test_a_class_predicted_but_never_seen_counts_as_wrong() -> None:
    assert compute("f1", [0, 0, 2], [0, 0, 1], average="macro") == pytest.approx((1 + 0 + 0) / 3)
    assert compute("accuracy", [7, 1], [0, 1]) == 0.5


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("accuracy", {"normalize": True}),
        ("f1", {"labels": None, "pos_label": 1, "average": "binary"}),
        *[
            (name, {"labels": None, "pos_label": 1, "average": "binary", "zero_division": "warn"})
            for name in ("precision", "recall")
        ],
        ("matthews_correlation", {}),
        ("glue/mrpc", {}),
    ],
)
def test_arguments_and_defaults_are_those_of_the_hub(name: str, arguments: dict[str, Any]) -> None:
    parameters = inspect.signature(SHIPPED[name].function).parameters
    own = {name: parameter.default for name, parameter in parameters.items() if name in arguments}
    assert own == arguments
    assert set(parameters) == {"predictions", "references", *arguments}


def test_one_metric_computes_again_and_two_at_once_do_not_mix() -> None:
    first, second = load_metrics(["accuracy", {"name": "accuracy", "key": "hits"}], num_labels=2)
    assert first.compute({"predictions": [0, 0, 0, 0], "references": [0, 1, 1, 1]}) == {"accuracy": 0.25}
    assert second.compute({"predictions": [1, 1, 1], "references": [1, 1, 1]}) == {"hits": 1.0}
    assert first.compute({"predictions": [1], "references": [1]}) == {"accuracy": 1.0}


def test_a_metric_computes_after_it_has_failed() -> None:
    metric = load("f1")
    with pytest.raises(UserError, match="average='binary'"):
        metric.compute({"predictions": [0, 1, 2], "references": [0, 1, 2]})
    with pytest.raises(UserError, match="3 predictions and 2 references"):
        metric.compute({"predictions": [0, 1, 2], "references": [0, 1]})
    assert metric.compute({"predictions": [1, 1], "references": [1, 1]}) == {"f1": 1.0}


@pytest.mark.parametrize("name", SHIPPED)
def test_no_rows_are_an_error(name: str) -> None:
    with pytest.raises(UserError, match="no rows to score"):
        load(name).compute({key: [] for key in SHIPPED[name].columns})


PROCESS = """
import sys, time
from pathlib import Path
import numpy as np
from trainer_loop.metrics.load import load_metrics
own, other = Path(sys.argv[1]), Path(sys.argv[2])
accuracy, perplexity = load_metrics(["accuracy", "perplexity"], num_labels=None)
own.touch()  # both processes compute at the same time
limit = time.monotonic() + 60
while not other.exists() and time.monotonic() < limit:
    time.sleep(0.01)
assert other.exists()
print(accuracy.compute({"predictions": np.array([0, 1]), "references": np.array([1, 1])})["accuracy"])
print(perplexity.compute({"negative_log_likelihoods": np.zeros(1), "num_targets": np.array([3])})["perplexity"])
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
    assert outputs == ["0.5\n1.0\n"] * 2
    assert list(home.rglob("*")) == []
