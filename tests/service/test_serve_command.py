"""`python -m trainer_loop.serve` as a process, and its messages about wrong arguments."""

import json
import re
import signal
import socket
import threading
import time
import urllib.request
from pathlib import Path
from typing import Any

import fork_server
import pytest
from small_predictors import make_predictor

from trainer_loop.cli import serve
from trainer_loop.service.limits import ServiceLimits
from trainer_loop.service.server import bind, is_public

PAGE = Path(__file__).parents[2] / "docs" / "serve.md"


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("served")
    predictor = make_predictor("sequence_classification")
    predictor.model.save_pretrained(folder)
    predictor.processor.save_pretrained(folder)
    return folder


def ask(address: str, body: bytes) -> tuple[int, Any]:
    request = urllib.request.Request(f"{address}/predict", body, {"content-type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def test_the_command_answers_until_a_signal_and_then_finishes_what_it_accepted(model_dir: Path, tmp_path: Path):
    output = tmp_path / "output.txt"
    words = ["-m", "trainer_loop.serve", f"model={model_dir}", "port=0", "batch_ms=1000", "max_body_bytes=100000"]
    with output.open("w") as stream:
        process = fork_server.start(words, cwd=tmp_path, stdout=stream, stderr=stream)
    while (found := re.search(r"at (http://127.0.0.1:(\d+));", output.read_text())) is None:
        assert process.poll() is None, output.read_text()
        time.sleep(0.05)
    address, port = found[1], int(found[2])
    status, answer = ask(address, b'{"rows": ["It broke."]}')
    assert status == 200
    assert answer["predictions"][0].keys() == {"label", "probability"}
    assert ask(address, b'{"rows": ["\xff"]}')[0] == 400
    assert ask(address, b"[" * 90_000)[0] == 400
    assert ask(address, b" " * 5_000_000)[0] == 413
    for sent in (b"POST /predict HTTP/1.1\r\ncontent-length: 9\r\n", b"\x16\x03\x01 no HTTP\r\n\r\n"):
        with socket.create_connection(("127.0.0.1", port)) as client:  # and leaves
            client.sendall(sent)
    accepted: list[Any] = []
    slow = threading.Thread(target=lambda: accepted.append(ask(address, b'{"rows": ["It broke."]}')))
    slow.start()
    while urllib.request.urlopen(f"{address}/metrics").read().count(b"requests_open 1.0") == 0:
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    while urllib.request.urlopen(f"{address}/metrics").read().count(b"requests_open 1.0") and slow.is_alive():
        status, refused = ask(address, b'{"rows": ["It broke."]}')
        if status == 503:
            break
    assert (status, refused["errors"][0]["place"]) == (503, "service")
    slow.join()
    assert accepted == [(200, answer)]
    assert process.wait(timeout=20) == 0
    assert output.read_text().endswith("stopped: every request that was accepted is answered\n")
    assert "Traceback" not in output.read_text()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["port=8000"], "model= is missing"),
        (["model=nowhere"], "model=nowhere: no such directory"),
        (["model=here", "prot=1"], "unknown key prot"),
        (["model=here", "port=70000", "max_rows=0"], "max_rows=0: it must be a whole number from 1"),
        (["model=here", "port=70000"], "port=70000: it must be at most 65,535"),
        (["model=here", "batch_ms=20000"], "batch_ms=20000: it must be at most 10,000"),
        (["model=here", "host="], "host= is empty; leave it out"),
        (["model=here", "port=many"], "port=many: it must be a whole number from 0"),
        (["model=here", f"port={'9' * 5000}"], f"port={'9' * 297}...: it must be a whole number from 0"),
    ],
)
def test_wrong_arguments_are_reported(words: list[str], message: str, capfd: pytest.CaptureFixture[str]):
    assert serve.main(words) == 2
    assert message in capfd.readouterr().err


def test_a_wrong_environment_is_reported(
    model_dir: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    with bind("127.0.0.1", 0) as taken:
        taken.listen()
        assert serve.main([f"model={model_dir}", f"port={taken.getsockname()[1]}"]) == 2
    assert "Address already in use; choose another port" in capfd.readouterr().err
    assert serve.main([f"model={model_dir}", "host=no.such.host.invalid"]) == 2
    assert "host=no.such.host.invalid: it is no address of this machine" in capfd.readouterr().err
    assert serve.main([f"model={model_dir}", "max_new_tokens=4"]) == 2
    assert "max_new_tokens= is given, but a model of the task sequence_classification" in capfd.readouterr().err
    for token in ("", "two words", "t\u00f6ken"):
        monkeypatch.setenv("TRAINER_LOOP_TOKEN", token)
        assert serve.main([f"model={model_dir}"]) == 2
        assert "TRAINER_LOOP_TOKEN: it must be ASCII" in capfd.readouterr().err


def test_a_public_address_without_a_token_is_reported(
    model_dir: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("trainer_loop.service.server.serve", lambda app, service, bound, on_start: service.close())
    warning = "warning: anyone who can reach 0.0.0.0 can send requests; set TRAINER_LOOP_TOKEN, or leave host= out\n"
    assert serve.main([f"model={model_dir}", "port=0", "host=0.0.0.0"]) == 0
    assert warning in capfd.readouterr().err
    assert serve.main([f"model={model_dir}", "port=0"]) == 0
    assert warning not in capfd.readouterr().err
    monkeypatch.setenv("TRAINER_LOOP_TOKEN", "s3cret")
    assert serve.main([f"model={model_dir}", "port=0", "host=0.0.0.0"]) == 0
    assert warning not in capfd.readouterr().err
    with bind("127.0.0.1", 0) as own, bind("0.0.0.0", 0) as public:
        assert (is_public(own), is_public(public)) == (False, True)


def test_help_and_the_page_have_the_default_limits(capfd: pytest.CaptureFixture[str]):
    assert serve.main(["--help"]) == 0
    output = capfd.readouterr().out
    limits = vars(ServiceLimits())
    for name, value in limits.items():
        assert re.search(rf"{name}= .*default {value}\b", output), name
    rows = dict(re.findall(r"^\| `(\w+)=` \| ([\d,]+) \|", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE))
    assert {name: int(rows[name].replace(",", "")) for name in rows} == limits
