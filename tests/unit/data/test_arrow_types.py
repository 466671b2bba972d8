"""Every type of Arrow as a text, as a label and as a column that nobody needs, through every door."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet
import pytest
from arrow_columns import CASES, Case
from columns import make_columns

from trainer_loop import UserError
from trainer_loop.data.checks import check_splits
from trainer_loop.data.given_rows import as_dataset
from trainer_loop.data.labels import LabelNames
from trainer_loop.data.read_splits import read_splits
from trainer_loop.data.section import DataSection
from trainer_loop.data.stream_rows import RowStream

COLUMNS = ["text", "label"]


def write_stream(table: pa.Table, path: str) -> None:
    with pa.ipc.new_stream(path, table.schema) as writer:
        writer.write_table(table)


def write_json(table: pa.Table, path: str) -> None:
    rows = table.to_pylist()
    lines = [json.dumps(row) for row in rows]
    Path(path).write_text(f"[{', '.join(lines)}]" if path.endswith(".json") else "\n".join(lines))


FILES: dict[str, tuple[str, Callable[[pa.Table, str], Any]]] = {
    "parquet": ("a.parquet", pa.parquet.write_table),
    "feather": ("a.feather", lambda table, path: pa.feather.write_feather(table, path, compression="lz4")),
    "JSON lines": ("a.jsonl", write_json),
}
MORE_FILES: dict[str, tuple[str, Callable[[pa.Table, str], Any]]] = {
    "feather zstd": ("b.feather", lambda table, path: pa.feather.write_feather(table, path, compression="zstd")),
    "Arrow file": ("b.arrow", lambda table, path: pa.feather.write_feather(table, path, compression="uncompressed")),
    "Arrow stream": ("a.arrow", write_stream),
    "JSON": ("a.json", write_json),
}
OBJECTS: dict[str, Callable[[pa.Table], Any]] = {
    "pyarrow": lambda table: table,
    "pandas": lambda table: table.to_pandas(),
    "polars": pl.from_arrow,
    "dicts": lambda table: table.to_pylist(),
}
MORE_OBJECTS: dict[str, Callable[[pa.Table], Any]] = {
    "batches": lambda table: pa.RecordBatchReader.from_batches(table.schema, table.to_batches()),
    "pandas with types of Arrow": lambda table: table.to_pandas(types_mapper=pd.ArrowDtype),
}
STREAMED = ("parquet", "Arrow file", "JSON lines")
FROM_VALUES = ("JSON", "JSON lines", "dicts")  # doors that know no types but those of the values
NOTHING = object()
NOT_MADE = (NotImplementedError, pa.ArrowException, TypeError, ValueError, pl.exceptions.PolarsError)


def read_rows(train: Any) -> tuple[list[Any], list[Any]]:
    """Texts and labels of the rows that are left without holes. Raises UserError."""
    splits, _, problems = read_splits(DataSection(train, make_columns(), seed=1, missing="drop"))
    wrong, _, _ = check_splits(splits, columns=make_columns(), label_names=None)
    if problems + wrong:
        raise UserError(problems + wrong)
    rows = splits["train"].rows
    return list(rows["text"]), list(rows["label"])


def stream_rows(path: str, labels: list[Any]) -> tuple[list[Any], list[Any]]:
    """The same of a stream. labels: the classes."""
    section = DataSection(path, make_columns(), seed=1, streaming=True, missing="drop")
    splits, opened, problems = read_splits(section)
    names = LabelNames([str(label) for label in labels], {label: number for number, label in enumerate(labels)})
    wrong, _, _ = check_splits(splits, columns=make_columns(), label_names=None, known=names, is_streamed=True)
    if problems + wrong:
        raise UserError(problems + wrong)
    assert opened is not None
    stream = RowStream(opened.shards, seed=1, columns=make_columns(), label_names=names, missing="drop")
    rows = list(stream.read(0))
    assert stream.count_rows() == len(rows)
    return [row.values["text"] for row in rows], [labels[row.values["label"]] for row in rows]


Read = tuple[list[Any], list[Any]]


def doors(table: pa.Table, files: Any, objects: Any) -> Iterator[tuple[str, Callable[[list[Any]], Read]]]:
    """By name, how the table comes in where there is a way for its types; a stream is told the classes."""
    for door, (path, write) in files.items():
        if make(lambda write=write, path=path: write(table, path)) is not NOTHING:
            yield door, lambda _, path=path: read_rows(path)
            if door in STREAMED:
                yield f"{door}, streamed", lambda classes, path=path: stream_rows(path, classes)
    for door, convert in objects.items():
        if (rows := make(lambda convert=convert: convert(table))) is not NOTHING:
            yield door, lambda _, rows=rows: read_rows(as_dataset(rows, place="rows", columns=COLUMNS))


def make(function: Callable[[], Any]) -> Any:
    try:
        return function()
    except NOT_MADE:
        return NOTHING
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # of polars, at a type that it has not
            raise
        return NOTHING


def outcome(read: Callable[[list[Any]], Read], classes: list[Any]) -> tuple[Read | None, list[str]]:
    """What was read, or why not."""
    try:
        return read(classes), []
    except UserError as error:
        return None, error.problems


def expect(case: Case, door: str) -> dict[str, list[Any] | None]:
    """What the column is as text and as label; some doors know no types but those of the values."""
    if door.split(",")[0] not in FROM_VALUES:
        return {"text": case.texts, "label": case.labels}
    values = [value for value in case.array.to_pylist() if value is not None]
    kinds = {type(value) for value in values}
    if kinds == {float} and all(value.is_integer() for value in values):
        return {"text": None, "label": [int(value) for value in values]}
    labels = values if kinds in ({str}, {int}, {bool}) else case.labels
    return {"text": values if kinds == {str} else None, "label": labels}


def spell(values: list[Any] | None) -> list[str] | None:
    """1, 1.0 and true are equal to Python."""
    return None if values is None else [f"{type(value).__name__} {value!r}" for value in values]


def assert_read_or_refused(table: pa.Table, case: Case, *, files: Any, objects: Any) -> int:
    """Through every door; returns how many there are."""
    entries = list(doors(table, files, objects))
    for door, read in entries:
        wanted = expect(case, door)
        found, problems = outcome(read, wanted["label"] or [0, 1])
        refused = [name for name in COLUMNS if wanted[name] is None]
        if not refused:
            assert problems == [], door
            assert [spell(column) for column in found] == [spell(wanted[name]) for name in COLUMNS], door
        elif case.array.null_count == len(case.array):
            (problem,) = problems
            assert "no row is left" in problem
        else:
            assert len(problems) == len(refused), (door, problems)
            for name, problem in zip(refused, problems, strict=True):
                assert f"column {name!r}" in problem, door
                assert "\n" not in problem
    return len(entries)


@pytest.mark.parametrize("name", CASES)
def test_a_column_is_read_or_refused_in_one_line_that_names_it(folder: Path, name: str):
    """As the text, the label and a column that nobody needs at once."""
    case = CASES[name]
    table = pa.table({"text": case.array, "label": case.array, "other": case.array})
    assert assert_read_or_refused(table, case, files=FILES, objects=OBJECTS) >= 4


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.labels and not case.texts])
def test_a_column_that_can_only_be_a_label_is_read_as_one(folder: Path, name: str):
    case = CASES[name]
    table = pa.table({"text": ["x", "y", "z"], "label": case.array, "other": case.array})
    few = {"parquet": FILES["parquet"], "JSON lines": FILES["JSON lines"]}
    for door, read in doors(table, few, {"pandas": OBJECTS["pandas"]}):
        labels = expect(case, door)["label"]
        texts, found = read(labels or [0, 1])
        assert (texts, spell(found)) == (["x", "z"], spell(labels)), door


@pytest.mark.parametrize("name", ["string_view", "dictionary of texts", "list of dates"])
def test_other_doors_are_as_wide(folder: Path, name: str):
    case = CASES[name]
    table = pa.table({"text": case.array, "label": case.array, "other": case.array})
    assert assert_read_or_refused(table, case, files=MORE_FILES, objects=MORE_OBJECTS) >= 2


@pytest.mark.parametrize("kind", [pl.Categorical, pl.Enum(["neg", "pos"])], ids=["Categorical", "Enum"])
@pytest.mark.parametrize("path", ["a.parquet", "a.feather", None])
def test_categories_of_polars_are_their_values(folder: Path, kind: Any, path: str | None):
    frame = pl.DataFrame({"text": ["pos", "neg", None], "label": ["neg", "pos", "neg"]}).with_columns(
        pl.col("text").cast(kind), pl.col("label").cast(kind)
    )
    rows: Any = path
    if path is None:
        rows = as_dataset(frame, place="rows", columns=COLUMNS)
    elif path.endswith(".parquet"):
        frame.write_parquet(path)
    else:
        frame.write_ipc(path)
    assert read_rows(rows) == (["pos", "neg"], ["neg", "pos"])
    if path is not None:
        assert stream_rows(path, ["neg", "pos"]) == (["pos", "neg"], ["neg", "pos"])


def test_categories_of_pandas_and_columns_with_nan_are_their_values():
    frame = pd.DataFrame({"text": ["a", float("nan"), "c"], "label": pd.Categorical(["x", "y", None])})
    frame["numbers"] = [1.0, 2.0, float("nan")]
    frame["odd"] = [object(), 1, {2}]
    rows = as_dataset(frame, place="rows", columns=COLUMNS)
    assert rows.columns == ["text", "label", "numbers", "odd"]
    assert read_rows(rows) == (["a"], ["x"])
    rows = as_dataset(frame.rename(columns={"label": "l", "numbers": "label"}), place="rows", columns=COLUMNS)
    assert read_rows(rows) == (["a"], [1])


def test_values_of_several_kinds_are_told_with_their_rows():
    for rows in (
        pd.DataFrame({"text": ["a", "b"], "label": [1, "x"]}),
        [{"text": "a", "label": 1}, {"text": "b", "label": "x"}],
    ):
        with pytest.raises(UserError) as caught:
            as_dataset(rows, place="rows", columns=COLUMNS)
        (problem,) = caught.value.problems
        assert problem == (
            "column 'label' has values of several kinds: int (1, rows row 1), str ('x', rows row 2); write all of them "
            "alike"
        )
