"""`python -m trainer_loop.data`: rows token by token, duplicates, the page, and what is wrong with its arguments."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from transformers import BertConfig

from trainer_loop.cli.data import main
from trainer_loop.data.processors import train_tokenizer
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


LABELS = [["joy", "anger"], [], ["anger"]]
FLAGS = [{"joy": 1, "anger": 1}, {"joy": 0, "anger": 0}, {"joy": 0, "anger": 1}]


@pytest.mark.parametrize("has_columns", [False, True])
def test_several_labels_of_a_row_are_shown_by_name(
    has_columns: bool, tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    labels = FLAGS if has_columns else [{"label": own} for own in LABELS]
    rows = [{"text": f"text {number}"} | own for number, own in enumerate(labels)]
    order = "data.columns.label=[joy,anger]" if has_columns else "data.label_names=[joy,anger]"
    shown = show(capfd, make_arguments(tmp_path, "multi_label_classification", rows, "data.max_length=16", order))
    assert re.findall(r"  label: (.*)", shown) == ["joy, anger", "none", "anger"]


def test_several_numbers_of_a_row_are_shown_by_name(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    rows = [{"text": "one", "calm": 1, "glad": 2.5}, {"text": "two", "calm": 0, "glad": 1}]
    columns = "data.columns.label=[calm,glad]"
    shown = show(capfd, make_arguments(tmp_path, "sequence_regression", rows, "data.max_length=16", columns))
    assert re.findall(r"  label: (.*)", shown) == ["calm 1.0, glad 2.5", "calm 0.0, glad 1.0"]


def test_rows_of_a_mixture_are_shown_with_source_weight_and_number_of_draws(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    rows = [{"text": f"text {number}", "label": "ab"[number % 2], "trust": 0.5} for number in range(6)]
    arguments = make_arguments(tmp_path, "sequence_classification", rows, "data.max_length=16", "data.weight=trust")
    more = tmp_path / "more.jsonl"
    more.write_text("".join(json.dumps({"text": f"more {one}", "label": one, "trust": 2.0}) + "\n" for one in "ab"))
    sources = [
        {"name": "first", "train": str(tmp_path / "rows.jsonl"), "weight": 1},
        {"name": "second", "train": str(more), "weight": 1, "loss_weight": 3},
    ]
    arguments = [argument for argument in arguments if not argument.startswith("data.train=")]
    shown = show(capfd, [*arguments, f"data.mixture={json.dumps(sources)}", f"data.validation={more}", "rows=2"])
    facts = {}
    for place, source, weight, times in re.findall(
        r"train: (.*)\n.*\n  label: .\n  source: (.*)\n  weight of its loss: (.*)\n  drawn: (.*) times an epoch", shown
    ):
        facts[place] = (source, weight, times)
    assert facts == {
        f"{tmp_path}/rows.jsonl line 1": ("first", "0.5", "0.67"),
        f"{more} line 2": ("second", "6", "2.00"),
    }
    assert "mixture: first 50.0% = 4 rows an epoch of 6 (each 0.67 times); second 50.0%" in shown
    assert "weights of rows: 2 distinct ones from 0.5 to 6, mean 1.875" in shown
    assert "source" not in shown[shown.index(f"validation: {more} line 1") :]


def test_rows_of_balanced_classes_are_shown_with_their_number_of_draws(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    rows = [{"text": f"text {number}", "label": "b" if number else "a"} for number in range(4)]
    arguments = make_arguments(tmp_path, "sequence_classification", rows, "data.max_length=16")
    shown = show(capfd, [*arguments, "data.sampling=balanced", "rows=2"])
    assert re.findall(r"  label: (.)\n  drawn: (.*) times an epoch", shown) == [("a", "2.00"), ("b", "0.67")]


def test_the_page_says_how_many_rows_were_left_out_of_each_split(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    rows = [{"text": f"text {number % 4}", "label": "ab"[number % 2]} for number in range(8)]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "filter_of_page.py").write_text("def keep(row):\n    return row['text'] != 'text 3'\n")
    arguments = make_arguments(tmp_path, "sequence_classification", rows, "data.max_length=16", "html=page.html")
    other = tmp_path / "other.jsonl"
    other.write_text('{"text": "text 3", "label": "a"}\n{"text": "text 2", "label": "a"}\n')
    show(capfd, [*arguments, f"data.validation={other}", "data={filter: filter_of_page.keep, deduplicate: true}"])
    lines = re.findall(r"<li>(.*)</li>", Path("page.html").read_text())
    assert {
        "train: 6 of 8 rows were kept by data.filter, 2 left out",
        "validation: 1 of 2 rows were kept by data.filter, 1 left out",
        "train: 2 rows that an earlier one has, 2 rows that validation has too were dropped (data.deduplicate)",
    } <= set(lines)


TEXTS = ["the ferry crosses the bay twice a day", "Nobody  has fallen in for years", "nobody has fallen in for years"]


def test_rows_that_occur_twice_are_listed_with_their_places(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    rows = [{"text": text, "label": "a"} for text in TEXTS] + [{"text": "other", "label": "b"}]
    arguments = make_arguments(tmp_path, "sequence_classification", rows, "data.max_length=32")
    other = tmp_path / "other.jsonl"
    other.write_text(json.dumps({"text": TEXTS[0] + "s", "label": "a"}) + "\n")
    shown = show(capfd, [*arguments, f"data.validation={other}"])
    twice = "train: 1 row whose text a row above it in the same split has too (case and spaces do not count): "
    assert f"{twice}{tmp_path}/rows.jsonl line 3 = " in shown
    assert "a row in train has too" not in shown
    near = show(capfd, [*arguments, f"data.validation={other}", "near=0.7"])
    alike = "has too (0.7 or more of it is alike)"
    pair = f"{other} line 1 = {tmp_path}/rows.jsonl line 1"
    assert f"validation: 1 row whose text a row in train {alike}: {pair}" in near


class _Tags(HTMLParser):
    """Collects tags, and sees that each is closed."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        assert all(str(value).startswith("#") for name, value in attrs if name in ("src", "href"))
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
        ("data.streaming=true", "data.streaming: a stream cannot be shown"),
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
