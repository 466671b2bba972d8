"""Tests of pushing a model to the hub: during a run, at its end, and by `trainer_loop.push`, against a fake hub."""

import html
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from hub_server import TOKEN, Fault, Repo, serve
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification

from trainer_loop import load_config
from trainer_loop.cli.push import USAGE
from trainer_loop.cli.push import main as push_main
from trainer_loop.cli.run import main as run_main
from trainer_loop.record.onnx_folder import OnnxRecord

OF_A_MODEL = {
    *("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"),
    *("README.md", "trainer_loop.json", "config.yaml"),
}
OF_A_RUN = OF_A_MODEL | {"report.html"}


def write_files(repo: Repo, directory: Path) -> Path:
    """Write the files of a repository into a directory."""
    for name, content in repo.files.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_bytes(content)
    return directory


def list_names(repo: Repo) -> set[str]:
    return set(repo.files) - {".gitattributes"}


@pytest.fixture
def push(tmp_path, monkeypatch, capfd):
    """Run the command in this process; returns exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> tuple[int, str, str]:
        capfd.readouterr()
        code = push_main(list(arguments))
        return code, *capfd.readouterr()

    return run


@pytest.fixture
def hub_for_subprocesses(tmp_path):
    """A fake hub for subprocesses, and the environment variables that make them use it."""
    with serve() as hub:
        environment = {
            "HF_ENDPOINT": hub.endpoint,
            "HF_HUB_OFFLINE": "0",
            "HF_TOKEN": TOKEN,
            "HF_HUB_DISABLE_XET": "1",  # the fake hub speaks LFS
        }
        yield hub, {**os.environ, **environment}


def test_all_requests_of_a_run_and_the_files_that_it_pushes(
    hub_for_subprocesses, subprocess_command, arguments, tmp_path
):
    hub, environment = hub_for_subprocesses
    ended = subprocess_command(
        *arguments, "hub.push=imdb-bert", f"data.test={tmp_path / 'reviews.csv'}", environment=environment
    )
    assert (ended.code, ended.err) == (0, "")
    assert f"hub: pushed the trained model to {hub.endpoint}/me/imdb-bert" in ended.out.splitlines()
    assert [re.sub(r"[0-9a-f]{64}", "OID", call) for call in hub.calls if "agent" not in call] == [
        # before the model loads
        "GET /api/whoami-v2",
        "GET /api/models/me/imdb-bert/auth-check/write",
        "GET /api/datasets/me/imdb-bert",
        "GET /api/spaces/me/imdb-bert",
        # after the export
        "GET /api/whoami-v2",
        "GET /api/models/me/imdb-bert",
        "POST /api/repos/create",
        "GET /api/models/me/imdb-bert",
        "POST /api/models/me/imdb-bert/preupload/main",
        "POST /me/imdb-bert.git/info/lfs/objects/batch",
        "PUT /lfs/OID",
        "POST /lfs/OID/verify",
        "POST /api/validate-yaml",
        "POST /api/models/me/imdb-bert/preupload/main",
        "POST /api/models/me/imdb-bert/commit/main",
    ]
    repo = hub.model("me/imdb-bert")
    assert repo.private and repo.large == {"model.safetensors"}
    assert list_names(repo) == OF_A_RUN and len(repo.commits) == 1, ended.out
    run = tmp_path / "run"
    check_report(repo.files["report.html"].decode(), run)
    for name in OF_A_MODEL - {"config.yaml"}:
        assert repo.files[name] == (run / "model" / name).read_bytes(), name
    assert repo.files["config.yaml"] == (run / "config.yaml").read_bytes()

    there = write_files(repo, tmp_path / "there")
    ours, theirs = (AutoModelForSequenceClassification.from_pretrained(path) for path in (run / "model", there))
    tokens = torch.tensor([[2, 7, 9, 3]])
    assert torch.equal(ours(tokens).logits, theirs(tokens).logits)
    front = yaml.safe_load(repo.files["README.md"].decode().split("---\n")[1])
    assert front["pipeline_tag"] == "text-classification" and front["metrics"] == ["accuracy"]
    card = repo.files["README.md"].decode()
    assert re.search(r"\| test, \d+ rows \| accuracy \| [\d.]+ \| [\d.]+ to [\d.]+ \|", card)
    assert all(
        told in card for told in ("## Limits", "## Environment", "- device: cpu", "| `data.max_length` | `32` |")
    )
    results = {result["dataset"]["split"]: result["metrics"] for result in front["model-index"][0]["results"]}
    assert set(results) == {"validation", "test"}
    assert results["test"][0]["type"] == "accuracy" and 0 <= results["test"][0]["value"] <= 1

    hub.calls.clear()
    again = subprocess.run(
        [sys.executable, "-m", "trainer_loop.push", "model=run"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert (again.returncode, again.stderr) == (0, "")
    assert again.stdout == f"hub: {hub.endpoint}/me/imdb-bert is up to date\n"
    assert hub.count("PUT") == hub.count("/commit/") == 0


def check_report(page: str, run: Path) -> None:
    """That of a run, but without rows of its data and without folders."""
    facts = json.loads((run / "report.json").read_text())
    texts = [row["inputs"]["text"] for of_set in facts["sets"].values() for row in of_set["worst"]]
    here = (run / "report.html").read_text()
    assert texts and all(html.escape(text) in here for text in texts)
    assert not any(html.escape(text) in page for text in texts)
    assert "Mistakes: validation" in page and '<article class="row"' not in page and "Confusion matrix" in page
    assert '<article class="row"' in here


# --- before training


def test_problems_with_the_hub_are_reported_with_all_others_before_the_model_loads(
    command, arguments, hub, tmp_path, monkeypatch
):
    monkeypatch.delenv("HF_TOKEN")
    ended = command(*arguments, "hub.push=me/a b", "optimizer.name=adamx", "data.columns.text=nothing")
    assert ended.code == 2 and ended.out == ""
    for message in (
        "optimizer.name is 'adamx'",
        "data.columns.text=nothing",
        "is no name of a repository",
        "there is no token",
    ):
        assert sum(message in problem for problem in ended.problems) == 1, message
    assert not (tmp_path / "run").exists() and hub.repos == {}


def test_a_dry_run_checks_access_and_creates_nothing(command, arguments, hub):
    ended = command(*arguments, "hub.push=me/imdb", "dry_run=true")
    assert ended.code == 0, ended.err
    assert hub.count("auth-check") == 1 and hub.count("POST") == 0
    assert "hub: me/imdb, at the end" in ended.out.splitlines()
    hub.repos["model", "me/imdb"] = Repo(writable=False)
    ended = command(*arguments, "hub.push=me/imdb", "hub.every=checkpoint", "dry_run=true")
    assert ended.code == 2
    assert "may not write to it" in ended.problems[0]


def test_a_run_that_would_push_offline_is_refused_with_the_command_to_push_later(command, arguments, tmp_path):
    ended = command(*arguments, "hub.push=me/imdb")
    assert ended.code == 2
    (message,) = ended.problems
    later = f"python -m trainer_loop.push model={tmp_path / 'run'} repo=me/imdb"
    assert "HF_HUB_OFFLINE is set" in message and message.endswith(later) and "hub.every=never" in message
    ended = command(*arguments, "hub.push=me/imdb", "hub.every=never")
    assert ended.code == 0, ended.err
    assert ended.out.splitlines()[-1] == f"push: {later}"
    card = (tmp_path / "run" / "model" / "README.md").read_text()
    assert "# imdb\n" in card


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (["hub.every=checkpoint"], "hub.push is null"),
        (["hub.push=x", "hub.every=checkpoint", "checkpoint.every=never"], "checkpoint.every is never"),
        (["hub.push=x", "hub.every=checkpoint", "model.lora={r: 2, merge: true}"], "merged once, at the end"),
        (["hub.push=x", "hub.every=sometimes"], "allowed: end, checkpoint or never"),
    ],
)
def test_hub_keys_that_contradict_other_keys_are_refused(command, arguments, keys, message):
    ended = command(*arguments, *keys)
    assert ended.code == 2
    assert any(message in problem for problem in ended.problems)


# --- at the end


@pytest.mark.parametrize(
    "fault",
    [
        Fault("PUT /lfs", cut_after=10_000),
        Fault("/commit/", 403),
        Fault("repos/create", 500),
        Fault("/preupload/", 401),
    ],
    ids=["cut", "403", "500", "401"],
)
def test_a_failed_push_at_the_end_is_a_warning_with_the_command_to_repeat_it(
    command, push, arguments, hub, fault, tmp_path
):
    hub.faults.append(fault)
    ended = command(*arguments, "hub.push=imdb")
    assert (ended.code, ended.err) == (0, "")
    (warning,) = [line for line in ended.out.splitlines() if line.startswith("warning: ")]
    assert "the model was not pushed: " in warning and TOKEN not in ended.out
    again = f"python -m trainer_loop.push model={tmp_path / 'run'} repo=imdb"
    assert warning.endswith(again)
    assert warning in (tmp_path / "run" / "train.log").read_text()
    assert ended.out.splitlines()[-2] == f"model: {tmp_path / 'run' / 'model'}"

    hub.faults.clear()
    code, out, err = push(*again.split()[3:])
    assert (code, err) == (0, "") and "hub: pushed" in out
    assert list_names(hub.model("me/imdb")) == OF_A_RUN


def test_running_a_complete_run_again_pushes_a_model_that_was_not_pushed(command, arguments, hub):
    hub.faults.append(Fault("/commit/", 403))
    assert command(*arguments, "hub.push=imdb").code == 0
    assert list_names(hub.model("me/imdb")) == set()
    hub.faults.clear()
    ended = command(*arguments, "hub.push=imdb")
    assert ended.code == 0 and "is complete" in ended.out
    assert f"hub: pushed the trained model to {hub.endpoint}/me/imdb" in ended.out
    ended = command(*arguments, "hub.push=imdb")
    assert f"hub: {hub.endpoint}/me/imdb is up to date" in ended.out


def test_no_secret_of_config_or_environment_is_pushed(command, arguments, hub, monkeypatch, tmp_path):
    monkeypatch.setenv("SOME_API_KEY", "0123456789abcdef")
    ended = command(
        *arguments,
        "hub.push=imdb",
        "log.project=0123456789abcdef",
        "hub.private=false",
    )
    assert ended.code == 0, ended.err
    repo = hub.model("me/imdb")
    assert not repo.private and list_names(repo) == OF_A_RUN
    for name, content in repo.files.items():
        assert b"0123456789abcdef" not in content and TOKEN.encode() not in content, name
    assert b"***" in repo.files["config.yaml"] and b"***" in repo.files["report.html"]


def test_an_adapter_is_pushed_without_its_base_and_a_merged_model_replaces_it(command, push, arguments, hub, tmp_path):
    pytest.importorskip("peft")
    ended = command(*arguments, "hub.push=imdb", "model.lora.r=2", "hub.every=checkpoint", "checkpoint.every=4")
    assert (ended.code, ended.err) == (0, "")
    repo = hub.model("me/imdb")
    assert {"adapter_config.json", "adapter_model.safetensors"} <= list_names(repo)
    assert "model.safetensors" not in list_names(repo)
    front = yaml.safe_load(repo.files["README.md"].decode().split("---\n")[1])
    assert front["library_name"] == "peft" and front["tags"] == ["trainer_loop", "lora"]
    assert repo.messages == ["Upload the weights of step 4", "Upload the trained model"]
    first, last = (
        set(load_file(path / "adapter_model.safetensors"))
        for path in (write_files(repo, tmp_path / "there"), tmp_path / "run" / "model")
    )
    assert first == last

    merged = command(*arguments, "hub.push=imdb", "model.lora={r: 2, merge: true}", f"run_dir={tmp_path / 'merged'}")
    assert merged.code == 0, merged.err
    assert "removed there: adapter_config.json, adapter_model.safetensors" in merged.out
    assert list_names(repo) == OF_A_RUN


def test_a_run_without_a_report_pushes_none_and_removes_that_of_another(command, push, arguments, hub, tmp_path):
    ended = command(*arguments, "hub.push=imdb", "report=false")
    assert (ended.code, ended.err) == (0, "")
    repo = hub.model("me/imdb")
    assert list_names(repo) == OF_A_MODEL
    assert "report.html" not in repo.files["README.md"].decode()
    repo.files |= {
        "report.html": b"of another run",
        "onnx/model.onnx": b"x",
        "onnx/onnx.json": b"{}",
        "mine.html": b"x",
    }
    code, out, err = push("model=run")
    assert (code, err) == (0, "")
    assert "removed there: onnx/model.onnx, onnx/onnx.json, report.html, from before" in out
    assert list_names(repo) == OF_A_MODEL | {"mine.html"}


# --- during training


def test_weights_of_checkpoints_are_pushed_during_training_and_the_best_at_the_end(command, arguments, hub, tmp_path):
    seen: dict[str, dict[str, bytes]] = {}
    take = hub.take_fault

    def remember(line: str):
        if hub.repos and "/preupload/" in line and (repo := hub.model("me/imdb")).messages:
            seen[repo.messages[-1]] = dict(repo.files)
        return take(line)

    hub.take_fault = remember
    ended = command(
        *arguments,
        *("hub.push=imdb", "hub.every=checkpoint", "checkpoint.every=2", "checkpoint.keep_last=9", "evaluate.every=4"),
        *("checkpoint.best=-accuracy", "ema.decay=0.5", "optimizer.lr=0.01"),
    )
    assert (ended.code, ended.err) == (0, "")
    repo = hub.model("me/imdb")
    *beside, last = repo.messages
    assert last == "Upload the trained model"
    assert beside and set(beside) <= {f"Upload the weights of step {step}" for step in (2, 4, 6)}
    for message, files in seen.items():
        step = int(message.rpartition(" ")[2])
        here = load_file(tmp_path / "run" / "checkpoints" / f"step-{step:08d}" / "averages.safetensors")
        (tmp_path / "weights").write_bytes(files["model.safetensors"])
        there = load_file(tmp_path / "weights")
        assert all(torch.equal(there[name], here[name]) for name in here), message
        assert set(files) - {".gitattributes"} == OF_A_MODEL
        card = files["README.md"].decode()
        assert f"those of step {step} of 8" in card
        assert ("| validation, " in card) <= (step == 4), "the card has metrics of other weights"
    assert not (tmp_path / "run" / ".push").exists()


def test_failed_pushes_during_training_are_one_warning(command, arguments, hub, tmp_path):
    hub.faults.append(Fault("/commit/", 403))
    ended = command(*arguments, "hub.push=imdb", "hub.every=checkpoint", "checkpoint.every=1", "checkpoint.keep_last=1")
    assert (ended.code, ended.err) == (0, "")
    warnings = [line for line in ended.out.splitlines() if line.startswith("warning: ")]
    assert len(warnings) == 2
    assert "were not pushed: the token may not do this" in warnings[0]
    assert "the model was not pushed" in warnings[1]


def find_newest_step(run: Path) -> int:
    return max(int(path.name[5:]) for path in (run / "checkpoints").glob("step-*[0-9]"))


def test_a_signal_ends_a_run_within_seconds_while_an_upload_hangs(hub_for_subprocesses, arguments, tmp_path):
    hub, environment = hub_for_subprocesses
    hub.faults.append(Fault("PUT /lfs", seconds=600))
    keys = ("hub.push=imdb", "hub.every=checkpoint", "checkpoint.every=1", "train.epochs=100000", "log.every=1000")
    run = subprocess.Popen(
        [sys.executable, "-m", "trainer_loop.run", *arguments, *keys, "evaluate.every=never"],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        hub.wait_for("PUT /lfs", seconds=300)
        steps = newest = find_newest_step(tmp_path / "run")
        until = time.monotonic() + 20
        while newest < steps + 3:
            assert time.monotonic() < until, "training waits for the upload"
            time.sleep(0.05)
            newest = find_newest_step(tmp_path / "run")
        began = time.monotonic()
        run.send_signal(signal.SIGTERM)
        out, err = run.communicate(timeout=60)
    finally:
        run.kill()
    assert run.returncode == 75, out + err
    assert err == "" and "a push to the hub was cut off" in out
    assert time.monotonic() - began < 30, (
        "a push may take 5 more seconds; the rest is for a busy machine to end the process"
    )
    assert list_names(hub.model("me/imdb")) == set()


# --- the command


@pytest.fixture(scope="module")
def finished(tiny_model, tmp_path_factory):
    """The directory of a finished run."""
    from made_up import make_reviews, write_csv

    directory = tmp_path_factory.mktemp("finished")
    reviews = write_csv(directory / "reviews.csv", make_reviews(40))
    keys = [f"model.name={tiny_model}", f"data.train={reviews}", "data.max_length=32", "train.steps=2"]
    assert run_main([*keys, "train.precision=no", f"run_dir={directory / 'imdb'}", "hub.private=false"]) == 0
    return directory / "imdb"


@pytest.fixture
def run_dir(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "imdb")


@pytest.mark.parametrize("model", ["imdb", "imdb/", "./imdb/model"])
def test_the_command_pushes_a_run(push, hub, run_dir, model):
    code, out, err = push(f"model={model}", "repo=me/imdb", "message=First try")
    assert (code, err) == (0, "") and f"to {hub.endpoint}/me/imdb" in out
    repo = hub.model("me/imdb")
    assert list_names(repo) == OF_A_RUN and repo.messages == ["First try"]
    assert not repo.private, "as the run's config says"


def test_an_onnx_model_is_pushed_while_it_is_of_the_weights(push, hub, run_dir):
    folder = run_dir / "onnx"
    folder.mkdir()
    (folder / "model.onnx").write_bytes(b"program")
    (folder / "tokenizer.json").write_text("{}")
    OnnxRecord.of(folder, run_dir / "model", difference=0.0, tolerance=1e-4, rows=3, inputs={}).write(folder)
    code, _, err = push("model=imdb", "repo=me/imdb")
    repo = hub.model("me/imdb")
    assert (code, err) == (0, "") and list_names(repo) == OF_A_RUN | {"onnx/model.onnx", "onnx/onnx.json"}
    assert repo.files["onnx/model.onnx"] == b"program"
    (folder / "onnx.json").write_text((folder / "onnx.json").read_text().replace('safetensors": "', 'safetensors": "0'))
    code, out, _ = push("model=imdb", "repo=me/imdb")
    assert code == 0 and list_names(repo) == OF_A_RUN
    again = "python -m trainer_loop.onnx model=imdb makes it anew"
    assert f"imdb/onnx is left out: it was made of other weights; {again}" in out


def test_a_report_is_made_of_what_is_there_now_or_left_out(push, hub, run_dir, monkeypatch):
    (run_dir / "report.html").write_text("old")
    assert push("model=imdb", "repo=me/imdb")[0] == 0
    repo = hub.model("me/imdb")
    assert b"<title>imdb</title>" in repo.files["report.html"]
    monkeypatch.setenv("LAB_API_KEY", "A kind of heading")
    monkeypatch.setattr("trainer_loop.report.run_report.make_report", lambda run, name, intervals: "A kind of heading")
    code, out, err = push("model=imdb", "repo=me/imdb")
    assert (code, err) == (0, "") and list_names(repo) == OF_A_MODEL
    assert "report.html is left out: it would hold the value of the environment variable LAB_API_KEY\n" in out


def test_private_on_the_command_line_overrides_the_config(push, hub, run_dir):
    assert push("model=imdb", "repo=me/imdb", "private=true")[0] == 0
    assert hub.model("me/imdb").private


def test_the_command_pushes_only_what_changed(push, hub, run_dir):
    assert push("model=imdb", "repo=me/imdb")[0] == 0
    card = run_dir / "model" / "README.md"
    card.write_text(card.read_text() + "More.\n")
    hub.calls.clear()
    code, out, _ = push("model=imdb", "repo=me/imdb")
    assert code == 0 and "hub: pushed" in out
    assert hub.model("me/imdb").commits[1:] == [["README.md"]]
    assert hub.count("PUT") == 0


def test_a_model_of_another_program_is_pushed_without_its_training_files(push, hub, tiny_model, tmp_path):
    folder = shutil.copytree(tiny_model, tmp_path / "elsewhere")
    for name in ("optimizer.pt", "training_args.bin", "train.csv"):
        (folder / name).write_text("x")
    code, out, err = push("model=elsewhere", "repo=me/else")
    assert (code, err) == (0, "")
    assert "left out: optimizer.pt, train.csv, training_args.bin" in out
    repo = hub.model("me/else")
    assert list_names(repo) == {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "README.md",
    }
    assert repo.private
    assert "library_name: transformers" in repo.files["README.md"].decode()
    repo.files["README.md"] = b"---\nlicense: mit\n---\nwritten on the hub"
    assert "is up to date" in push("model=elsewhere", "repo=me/else")[1]
    assert not (folder / "README.md").exists()


def make_nothing(path: Path) -> None:
    path.mkdir()


def make_unfinished(path: Path) -> None:
    (path / "checkpoints" / "step-00000001").mkdir(parents=True)


def make_unfinished_in_another_model(path: Path) -> None:
    make_unfinished(path)
    (path / "config.yaml").write_text("{}")
    (path / "config.json").write_text("{}")


def make_checkpoint(path: Path) -> None:
    path.mkdir()
    for name in ("manifest.json", "state.json", "model.safetensors"):
        (path / name).write_text("{}")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (make_nothing, "neither a run directory with model/ nor a model"),
        (make_unfinished, "this run has no model/ yet"),
        (make_unfinished_in_another_model, "this run has no model/ yet"),
        (make_checkpoint, "is a checkpoint to go on from, and no model"),
        (lambda path: path.write_text("x"), "no such directory"),
        (lambda path: None, "no such directory"),
    ],
)
def test_a_path_that_is_no_model_is_reported_in_one_line(push, hub, tmp_path, make, message):
    make(tmp_path / "it")
    code, out, err = push("model=it", "repo=me/x")
    assert (code, out) == (2, "")
    assert message in err and len(err.splitlines()) == 1
    assert hub.calls == []


@pytest.mark.parametrize("name", ["a" * 256, "b/" + "a" * 300 + "/c", "\u00fc" * 128])
def test_a_name_too_long_for_a_file_system_is_reported_in_one_line(push, name):
    code, out, err = push(f"model={name}", "repo=me/x")
    assert (code, out) == (2, "")
    assert re.search(r"^error: model: .*\.\.\.: no file has a name of (256|300) bytes$", err.strip())


@pytest.mark.parametrize(
    ("arguments", "problems"),
    [
        ([], ["model= is missing"]),
        (["modle=x", "repo"], ["did you mean model=?", "arguments are key=value", "model= is missing"]),
        (["model=", "private=maybe"], ["model=: it has no value", "allowed: true, false"]),
    ],
)
def test_all_wrong_arguments_are_reported_at_once(push, arguments, problems):
    code, _, err = push(*arguments)
    assert code == 2
    assert len(err.splitlines()) == len(problems)
    assert all(problem in line for problem, line in zip(problems, err.splitlines(), strict=True))


def test_a_run_without_a_repository_in_its_config_needs_repo(push, run_dir):
    code, _, err = push("model=imdb")
    assert code == 2 and err.startswith("error: repo= is missing")


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (Fault("whoami", 401), "the token is not valid"),
        (Fault("auth-check", 403), "may not write to it"),
        (Fault("/commit/", 500), "the hub answered 500"),
        (Fault("PUT /lfs", cut_after=10), "Error while uploading 'model.safetensors'"),
    ],
)
def test_a_failed_command_prints_one_line_and_exits_with_2(push, hub, run_dir, fault, message):
    hub.faults.append(fault)
    code, out, err = push("model=imdb", "repo=imdb")
    assert (code, out) == (2, "")
    assert message in err and len(err.splitlines()) == 1 and TOKEN not in err


def test_the_command_reports_that_it_is_offline(push, run_dir):
    code, _, err = push("model=imdb", "repo=me/imdb")
    assert code == 2 and "HF_HUB_OFFLINE is set" in err


def test_front_matter_that_the_hub_refuses_is_reported(push, hub, run_dir):
    card = run_dir / "model" / "README.md"
    card.write_text("---\nlicense: [mit]\n---\n# x\n")
    code, _, err = push("model=imdb", "repo=me/imdb")
    assert code == 2 and "Invalid metadata in README.md" in err and "license must be a text" in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize(
    "garbage",
    [b"", b"hub: {push: [", b"\xff\xfe", b"[1]", b"[" * 500],
    ids=["empty", "cut", "no text", "list", "deep"],
)
def test_a_damaged_config_of_a_run_is_reported_in_one_line(push, hub, run_dir, garbage):
    (run_dir / "config.yaml").write_bytes(garbage)
    code, _, err = push("model=imdb", "repo=me/imdb")
    assert code == 2 and len(err.splitlines()) == 1 and "config.yaml cannot be read" in err
    assert hub.repos == {}


def test_ctrl_c_ends_the_command_without_a_traceback(push, hub, run_dir, monkeypatch):
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("trainer_loop.record.hub_push.push_files", interrupt)
    code, _, err = push("model=imdb", "repo=me/imdb")
    assert code == 130 and len(err.splitlines()) == 1


def test_help_names_every_argument(push):
    code, out, _ = push("--help")
    assert code == 0 and out == USAGE + "\n"
    assert all(f"{name}=" in out for name in ("model", "repo", "private", "message"))


# --- from Python


def test_a_plain_model_trained_from_python_is_pushed(hub, tmp_path, monkeypatch):
    from trainer_loop import build

    root = Path(__file__).parents[2]
    monkeypatch.syspath_prepend(str(root))
    keys = ["train.epochs=1", f"run_dir={tmp_path / 'run'}", "hub.push=me/plain", "train.precision=no"]
    config = load_config(str(root / "examples" / "table" / "config.yaml"), keys)
    build(config).fit()
    repo = hub.model("me/plain")
    assert list_names(repo) == {"model.safetensors", "README.md", "trainer_loop.json", "config.yaml", "report.html"}
    front = yaml.safe_load(repo.files["README.md"].decode().split("---\n")[1])
    assert front == {"library_name": "pytorch", "metrics": ["accuracy"], "tags": ["trainer_loop"]}
