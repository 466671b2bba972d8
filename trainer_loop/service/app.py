"""The service as an ASGI application: POST /predict, GET /health, GET /metrics and a page at /docs."""

import asyncio
import hmac
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from fastapi import Depends, FastAPI, Request, Response
from fastapi.security import HTTPBearer
from fastapi_offline import FastAPIOffline
from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)
from pydantic_core import to_json
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from trainer_loop.data.wording import shorten
from trainer_loop.errors import UserError
from trainer_loop.predictor import Predictor
from trainer_loop.record.run_dir import package_versions
from trainer_loop.runtime.host import return_free_memory_once
from trainer_loop.runtime.memory import is_out_of_memory
from trainer_loop.service.batcher import Batcher, Job, Row
from trainer_loop.service.description import describe_answers, describe_request
from trainer_loop.service.limits import ServiceLimits
from trainer_loop.service.rows import MOST_FAULTS, Fault, Faults, Refusal, RowReader

_SECONDS_BETWEEN_RETURNS = 2.0  # of freed memory to the system
_RETRY = {"retry-after": "1"}
_CLIENT_LEFT = 499  # nginx's code for a request whose client has left; it is seen in the metrics only


class Metrics:
    """The Prometheus metrics of one service."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        options: dict[str, Any] = {"namespace": "trainer_loop", "registry": self.registry}
        self.requests = Counter("requests", "answers to POST /predict", ["status"], **options)
        self.seconds = Histogram("request_seconds", "from the first byte of a request to its answer", **options)
        self.open = Gauge("requests_open", "requests that are read, wait or are predicted", **options)
        self.rows = Histogram(
            "batch_rows", "rows that were predicted together", buckets=[2**power for power in range(11)], **options
        )
        self.batch_seconds = Histogram("batch_seconds", "to predict these rows", **options)


class Service:
    """Answers requests with the predictions of a model.

    Args:
        predictor: The model. Only the thread of the service may call it from now on.
        limits: The limits of requests.
        continues: Whether texts are continued, by a model that can; otherwise only their loss is predicted.
    """

    def __init__(self, predictor: Predictor, limits: ServiceLimits, *, continues: bool = False):
        self.predictor = predictor
        self.limits = limits
        self.metrics = Metrics()
        self.is_stopping = False  # no new request is accepted
        self.num_open = 0
        self.reader = RowReader(predictor, limits)
        self._continues = continues and predictor.task.continues
        self._batcher = Batcher(
            self._predict,
            batch_rows=limits.batch_rows,
            seconds=limits.batch_ms / 1000,
            report=self._end_batch,
        )
        self._returned = time.monotonic()  # time at which freed memory was returned last

    def close(self) -> None:
        """Answer the waiting requests, and end the thread of the model."""
        self._batcher.close()

    def _predict(
        self, rows: Sequence[Row], names: Sequence[str], before_pass: Callable[[], None]
    ) -> list[dict[str, Any]]:
        columns = {name: [row[name] for row in rows] for name in self.reader.columns}
        predicted = self.predictor.predict_rows(columns, origin_of=names.__getitem__, before_pass=before_pass).rows
        if not self._continues:
            return predicted
        before_pass()
        (texts,) = columns.values()
        continuations = self.predictor.continue_texts(texts, origin_of=names.__getitem__)
        return [{**row, "continuation": text} for row, text in zip(predicted, continuations, strict=True)]

    def _end_batch(self, rows: int, seconds: float) -> None:
        """Update the metrics, and return freed memory: texts of other lengths cannot use it, so it would grow."""
        self.metrics.rows.observe(rows)
        self.metrics.batch_seconds.observe(seconds)
        if time.monotonic() - self._returned > _SECONDS_BETWEEN_RETURNS:
            return_free_memory_once()
            self._returned = time.monotonic()

    async def answer(self, request: Request) -> list[dict[str, Any]]:
        """Return the predictions for the rows of a request. Raises Refusal."""
        start = time.monotonic()
        with self._opening():
            _check_type(request)
            try:
                body = await asyncio.wait_for(self._read_body(request), self.limits.max_seconds)
            except asyncio.TimeoutError as error:
                message = f"it must arrive within {self.limits.max_seconds} seconds"
                raise Refusal.of(408, "body", None, message) from error
            except ClientDisconnect as error:
                raise Refusal.of(_CLIENT_LEFT, "body", None, "the client left") from error
            rows = await asyncio.to_thread(self.reader.read, body)  # a large body must not block other requests
            job = Job(rows, [f"rows[{number}]" for number in range(len(rows))])
            self._batcher.submit(job)
            return await self._wait(job, request, until=start + self.limits.max_seconds)

    @contextmanager
    def _opening(self) -> Iterator[None]:
        if self.is_stopping:
            raise Refusal.of(503, "service", None, "it is stopping and accepts no new requests")
        if self.num_open >= self.limits.max_queue:
            message = f"{self.num_open:,} requests wait already; allowed: {self.limits.max_queue:,}; try again later"
            raise Refusal.of(429, "service", None, message)
        self.num_open += 1
        try:
            yield
        finally:
            self.num_open -= 1

    async def _read_body(self, request: Request) -> bytes:
        """Read the body. One that is too large is read and dropped before the refusal, so that the client sees why."""
        most, body, count = self.limits.max_body_bytes, bytearray(), 0
        is_held_back = "expect" in request.headers  # the client sends the body only if it is asked to
        announced = int(length) if (length := request.headers.get("content-length", "")).isdecimal() else 0
        if not (is_held_back and announced > most):
            async for part in request.stream():
                count += len(part)
                body += part if count <= most else b""
        if max(count, announced) > most:
            raise Refusal(413, [Fault("body", f"{max(count, announced):,} bytes", f"allowed: {most:,} bytes")])
        return bytes(body)

    async def _wait(self, job: Job, request: Request, *, until: float) -> list[dict[str, Any]]:
        """Wait for the answer to a job, until the client leaves or the time is over."""
        answer = asyncio.wrap_future(job.answer)
        gone = asyncio.ensure_future(_wait_until_gone(request))
        either: set[asyncio.Future[Any]] = {answer, gone}
        try:
            await asyncio.wait(either, timeout=until - time.monotonic(), return_when=asyncio.FIRST_COMPLETED)
        finally:
            gone.cancel()
            if not answer.done():
                job.abandon()
                answer.cancel()
        if answer.cancelled():
            status = _CLIENT_LEFT if gone.done() and not gone.cancelled() else 503
            raise Refusal.of(status, "service", None, f"there was no answer within {self.limits.max_seconds} seconds")
        try:
            return answer.result()
        except UserError as error:
            raise Refusal(422, [_read_fault(problem) for problem in error.problems[:MOST_FAULTS]]) from error
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            message = "the memory is too small for these rows; send fewer, or shorter ones"
            raise Refusal.of(503, "rows", None, message) from error


def make_app(service: Service, *, token: str | None = None) -> FastAPI:
    """Make the application.

    Args:
        service: Answers the requests.
        token: Requests for predictions and metrics must have it as a bearer token; None: no token is needed.
    """
    app: FastAPI = FastAPIOffline(
        title="trainer_loop",
        version=package_versions()["trainer_loop"],
        redoc_url=None,
        swagger_ui_parameters={"validatorUrl": None},  # it would be an address on the internet
    )
    guards = [Depends(HTTPBearer(auto_error=False))] if token else []  # also described in OpenAPI

    @app.post(
        "/predict",
        summary="Predict rows",
        responses=describe_answers(service.predictor.task.predicted),
        openapi_extra={"requestBody": describe_request(service.reader)},
        dependencies=guards,
    )
    async def predict(request: Request) -> Response:
        start, status = time.monotonic(), 500
        try:
            _check_token(request, token)
            predictions = await service.answer(request)
            status = 200
            return _as_json(200, {"predictions": predictions})
        except Refusal as refusal:
            status = refusal.status
            return _refuse(refusal)
        finally:
            service.metrics.requests.labels(status).inc()
            service.metrics.seconds.observe(time.monotonic() - start)

    @app.get("/health", summary="200 if requests are accepted, 503 if the service is stopping")
    async def health() -> Response:
        status = "stopping" if service.is_stopping else "ok"
        return _as_json(503 if service.is_stopping else 200, {"status": status})

    @app.get("/metrics", summary="Figures for Prometheus, as text", dependencies=guards)
    async def metrics(request: Request) -> Response:
        _check_token(request, token)
        service.metrics.open.set(service.num_open)
        return Response(generate_latest(service.metrics.registry), media_type=CONTENT_TYPE_LATEST)

    @app.exception_handler(Refusal)
    async def answer_refusal(request: Request, refusal: Refusal) -> Response:
        return _refuse(refusal)

    @app.exception_handler(HTTPException)
    async def answer_unknown_route(request: Request, error: HTTPException) -> Response:
        allowed = "there are POST /predict, GET /health, GET /metrics and GET /docs"
        fault = Fault("address", f"{request.method} {shorten(request.url.path)}", allowed)
        return _refuse(Refusal(error.status_code, [fault]), headers=error.headers)

    @app.exception_handler(Exception)
    async def answer_bug(request: Request, error: Exception) -> Response:
        message = "this is a bug of the service; its log says more"
        return _refuse(Refusal.of(500, "service", type(error).__name__, message))

    return app


def _check_token(request: Request, token: str | None) -> None:
    if token is None:
        return
    options = next((value for name, value in request.scope["headers"] if name == b"authorization"), b"")
    scheme, _, word = bytes(options).partition(b" ")
    if scheme.lower() != b"bearer" or not hmac.compare_digest(word.strip(), token.encode()):
        raise Refusal.of(401, "header authorization", None, 'it must be "Bearer TOKEN", with the token of the service')


def _check_type(request: Request) -> None:
    """Require JSON, because pages of other origins cannot send this type without permission (CORS)."""
    options = request.headers.get("content-type", "")
    if options.partition(";")[0].strip().lower() != "application/json":
        raise Refusal.of(415, "header content-type", options, "it must be application/json")


async def _wait_until_gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _read_fault(problem: str) -> Fault:
    """Convert a problem of the predictor, which starts with the place of the row, to a fault."""
    place, _, message = problem.partition(" ") if problem.startswith("rows[") else ("rows", "", problem)
    return Fault(place.rstrip(":"), None, message)


def _refuse(refusal: Refusal, *, headers: Mapping[str, str] | None = None) -> Response:
    options = dict(headers or {})
    options |= {429: _RETRY, 503: _RETRY, 401: {"www-authenticate": "Bearer"}}.get(refusal.status, {})
    options |= {"connection": "close"} if refusal.status in (401, 408, 413, 415, 429) else {}  # the body may be unread
    return _as_json(refusal.status, Faults(refusal.faults), headers=options)


def _as_json(status: int, content: Any, *, headers: Mapping[str, str] | None = None) -> Response:
    """Make a JSON response, with null for numbers that are not finite, as in files of predictions."""
    return Response(to_json(content, inf_nan_mode="null"), status, headers, media_type="application/json")
