import os
import subprocess
import sys
import time
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet
import pytest

from trainer_loop.data import parquet_files
from trainer_loop.data.files import read_files
from trainer_loop.errors import UserError


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", Path("cache"))
    return tmp_path


def write(table: pa.Table, **options) -> None:
    pyarrow.parquet.write_table(table, "a.parquet", **options)


def make_table(num_rows: int) -> pa.Table:
    return pa.table({"text": [f"text {number}" for number in range(num_rows)], "label": [0] * num_rows})


def read() -> datasets.Dataset:
    return read_files(["a.parquet"], split="train", texts=["text"], label="label").rows


def problem_of_reading() -> str:
    with pytest.raises(UserError) as caught:
        read()
    (problem,) = caught.value.problems
    return problem


def kept() -> list[str]:
    return sorted(path.suffix for path in Path("cache/trainer_loop").iterdir())


def test_a_group_of_rows_is_never_held_as_a_whole():
    texts = [f"{number} " * 1000 for number in range(8000)]
    write(pa.table({"text": texts}), use_dictionary=False)
    script = """
import pyarrow
from trainer_loop.data.files import read_files
rows = read_files(["a.parquet"], split="train", texts=["text"], label=None).rows
print(len(rows), rows[7999]["text"][:8], pyarrow.default_memory_pool().max_memory() / rows.data.nbytes)
"""
    environment = {**os.environ, "HF_DATASETS_CACHE": "cache"}
    told = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    length, *text, share = told.stdout.split()
    assert (length, text) == ("8000", ["7999", "799"])
    assert float(share) < 0.6  # its 1000 rows at once, and pieces of the file


def test_large_rows_are_read_fewer_at_a_time(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(parquet_files, "_BYTES_AT_ONCE", 20_000)
    write(pa.table({"text": [f"{number:01000}" for number in range(100)]}), use_dictionary=False, compression="none")
    with parquet_files.open_parquet("a.parquet") as file:
        batches = list(parquet_files.read_groups(file, [0]))
    assert [len(batch) for batch in batches[:-1]] == [len(batches[0])] * (len(batches) - 1)
    assert 15 <= len(batches[0]) <= 20


def test_a_file_is_converted_once(monkeypatch: pytest.MonkeyPatch):
    write(make_table(10))
    first = read()
    monkeypatch.setattr(parquet_files, "read_groups", None)
    assert read()[:] == first[:]
    assert kept() == [".arrow", ".lock"]


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
    ],
    ids=["categories", "lists of categories", "structures", "bytes", "nulls"],
)
def test_columns_are_those_that_datasets_reads(column: pa.Array):
    write(make_table(4000).append_column("more", column), row_group_size=1500)
    theirs = datasets.Dataset.from_parquet("a.parquet")
    assert read().features == theirs.features
    assert read()[:] == theirs[:]


def test_columns_of_one_name_are_told():
    write(pa.table([pa.array(["a"]), pa.array(["b"])], names=["text", "text"]))
    assert problem_of_reading().startswith("a.parquet is no readable parquet file: ")


def test_a_file_that_is_damaged_inside_is_told_and_nothing_of_it_is_kept():
    write(make_table(9000), row_group_size=3000)
    whole = Path("a.parquet").read_bytes()
    Path("a.parquet").write_bytes(whole[: len(whole) // 3] + bytes(20_000) + whole[len(whole) // 3 + 20_000 :])
    assert problem_of_reading().startswith("a.parquet is no readable parquet file: ")
    assert kept() == [".lock"]
    Path("a.parquet").write_bytes(whole)
    assert len(read()) == 9000


@pytest.mark.parametrize("damage", ["cut", "emptied"])
def test_what_was_damaged_since_it_was_converted_is_converted_again(damage: str):
    write(make_table(9000))
    rows = read()[:]
    (converted,) = Path("cache/trainer_loop").glob("*.arrow")
    whole = converted.read_bytes()
    converted.write_bytes(whole[: len(whole) // 2] if damage == "cut" else b"")
    assert read()[:] == rows


def test_a_cache_that_cannot_be_written_is_told():
    write(make_table(3))
    Path("cache").write_text("a file, no directory")
    problem = problem_of_reading()
    assert problem.startswith("a.parquet cannot be converted to Arrow in cache/trainer_loop: ")
    assert "HF_DATASETS_CACHE" in problem


def test_a_file_that_is_not_there_any_more_is_told_as_it_is(folder: Path):
    with pytest.raises(UserError, match=r"a\.parquet cannot be read: "):
        parquet_files.map_parquet("a.parquet", content="x")
