"""Entries of evaluate.metrics -> checks, metrics, results. The hub is a server of this test's own, or a dead port."""

import http.server
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import evaluate
import numpy as np
import pytest
from huggingface_hub import constants

from trainer_loop import UserError
from trainer_loop.metrics.load import check_metrics, load_metrics, reported_keys
from trainer_loop.metrics.named_metric import compute_metrics
from trainer_loop.metrics.shipped import SHIPPED
from trainer_loop.runtime import hub as hub_probe
from trainer_loop.tasks.sequence_classification import SequenceClassification

SCRIPT = """
import datasets
import evaluate


class Spread(evaluate.Metric):
    def _info(self):
        column = datasets.Value("float64")
        features = datasets.Features({"predictions": column, "references": column})
        return evaluate.MetricInfo(description="", citation="", features=features)

    def _compute(self, predictions, references, power=1):
        return {"spread": (max(predictions) - min(predictions)) ** power, "rows_seen": len(references)}
"""

LAB = """
import datasets
import evaluate


class Answers(evaluate.Metric):
    \"\"\"Returns the `answer` it was given.\"\"\"

    def _info(self):
        column = datasets.Value("float64")
        features = datasets.Features({"predictions": column, "references": column})
        return evaluate.MetricInfo(description="", citation="", features=features)

    def _compute(self, predictions, references, answer):
        return answer


class Lengths(evaluate.Metric):
    def _info(self):
        features = datasets.Features({"data": datasets.Value("string")})
        return evaluate.MetricInfo(description="", citation="", features=features)

    def _compute(self, data):
        return {"length": 0}


class Needy(Answers):
    def __init__(self, folder):
        super().__init__()


NUMBER = 3


def areas(probabilities, references, of=1):
    chosen = [row[of] for row, label in zip(probabilities, references) if label == of]
    return {"least": min(chosen), "most": max(chosen)}


def share(predictions, *, of):
    return (predictions == of).mean()


def idle(of=1):
    return 0.0
"""

REFERENCES = np.array([0, 1, 2, 2])
PREDICTIONS = np.array([0, 2, 2, 2])


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """No network."""
    hub_probe.hub_is_reachable.cache_clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(evaluate.config, "HF_UPDATE_DOWNLOAD_COUNTS", False)


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A package of the user's in the current directory; its name."""
    (tmp_path / "metric_lab.py").write_text(LAB)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return "metric_lab"


def point_hub_at(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    hub_probe.hub_is_reachable.cache_clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(evaluate.config, "HF_ENDPOINT", url)
    monkeypatch.setattr(evaluate.config, "HUB_EVALUATE_URL", url + "/spaces/{path}/resolve/{revision}/{name}")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A hub that has one metric, `spread`."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            found = self.path.startswith("/spaces/evaluate-metric/spread/resolve/")
            self.send_response(200 if found else 404)
            self.send_header("ETag", '"1"')
            self.send_header("Content-Length", str(len(SCRIPT) if found else 0))
            self.end_headers()

        def do_GET(self) -> None:
            self.do_HEAD()
            self.wfile.write(SCRIPT.encode())

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"
    point_hub_at(url, monkeypatch)
    yield url
    server.shutdown()
    server.server_close()


def pair(predictions: Any, references: Any) -> dict[str, Any]:
    """What a task gives."""
    return {"predictions": predictions, "references": references}


def compute(entry: Any, *, num_labels: int | None = 3) -> dict[str, float]:
    (metric,) = load_metrics([entry], num_labels=num_labels)
    return metric.compute(pair(PREDICTIONS, REFERENCES))


def problems_of(call: Any, *arguments: Any, **keywords: Any) -> list[str]:
    with pytest.raises(UserError) as caught:
        call(*arguments, **keywords)
    assert all("\n" not in problem for problem in caught.value.problems)
    return caught.value.problems


# ---- results


def test_every_shipped_metric_loads_and_computes_without_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    numbers, texts = np.array([1, 0, 1]), np.array(["a cat sat", "no"])
    made = {
        "tags": numbers[:, None],
        "text": texts,
        "texts": np.array([["a cat sits"], ["no", "never"]], dtype=object),
        "probabilities": np.array([[0.9, 0.1], [0.2, 0.8], [0.7, 0.3]]),
        "label_set": np.array([[1, 0], [0, 1], [1, 1]]),
        "label_probabilities": np.array([[0.9, 0.1], [0.2, 0.8], [0.7, 0.6]]),
    }
    reported: list[str] = []
    for metric in load_metrics(list(SHIPPED), num_labels=2, label_names=["O", "B-PER"]):
        columns = {name: made.get(values.kind, numbers) for name, values in SHIPPED[metric.name].columns.items()}
        results = metric.compute(columns)
        assert results
        assert all(type(value) is float and np.isfinite(value) for value in results.values())
        reported += results
    assert "perplexity" in reported


def test_arguments_reach_the_metric() -> None:
    assert compute({"name": "accuracy", "args": {"normalize": False}}) == {"accuracy": 3.0}


def test_results_of_all_metrics_stand_in_one_dict() -> None:
    metrics = load_metrics(["accuracy", {"name": "f1", "args": {"average": "macro"}}], num_labels=3)
    results = compute_metrics(metrics, pair(PREDICTIONS, REFERENCES))
    assert results == {"accuracy": 0.75, "f1": pytest.approx((1 + 0 + 0.8) / 3)}


def test_one_score_a_class_is_numbered_by_class_even_when_a_class_is_absent() -> None:
    entry = {"name": "recall", "args": {"average": None, "zero_division": 0}}
    assert compute(entry, num_labels=5) == {
        "recall/0": 1.0,
        "recall/1": 0.0,
        "recall/2": 1.0,
        "recall/3": 0.0,
        "recall/4": 0.0,
    }


def test_one_score_a_class_follows_the_order_of_labels() -> None:
    assert compute({"name": "f1", "args": {"average": None, "labels": [2, 0]}}) == {
        "f1/2": pytest.approx(0.8),
        "f1/0": 1.0,
    }


def test_key_renames_the_only_result_and_goes_before_several() -> None:
    assert compute({"name": "accuracy", "key": "hits"}) == {"hits": 0.75}
    assert compute({"name": "f1", "key": "one", "args": {"average": None, "labels": [0, 2]}}) == {
        "one/0": 1.0,
        "one/2": pytest.approx(0.8),
    }
    (metric,) = load_metrics([{"name": "glue/mrpc", "key": "pairs"}], num_labels=2)
    assert metric.compute(pair([1, 0], [1, 1])) == {"pairs/accuracy": 0.5, "pairs/f1": pytest.approx(2 / 3)}


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ({"x": np.float32(0.5), "n": np.int64(3), "yes": True}, {"x": 0.5, "n": 3.0, "yes": 1.0}),
        ({"x": [1, 2]}, {"x/0": 1.0, "x/1": 2.0}),
        ({"x": np.eye(2)}, {"x/0/0": 1.0, "x/0/1": 0.0, "x/1/0": 0.0, "x/1/1": 1.0}),
        ({"PER": {"f1": 1, "number": 2}, "f1": 0.5}, {"PER/f1": 1.0, "PER/number": 2.0, "f1": 0.5}),
        ({"x": np.array(2)}, {"x": 2.0}),
    ],
)
def test_results_become_plain_floats(lab: str, answer: Any, expected: dict[str, float]) -> None:
    results = compute({"name": f"{lab}.Answers", "args": {"answer": answer}})
    assert results == expected
    assert all(type(value) is float for value in results.values())


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "good", None])
def test_a_result_that_is_not_a_finite_number_is_named(lab: str, value: Any) -> None:
    entry = {"name": f"{lab}.Answers", "args": {"answer": {"fine": 1.0, "score": value}}}
    (problem,) = problems_of(compute, entry)
    assert f"score = {value}" in problem
    assert "fine" not in problem
    assert "evaluate.metrics[0]" in problem


def test_two_metrics_that_report_one_key_are_named_when_only_computing_tells(lab: str) -> None:
    entries: list[Any] = [{"name": f"{lab}.Answers", "args": {"answer": {"accuracy": 1.0, "loss": 2.0}}}, "accuracy"]
    problems = problems_of(
        compute_metrics,
        load_metrics(entries, num_labels=3),
        pair(PREDICTIONS, REFERENCES),
    )
    assert len(problems) == 2
    assert "reports loss" in problems[0]
    assert "evaluate.metrics[1]: accuracy reports accuracy" in problems[1]


# ---- rows that do not fit


def test_no_rows_are_a_problem() -> None:
    for name in SHIPPED:
        (metric,) = load_metrics([name], num_labels=None)
        assert "no rows to score" in problems_of(metric.compute, {key: [] for key in SHIPPED[name].columns})[0]


def test_rows_that_do_not_pair_are_a_problem() -> None:
    (metric,) = load_metrics(["accuracy"], num_labels=2)
    assert "3 predictions and 2 references" in problems_of(metric.compute, pair([1, 1, 1], [1, 1]))[0]


def test_fractions_are_not_cut_to_class_numbers() -> None:
    (metric,) = load_metrics(["accuracy"], num_labels=2)
    (problem,) = problems_of(metric.compute, pair(np.array([1.0, 0.9, np.inf]), [1, 0, 1]))
    assert "predictions has 0.9 in row 1" in problem
    assert metric.compute(pair(np.array([1.0, 0.0]), [1, 1])) == {"accuracy": 0.5}


def test_several_numbers_a_row_are_a_problem() -> None:
    (metric,) = load_metrics(["accuracy"], num_labels=2)
    (problem,) = problems_of(metric.compute, pair(np.zeros((3, 2), dtype=int), [1, 0, 1]))
    assert problem.endswith("accuracy compares one number a row and predictions has the shape [3, 2]")


def test_names_instead_of_class_numbers_are_a_problem() -> None:
    (metric,) = load_metrics(["accuracy"], num_labels=2)
    (problem,) = problems_of(metric.compute, pair(["good", "bad"], ["good", "good"]))
    assert "accuracy cannot be computed" in problem
    assert "'good'" in problem


def test_what_sklearn_refuses_is_one_line() -> None:
    (metric,) = load_metrics(["f1"], num_labels=2)
    (problem,) = problems_of(metric.compute, pair(PREDICTIONS, REFERENCES))
    assert problem.startswith("evaluate.metrics[0]: f1 cannot be computed: Target is multiclass but average='binary'")
    assert metric.compute(pair([1, 1], [1, 1])) == {"f1": 1.0}


# ---- checks


def test_what_is_right_has_no_problems(lab: str) -> None:
    entries: list[Any] = [
        "accuracy",
        {"name": "f1", "args": {"average": "macro"}},
        {"name": "f1", "args": {"average": None}},
        {"name": "precision", "args": {"average": "weighted", "zero_division": 0}},
        {"name": f"{lab}.Answers", "args": {"answer": 1}},
        {"name": f"{lab}.share", "args": {"of": 2}},
        f"{lab}.areas",
        "meteor",
        "evaluate-metric/rouge",
        {"name": "accuracy", "args": {"normalize": False}, "key": "hits"},
    ]
    assert check_metrics(entries, num_labels=3) == []
    assert check_metrics(["someone/their_metric"], num_labels=3, trust_remote_code=True) == []
    assert check_metrics(["f1", "precision", "recall", "accuracy", "matthews_correlation"], num_labels=2) == []
    assert check_metrics(["perplexity"], num_labels=None) == []


@pytest.mark.parametrize(
    ("entry", "num_labels", "parts"),
    [
        ("acuracy", 2, ["'acuracy'", "did you mean accuracy?"]),
        ("F1", 2, ["'F1'", "did you mean f1?"]),
        ("glue/mprc", 2, ["did you mean glue/mrpc?"]),
        ("my metric", 2, ["'my metric'", "accuracy, f1, precision", "a name on the hub"]),
        ("a/b/c", 2, ["'a/b/c'", "accuracy, f1, precision"]),
        ("./nowhere/spread.py", 2, ["spread.py", "no metric script"]),
        ("f1", 4, ["f1 with average: binary is for 2 classes", "has 4", "average: macro"]),
        ("recall", 3, ["{name: recall, args: {average: macro}}"]),
        ("glue/mrpc", 3, ["glue/mrpc is for 2 classes", "has 3"]),
        ("perplexity", 2, ["perplexity does not fit this task", "those that do: accuracy, f1", "glue/mrpc"]),
        ({"name": "f1", "args": {"average": "makro"}}, 3, ["args.average", "'makro'", "macro"]),
        ({"name": "f1", "args": {"averag": "macro"}}, 2, ["evaluate.metrics[0].args.averag", "did you mean average?"]),
        ({"name": "f1", "args": {"zero_division": 0}}, 2, ["zero_division"]),
        ({"name": "f1", "args": {"predictions": [1]}}, 2, ["predictions"]),
        ({"name": "f1", "args": {"average": None, "labels": 2}}, 3, ["args.labels", "2 is no list"]),
        ({"name": "f1", "args": {"average": "macro", "labels": [0, 3]}}, 3, ["args.labels: 3", "0 to 2"]),
        ({"name": "f1", "args": {"pos_label": "spam"}}, 2, ["args.pos_label: 'spam'", "0 to 1"]),
        ({"name": "f1", "args": {"pos_label": "y"}}, 2, ["'y' is not a class number", "order of the label names"]),
        ({"name": "f1", "args": {"average": "macro", "pos_label": 1}}, 3, ["args.pos_label", "not macro; remove one"]),
        ({"name": "accuracy", "key": "loss"}, 2, ["loss is a key of the loop"]),
        ("trainer_loop.metrics.shipped.classification.acuracy", 2, ["did you mean accuracy?"]),
        ("no_such_package.Metric", 2, ["no_such_package"]),
        ("metric_lab.NUMBER", 2, ["metric_lab.NUMBER is 3", "evaluate.Metric"]),
        ("metric_lab.Answer", 2, ["did you mean Answers?"]),
        ("metric_lab.Needy", 2, ["metric_lab.Needy() needs arguments"]),
        ("metric_lab.Answers", 2, ["evaluate.metrics[0].args", "answer"]),
        ({"name": "metric_lab.Answers", "args": {"answer": 1, "qestion": 2}}, 2, ["qestion"]),
        ("someone/their_metric", 2, ["Python code of someone", "model.trust_remote_code=true"]),
        ("metric_lab.share", 2, ["metric_lab.share asks for of", "the task gives predictions, probabilities"]),
        ({"name": "metric_lab.areas", "args": {"off": 2}}, 2, ["args.off", "did you mean of?"]),
        ("metric_lab.idle", 2, ["metric_lab.idle has no parameter without a default", "references"]),
    ],
)
def test_a_problem_says_where_what_and_what_to_do(
    lab: str, entry: Any, num_labels: int | None, parts: list[str]
) -> None:
    (problem,) = check_metrics([entry], num_labels=num_labels, outputs=SequenceClassification.outputs)
    assert problem.startswith("evaluate.metrics[0]")
    assert "\n" not in problem
    assert [part for part in parts if part not in problem] == []


def test_all_problems_come_at_once() -> None:
    entries: list[Any] = ["acuracy", "f1", {"name": "accuracy", "args": {"normalise": True}}, "accuracy"]
    problems = check_metrics(entries, num_labels=3)
    assert [problem.partition(":")[0].partition(".args")[0] for problem in problems] == [
        f"evaluate.metrics[{index}]" for index in range(4)
    ]


@pytest.mark.parametrize(
    ("entries", "key"),
    [
        (["f1", "glue/mrpc"], "f1"),
        (["meteor", "meteor"], "meteor"),
        ([{"name": "f1", "key": "score"}, {"name": "recall", "key": "score"}], "score"),
        (
            [{"name": "f1", "args": {"average": None}}, {"name": "f1", "args": {"average": None, "labels": [1, 0]}}],
            "f1/1",
        ),
    ],
)
def test_two_metrics_with_one_key_are_a_problem(entries: list[Any], key: str) -> None:
    problems = check_metrics(entries, num_labels=2)
    assert any(
        problem.startswith("evaluate.metrics[1]") and f"reports {key}, as" in problem and "key:" in problem
        for problem in problems
    )


def test_reported_keys_are_those_that_computing_gives() -> None:
    entries: list[Any] = [
        {"name": "glue/mrpc", "key": "pairs"},
        "accuracy",
        {"name": "f1", "args": {"average": None}},
        {"name": "recall", "args": {"average": None, "labels": [1]}, "key": "found"},
    ]
    results = compute_metrics(load_metrics(entries, num_labels=2), pair([0, 1, 1], [0, 1, 0]))
    assert reported_keys(entries, num_labels=2) == list(results)
    assert reported_keys([*entries, "meteor"], num_labels=2) is None


# ---- metrics from elsewhere


def test_a_dotted_path_computes_in_memory(lab: str) -> None:
    (metric,) = load_metrics([{"name": f"{lab}.Answers", "args": {"answer": {"x": 1}}}], num_labels=2)
    assert metric.compute_rows.__self__.keep_in_memory
    assert metric.compute(pair([0.5], [1])) == metric.compute(pair([0.5, 1], [1, 1])) == {"x": 1.0}


def test_a_function_asks_for_outputs_by_the_names_of_its_parameters(lab: str) -> None:
    probabilities = np.array([[0.9, 0.1], [0.3, 0.7], [0.2, 0.8]])
    outputs = pair(np.array([0, 1, 1]), np.array([0, 0, 1])) | {"probabilities": probabilities}
    entries = [f"{lab}.areas", {"name": f"{lab}.areas", "args": {"of": 0}, "key": "zero"}]
    metrics = load_metrics([*entries, {"name": f"{lab}.share", "args": {"of": 1}}], num_labels=2)
    assert compute_metrics(metrics, outputs) == {
        "least": 0.8,
        "most": 0.8,
        "zero/least": 0.3,
        "zero/most": 0.9,
        "share": pytest.approx(2 / 3),
    }
    del outputs["probabilities"]
    (problem,) = problems_of(metrics[0].compute, outputs)
    assert "areas asks for probabilities" in problem


@pytest.mark.parametrize("form", ["file", "folder", "written as a path", "name of the file"])
def test_a_script_is_loaded_by_its_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str) -> None:
    folder = tmp_path / "spread"
    folder.mkdir()
    script = folder / "spread.py"
    script.write_text(SCRIPT)
    monkeypatch.chdir(folder if form == "name of the file" else tmp_path)
    names = {
        "file": str(script),
        "folder": str(folder),
        "written as a path": "./spread",
        "name of the file": "spread.py",
    }
    name = names[form]
    entry = {"name": name, "args": {"power": 2}}
    assert check_metrics([entry], num_labels=2) == []
    assert compute(entry) == {"spread": 4.0, "rows_seen": 4.0}


def test_a_name_does_not_run_a_script_that_happens_to_lie_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bleu").mkdir()
    (tmp_path / "bleu" / "bleu.py").write_text("raise SystemExit('it was run')")
    monkeypatch.chdir(tmp_path)
    (problem,) = check_metrics(["bleu"], num_labels=2)
    assert "write ./bleu" in problem


def test_a_script_is_checked_when_it_is_loaded(tmp_path: Path, lab: str) -> None:
    script = tmp_path / "spread.py"
    script.write_text(SCRIPT)
    broken = tmp_path / "broken.py"
    broken.write_text("import no_such_library\n")
    entries = [{"name": str(script), "args": {"powr": 2}}, f"{lab}.Lengths", str(broken), str(tmp_path / "gone.py")]
    problems = problems_of(load_metrics, entries, num_labels=2)
    assert len(problems) == 4
    for problem, part in zip(problems, ["powr", "works on data", "no_such_library", "gone.py"], strict=True):
        assert part in problem


def test_scores_of_each_class_need_to_know_the_classes() -> None:
    (problem,) = problems_of(load_metrics, [{"name": "f1", "args": {"average": None}}], num_labels=None)
    assert "average: null" in problem
    assert "labels: [0, 1, 2]" in problem


def test_a_name_is_found_on_the_hub_and_kept_for_when_there_is_none(hub: str, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = {"name": "spread", "args": {"power": 3}}
    assert compute(entry) == {"spread": 8.0, "rows_seen": 4.0}
    hub_probe.hub_is_reachable.cache_clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert compute(entry) == {"spread": 8.0, "rows_seen": 4.0}
    assert evaluate.config.HF_EVALUATE_OFFLINE is False


def test_a_name_that_the_hub_does_not_have_is_one_line(hub: str) -> None:
    problems = problems_of(load_metrics, ["sprad", "glue/wrong"], num_labels=2)
    assert len(problems) == 2
    assert "'sprad' cannot be loaded" in problems[0]
    assert "Hub" in problems[0]
    assert "accuracy, f1" in problems[0]


def test_a_hub_that_says_nothing_is_given_up_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_probe, "_PROBE_SECONDS", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes connections and never answers
        point_hub_at(f"http://127.0.0.1:{silent.getsockname()[1]}", monkeypatch)
        started = time.monotonic()
        problems = problems_of(load_metrics, ["meteor", "someone/theirs", "accuracy"], num_labels=2)
    assert time.monotonic() - started < 3
    assert [problem.partition(": ")[0] for problem in problems] == ["evaluate.metrics[0]", "evaluate.metrics[1]"]
    assert all("does not answer" in problem and "accuracy, f1" in problem for problem in problems)


def test_offline_fails_at_once_and_asks_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    started = time.monotonic()
    (problem,) = problems_of(load_metrics, ["meteor"], num_labels=2)
    assert time.monotonic() - started < 2
    assert "'meteor' cannot be loaded" in problem
    assert "HF_HUB_OFFLINE" in problem
    assert "accuracy, f1" in problem


def test_checking_names_imports_neither_evaluate_nor_sklearn() -> None:
    program = (
        "import sys\n"
        "from trainer_loop.metrics.load import check_metrics\n"
        "check_metrics(['accuracy', {'name': 'f1', 'args': {'average': None}}, 'acuracy', 'rouge'], num_labels=3)\n"
        "print([name for name in ('evaluate', 'datasets', 'sklearn', 'torch') if name in sys.modules])\n"
    )
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert finished.stdout == "[]\n"


def test_computing_shipped_metrics_and_functions_does_not_import_evaluate(lab: str) -> None:
    program = (
        "import sys\n"
        "import numpy as np\n"
        "from trainer_loop.metrics.load import check_metrics, load_metrics\n"
        "from trainer_loop.metrics.named_metric import compute_metrics\n"
        "entries = ['accuracy', 'functions.share']\n"
        "assert check_metrics(entries, num_labels=2) == []\n"
        "columns = {'predictions': np.array([1, 0]), 'references': np.array([1, 1])}\n"
        "results = compute_metrics(load_metrics(entries, num_labels=2), columns)\n"
        "print(results, [name for name in ('evaluate', 'datasets', 'torch') if name in sys.modules])\n"
    )
    Path("functions.py").write_text("def share(predictions):\n    return predictions.mean()\n")
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert finished.stdout == "{'accuracy': 0.5, 'share': 0.5} []\n"


def test_a_metric_of_entities_needs_tags_with_names() -> None:
    numbered = {"num_labels": 3, "label_names": ["0", "1", "2"]}
    (problem,) = check_metrics(["entity_f1", "tag_accuracy"], **numbered)
    assert "entity_f1 reads the names of the tags, and these are numbers (0, 1, 2, ...)" in problem
    named = {"name": "entity_f1", "args": {"label_names": ["O", "B-PER", "I-PER"]}}
    assert check_metrics([named], **numbered) == []
    assert check_metrics(["entity_f1"], num_labels=3, label_names=["O", "B-1", "I-1"]) == []
