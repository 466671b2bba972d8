"""Rows without a text or a label: refused, dropped or filled in, in memory and streamed alike."""

import json
import math
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet
import pytest
from columns import make_columns
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from streams import make_loader, mark_behind

from trainer_loop import UserError
from trainer_loop.data.checks import check_splits
from trainer_loop.data.labels import LabelNames
from trainer_loop.data.missing import Holes, settle_missing
from trainer_loop.data.origins import Origins
from trainer_loop.data.plain_columns import with_plain_columns
from trainer_loop.data.read_splits import read_splits
from trainer_loop.data.section import DataSection
from trainer_loop.data.split import Split
from trainer_loop.data.stream_rows import RowStream

NAN = float("nan")
NAMES = LabelNames(["even", "odd"], {0: 0, 1: 1})


def load(
    missing: str, *, train: Any = "a.jsonl", fraction: float | None = None, limit: Any = None, **options: Any
) -> tuple[dict[str, Split], list[str], list[str]]:
    """The splits, what is wrong, and what was said."""
    said: list[str] = []
    section = DataSection(
        train, make_columns(**options), seed=1, validation_fraction=fraction, limit=limit or {}, missing=missing
    )
    splits, _, problems = read_splits(section, say=said.append)
    wrong, _, _ = check_splits(splits, columns=section.columns, label_names=None, missing=missing)
    return splits, problems + wrong, said


def open_stream(*files: str, missing: str, say: Any = lambda line: None, text_pair: str | None = None) -> RowStream:
    columns = make_columns(text_pair=text_pair)
    _, opened, problems = read_splits(DataSection(list(files), columns, seed=1, streaming=True, missing=missing))
    assert problems == []
    assert opened is not None
    return RowStream(
        opened.shards,
        seed=1,
        columns=make_columns(text_pair=text_pair),
        label_names=NAMES,
        missing=missing,
        say=say,
    )


def write_rows(path: str, rows: list[dict[str, Any]]) -> str:
    Path(path).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


ROWS = [
    {"text": "a", "label": 0},
    {"text": None, "label": 1},
    {"text": "", "label": 0},
    {"text": "b", "label": None},
    {"text": "c", "label": NAN},
    {"text": NAN, "label": None},
    {"text": "d", "label": 1},
    {"label": 1},
    {"text": "e"},
]


def test_holes_are_refused_with_both_remedies(folder: Path):
    write_rows("a.jsonl", ROWS)
    _, problems, said = load("refuse")
    assert problems == [
        "data.train: column 'text' is null in 3 rows: a.jsonl line 2, a.jsonl line 6, a.jsonl line 8; fill it in or "
        "remove the row, or set data.missing=drop (or empty)",
        "data.train: column 'text' is empty in 1 row: a.jsonl line 3; fill it in or remove the row, or set "
        "data.missing=drop (or empty)",
        "data.train: column 'label' is null in 4 rows: a.jsonl line 4, a.jsonl line 5, a.jsonl line 6, a.jsonl line 9; "
        "fill it in or remove the row, or set data.missing=drop",
    ]
    assert said == []


def test_rows_with_holes_are_dropped_counted_by_file_and_column_and_the_others_keep_their_places(folder: Path):
    write_rows("a.jsonl", ROWS)
    write_rows("b.jsonl", ROWS[:2])
    splits, problems, said = load("drop", train=["a.jsonl", "b.jsonl"])
    assert problems == []
    assert said == [
        "train: a.jsonl: 4 rows without 'text', 3 without 'label' were dropped",
        "train: b.jsonl: 1 row without 'text' was dropped",
    ]
    train = splits["train"]
    assert list(train.rows) == [{"text": "a", "label": 0}, {"text": "d", "label": 1}, {"text": "a", "label": 0}]
    assert [train.origins.place(row) for row in range(3)] == ["a.jsonl line 1", "a.jsonl line 7", "b.jsonl line 1"]


def test_a_missing_text_may_be_the_empty_text_and_a_missing_label_may_not(folder: Path):
    write_rows("a.jsonl", ROWS[:3] + ROWS[6:8])
    splits, problems, said = load("empty")
    assert (problems, said) == ([], [])
    assert list(splits["train"].rows["text"]) == ["a", "", "", "d", ""]
    write_rows("a.jsonl", ROWS)
    _, problems, _ = load("empty")
    assert [problem.split(" in ")[0] for problem in problems] == ["data.train: column 'label' is null"]


@pytest.mark.parametrize("rows", [[ROWS[1], ROWS[2]], [ROWS[3], ROWS[4]]])
def test_where_no_row_is_left_it_is_told_why(folder: Path, rows: list[dict]):
    write_rows("a.jsonl", rows)
    _, problems, _ = load("drop")
    column = "text" if rows[0]["text"] is None else "label"
    assert problems == [
        f"data.train: no row is left; a.jsonl: 2 rows without {column!r} were dropped (data.missing=drop)"
    ]
    _, _, problems = read_splits(DataSection("a.jsonl", make_columns(), seed=1, streaming=True, missing="drop"))
    assert problems[0].startswith("data.train: no row is left")


def test_rows_are_dropped_before_a_part_or_a_sample_is_taken(folder: Path):
    rows = [{"text": f"t{number}" if number % 4 else None, "label": number % 2} for number in range(40)]
    write_rows("a.jsonl", rows)
    splits, problems, said = load("drop", fraction=0.2, limit={"train": 10})
    assert problems == []
    assert len(splits["validation"].rows) == 6
    assert len(splits["train"].rows) == 10
    assert len(said) == 1


def test_the_second_text_of_a_pair_and_a_running_text_count_too(folder: Path):
    write_rows("a.jsonl", [{"text": "a", "b": None, "label": 0}, {"text": "a", "b": "c", "label": 0}, {"text": " "}])
    splits, _, said = load("drop", text_pair="b")
    assert list(splits["train"].rows["b"]) == ["c"]
    assert said == ["train: a.jsonl: 1 row without 'text', 1 without 'b' were dropped"]
    splits, _, said = load("drop", label=None)  # a running text has blank lines
    assert list(splits["train"].rows["text"]) == ["a", "a", " "]


def test_hidden_labels_of_a_column_of_classes_are_missing(folder: Path):
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["n", "p"])})
    rows = datasets.Dataset.from_dict({"text": ["a", "b", "c"], "label": [0, -1, 1]}, features=features)
    rows.to_parquet("a.parquet")
    _, problems, _ = load("refuse", train="a.parquet")
    assert problems == [
        "data.train: column 'label' is -1 in 1 row: a.parquet row 2; -1 stands for a label that is kept secret: remove "
        "these rows or set data.missing=drop"
    ]
    splits, problems, said = load("drop", train="a.parquet")
    assert problems == []
    assert splits["train"].rows.features == features
    assert list(splits["train"].rows["label"]) == [0, 1]
    assert said == ["train: a.parquet: 1 row without 'label' was dropped"]
    assert [row.values["label"] for row in open_stream("a.parquet", missing="drop").read(0)] == [0, 1]
    with pytest.raises(UserError, match=r"is -1, which stands for a label that is kept secret, in a\.parquet row 2"):
        list(open_stream("a.parquet", missing="refuse").read(0))


@pytest.mark.parametrize(
    ("split", "remedy"),
    [
        ("train", "name a split that has labels"),
        ("test", "set data.test=null; python -m trainer_loop.predict tells the classes of such rows"),
    ],
)
def test_a_split_whose_labels_are_all_hidden_is_told(split: str, remedy: str):
    feature = datasets.ClassLabel(names=["n", "p"])
    given = {"train": [0, 1], split: [-1, -1]}
    splits = {}
    for name, labels in given.items():
        rows = datasets.Dataset.from_dict({"text": ["a", "b"], "label": labels}).cast_column("label", feature)
        splits[name] = Split(name, rows, Origins.of(f"{name} row", 2), "")
    problems, warnings, _ = check_splits(splits, columns=make_columns(), label_names=None)
    assert problems == [
        f"data.{split}: column 'label' is -1 in all 2 rows: -1 stands for a label that is kept secret: {remedy}"
    ]
    assert warnings == []


def test_what_is_left_decides_about_the_fingerprint(folder: Path):
    def fingerprint(missing: str, rows: list[dict]) -> str:
        write_rows("a.jsonl", rows)
        splits, _, _ = load(missing)
        return splits["train"].fingerprint

    whole = [ROWS[0], ROWS[6]]
    assert fingerprint("refuse", whole) == fingerprint("drop", whole) == fingerprint("empty", whole)
    holes = [ROWS[0], ROWS[1], ROWS[6]]
    assert len({fingerprint(missing, holes) for missing in ("refuse", "drop", "empty")}) == 3


@pytest.mark.parametrize(
    ("labels", "told"),
    [
        ([0.0, NAN, 1.0], [0, None, 1]),
        ([0.0, 1.0], [0, 1]),
        ([0.5, NAN], None),
        ([float("inf")], None),
    ],
)
def test_numbers_without_fractions_are_integers_however_they_are_stored(labels: list, told: list | None):
    split = Split(
        "train", datasets.Dataset.from_dict({"text": ["a"] * len(labels), "label": labels}), Origins.of("a", 1), ""
    )
    plain = with_plain_columns(split, make_columns())
    kept = [None if isinstance(value, float) and math.isnan(value) else value for value in labels]
    assert list(plain.rows["label"])[: len(told or [])] == (told or [])
    assert plain.rows.features["label"].dtype == ("float64" if told is None else "int64")
    assert len(kept) == len(plain.rows)


def test_csv_files_of_pandas_have_decimal_numbers_where_labels_are_missing(folder: Path):
    Path("a.csv").write_text("text,label\na,0.0\nb,\nc,1.0\n")
    splits, problems, _ = load("drop", train="a.csv")
    assert problems == []
    assert list(splits["train"].rows["label"]) == [0, 1]
    assert [row.values["label"] for row in open_stream("a.csv", missing="drop").read(0)] == [0, 1]


VALUES = st.sampled_from([None, "", " \t\n", "\u3000", "a", "b c", "\x1f", "\x85"])
LABELS = st.sampled_from([None, NAN, 0, 1])


@given(rows=st.lists(st.tuples(VALUES, VALUES, LABELS), min_size=1, max_size=10), blank=st.booleans())
@settings(deadline=None, max_examples=60)
def test_a_row_is_judged_alike_alone_and_among_others(rows: list[tuple], blank: bool):
    holes = Holes({"text": "text", "pair": "text", "label": "class"}, blank=["text", "pair"] if blank else [])
    columns = dict(zip(("text", "pair", "label"), map(list, zip(*rows, strict=True)), strict=True))
    table = pa.table({
        "text": pa.array(columns["text"], pa.string()), "pair": pa.array(columns["pair"], pa.large_string()),
        "label": pa.array(columns["label"], pa.float64()),
    })  # fmt: skip
    found = holes.find(datasets.Dataset(table))
    for number, row in enumerate(rows):
        values = dict(zip(columns, row, strict=True))
        lacking = holes.columns_of(values, are_classes=False)
        assert lacking == [name for name in columns if found[name][number]]


# ----------------------------------------------------------------------------------------------------------- streams


def make_files(num_rows: int = 60) -> list[str]:
    """Three kinds of files; every third row has a hole, and so have the first and the last."""
    rows = []
    for number in range(num_rows):
        text = None if number % 6 == 0 else f"{number} words of it"
        label = None if number % 6 == 3 or number == num_rows - 1 else number % 2
        rows.append({"text": text, "label": label})
    third = num_rows // 3
    write_rows("a.jsonl", rows[:third])
    fields = [
        f"{row['text'] or ''},{'' if row['label'] is None else row['label']}\n" for row in rows[third : 2 * third]
    ]
    Path("b.csv").write_text("text,label\n" + "".join(fields))
    pa.parquet.write_table(pa.Table.from_pylist(rows[2 * third :]), "c.parquet", row_group_size=7)
    return ["a.jsonl", "b.csv", "c.parquet"]


def test_a_stream_has_the_rows_that_are_left_in_memory_and_counts_no_others(folder: Path):
    files = make_files()
    splits, _, said = load("drop", train=files)
    train = splits["train"]
    whole = sorted((train.rows[row]["text"], train.origins.place(row)) for row in range(len(train.rows)))
    told: list[str] = []
    stream = open_stream(*files, missing="drop", say=told.append)
    for epoch in range(2):
        assert sorted((row.values["text"], row.place) for row in stream.read(epoch)) == whole
    assert told[0].endswith("(data.missing=drop); their number is told at the end of each file")
    assert sorted(told[1:]) == sorted(said)  # once, however often it is read
    assert stream.count_rows() == len(whole) == 39
    assert sorted(told[1:]) == sorted(said)


def test_a_stream_that_is_gone_on_with_tells_no_part_of_a_number(folder: Path):
    files = make_files()
    first: list[str] = []
    mark = mark_behind(open_stream(*files, missing="drop", say=first.append).read(0), 5)
    again: list[str] = []
    list(open_stream(*files, missing="drop", say=again.append).read(0, mark))
    whole: list[str] = []
    list(open_stream(*files, missing="drop", say=whole.append).read(0))
    assert set(again[1:]) < set(whole[1:])


@pytest.mark.parametrize("missing", ["drop", "empty"])
def test_a_stream_goes_on_at_the_very_row_from_anywhere(folder: Path, missing: str):
    files = make_files()
    if missing == "empty":
        Path("a.jsonl").write_text(Path("a.jsonl").read_text().replace("null}", "1}"))
        files = files[:1]
    stream = open_stream(*files, missing=missing)
    whole = [row.place for row in stream.read(3)]
    assert len(whole) == (39 if missing == "drop" else 20)
    for taken in range(len(whole) + 1):
        mark = mark_behind(stream.read(3), taken)
        assert [row.place for row in open_stream(*files, missing=missing).read(3, mark)] == whole[taken:]


def test_batches_of_a_stream_with_holes_go_on_from_every_step_and_hold_each_row_once(folder: Path):
    files = make_files()
    options: dict[str, Any] = {"batch_size": 4, "shuffle_rows": 9, "num_rows": 39}

    def make():
        return make_loader([], stream=open_stream(*files, missing="drop"), **options)

    whole = [step.microbatches for step in make().steps(start=0, stop=24)]
    numbers = [sorted(row for microbatch in step for row in microbatch.rows) for step in whole]
    epoch = sorted(row for step in numbers[:10] for row in step)
    assert epoch == list(range(39))
    for start in (1, 5, 9, 10, 11, 19):
        loader = make()
        for _ in zip(range(start), loader.steps(start=0, stop=24), strict=False):
            pass
        state = json.loads(json.dumps(loader.state_dict()))
        other = make()
        other.load_state_dict(state)
        rest = [step.microbatches for step in other.steps(start=start, stop=24)]
        assert [sorted(row for microbatch in step for row in microbatch.rows) for step in rest] == numbers[start:]


def test_a_bad_row_is_told_though_others_are_dropped(folder: Path):
    write_rows("a.jsonl", [*ROWS, {"text": "x", "label": 7}])
    with pytest.raises(UserError, match=r"unknown label in a\.jsonl line 10"):
        list(open_stream("a.jsonl", missing="drop").read(0))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=20)
@given(holes=st.lists(st.booleans(), min_size=3, max_size=20).filter(lambda holes: not all(holes)))
def test_rows_keep_their_order_and_their_places(holes: list[bool]):
    rows = datasets.Dataset.from_dict({"text": [None if hole else "a" for hole in holes], "label": [0] * len(holes)})
    split = Split("train", rows, Origins.of("a.csv row", len(holes)), "")
    kept, told = settle_missing(split, make_columns(), missing="drop")
    wanted = [number for number, hole in enumerate(holes, start=1) if not hole]
    assert [kept.origins.place(row) for row in range(len(kept.rows))] == [f"a.csv row {number}" for number in wanted]
    assert bool(told) == any(holes)
