"""Pushes during training: they do not delay it, skip old weights, warn once, and let the process end."""

import io
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest
import tiny
import torch
from torch import nn

from trainer_loop.optim.averages import Ema
from trainer_loop.record import publisher as module
from trainer_loop.record.export import copy_weights, write_files
from trainer_loop.record.hub_push import PushResult
from trainer_loop.record.logs import Console
from trainer_loop.record.publisher import Publisher


class Uploads:
    """A push that waits for the test, records its arguments, and raises the errors that the test sets."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, list[str]]] = []
        self.may_go = threading.Event()
        self.started = threading.Event()
        self.errors: list[Exception] = []

    def __call__(self, folder: Path, what: str) -> PushResult:
        self.seen.append((what, sorted(path.read_text() for path in folder.iterdir())))
        self.started.set()
        assert self.may_go.wait(20)
        if self.errors:
            raise self.errors.pop(0)
        return PushResult("https://hub/me/imdb", changed=True, removed=[])


@pytest.fixture
def uploads():
    uploads = Uploads()
    yield uploads
    uploads.may_go.set()


@pytest.fixture
def stream():
    return io.StringIO()


@pytest.fixture
def publisher(tmp_path, uploads, stream):
    model = tmp_path / "model"
    model.mkdir()
    (model / "weights").write_text("the best")

    return Publisher(
        uploads,
        model=model,
        scratch=tmp_path / ".push",
        console=Console(stream=stream),
        command="python -m trainer_loop.push model=run repo=me/imdb",
    )


def never() -> bool:
    return False


def offer(publisher: Publisher, step: int) -> None:
    def write(folder: Path) -> None:
        folder.mkdir()
        (folder / "weights").write_text(f"weights of {step}")

    publisher.offer(step, lambda: write)


def test_the_newest_weights_are_pushed_after_the_running_push_and_the_model_last(publisher, uploads, stream, tmp_path):
    offer(publisher, 1)
    assert uploads.started.wait(20)
    start = time.monotonic()
    for step in (2, 3, 4):
        offer(publisher, step)
    assert time.monotonic() - start < 1, "an offer does not wait for an upload"
    uploads.may_go.set()
    while len(uploads.seen) < 2:
        time.sleep(0.01)
    publisher.finish(is_stopped=never)
    assert [what for what, _ in uploads.seen] == [
        "the weights of step 1",
        "the weights of step 4",
        "the trained model",
    ]
    assert [contents for _, contents in uploads.seen] == [["weights of 1"], ["weights of 4"], ["the best"]]
    assert stream.getvalue().splitlines()[-1] == "hub: pushed the trained model to https://hub/me/imdb"
    assert not (tmp_path / ".push").exists()


def test_each_kind_of_failure_is_one_warning_and_the_next_push_is_tried(publisher, uploads, stream):
    uploads.errors = [
        ConnectionError("broke"),
        ConnectionError("broke"),
        OSError("No space left"),
        ConnectionError("x"),
    ]
    uploads.may_go.set()
    for step in (1, 2, 3, 4, 5):
        offer(publisher, step)
        while len(uploads.seen) < step or publisher._is_running:
            time.sleep(0.01)
    publisher.finish(is_stopped=never)
    warnings = [line for line in stream.getvalue().splitlines() if line.startswith("warning: ")]
    assert len(warnings) == 2
    assert "the weights of step 1 were not pushed: broke" in warnings[0]
    assert "the weights of step 3 were not pushed: No space left" in warnings[1]
    assert "hub: pushed the weights of step 5" in stream.getvalue()


def test_a_failed_last_push_reports_how_to_repeat_it(publisher, uploads, stream):
    uploads.errors = [ConnectionError("broke")]
    uploads.may_go.set()
    publisher.finish(is_stopped=never)
    (line,) = stream.getvalue().splitlines()
    assert line.startswith("warning: the model was not pushed: broke")
    assert line.endswith("python -m trainer_loop.push model=run repo=me/imdb")


def test_a_last_push_ends_when_the_run_is_asked_to_stop(publisher, uploads, stream):
    publisher.finish(is_stopped=uploads.started.is_set)
    (line,) = stream.getvalue().splitlines()
    assert "was left unfinished" in line and line.endswith("repo=me/imdb")


def test_a_stopping_run_waits_a_few_seconds_for_a_push_and_drops_the_next(publisher, uploads, stream, monkeypatch):
    assert module._SECONDS_TO_LEAVE == 5
    monkeypatch.setattr(module, "_SECONDS_TO_LEAVE", 0.3)
    offer(publisher, 1)
    assert uploads.started.wait(20)
    offer(publisher, 2)
    start = time.monotonic()
    publisher.leave()
    assert 0.2 < time.monotonic() - start < 2
    assert "was cut off" in stream.getvalue()
    uploads.may_go.set()
    time.sleep(0.1)
    assert len(uploads.seen) == 1


def test_a_failed_copy_does_not_end_the_training(publisher, uploads, stream):
    publisher.offer(1, lambda: [][0])
    uploads.may_go.set()
    publisher.finish(is_stopped=never)
    assert "the weights of step 1 were not pushed" in stream.getvalue()


def test_the_process_ends_with_its_own_code_while_a_snapshot_is_written(tmp_path):
    """Python aborts if it ends while another thread returns from the code of torch."""
    script = """
        import sys, time
        from pathlib import Path
        import torch
        from trainer_loop.record.hub_push import PushResult
        from trainer_loop.record.logs import Console
        from trainer_loop.record.publisher import Publisher

        def write(folder):
            print("writing", flush=True)
            until = time.monotonic() + 1
            while time.monotonic() < until:
                torch.ones(1_000_000).clone()
            print("written", flush=True)

        publisher = Publisher(
            lambda folder, what: time.sleep(60), model=Path("m"), scratch=Path("s"),
            console=Console(), command="",
        )
        publisher.offer(1, lambda: write)
        time.sleep(0.2)
        sys.exit(75)
    """
    start = time.monotonic()
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], cwd=tmp_path, capture_output=True, text=True, timeout=50
    )
    assert (result.returncode, result.stdout, result.stderr) == (75, "writing\nwritten\n", "")
    assert time.monotonic() - start < 30


# --- the copy of the weights


@pytest.mark.parametrize("make", [tiny.make_bert, tiny.make_gpt2], ids=["bert", "gpt2 with tied weights"])
@pytest.mark.parametrize("averaged", [False, True])
def test_a_copy_of_the_weights_equals_an_export_at_the_same_time(tmp_path, make, averaged):
    from safetensors.torch import load_file

    from trainer_loop.record.export import ExportRecord

    record = ExportRecord("causal_lm", {"text": "text"}, 8, 1, 1, {}, {})
    model = make(seed=1)
    for parameter in model.get_input_embeddings().parameters():
        parameter.requires_grad_(False)
    averaged_weights = Ema(model, decay=0.5)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(1.0)
    averaged_weights.update()
    weights = copy_weights(model, averaged_weights.state_dict() if averaged else None)
    with averaged_weights.in_place() if averaged else torch.no_grad():
        write_files(tmp_path / "now", model, None, record, card="")
    with torch.no_grad():
        for parameter in model.parameters():  # training continues
            if parameter.requires_grad:
                parameter.zero_()
    averaged_weights.update()
    write_files(tmp_path / "later", model, None, record, card="", weights=weights)
    now, later = (load_file(tmp_path / when / "model.safetensors") for when in ("now", "later"))
    assert now.keys() == later.keys()
    assert all(torch.equal(now[name], later[name]) for name in now)
    assert {path.name for path in (tmp_path / "now").iterdir()} == {
        path.name for path in (tmp_path / "later").iterdir()
    }


def test_a_plain_module_with_tied_weights_is_written_once(tmp_path):
    from safetensors.torch import load_model

    from trainer_loop.record.export import ExportRecord

    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Linear(3, 3)
            self.second = nn.Linear(3, 3, bias=False)
            self.second.weight = self.first.weight
            self.norm = nn.BatchNorm1d(3)

    model, other = Tied(), Tied()
    weights = copy_weights(model)
    write_files(tmp_path, model, None, ExportRecord("my.task", {}, None, 1, 1, {}, {}), card="", weights=weights)
    load_model(other, tmp_path / "model.safetensors")
    assert torch.equal(other.second.weight, model.first.weight)
    assert other.second.weight is other.first.weight
