"""Files read row by row: the rows and places of the readers that take a whole file, from any row on."""

import csv
import json
from itertools import islice
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.feather
import pyarrow.ipc
import pyarrow.parquet
import pytest
from streams import mark_in_shard

from trainer_loop import UserError
from trainer_loop.data.files import open_files, read_files
from trainer_loop.data.shards import Shard

COLUMNS = ["text", "label"]
ROWS = [{"text": f"text {n}, «{n}»", "label": n % 2, "other": "x" * n} for n in range(25)]
FEATURES = datasets.Features(
    {
        "text": datasets.Value("string"),
        "label": datasets.ClassLabel(names=["neg", "pos"]),
        "other": datasets.Value("string"),
    }
)


def write_csv(path: str, *, delimiter: str = ",", end: str = "\n") -> None:
    lines = [f'"several{end}lines {n}"{delimiter}{n % 2}' if n % 3 else f"one line {n}{delimiter}" for n in range(20)]
    Path(path).write_text(f"text{delimiter}label{end}" + end.join([*lines[:7], "", *lines[7:]]), newline="")


def write(path: str) -> str:
    """A file with everything that its kind may have."""
    table = datasets.Dataset.from_list(ROWS, features=FEATURES).data.table
    match path:
        case "a.csv":
            write_csv(path)
        case "dos.csv":
            write_csv(path, end="\r\n")
        case "a.tsv":
            write_csv(path, delimiter="\t")
        case "bom.csv":
            Path(path).write_text("\ufefftext,label\nü,1\nö,0\n", encoding="utf-8")
        case "a.jsonl" | "a.json":
            Path(path).write_text("\n\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS) + "\n \n")
        case "a.txt":
            Path(path).write_text("\ufeffone\n\n \u3000\ntwo\r\nthree", encoding="utf-8", newline="")
        case "a.parquet":
            pa.parquet.write_table(table, path, row_group_size=7)
        case "stream.arrow":
            with pa.ipc.new_stream(path, table.schema) as writer:
                writer.write_table(table, max_chunksize=6)
        case "file.arrow":
            pa.feather.write_feather(table, path, chunksize=6)
    return path


KINDS = [
    "a.csv", "dos.csv", "a.tsv", "bom.csv", "a.jsonl", "a.json", "a.txt", "a.parquet", "stream.arrow", "file.arrow"
]  # fmt: skip


def open_one(path: str) -> Shard:
    (shard,) = open_files([path], columns=COLUMNS).shards
    return shard


def read_all(path: str) -> list[tuple[dict, str]]:
    shard = open_one(path)
    return [(dict(values), shard.place(number)) for values, number, _ in shard.read(None)]


def problems_of(*paths: str) -> list[str]:
    with pytest.raises(UserError) as caught:
        [list(shard.read(None)) for shard in open_files(paths, columns=COLUMNS).shards]
    return caught.value.problems


@pytest.mark.parametrize("path", KINDS)
def test_rows_and_places_are_those_of_the_file_read_as_a_whole(folder: Path, path: str):
    whole = read_files([write(path)], split="train", columns=None)
    read = read_all(path)
    assert len(read) == len(whole.rows) > 0
    for row, (values, place) in enumerate(read):
        assert {name: values[name] for name in values if name in COLUMNS} == {
            name: value for name, value in whole.rows[row].items() if name in COLUMNS
        }
        assert place == whole.origins.place(row)


@pytest.mark.parametrize("path", KINDS)
def test_reading_goes_on_from_any_row(folder: Path, path: str):
    write(path)
    whole = read_all(path)
    shard = open_one(path)
    for taken in range(len(whole) + 1):
        mark = mark_in_shard(shard.read(None), taken)
        first = [(dict(values), shard.place(number)) for values, number, _ in islice(shard.read(mark), 3)]
        assert first == whole[taken : taken + 3], taken
        again = shard.read(mark_in_shard(shard.read(mark), 3) or mark)
        assert [(dict(values), shard.place(number)) for values, number, _ in again] == whole[taken + 3 :], taken


@pytest.mark.parametrize("path", ["a.parquet", "stream.arrow", "file.arrow"])
def test_files_of_arrow_know_their_number_of_rows_and_their_classes(folder: Path, path: str):
    shard = open_one(write(path))
    assert shard.count is not None
    assert shard.count() == len(ROWS)
    assert shard.features is not None
    assert shard.features["label"].names == ["neg", "pos"]


def test_of_files_of_arrow_other_columns_are_not_read(folder: Path):
    for path in ("a.parquet", "stream.arrow"):
        assert all(set(values) == {"text", "label"} for values, _ in read_all(write(path)))


@pytest.mark.parametrize("path", ["a.parquet", "stream.arrow", "file.arrow"])
def test_a_column_that_rows_cannot_hold_is_told_only_where_it_is_wanted(folder: Path, path: str):
    tags = pa.array([[("a", 1)]], pa.map_(pa.string(), pa.int32()))
    table = pa.table({"text": ["a"], "label": [0], "tags": tags})
    for written in (table, table.set_column(0, "text", tags)):
        match path:
            case "a.parquet":
                pa.parquet.write_table(written, path)
            case "stream.arrow":
                with pa.ipc.new_stream(path, written.schema) as writer:
                    writer.write_table(written)
            case _:
                pa.feather.write_feather(written, path)
        if written is table:
            assert read_all(path) == [({"text": "a", "label": 0}, f"{path} row 1")]
    (problem,) = problems_of(path)
    assert problem.startswith(f"{path}: column 'text' cannot be read: ")


@pytest.mark.parametrize(
    ("path", "content", "problem"),
    [
        (
            "a.jsonl",
            '{"text": "a"}\n\n{"text": \n',
            "a.jsonl line 3, column 9: this is no JSON (Expecting value); every line must be one JSON object",
        ),
        (
            "b.json",
            '\n [\n{"text": "a"}]\n',
            "b.json is one JSON list, which can only be read as a whole; a stream needs one object per line: "
            "jq -c '.[]' b.json > b.jsonl",
        ),
        ("a.jsonl", "[1]\n", "a.jsonl line 1 is [1]; every line must be one JSON object"),
        ("a.jsonl", '{"text": "a"}\n3\n', "a.jsonl line 2 is 3; every line must be one JSON object"),
        (
            "a.csv",
            'text,label\na,1\n"b\nc",1,2\n',
            "a.csv row 2 (line 3) has 3 fields; the header has 2 (text, label): quote texts that contain commas",
        ),
        (
            "a.csv",
            'text,label\na,1\n"b,1\nc,1\n',
            "a.csv row 2, which begins on line 3: the quoting breaks by line 4 (unexpected end of data)",
        ),
        ("a.csv", "text,label,text\n", "a.csv line 1 names these columns more than once: text"),
        ("a.csv", "text;label\na;1\n", "a .csv file has commas"),
        ("a.csv", "", "a.csv is empty"),
        ("a.parquet", "no parquet", "a.parquet is no readable parquet file"),
        ("a.arrow", "no arrow", "a.arrow is no readable Arrow file"),
    ],
)
def test_what_is_wrong_with_a_file_is_one_line_with_its_place(folder: Path, path: str, content: str, problem: str):
    Path(path).write_text(content)
    (told,) = problems_of(path)
    assert problem in told
    assert "\n" not in told


def test_bytes_that_are_not_utf_8_are_named(folder: Path):
    Path("a.txt").write_bytes(b"good\nb\xe4d\n")
    assert problems_of("a.txt") == [
        "a.txt line 2: byte 0xe4 at offset 6 of the file is not UTF-8; set data.files.encoding=windows-1252, or save "
        "the file as UTF-8, for example with `iconv -f windows-1252 -t utf-8`"
    ]
    Path("a.csv").write_text("text,label\n", encoding="utf-16")
    assert problems_of("a.csv") == [
        "a.csv is UTF-16; set data.files.encoding=utf-16, or save it as UTF-8, for example with "
        "`iconv -f utf-16 -t utf-8`"
    ]


def test_the_problems_of_all_files_are_told_at_once(folder: Path):
    Path("a.csv").write_text("")
    Path("b.parquet").write_text("x")
    Path("c.csv").write_text("text,label\n")
    assert [problem.split()[0] for problem in problems_of("a.csv", "b.parquet", "c.csv")] == ["a.csv", "b.parquet"]


def test_a_field_may_be_longer_than_the_limit_of_the_csv_module(folder: Path):
    before = csv.field_size_limit()
    Path("a.csv").write_text("text,label\n" + "x" * (before + 1) + ",1\n")
    ((values, _),) = read_all("a.csv")
    assert len(values["text"]) == before + 1
    assert csv.field_size_limit() == before


def test_a_file_that_was_changed_is_not_read_from_the_middle_of_a_line(folder: Path):
    shard = open_one(write("a.jsonl"))
    mark = mark_in_shard(shard.read(None), 5)
    Path("a.jsonl").write_text("{}" * 500 + "\n")
    with pytest.raises(UserError, match=r"a\.jsonl was changed since the checkpoint: no line begins at byte"):
        list(shard.read(mark))
    Path("a.jsonl").write_text("{}\n")
    with pytest.raises(UserError, match="was changed since the checkpoint"):
        list(shard.read(mark))


def test_the_fingerprint_follows_size_and_beginning_and_not_the_name(folder: Path):
    def fingerprint(path: str, content: str) -> str:
        Path(path).write_text(content)
        return open_files([path], columns=COLUMNS).fingerprint

    assert fingerprint("a.txt", "one") == fingerprint("b.txt", "one")
    assert len({fingerprint("a.txt", content) for content in ("one", "two", "three")}) == 3
