"""Tests of `python -m trainer_loop.predict` on single texts, pairs and files, with models of several tasks."""

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

from trainer_loop import Predictor, UserError
from trainer_loop.cli.predict import main
from trainer_loop.cli.run import main as train
from trainer_loop.errors import printable


@pytest.fixture(scope="module")
def trained(tiny_model, tmp_path_factory) -> Path:
    """The run directory of a classifier trained on made-up reviews."""
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
    """A copy of the trained run in the current directory."""
    monkeypatch.chdir(tmp_path)
    return Path(shutil.copytree(trained, tmp_path / "run", symlinks=True))


def predict(capfd, *arguments: str) -> tuple[int, str, str]:
    capfd.readouterr()
    code = main(list(arguments))
    captured = capfd.readouterr()
    return code, captured.out, captured.err


def ask_transformers(model_dir: Path, texts: list[str]) -> list[tuple[str, float]]:
    """The label and probability of each text, computed one at a time by transformers alone."""
    model = AutoModelForSequenceClassification.from_pretrained(model_dir).eval()
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    predictions = []
    for text in texts:
        with torch.no_grad():
            probabilities = model(
                **tokenizer(text, return_tensors="pt", truncation=True, max_length=32)
            ).logits.softmax(-1)
        predictions.append((model.config.id2label[int(probabilities.argmax())], float(probabilities.max())))
    return predictions


def test_one_text_prints_its_label_and_probability(run, capfd):
    code, out, _ = predict(capfd, f"model={run}", "text=phone number 7 is great and lovely")
    ((label, probability),) = ask_transformers(run / "model", ["phone number 7 is great and lovely"])
    assert code == 0
    assert out.strip().splitlines()[-1] == f"label={label} probability={probability:.4f}"


def test_the_command_that_the_run_prints_works(run, tmp_path):
    log = (run / "train.log").read_text().splitlines()[-1]
    python, *words = shlex.split(log.partition("predict: ")[2])
    assert python == sys.executable
    done = fork_server.run(words, cwd=tmp_path)  # test_quickstart.py hands such a line to a shell
    assert done.returncode == 0
    assert done.stdout.startswith("label=")
    assert done.stderr == ""


def test_the_output_has_the_rows_of_the_file_in_order_and_the_predictions(run, capfd, tmp_path):
    texts = [text for text, _ in make_reviews(30, seed=5)]
    texts[3] = 'a "quoted", two-line\nlamp is awful'
    rows = [(f"00{number}", text, "kept") for number, text in enumerate(texts)]
    file = write_csv(tmp_path / "new.csv", rows, header=("id", "text", "note"))
    code, out, err = predict(capfd, f"model={run}", f"file={file}", f"output={tmp_path / 'predicted.csv'}")
    assert code == 0, err
    assert "30 rows written" in out
    with (tmp_path / "predicted.csv").open(newline="", encoding="utf-8") as output:
        written = list(csv.DictReader(output))
    assert [(row["id"], row["text"], row["note"]) for row in written] == rows
    for row, (label, probability) in zip(written, ask_transformers(run / "model", texts), strict=True):
        assert row["label"] == label
        assert float(row["probability"]) == pytest.approx(probability, abs=1e-5)


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".parquet", ".tsv"])
def test_output_can_be_tsv_json_jsonl_or_parquet(run, capfd, tmp_path, suffix):
    file = tmp_path / "new.jsonl"
    file.write_text('{"text": "a good book", "stars": 5}\n{"text": "ein schlechtes Bücherregal", "stars": 1}\n')
    output = tmp_path / f"predicted{suffix}"
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


def test_labels_of_the_file_are_kept_beside_the_predicted_labels(run, capfd, reviews):
    code, _, err = predict(capfd, f"model={run}", f"file={reviews}")
    assert code == 0, err
    written = pd.read_csv(run / "predictions" / "reviews.csv")
    assert written.columns.tolist() == ["text", "label", "predicted_label", "probability"]
    assert (written["label"] == written["predicted_label"]).mean() > 0.7


def test_a_model_of_pairs_needs_both_texts_and_uses_both(command, arguments, tmp_path, capfd):
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
    for names in (("text", "text_pair"), ("first", "second"), ("text", "second")):
        code, out, _ = predict(capfd, f"model={run}", f"{names[0]}=lamp", f"{names[1]}=awful")
        assert code == 0
        assert f"probability={awful:.4f}" in out
    code, _, err = predict(capfd, f"model={run}", "text=lamp", "first=lamp", "second=awful")
    assert (code, "text= and first= name one column; leave one out" in err) == (2, True)
    rows = {"first": ["lamp"], "second": ["awful"]}
    predictor = Predictor.load(run / "model")
    assert predictor.predict_rows(rows).rows[0]["probability"] == pytest.approx(awful, abs=1e-6)
    with pytest.raises(UserError, match=r"rows\['third'\]: the model reads text, text_pair; remove it"):
        predictor.predict_rows({**rows, "third": ["x"]})


def test_a_language_model_continues_a_single_text_and_scores_a_file(command, tmp_path, capfd):
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
    assert (
        predict(capfd, f"model={tmp_path / 'run'}", "text=one two three")[0] == 0
    )  # by default the continuation ends at the last position
    for asked, text, message in (
        (
            "100",
            "one two",
            r"max_new_tokens=100: the text has \d+ tokens, and the model has 64 .* at most \d+ are left",
        ),
        ("1", "one " * 64, r"max_new_tokens=1: the text has \d+ tokens, .* give a shorter text"),
    ):
        code, _, err = predict(capfd, f"model={tmp_path / 'run'}", f"text={text}", f"max_new_tokens={asked}")
        assert code == 2
        assert re.fullmatch(f"error: {message}", err.strip())
    file = tmp_path / "lines.txt"
    file.write_text("one two three four five six seven\nseven seven one six\n!\n")
    code, _, err = predict(capfd, f"model={tmp_path / 'run'}", f"file={file}", f"output={tmp_path / 'scored.jsonl'}")
    assert code == 0, err
    scored = [json.loads(line) for line in (tmp_path / "scored.jsonl").read_text().splitlines()]
    assert scored[0]["loss"] < scored[1]["loss"]
    assert scored[2]["loss"] is None  # a text of one token has no target
    assert scored[0]["perplexity"] == pytest.approx(math.exp(scored[0]["loss"]))


def test_a_language_model_continues_the_texts_of_a_file(capfd, tmp_path, tiny_model):
    model = save_language_model(tiny_model, tmp_path / "lm")
    texts = ["a good film", "bad", "the lamp is great", "a bad film", "good"]
    (tmp_path / "texts.csv").write_text("".join(f"{text}\n" for text in ["text", *texts]))
    command = [f"model={model}", "max_new_tokens=3", "num_beams=2"]
    arguments = [*command, f"file={tmp_path / 'texts.csv'}", f"output={tmp_path / 'out.jsonl'}"]
    code, _, err = predict(capfd, *arguments)
    assert code == 0, err
    written = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert list(written[0]) == ["text", "loss", "perplexity", "continuation"]
    assert any(row["continuation"] for row in written)
    for text, row in zip(texts, written, strict=True):
        assert row["text"] == text
        assert predict(capfd, *command, f"text={text}")[1] == f"{text}{row['continuation']}\n"

    code, _, err = predict(capfd, *arguments[:1], *arguments[3:], "max_new_tokens=62", "overwrite=true")
    assert code == 2
    assert re.search(r"texts.csv row 3: max_new_tokens=62: the text has \d tokens, and the model has 64 positions", err)


def test_max_new_tokens_limits_the_texts_written_for_a_file(command, tmp_path, capfd):
    rows = "".join(f"{text},{text[::-1]}\n" for text in ("one two three", "four five six seven", "eight nine ten"))
    (tmp_path / "rows.csv").write_text(f"source,target\n{rows}")
    sizes = "{d_model: 16, d_kv: 8, d_ff: 16, num_layers: 1, num_heads: 2}"
    words = ["task.name=seq2seq", f"model={{type: t5, tokenizer: train, vocab_size: 300, overrides: {sizes}}}"]
    words += [
        f"data.train={tmp_path / 'rows.csv'}",
        "data.max_length=32",
        "train.steps=1",
        f"run_dir={tmp_path / 'run'}",
    ]
    ended = command(*words)
    assert ended.code == 0, ended.err
    (tmp_path / "new.csv").write_text("source\none two\nthree\n")
    lengths = {}
    for number in (2, 9):
        output = tmp_path / f"{number}.jsonl"
        asked = [f"file={tmp_path / 'new.csv'}", f"output={output}", f"max_new_tokens={number}", "num_beams=2"]
        code, _, err = predict(capfd, f"model={tmp_path / 'run'}", *asked)
        assert code == 0, err
        tokenizer = AutoTokenizer.from_pretrained(tmp_path / "run" / "model")
        texts = [json.loads(line)["text"] for line in output.read_text().splitlines()]
        lengths[number] = [len(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts]
        for row, text in zip(("one two", "three"), texts, strict=True):
            out = predict(capfd, f"model={tmp_path / 'run'}", f"source={row}", *asked[2:])[1]
            assert out == f"text={printable(text)}\n"
    assert max(lengths[2]) <= 2 < max(lengths[9])


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        ([], ["model= is missing", "there is nothing to predict"]),
        (["model=runs/none", "text=x"], ["no such directory"]),
        (["modle=x", "text=x"], ["did you mean model="]),
        (["model=x", "text=x", "file=y.csv"], ["text= is a single row, and file= has rows of its own"]),
        (["--text", "x"], ["arguments are key=value"]),
        (["model=x", "file=x.csv", "output=x.xlsx"], ["must end in .csv"]),
    ],
)
def test_each_wrong_argument_is_reported_in_one_line(capfd, arguments, wanted):
    code, _, err = predict(capfd, *arguments)
    assert code == 2
    for part in wanted:
        assert part in err
    assert "Traceback" not in err


def test_the_error_for_a_missing_column_names_text_column(run, capfd, tmp_path):
    file = write_csv(tmp_path / "new.csv", [("good",)], header=("review",))
    code, _, err = predict(capfd, f"model={run}", f"file={file}")
    assert code == 2
    assert "text_column=text" in err
    assert "review" in err
    assert "data." not in err
    code, _, err = predict(capfd, f"model={run}", f"file={file}", "text_column=review")
    assert code == 0, err


def test_integers_too_large_for_a_float_are_written_unchanged(run, capfd, tmp_path):
    file = tmp_path / "new.jsonl"
    file.write_text('{"text": "a good book", "id": 9007199254740993}\n{"text": "a bad book", "id": null}\n')
    assert predict(capfd, f"model={run}", f"file={file}", f"output={tmp_path / 'predicted.csv'}")[0] == 0
    assert "9007199254740993," in (tmp_path / "predicted.csv").read_text()


def test_a_model_without_a_trained_head_is_refused(tiny_model, capfd):
    code, out, err = predict(capfd, f"model={tiny_model}", "text=good")
    assert code == 2
    assert out == ""
    assert "classifier.bias, classifier.weight" in err


def test_file_does_not_import_a_dotted_path(run, capfd, tmp_path, monkeypatch):
    (tmp_path / "trap.py").write_text("raise SystemExit('the trap was imported')\n")
    monkeypatch.chdir(tmp_path)
    code, _, err = predict(capfd, f"model={run}", "file=trap.rows")
    assert code == 2
    assert "file=trap.rows" in err


def test_arguments_without_an_effect_are_refused(run, capfd):
    for extra, message in (
        (["text=x", "output=x.csv"], "goes with file="),
        (["file=x.csv", "text_pair=y"], "text_pair= is a single row"),
        (["text=x", "text_pair=y"], "text_pair= is given, and this model reads text="),
        (["text=x", "max_new_tokens=3"], "writes nothing"),
        (["file=x.csv", "num_beams=3"], "num_beams= is given, but a model of the task sequence_classification writes"),
        (["text=x", "num_beams=many"], "num_beams=many: it must be a whole number from 1"),
        (["text=x", "length_penalty=nan"], "length_penalty=nan: it must be a number"),
    ):
        code, _, err = predict(capfd, f"model={run}", *extra)
        assert code == 2
        assert message in err


def test_a_model_directory_cannot_make_predict_import_code(run, capfd, tmp_path, monkeypatch):
    (tmp_path / "trap.py").write_text("raise SystemExit('the trap was imported')\n")
    monkeypatch.chdir(tmp_path)
    record = run / "model" / "trainer_loop.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | {"task": "trap.Task"}))
    code, _, err = predict(capfd, f"model={run}", "text=good")
    assert code == 2
    assert "trap.Task" in err


def test_code_in_a_model_directory_runs_only_with_trust_remote_code(run, capfd, monkeypatch):
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
def test_a_damaged_trainer_loop_json_is_reported_in_one_line(run, capfd, damage):
    (run / "model" / "trainer_loop.json").write_text(damage)
    code, _, err = predict(capfd, f"model={run}", "text=a film")
    assert code == 2
    (line,) = err.splitlines()
    assert "trainer_loop.json cannot be read" in line


def test_an_output_that_cannot_be_written_is_reported_in_one_line(run, capfd, tmp_path):
    rows = write_csv(tmp_path / "new.csv", make_reviews(3))
    (tmp_path / "taken").write_text("")
    code, _, err = predict(capfd, f"model={run}", f"file={rows}", f"output={tmp_path / 'taken' / 'out.csv'}")
    assert code == 2
    (line,) = err.splitlines()
    assert "cannot be written" in line


def test_a_console_that_cannot_be_written_costs_a_warning_and_the_file_is_written(run, tmp_path, capfd, monkeypatch):
    (tmp_path / "new.csv").write_text("text\na film\n")
    with Path("/dev/full").open("w") as full:
        monkeypatch.setattr("sys.stdout", full)
        code, _, err = predict(capfd, f"model={run}", f"file={tmp_path / 'new.csv'}", f"output={tmp_path / 'out.csv'}")
    monkeypatch.undo()
    assert (code, err) == (0, "warning: standard output cannot be written: No space left on device\n")
    assert (tmp_path / "out.csv").read_text().count("\n") == 2


def save_tagger(tiny_model: Path, directory: Path) -> Path:
    """Save a token classifier with random weights by transformers alone."""
    torch.manual_seed(3)
    names = {0: "O", 1: "B-X", 2: "I-X"}
    model = AutoModelForTokenClassification.from_pretrained(tiny_model, num_labels=3, id2label=names)
    model.save_pretrained(directory)
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(directory)
    return directory


def test_a_token_classifier_saved_by_transformers_tags_a_text_and_a_file(tiny_model, capfd, tmp_path):
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
    assert re.search(rf"entity_f1 +{int(set(tags) != {'O'})}\n", out), "the labels of the file are the predictions"
    assert "1 row without known labels in column 'ner': left out of the metrics" in out

    code, _, err = predict(capfd, f"model={model}", f"file={tmp_path / 'rows.jsonl'}", "pair_column=ner")
    assert code == 2
    assert "pair_column=ner: this model reads no such column; remove it" in err
    assert "text_column=words: the file has no such column; it has tokens, ner" in err


def save_language_model(tiny_model: Path, directory: Path) -> Path:
    """Save a language model with random weights by transformers alone."""
    torch.manual_seed(3)
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    config = GPT2Config(vocab_size=len(tokenizer), n_embd=16, n_layer=1, n_head=2, n_positions=64)
    GPT2LMHeadModel(config).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def test_a_language_model_saved_by_transformers_ignores_a_column_label(capfd, tmp_path, tiny_model):
    save_language_model(tiny_model, tmp_path / "lm")
    (tmp_path / "rows.csv").write_text("text,label\na good film,0\na bad film,1\n")
    arguments = [f"model={tmp_path / 'lm'}", f"file={tmp_path / 'rows.csv'}", f"output={tmp_path / 'out.csv'}"]
    code, out, err = predict(capfd, *arguments)
    assert code == 0, err
    assert "compared with" not in out
    assert (tmp_path / "out.csv").read_text().startswith("text,label,loss,perplexity\n")


@pytest.mark.parametrize("columns", ["{messages: dialog}", "{prompt: question, completion: answer, context: prompt}"])
def test_a_chat_takes_the_column_names_of_its_training_data(columns, tmp_path, command, capfd):
    chat = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}]
    row = {"dialog": chat, "question": "Hello", "answer": "Hi", "prompt": "It is noon."}
    (tmp_path / "chats.jsonl").write_text((json.dumps(row) + "\n") * 3)
    sizes = "{n_embd: 16, n_layer: 1, n_head: 2}"
    model = f"{{type: gpt2, tokenizer: train, vocab_size: 300, chat_template: plain, overrides: {sizes}}}"
    words = ["task.name=chat", f"model={model}", f"data.train={tmp_path / 'chats.jsonl'}", f"data.columns={columns}"]
    ended = command(*words, "data.max_length=32", "train={epochs: null, steps: 1}", f"run_dir={tmp_path / 'run'}")
    assert ended.code == 0, ended.err
    arguments = [f"model={tmp_path / 'run'}", "max_new_tokens=3"]
    has_dialog = "dialog" in columns
    given = ["dialog=Hello"] if has_dialog else ["question=Hello", "prompt=It is noon."]
    by_task = ["messages=Hello"] if has_dialog else ["prompt=Hello", "context=It is noon."]
    code, out, err = predict(capfd, *arguments, *given)
    assert code == 0, err
    assert predict(capfd, *arguments, *by_task)[1] == out
    file = tmp_path / "new.jsonl"
    file.write_text(json.dumps({"dialog": chat[:1], "question": "Hello", "prompt": "It is noon."}) + "\n")
    code, _, err = predict(capfd, *arguments, f"file={file}", f"output={tmp_path / 'out.jsonl'}")
    assert code == 0, err
    assert f"text={printable(json.loads((tmp_path / 'out.jsonl').read_text())['text'])}\n" == out

    code, _, err = predict(capfd, *arguments, "dialogue=Hello")
    assert code == 2
    if has_dialog:
        assert "dialogue= is given, and this model reads messages= or dialog=; did you mean 'dialog'?" in err
    else:
        assert (
            'context= is missing: this model reads prompt= or question=, context= or prompt=; add context="..."' in err
        )


def test_the_printed_command_names_only_the_columns_that_the_run_read(tmp_path, command):
    rows = '{"messages": [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}]}\n'
    (tmp_path / "chats.jsonl").write_text(rows * 3)
    sizes = "{n_embd: 16, n_layer: 1, n_head: 2}"
    model = f"{{type: gpt2, tokenizer: train, vocab_size: 300, chat_template: plain, overrides: {sizes}}}"
    words = ["task.name=chat", f"model={model}", f"data.train={tmp_path / 'chats.jsonl'}", "data.max_length=32"]
    ended = command(*words, "train={epochs: null, steps: 1}", f"run_dir={tmp_path / 'run'}")
    assert ended.code == 0, ended.err
    message = ended.out.rpartition("trainer_loop.predict ")[2]
    assert message.startswith(f'model={tmp_path / "run"} messages="')
    assert "prompt=" not in message
