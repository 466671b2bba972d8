import dataclasses
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.feather
import pytest
from columns import make_columns

from trainer_loop import UserError
from trainer_loop.data import files, tables
from trainer_loop.data.files import find_files, is_file_spec, read_files
from trainer_loop.data.formats import arrow
from trainer_loop.data.given_rows import as_dataset
from trainer_loop.data.read_splits import read_splits
from trainer_loop.data.section import DataSection
from trainer_loop.data.shards import Shard
from trainer_loop.data.split import Split


def read(*files: str, label: str | None = "label") -> Split:
    return read_files(files, split="train", columns=make_columns(label=label))


def problems_of_finding(*specs: str) -> list[str]:
    with pytest.raises(UserError) as caught:
        find_files(specs, key="data.train")
    return caught.value.problems


def problems_of_reading(*files: str) -> list[str]:
    with pytest.raises(UserError) as caught:
        read(*files)
    return caught.value.problems


def labelled(num_rows: int = 3) -> datasets.Dataset:
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["neg", "pos"])})
    rows = {"text": [f"text {n}" for n in range(num_rows)], "label": [n % 2 for n in range(num_rows)]}
    return datasets.Dataset.from_dict(rows, features=features)


@pytest.mark.parametrize("spec", ["a.csv", "A.JSONL", "data/a", "*.parquet", "part?.txt", "~/a.tsv", "[ab].arrow"])
def test_file_specs_are_told_by_extension_slash_or_wildcard(spec: str):
    assert is_file_spec(spec, hub=False)


@pytest.mark.parametrize("spec", ["train", "my_lab.data.train", "csv", "train_csv"])
def test_names_are_no_file_specs(spec: str):
    assert not is_file_spec(spec, hub=False)


def test_brackets_are_a_slice_of_a_hub_split_but_a_glob_elsewhere():
    assert not is_file_spec("train[:10%]", hub=True)
    assert is_file_spec("train[ab]", hub=False)


def test_globs_and_lists_are_found_in_order_of_their_names(folder: Path):
    for name in ("b.csv", "a.csv", "c.txt", "sub/d.csv"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("text\nx\n")
    assert find_files(["c.txt", "*.csv", "**/d.csv"], key="data.train") == ["c.txt", "a.csv", "b.csv", "sub/d.csv"]


def test_the_home_folder_is_expanded(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", str(folder))
    (folder / "a.csv").write_text("text\nx\n")
    assert find_files(["~/a.csv"], key="data.train") == [str(folder / "a.csv")]


def test_a_file_whose_name_has_brackets_is_no_glob(folder: Path):
    (folder / "a[1].csv").write_text("text\nx\n")
    assert find_files(["a[1].csv"], key="data.train") == ["a[1].csv"]


def test_all_specs_that_find_nothing_are_told_at_once(folder: Path):
    (folder / "reviews.csv").write_text("text\nx\n")
    (folder / "notes.md").write_text("x")
    (folder / "sub").mkdir()
    (folder / "sub/a.jsonl").write_text("{}")
    problems = problems_of_finding(
        "review.csv", "*.tsv", "sub", "notes.md", "nowhere/a.csv", "reviews.csv", "./reviews.csv"
    )
    assert "data.train=review.csv: there is no such file; did you mean 'reviews.csv'?" in problems
    assert f"data.train=*.tsv: no file matches; {folder} has reviews.csv" in problems
    assert "data.train=sub: this is a folder; give the files in it, such as sub/*.jsonl" in problems
    assert any(
        problem.startswith("data.train=notes.md: notes.md: of no known kind; known are .csv") for problem in problems
    )
    assert any("nor a folder nowhere" in problem for problem in problems)
    assert problems[-1] == "data.train: each file may be given once, and these are more often: reviews.csv"
    assert len(problems) == 6


def test_parquet_keeps_class_names_and_maps_its_rows(folder: Path):
    labelled().to_parquet("a.parquet")
    split = read("a.parquet")
    assert split.rows.features["label"].names == ["neg", "pos"]
    assert split.rows.cache_files
    assert split.origins.place(2) == "a.parquet row 3"


def test_a_parquet_file_that_was_written_again_is_read_again(folder: Path):
    labelled(3).to_parquet("a.parquet")
    before = read("a.parquet")
    labelled(5).to_parquet("a.parquet")
    assert (len(before.rows), len(read("a.parquet").rows)) == (3, 5)


def test_a_parquet_file_may_have_brackets_in_its_name(folder: Path):
    labelled().to_parquet("a[1].parquet")
    assert len(read("a[1].parquet").rows) == 3


def test_both_arrow_formats_are_read(folder: Path):
    labelled().save_to_disk("saved")
    os.replace(next(Path("saved").glob("*.arrow")), "stream.arrow")
    pyarrow.feather.write_feather(labelled().data.table, "file.arrow", compression="uncompressed")
    for name in ("stream.arrow", "file.arrow"):
        split = read(name)
        assert split.rows.features["label"].names == ["neg", "pos"]
        assert list(split.rows["text"]) == ["text 0", "text 1", "text 2"]


@pytest.mark.parametrize("kind", ["stream", "file"])
def test_an_arrow_column_that_rows_cannot_hold_is_left_out_or_told_where_it_is_wanted(folder: Path, kind: str):
    tags = pa.array([[("a", 1)]], pa.map_(pa.string(), pa.int32()))
    table = pa.table({"text": ["a"], "label": [0], "tags": tags})
    for name, written in {"a.arrow": table, "b.arrow": table.set_column(0, "text", tags)}.items():
        with (pa.ipc.new_stream if kind == "stream" else pa.ipc.new_file)(name, written.schema) as writer:
            writer.write_table(written)
    assert read("a.arrow").rows[:] == {"text": ["a"], "label": [0]}
    (problem,) = problems_of_reading("b.arrow")
    assert problem.startswith("b.arrow: column 'text' cannot be read: ")


def test_a_file_that_changes_while_it_is_read_is_told(folder: Path, monkeypatch: pytest.MonkeyPatch):
    def read_table(shard: Shard, **options):
        table = tables.read_table(shard, **options)
        Path(shard.name).write_text("text,label\nother,1\n")
        return table

    monkeypatch.setattr(files, "read_table", read_table)
    Path("a.csv").write_text("text,label\nx,1\n")
    assert problems_of_reading("a.csv") == ["a.csv was changed while it was read; start again when it is complete"]


def test_a_file_that_is_only_touched_while_it_is_read_is_taken(folder: Path, monkeypatch: pytest.MonkeyPatch):
    def read_table(shard: Shard, **options):
        os.utime(shard.name, (0, 0))
        return tables.read_table(shard, **options)

    monkeypatch.setattr(files, "read_table", read_table)
    Path("a.csv").write_text("text,label\nx,1\n")
    assert list(read("a.csv").rows["text"]) == ["x"]


def test_rows_of_feather_are_not_copied(folder: Path):
    texts = [f"{number} " * 1000 for number in range(8000)]
    pyarrow.feather.write_feather(pa.table({"text": texts}), "a.arrow", compression="uncompressed")
    script = """
import resource
from trainer_loop.data.columns import Column, Columns
from trainer_loop.data.files import read_files
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
before = peak()
rows = read_files(["a.arrow"], split="train", columns=Columns({"text": Column("text")}, {"text": "text"})).rows
print((peak() - before) / rows.data.nbytes)
"""
    told = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert float(told.stdout) < 1.5  # the pages that were read; a copy would add as much again, and its hash


def test_files_of_unlike_kinds_are_joined(folder: Path):
    Path("a.csv").write_text("text,label,note\nfrom csv,1,x\n")
    Path("b.jsonl").write_text('{"label": 0, "text": "from jsonl"}\n\n{"label": 1, "text": "again"}\n')
    pa.parquet.write_table(
        pa.table({"text": pa.array(["from parquet"]), "label": pa.array([0], pa.int8())}), "c.parquet"
    )
    split = read("a.csv", "b.jsonl", "c.parquet")
    assert list(split.rows) == [
        {"text": "from csv", "label": 1},
        {"text": "from jsonl", "label": 0},
        {"text": "again", "label": 1},
        {"text": "from parquet", "label": 0},
    ]
    assert [split.origins.place(row) for row in range(4)] == [
        "a.csv row 1",
        "b.jsonl line 1",
        "b.jsonl line 3",
        "c.parquet row 1",
    ]


def write_arrow(path: str, labels: pa.Array) -> None:
    table = pa.table({"text": pa.array(["x"] * len(labels)), "label": labels})
    with pa.ipc.new_stream(path, table.schema) as writer:
        writer.write_table(table)


def test_joining_writes_nothing_beside_the_files(folder: Path):
    write_arrow("a.arrow", pa.array([1, 2], pa.int32()))
    write_arrow("b.arrow", pa.array([3], pa.int64()))
    for _ in range(2):
        assert list(read(*find_files(["*.arrow"], key="data.train")).rows["label"]) == [1, 2, 3]
    assert sorted(path.name for path in folder.glob("*.arrow")) == ["a.arrow", "b.arrow"]


def test_numbers_that_do_not_fit_into_the_type_of_all_files_are_told(folder: Path):
    write_arrow("a.arrow", pa.array([2**60 + 1]))
    write_arrow("b.arrow", pa.array([0.5]))
    (problem,) = problems_of_reading("a.arrow", "b.arrow")
    assert problem.startswith("a.arrow does not go together with the others: ")


def test_where_all_columns_are_kept_one_of_unlike_types_is_told(folder: Path):
    Path("a.jsonl").write_text('{"text": "a", "label": 1, "target": 3, "only": 1}\n')
    Path("b.jsonl").write_text('{"text": "b", "label": 0, "target": "three"}\n')
    assert read("a.jsonl", "b.jsonl").rows.column_names == ["text", "label"]
    with pytest.raises(UserError, match=r"column 'target' has one type in a\.jsonl") as caught:
        read_files(["a.jsonl", "b.jsonl"], split="train", columns=None)
    assert len(caught.value.problems) == 1


@pytest.mark.parametrize("name", ["half.arrow", "half.feather", "half.parquet"])
def test_a_file_that_was_cut_short_is_told(folder: Path, name: str):
    write_arrow("half.arrow", pa.array(range(1000)))
    table = pa.ipc.open_stream("half.arrow").read_all()
    pa.parquet.write_table(table, "half.parquet")
    pa.feather.write_feather(table, "half.feather", compression="uncompressed")
    Path(name).write_bytes(Path(name).read_bytes()[: Path(name).stat().st_size // 2])
    (problem,) = problems_of_reading(name)
    assert problem.startswith(f"{name} is no readable {'parquet' if 'parquet' in name else 'Arrow'} file: ")
    assert problem.endswith("; write or copy it again")


def test_the_first_version_of_feather_is_told(folder: Path):
    pa.feather.write_feather(pa.table({"text": ["a"], "label": [1]}), "old.feather", version=1)
    assert problems_of_reading("old.feather") == [
        "old.feather is of version 1 of feather, which keeps no types of columns; write it as version 2"
    ]


def test_too_little_memory_is_no_damage(folder: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(path: str) -> None:
        raise pa.ArrowMemoryError("malloc of size 64 failed")

    write_arrow("a.arrow", pa.array([1]))
    monkeypatch.setattr(arrow.MemoryMappedTable, "from_file", refuse)
    with pytest.raises(MemoryError):
        read("a.arrow")


def test_joined_files_that_do_not_go_together_are_told_at_once(folder: Path):
    Path("a.csv").write_text("text,label\ngood,1\n")
    Path("b.csv").write_text("texts,label\ngood,yes\n")
    problems = problems_of_reading("a.csv", "b.csv")
    assert problems[0] == "b.csv has no column 'text'; it has texts, label; did you mean 'texts'?"
    assert problems[1].startswith(
        "column 'label' has one type in a.csv (Value('int64')) and another in b.csv (Value('string'))"
    )


def test_a_null_column_takes_the_type_of_the_other_files(folder: Path):
    Path("a.jsonl").write_text('{"text": "a", "label": null}\n')
    Path("b.jsonl").write_text('{"text": "b", "label": "yes"}\n')
    assert list(read("a.jsonl", "b.jsonl").rows["label"]) == [None, "yes"]


def test_the_problems_of_all_files_are_told_at_once(folder: Path):
    Path("empty.csv").write_text("")
    Path("header.csv").write_text("text,label\n")
    Path("broken.jsonl").write_text("{\n")
    Path("broken.parquet").write_text("no parquet")
    Path("broken.arrow").write_text("no arrow")
    labelled(0).to_parquet("none.parquet")
    problems = problems_of_reading(
        "empty.csv", "header.csv", "broken.jsonl", "broken.parquet", "broken.arrow", "none.parquet"
    )
    assert [problem.split()[0] for problem in problems] == [
        "empty.csv", "header.csv", "broken.jsonl", "broken.parquet", "broken.arrow", "none.parquet"
    ]  # fmt: skip
    assert problems[0] == "empty.csv is empty"
    assert "is no readable parquet file" in problems[3]
    assert "is no readable Arrow file" in problems[4]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_a_file_that_may_not_be_read_is_told(folder: Path):
    Path("a.csv").write_text("text\nx\n")
    Path("a.csv").chmod(0)
    assert problems_of_reading("a.csv")[0].startswith("a.csv cannot be read: ")


def test_the_fingerprint_follows_the_content_and_not_the_name(folder: Path):
    def fingerprint(name: str, text: str) -> str:
        Path(name).write_text(json.dumps({"text": text, "label": 1}))
        return read(name).fingerprint

    assert fingerprint("a.jsonl", "one") == fingerprint("b.jsonl", "one")
    assert fingerprint("a.jsonl", "one") != fingerprint("a.jsonl", "two")


@pytest.mark.parametrize("kind", ["csv", "jsonl", "json", "parquet", "feather", "given"])
def test_columns_that_nobody_names_cost_little(folder: Path, kind: str):
    """Once every look at a column copied all of them: 20,000 took minutes."""
    columns = {"text": ["a"] * 12, "label": [0, 1] * 6, **{f"c{number}": list(range(12)) for number in range(20_000)}}
    table, path = pa.table(columns), f"a.{kind}"
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    match kind:
        case "csv":
            lines = [columns, *zip(*columns.values(), strict=True)]
            Path(path).write_text("\n".join(",".join(map(str, line)) for line in lines))
        case "jsonl":
            Path(path).write_text("\n".join(map(json.dumps, rows)))
        case "json":
            Path(path).write_text(json.dumps(rows))
        case "parquet":
            pa.parquet.write_table(table, path)
        case "feather":
            pyarrow.feather.write_feather(table, path)
    began = time.process_time()
    train = as_dataset(rows, place="rows", columns=["text", "label"]) if kind == "given" else path
    section = DataSection(train, make_columns(), seed=1, validation_fraction=0.3)
    splits, _, problems = read_splits(section)
    assert problems == []
    assert len(splits["train"].rows) == 8
    assert len(splits["train"].columns) == 20_002
    if kind not in ("json", "given"):
        streamed = dataclasses.replace(section, validation_fraction=None, streaming=True)
        assert len(read_splits(streamed)[0]["train"].rows) == 12
    assert time.process_time() - began < 10
