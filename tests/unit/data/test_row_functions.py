"""`data.filter` and `data.map`: the same rows, places and types in memory and streamed, and what is refused."""

import json
import sqlite3
import sys
import textwrap
from contextlib import closing
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet
import pytest
from columns import make_columns
from made_up import make_reviews, write_csv
from PIL import Image
from streams import mark_in_shard

from trainer_loop import Column, Predictor, UserError, build, load_config
from trainer_loop.data.columns import Columns
from trainer_loop.data.given_rows import as_dataset
from trainer_loop.data.labels import LabelNames
from trainer_loop.data.read_splits import read_sources, read_splits
from trainer_loop.data.row_functions import RowFunctions, load_functions
from trainer_loop.data.section import DataSection
from trainer_loop.data.shards import ShardedSplit
from trainer_loop.data.split import Split
from trainer_loop.data.stream_rows import RowStream
from trainer_loop.own_files import find_own_files
from trainer_loop.record.logs import Console
from trainer_loop.testing import assert_resumes_exactly

ROWS = [{"title": f"title {n}", "body": f"text {n}", "label": n % 2, "stars": n % 5} for n in range(30)]
FEATURES = datasets.Features(
    {name: datasets.Value("string") for name in ("title", "body")}
    | {"label": datasets.ClassLabel(names=["neg", "pos"]), "stars": datasets.Value("int64")}
)
KINDS = ["a.csv", "a.jsonl", "a.parquet", "stream.arrow", "file.arrow", "saved"]
FUNCTIONS = """
def keep(row): return int(row["stars"]) != 3
def join(row): return {"text": f"{row['title']}: {row['body']}"}
def whole(row):
    row["text"] = row["title"] + ": " + row["body"]
    return row
def name(row): return {"text": row["body"], "label": "bad" if int(row["label"]) == 0 else "good"}
def count(row): return {"text": row["body"], "label": int(row["stars"])}
def yes(row): return "yes"
def nothing(row): return None
def no_names(row): return {1: 2}
def few(row): return {"body": row["body"].upper()} if row["stars"] == 3 else {}
def broken(row): return row["star"]
def both(row, other): return True
def never(row): return False
def spoil(row):
    row.clear()
    return True
not_one = 3
"""


@pytest.fixture
def lab(folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a fresh module in the current folder."""
    monkeypatch.syspath_prepend(str(folder))
    Path("row_lab.py").write_text(textwrap.dedent(FUNCTIONS))
    return "row_lab"


def write(path: str, rows: list[dict[str, Any]] = ROWS) -> str:
    """Rows as a file of any kind, several groups of rows in each."""
    table = datasets.Dataset.from_list(rows, features=FEATURES).data.table
    match path.rpartition(".")[2]:
        case "csv":
            lines = [",".join(map(str, row.values())) for row in rows]
            Path(path).write_text("\n".join([",".join(rows[0]), *lines]))
        case "jsonl":
            Path(path).write_text("\n".join(map(json.dumps, rows)))
        case "parquet":
            pa.parquet.write_table(table, path, row_group_size=7)
        case "saved":
            datasets.Dataset(table).save_to_disk(path, num_shards=3)
        case _ if path.startswith("stream"):
            with pa.ipc.new_stream(path, table.schema) as writer:
                writer.write_table(table, max_chunksize=6)
        case _:
            pa.feather.write_feather(table, path, chunksize=6)
    return path


def load(**given: Any) -> tuple[dict[str, Split], ShardedSplit | None, list[str], list[str]]:
    said: list[str] = []
    keys: dict[str, Any] = {"train": None, "columns": make_columns(), "seed": 42}
    splits, streamed, problems = read_splits(DataSection(**(keys | given)), say=said.append)
    return splits, streamed, problems, said


def read_split(split: Split) -> list[tuple[dict[str, Any], str]]:
    return [(dict(row), split.origins.place(number)) for number, row in enumerate(split.rows)]


def stream(opened: ShardedSplit | None, columns: Columns, names: LabelNames) -> list[tuple[dict[str, Any], str]]:
    """The rows of a stream in the order of the files."""
    assert opened is not None
    return [
        (row.values, row.place)
        for shard in opened.shards
        for row in RowStream([shard], seed=1, columns=columns, label_names=names).read(0)
    ]


@pytest.mark.parametrize("path", KINDS)
@pytest.mark.parametrize("function", ["join", "whole", "name", "count"])
def test_memory_and_stream_have_the_same_rows_places_and_types(lab: str, path: str, function: str):
    given = {"train": write(path), "filter": f"{lab}.keep", "map": f"{lab}.{function}"}
    splits, _, problems, said = load(**given)
    heads, streamed, wrong, _ = load(**given, streaming=True)
    assert problems == wrong == []
    split, wanted = splits["train"], [row for row in ROWS if row["stars"] != 3]
    assert said == ["train: 24 of 30 rows were kept by data.filter, 6 left out"]
    assert list(split.rows["text"]) == [
        f"{row['title']}: {row['body']}" if function in ("join", "whole") else row["body"] for row in wanted
    ]
    labels = {"name": [["bad", "good"][row["label"]] for row in wanted], "count": [row["stars"] for row in wanted]}
    assert list(split.rows["label"]) == labels.get(function, [row["label"] for row in wanted])
    keeps_classes = function in ("join", "whole") and path not in ("a.csv", "a.jsonl")
    assert isinstance(split.rows.features["label"], datasets.ClassLabel) == keeps_classes
    places = [split.origins.place(number) for number in range(24)]
    if path != "saved":
        numbers = [number for number, row in enumerate(ROWS, start=1) if row["stars"] != 3]
        assert places == [f"{path} {'line' if path == 'a.jsonl' else 'row'} {number}" for number in numbers]
    assert read_split(heads["train"]) == read_split(split)
    assert heads["train"].rows.features == split.rows.features
    raw = sorted(set(split.rows["label"]))
    names = LabelNames([str(value) for value in raw], {value: number for number, value in enumerate(raw)})
    assert stream(streamed, make_columns(), names) == [
        (row | {"label": names.ids[row["label"]]}, place) for row, place in read_split(split)
    ]


@pytest.mark.parametrize("path", KINDS[:-1])
def test_a_stream_goes_on_behind_any_row_that_was_kept(lab: str, path: str):
    opened = load(train=write(path), filter=f"{lab}.keep", map=f"{lab}.join", streaming=True)[1]
    assert opened is not None
    (shard,) = opened.shards
    whole = [(dict(values)["text"], number) for values, number, _ in shard.read(None)]
    assert len(whole) == 24
    for taken in range(len(whole) + 1):
        rest = shard.read(mark_in_shard(shard.read(None), taken))
        assert [(dict(values)["text"], number) for values, number, _ in rest] == whole[taken:]


def test_rows_of_every_other_source_are_changed_too(lab: str, folder: Path):
    given: dict[str, Any] = {"filter": f"{lab}.keep", "map": f"{lab}.join"}
    with closing(sqlite3.connect("a.db")) as database, database:
        database.execute("create table rows (title, body, label, stars)")
        database.executemany("insert into rows values (?, ?, ?, ?)", [tuple(row.values()) for row in ROWS])
    Path("own_rows.py").write_text(f"def make(): return {ROWS!r}")
    given_rows = datasets.Dataset.from_list(ROWS, features=FEATURES)
    query = {"sql": "select * from rows order by rowid", "connection": "a.db"}
    splits, _, problems, said = load(
        **given, train=query, validation="own_rows.make", test=as_dataset(given_rows, place="rows")
    )
    assert problems == []
    assert [list(split.rows["text"]) for split in splits.values()] == [list(splits["train"].rows["text"])] * 3
    assert [split.origins.place(3) for split in splits.values()] == ["a.db row 5", "own_rows.make row 5", "test row 5"]
    assert splits["test"].rows.features["label"].names == ["neg", "pos"]
    told = "24 of 30 rows were kept by data.filter, 6 left out"
    assert said == [f"{name}: {told}" for name in ("train", "validation", "test")]


def test_a_folder_of_images_can_be_filtered_by_path_and_label(lab: str, folder: Path):
    for name in ("cat", "dog"):
        Path("photos", name).mkdir(parents=True)
        for number in range(3):
            Image.new("RGB", (4, 4)).save(Path("photos", name, f"{number}.png"))
    Path("pick.py").write_text(
        "def keep(row): return not row['image'].endswith('1.png')\n"
        "def change(row): return {'label': row['label'] + 's', 'image': row['image']}\n"
    )
    columns = Columns({"image": Column("image"), "label": Column("class")}, {"image": "image", "label": "label"})
    splits, _, problems, _ = load(train="photos/", columns=columns, filter="pick.keep", map="pick.change")
    assert problems == []
    assert read_split(splits["train"])[-1] == ({"image": "photos/dog/2.png", "label": "dogs"}, "photos/dog image 3")


def test_a_column_that_is_changed_in_some_rows_keeps_the_others(lab: str, folder: Path):
    columns = make_columns("body")
    for path in ("a.jsonl", "a.parquet"):
        splits, _, problems, _ = load(train=write(path), map=f"{lab}.few", columns=columns)
        assert problems == []
        assert list(splits["train"].rows["body"]) == [
            row["body"].upper() if row["stars"] == 3 else row["body"] for row in ROWS
        ]


def test_a_file_of_which_no_row_is_kept_is_no_problem_but_a_split_is(lab: str):
    write("a.csv", [row for row in ROWS if row["stars"] == 3])
    write("b.csv")
    given = {"filter": f"{lab}.keep", "map": f"{lab}.join"}
    for streaming in (False, True):
        splits, _, problems, _ = load(train=["a.csv", "b.csv"], streaming=streaming, **given)
        assert problems == []
        assert len(splits["train"].rows) == 24
        assert splits["train"].origins.place(0) == "b.csv row 1"
    assert load(train="a.csv", **given)[2] == [
        f"data.train: data.filter={lab}.keep keeps no row of it; it must return True for some"
    ]
    assert load(train="a.csv", streaming=True, **given)[2] == ["data.train: a.csv has no rows that data.filter keeps"]


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({"filter": "yes"}, "a.csv row 1: data.filter={lab}.yes returned 'yes'; it must return True or False"),
        ({"map": "nothing"}, "a.csv row 1: data.map={lab}.nothing returned None; it must return a dict of the columns"),
        ({"map": "no_names"}, "a.csv row 1: data.map={lab}.no_names returned {{1: 2}}; it must return a dict"),
        ({"map": "broken"}, "a.csv row 1: data.map={lab}.broken failed: {lab}.py:13: KeyError: 'star'"),
        ({"filter": "both"}, "data.filter={lab}.both: it must take one argument, a row as a dict: missing a required"),
        ({"map": "not_one"}, "data.map={lab}.not_one is no function but a int; it must take a row"),
        ({"filter": "kep"}, "data.filter: {lab}.kep: {lab} ({lab}.py) has no kep; did you mean keep?"),
    ],
)
def test_a_function_that_does_wrong_is_told_with_the_row(lab: str, keys: dict[str, str], told: str):
    given = {name: f"{lab}.{function}" for name, function in keys.items()}
    problems = load(train=write("a.csv"), columns=make_columns("body"), **given)[2]
    assert problems[0].startswith(told.format(lab=lab))
    if "a.csv" in told:
        assert len(problems) == 6
        assert problems[5] == "a.csv: 25 more rows like these"
        assert told.format(lab=lab) in load(train="a.csv", streaming=True, columns=make_columns("body"), **given)[2][0]


def test_a_function_cannot_spoil_the_row_for_the_next(lab: str):
    splits, _, problems, _ = load(train=write("a.csv"), filter=f"{lab}.spoil", map=f"{lab}.join")
    assert problems == []
    assert len(splits["train"].rows) == 30


def test_a_column_that_is_lacking_is_told_with_those_that_the_function_made(lab: str):
    problem = "data.columns.text=txt: data.train has no such column; it has title, body, label, stars, text"
    for path in ("a.csv", "a.parquet"):
        arguments = [f"data.train={write(path)}", f"data.map={lab}.join", "data.columns.text=txt", "run_dir=run"]
        with pytest.raises(UserError) as caught:
            build(
                load_config(None, ["model={type: bert, tokenizer: train}", *arguments]), console=Console(enabled=False)
            )
        assert problem in str(caught.value)


def test_the_fingerprint_follows_the_rows_in_memory_and_the_code_of_a_stream(lab: str, monkeypatch: pytest.MonkeyPatch):
    def fingerprints(name: str) -> tuple[str, str]:
        given = {"train": write("a.jsonl"), "filter": f"{name}.keep", "map": f"{name}.join"}
        opened = load(**given, streaming=True)[1]
        assert opened is not None
        return load(**given)[0]["train"].fingerprint, opened.fingerprint

    before = fingerprints(lab)
    assert fingerprints(lab) == before
    Path("other_lab.py").write_text(FUNCTIONS + "\n# a comment\n")
    commented = fingerprints("other_lab")
    assert commented[0] == before[0]
    assert commented[1] != before[1]
    Path("third_lab.py").write_text(FUNCTIONS.replace("}: {", "}; {"))
    assert fingerprints("third_lab")[0] != before[0]


def test_the_fingerprint_of_a_stream_follows_the_files_that_a_function_imports(lab: str):
    helpers = {
        "cleaning.py": "from lists import spam\ndef clean(text): return text.lower()\n",
        "lists/__init__.py": "from . import words\n",
        "lists/spam.py": "SPAM = ['buy']\n",
        "lists/words.py": "import json, numpy.linalg\n",
        "later.py": "import lab_of_helpers\n",
    }
    Path("lists").mkdir()
    for name, text in helpers.items():
        Path(name).write_text(text)
    Path("unused.py").write_text("")
    Path("lab_of_helpers.py").write_text(
        "import cleaning\nfrom torch.nn import Module\ndef keep(row):\n    from later import x\n    return True\n"
    )
    functions = RowFunctions("lab_of_helpers.keep", None, load_functions(f"{lab}.keep", None, print).keep, None)
    assert set(find_own_files(["lab_of_helpers.keep"])) == {
        *("cleaning", "lab_of_helpers", "later", "lists", "lists.spam", "lists.words")
    }
    before = functions.fingerprint()
    Path("unused.py").write_text("# changed\n")
    assert functions.fingerprint() == before
    for name, text in helpers.items():
        Path(name).write_text(f"{text}# changed\n")
        assert functions.fingerprint() != before, name
        Path(name).write_text(text)
    assert functions.fingerprint() == before


def test_a_change_in_a_file_that_a_function_imports_changes_the_rows_in_memory_and_the_fingerprint_of_a_stream(
    folder: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.syspath_prepend(str(folder))
    Path("rows_lab.py").write_text("import spelling_lab\ndef spell(row): return {'body': spelling_lab.of(row['body'])}")
    fingerprints = []
    for method in ("upper", "capitalize", "capitalize"):
        Path("spelling_lab.py").write_text(f"def of(text): return text.{method}()\n")
        for name in ("rows_lab", "spelling_lab"):
            sys.modules.pop(name, None)
        given = {"train": write("a.jsonl"), "map": "rows_lab.spell", "columns": make_columns("body")}
        opened = load(**given, streaming=True)[1]
        assert opened is not None
        rows = load(**given)[0]["train"]
        assert rows.rows[0]["body"] == getattr("text 0", method)()
        fingerprints.append((rows.fingerprint, opened.fingerprint))
    assert fingerprints[1] == fingerprints[2]
    assert fingerprints[0][0] != fingerprints[1][0] and fingerprints[0][1] != fingerprints[1][1]


def test_sources_of_a_mixture_may_have_functions_of_their_own(lab: str, folder: Path):
    write("a.csv")
    write("b.jsonl")
    mixture = [
        {"name": "a", "weight": 1, "train": "a.csv", "filter": f"{lab}.keep"},
        {"name": "b", "weight": 1, "train": "b.jsonl", "map": f"{lab}.count"},
    ]
    splits, _, problems, said = load(mixture=mixture, map=f"{lab}.join")
    assert problems == []
    rows = splits["train"].rows
    assert (rows[0]["text"], rows[24]["text"], len(rows)) == ("title 0: text 0", "text 0", 54)
    assert said == ["a: train: 24 of 30 rows were kept by data.filter, 6 left out"]
    mixture[1]["map"] = f"{lab}.nothing"
    (first, *_) = load(mixture=mixture, map=f"{lab}.join")[2]
    assert first.startswith(f"data.mixture: b: b.jsonl line 1: map={lab}.nothing returned None")
    with pytest.raises(UserError, match=r"filter of a is \[3\], not a text or null"):
        load_config(None, ["model.type=bert", "data.mixture=[{name: a, train: a.csv, weight: 1, filter: [3]}]"])


@pytest.mark.parametrize("is_streamed", [False, True])
def test_a_source_of_a_mixture_may_switch_the_functions_of_all_off(is_streamed: bool, lab: str, folder: Path):
    write("a.csv")
    write("b.csv", [row | {"stars": 3} for row in ROWS])
    sources = "[{name: a, weight: 1, train: a.csv}, {name: b, weight: 1, train: b.csv, filter: null, map: null}]"
    config = load_config(None, ["model.type=bert", f"data.mixture={sources}", "run_dir=run"])
    given = {"train": None, "columns": make_columns("body"), "seed": 1, "streaming": is_streamed}
    section = DataSection(**given, mixture=config.data.mixture, filter=f"{lab}.keep", map=f"{lab}.few")
    if is_streamed:
        shards = [source.stream.shards[0] for source in read_sources(section) if source.stream is not None]
        own, bare = ([values["body"] for values, *_ in shard.read()] for shard in shards)
        assert (len(own), bare) == (24, [row["body"] for row in ROWS])
    else:
        assert list(read_splits(section)[0]["train"].rows["body"])[24:] == [row["body"] for row in ROWS]


def test_values_of_numpy_and_images_of_pil_may_be_returned(folder: Path):
    write("a.parquet")
    Path("arrays.py").write_text(
        "import numpy as np\ndef keep(row): return np.bool_(True)\n"
        "def change(row): return {'label': np.int64(row['stars']), 'text': np.str_(row['body'])}\n"
        "def nested(row): return {'words': [np.array([1, 2])]}\n"
    )
    splits, _, problems, _ = load(train="a.parquet", filter="arrays.keep", map="arrays.change")
    assert problems == []
    assert list(splits["train"].rows["label"]) == [row["stars"] for row in ROWS]
    assert np.array(splits["train"].rows["text"]).tolist() == [row["body"] for row in ROWS]
    rows = [{"words": [[1, 2]], "label": 1}, {"words": [[2, 1]], "label": 0}]
    pa.parquet.write_table(pa.Table.from_pylist(rows), "nested.parquet")
    columns = Columns({"words": Column("any")}, {"words": "words"})
    splits, _, problems, _ = load(train="nested.parquet", map="arrays.nested", columns=columns)
    assert problems == []
    assert list(splits["train"].rows["words"]) == [[[1, 2]], [[1, 2]]]


# ------------------------------------------------------------------------------------------------------ a whole run

MODEL = (
    "model={type: bert, tokenizer: train, vocab_size: 300, overrides: {hidden_size: 16, num_hidden_layers: 1, "
    "num_attention_heads: 2, intermediate_size: 16}}"
)


@pytest.mark.parametrize("streaming", [False, True])
def test_a_run_trains_on_changed_rows_and_resumes_exactly(folder: Path, streaming: bool, capfd: pytest.CaptureFixture):
    write_csv(Path("reviews.csv"), make_reviews(60))
    Path("my_rows.py").write_text(
        "def keep(row): return len(row['text']) % 3 > 0\n"
        "def change(row): return {'review': 'Review: ' + row['text'], 'label': int(row['label'] == 'pos')}\n"
    )
    arguments = [
        *("data.train=reviews.csv", "data.test=reviews.csv", "data.filter=my_rows.keep", "data.map=my_rows.change"),
        *("data.columns={text: review}", "train.steps=4", "batch.size=4", "data.max_length=24"),
        *("data.cache_dir=cache", f"data.streaming={str(streaming).lower()}", "run_dir=run", "checkpoint.every=2"),
        *("data.label_names={neg: 0, pos: 1}", "evaluate.every=never", "train.precision=no"),
    ]
    model = MODEL.replace("tokenizer: train, vocab_size: 300", "tokenizer: run/model") if streaming else MODEL
    if streaming:
        build(load_config(None, [MODEL, *arguments, "data.streaming=false", "data.test="])).fit()
        Path("run/model").rename("tokenizer")
        model = model.replace("run/model", "tokenizer")
    config = load_config(None, [model, *arguments, "run_dir=exact", "data.test="])
    assert_resumes_exactly(config)
    capfd.readouterr()
    loop = build(load_config(None, [model, *arguments, "run_dir=second"]))
    loop.fit()
    out = capfd.readouterr().out
    assert ("rows of reviews.csv were kept by data.filter" in out) == streaming
    assert "test: " in out and "of 60 rows were kept by data.filter" in out
    assert "data.filter (its code)" in json.dumps(json.loads(next(Path("second").rglob("manifest.json")).read_text()))
    (predicted,) = Predictor.load("second/model").predict(["a good book"])
    assert predicted["label"] in ("neg", "pos")
