"""Code blocks of README and docs: each is run here or elsewhere, or a comment above it says why it is not.

`<!-- not run: why -->` stands above such a block. Shell commands are read by the code of the commands; those that need
nothing of the hub are run by a slow test.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import pytest
import tiny
import yaml
from made_up import make_reviews
from markdown_it import MarkdownIt
from transformers import BertConfig, BertForSequenceClassification
from wordpiece import make_wordpiece

from docs.site.pages import ROOT, list_sources
from trainer_loop import build, load_config
from trainer_loop.cli import compare, data, onnx, predict_arguments, push, search, serve
from trainer_loop.cli.arguments import read_arguments
from trainer_loop.config.load import read_config, split_arguments
from trainer_loop.record.logs import read_metrics
from trainer_loop.search.space import read_space

TINY = """\
model: {name: null, type: bert, tokenizer: train, vocab_size: 300, overrides: {hidden_size: 16, num_hidden_layers: 1, \
num_attention_heads: 2, intermediate_size: 32}}
"""
# A line of a block, and where it is run.
RUN = {
    "def keep(row)": "test_functions_of_the_pages_are_used_in_a_run",
    "def roc_auc(": "test_functions_of_the_pages_are_used_in_a_run",
    "class Lines(": "test_functions_of_the_pages_are_used_in_a_run",
    "def z_loss(": "test_functions_of_the_pages_are_used_in_a_run",
    "checkpoint: {best: roc_auc}": "test_functions_of_the_pages_are_used_in_a_run",
    "tracker_args: {my_lab.trackers.Lines": "test_functions_of_the_pages_are_used_in_a_run",
    "loop.evaluate(more_rows)": "test_what_is_written_from_python_runs",
    "loop.evaluate(other_rows)": "test_what_is_written_from_python_runs",
    "loss: {": "test_configs_have_no_problem",
    "tracker_args: {wandb": "test_configs_have_no_problem",
    "batch: {per_device: 16": "test_configs_have_no_problem",
    "args = TrainingArguments(": "unit/test_migrate.py",
    "optimizer.lr: {low": "test_a_space_has_no_problem",
    "def train_step(": "unit/test_readme.py",
    "def focal(": "unit/test_readme.py",
    "extends: imdb.yaml": "unit/test_readme.py",
    "mixture:": "test_the_mixture_it_shows_is_read",
    "assert_layout_invariant(loop.task": "examples/test_docs_test.py",
    "class GradientNorms(": "api/test_api.py",
    "onnxruntime.InferenceSession(": "cli/test_onnx.py",
}
RUN_ALL = ("test_what_is_written_from_python_runs", "test_configs_have_no_problem")  # blocks that have the line


class Block(NamedTuple):
    page: str
    comment: str  # in the line above
    language: str
    text: str


def list_blocks(page: str) -> Iterator[Block]:
    text = (ROOT / page).read_text(encoding="utf-8")
    for found in re.finditer(r"^(?:<!-- ([^\n]+) -->\n)?```(\w*)\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
        yield Block(page, found[1] or "", found[2], found[3])


BLOCKS = [block for page in list_sources() for block in list_blocks(page)]


def find_block(line: str, page: str = "") -> str:
    """The text of the one block of Python or YAML that has this, on the page."""
    blocks = [block for block in BLOCKS if block.language in ("python", "yaml") and not block.comment]
    (found,) = (block.text for block in blocks if line in block.text and page in block.page)
    return found


def find_sources(line: str) -> set[str]:
    return {source for text, source in RUN.items() if text in line}


def test_every_block_of_code_is_run_or_says_why_not():
    code = [block for block in BLOCKS if block.language in ("python", "yaml") and "examples/" not in block.comment]
    assert len(code) > 18
    untested = [block for block in code if not block.comment.startswith("not run: ") and not find_sources(block.text)]
    assert untested == []
    own = [block.text for block in code if not block.comment]
    for line, test in RUN.items():  # a second block with the line of another one would not be run
        count = sum(line in text for text in own)
        assert count == 1 or (count > 1 and test in RUN_ALL), line
    for source in RUN.values():
        assert source in globals() or (ROOT / "tests" / source).is_file(), source
    others = {"json", "nginx", ""}  # json: made by describe
    assert {block.language for block in BLOCKS} == {"python", "yaml", "bash", *others}


@pytest.mark.parametrize("page", list_sources())
def test_no_block_of_code_is_written_so_that_it_is_not_found(page: str):
    tokens = MarkdownIt().parse((ROOT / page).read_text(encoding="utf-8"))
    written = [(token.info, token.content) for token in tokens if token.type in ("fence", "code_block")]
    assert written == [(block.language, block.text) for block in BLOCKS if block.page == page]


def test_functions_of_the_pages_are_used_in_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    Path("my_lab").mkdir()
    files = {"rows": "def keep(row)", "losses": "def z_loss(", "metrics": "def roc_auc(", "trackers": "class Lines("}
    for name, line in files.items():
        Path(f"my_lab/{name}.py").write_text(find_block(line))
    Path("best.yaml").write_text(find_block("checkpoint: {best: roc_auc}"))
    Path("trackers.yaml").write_text(find_block("tracker_args: {my_lab.trackers.Lines"))
    Path("mine.yaml").write_text(f"extends: [reviews.yaml, best.yaml, trackers.yaml]\n{TINY}")
    rows = [
        {"title": "Seen", "body": text, "stars": 5 if label == "positive" else 1, "language": language}
        for text, label in make_reviews(40)
        for language in ("en", "fr")
    ]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    loop = build(
        load_config(
            "mine.yaml",
            [
                *("data.train=rows.jsonl", "data.filter=my_lab.rows.keep", "data.map=my_lab.rows.prepare"),
                *("data.columns={text: text, label: label}", "data.max_length=32", "train.epochs=1", "run_dir=run"),
                *(
                    "loss.name=my_lab.losses.z_loss",
                    "evaluate.metrics=[accuracy, my_lab.metrics.roc_auc]",
                    "log.every=1",
                ),
            ],
        )
    )
    loop.fit()
    loop.accelerator.end_training()
    tiny.forget_accelerator()
    logged = read_metrics(Path("run/metrics.jsonl"))
    assert len(loop.data.train.rows) == 36
    assert any("validation/roc_auc" in row for row in logged)
    assert any(row.get("z", 0) > 0 for row in logged)
    lines = next(Path("run").rglob("lines.jsonl")).read_text().splitlines()
    assert any("validation/roc_auc" in json.loads(line) for line in lines)


@pytest.mark.parametrize("page", ["README.md", "docs/customise.md"])
def test_what_is_written_from_python_runs(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    make_wordpiece([text for text, _ in make_reviews(40)], vocab_size=300, max_length=64).save_pretrained("tiny")
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    BertForSequenceClassification(BertConfig(vocab_size=300, **shape)).save_pretrained("tiny")
    imdb = yaml.safe_load((ROOT / "configs" / "imdb.yaml").read_text())
    given = {"model": {"name": "tiny"}, "data": {"train": "reviews.csv", "validation": "reviews.csv", "max_length": 32}}
    Path("imdb.yaml").write_text(yaml.safe_dump(imdb | given))
    texts, labels = zip(*make_reviews(40), strict=True)
    frame = pd.DataFrame({"text": texts, "label": ["pos" if label == "positive" else "neg" for label in labels]})
    frame.to_csv("reviews.csv", index=False)
    names = {"frame": frame, "other_frame": frame, "more_rows": frame, "other_rows": frame, "new_rows": frame[["text"]]}
    try:
        exec(find_block("loop.evaluate(more_rows)", page), names)
        assert names["loop"].evaluate(frame)["rows"] == 40
        if page == "docs/customise.md":
            tiny.forget_accelerator()
            exec(find_block("loop.evaluate(other_rows)", page), names)
            assert Path("runs/imdb/model").is_dir()
    finally:
        tiny.forget_accelerator()


@pytest.mark.parametrize("line", [line for line, test in RUN.items() if test == "test_configs_have_no_problem"])
def test_configs_have_no_problem(line: str, tmp_path: Path):
    found = [block.text for block in BLOCKS if line in block.text and block.language == "yaml"]
    assert found
    for number, text in enumerate(found):
        path = tmp_path / f"{number}.yaml"
        path.write_text(text)
        base = [] if "model:" in text else ["model.type=bert", "data.train=a.csv"]
        assert read_config(str(path), base).problems == []


def test_the_mixture_it_shows_is_read(tmp_path: Path):
    (tmp_path / "mixture.yaml").write_text(find_block("mixture:", "docs/data.md"))
    mixed = load_config(str(tmp_path / "mixture.yaml"), ["task.name=chat", "model.type=gpt2"])
    assert [entry["weight"] for entry in mixed.data.mixture] == [0.7, 0.3]


def test_a_space_has_no_problem():
    text = find_block("optimizer.lr: {low")
    space, problems = read_space("{" + ", ".join(re.sub(r" +#.*", "", line) for line in text.splitlines()) + "}")
    assert problems == []
    assert len(space) == 5


# ------------------------------------------------------------------------------------------------ commands of a shell


def list_commands(page: str) -> Iterator[list[str]]:
    """The words of each command of a page."""
    for block in list_blocks(page):
        for line in block.text.replace("\\\n", " ").splitlines() if block.language == "bash" else ():
            if words := shlex.split(line, comments=True):
                yield words


def read_run(arguments: list[str]) -> None:
    path, overrides, asked = split_arguments(arguments)
    if asked is None and not (path or "").startswith("runs/"):
        assert read_config(path, overrides).problems == []


def read_search(arguments: list[str]) -> None:
    if "..." not in arguments:
        search.read_plan(arguments)


READERS: dict[str, Callable[[list[str]], object]] = {
    "run": read_run,
    "search": read_search,
    "data": data.read_request,
    "predict": predict_arguments.read_request,
    "push": lambda arguments: arguments == ["--help"] or read_arguments(arguments, push.READERS),
    "compare": compare._read_arguments,
    "serve": serve.read_options,
    "onnx": lambda arguments: arguments == ["--help"] or read_arguments(arguments, onnx.READERS),
    "report": lambda arguments: len(arguments) == 1,
    "checkpoints": lambda arguments: len(arguments) == 1,
    "migrate": lambda arguments: arguments[1:] == [">", "imdb.yaml"],
}
OF_OTHERS = ("pip", "curl", "export", "hf", "sbatch", "squeue", "tail", "python3", "make")


@pytest.mark.parametrize("page", [page for page in list_sources() if any(list_commands(page))])
def test_commands_are_read_without_a_problem(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)  # for pages that a command would write
    for words in list_commands(page):
        if "-m" not in words or words[0] in OF_OTHERS:
            assert words[0] in OF_OTHERS, words
            continue
        module, *arguments = words[words.index("-m") + 1 :]
        package, _, name = module.partition(".")
        if package == "benchmarks":
            assert (ROOT / "benchmarks" / f"{name}.py").is_file(), module
        else:
            assert package == "trainer_loop"
            assert READERS[name](arguments) is not False, words


@pytest.mark.slow
def test_commands_that_need_nothing_of_the_hub_run(tmp_path: Path):
    shutil.copytree(ROOT / "launch", tmp_path / "launch")
    (tmp_path / "my_lab").mkdir()
    (tmp_path / "my_lab" / "losses.py").write_text(find_block("def focal(", "README.md"))
    bin_ = Path(sys.executable).parent
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PATH": f"{bin_}{os.pathsep}{os.environ['PATH']}"}
    commands = [words for page in list_sources() for words in list_commands(page) if "trainer_loop.run" in words]
    embedded = [words for words in commands if words[-1] == "trainer_loop.run" or "config=quickstart.yaml" in words]
    assert len(embedded) >= 3
    for number, words in enumerate(embedded):
        small = ["data.limit.train=200", "data.limit.validation=50", "train.epochs=1", f"run_dir=runs/{number}"]
        own = [word for word in words if not word.startswith("run_dir=")]
        own += [] if "config=quickstart.yaml" in own else ["config=quickstart.yaml"]  # as where nothing is given
        subprocess.run([*own, *small], cwd=tmp_path, env=environment, check=True)
        assert (tmp_path / "runs" / str(number) / "model" / "model.safetensors").is_file()
    models = [f"runs/{number}" for number in range(len(embedded))]
    for command in (
        ["trainer_loop.report", models[0]],
        ["trainer_loop.compare", *models],
        ["trainer_loop.checkpoints", models[0]],
        ["trainer_loop.predict", f"model={models[0]}", "text=I am super delighted."],
    ):
        subprocess.run([sys.executable, "-m", *command], cwd=tmp_path, env=environment, check=True)
    assert (tmp_path / "compare.html").is_file()
