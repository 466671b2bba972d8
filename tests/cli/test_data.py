"""`python -m trainer_loop.data`: rows token by token, duplicates, the page, and what is wrong with its arguments."""

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from transformers import BertConfig

from trainer_loop.cli.data import main
from trainer_loop.data.tokenizer import train_tokenizer
from trainer_loop.tasks.find import list_tasks, load_task

SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
TYPES = {"AutoModelForCausalLM": "gpt2", "AutoModelForSeq2SeqLM": "t5", "AutoModelForImageClassification": "vit"}


def make_arguments(folder: Path, task: str, rows: list[Any], *more: str) -> list[str]:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    kind = load_task(task)
    texts = [str(row) for row in rows]
    model: dict[str, Any] = {"type": TYPES.get(str(kind.auto_model), "bert")}
    if kind.auto_processor == "AutoTokenizer":
        tokenizer = train_tokenizer(texts, framed=kind().frames_texts, vocab_size=300, max_length=64)
        tokenizer.save_pretrained(folder / "tokenizer")
        model["tokenizer"] = str(folder / "tokenizer")
    if task in ("chat", "preference", "reward_model"):
        model["chat_template"] = "plain"
    if model["type"] == "vit":
        model["overrides"] = {"image_size": 8, "patch_size": 4}
    return [
        f"task.name={task}",
        f"model={json.dumps(model)}",
        f"data.train={path}",
        f"data.cache_dir={folder / 'cache'}",
        f"run_dir={folder / 'run'}",
        *more,
    ]


def show(capfd: pytest.CaptureFixture[str], arguments: list[str]) -> str:
    assert main(arguments) == 0
    return capfd.readouterr().out


@pytest.mark.parametrize("task", list_tasks())
def test_rows_of_every_task_are_shown(task: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    rows = [dict(row) for row in load_task(task).example]
    page = tmp_path / "page.html"
    arguments = make_arguments(tmp_path, task, rows, "data.max_length=64")
    shown = show(capfd, [*arguments, "rows=2"])
    assert "train: " in shown
    assert "rows.jsonl line 1" in shown
    show(capfd, [*arguments, f"html={page}"])
    assert "rows.jsonl line 1" in page.read_text()
    assert not (tmp_path / "run").exists()


def test_what_is_learned_is_marked_and_what_was_cut_is_shown(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    answer = {"role": "assistant", "content": "Yes, it is."}
    rows = [{"messages": [{"role": "user", "content": "Is it?"}, answer]}]
    arguments = make_arguments(tmp_path, "chat", rows)
    shown = show(capfd, [*arguments, "data.max_length=64"])
    learned = "".join(part[1:-1] for part in shown.split("|") if part.startswith("«"))
    assert learned == "Yes, it is."
    assert "«<|endoftext|>»" in shown
    cut = show(capfd, [*arguments, "data.max_length=8"])
    assert "~~" in cut
    assert "1 row without a target, which is cut away at max_length" in cut


def test_tags_stand_beside_their_words(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    rows = [{"words": ["Ada", "sleeps"], "tags": ["B-PER", "O"]}, {"words": ["it"], "tags": ["O"]}]
    shown = show(capfd, make_arguments(tmp_path, "token_classification", rows, "data.max_length=32"))
    assert "→B-PER»" in shown
    assert "→O»" in shown


TEXTS = ["the ferry crosses the bay twice a day", "Nobody  has fallen in for years", "nobody has fallen in for years"]


def test_rows_that_occur_twice_are_listed_with_their_places(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    rows = [{"text": text, "label": "a"} for text in TEXTS] + [{"text": "other", "label": "b"}]
    arguments = make_arguments(tmp_path, "sequence_classification", rows, "data.max_length=32")
    other = tmp_path / "other.jsonl"
    other.write_text(json.dumps({"text": TEXTS[0] + "s", "label": "a"}) + "\n")
    shown = show(capfd, [*arguments, f"data.validation={other}"])
    assert f"train: 1 row that a row above it in the same split has too: {tmp_path}/rows.jsonl line 3 = " in shown
    assert "that a row in train has too" not in shown
    near = show(capfd, [*arguments, f"data.validation={other}", "near=0.7"])
    assert f"validation: 1 row that a row in train has too: {other} line 1 = {tmp_path}/rows.jsonl line 1" in near


class _Tags(HTMLParser):
    """Collects tags, and sees that each is closed."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        assert not {"src", "href"} & dict(attrs).keys()
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_a_page_stands_alone_and_runs_nothing_that_is_in_the_data(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    rows = [{"text": f"<script>alert({number})</script><img src=x>", "label": "<b>a"} for number in range(2)]
    page = tmp_path / "page.html"
    arguments = make_arguments(tmp_path, "sequence_classification", rows, "data.max_length=64", f"html={page}")
    assert f"written to {page}" in show(capfd, arguments)
    tags = _Tags()
    tags.feed(page.read_text())
    assert not tags.open
    assert "script" not in tags.seen
    assert "b" not in tags.seen


def test_characters_that_a_terminal_would_act_on_are_spelled_out(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    rows = [{"text": "a\x1b[2Jb", "label": "a"}, {"text": "b", "label": "b"}]
    assert "\x1b" not in show(capfd, make_arguments(tmp_path, "sequence_classification", rows, "data.max_length=16"))


@pytest.mark.parametrize(
    ("argument", "told"),
    [
        ("rows=none", "rows=none: it must be a whole number from 1"),
        ("near=2", "near=2: it must be a number above 0 and below 1"),
        ("html=/nowhere/page.html", "html=/nowhere/page.html: it must be a file in a folder that is there"),
        ("data.streaming=true", "data.streaming: a stream is not looked at"),
        ("data.max_lenght=3", "data.max_lenght"),
    ],
)
def test_wrong_arguments_are_refused(argument: str, told: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    rows = [{"text": "a", "label": "a"}, {"text": "b", "label": "b"}]
    assert main([*make_arguments(tmp_path, "sequence_classification", rows), argument]) == 2
    assert told in capfd.readouterr().err


def test_the_weights_of_the_model_are_not_read(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    rows = [{"text": "a", "label": "a"}, {"text": "b", "label": "b"}]
    arguments = make_arguments(tmp_path, "sequence_classification", rows, "data.max_length=16")
    model = tmp_path / "model"
    BertConfig(vocab_size=300, architectures=["BertForSequenceClassification"], **SIZES).save_pretrained(model)
    (model / "model.safetensors").write_bytes((8).to_bytes(8, "little") + b"{}      ")  # a file without a weight
    shown = show(capfd, [*arguments, f'model={{"name": "{model}", "type": null}}'])
    assert "rows.jsonl line 1" in shown
