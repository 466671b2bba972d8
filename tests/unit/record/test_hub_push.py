"""Which files are pushed to the hub and which never are; a push sends only changes and survives network errors."""

import json
import re
from dataclasses import replace

import pytest
import torch
from hub_server import TOKEN, Fault, Repo
from huggingface_hub.errors import HTTPError
from safetensors.torch import save_file

from trainer_loop import UserError
from trainer_loop.config.yaml_core import dump
from trainer_loop.record.hub_access import explain_failure
from trainer_loop.record.hub_push import gather_run, push_files, select_files
from trainer_loop.record.run_dir import EXPORT_RECORD

CARD = "---\nlibrary_name: transformers\n---\n\n# imdb\n"


@pytest.fixture
def model(tmp_path):
    """An exported model with weights of 3 MB."""
    folder = tmp_path / "run" / "model"
    folder.mkdir(parents=True)
    save_file({"weight": torch.arange(750_000.0)}, folder / "model.safetensors")
    (folder / "config.json").write_text('{"model_type": "bert"}')
    (folder / "tokenizer.json").write_text('{"version": "1.0"}')
    (folder / "README.md").write_text(CARD)
    (folder / EXPORT_RECORD).write_text('{"task": "sequence_classification", "plan": {"seed": 42}}')
    return folder


def push(model, repo="me/imdb", **options):
    files, _ = select_files(model)
    return push_files(files, repo, **{"private": True, "message": "Upload", **options})


def test_a_push_creates_the_repository_and_stores_every_file_unchanged(hub, model):
    pushed = push(model, "imdb")
    repo = hub.model("me/imdb")
    assert pushed.url == f"{hub.endpoint}/me/imdb" and pushed.changed
    assert repo.private
    here = {path.name: path.read_bytes() for path in model.iterdir()}
    assert {name: content for name, content in repo.files.items() if name != ".gitattributes"} == here
    assert repo.large == {"model.safetensors"}
    assert len(repo.commits) == 1, "one commit, so that nobody finds half a model"


@pytest.mark.parametrize("private", [True, False])
def test_a_new_repository_is_private_if_requested(hub, model, private):
    push(model, private=private)
    assert hub.model("me/imdb").private is private


def test_pushing_again_sends_only_changed_files(hub, model):
    push(model)
    hub.calls.clear()
    again = push(model)
    assert not again.changed
    assert hub.count("PUT /lfs") == hub.count("/commit/") == hub.count("repos/create") == 0
    assert len(hub.model("me/imdb").commits) == 1

    (model / "README.md").write_text(CARD + "better\n")
    assert push(model).changed
    assert hub.model("me/imdb").commits[1:] == [["README.md"]]
    assert hub.count("PUT /lfs") == 0

    save_file({"weight": torch.zeros(750_000)}, model / "model.safetensors")
    push(model)
    assert hub.model("me/imdb").commits[2:] == [["model.safetensors"]]
    assert hub.count("PUT /lfs") == 1


def test_weights_in_another_format_are_removed_and_other_files_stay(hub, model):
    before = [
        "adapter_config.json",
        "adapter_model.safetensors",
        "pytorch_model.bin",
        "model-00001-of-00002.safetensors",
    ]
    others = ["notes.md", "onnx/model.onnx", "model.fp16.safetensors", "vocab.txt"]
    hub.repos["model", "me/imdb"] = Repo(files=dict.fromkeys([*before, *others], b"x"))
    pushed = push(model)
    assert pushed.removed == sorted(before)
    assert set(others) <= set(hub.model("me/imdb").files)
    assert not set(before) & set(hub.model("me/imdb").files)


def test_weights_are_removed_once_if_the_answer_is_lost(hub, model):
    hub.repos["model", "me/imdb"] = Repo(files={"pytorch_model.bin": b"x"})
    hub.faults.append(Fault("/commit/", drops_answer=True, times=1))
    push(model)
    assert "pytorch_model.bin" not in hub.model("me/imdb").files and len(hub.model("me/imdb").commits) == 1


def test_several_large_files_start_no_threads_that_the_process_would_wait_for(hub, model, monkeypatch):
    import huggingface_hub.utils

    for number in (1, 2, 3):
        save_file({"weight": torch.ones(3) * number}, model / f"model-0000{number}-of-00003.safetensors")
    monkeypatch.setattr(huggingface_hub.utils, "hf_thread_map", None)
    push(model)
    assert hub.count("PUT /lfs") == 4 and len(hub.model("me/imdb").commits) == 1


def test_large_files_are_sent_in_parts_if_the_hub_requests_it(hub, model):
    hub.in_parts = True
    push(model)
    assert hub.count("PUT /lfs") == 4
    assert hub.model("me/imdb").files["model.safetensors"] == (model / "model.safetensors").read_bytes()


PASSING = [
    Fault("PUT /lfs", cut_after=500_000, times=2),
    Fault("PUT /lfs", 500, times=2),
    Fault("PUT /lfs", 503, times=1),
    Fault("objects/batch", 429, times=1, headers={"Retry-After": "7"}),
    Fault("/preupload/", 500, times=2),
    Fault("/preupload/", 429, times=1, headers={"Retry-After": "7"}),
    Fault("/commit/", 500, times=2),
    Fault("/commit/", 429, times=1, headers={"Retry-After": "7"}),
    Fault("/commit/", drops_answer=True, times=1),
    Fault("/commit/", cut_after=10, times=1),
    Fault("validate-yaml", 502, times=1),
    Fault("repos/create", 503, times=2),
    Fault("repos/create", 429, times=1, headers={"Retry-After": "7"}),
    Fault("repos/create", drops_answer=True, times=1),  # it is made, and the second time there: 409
    Fault("GET /api/models/me/imdb", 500, times=1),
    Fault("whoami", 500, times=1),
]


def name_fault(fault: Fault) -> str:
    return f"{fault.of.strip('/')}-{fault.status or ('cut' if fault.cut_after else 'no answer')}"


@pytest.mark.parametrize(
    ("fault", "in_parts"),
    [(fault, False) for fault in PASSING] + [(fault, True) for fault in PASSING[:3]],
    ids=[name_fault(fault) for fault in PASSING] + [f"parts-{name_fault(fault)}" for fault in PASSING[:3]],
)
def test_a_push_survives_transient_errors(hub, model, fault, in_parts):
    hub.in_parts = in_parts
    fault = replace(fault)
    hub.faults.append(fault)
    push(model, "imdb")
    repo = hub.model("me/imdb")
    assert repo.files["model.safetensors"] == (model / "model.safetensors").read_bytes()
    assert len(repo.commits) == 1, "one commit, however often it is tried"
    assert fault.times == 0
    assert ("Retry-After" in fault.headers) == any(7 <= wait <= 8 for wait in hub.waits)


def test_a_commit_that_was_cut_off_uploads_no_large_file_again(hub, model):
    hub.faults.append(Fault("/commit/", 503, times=1))
    push(model)
    assert hub.count("PUT /lfs") == 1 and hub.count("/commit/") == 2


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (Fault("PUT /lfs", cut_after=1_000_000), "Error while uploading 'model.safetensors' to the Hub"),
        (Fault("PUT /lfs", 500), "the hub answered 500"),
        (Fault("PUT /lfs", 403), "the token may not do this"),
        (Fault("/preupload/", 401), "the token is not valid"),
        (Fault("/commit/", 403), "the token may not do this (as the test wants: 403)"),
        (Fault("/commit/", 409), "the hub answered 409 (as the test wants: 409)"),
        (Fault("/commit/", 429, headers={"Retry-After": "9"}), "asks to wait"),
        (Fault("/commit/", 429, headers={"Retry-After": "9999"}), "asks to wait"),
        (Fault("/commit/", 500), "the hub answered 500 (as the test wants: 500)"),
        (Fault("/commit/", cut_after=10), "disconnected"),
        (Fault("repos/create", 403), "the token may not do this"),
        (Fault("repos/create", 402), "the hub answered 402"),
    ],
    ids=lambda value: name_fault(value) if isinstance(value, Fault) else "",
)
def test_a_failed_push_reports_the_reason_in_one_line_and_changes_nothing(hub, model, fault, message):
    if "create" not in fault.of:
        hub.repos["model", "me/imdb"] = Repo(files={"README.md": b"old"})
    hub.faults.append(replace(fault))
    with pytest.raises((HTTPError, RuntimeError)) as caught:
        push(model)
    line = explain_failure(caught.value)
    assert message in line and "\n" not in line and TOKEN not in line
    assert sum(hub.waits) < 400 and max(hub.waits, default=0) <= 300
    assert all(repo.files == {"README.md": b"old"} for repo in hub.repos.values())


def test_a_hub_that_never_answers_is_an_error(hub, model, monkeypatch):
    from trainer_loop.record import hub_access

    monkeypatch.setattr(hub_access, "_SECONDS_WITHOUT_PROGRESS", 0.2)
    hub.faults.append(Fault("/commit/", seconds=3))
    with pytest.raises(HTTPError) as caught:
        push(model)
    assert "timed out" in explain_failure(caught.value)
    assert hub.count("/commit/") == 3


# --- what stays here


def test_states_of_optimizers_data_logs_and_pickles_are_left_out(tmp_path):
    keep = [
        *("config.json", "generation_config.json", "model.safetensors", "model-00001-of-00002.safetensors"),
        *("model.safetensors.index.json", "adapter_config.json", "adapter_model.safetensors", "pytorch_model.bin"),
        *(
            "tokenizer.json",
            "tokenizer_config.json",
            "special_tokens_map.json",
            "vocab.json",
            "vocab.txt",
            "merges.txt",
        ),
        *("spiece.model", "qwen.tiktoken", "chat_template.jinja", "preprocessor_config.json", "modeling_mine.py"),
        *("README.md", "LICENSE", "config.yaml", EXPORT_RECORD, "modules.json", "1_Pooling/config.json"),
        "additional_chat_templates/tools.jinja",
    ]
    leave = [
        *("optimizer.pt", "optimizer.bin", "optimizer.safetensors", "optimizer_state.json", "scheduler.pt"),
        *("scaler.pt", "rng_state.pth", "rng_state_0.pth", "random_states_0.pkl", "training_args.bin"),
        *("trainer_state.json", "train.csv", "train.jsonl", "train.json", "data.parquet", "train.log", ".env", "x.pkl"),
        *("environment.json", "metrics.jsonl", "checkpoint-500/optimizer.pt", "checkpoint-500/model.safetensors"),
        *("checkpoints/step-1/model.safetensors", "runs/events.out.tfevents", "wandb/config.yaml", ".git/config.json"),
        *("logs/config.json", "1_Pooling/optimizer.pt", "a/b/config.json", "1_Pooling/own.py"),
        *("train_labels.json", "patients_index.json", "labels_test.txt", "my_tokens.txt", "token.json", "train.txt"),
        *("embeddings_of_customers.safetensors", "ema_optimizer.safetensors", "notes.md"),
    ]
    for name in [*keep, *leave]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("{}")
    (tmp_path / "config.json").write_text('{"auto_map": {"AutoModel": "modeling_mine.Mine"}}')
    files, left_out = select_files(tmp_path)
    assert sorted(files) == sorted(keep)
    assert all(any(name == left or name.startswith(f"{left}/") for left in left_out) for name in leave)


SECRETS = {
    "hub token": {"log.tracker_args": {"trackio": {"space": f"x?token={TOKEN}"}}},
    "api_key": {"log": {"tracker_args": {"wandb": {"api_key": "0123456789abcdef"}}}},
    "apiKey": {"log": {"tracker_args": {"comet": {"apiKey": "0123456789abcdef"}}}},
    "password": {"task": {"args": {"password": "correct horse"}}},
    "nested": {"loop": {"args": {"auth": {"value": "0123456789abcdef"}}}},
    "list": {"loss": {"args": {"token": ["0123456789abcdef"]}}},
    "address": {"data": {"train": "https://someone:0123456789abcdef@example.org/train.csv"}},
    "environment": {"data": {"train": "/mnt/0123456789abcdef/train.csv"}},
}


@pytest.mark.parametrize("kind", SECRETS)
def test_secrets_in_the_config_and_the_record_are_masked(hub, model, monkeypatch, kind):
    monkeypatch.setenv("MY_SECRET", "0123456789abcdef")
    config = model.parent / "config.yaml"
    tree = {"seed": 42, "optimizer": {"lr": 5e-05}, "model": {"overrides": {"pad_token": "[PAD]"}}, **SECRETS[kind]}
    config.write_text("# Every key of this run\n" + dump(tree))
    (model / EXPORT_RECORD).write_text(json.dumps({"task": "x", "plan": tree}))
    files = gather_run(model, config)
    push_files(files, "me/imdb", private=True, message="Upload")
    stored = hub.model("me/imdb").files
    for name in ("config.yaml", EXPORT_RECORD):
        text = stored[name].decode()
        assert "***" in text
        assert not re.search(f"0123456789abcdef|correct horse|{TOKEN}", text)
        assert "[PAD]" in text and "e-05" in text
    assert stored["config.yaml"].startswith(b"# Every key of this run\n")
    assert "0123456789abcdef" in config.read_text() or kind in ("hub token", "password"), "what is here stays as it is"


def test_a_config_without_secrets_is_pushed_as_it_is(model):
    config = model.parent / "config.yaml"
    config.write_text(
        "# Every key of this run\nseed: 42\nhub: {push: me/imdb, private: true}\nx: {max_tokens: automatic}\n"
    )
    (model / EXPORT_RECORD).write_text('{"plan": {"tokens": "0123456789abcdef", "optimizer.name": "adamw"}}')
    files = gather_run(model, config)
    assert files["config.yaml"] == config.read_bytes()
    assert files[EXPORT_RECORD] == (model / EXPORT_RECORD).read_bytes()


def test_another_file_that_holds_a_secret_is_not_pushed(model, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "0123456789abcdef")
    (model / "README.md").write_text(CARD + f"log in with {TOKEN}\n")
    (model / "tokenizer_config.json").write_text('{"note": "0123456789abcdef"}')
    with pytest.raises(UserError) as caught:
        gather_run(model, None)
    message = "\n".join(caught.value.problems)
    assert "README.md: holds text that looks like a token of the hub" in message
    assert "tokenizer_config.json: holds the value of the environment variable WANDB_API_KEY" in message
    assert TOKEN not in message and "0123456789abcdef" not in message


@pytest.mark.parametrize(
    ("variable", "value"),
    [("TOKENIZER_NAME", "bert-base-uncased"), ("HF_TOKEN_PATH", "/home/me/.cache/token"), ("API_KEY", "bert")],
)
def test_files_without_secrets_are_pushed(model, monkeypatch, variable, value):
    monkeypatch.setenv(variable, value)
    (model / "README.md").write_text(f"{CARD}from bert-base-uncased at /home/me/.cache/token\n")
    assert gather_run(model, None)["README.md"] == model / "README.md"


GARBAGE = {
    "empty": b"",
    "cut": b'{"task": "x',
    "no text": b"\xff\xfe\x00\x01" * 9,
    "a list": b"[1, 2]",
    "deep": b"[" * 1_100,
    "pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n",
}


@pytest.mark.parametrize("kind", GARBAGE)
@pytest.mark.parametrize("name", ["config.yaml", EXPORT_RECORD, "model.safetensors"])
def test_a_damaged_file_is_reported_in_one_line_and_nothing_is_pushed(model, name, kind):
    path = model.parent / name if name == "config.yaml" else model / name
    path.write_bytes(GARBAGE[kind])
    if (name, kind) == (EXPORT_RECORD, "a list"):  # nothing in it needs masking
        gather_run(model, model.parent / "config.yaml")
        return
    with pytest.raises(UserError) as caught:
        gather_run(model, model.parent / "config.yaml")
    (problem,) = caught.value.problems
    assert problem.startswith(str(path)) and "\n" not in problem and len(problem) < 500
