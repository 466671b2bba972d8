"""A column for each label, as in the files of toxic comments: joined, checked, trained on and predicted."""

import csv
import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import datasets
import pandas
import pytest

from trainer_loop import TrainingLoop, UserError, build, load_config
from trainer_loop.cli.predict_arguments import Request
from trainer_loop.cli.predict_files import predict_file, prepare_file
from trainer_loop.data.columns import Columns, bind_columns
from trainer_loop.data.plain_columns import join_columns
from trainer_loop.data.processors import train_tokenizer
from trainer_loop.data.values import find_fault_of_flags, list_flagged
from trainer_loop.predictor import Predictor, read_record
from trainer_loop.record.logs import Console
from trainer_loop.tasks.multi_label_classification import MultiLabelClassification
from trainer_loop.tasks.sequence_classification import SequenceClassification
from trainer_loop.tasks.token_classification import TokenClassification

NAMES = ["toxic", "obscene", "threat"]  # neither sorted nor in the order of the file
ROWS = [
    ("go away", [1, 0, 0]), ("you fool, go away", [1, 1, 0]), ("thanks for this", [0, 0, 0]),
    ("I will find you", [1, 0, 1]),
    ("a fine page", [0, 0, 0]), ("you fool", [0, 1, 0]), ("find another page", [0, 0, 0]), ("go, or I will", [0, 0, 1]),
]  # fmt: skip
SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
QUIET = Console(enabled=False)
LISTED = f"data.columns={{text: comment_text, label: [{', '.join(NAMES)}]}}"


def write(path: Path, rows: list[tuple[str, list[Any]]] = ROWS) -> None:
    """A file with a column for each label."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "comment_text", "threat", "toxic", "obscene"])
        writer.writerows([number, text, flags[2], flags[0], flags[1]] for number, (text, flags) in enumerate(rows))


def make_loop(folder: Path, train: str, *overrides: str, rows: Any = None, console: Console = QUIET) -> TrainingLoop:
    tokenizer = folder / "tokenizer"
    train_tokenizer([text for text, _ in ROWS], framed=True, vocab_size=300, max_length=32).save_pretrained(tokenizer)
    model = {"type": "bert", "tokenizer": str(tokenizer), "overrides": SIZES}
    given = [
        "task={name: multi_label_classification, args: {threshold: 0.45}}",
        f"data={{train: {folder / train}, validation: {folder / train}, max_length: 32}}",
        f"data.cache_dir={folder / 'cache'}",
        f"model={json.dumps(model)}",
        f"run_dir={folder / 'run'}",
        "train={steps: 3, precision: no}",
        "optimizer={name: sgd, lr: 0.5}",
        "batch.size=8",
        "evaluate.every=3",
        "checkpoint.every=3",
    ]
    return build(load_config(None, [*given, *overrides]), rows=rows, console=console)


def refuse(*arguments: Any, **others: Any) -> list[str]:
    with pytest.raises(UserError) as refused:
        make_loop(*arguments, **others)
    return refused.value.problems


class Lines(Console):
    """Keeps what is said."""

    def __init__(self) -> None:
        super().__init__(enabled=False)
        self.lines: list[str] = []

    def say(self, line: str = "") -> None:
        self.lines.append(line)


@pytest.mark.parametrize("streaming", ["false", "true"])
def test_it_trains_as_on_lists_of_labels(streaming: str, tmp_path: Path):
    write(tmp_path / "flags.csv")
    lists = [{"text": text, "label": [n for n, flag in zip(NAMES, flags, strict=True) if flag]} for text, flags in ROWS]
    (tmp_path / "lists.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lists))
    console = Lines()
    loops = [
        make_loop(
            tmp_path,
            train,
            f"data.streaming={streaming}",
            *columns,
            f"run_dir={tmp_path / 'run' / train}",
            console=console,
        )
        for train, columns in {
            "lists.jsonl": [f"data.label_names={json.dumps(NAMES)}"],
            "flags.csv": [LISTED],
        }.items()
    ]
    weights = []
    for loop in loops:
        loop.fit()
        weights.append({name: weight.detach().clone() for name, weight in loop.bare_model.named_parameters()})
    for name, weight in weights[0].items():
        assert weights[1][name].equal(weight), name
    told = [line for line in console.lines if line.startswith("validation: 8 rows; labels:")]
    assert told == 2 * [
        "validation: 8 rows; labels: toxic 3 (37.5%), obscene 2 (25.0%), threat 2 (25.0%); 3 rows (37.5%) without a "
        "label"
    ]
    record = read_record(tmp_path / "run" / "flags.csv" / "model")
    assert record is not None and record.columns == {"text": "comment_text", "label": NAMES}
    assert Predictor.load(tmp_path / "run" / "flags.csv" / "model").label_names == NAMES


def test_a_file_of_such_columns_is_scored_by_predict(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "train.csv")
    loop = make_loop(tmp_path, "train.csv", LISTED)
    loop.fit()
    expected = loop.evaluate([{"comment_text": text, **dict(zip(NAMES, flags, strict=True))} for text, flags in ROWS])
    write(tmp_path / "new.csv", [(text, ["true" if flag else "FALSE" for flag in flags]) for text, flags in ROWS])
    model_dir = tmp_path / "run" / "model"
    predictor, record = Predictor.load(model_dir), read_record(model_dir)

    def predict(file: str, **asked: Any) -> list[str]:
        request = Request(model=str(model_dir), file=file, **asked)
        return predict_file(predictor, prepare_file(file, request, model_dir, record))

    lines = predict("new.csv")
    assert "compared with column 'toxic, obscene, threat':" in lines
    told = dict(line.split() for line in lines if line.startswith("  "))
    assert {name: float(value) for name, value in told.items()} == pytest.approx(expected, rel=1e-3)
    write(tmp_path / "holes.csv", [("go away", [1, "", 0]), ("go", [0, 3, 0]), ("a page", [0, 1, 0])])
    lines = predict("holes.csv")
    assert "2 rows without known labels in column 'toxic, obscene, threat': left out of the metrics" in lines
    assert any(line.split() == ["rows", "1"] for line in lines)


def test_what_is_wrong_with_a_value_is_told_with_file_row_and_column(tmp_path: Path):
    write(tmp_path / "train.csv", [*ROWS, ("fine", [0, 2, 0]), ("good", [0, 0, "yes"])])
    assert refuse(tmp_path, "train.csv", LISTED, "data.validation=null", "evaluate.every=never") == [
        "data.train: column 'toxic, obscene, threat' has '2' in 'obscene', which is none of 0, 1, true and false, in 1 "
        f"row: {tmp_path}/train.csv row 9; others of the kind in 1 row: {tmp_path}/train.csv row 10; correct or remove "
        "the row"
    ]
    write(tmp_path / "holes.csv", [*ROWS, ("fine", [0, "", 0])])
    for streaming in ("false", "true"):
        (problem, *_) = refuse(tmp_path, "holes.csv", LISTED, f"data.streaming={streaming}", "data.validation=null",
                               "evaluate.every=never")  # fmt: skip
        assert problem == (
            "data.train: column 'toxic, obscene, threat' has nothing in 'obscene' in 1 row: "
            f"{tmp_path}/holes.csv row 9; fill it in or remove the row, or set data.missing=drop"
        )
        loop = make_loop(tmp_path, "holes.csv", LISTED, f"data.streaming={streaming}", "data.missing=drop",
                         f"run_dir={tmp_path / streaming}")  # fmt: skip
        loop.fit()
        assert loop.evaluate(loop.data.validation[""])["rows"] == 8


def test_a_row_of_a_stream_is_checked_when_it_comes(tmp_path: Path):
    write(tmp_path / "train.csv", [*ROWS * 130, ("fine", [0, 2, 0])])
    loop = make_loop(tmp_path, "train.csv", LISTED, "data.streaming=true", "data.validation=null",
                     "evaluate.every=never", "batch.size=1100")  # fmt: skip
    with pytest.raises(UserError, match=r"has '2' in 'obscene', which is none of .* in .*train.csv row 1041"):
        loop.fit()


def test_a_column_that_is_not_there_is_named(tmp_path: Path):
    write(tmp_path / "train.csv")
    problems = refuse(tmp_path, "train.csv", "data.columns={text: comment_text, label: [toxic, obscen]}")
    assert problems == [
        f"data.columns.label=obscen: data.{split} has no such column; it has id, comment_text, threat, toxic, obscene; "
        "did you mean 'obscene'?"
        for split in ("train", "validation")
    ]
    names = refuse(tmp_path, "train.csv", LISTED, "data.label_names=[a, b, c]")
    assert names == ["data.label_names: the columns that data.columns names are the labels; set it to null"]


def test_only_a_column_of_several_labels_may_be_a_list():
    for declared, own in ((SequenceClassification.columns, "label"), (TokenClassification.columns, "tags")):
        with pytest.raises(
            UserError, match=rf"data\.columns\.{own}=\['a', 'b'\]: a list names a column for each label"
        ):
            bind_columns(declared, {own: ["a", "b"]}, task="it")
    with pytest.raises(UserError, match="the column text has this name too"):
        bind_columns(MultiLabelClassification.columns, {"label": ["text", "b"]}, task="it")
    columns = bind_columns(MultiLabelClassification.columns, {"label": ["b", "a"]}, task="it")
    assert columns.all == ["text", "b, a"] and columns.stored == ["text", "b", "a"]
    assert columns.given == {"text": "text", "label": ["b", "a"]}
    assert Columns.of(columns.declared, columns.given) == columns
    with pytest.raises(UserError, match="label has a column twice"):
        load_config(None, ["data.columns.label=[a, a]"])


@pytest.mark.parametrize("value", [1, True, 1.0, Decimal(1), "1", "1.0", "true", " True "])
def test_many_spellings_say_that_a_row_has_a_label(value: Any):
    assert list_flagged({"a": value, "b": 0, "c": "false", "d": False, "e": "0.0"}) == ["a"]
    assert find_fault_of_flags({"a": value, "b": 0}) is None
    for wrong in (2, "2", "yes", -1, [1], 0.5):
        assert "which is none of 0, 1" in (find_fault_of_flags({"b": 0, "a": wrong}) or "")


def test_tables_made_in_python_are_read_alike(tmp_path: Path):
    write(tmp_path / "train.csv")
    table = pandas.read_csv(tmp_path / "train.csv")
    boolean = table.astype(dict.fromkeys(NAMES, bool))
    metrics = [
        make_loop(tmp_path, "train.csv", LISTED, rows={"train": rows, "validation": rows}).evaluate(table)
        for rows in (table, boolean, datasets.Dataset.from_pandas(table), table.to_dict("records"))
    ]
    assert metrics[1:] == metrics[:1] * 3


def test_joining_twice_is_joining_once():
    rows = datasets.Dataset.from_dict({"text": ["x"], "a": [1], "b": ["0"]})
    for joined in ({"a, b": ["a", "b"]}, {"a": ["a"]}):
        once = join_columns(rows, joined)
        assert join_columns(once, joined).to_dict() == once.to_dict()
        assert next(iter(joined)) in once.column_names
    assert join_columns(rows, {"a, c": ["a", "c"]}).column_names == rows.column_names


def test_the_sources_of_a_mixture_have_such_columns(tmp_path: Path):
    write(tmp_path / "train.csv")
    (tmp_path / "other.csv").write_text((tmp_path / "train.csv").read_text().replace("comment_text", "body"))
    one = f"{{name: one, train: {tmp_path / 'train.csv'}, weight: 1}}"
    two = f"{{name: two, train: {tmp_path / 'other.csv'}, weight: 1, columns: {{text: body, label: [toxic, NAME]}}}}"
    label = "data.columns={text: comment_text, label: [toxic, obscene]}"
    mixture = f"data.mixture=[{one}, {two}]".replace("NAME", "obscene")
    loop = make_loop(tmp_path, "train.csv", label, mixture, "data.train=train")
    loop.fit()
    assert loop.task.label_names == ["toxic", "obscene"]
    (problem,) = refuse(tmp_path, "train.csv", label, mixture.replace("obscene]", "obscen]"), "data.train=train")
    assert "data.mixture: two: train: no column 'obscen' for label; it has id, body, threat" in problem
