"""One way to read a file: in memory, streamed and for predict come the same rows, places and messages."""

import csv
import io
import json
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet
import pytest
from columns import make_columns
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from trainer_loop import UserError
from trainer_loop.data import shards
from trainer_loop.data.files import open_files, read_files
from trainer_loop.data.formats import open_file
from trainer_loop.data.tables import read_whole
from trainer_loop.data.text_format import DEFAULT_FORMAT, TextFormat

Rows = list[tuple[Any, str]]
COLUMNS = ["text", "other"]
READS = make_columns(text_pair="other", label=None)


def in_memory(path: str, text_format: TextFormat) -> Rows:
    split = read_files([path], split="train", columns=READS, text_format=text_format)
    return [(split.rows[row].get("text"), split.origins.place(row)) for row in range(len(split.rows))]


def streamed(path: str, text_format: TextFormat) -> Rows:
    (shard,) = open_files([path], columns=COLUMNS, text_format=text_format).shards
    return [(values.get("text"), shard.place(number)) for values, number, _ in shard.read()]


def for_predict(path: str, text_format: TextFormat) -> Rows:
    table = read_whole([path], text_format=text_format)
    texts = table.as_split(make_columns(label=None)).rows["text"] if "text" in table.columns else [None] * len(table)
    return [(text, table.origins.place(row)) for row, text in enumerate(texts)]


DOORS = (in_memory, streamed, for_predict)


def read_alike(path: str, text_format: TextFormat = DEFAULT_FORMAT) -> Rows | str:
    """The rows, or the first problem: the same through every door."""
    found: list[Rows | str] = []
    for door in DOORS:
        try:
            found.append(door(path, text_format))
        except UserError as error:
            found.append(error.problems[0])
    assert found[0] == found[1] == found[2]
    return found[0]


TEXTS = st.text(st.sampled_from('ab ,;"\n\r\té😀\u2028\x85\u3000中'), max_size=10)


@given(
    rows=st.lists(st.tuples(TEXTS, st.sampled_from(["0", "1", ""])), min_size=1, max_size=12),
    line_end=st.sampled_from(["\n", "\r\n"]),
    quoting=st.sampled_from([csv.QUOTE_ALL, csv.QUOTE_MINIMAL]),
    start=st.sampled_from(["", "\ufeff"]),
    blank=st.booleans(),
    suffix=st.sampled_from(["csv", "tsv"]),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
def test_delimited_files_are_read_alike(
    tmp_path: Path, rows: list, line_end: str, quoting: Any, start: str, blank: bool, suffix: str
):
    out = io.StringIO(newline="")
    writer = csv.writer(out, delimiter="," if suffix == "csv" else "\t", lineterminator=line_end, quoting=quoting)
    writer.writerow(["text", "label"])
    for row in rows:
        writer.writerow(row)
        out.write(line_end if blank else "")
    path = tmp_path / f"a.{suffix}"
    path.write_bytes((start + out.getvalue()).encode())
    read = read_alike(str(path), TextFormat(quoting="double"))
    if not any("\r" in text for text, _ in rows):  # one that is not quoted ends the line
        assert [text for text, _ in read] == [text or None for text, _ in rows]


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**40), 2**40) | st.just(0.5) | TEXTS,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from("ab"), inner, max_size=2),
    max_leaves=4,
)


@given(
    rows=st.lists(st.tuples(st.none() | TEXTS, VALUES), min_size=1, max_size=10),
    between=st.sampled_from(["\n", "\r\n", "\n\n \n"]),
    start=st.sampled_from(["", "\ufeff", "\n"]),
    lacks=st.booleans(),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
def test_lines_of_nested_objects_are_read_alike(tmp_path: Path, rows: list, between: str, start: str, lacks: bool):
    objects = [{"text": text, "more": more} for text, more in rows]
    if lacks:
        del objects[-1]["text"]
    path = tmp_path / "a.jsonl"
    path.write_bytes((start + between.join(json.dumps(row, ensure_ascii=False) for row in objects)).encode())
    assert [text for text, _ in read_alike(str(path))] == [row.get("text") for row in objects]


@pytest.mark.parametrize(
    "kind", [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int8(), pa.string())]
)
@pytest.mark.parametrize("path", ["a.parquet", "a.feather", "a.arrow"])
def test_texts_of_any_type_are_read_alike(folder: Path, kind: pa.DataType, path: str):
    texts = ["a", None, "é", "", "a"] * 500
    table = pa.table({"text": pa.array(texts, kind), "n": range(2500)})
    if path == "a.parquet":
        pa.parquet.write_table(table, path, row_group_size=700)
    elif path == "a.feather":
        pa.feather.write_feather(table, path, compression="lz4", chunksize=1300)
    else:
        with pa.ipc.new_stream(path, table.schema) as writer:
            writer.write_table(table, max_chunksize=900)
    assert read_alike(path) == [(text, f"{path} row {number}") for number, text in enumerate(texts, start=1)]


@pytest.mark.parametrize(
    ("path", "content", "problem"),
    [
        ("a.jsonl", '{"text": "a"}\n\n[1]\n', "a.jsonl line 3 is [1]; every line must be one JSON object"),
        ("a.json", "null\n", "a.json line 1 is None; every line must be one JSON object"),
        (
            "a.jsonl",
            '{"text": "a"}\n{"text": \n',
            "a.jsonl line 2, column 9: this is no JSON (Expecting value); ",
        ),
        ("a.json", '{\n "text": "a"\n}', "a.json is one JSON object; it must be a list of objects, or one object per"),
        ("a.csv", "text,label\na,1\n\nb\n", "a.csv row 2 (line 4) has 1 fields; the header has 2 (text, label): quote"),
        ("a.csv", 'text,label\na,1\n"b,1\n', "a.csv row 2, which begins on line 3: the quoting breaks by line 3"),
        ("a.csv", "text,label,text\na,1,b\n", "a.csv line 1 names these columns more than once: text; rename them"),
        ("a.txt", "a\n\udcff\n", "a.txt line 2: byte 0xff at offset 2 of the file is not UTF-8"),
        ("a.parquet", "none", "a.parquet is no readable parquet file: "),
        ("a.feather", "none", "a.feather is no readable Arrow file: "),
    ],
)
def test_what_is_wrong_is_told_alike(folder: Path, path: str, content: str, problem: str):
    Path(path).write_bytes(content.encode(errors="surrogateescape"))
    told = read_alike(path)
    assert isinstance(told, str)
    assert told.startswith(problem)


def test_damage_behind_the_first_rows_is_told_alike(folder: Path):
    table = pa.table({"text": [f"{number} {'x' * 50}" for number in range(9000)]})
    pa.parquet.write_table(table, "a.parquet", row_group_size=3000)
    whole = Path("a.parquet").read_bytes()
    Path("a.parquet").write_bytes(whole[: len(whole) // 2] + bytes(20_000) + whole[len(whole) // 2 + 20_000 :])
    problem = read_alike("a.parquet")
    assert isinstance(problem, str)
    assert problem.startswith("a.parquet is no readable parquet file: ")


FAULTS: dict[str, tuple[str, Callable[[int], str], str]] = {
    "a.csv": ("text,label\n", lambda n: f"t{n},1\n", "only text\n"),
    "a.jsonl": ("", lambda n: f'{{"text": "t{n}"}}\n', "[]\n"),
}


@pytest.mark.parametrize("path", FAULTS)
def test_a_stream_gives_the_rows_before_a_fault_and_in_memory_five_faults_are_told(folder: Path, path: str):
    head, row, fault = FAULTS[path]
    Path(path).write_text(head + "".join(row(n) for n in range(1500)) + fault * 8)
    (shard,) = open_files([path], columns=COLUMNS).shards
    reader = shard.read()
    assert [values["text"] for values, *_ in islice(reader, 1500)] == [f"t{n}" for n in range(1500)]
    with pytest.raises(UserError) as streamed_error:
        next(reader)
    with pytest.raises(UserError) as whole_error:
        in_memory(path, DEFAULT_FORMAT)
    problems = whole_error.value.problems
    assert problems[0] == streamed_error.value.problems[0]
    assert len(problems) == 6
    assert problems[5] == f"{path}: 3 more {'rows' if path == 'a.csv' else 'lines'} like these"


@pytest.mark.parametrize("path", ["a.csv", "a.jsonl", "a.txt", "a.parquet", "a.feather"])
def test_batches_are_small_and_begin_where_their_marks_say(folder: Path, path: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(shards, "_BATCH_BYTES", 20_000)
    texts = [f"{number} {'x' * (5000 if number > 2000 else 5)}" for number in range(2100)]
    table = pa.table({"text": texts})
    match path:
        case "a.csv":
            Path(path).write_text("text\n" + "\n".join(texts))
        case "a.jsonl":
            Path(path).write_text("\n".join(json.dumps({"text": text}) for text in texts))
        case "a.txt":
            Path(path).write_text("\n".join(texts))
        case "a.parquet":
            pa.parquet.write_table(table, path)
        case _:
            pa.feather.write_feather(table, path)
    shard = open_file(path, columns=["text"], text_format=DEFAULT_FORMAT)
    batches = list(shard.batches(None))
    assert [values["text"] for batch in batches for values in batch.values()] == texts
    assert max(map(len, batches)) <= 1000
    if path in ("a.csv", "a.jsonl", "a.txt"):
        assert max(len(batch) for batch in batches[-10:]) <= 5  # of 5,000 bytes each
    first = 0
    for batch in batches[:-1]:
        first += len(batch)
        mark = json.loads(json.dumps(batch.mark(len(batch) - 1)))
        assert next(iter(shard.batches(mark))).values()[0]["text"] == texts[first]


def test_files_of_unlike_types_go_together_alike(folder: Path):
    Path("a.csv").write_text("text,label\na,1\nb,0\n")
    Path("b.jsonl").write_text('{"label": 1, "text": "c"}\n')
    categories = pa.array(["d", "e"]).dictionary_encode()
    pa.parquet.write_table(pa.table({"text": categories, "label": pa.array([0, 1], pa.int8())}), "c.parquet")
    files = ["a.csv", "b.jsonl", "c.parquet"]
    rows = read_files(files, split="train", columns=make_columns()).rows
    assert list(rows["text"]) == list("abcde")
    assert list(rows["label"]) == [1, 0, 1, 0, 1]
    opened = open_files(files, columns=["text", "label"]).shards
    assert [values["text"] for shard in opened for values, *_ in shard.read()] == list("abcde")
    table = read_whole(files, text_format=DEFAULT_FORMAT)
    assert [str(label) for label in table.columns["label"]] == ["1", "0", "1", "0", "1"]
