"""The service at its address: its stop, and an address that another process uses at the same time."""

import signal
import socket
import threading
import time
from collections.abc import Iterator

import pytest
import uvicorn
from small_predictors import make_predictor

from trainer_loop import UserError
from trainer_loop.service import server
from trainer_loop.service.app import Service, make_app
from trainer_loop.service.limits import ServiceLimits
from trainer_loop.service.server import bind, serve

LARGE = b"GET /static-offline-docs/swagger-ui-bundle.js HTTP/1.1\r\nhost: here\r\n\r\n"  # more than a megabyte


@pytest.fixture
def service() -> Iterator[Service]:
    service = Service(make_predictor("sequence_classification"), ServiceLimits())
    yield service
    service.close()


def test_a_client_that_does_not_read_its_answers_does_not_delay_the_stop(
    service: Service, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setattr(server, "_SECONDS_TO_READ", 0.2)
    bound, started = bind("127.0.0.1", 0), threading.Event()
    place = bound.getsockname()
    thread = threading.Thread(target=lambda: serve(make_app(service), service, bound, on_start=started.set))
    thread.start()
    assert started.wait(20)
    with socket.create_connection(place) as client:
        client.sendall(20 * LARGE)  # more than the system buffers
        time.sleep(0.3)
        service.is_stopping = True
        thread.join(timeout=20)
        assert not thread.is_alive()
    assert not caplog.records


def test_an_address_on_which_another_process_listens_after_it_was_bound(service: Service):
    first = bind("127.0.0.1", 0)
    port = first.getsockname()[1]
    second = bind("127.0.0.1", port)  # Linux allows it while neither listens
    with first, second:
        first.listen()
        with pytest.raises(UserError, match=f"host=127.0.0.1 port={port} cannot be bound: .*; choose another port"):
            serve(make_app(service), service, second, on_start=lambda: None)


def test_a_second_signal_ends_the_service_at_once(service: Service):
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        server._Server(uvicorn.Config(make_app(service)), service, lambda: None).handle_exit(signal.SIGTERM, None)
        assert {signal.getsignal(number) for number in before} == {signal.SIG_DFL}
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert service.is_stopping
