"""Generated requests: each gets an answer, and none shows a bug."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small_predictors import example_rows, make_predictor

from trainer_loop.service.app import Service, make_app
from trainer_loop.service.limits import ServiceLimits
from trainer_loop.tasks.find import list_tasks

_QUICK = "sequence_classification"
_SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in list_tasks() if name != _QUICK]
# What may stand in place of some bytes of a request.
_SPLICES = (b"", b"\xff", b"\x00", b"\\ud800", b"\\u0000", b"NaN", b"1e999", b"null", b"-0", b'"', b"[", b"{", b"]" * 5)
_SPLICES += (
    b"[" * 5000,
    b"1" * 5000,
    b'{"a": {"b": [[]]}}',
    b"[[], {}]",
    b'"role"',
    b"[UNK]",
    b"\xf0\x9f\x98\x80",
    b"true",
)


@pytest.fixture(scope="module", params=[_QUICK, *_SLOW])
def served(request: pytest.FixtureRequest) -> Iterator[tuple[str, Service]]:
    service = Service(make_predictor(request.param), ServiceLimits(batch_ms=0, max_rows=8))
    yield request.param, service
    service.close()


def often(served: tuple[str, Service]) -> settings:
    """Try fewer requests in `make test`, which tests one task."""
    count = 20 if served[0] == _QUICK else 60
    return settings(max_examples=count, deadline=None, database=None, suppress_health_check=list(HealthCheck))


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["positive", "negative"])
def test_requests_that_the_description_allows_or_forbids(mode: str, served: tuple[str, Service]):
    import schemathesis  # seconds

    schema = schemathesis.openapi.from_asgi("/openapi.json", make_app(served[1]))
    operation = schema["/predict"]["POST"]
    statuses = set()

    @often(served)
    @given(case=operation.as_strategy(generation_mode=schemathesis.GenerationMode(mode)))
    def ask(case: Any) -> None:
        answer = case.call()
        statuses.add(answer.status_code)
        assert answer.status_code < 500, answer.text
        answer.json()

    ask()
    if mode == "negative":
        assert 200 not in statuses
    elif served[0] not in ("masked_lm", "image_classification"):  # no schema says what a mask or an image is
        assert 200 in statuses


def test_a_request_with_changed_bytes(served: tuple[str, Service]):
    name, service = served
    body = json.dumps({"rows": example_rows(service.predictor, name)[:2]}).encode()
    client = TestClient(make_app(service), raise_server_exceptions=False)
    places = st.lists(st.tuples(st.integers(0, len(body)), st.integers(0, 12), st.sampled_from(_SPLICES)), max_size=3)

    @often(served)
    @given(places)
    def ask(splices: list[tuple[int, int, bytes]]) -> None:
        changed = body
        for start, length, splice in splices:
            changed = changed[:start] + splice + changed[start + length :]
        answer = client.post("/predict", content=changed, headers={"content-type": "application/json"})
        assert answer.status_code in (200, 400, 422), (changed, answer.text)
        answer.json()

    ask()
