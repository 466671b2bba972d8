import json
import os
import subprocess
import sys
import time
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet
import pytest
from columns import make_columns

from trainer_loop import UserError
from trainer_loop.data.files import read_files
from trainer_loop.data.fingerprint import digest_file
from trainer_loop.data.formats import parquet
from trainer_loop.data.shards import Batch


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", Path("cache"))
    return tmp_path


def write(table: pa.Table, **options) -> Path:
    pyarrow.parquet.write_table(table, "a.parquet", **options)
    return Path("a.parquet")


def make_table(num_rows: int) -> pa.Table:
    return pa.table({"text": [f"text {number}" for number in range(num_rows)], "label": [0] * num_rows})


def read(*, keeps_all: bool = False) -> datasets.Dataset:
    return read_files(["a.parquet"], split="train", columns=None if keeps_all else make_columns()).rows


def problem_of_reading() -> str:
    with pytest.raises(UserError) as caught:
        read()
    (problem,) = caught.value.problems
    return problem


def batches_of(columns: list[str]) -> list[Batch]:
    return list(parquet.open_parquet("a.parquet", columns=columns).batches(None))


def kept() -> list[str]:
    return sorted(path.suffix for path in Path("cache/trainer_loop").iterdir())


@pytest.mark.parametrize("compression", ["snappy", "none"])
def test_a_group_of_rows_is_never_held_as_a_whole(compression: str):
    texts = [f"{number} " * 1000 for number in range(8000)]
    write(pa.table({"text": texts}), use_dictionary=False, compression=compression)
    script = """
import pyarrow
from trainer_loop.data.columns import Column, Columns
from trainer_loop.data.files import read_files
columns = Columns({"text": Column("text")}, {"text": "text"})
rows = read_files(["a.parquet"], split="train", columns=columns).rows
print(len(rows), rows[7999]["text"][:8], pyarrow.default_memory_pool().max_memory() / rows.data.nbytes)
"""
    environment = {**os.environ, "HF_DATASETS_CACHE": "cache"}
    told = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    length, *text, share = told.stdout.split()
    assert (length, text) == ("8000", ["7999", "799"])
    assert float(share) < 0.6  # its 1000 rows at once, and pieces of the file


def test_large_rows_are_read_fewer_at_a_time(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(parquet, "_BYTES_AT_ONCE", 20_000)
    write(pa.table({"text": [f"{number:01000}" for number in range(100)]}), use_dictionary=False, compression="none")
    batches = batches_of(["text"])
    assert [len(batch) for batch in batches[:-1]] == [len(batches[0])] * (len(batches) - 1)
    assert 15 <= len(batches[0]) <= 20


def test_the_size_of_columns_that_are_not_read_does_not_matter(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(parquet, "_BYTES_AT_ONCE", 20_000)
    texts, large = ([f"{number:0{width}}" for number in range(100)] for width in (10, 10_000))
    nested = [{"text": text} for text in large]
    table = pa.table({"text": texts, "text2": large, "nested": nested})
    write(table, use_dictionary=False, compression="none")
    assert [len(batch) for batch in batches_of(["text"])] == [100]
    assert len(batches_of(["text", "nested"])[0]) == 1


def test_groups_of_a_few_rows_are_joined():
    write(make_table(2500), row_group_size=7)
    rows = read()
    assert rows[:] == make_table(2500).to_pydict()
    assert rows.data.column("text").num_chunks == 3


def test_a_file_is_converted_once(monkeypatch: pytest.MonkeyPatch):
    write(make_table(10))
    first = read()
    monkeypatch.setattr(parquet, "_read_groups", None)
    assert read()[:] == first[:]
    assert kept() == ["", ".lock"]


def test_other_content_under_the_same_name_size_and_time_is_read_again():
    write(pa.table({"text": ["a", "b"], "label": [0, 1]}))
    size, now = Path("a.parquet").stat().st_size, time.time()
    os.utime("a.parquet", (now, now))
    assert list(read()["text"]) == ["a", "b"]
    write(pa.table({"text": ["c", "d"], "label": [0, 1]}))
    os.utime("a.parquet", (now, now))
    assert Path("a.parquet").stat().st_size == size
    assert list(read()["text"]) == ["c", "d"]


@pytest.mark.parametrize(
    "column",
    [
        pa.array([None, "b"] * 2000).dictionary_encode(),
        pa.array([["a", "b"]] * 4000, pa.list_(pa.dictionary(pa.int32(), pa.string()))),
        pa.array([{"a": 1, "b": [2.0]}] * 4000),
        pa.array([b"bytes"] * 4000, pa.large_binary()),
        pa.array([None] * 4000, pa.null()),
        pa.array(['{"a": 1}', None] * 2000, pa.json_()),
    ],
    ids=["categories", "lists of categories", "structures", "bytes", "nulls", "JSON"],
)
def test_columns_are_those_that_datasets_reads(column: pa.Array):
    write(make_table(4000).append_column("more", column), row_group_size=1500)
    theirs = datasets.Dataset.from_parquet("a.parquet")
    assert read(keeps_all=True).features == theirs.features
    assert read(keeps_all=True)[:] == theirs[:]


@pytest.mark.parametrize("is_wanted", [True, False])
def test_columns_of_one_name_are_told_or_left_out(is_wanted: bool):
    name = "text" if is_wanted else "more"
    table = make_table(2).append_column(name, pa.array(["b", "b"])).append_column(name, pa.array(["c", "c"]))
    write(table)
    if is_wanted:
        problem = (
            "a.parquet: column 'text' cannot be read: there are 3 columns of this name; rename or drop all but one"
        )
        assert problem_of_reading() == problem
    else:
        assert read().column_names == ["text", "label"]


def test_a_column_that_rows_cannot_hold_is_left_out_or_told_where_it_is_wanted():
    tags = pa.array([[("a", 1)], []], pa.map_(pa.string(), pa.int32()))
    write(pa.table({"text": ["a", "b"], "label": [0, 1], "tags": tags}))
    assert read()[:] == {"text": ["a", "b"], "label": [0, 1]}
    with pytest.raises(UserError, match="column 'tags' cannot be read"):
        read_files(["a.parquet"], split="train", columns=None)
    write(pa.table({"text": tags, "label": [0, 1]}))
    assert problem_of_reading().startswith("a.parquet: column 'text' cannot be read: ")


def test_what_is_kept_of_some_columns_is_not_taken_for_others():
    write(make_table(3))
    assert read_files(["a.parquet"], split="train", columns=make_columns(label=None)).rows.column_names == ["text"]
    assert read().column_names == ["text", "label"]


def test_types_that_datasets_noted_and_cannot_read_are_told_once():
    features = {"text": {"dtype": "string", "_type": "FromTheFuture"}, "label": {"dtype": "int64", "_type": "Value"}}
    write(make_table(3).replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})}))
    problem = problem_of_reading()
    assert problem.startswith("a.parquet: the types of its columns, as datasets noted them in it, cannot be read: ")
    assert problem.endswith("; use the version of datasets that wrote it")


def test_a_file_that_changes_while_it_is_converted_is_told_and_not_kept():
    content = digest_file(write(make_table(3)))
    write(make_table(4))
    with pytest.raises(UserError, match="was changed while it was read"):
        parquet.map_parquet(parquet.open_parquet("a.parquet", columns=["text"]), content=content, wanted=["text"])
    assert kept() == [".lock"]


def test_a_file_that_is_damaged_inside_is_told_and_nothing_of_it_is_kept():
    write(make_table(9000), row_group_size=3000)
    whole = Path("a.parquet").read_bytes()
    Path("a.parquet").write_bytes(whole[: len(whole) // 3] + bytes(20_000) + whole[len(whole) // 3 + 20_000 :])
    assert problem_of_reading().startswith("a.parquet is no readable parquet file: ")
    assert kept() == [".lock"]
    Path("a.parquet").write_bytes(whole)
    assert len(read()) == 9000


def test_what_was_damaged_since_it_was_converted_is_converted_again():
    write(make_table(9000))
    rows = read()[:]
    (converted,) = Path("cache/trainer_loop").glob("*/rows.arrow")
    content = bytearray(converted.read_bytes())
    content[len(content) // 2] ^= 1
    converted.write_bytes(content)
    os.utime(converted, (0, 0))  # clocks of files tick slowly
    assert read()[:] == rows


def test_a_cache_that_cannot_be_written_is_told():
    write(make_table(3))
    Path("cache").write_text("a file, no directory")
    problem = problem_of_reading()
    assert problem.startswith("a.parquet cannot be converted to Arrow in cache/trainer_loop: ")
    assert "HF_DATASETS_CACHE" in problem


def test_a_file_that_is_not_there_any_more_is_told_as_it_is(folder: Path):
    with pytest.raises(UserError, match=r"a\.parquet cannot be read: "):
        parquet.open_parquet("a.parquet", columns=["text"])
