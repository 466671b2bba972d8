"""Every kind of file x every kind of damage: read, or told in one line for each problem; never a traceback."""

import io
import json
import random
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet
import pytest
from columns import make_columns

from trainer_loop import UserError
from trainer_loop.data.checks import check_splits
from trainer_loop.data.files import find_files
from trainer_loop.data.labels import LabelNames
from trainer_loop.data.read_splits import read_splits
from trainer_loop.data.section import DataSection
from trainer_loop.data.stream_rows import RowStream
from trainer_loop.data.tables import read_whole
from trainer_loop.data.text_format import DEFAULT_FORMAT
from trainer_loop.data.write_files import ReadyTable

NAMES = LabelNames(["even", "odd"], {0: 0, 1: 1})
ROWS = [{"text": f"text {n} é " + "x" * (n % 7), "label": n % 2} for n in range(30)]
TABLE = pa.Table.from_pylist(ROWS)
CATEGORIES = TABLE.set_column(0, "text", TABLE["text"].combine_chunks().dictionary_encode())


def write_text(path: str, delimiter: str = ",") -> None:
    lines = [f'"{row["text"]}"{delimiter}{row["label"]}' for row in ROWS]
    Path(path).write_text("\n".join([f"text{delimiter}label", *lines]))


def write_stream(path: str) -> None:
    with pa.ipc.new_stream(path, TABLE.schema) as writer:
        writer.write_table(TABLE, max_chunksize=9)


KINDS: dict[str, Callable[[str], object]] = {
    "a.csv": write_text,
    "a.tsv": lambda path: write_text(path, "\t"),
    "a.json": lambda path: Path(path).write_text(json.dumps(ROWS)),
    "a.jsonl": lambda path: Path(path).write_text("\n".join(map(json.dumps, ROWS))),
    "a.parquet": lambda path: pa.parquet.write_table(TABLE, path, row_group_size=17),
    "plain.parquet": lambda path: pa.parquet.write_table(TABLE, path, compression="none", use_dictionary=False),
    "stream.arrow": write_stream,
    "file.arrow": lambda path: pa.feather.write_feather(TABLE, path, compression="uncompressed"),
    "a.feather": lambda path: pa.feather.write_feather(TABLE, path, compression="lz4"),
    "categories.feather": lambda path: pa.feather.write_feather(CATEGORIES, path, compression="uncompressed"),
}
DEEP = '{"text": "a", "label": 0, "x": ' + "[" * 100_000 + "]" * 100_000 + "}"
LONG = '{"text": "a", "label": 0, "x": ' + "9" * 5000 + "}"
DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda content: b"",
    "blank": lambda content: b"\n \n",
    "zeros": lambda content: bytes(len(content)),
    "cut": lambda content: content[: max(content.find(b"text 20"), len(content) // 2) + 3],  # within a text
    "begins in the middle": lambda content: content[len(content) // 3 :],
    "garbage": lambda content: random.Random(0).randbytes(500),
    "wrong kind": lambda content: b"PK\x03\x04" + content,
    "deep": lambda content: DEEP.encode(),
    "deep in a list": lambda content: f"[\n{DEEP}]".encode(),
    "long number": lambda content: LONG.encode(),
    "long number in a list": lambda content: f"[\n{LONG}]".encode(),
    "no objects": lambda content: b"[1, 2]\n",
    "nothing in objects": lambda content: b"{}\n{}\n",
}


def read_in_memory(path: str) -> None:
    splits, _, problems = read_splits(DataSection(path, make_columns(), seed=1))
    check(splits, problems)
    assert len(splits["train"].rows[:]["text"]) > 0


def read_stream(path: str) -> None:
    splits, opened, problems = read_splits(DataSection(path, make_columns(), seed=1, streaming=True))
    check(splits, problems)
    assert opened is not None
    rows = RowStream(opened.shards, seed=1, columns=make_columns(), label_names=NAMES)
    assert len(list(rows.read(0))) == rows.count_rows()


def read_to_predict(path: str) -> None:
    table = read_whole([path], text_format=DEFAULT_FORMAT)
    check({"train": table.as_split(make_columns(label=None))}, [], label=None)
    ReadyTable(table, ".csv").write(io.BytesIO())


def check(splits: dict, problems: list[str], label: str | None = "label") -> None:
    wrong, _, _ = check_splits(
        splits, columns=make_columns("text", None, label), label_names=None, known=NAMES if label else None
    )
    if problems + wrong:
        raise UserError(problems + wrong)


def problems_of(path: str) -> dict[str, list[str]]:
    """By reader; those that could read it have none."""
    told = {}
    for read in (read_in_memory, read_stream, read_to_predict):
        try:
            read(path)
            told[read.__name__] = []
        except UserError as error:
            told[read.__name__] = error.problems
    for problems in told.values():
        assert all("\n" not in problem and len(problem) < 1000 for problem in problems)
    return told


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_file_is_told_by_its_name(folder: Path, kind: str, damage: str):
    KINDS[kind](kind)
    Path(kind).write_bytes(DAMAGES[damage](Path(kind).read_bytes()))
    for reader, problems in problems_of(kind).items():
        assert problems, reader
        assert kind in problems[0] or "data.train has no such column" in problems[0], reader


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("kind", KINDS)
def test_bytes_that_are_not_as_they_were_end_nothing_but_the_reading(folder: Path, kind: str, seed: int):
    KINDS[kind](kind)
    drawn = random.Random(f"{seed} {kind}")
    content = bytearray(Path(kind).read_bytes())
    for _ in range(drawn.choice([1, 3, 30])):
        content[drawn.randrange(len(content))] = drawn.randrange(256)
    Path(kind).write_bytes(content)
    for reader, problems in problems_of(kind).items():  # any error but a UserError is raised there
        assert not [problem for problem in problems if "\n" in problem], reader


@pytest.mark.parametrize(
    ("content", "line"),
    [(f'{{"text": "a", "label": 1}}\n{DEEP}\n', 2), (f'[{{"text": "a"}},\n\n{LONG}]', 3), (f"[\n\n\n{DEEP}]", 4)],
)
def test_json_that_python_cannot_read_is_told_with_its_line(folder: Path, content: str, line: int):
    path = "a.jsonl" if content.startswith("{") else "a.json"
    Path(path).write_text(content)
    (problem,) = problems_of(path)["read_in_memory"]
    assert problem.startswith(f"{path} line {line} has ")


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_there_in_the_place_of_a_file_is_told(folder: Path, kind: str):
    for spec, told in ((kind, "there is no such file"), (f"{'x' * 300}{kind}", "no file can have this name: ")):
        with pytest.raises(UserError, match=told):
            find_files([spec], key="data.train")
    Path(kind).mkdir()
    with pytest.raises(UserError, match="this is a folder"):
        find_files([kind], key="data.train")
