"""`python -m trainer_loop.predict`: one text, a pair, a file; a classifier and a language model."""

import csv
import json
import math
import re
import shlex
import shutil
import sys
from pathlib import Path

import fork_server
import pandas as pd
import pytest
import torch
from made_up import make_reviews, write_csv
from transformers import (
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
)

from trainer_loop.cli.predict import main
from trainer_loop.cli.run import main as train


@pytest.fixture(scope="module")
def trained(tiny_model, tmp_path_factory) -> Path:
    """A run that learnt to tell the made-up reviews apart."""
    directory = tmp_path_factory.mktemp("trained")
    reviews = write_csv(directory / "reviews.csv", make_reviews(80))
    arguments = [f"model.name={tiny_model}", f"data.train={reviews}", "data.validation_fraction=0.25"]
    arguments += ["data.max_length=32", "batch.size=8", "train={epochs: 6, precision: no}", "optimizer.lr=2e-2"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(directory)
        assert train([*arguments, "run_dir=run"]) == 0
    return directory / "run"


@pytest.fixture
def run(trained, tmp_path, monkeypatch) -> Path:
    """A copy of it in the current directory."""
    monkeypatch.chdir(tmp_path)
    return Path(shutil.copytree(trained, tmp_path / "run", symlinks=True))


def predict(capfd, *arguments: str) -> tuple[int, str, str]:
    capfd.readouterr()
    code = main(list(arguments))
    captured = capfd.readouterr()
    return code, captured.out, captured.err


def ask_transformers(model_dir: Path, texts: list[str]) -> list[tuple[str, float]]:
    """Label and probability of each text, one at a time, without anything of ours."""
    model = AutoModelForSequenceClassification.from_pretrained(model_dir).eval()
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    judged = []
    for text in texts:
        with torch.no_grad():
            probabilities = model(
                **tokenizer(text, return_tensors="pt", truncation=True, max_length=32)
            ).logits.softmax(-1)
        judged.append((model.config.id2label[int(probabilities.argmax())], float(probabilities.max())))
    return judged


def test_one_text_prints_its_label_and_probability(run, capfd):
    code, out, _ = predict(capfd, f"model={run}", "text=phone number 7 is great and lovely")
    ((label, probability),) = ask_transformers(run / "model", ["phone number 7 is great and lovely"])
    assert code == 0
    assert out.strip().splitlines()[-1] == f"label={label} probability={probability:.4f}"


def test_the_command_that_the_run_prints_works_as_it_is(run, tmp_path):
    log = (run / "train.log").read_text().splitlines()[-1]
    python, *words = shlex.split(log.partition("predict: ")[2])
    assert python == sys.executable
    done = fork_server.run(words, cwd=tmp_path)  # test_quickstart.py hands such a line to a shell
    assert done.returncode == 0
    assert done.stdout.startswith("label=")
    assert done.stderr == ""


def test_a_file_is_written_with_the_same_rows_in_order_and_what_was_predicted(run, capfd, tmp_path):
    texts = [text for text, _ in make_reviews(30, seed=5)]
    texts[3] = 'a "quoted", two-line\nlamp is awful'
    rows = [(f"00{number}", text, "kept") for number, text in enumerate(texts)]
    file = write_csv(tmp_path / "new.csv", rows, header=("id", "text", "note"))
    code, out, err = predict(capfd, f"model={run}", f"file={file}", f"output={tmp_path / 'judged.csv'}")
    assert code == 0, err
    assert "30 rows written" in out
    with (tmp_path / "judged.csv").open(newline="", encoding="utf-8") as judged:
        written = list(csv.DictReader(judged))
    assert [(row["id"], row["text"], row["note"]) for row in written] == rows
    for row, (label, probability) in zip(written, ask_transformers(run / "model", texts), strict=True):
        assert row["label"] == label
        assert float(row["probability"]) == pytest.approx(probability, abs=1e-5)


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".parquet", ".tsv"])
def test_other_kinds_of_files_are_written_too(run, capfd, tmp_path, suffix):
    file = tmp_path / "new.jsonl"
    file.write_text('{"text": "a good book", "stars": 5}\n{"text": "ein schlechtes Bücherregal", "stars": 1}\n')
    output = tmp_path / f"judged{suffix}"
    code, _, err = predict(capfd, f"model={run}", f"file={file}", f"output={output}")
    assert code == 0, err
    read = {
        ".jsonl": lambda: pd.read_json(output, lines=True),
        ".json": lambda: pd.read_json(output),
        ".parquet": lambda: pd.read_parquet(output),
        ".tsv": lambda: pd.read_csv(output, sep="\t"),
    }[suffix]()
    assert read.columns.tolist() == ["text", "stars", "label", "probability"]
    assert read["text"].tolist() == ["a good book", "ein schlechtes Bücherregal"]
    assert read["stars"].tolist() == [5, 1]


def test_a_file_with_labels_keeps_them_beside_the_predicted_ones(run, capfd, reviews):
    code, _, err = predict(capfd, f"model={run}", f"file={reviews}")
    assert code == 0, err
    written = pd.read_csv(run / "predictions" / "reviews.csv")
    assert written.columns.tolist() == ["text", "label", "predicted_label", "probability"]
    assert (written["label"] == written["predicted_label"]).mean() > 0.7


def test_pairs_are_predicted_by_both_texts(command, arguments, tmp_path, capfd):
    rows = [
        (text, other, label)
        for (text, label), (other, _) in zip(make_reviews(60), make_reviews(60, seed=1), strict=True)
    ]
    pairs = write_csv(tmp_path / "pairs.csv", rows, header=("first", "second", "label"))
    arguments = [*arguments, f"data.train={pairs}", "data.columns.text=first", "data.columns.text_pair=second"]
    assert command(*arguments, "optimizer.lr=2e-2").code == 0
    run = tmp_path / "run"
    code, _, err = predict(capfd, f"model={run}", "text=a good film")
    assert code == 2
    assert "text_pair= is missing" in err
    code, _, err = predict(capfd, f"model={run}", f"file={pairs}")
    assert code == 0, err
    assert len(pd.read_csv(run / "predictions" / "pairs.csv")) == 60
    same_first = write_csv(tmp_path / "same.csv", [("lamp", "good"), ("lamp", "awful")], header=("first", "second"))
    assert predict(capfd, f"model={run}", f"file={same_first}")[0] == 0
    good, awful = pd.read_csv(run / "predictions" / "same.csv")["probability"]
    assert good != awful
    code, out, _ = predict(capfd, f"model={run}", "text=lamp", "text_pair=awful")
    assert code == 0
    assert f"probability={awful:.4f}" in out


def test_a_language_model_continues_a_text_and_scores_a_file(command, tmp_path, capfd):
    book = tmp_path / "book.txt"
    book.write_text("one two three four five six seven\n" * 200)
    ended = command(
        "task.name=causal_lm",
        "model={type: gpt2, tokenizer: train, vocab_size: 300}",
        "model.overrides={n_embd: 32, n_layer: 1, n_head: 2, n_positions: 64}",
        f"data.train={book}",
        "data.max_length=32",
        "batch.size=8",
        "train.steps=150",
        "optimizer.lr=1e-2",
        f"run_dir={tmp_path / 'run'}",
    )
    assert ended.code == 0, ended.err
    code, out, err = predict(capfd, f"model={tmp_path / 'run'}", "text=one two three", "max_new_tokens=3")
    assert code == 0, err
    assert out.strip().startswith("one two three four")
    assert predict(capfd, f"model={tmp_path / 'run'}", "text=one two three")[0] == 0  # no further than the positions
    for asked, text, told in (
        (
            "100",
            "one two",
            r"max_new_tokens=100: the text has \d+ tokens, and the model has 64 .* at most \d+ are left",
        ),
        ("1", "one " * 64, r"max_new_tokens=1: the text has \d+ tokens, .* give a shorter text"),
    ):
        code, _, err = predict(capfd, f"model={tmp_path / 'run'}", f"text={text}", f"max_new_tokens={asked}")
        assert code == 2
        assert re.fullmatch(f"error: {told}", err.strip())
    file = tmp_path / "lines.txt"
    file.write_text("one two three four five six seven\nseven seven one six\n!\n")
    code, _, err = predict(capfd, f"model={tmp_path / 'run'}", f"file={file}", f"output={tmp_path / 'scored.jsonl'}")
    assert code == 0, err
    scored = [json.loads(line) for line in (tmp_path / "scored.jsonl").read_text().splitlines()]
    assert scored[0]["loss"] < scored[1]["loss"]
    assert scored[2]["loss"] is None  # one token: there is nothing to predict
    assert scored[0]["perplexity"] == pytest.approx(math.exp(scored[0]["loss"]))


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        ([], ["model= is missing", "give either text="]),
        (["model=runs/none", "text=x"], ["no such directory"]),
        (["modle=x", "text=x"], ["did you mean model="]),
        (["model=x", "text=x", "file=y.csv"], ["give either text="]),
        (["--text", "x"], ["arguments are key=value"]),
        (["model=x", "file=x.csv", "output=x.xlsx"], ["must end in .csv"]),
    ],
)
def test_wrong_arguments_are_told_in_one_line_each(capfd, arguments, wanted):
    code, _, err = predict(capfd, *arguments)
    assert code == 2
    for part in wanted:
        assert part in err
    assert "Traceback" not in err


def test_a_file_without_the_column_is_told_by_this_commands_own_keys(run, capfd, tmp_path):
    file = write_csv(tmp_path / "new.csv", [("good",)], header=("review",))
    code, _, err = predict(capfd, f"model={run}", f"file={file}")
    assert code == 2
    assert "text_column=text" in err
    assert "review" in err
    assert "data." not in err
    code, _, err = predict(capfd, f"model={run}", f"file={file}", "text_column=review")
    assert code == 0, err


def test_numbers_too_large_for_a_float_are_written_as_they_were(run, capfd, tmp_path):
    file = tmp_path / "new.jsonl"
    file.write_text('{"text": "a good book", "id": 9007199254740993}\n{"text": "a bad book", "id": null}\n')
    assert predict(capfd, f"model={run}", f"file={file}", f"output={tmp_path / 'judged.csv'}")[0] == 0
    assert "9007199254740993," in (tmp_path / "judged.csv").read_text()


def test_a_model_without_a_trained_head_is_refused_because_it_would_answer_at_random(tiny_model, capfd):
    code, out, err = predict(capfd, f"model={tiny_model}", "text=good")
    assert code == 2
    assert out == ""
    assert "classifier.bias, classifier.weight" in err


def test_a_file_cannot_be_a_dotted_path(run, capfd, tmp_path, monkeypatch):
    (tmp_path / "trap.py").write_text("raise SystemExit('the trap was imported')\n")
    monkeypatch.chdir(tmp_path)
    code, _, err = predict(capfd, f"model={run}", "file=trap.rows")
    assert code == 2
    assert "file=trap.rows" in err


def test_keys_that_would_do_nothing_are_refused(run, capfd):
    for extra, told in (
        (["text=x", "output=x.csv"], "goes with file="),
        (["file=x.csv", "text_pair=y"], "goes with text="),
        (["text=x", "text_pair=y"], "text_pair= is given, and this model reads text="),
        (["text=x", "max_new_tokens=3"], "writes nothing"),
    ):
        code, _, err = predict(capfd, f"model={run}", *extra)
        assert code == 2
        assert told in err


def test_a_model_directory_cannot_choose_what_is_imported(run, capfd, tmp_path, monkeypatch):
    (tmp_path / "trap.py").write_text("raise SystemExit('the trap was imported')\n")
    monkeypatch.chdir(tmp_path)
    record = run / "model" / "trainer_loop.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | {"task": "trap.Task"}))
    code, _, err = predict(capfd, f"model={run}", "text=good")
    assert code == 2
    assert "trap.Task" in err


def test_code_that_came_with_a_model_runs_only_when_it_is_asked_for(run, capfd, monkeypatch):
    config = json.loads((run / "model" / "config.json").read_text())
    config["model_type"] = "of_ones_own"
    config["auto_map"] = {"AutoConfig": "own.Own", "AutoModelForSequenceClassification": "own.OwnModel"}
    (run / "model" / "config.json").write_text(json.dumps(config))
    (run / "model" / "own.py").write_text("raise RuntimeError('it was run')")
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("it asks"))
    code, _, err = predict(capfd, f"model={run}", "text=a film")
    assert code == 2
    assert "trust_remote_code=true lets its code run" in err
    assert "Traceback" not in err
    code, _, err = predict(capfd, f"model={run}", "text=a film", "trust_remote_code=maybe")
    assert (code, "allowed: true, false" in err) == (2, True)
    code, _, err = predict(capfd, f"model={run}", "text=a film", "trust_remote_code=true")
    assert (code, "cannot be loaded: it was run" in err) == (2, True)


@pytest.mark.parametrize("damage", ["{", '{"task": "sequence_classification", "colour": 3}'])
def test_a_record_that_cannot_be_read_is_one_line(run, capfd, damage):
    (run / "model" / "trainer_loop.json").write_text(damage)
    code, _, err = predict(capfd, f"model={run}", "text=a film")
    assert code == 2
    (line,) = err.splitlines()
    assert "trainer_loop.json cannot be read" in line


def test_an_output_that_cannot_be_written_is_one_line(run, capfd, tmp_path):
    rows = write_csv(tmp_path / "new.csv", make_reviews(3))
    (tmp_path / "taken").write_text("")
    code, _, err = predict(capfd, f"model={run}", f"file={rows}", f"output={tmp_path / 'taken' / 'out.csv'}")
    assert code == 2
    (line,) = err.splitlines()
    assert "cannot be written" in line


def test_the_file_is_the_result_and_a_console_that_fails_is_a_warning(run, tmp_path, capfd, monkeypatch):
    (tmp_path / "new.csv").write_text("text\na film\n")
    with Path("/dev/full").open("w") as full:
        monkeypatch.setattr("sys.stdout", full)
        code, _, err = predict(capfd, f"model={run}", f"file={tmp_path / 'new.csv'}", f"output={tmp_path / 'out.csv'}")
    monkeypatch.undo()
    assert (code, err) == (0, "warning: standard output cannot be written: No space left on device\n")
    assert (tmp_path / "out.csv").read_text().count("\n") == 2


def save_tagger(tiny_model: Path, directory: Path) -> Path:
    """A tagger as somebody else would save it, whose weights are drawn at random."""
    torch.manual_seed(3)
    names = {0: "O", 1: "B-X", 2: "I-X"}
    model = AutoModelForTokenClassification.from_pretrained(tiny_model, num_labels=3, id2label=names)
    model.save_pretrained(directory)
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(directory)
    return directory


def test_a_tagger_of_somebody_else_tags_the_words_of_a_text_and_of_a_file(tiny_model, capfd, tmp_path):
    model = save_tagger(tiny_model, tmp_path / "tagger")
    code, out, err = predict(capfd, f"model={model}", "text=a good film")
    assert code == 0, err
    tags = out.strip().removeprefix("tags=[").removesuffix("]").split(", ")
    assert len(tags) == 3 and set(tags) <= {"O", "B-X", "I-X"}

    rows = [{"tokens": ["a", "good", "film"], "ner": tags}, {"tokens": ["bad"], "ner": ["unknown"]}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    output = tmp_path / "tagged.jsonl"
    columns = ["text_column=tokens", "label_column=ner"]
    code, out, err = predict(capfd, f"model={model}", f"file={tmp_path / 'rows.jsonl'}", f"output={output}", *columns)
    assert code == 0, err
    assert json.loads(output.read_text().splitlines()[0])["tags"] == tags
    assert re.search(rf"entity_f1 +{int(set(tags) != {'O'})}\n", out), "the file holds what was predicted"
    assert "1 row without known labels in column 'ner': left out of the metrics" in out

    code, _, err = predict(capfd, f"model={model}", f"file={tmp_path / 'rows.jsonl'}", "pair_column=ner")
    assert code == 2
    assert "pair_column=ner: this model reads no such column; remove it" in err
    assert "text_column=words: the file has no such column; it has tokens, ner" in err


def test_a_language_model_of_somebody_else_is_compared_with_no_column(capfd, tmp_path, tiny_model):
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    config = GPT2Config(vocab_size=len(tokenizer), n_embd=16, n_layer=1, n_head=2, n_positions=64)
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "lm")
    tokenizer.save_pretrained(tmp_path / "lm")
    (tmp_path / "rows.csv").write_text("text,label\na good film,0\na bad film,1\n")
    arguments = [f"model={tmp_path / 'lm'}", f"file={tmp_path / 'rows.csv'}", f"output={tmp_path / 'out.csv'}"]
    code, out, err = predict(capfd, *arguments)
    assert code == 0, err
    assert "compared with" not in out
    assert (tmp_path / "out.csv").read_text().startswith("text,label,loss,perplexity\n")


def test_the_printed_command_names_the_columns_that_a_chat_reads(tmp_path, command):
    rows = '{"messages": [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}]}\n'
    (tmp_path / "chats.jsonl").write_text(rows * 3)
    sizes = "{n_embd: 16, n_layer: 1, n_head: 2}"
    model = f"{{type: gpt2, tokenizer: train, vocab_size: 300, chat_template: plain, overrides: {sizes}}}"
    words = ["task.name=chat", f"model={model}", f"data.train={tmp_path / 'chats.jsonl'}", "data.max_length=32"]
    ended = command(*words, "train={epochs: null, steps: 1}", f"run_dir={tmp_path / 'run'}")
    assert ended.code == 0, ended.err
    told = ended.out.rpartition("trainer_loop.predict ")[2]
    assert told.startswith(f'model={tmp_path / "run"} messages="')
    assert "prompt=" not in told
