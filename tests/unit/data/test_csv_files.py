import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from columns import make_columns
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from trainer_loop import UserError
from trainer_loop.data.files import read_files
from trainer_loop.data.formats.csv_files import long_fields
from trainer_loop.data.split import Split
from trainer_loop.data.text_format import TextFormat


def read_file(path: Path | str, text: str = "text", label: str | None = None, *, keeps_all: bool = False) -> Split:
    return read_files([str(path)], split="train", columns=None if keeps_all else make_columns(text, None, label))


def read_csv(path: Path | str, label: str | None = "label", **options: Any) -> Any:
    """All columns, and their places."""
    split = read_files([str(path)], split="train", columns=None, text_format=TextFormat(**options))
    return split.rows, split.origins


def problems_of(read: Callable[[], object]) -> list[str]:
    with pytest.raises(UserError) as caught:
        read()
    assert all("\n" not in problem for problem in caught.value.problems)
    return caught.value.problems


def write_csv(path: Path, rows: list[list[str]], *, line_end: str = "\n") -> None:
    quoting = csv.QUOTE_ALL if any("\r" in field for row in rows for field in row) else csv.QUOTE_MINIMAL
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator=line_end, quoting=quoting).writerows(rows)


# Texts with all that csv quotes; no lone surrogates (not UTF-8), and a field is not empty (that is null).
FIELDS = st.text(st.sampled_from('ab ,;"\n\r\té😀\u2028\x85'), min_size=1, max_size=12)


@given(rows=st.lists(st.tuples(FIELDS, FIELDS), min_size=1, max_size=12), line_end=st.sampled_from(["\n", "\r\n"]))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_csv_gives_back_what_was_written_with_row_numbers(tmp_path: Path, rows: list[tuple[str, str]], line_end: str):
    path = tmp_path / "some.csv"
    write_csv(path, [["text", "other"], *map(list, rows)], line_end=line_end)
    read, origins = read_csv(path, quoting="double")  # texts may look like records by chance
    assert list(zip(read["text"], read["other"], strict=True)) == rows
    assert [origins.place(row) for row in range(len(rows))] == [f"{path} row {n}" for n in range(1, len(rows) + 1)]


@given(rows=st.lists(FIELDS, min_size=1, max_size=8), data=st.data())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_a_row_with_a_field_too_many_is_named_with_its_row_and_line(
    tmp_path: Path, rows: list[str], data: st.DataObject
):
    bad = data.draw(st.integers(0, len(rows) - 1))
    path = tmp_path / "some.csv"
    write_csv(
        path, [["text", "label"], *([text, "1", "2"] if row == bad else [text, "1"] for row, text in enumerate(rows))]
    )
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.reader(file)
        lines_before = [reader.line_num for _ in reader][bad]
    (problem,) = problems_of(lambda: read_csv(path))
    assert problem.startswith(f"{path} row {bad + 1} (line {lines_before + 1}) has 3 fields; the header has 2")


def test_only_an_empty_field_is_null(tmp_path: Path):
    (tmp_path / "some.csv").write_text('text,label\nNA,a\nnull,b\nNone,c\nnan,d\n,e\n"",f\n')
    read, _ = read_csv(tmp_path / "some.csv")
    assert list(read["text"]) == ["NA", "null", "None", "nan", None, None]


@pytest.mark.parametrize(
    ("written", "read"),
    [
        (["0", "1", "-3", ""], [0, 1, -3, None]),
        (["007", "1"], ["007", "1"]),
        (["0.5", "1", ".5e1"], [0.5, 1.0, 5.0]),
        (["True", "false", "TRUE"], [True, False, True]),
        (["1", "one"], ["1", "one"]),
        (["nan", "inf"], ["nan", "inf"]),
        (["true", "1"], ["true", "1"]),
    ],
)
def test_only_the_label_column_has_its_type_inferred(tmp_path: Path, written: list[str], read: list[object]):
    write_csv(tmp_path / "some.csv", [["text", "label"], *([value or "x", value] for value in written)])
    rows = read_file(tmp_path / "some.csv", label="label").rows
    assert list(rows["label"]) == read
    assert [type(value) for value in rows["label"]] == [type(value) for value in read]
    assert list(rows["text"]) == [value or "x" for value in written]


def test_byte_order_mark_and_tabs_are_read(tmp_path: Path):
    (tmp_path / "some.tsv").write_bytes("\ufefftext\tlabel\r\na,b\tc\r\n".encode())
    read, _ = read_csv(tmp_path / "some.tsv")
    assert read[0] == {"text": "a,b", "label": "c"}


def test_a_field_may_be_longer_than_the_limit_of_the_csv_module(tmp_path: Path):
    before = csv.field_size_limit()
    write_csv(tmp_path / "some.csv", [["text", "label"], ["x" * (before + 1), "1"]])
    read, _ = read_csv(tmp_path / "some.csv")
    assert len(read[0]["text"]) == before + 1
    assert csv.field_size_limit() == before


def test_of_several_readers_the_last_one_puts_the_limit_of_the_csv_module_back():
    before = csv.field_size_limit()
    one, other = long_fields(), long_fields()
    with one:
        other.__enter__()
    assert csv.field_size_limit() > before
    other.__exit__(None, None, None)
    assert csv.field_size_limit() == before


def test_a_column_without_a_name_gets_one(tmp_path: Path):
    (tmp_path / "some.csv").write_text(",text,label\n0,good,1\n")
    assert read_csv(tmp_path / "some.csv")[0].column_names == ["column_1", "text", "label"]


def test_a_quote_that_is_not_closed_is_found_where_it_opens(tmp_path: Path):
    (tmp_path / "some.csv").write_text('text,label\n"two\nlines",1\nfine,0\n"broken,1\nafter,0\n')
    (problem,) = problems_of(lambda: read_csv(tmp_path / "some.csv"))
    assert "some.csv row 3, which begins on line 5" in problem
    assert "line 6" in problem


def test_text_after_a_closing_quote_is_broken(tmp_path: Path):
    (tmp_path / "some.csv").write_text('text,label\n"he said "yes" twice",1\n')
    (problem,) = problems_of(lambda: read_csv(tmp_path / "some.csv"))
    assert "some.csv row 1, which begins on line 2" in problem
    assert 'write a quote inside it twice ("")' in problem


def test_at_most_five_uneven_rows_are_named(tmp_path: Path):
    (tmp_path / "some.csv").write_text("text,label\n" + "only text\n" * 8)
    problems = problems_of(lambda: read_csv(tmp_path / "some.csv"))
    assert len(problems) == 6
    assert "some.csv row 5 (line 6) has 1 fields; the header has 2 (text, label)" in problems[4]
    assert problems[5].endswith("some.csv: 3 more rows like these")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"text,label\n", "has a header and no rows"),
        (b"\n", "is empty, or its first line is"),
        (b"text,label,text\na,b,c\n", "line 1 names these columns more than once: text"),
        (b"text;label\na;1\n", "its fields seem to be separated by semicolons"),
        (b"text\tlabel\na\t1\n", "its fields seem to be separated by tabs"),
        (b"text,label\ngood,1\ncaf\xe9,0\n", "line 3: byte 0xe9 at offset 21 of the file is not UTF-8"),
        ("text,label\ngood,1\n".encode("utf-16"), "is UTF-16; set data.files.encoding=utf-16, or save it as UTF-8"),
    ],
)
def test_a_broken_csv_file_is_explained_in_one_line(tmp_path: Path, content: bytes, expected: str):
    (tmp_path / "some.csv").write_bytes(content)
    (problem,) = problems_of(lambda: read_csv(tmp_path / "some.csv"))
    assert f"{tmp_path / 'some.csv'} " in problem
    assert expected in problem


def test_a_header_with_a_semicolon_is_fine_when_it_is_the_text_column(tmp_path: Path):
    (tmp_path / "some.csv").write_text("text; raw\ngood\n")
    read = read_file(tmp_path / "some.csv", "text; raw").rows
    assert read[0] == {"text; raw": "good"}


def test_invalid_utf8_counts_the_further_lines(tmp_path: Path):
    (tmp_path / "some.txt").write_bytes(b"ok\n\xff\nok\n\xfe\n\xfd\n")
    (problem,) = problems_of(lambda: read_file(tmp_path / "some.txt"))
    assert "line 2: byte 0xff at offset 3" in problem
    assert "and 2 more lines" in problem


def test_json_lines_keep_line_numbers_over_blank_lines_and_fill_missing_keys(tmp_path: Path):
    path = tmp_path / "some.jsonl"
    path.write_bytes('{"text": "a", "label": 1}\r\n\r\n{"label": 0}\r\n{"text": "c é", "extra": [1]}'.encode())
    split = read_file(path, label="label", keeps_all=True)
    assert split.columns == ["text", "label", "extra"]
    assert list(split.rows) == [
        {"text": "a", "label": 1, "extra": None},
        {"text": None, "label": 0, "extra": None},
        {"text": "c é", "label": None, "extra": [1]},
    ]
    assert [split.origins.place(row) for row in range(3)] == [f"{path} line {n}" for n in (1, 3, 4)]


def test_every_broken_json_line_is_named(tmp_path: Path):
    path = tmp_path / "some.jsonl"
    path.write_text('{"text": "a"}\n{"text": "b"\n\n{"text": }\n')
    problems = problems_of(lambda: read_file(path))
    assert [problem.split(":")[0] for problem in problems] == [f"{path} line 2, column 13", f"{path} line 4, column 10"]


@pytest.mark.parametrize("content", ['[{"text": "a"}, {"text": "b"}]', '\n{"text": "a"}\n{"text": "b"}\n'])
def test_json_is_a_list_or_one_object_per_line(tmp_path: Path, content: str):
    (tmp_path / "some.json").write_text(content)
    split = read_file(tmp_path / "some.json")
    assert list(split.rows["text"]) == ["a", "b"]
    assert len(split.origins) == 2


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ('[{"text": "a"},\n {"text" "b"}]', "line 2, column 10: this is no JSON"),
        ("[]", "holds an empty list"),
        ('{\n "data": [{"text": "a"}]\n}', "is one JSON object; it must be a list of objects"),
        ('[{"text": "a"}, 3]', "some.json row 2 is 3"),
        ("\n \n", "is empty"),
    ],
)
def test_a_broken_json_file_is_explained(tmp_path: Path, content: str, expected: str):
    (tmp_path / "some.json").write_text(content)
    problems = problems_of(lambda: read_file(tmp_path / "some.json"))
    assert expected in problems[0]


def test_values_of_several_kinds_are_an_error_in_a_wanted_column_only(tmp_path: Path):
    path = tmp_path / "some.jsonl"
    path.write_text('{"text": "a", "label": 1, "note": 1}\n{"text": "b", "label": "one", "note": "x"}\n')
    (problem,) = problems_of(lambda: read_file(path, label="label"))
    assert "column 'label' has values of several kinds: int (1, " in problem
    assert "some.jsonl line 2)" in problem
    read = read_file(path, keeps_all=True).rows
    assert [json.loads(note) for note in read["note"]] == [1, "x"]


def test_half_a_surrogate_pair_is_named_with_its_line(tmp_path: Path):
    (tmp_path / "some.jsonl").write_text('{"text": "fine"}\n{"text": "\\ud83d"}\n')
    (problem,) = problems_of(lambda: read_file(tmp_path / "some.jsonl"))
    assert "some.jsonl line 2, column 'text'" in problem


@given(lines=st.lists(st.text(st.sampled_from("ab \té\u2028\x85\x0b\r"), max_size=6), min_size=1, max_size=12))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_text_lines_are_kept_as_they_are(tmp_path: Path, lines: list[str]):
    path = tmp_path / "some.txt"
    path.write_bytes("\n".join(lines).encode())
    # A carriage return before the line break belongs to it, and so does one at the end of the file.
    expected = [(line.removesuffix("\r"), number) for number, line in enumerate(lines, start=1) if line.strip()]
    if not expected:
        problems_of(lambda: read_file(path))
        return
    split = read_file(path)
    assert list(split.rows["text"]) == [text for text, _ in expected]
    assert [split.origins.place(row) for row in range(len(split.rows))] == [
        f"{path} line {number}" for _, number in expected
    ]


def test_carriage_returns_alone_end_lines_up_to_the_last(tmp_path):
    (tmp_path / "old.csv").write_bytes(b"text\ra\rw")
    rows = read_file(tmp_path / "old.csv").rows
    assert list(rows["text"]) == ["a", "w"]
