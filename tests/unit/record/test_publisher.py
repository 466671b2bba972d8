"""Pushes beside training: they hold nobody up, skip what is old, warn once, and let the process end."""

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
from trainer_loop.record.hub_push import Pushed
from trainer_loop.record.logs import Console
from trainer_loop.record.publisher import Publisher


class Uploads:
    """A push that waits for the test, writes down what it was given, and fails as it is told."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, list[str]]] = []
        self.may_go = threading.Event()
        self.began = threading.Event()
        self.errors: list[Exception] = []

    def __call__(self, folder: Path, what: str) -> Pushed:
        self.seen.append((what, sorted(path.read_text() for path in folder.iterdir())))
        self.began.set()
        assert self.may_go.wait(20)
        if self.errors:
            raise self.errors.pop(0)
        return Pushed("https://hub/me/imdb", changed=True, removed=[])


@pytest.fixture
def uploads():
    uploads = Uploads()
    yield uploads
    uploads.may_go.set()


@pytest.fixture
def told():
    return io.StringIO()


@pytest.fixture
def publisher(tmp_path, uploads, told):
    model = tmp_path / "model"
    model.mkdir()
    (model / "weights").write_text("the best")

    return Publisher(
        uploads,
        model=model,
        scratch=tmp_path / ".push",
        console=Console(stream=told),
        again="python -m trainer_loop.push model=run repo=me/imdb",
    )


def never() -> bool:
    return False


def offer(publisher: Publisher, step: int) -> None:
    def write(folder: Path) -> None:
        folder.mkdir()
        (folder / "weights").write_text(f"weights of {step}")

    publisher.offer(step, lambda: write)


def test_the_newest_is_pushed_after_the_one_under_way_and_the_model_last(publisher, uploads, told, tmp_path):
    offer(publisher, 1)
    assert uploads.began.wait(20)
    began = time.monotonic()
    for step in (2, 3, 4):
        offer(publisher, step)
    assert time.monotonic() - began < 1, "nobody waits for an upload"
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
    assert told.getvalue().splitlines()[-1] == "hub: pushed the trained model to https://hub/me/imdb"
    assert not (tmp_path / ".push").exists()


def test_failures_are_one_warning_a_kind_and_the_next_is_tried(publisher, uploads, told):
    uploads.errors = [
        ConnectionError("broke"),
        ConnectionError("broke"),
        OSError("No space left"),
        ConnectionError("x"),
    ]
    uploads.may_go.set()
    for step in (1, 2, 3, 4, 5):
        offer(publisher, step)
        while len(uploads.seen) < step or publisher._running:
            time.sleep(0.01)
    publisher.finish(is_stopped=never)
    warnings = [line for line in told.getvalue().splitlines() if line.startswith("warning: ")]
    assert len(warnings) == 2
    assert "the weights of step 1 were not pushed: broke" in warnings[0]
    assert "the weights of step 3 were not pushed: No space left" in warnings[1]
    assert "hub: pushed the weights of step 5" in told.getvalue()


def test_a_last_push_that_fails_says_how_to_repeat_it(publisher, uploads, told):
    uploads.errors = [ConnectionError("broke")]
    uploads.may_go.set()
    publisher.finish(is_stopped=never)
    (line,) = told.getvalue().splitlines()
    assert line.startswith("warning: the model was not pushed: broke")
    assert line.endswith("python -m trainer_loop.push model=run repo=me/imdb")


def test_a_last_push_ends_when_the_run_is_asked_to_stop(publisher, uploads, told):
    publisher.finish(is_stopped=uploads.began.is_set)
    (line,) = told.getvalue().splitlines()
    assert "was left unfinished" in line and line.endswith("repo=me/imdb")


def test_a_run_that_is_asked_to_stop_waits_for_a_push_a_few_seconds_and_drops_the_next(
    publisher, uploads, told, monkeypatch
):
    assert module._SECONDS_TO_LEAVE == 5
    monkeypatch.setattr(module, "_SECONDS_TO_LEAVE", 0.3)
    offer(publisher, 1)
    assert uploads.began.wait(20)
    offer(publisher, 2)
    began = time.monotonic()
    publisher.leave()
    assert 0.2 < time.monotonic() - began < 2
    assert "was cut off" in told.getvalue()
    uploads.may_go.set()
    time.sleep(0.1)
    assert len(uploads.seen) == 1


def test_a_copy_that_cannot_be_made_does_not_end_the_training(publisher, uploads, told):
    publisher.offer(1, lambda: [][0])
    uploads.may_go.set()
    publisher.finish(is_stopped=never)
    assert "the weights of step 1 were not pushed" in told.getvalue()


def test_the_process_ends_with_its_own_code_while_a_snapshot_is_written(tmp_path):
    """Python aborts where it ends while another thread comes back from the code of torch."""
    script = """
        import sys, time
        from pathlib import Path
        import torch
        from trainer_loop.record.hub_push import Pushed
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
            console=Console(), again="",
        )
        publisher.offer(1, lambda: write)
        time.sleep(0.2)
        sys.exit(75)
    """
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], cwd=tmp_path, capture_output=True, text=True, timeout=50
    )
    assert (done.returncode, done.stdout, done.stderr) == (75, "writing\nwritten\n", "")
    assert time.monotonic() - began < 30


# --- the copy that is pushed


@pytest.mark.parametrize("make", [tiny.make_bert, tiny.make_gpt2], ids=["bert", "gpt2 with tied weights"])
@pytest.mark.parametrize("averaged", [False, True])
def test_a_copy_of_the_weights_is_what_an_export_would_have_been(tmp_path, make, averaged):
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
        for parameter in model.parameters():  # training goes on
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
