"""The service in this process: its answers equal those of `Predictor`, and it explains what it refuses."""

import asyncio
import json
import re
import threading
import time
from base64 import b64encode
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from PIL import Image
from small_predictors import example_rows, make_predictor

from trainer_loop import Predictor
from trainer_loop.service.app import Service, make_app
from trainer_loop.service.limits import ServiceLimits
from trainer_loop.tasks.find import list_tasks

ROWS = [{"text": "It broke."}, {"text": "A delight, from the first page to the last."}, {"text": "Never."}]


@pytest.fixture(scope="module")
def classifier() -> Predictor:
    return make_predictor("sequence_classification")


@pytest.fixture
def serve() -> Iterator[Callable[..., TestClient]]:
    """A client of a service: its model, its token, and limits by name."""
    services: list[Service] = []

    def make(predictor: Predictor, *, token: str | None = None, continues: bool = False, **limits: int) -> TestClient:
        services.append(Service(predictor, ServiceLimits(**limits), continues=continues))
        client = TestClient(make_app(services[-1], token=token), raise_server_exceptions=False)
        client.service = services[-1]
        return client

    yield make
    for service in services:
        service.close()


def assert_close(found: Any, expected: Any) -> None:
    """Whether both are the same JSON, with numbers equal to 1e-6."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            assert_close(found[name], value)
    elif isinstance(expected, list):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_close(one, other)
    else:
        assert found == (pytest.approx(expected, rel=1e-6, abs=1e-6) if isinstance(expected, float) else expected)


def errors_of(answer: Any, status: int) -> list[dict[str, Any]]:
    assert answer.status_code == status, answer.text
    errors = answer.json()["errors"]
    assert all(error.keys() == {"place", "value", "message"} for error in errors)
    return list(errors)


# ------------------------------------------------------------------------------------------------------- answers


@pytest.mark.parametrize("name", list_tasks())
def test_every_task_answers_as_predictor(name: str, serve: Callable[..., TestClient]):
    predictor = make_predictor(name)
    rows = example_rows(predictor, name)
    predicted = predictor.predict_rows({own: [row[own] for row in rows] for own in rows[0]}).rows
    expected = json.loads(json.dumps(predicted))
    client = serve(predictor)
    together = client.post("/predict", json={"rows": rows})
    assert together.status_code == 200, together.text
    assert_close(together.json()["predictions"], expected)
    alone = [client.post("/predict", json={"rows": [row]}) for row in rows]
    assert_close([answer.json()["predictions"][0] for answer in alone], expected)


def test_requests_predicted_together_get_the_same_answers_as_alone(
    classifier: Predictor, serve: Callable[..., TestClient]
):
    texts = [" ".join(["a delight", "it broke", "never"] * (1 + number % 9)) for number in range(24)]
    expected = classifier.predict(texts)
    client = serve(classifier, batch_ms=300, batch_rows=24)
    found: dict[int, Any] = {}

    def ask(number: int) -> None:
        found[number] = client.post("/predict", json={"rows": [texts[number], "never"]}).json()["predictions"]

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(24)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert_close([found[number][0] for number in range(24)], expected)
    metrics = client.get("/metrics").text
    assert 'requests_total{status="200"} 24.0' in metrics
    assert int(float(re.search(r"batch_rows_count (\S+)", metrics)[1])) < 12, "many requests share a batch"


def test_rows_may_have_the_names_of_the_training_data_and_be_texts_alone(serve: Callable[..., TestClient]):
    predictor = make_predictor("token_classification")
    predictor.columns = {"words": "tokens", "tags": "ner"}
    rows = [{"words": ["It", "broke"]}, {"tokens": ["It", "broke"]}, "It broke"]
    answers = serve(predictor).post("/predict", json={"rows": rows}).json()["predictions"]
    assert answers[0] == answers[1] == answers[2]


def test_every_column_of_the_training_is_read(serve: Callable[..., TestClient]):
    predictor = make_predictor("chat")
    predictor.columns = {"prompt": "ask", "context": "context", "tools": "tools"}
    client = serve(predictor, max_list_length=9)
    row = {"ask": "How often?", "context": "", "tools": [{"name": "ferry", "of": {"type": "object"}}]}
    assert client.post("/predict", json={"rows": [row]}).json()["predictions"][0].keys() == {"text"}
    for name, value, message in (
        ("ask", [{"role": "pilot", "content": "Hi"}], "has the role 'pilot'; allowed: system"),
        ("ask", [{"role": "user", "content": "Hi"}] * 10, "10 elements; allowed: 9"),
        ("ask", None, "no list of messages"),
        ("context", None, "must be a text"),
        ("tools", '[{"name": "ferry"}]', "must be a list of JSON schemas"),
        ("tools", None, "must be a list of JSON schemas"),
        ("tools", ["ferry"], "no list of JSON schemas"),
        ("tools", [{"a": [[1e999]]}], "no finite number"),
        ("tools", [{"\ud800": 1}], "surrogate"),
    ):
        body = json.dumps({"rows": [row | {name: value}]}).replace("Infinity", "1e999")
        answer = client.post("/predict", content=body, headers={"content-type": "application/json"})
        (error,) = errors_of(answer, 422)
        assert error["place"].startswith(f"rows[0].{name}")
        assert message in error["message"]


def test_a_language_model_continues_texts_if_the_command_has_settings_for_it(serve: Callable[..., TestClient]):
    predictor = make_predictor("causal_lm")
    texts = ["The ferry crosses", "", "Nobody"]
    assert serve(predictor).post("/predict", json={"rows": texts}).json()["predictions"][1] == {
        "loss": None,
        "perplexity": None,
    }
    predictor.use_generation({"max_new_tokens": 3})
    answers = serve(predictor, continues=True).post("/predict", json={"rows": texts}).json()["predictions"]
    assert [answer["continuation"] for answer in answers] == predictor.continue_texts(texts)


def test_a_text_without_tokens_has_no_loss_also_alone():
    predictor = make_predictor("causal_lm")
    assert predictor.predict([""]) == [{"loss": None, "perplexity": None}]


def test_numbers_that_are_not_finite_are_null(
    classifier: Predictor, serve: Callable[..., TestClient], monkeypatch: Any
):
    monkeypatch.setattr(classifier.task, "decode", lambda outputs, row: {"a": float("nan"), "b": [float("inf"), 1.5]})
    assert (
        serve(classifier).post("/predict", json={"rows": ROWS[:1]}).text
        == '{"predictions":[{"a":null,"b":[null,1.5]}]}'
    )


# ------------------------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("body", "status", "place", "message"),
    [
        (b'{"rows": [{"text": "\xff"}]}', 400, "body", "byte 20 is not UTF-8"),
        (b"{rows: 1}", 400, "body", "no JSON"),
        (b"", 400, "body", "no JSON"),
        (b"[" * 100_000, 400, "body", "nested|no JSON"),
        (b'{"rows": [NaN]}', 400, "body", "NaN is no number of JSON"),
        (b'{"rows": [{"text": -Infinity}]}', 400, "body", "-Infinity is no number"),
        (b'{"rows": [%s]}' % (b"1" * 5000), 400, "body", "no JSON"),
        (b'["It broke."]', 422, "body", 'it must be {"rows"'),
        (b'{"rows": ["a"], "more": 1}', 422, "body", 'it must be {"rows"'),
        (b'{"rows": "It broke."}', 422, "rows", "a list of 1 to 3 rows"),
        (b'{"rows": []}', 422, "rows", "a list of 1 to 3 rows"),
        (b'{"rows": ["a", "b", "c", "d"]}', 422, "rows", "a list of 1 to 3 rows"),
        (
            b'{"rows": ["a", {"txt": "b"}]}',
            422,
            "rows[1]",
            "the model reads text, and no such column; did you mean 'text'",
        ),
        (b'{"rows": [{"text": "a", "label": 1}]}', 422, "rows[0]", "reads text, and no such column$"),
        (b'{"rows": [{"text": "a", "labels": 1}]}', 422, "rows[0]", "reads text, and no such column$"),
        (b'{"rows": [{}]}', 422, "rows[0].text", "missing"),
        (b'{"rows": [{"text": 7}]}', 422, "rows[0].text", "must be a text"),
        (b'{"rows": [{"text": null}]}', 422, "rows[0].text", "must be a text"),
        (b'{"rows": [{"text": 1e999}]}', 422, "rows[0].text", "no finite number"),
        (b'{"rows": [{"text": " \\n"}]}', 422, "rows[0].text", "empty"),
        (b'{"rows": [{"text": "\\ud800"}]}', 422, "rows[0].text", "surrogate"),
        (b'{"rows": [{"text": "123456789"}]}', 422, "rows[0].text", "9 characters; allowed: 8"),
        (b'{"rows": [{"text": %s}]}' % (b"[" * 40 + b"]" * 40), 422, "rows[0].text", "32 levels"),
        (b'{"rows": [7]}', 422, "rows[0]", "an object with text, or a text"),
        (b'{"rows": [{"text": "a"}]}' + b" " * 1000, 413, "body", "allowed: 1,000 bytes"),
    ],
)
def test_an_invalid_body_is_refused(
    body: bytes, status: int, place: str, message: str, classifier: Predictor, serve: Callable[..., TestClient]
):
    limits = {"max_rows": 3, "max_text_length": 8, "max_body_bytes": 1000 if status == 413 else 200_000}
    client = serve(classifier, **limits)
    error = errors_of(client.post("/predict", content=body, headers={"content-type": "application/json"}), status)[0]
    assert error["place"] == place
    assert re.search(message, error["message"]), error
    assert client.post("/predict", json={"rows": ["a"]}).status_code == 200


def test_all_faults_of_a_request_are_reported_at_once(classifier: Predictor, serve: Callable[..., TestClient]):
    errors = errors_of(serve(classifier).post("/predict", json={"rows": [{"text": 1}, "fine", {"tex": "a"}]}), 422)
    assert [error["place"] for error in errors] == ["rows[0].text", "rows[2]", "rows[2].text"]
    many = {f"column{number}": 1 for number in range(100_000)}
    began = time.monotonic()
    assert len(errors_of(serve(classifier).post("/predict", json={"rows": [many]}), 422)) <= 21
    assert time.monotonic() - began < 5


def test_a_row_that_cannot_be_predicted_fails_no_other_request(serve: Callable[..., TestClient]):
    predictor = make_predictor("masked_lm")
    mask = predictor.processor.mask_token
    client = serve(predictor, batch_ms=300, batch_rows=3)
    answers: dict[str, Any] = {}

    def ask(name: str, rows: list[str]) -> None:
        answers[name] = client.post("/predict", json={"rows": rows})

    asked = {"good": [f"A {mask}."], "bad": [f"A {mask}.", "none"]}
    threads = [threading.Thread(target=ask, args=one) for one in asked.items()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers["good"].status_code == 200
    (error,) = errors_of(answers["bad"], 422)
    assert error["place"] == "rows[1]"
    assert error["message"].startswith(f"has no {mask} to fill in")


def test_only_json_is_read_and_other_addresses_are_refused(classifier: Predictor, serve: Callable[..., TestClient]):
    client = serve(classifier)
    as_form = client.post("/predict", content=b'{"rows": ["a"]}', headers={"content-type": "text/plain"})
    assert errors_of(as_form, 415)[0]["place"] == "header content-type"
    assert "POST /predict" in errors_of(client.get("/nowhere"), 404)[0]["message"]
    assert client.get("/predict").headers["allow"] == "POST"
    typed = {"content-type": "application/json; charset=utf-8"}
    assert client.post("/predict", content=b'{"rows": ["a"]}', headers=typed).status_code == 200


def test_a_token_is_required_if_one_is_set(classifier: Predictor, serve: Callable[..., TestClient]):
    client = serve(classifier, token="s3cret")
    for given in ({}, {"authorization": "Bearer s3cre"}, {"authorization": "s3cret"}, {"authorization": "Bearer \xe9"}):
        raw = {name: value.encode("latin-1") for name, value in given.items()}
        answer = client.post("/predict", json={"rows": ["a"]}, headers=raw)
        assert errors_of(answer, 401)[0]["place"] == "header authorization"
        assert answer.headers["www-authenticate"] == "Bearer"
        assert client.get("/metrics", headers=raw).status_code == 401
    given = {"authorization": "Bearer s3cret"}
    assert client.post("/predict", json={"rows": ["a"]}, headers=given).status_code == 200
    assert client.get("/metrics", headers=given).status_code == 200
    assert client.get("/health").json() == {"status": "ok"}
    assert client.get("/openapi.json").json()["paths"]["/predict"]["post"]["security"]


def test_a_full_queue_a_slow_answer_and_a_stop(
    classifier: Predictor, serve: Callable[..., TestClient], monkeypatch: Any
):
    started, may_continue = threading.Event(), threading.Event()
    predict_rows = classifier.predict_rows

    def wait(*arguments: Any, **options: Any) -> Any:
        started.set()
        assert may_continue.wait(10)
        return predict_rows(*arguments, **options)

    monkeypatch.setattr(classifier, "predict_rows", wait)
    client = serve(classifier, max_queue=1, max_seconds=1)
    answers: list[Any] = []
    first = threading.Thread(target=lambda: answers.append(client.post("/predict", json={"rows": ["a"]})))
    first.start()
    assert started.wait(10)
    full = client.post("/predict", json={"rows": ["b"]})
    assert "1 requests wait already" in errors_of(full, 429)[0]["message"]
    assert full.headers["retry-after"] == "1"
    client.service.is_stopping = True
    assert "stopping" in errors_of(client.post("/predict", json={"rows": ["b"]}), 503)[0]["message"]
    assert client.get("/health").status_code == 503
    first.join()
    assert "no answer within 1 seconds" in errors_of(answers[0], 503)[0]["message"]
    assert client.service.num_open == 0
    may_continue.set()
    client.service.is_stopping = False
    assert client.post("/predict", json={"rows": ["b"]}).status_code == 200


@pytest.mark.parametrize("leaves", ["while it sends", "while it waits"])
def test_rows_of_a_client_that_left_are_not_predicted(
    leaves: str, classifier: Predictor, serve: Callable[..., TestClient], monkeypatch: Any
):
    passes: list[int] = []
    predict = classifier.task.predict
    monkeypatch.setattr(classifier.task, "predict", lambda *given: passes.append(1) or predict(*given))
    client = serve(classifier, batch_ms=500)
    body = json.dumps({"rows": ["a"]}).encode()
    messages = [
        {"type": "http.request", "body": body, "more_body": leaves == "while it sends"},
        {"type": "http.disconnect"},
    ]
    headers = [(b"content-type", b"application/json")]
    scope = {"type": "http", "method": "POST", "path": "/predict", "headers": headers, "query_string": b""}

    async def receive() -> dict[str, Any]:
        return messages.pop(0)

    async def send(message: dict[str, Any]) -> None:
        pass

    asyncio.run(client.app(scope, receive, send))
    assert client.service.num_open == 0
    client.service.close()
    assert passes == []
    assert 'requests_total{status="499"} 1.0' in client.get("/metrics").text


def test_a_body_that_does_not_arrive_in_time_is_refused(classifier: Predictor, serve: Callable[..., TestClient]):
    client = serve(classifier, max_seconds=1)
    sent: list[dict[str, Any]] = []
    headers = [(b"content-type", b"application/json")]
    scope = {"type": "http", "method": "POST", "path": "/predict", "headers": headers, "query_string": b""}

    async def receive() -> dict[str, Any]:
        await asyncio.sleep(60)
        raise AssertionError

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    asyncio.run(client.app(scope, receive, send))
    assert sent[0]["status"] == 408


def test_a_bug_is_reported_and_the_service_continues(
    classifier: Predictor, serve: Callable[..., TestClient], monkeypatch: Any
):
    client = serve(classifier)
    with monkeypatch.context() as patch:
        patch.setattr(classifier.task, "decode", lambda outputs, row: 1 / 0)
        assert errors_of(client.post("/predict", json={"rows": ["a"]}), 500)[0]["value"] == "'ZeroDivisionError'"
        patch.setattr(classifier.task, "decode", lambda outputs, row: [][1:] or _run_out())
        assert "memory" in errors_of(client.post("/predict", json={"rows": ["a"]}), 503)[0]["message"]
    assert client.post("/predict", json={"rows": ["a"]}).status_code == 200


def _run_out() -> None:
    raise MemoryError


# -------------------------------------------------------------------------------------------------------- images


def as_uri(image: Image.Image, kind: str = "png") -> str:
    buffer = BytesIO()
    image.save(buffer, kind)
    return f"data:image/{kind};base64,{b64encode(buffer.getvalue()).decode()}"


@pytest.fixture(scope="module")
def of_images() -> Predictor:
    return make_predictor("image_classification")


def test_no_file_of_the_server_is_read(of_images: Predictor, serve: Callable[..., TestClient], tmp_path: Path):
    path = tmp_path / "secret.png"
    Image.new("RGB", (8, 8)).save(path)
    assert of_images.predict([str(path)]), "predict itself reads it"
    client = serve(of_images)
    names = [
        str(path),
        path.as_uri(),
        {"path": str(path)},
        {"bytes": None, "path": str(path)},
        "http://localhost/a.png",
    ]
    for name in names:
        for row in ({"image": name}, *([name] if isinstance(name, str) else [])):
            (error,) = errors_of(client.post("/predict", json={"rows": [row]}), 422)
            assert "it must be a data URI" in error["message"]
            assert "no files are read here" in error["message"]


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp", "gif", "bmp"])
def test_an_image_is_a_data_uri(kind: str, of_images: Predictor, serve: Callable[..., TestClient]):
    uri = as_uri(Image.radial_gradient("L").convert("RGB"), kind)
    answer = serve(of_images).post("/predict", json={"rows": [{"image": uri}, uri]})
    assert_close(answer.json()["predictions"], of_images.predict([uri, uri]))


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        (as_uri(Image.new("RGB", (200, 101))), r"20,200 pixels \(200 x 101\); allowed: 20,000"),
        (as_uri(Image.new("RGB", (9, 9)))[:-40], "base64|cannot be read|no image"),
        (as_uri(Image.new("RGB", (9, 9)), "tiff"), "allowed: PNG, JPEG"),
        (as_uri(Image.new("RGB", (9, 9)), "eps"), "allowed: PNG, JPEG"),
        ("data:image/svg+xml;base64,PHN2Zy8+", "allowed: PNG, JPEG"),
        ("data:image/png;base64,", "without base64"),
        ("data:image/png;base64,\u00e9", "no base64"),
        ("data:image/png,abc", "without base64"),
    ],
)
def test_an_image_that_is_refused(uri: str, message: str, of_images: Predictor, serve: Callable[..., TestClient]):
    (error,) = errors_of(serve(of_images, max_pixels=20_000).post("/predict", json={"rows": [uri]}), 422)
    assert re.search(message, error["message"]), error
    assert len(error["value"] or "") <= 60


# --------------------------------------------------------------------------------------------------- description


def test_the_docs_page_needs_no_network(classifier: Predictor, serve: Callable[..., TestClient]):
    client = serve(classifier)
    page = client.get("/docs").text
    loaded = re.findall(r'(?:src|href)="([^"]+)"', page)
    assert len(loaded) == 3
    assert all(client.get(address).status_code == 200 for address in loaded)
    assert "://" not in page


@pytest.mark.parametrize("name", list_tasks())
def test_the_example_of_the_description_is_answered(name: str, serve: Callable[..., TestClient]):
    client = serve(make_predictor(name))
    body = client.get("/openapi.json").json()["paths"]["/predict"]["post"]["requestBody"]
    assert client.post("/predict", json=body["content"]["application/json"]["example"]).status_code == 200


def test_a_column_that_is_named_twice(serve: Callable[..., TestClient]):
    predictor = make_predictor("token_classification")
    predictor.columns = {"words": "tokens", "tags": "ner"}
    (error,) = errors_of(serve(predictor).post("/predict", json={"rows": [{"words": ["a"], "tokens": ["a"]}]}), 422)
    assert "the same column" in error["message"]
