"""Predicting a file: which columns and rows its output has. The model is a stub that predicts pos for every text."""

import csv
import errno
import json
import os
import sqlite3
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import datasets
import polars as pl
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet
import pytest
from arrow_columns import CASES
from columns import make_columns
from PIL import Image

from trainer_loop import UserError
from trainer_loop.cli.predict_arguments import Request, read_request
from trainer_loop.cli.predict_files import predict_file, prepare_file
from trainer_loop.data import write_files
from trainer_loop.data.files import read_files
from trainer_loop.predictor import Predictions
from trainer_loop.record.export import ExportRecord
from trainer_loop.tasks.sequence_classification import SequenceClassification

SUFFIXES = (".csv", ".tsv", ".json", ".jsonl", ".parquet")


class Stub:
    """A model with the classes neg and pos. It records its inputs."""

    task = SequenceClassification()
    label_names = ("neg", "pos")
    label_values = ("n", "p")

    def predict_rows(self, rows, *, labels=None, origin_of=None):
        self.texts = rows["text" if "text" in rows else "image"]
        self.pairs, self.labels, self.places = rows.get("text_pair"), labels, origin_of
        return Predictions([{"label": "pos", "probability": 0.5} for _ in self.texts], None, [])


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def make_record(**fields: Any) -> ExportRecord:
    defaults = {
        "task": "sequence_classification",
        "columns": {"text": "text", "label": "label"},
        "max_length": 8,
        "step": 1,
    }
    return ExportRecord(**{**defaults, "num_steps": 1, "metrics": {}, "plan": {}, **fields})


def run(file: Any, *, record: ExportRecord | None = None, **options: Any) -> tuple[Stub, list[str]]:
    """Predict a file; returns the stub and the lines for the user."""
    stub = Stub()
    job = prepare_file(file, Request("run", **options), Path("run/model"), record or make_record())
    return stub, predict_file(stub, job)


def predict_problems(file: Any, **options: Any) -> list[str]:
    with pytest.raises(UserError) as caught:
        run(file, **options)
    assert all("\n" not in problem for problem in caught.value.problems)
    return caught.value.problems


def read_output(path: str) -> list[dict[str, Any]]:
    match Path(path).suffix:
        case ".json":
            return json.loads(Path(path).read_text())
        case ".jsonl":
            return [json.loads(line) for line in Path(path).read_text().splitlines()]
        case ".parquet":
            return pa.parquet.read_table(path).to_pylist()
        case suffix:
            with Path(path).open(newline="") as file:
                return list(csv.DictReader(file, delimiter="," if suffix == ".csv" else "\t"))


def list_files() -> list[str]:
    return sorted(path.name for path in Path().iterdir())


def as_cell(value: Any) -> str:
    """Return the text of a JSON value in a .csv file."""
    return "" if value is None else json.dumps(value) if isinstance(value, (list, dict)) else str(value)


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("name", CASES)
def test_a_column_of_any_type_is_written_or_refused_before_the_model_predicts(folder: Path, name: str, suffix: str):
    case = CASES[name]
    pa.feather.write_feather(pa.table({"text": ["x", "y", "z"], "column": case.array}), "in.feather")
    output = f"out{suffix}"
    if suffix == ".parquet" and not case.has_parquet and not (case.texts or case.labels):
        (problem,) = predict_problems("in.feather", output=output)
        assert problem.startswith("column 'column' cannot be written to a .parquet file: parquet has no type for")
        assert problem.endswith("; let output= end in .jsonl, or drop the column")
        assert not Path(output).exists()
        return
    run("in.feather", output=output)
    rows = read_output(output)
    assert [list(row) for row in rows] == [["text", "column", "label", "probability"]] * 3
    expected = case.json
    if suffix == ".parquet":
        expected = case.array.to_pylist()
    elif suffix in (".csv", ".tsv"):
        expected = [as_cell(value) for value in case.json]
    assert [row["column"] for row in rows] == expected
    assert list_files() == sorted(["in.feather", output])


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_json_values_are_preserved_or_refused(folder: Path, suffix: str):
    values = [
        {"text": "a", "n": 2**70, "mixed": 1, "nested": {"b": [1, None]}, "half": "\ud83d", "id": 9007199254740993},
        {"text": "b", "n": None, "mixed": "x", "nested": None, "half": None, "id": None},
    ]
    Path("in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in values))
    output = f"out{suffix}"
    if suffix in (".json", ".jsonl"):
        run("in.jsonl", output=output)
        assert [{name: row[name] for name in values[0]} for row in read_output(output)] == values
        return
    problems = predict_problems("in.jsonl", output=output)
    refused = ["n", "mixed", "half"] if suffix == ".parquet" else ["half"]
    assert [problem.split("'")[1] for problem in problems] == refused
    assert all("let output= end in ." in problem for problem in problems)
    for row in values:
        del row["half"]
        if suffix == ".parquet":
            del row["n"], row["mixed"]
    Path("in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in values))
    run("in.jsonl", output=output)
    read = [{name: row[name] for name in values[0]} for row in read_output(output)]
    cells = [{name: as_cell(value) for name, value in row.items()} for row in values]
    assert read == (values if suffix == ".parquet" else cells)


def test_only_json_output_refuses_infinity(folder: Path):
    pa.parquet.write_table(pa.table({"text": ["a", "b"], "x": [float("inf"), float("nan")]}), "in.parquet")
    (problem,) = predict_problems("in.parquet", output="out.jsonl")
    assert problem == (
        "column 'x' cannot be written to a .jsonl file: JSON has no infinity; let output= end in .csv or parquet, or "
        "drop the column"
    )
    run("in.parquet", output="out.csv")
    assert [row["x"] for row in read_output("out.csv")] == ["inf", "nan"]


def test_predicted_columns_get_unused_names(folder: Path):
    Path("0.csv").write_text("text\na\n")
    for number in range(4):
        _, lines = run(f"{number}.csv", output=f"{number + 1}.csv")
    assert lines[:2] == [
        "the file has a column label already: the predicted one is predicted_label_3",
        "the file has a column probability already: the predicted one is predicted_probability_3",
    ]
    assert list(read_output("4.csv")[0]) == [
        *("text", "label", "probability", "predicted_label", "predicted_probability"),
        *("predicted_label_2", "predicted_probability_2", "predicted_label_3", "predicted_probability_3"),
    ]


def test_an_existing_file_is_not_replaced(folder: Path):
    Path("run/predictions").mkdir(parents=True)
    Path("run/predictions/test.jsonl").write_text("of the run")
    Path("test.jsonl").write_text('{"text": "a"}\n')
    for number in (2, 3):
        _, lines = run("test.jsonl")
        assert lines == [f"1 rows written to run/predictions/test-{number}.jsonl"]
    assert Path("run/predictions/test.jsonl").read_text() == "of the run"
    (problem,) = predict_problems("test.jsonl", output="run/predictions/test.jsonl")
    assert problem == ("output=run/predictions/test.jsonl is there already; choose another, or set overwrite=true")
    run("test.jsonl", output="run/predictions/test.jsonl", overwrite=True)
    assert read_output("run/predictions/test.jsonl") == [{"text": "a", "label": "pos", "probability": 0.5}]


def test_the_input_file_is_never_replaced(folder: Path):
    Path("in.jsonl").write_text('{"text": "a"}\n')
    os.link("in.jsonl", "hard.jsonl")
    Path("soft.jsonl").symlink_to("in.jsonl")
    Path("folder.jsonl").mkdir()
    Path("other.jsonl").write_text("other")
    Path("link.jsonl").symlink_to("other.jsonl")
    Path("nowhere.jsonl").symlink_to("none.jsonl")
    for name in ("in.jsonl", "./in.jsonl", "hard.jsonl", "soft.jsonl"):
        assert predict_problems("in.jsonl", output=name, overwrite=True) == [
            f"output={name} is the file that is read; choose another"
        ]
    assert predict_problems("in.jsonl", output="folder.jsonl", overwrite=True)[0].endswith("name a file in it")
    for name, target in (("link.jsonl", "other.jsonl"), ("nowhere.jsonl", "none.jsonl")):
        assert predict_problems("in.jsonl", output=name, overwrite=True) == [
            f"output={name} is a link to {target}; name the file itself"
        ]
    assert Path("in.jsonl").read_text() == '{"text": "a"}\n'
    assert Path("other.jsonl").read_text() == "other"


def test_a_file_that_is_created_during_the_prediction_is_not_replaced(folder: Path, monkeypatch: pytest.MonkeyPatch):
    Path("in.jsonl").write_text('{"text": "a"}\n')

    def predict_rows(self, rows, *, labels=None, origin_of=None):
        Path("out.csv").write_text("of another program")
        return Predictions([{"label": "pos"}], None, [])

    monkeypatch.setattr(Stub, "predict_rows", predict_rows)
    assert predict_problems("in.jsonl", output="out.csv") == [
        "output=out.csv cannot be written: it is there already; choose another"
    ]
    assert Path("out.csv").read_text() == "of another program"
    assert list_files() == ["in.jsonl", "out.csv"]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_full_disk_leaves_no_file_and_is_reported_in_one_line(
    folder: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
):
    def refuse(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    Path("in.csv").write_text("text\na\n")
    monkeypatch.setattr(write_files.os, "fsync", refuse)
    (problem,) = predict_problems("in.csv", output=f"out{suffix}")
    assert problem.startswith(f"output=out{suffix} cannot be written: No space left on device (")
    assert list_files() == ["in.csv"]


@pytest.mark.parametrize("output", ["in.csv/out.csv", f"{'x' * 300}.csv", "\0.csv"])
def test_an_invalid_file_name_is_reported_in_one_line(folder: Path, output: str):
    Path("in.csv").write_text("text\na\n")
    (problem,) = predict_problems("in.csv", output=output)
    assert "cannot be written: " in problem


def test_rows_without_a_text_keep_their_place_and_have_no_prediction(folder: Path):
    Path("in.csv").write_text("id,text\n1,a\n2,\n3,  \n4,d\n")
    (null, blank) = predict_problems("in.csv")
    remedy = "fill it in or remove the row, or set missing=drop (or empty)"
    assert null == f"column 'text' is null in 1 row: in.csv row 2; {remedy}"
    assert blank == f"column 'text' is empty in 1 row: in.csv row 3; {remedy}"
    stub, lines = run("in.csv", output="out.csv", missing="drop")
    assert stub.texts == ["a", "d"]
    assert lines[-2:] == [
        "4 rows written to out.csv",
        "in.csv: 2 rows without 'text' were written without a prediction (missing=drop)",
    ]
    assert Path("out.csv").read_text() == "id,text,label,probability\n1,a,pos,0.5\n2,,,\n3,  ,,\n4,d,pos,0.5\n"
    run("in.csv", output="out.parquet", missing="drop")
    assert [row["probability"] for row in read_output("out.parquet")] == [0.5, None, None, 0.5]
    stub, _ = run("in.csv", output="empty.csv", missing="empty")
    assert stub.texts == ["a", "", "  ", "d"]
    assert "2,,pos,0.5\n" in Path("empty.csv").read_text()
    Path("none.csv").write_text("id,text\n1,\n")
    assert predict_problems("none.csv", missing="drop") == [
        "no row is left; none.csv: 1 row without 'text' was dropped (missing=drop)"
    ]


def test_both_texts_of_a_pair_are_required(folder: Path):
    Path("in.jsonl").write_text('{"a": "x", "b": "y"}\n{"a": "x", "b": null}\n{"b": "y"}\n')
    record = make_record(columns={"text": "a", "text_pair": "b"})
    assert len(predict_problems("in.jsonl", record=record)) == 2
    stub, _ = run("in.jsonl", record=record, missing="drop")
    assert (stub.texts, stub.pairs) == (["x"], ["y"])


@pytest.mark.parametrize("frame", [
    pl.DataFrame({"text": ["a", "b"], "kind": pl.Series(["x", None], dtype=pl.Categorical)}),
    pl.DataFrame({"text": pl.Series(["a", "b"], dtype=pl.Enum(["a", "b"])), "kind": [1, None]}),
])  # fmt: skip
def test_polars_frames_are_read(folder: Path, frame: pl.DataFrame):
    frame.write_ipc("in.feather")
    stub, _ = run("in.feather", output="out.jsonl")
    assert stub.texts == ["a", "b"]
    assert [row["kind"] for row in read_output("out.jsonl")] == frame["kind"].to_list()


def test_files_with_different_columns_are_joined_and_no_column_is_lost(folder: Path):
    Path("1.csv").write_text("text,a\nx,1\n")
    Path("2.csv").write_text("b,text\n2,y\n")
    _, lines = run("*.csv", output="out.csv")
    assert Path("out.csv").read_text() == "text,a,b,label,probability\nx,1,,pos,0.5\ny,,2,pos,0.5\n"
    assert lines == ["2 rows written to out.csv"]
    pa.parquet.write_table(pa.table({"text": ["x"], "a": [1], "c": [1]}), "1.parquet")
    pa.parquet.write_table(pa.table({"text": ["y"], "a": [2.5], "c": ["z"]}), "2.parquet")
    assert predict_problems("*.parquet", output="out.parquet") == [
        "column 'c' has one type in 1.parquet (int64) and another in 2.parquet (string); make them alike"
    ]


def test_delimiter_encoding_and_quoting_are_keys_of_the_command(folder: Path):
    Path("in.csv").write_text("text;n\nGrüße;1\n", encoding="windows-1252")
    (problem,) = predict_problems("in.csv")
    assert "set delimiter=';'" in problem
    (problem,) = predict_problems("in.csv", delimiter=";")
    assert "set encoding=windows-1252" in problem
    stub, _ = run("in.csv", output="out.csv", delimiter=";", quoting="none", encoding="windows-1252")
    assert stub.texts == ["Grüße"]
    assert Path("out.csv").read_text(encoding="utf-8") == "text,n,label,probability\nGrüße,1,pos,0.5\n"


@pytest.mark.parametrize(
    ("column", "labels", "notes"),
    [
        (["n", "p", "p"], [0, 1, 1], []),  # as in the training data
        (["neg", "pos", "pos"], [0, 1, 1], []),  # by the names of the classes
        (pa.array(["p", "n", "n"]).dictionary_encode(), [1, 0, 0], []),
        (["n", "what", None], [0, None, None], [
            "1 row without a label in column 'label': left out of the metrics",
            "1 row with a label that the model does not know, such as 'what' (in.parquet row 2): left out of the "
            "metrics",
        ]),
        ([7, 8, 9], [None] * 3, [
            "no metrics: column 'label' holds 7 (in.parquet row 1), and the model knows neg, pos"
        ]),
        ([None, None, None], [None] * 3, ["no metrics: column 'label' has no label in any row"]),
        ([[1], [2], [3]], [None] * 3, [
            "no metrics: column 'label' holds [1] (in.parquet row 1), and the model knows neg, pos"
        ]),
        (pa.array([[("a", 1)]] * 3, pa.map_(pa.string(), pa.int64())), None, [
            "no metrics: the file: column 'label' cannot be read: Arrow type map<string, int64 ('label')> does not "
            "have a datasets dtype equivalent; store texts, numbers, or lists or structures of them"
        ]),
    ],
)  # fmt: skip
def test_labels_are_values_of_the_training_data_or_class_names(
    folder: Path, column: Any, labels: Any, notes: list[str]
):
    pa.parquet.write_table(pa.table({"text": ["x", "y", "z"], "label": column}), "in.parquet")
    stub, lines = run("in.parquet", output="out.parquet")
    assert stub.labels == labels
    assert lines[2:] == notes
    stub, lines = run("in.parquet", output="more.parquet", metrics=False)
    assert stub.labels is None
    assert len(lines) == 2


@pytest.mark.parametrize(
    ("values", "column", "labels"),
    [
        (("0", "1"), "0\n1\n1", [0, 1, 1]),
        ((0, 1), "0.0\n1.0\n1.0", [0, 1, 1]),
        ((False, True), "False\nTrue\nTrue", [0, 1, 1]),
        ((1, 0), "0\n1\n1", [1, 0, 0]),
        (("no", "yes"), "NO\nYes\nyes", [0, 1, 1]),
    ],
)
def test_labels_of_a_text_file_match_values_of_the_training_data(
    folder: Path, values: tuple, column: str, labels: list[int], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(Stub, "label_values", values)
    rows = [f"x,{label}" for label in column.split("\n")]
    Path("in.csv").write_text("\n".join(["text,label", *rows]))
    assert run("in.csv")[0].labels == labels


def test_class_labels_are_matched_by_name(folder: Path):
    for names, labels in ((["pos", "neg"], [1, 0, None]), (["n", "p"], [0, 1, None])):
        features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=names)})
        rows = {"text": ["a", "b", "c"], "label": [0, 1, -1]}
        datasets.Dataset.from_dict(rows, features=features).to_parquet("in.parquet")
        stub, _ = run("in.parquet", output="out.parquet", overwrite=True)
        assert stub.labels == labels
        given, written = (pa.parquet.read_schema(f"{name}.parquet").metadata[b"huggingface"] for name in ("in", "out"))
        assert written == given


def test_the_label_column_can_be_named(folder: Path):
    Path("in.csv").write_text("text,label,stars\na,5,n\nb,6,p\n")
    assert run("in.csv", label_column="stars")[0].labels == [0, 1]
    assert run("in.csv", record=make_record(columns={"text": "text", "label": "stars"}))[0].labels == [0, 1]
    assert predict_problems("in.csv", label_column="star") == [
        "label_column=star: the file has no such column; it has text, label, stars; did you mean 'stars'?"
    ]
    record = make_record(task="causal_lm", columns={"text": "text"})
    assert predict_problems("in.csv", record=record, label_column="stars") == [
        "label_column=stars: this model reads no such column; remove it"
    ]


def test_the_time_of_a_file_with_many_columns_is_linear(folder: Path):
    names = [f"c{number}" for number in range(5_000)]
    Path("in.csv").write_text(f"text,{','.join(names)}\n" + f"a,{','.join(['1'] * len(names))}\n" * 3)
    run("in.csv", output="out.parquet")
    run("in.csv", output="out.jsonl")
    assert list(read_output("out.jsonl")[2]) == ["text", *names, "label", "probability"]


@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
def test_line_breaks_of_any_kind_stay_in_their_field(folder: Path, suffix: str):
    texts = ["a\rb", "a\nb", "a\r\nb", "\rc", 'a"b\r', "a,b\tc"]
    pa.parquet.write_table(pa.table({"text": texts, "id": list(range(6)), "more\rless": ["x"] * 6}), "in.parquet")
    run("in.parquet", output=f"out{suffix}")
    written = read_output(f"out{suffix}")
    assert [row["text"] for row in written] == texts
    assert [row["id"] for row in written] == ["0", "1", "2", "3", "4", "5"]
    again = read_files([f"out{suffix}"], split="train", columns=make_columns(label=None))
    assert list(again.rows["text"]) == texts, "also when this package reads them"


def test_a_column_without_a_name_gets_an_unused_name(folder: Path):
    Path("in.csv").write_text(",column_1,text\n0,A,x\n1,B,y\n")
    run("in.csv", output="out.jsonl")
    written = [json.loads(line) for line in Path("out.jsonl").read_text().splitlines()]
    assert [(row["column_1_"], row["column_1"], row["text"]) for row in written] == [("0", "A", "x"), ("1", "B", "y")]


# ------------------------------------------------------------------------------ images, queries, and saved data sets


OF_IMAGES = make_record(task="image_classification", columns={"image": "photo", "label": "label"}, max_length=None)


def make_images(*paths: str) -> None:
    for path in paths:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(path)


def test_each_image_of_a_folder_is_a_row_with_its_path(folder: Path):
    make_images("photos/b.png", "photos/a.jpg", "photos/.hidden.png")
    stub, lines = run("photos/", record=OF_IMAGES)
    assert stub.texts == ["photos/a.jpg", "photos/b.png"]
    assert stub.places(1) == "photos/ image 2"
    assert lines[0] == "2 rows written to run/predictions/photos.csv"
    assert read_output("run/predictions/photos.csv") == [
        {"photo": f"photos/{name}", "label": "pos", "probability": "0.5"} for name in ("a.jpg", "b.png")
    ]


def test_subfolders_of_images_are_labels(folder: Path):
    make_images("photos/neg/1.png", "photos/pos/1.png", "photos/pos/2.png")
    stub, _ = run("photos", record=OF_IMAGES, output="out.jsonl")
    assert stub.labels == [0, 1, 1]
    assert read_output("out.jsonl")[1] == {
        "photo": "photos/pos/1.png",
        "label": "pos",
        "predicted_label": "pos",
        "probability": 0.5,
    }


@pytest.mark.parametrize("file", ["photos/*.png", ["photos/2.png", "photos/1.png"]])
def test_images_are_named_by_a_glob_or_a_list(folder: Path, file: Any):
    make_images("photos/1.png", "photos/2.png", "photos/3.jpg")
    stub, _ = run(file, record=OF_IMAGES)
    assert stub.texts == (["photos/1.png", "photos/2.png"] if isinstance(file, str) else file)
    assert len(read_output("run/predictions/predictions.csv")) == 2


def test_a_folder_with_other_files_than_images_is_refused(folder: Path):
    make_images("photos/1.png", "photos/cat/1.png")
    (problem,) = predict_problems("photos", record=OF_IMAGES)
    assert problem == "file=photos: there are images beside folders (cat); name one of the folders"
    make_images("flat/1.png")
    Path("flat/notes.txt").touch()
    (problem,) = predict_problems("flat", record=OF_IMAGES)
    assert problem == "file=flat: flat has files that are no images: notes.txt; put them elsewhere"
    problems = predict_problems("photos/cat", output="out.xlsx", num_beams=2)
    assert problems == [
        "num_beams= is given, but a model of the task sequence_classification writes nothing; remove it",
        "file=photos/cat: it names images, and this model reads text; give a file of rows",
    ]


def test_the_argument_image_may_be_a_folder_or_a_glob(folder: Path):
    make_images("photos/1.png", "one[1].png")
    for value in ("photos", "photos/", "photos/*.png"):
        request = read_request(["model=run", f"image={value}", "output=out.csv"])
        assert (request.file, request.row) == (value, {})
    assert read_request(["model=run", "image=one[1].png"]).row == {"image": "one[1].png"}
    with pytest.raises(UserError, match="output= goes with file=, not with image="):
        read_request(["model=run", "image=photos/1.png", "output=out.csv"])
    with pytest.raises(UserError) as caught:
        read_request(["model=run", "image={a*}", "metrics=no"])
    assert caught.value.problems == ["metrics=no: allowed: true, false", "file={a*}: a* is not sql or connection"]


def test_a_refused_argument_is_shown_whole_and_a_long_text_is_read_fast():
    output = f"{'a_folder/' * 20}out.xlsx"
    with pytest.raises(UserError, match=f"output={output}: the file must end in"):
        read_request(["model=run", "file=rows.csv", f"output={output}"])
    text = "ACGT" * 30_000
    began = time.process_time()
    assert read_request(["model=run", f"text={text}"]).row == {"text": text}
    assert time.process_time() - began < 1


def test_the_rows_of_a_query_are_predicted(folder: Path):
    with closing(sqlite3.connect("reviews.db")) as database, database:
        database.execute("create table reviews (id integer, body text, stars text)")
        database.executemany("insert into reviews values (?, ?, ?)", [(1, "good", "p"), (2, "bad", "n"), (3, "", "p")])
    query = "{sql: 'select id, body as text, stars as label from reviews order by id desc', connection: reviews.db}"
    request = read_request(["model=run", f"file={query}", "missing=drop"])
    stub, lines = run(request.file, missing="drop")
    assert (stub.texts, stub.labels, stub.places(0)) == (["bad", "good"], [0, 1], "reviews.db row 2")
    assert "3 rows written to run/predictions/predictions.csv" in lines
    written = read_output("run/predictions/predictions.csv")
    assert [(row["id"], row["text"], row["predicted_label"]) for row in written] == [
        ("3", "", ""),
        ("2", "bad", "pos"),
        ("1", "good", "pos"),
    ]
    (problem,) = predict_problems({"sql": "select stares from reviews", "connection": "reviews.db"})
    assert problem.startswith("file: reviews.db: the query failed: no such column: stares")
    (problem,) = predict_problems({"sql": "select body from reviews", "connection": "reviews.db"})
    assert problem == "text_column=text: the file has no such column; it has body"


@pytest.mark.parametrize(
    ("file", "problem"),
    [
        ("{sql: select 1}", "file={sql: select 1}: connection is missing"),
        (
            "{sql: select 1, conection: 'postgresql://me:hunter2@db.lab/reviews'}",
            "file={sql: select 1, conection: ***}: conection is not sql or connection",
        ),
        ("[a.csv, {b: c}]", "file=[a.csv, {b: c}]: it must be a text, a list of texts, or {sql, connection}"),
        ("", "file=: it must be a text, a list of texts, or {sql, connection}"),
    ],
)
def test_a_file_argument_of_another_type_is_refused(file: str, problem: str):
    with pytest.raises(UserError) as caught:
        read_request(["model=run", f"file={file}"])
    assert problem in caught.value.problems


def test_several_files_and_saved_data_sets_are_read(folder: Path):
    for name, text in (("a", "one"), ("b", "two")):
        Path(f"{name}.csv").write_text(f"text,id\n{text},{name}\n")
    stub, _ = run(read_request(["model=run", "file=[b.csv,a.csv]"]).file, output="out.csv")
    assert stub.texts == ["two", "one"]
    rows = datasets.Dataset.from_dict({"text": ["one", "two", "three"], "id": [3, 2, 1]})
    rows.select([2, 0]).save_to_disk("saved")
    stub, _ = run("saved", output="saved.parquet")
    assert stub.texts == ["three", "one"]
    assert [row["id"] for row in read_output("saved.parquet")] == [1, 3]
    datasets.DatasetDict({"train": rows, "test": rows}).save_to_disk("both")
    (problem,) = predict_problems("both")
    assert "none is called predict; name one of them, such as both/t" in problem
    assert run("both/test")[1][0] == "3 rows written to run/predictions/test.csv"
