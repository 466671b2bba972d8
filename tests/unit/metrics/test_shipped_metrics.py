"""A shipped metric is one function in one file: all else that is known of it follows from its signature."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from trainer_loop.cli.help import help_about
from trainer_loop.metrics.load import check_metrics, load_metrics, reported_keys
from trainer_loop.metrics.named_metric import compute_metrics
from trainer_loop.metrics.shipped import SHIPPED, ShippedMetric, find_metrics
from trainer_loop.tasks.causal_lm import CausalLM
from trainer_loop.tasks.chat import Chat
from trainer_loop.tasks.find import list_tasks, load_task
from trainer_loop.tasks.generation import Generation
from trainer_loop.tasks.sequence_classification import SequenceClassification

TASKS = {name: load_task(name) for name in list_tasks()}
DISTANCES = """
from typing import Annotated, TypedDict

import numpy as np

from trainer_loop.metrics.values import SmallerIsBetter, Values

PACKAGE = "no_such_package"
Points = Annotated[np.ndarray, Values("point")]

class Distances(TypedDict):
    nearest: float
    farthest: SmallerIsBetter


def distances(predictions: Points, references: Points, *, scale: float = 1.0) -> Distances:
    far = scale * np.linalg.norm(predictions - references, axis=1)
    return {"nearest": far.min(), "farthest": far.max()}


def _helper():
    pass
"""


@pytest.fixture
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, ShippedMetric]:
    """Another package of metrics, of one file, whose metrics are among those that are shipped."""
    folder = tmp_path / "more_metrics"
    folder.mkdir()
    (folder / "__init__.py").touch()
    (folder / "distances.py").write_text(DISTANCES)
    monkeypatch.syspath_prepend(tmp_path)
    found = find_metrics("more_metrics", [str(folder)])
    for name, metric in found.items():
        monkeypatch.setitem(SHIPPED, name, metric)
    return found


def test_a_new_metric_is_one_function_in_one_file(
    shipped: dict[str, ShippedMetric], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert list(shipped) == ["distances"]
    assert shipped["distances"].smaller_is_better == ["farthest"]
    outputs = {"predictions": "point", "references": "point"}
    problems = check_metrics(["distances", "accuracy"], num_labels=None, outputs=outputs)
    assert problems == [
        "evaluate.metrics[0]: distances needs the package no_such_package: pip install no_such_package",
        "evaluate.metrics[1]: accuracy does not fit this task; those that do: distances",
    ]
    monkeypatch.setattr(sys.modules["more_metrics.distances"], "PACKAGE", "numpy")
    monkeypatch.setitem(
        SHIPPED, "distances", find_metrics("more_metrics", sys.modules["more_metrics"].__path__)["distances"]
    )
    entries: list[Any] = [
        "distances",
        {"name": "distances", "args": {"scale": 2}, "key": "double"},
        {"name": "distances", "args": {"scal": 2}, "key": "wrong"},
        {"name": "distances", "args": {"references": 2}, "key": "wrong too"},
    ]
    problems = check_metrics(entries, num_labels=None, outputs=outputs)
    assert [problem.partition(": ")[0] for problem in problems] == [
        "evaluate.metrics[2].args.scal",
        "evaluate.metrics[3].args.references",
    ]
    columns = {"predictions": np.array([[0.0, 0.0], [3.0, 4.0]]), "references": np.zeros((2, 2))}
    results = compute_metrics(load_metrics(entries[:2], num_labels=None), columns)
    assert results == {"nearest": 0.0, "farthest": 5.0, "double/nearest": 0.0, "double/farthest": 10.0}
    assert reported_keys(entries[:2], num_labels=None) == list(results)
    assert "distances" in help_about("evaluate.metrics")
    (problem,) = check_metrics(["distances"], num_labels=2, outputs=SequenceClassification.outputs)
    assert problem.endswith(
        "does not fit this task; those that do: accuracy, f1, precision, recall, matthews_correlation, glue/mrpc, "
        "roc_auc, average_precision, top_k"
    )


def test_a_parameter_without_a_kind_is_a_bug(shipped: dict[str, ShippedMetric], tmp_path: Path) -> None:
    (tmp_path / "more_metrics" / "bare.py").write_text("def bare(predictions) -> float:\n    return 0.0\n")
    with pytest.raises(AssertionError, match=r"metric bare: each of \['predictions'\] needs a type"):
        find_metrics("more_metrics", [str(tmp_path / "more_metrics")])


@pytest.mark.parametrize(
    ("outputs", "fitting"),
    [
        (
            SequenceClassification.outputs,
            [
                *("accuracy", "f1", "precision", "recall", "matthews_correlation", "glue/mrpc"),
                *("roc_auc", "average_precision", "top_k"),
            ],
        ),
        (CausalLM.outputs, ["perplexity"]),
        ({"predictions": "class"}, []),
        ({"predictions": "number", "references": "class"}, []),
    ],
)
def test_a_metric_fits_a_task_that_gives_what_it_compares(outputs: dict[str, str], fitting: list[str]) -> None:
    assert [name for name, metric in SHIPPED.items() if metric.fits(outputs)] == fitting
    problems = check_metrics(list(SHIPPED), num_labels=None, outputs=outputs)
    refused = [problem for problem in problems if "does not fit this task" in problem]
    assert len(refused) == len(SHIPPED) - len(fitting)
    assert all(problem.endswith(f"those that do: {', '.join(fitting) or 'none'}") for problem in refused)


def test_metrics_on_texts_name_what_makes_a_chat_write_them() -> None:
    task = Chat()
    names = [name for name, metric in SHIPPED.items() if any("text" in of.kind for of in metric.columns.values())]
    assert {"rouge", "sacrebleu", "chrf", "exact_match", "answer_f1"} <= set(names)
    given = {"num_labels": None, "written": task.written_outputs}
    assert check_metrics(names, outputs=task.list_outputs(), **given) == [
        f"evaluate.metrics[{index}]: {name} compares texts that the model writes, and without a length it writes none "
        "in an evaluation; set evaluate.generate.max_new_tokens, such as 64"
        for index, name in enumerate(names)
    ]
    (other,) = check_metrics(["accuracy"], outputs=task.list_outputs(), **given)
    assert other.endswith("accuracy does not fit this task; those that do: perplexity")
    task.generation = Generation(max_new_tokens=8)
    assert not any("compares texts" in line for line in check_metrics(names, outputs=task.list_outputs(), **given))


def test_of_these_smaller_is_better_and_of_no_other() -> None:
    smaller = [key for metric in SHIPPED.values() for key in metric.smaller_is_better]
    assert sorted(smaller) == ["mae", "mse", "perplexity"]


@pytest.mark.parametrize("task", TASKS)
def test_what_a_task_names_by_default_fits_it(task: str) -> None:
    outputs = TASKS[task].outputs
    assert outputs is not None
    assert check_metrics(TASKS[task].metrics, num_labels=None, outputs=outputs) == []


OF_LABELS = {
    "label_set": np.array([[1, 0], [1, 1]]),
    "label_probabilities": np.array([[0.9, 0.2], [0.6, 0.7]]),
    "probabilities": np.array([[0.9, 0.1], [0.2, 0.8], [0.7, 0.3]]),
}
OF_UNLIKE_LENGTHS = {
    "tags": [np.array([1, 0]), np.array([1])],
    "text": ["a cat sat", "no"],
    "texts": [["a cat sits", "cats sit"], ["no"]],
}


def make_values(kind: str) -> np.ndarray:
    if kind in OF_LABELS:
        return OF_LABELS[kind]
    if kind not in OF_UNLIKE_LENGTHS:
        return np.array([1, 0, 1])
    values = np.empty(2, dtype=object)
    values[:] = OF_UNLIKE_LENGTHS[kind]
    return values


@pytest.mark.parametrize("name", SHIPPED)
def test_every_metric_fits_a_task_and_reports_the_keys_it_says(name: str) -> None:
    assert [task for task, made in TASKS.items() if SHIPPED[name].fits(made.outputs or {})]
    names = ["O", "B-PER"] if name == "entity_f1" else []
    (metric,) = load_metrics([name], num_labels=2, label_names=names)
    columns = {column: make_values(values.kind) for column, values in SHIPPED[name].columns.items()}
    keys = list(metric.compute(columns))
    assert keys == list(SHIPPED[name].results) == reported_keys([name], num_labels=2, label_names=names)
