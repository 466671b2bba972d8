"""How text files are written: delimiter, quoting and encoding, read as a whole and row by row."""

import csv
import json
import random
from collections.abc import Sequence
from pathlib import Path

import pytest
from columns import make_columns
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from streams import mark_in_shard

from trainer_loop import UserError
from trainer_loop.data.files import open_files, read_files
from trainer_loop.data.text_format import Lines, TextFormat, suggest_encoding

Rows = list[tuple[str | None, str | None]]
ENCODINGS = [
    *("utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-be", "windows-1252", "latin-1"),
    *("gb18030", "shift_jis", "big5", "euc_kr", "koi8-r", "cp037", "iso2022_jp", "utf-7"),
]
LETTERS = {
    "gb18030": "中文",
    "shift_jis": "日本",
    "big5": "中文",
    "euc_kr": "한국",
    "koi8-r": "жук",
    "iso2022_jp": "日本",
}


def read_whole(path: str, text_format: TextFormat) -> Rows:
    rows = read_files(
        [path], split="train", columns=make_columns(text_pair="other", label=None), text_format=text_format
    ).rows
    return list(zip(rows["text"], rows["other"], strict=True))


def open_stream(path: str, text_format: TextFormat):
    (shard,) = open_files([path], columns=["text", "other"], text_format=text_format).shards
    return shard


def read_stream(path: str, text_format: TextFormat) -> Rows:
    return [(values["text"], values["other"]) for values, *_ in open_stream(path, text_format).read(None)]


def problems_of(path: str, text_format: TextFormat) -> str:
    """The one problem that both readers tell."""
    told = []
    for read in (read_whole, read_stream):
        with pytest.raises(UserError) as caught:
            read(path, text_format)
        told.append(caught.value.problems[0])
        assert "\n" not in told[-1]
    assert told[0] == told[1]
    return told[0]


@pytest.mark.parametrize("kind", ["csv", "jsonl", "txt"])
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_files_of_any_encoding_are_read_and_gone_on_with_from_any_row(folder: Path, encoding: str, kind: str):
    letters = LETTERS.get(encoding, "é" if encoding not in ("cp037",) else "e")
    texts = [f"{letters} {number}" for number in range(7)]
    path = f"a.{kind}"
    if kind == "csv":
        content = "text,other\n" + "".join(f'"{text}\nmore",{number}\n' for number, text in enumerate(texts))
        wanted = [(f"{text}\nmore", str(number)) for number, text in enumerate(texts)]
    elif kind == "jsonl":
        content = "".join(json.dumps({"text": text, "other": text}, ensure_ascii=False) + "\n\n" for text in texts)
        wanted = [(text, text) for text in texts]
    else:
        content = "\n".join(texts)
        wanted = [(text, None) for text in texts]
    Path(path).write_bytes(content.encode(encoding))
    text_format = TextFormat(encoding=encoding)
    if kind == "txt":
        read = read_files([path], split="train", columns=make_columns(label=None), text_format=text_format)
        assert list(read.rows["text"]) == texts
    else:
        assert read_whole(path, text_format) == wanted
    shard = open_stream(path, text_format)
    for taken in range(len(texts) + 1):
        rest = shard.read(mark_in_shard(shard.read(None), taken))
        assert [(values["text"], values.get("other")) for values, *_ in rest] == wanted[taken:], taken


@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("encoding", [None, "utf-16"])
def test_lines_end_as_on_any_system(folder: Path, line_end: str, encoding: str | None):
    content = line_end.join(["text,other", '"a', 'b",1', "", "c,2"])
    Path("a.csv").write_bytes(content.encode(encoding or "utf-8"))
    wanted = [(f"a{line_end}b", "1"), ("c", "2")]
    text_format = TextFormat(encoding=encoding)
    assert read_whole("a.csv", text_format) == wanted
    assert read_stream("a.csv", text_format) == wanted
    shard = open_stream("a.csv", text_format)
    assert [values["text"] for values, *_ in shard.read(mark_in_shard(shard.read(None), 1))] == ["c"]


@pytest.mark.parametrize("delimiter", [";", "\t", "|", " ", "^", "§"])
@pytest.mark.parametrize("quoting", ["auto", "double", "none"])
def test_fields_are_kept_apart_by_any_character(folder: Path, delimiter: str, quoting: str):
    Path("a.csv").write_text(f"text{delimiter}other\na,b{delimiter}1\nc{delimiter}2\n")
    text_format = TextFormat(delimiter, quoting)
    assert read_whole("a.csv", text_format) == read_stream("a.csv", text_format) == [("a,b", "1"), ("c", "2")]


def test_quotes_may_be_ordinary_characters(folder: Path):
    rows = [('"Well, he said.', "0"), ("I do not know.", "1"), ('She left"', "2"), ('a "b" c', "0"), ('""', "1")]
    Path("a.tsv").write_text("text\tother\n" + "".join(f"{text}\t{label}\n" for text, label in rows))
    text_format = TextFormat(quoting="none")
    assert read_whole("a.tsv", text_format) == read_stream("a.tsv", text_format) == rows
    Path("b.tsv").write_text('text\tother\na\tb\t"c"\n')
    assert problems_of("b.tsv", text_format).endswith("with data.files.quoting=none no field may contain tabs")


@pytest.mark.parametrize(
    ("header", "delimiter"), [("text;other", "';'"), ("text|other", "'|'"), ("text\tother", "tab"), ("a;b;c", "';'")]
)
def test_a_header_of_another_delimiter_says_which(folder: Path, header: str, delimiter: str):
    Path("a.csv").write_text(f"{header}\n{header}\n")
    assert f"; set data.files.delimiter={delimiter} (" in problems_of("a.csv", TextFormat())


@pytest.mark.parametrize(
    ("text", "encoding", "suggested"),
    [
        ("Grüße aus Köln", "windows-1252", "windows-1252"),
        ("“typographic” quotes and €", "windows-1252", "windows-1252"),
        ("这是一个很好的产品", "gb18030", "gb18030"),
        ("é" * 3, "utf-16", "utf-16"),
        ("é text of some length", "utf-16-le", "utf-16-le"),
        ("é text of some length", "utf-16-be", "utf-16-be"),
        ("plain", "utf-32", "utf-32"),
    ],
)
def test_bytes_that_are_not_utf_8_suggest_an_encoding_that_reads_them(
    folder: Path, text: str, encoding: str, suggested: str
):
    Path("a.csv").write_bytes(f"text,other\n{text},1\n".encode(encoding))
    told = problems_of("a.csv", TextFormat())
    assert f"set data.files.encoding={suggested}" in told
    read = read_whole("a.csv", TextFormat(encoding=suggested))
    assert read == [(text, "1")]


def test_one_bad_byte_in_a_file_of_utf_8_suggests_no_other_encoding(folder: Path):
    Path("a.csv").write_bytes("text,other\nGrüße,1\nKöln,2\n".encode() + b"M\xfcnchen,3\n")
    told = problems_of("a.csv", TextFormat())
    assert told == (
        "a.csv line 4: byte 0xfc at offset 30 of the file is not UTF-8, as other characters of the file are; correct "
        "the line"
    )


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32", "ascii"])
def test_a_file_that_has_not_the_encoding_that_was_named_is_told(folder: Path, encoding: str):
    Path("a.csv").write_bytes("text,other\nGrüße,1\n".encode())
    with pytest.raises(UserError) as caught:
        read_whole("a.csv", TextFormat(encoding=encoding))
    (problem,) = caught.value.problems
    assert problem.endswith("set data.files.encoding=null, for it seems to be UTF-8") or "no column 'text'" in problem


@pytest.mark.parametrize("sample", [b"", b"plain", "é".encode(), b"\xff\xff", b"\x81\x8d", bytes(range(256))])
def test_some_encoding_is_suggested_for_any_bytes(sample: bytes):
    encoding = suggest_encoding(sample)
    assert "a".encode(encoding).decode(encoding) == "a"


# ------------------------------------------------------------------------------------------ quotes that join records


def raw_table(kind: str, rows: Sequence[Sequence[str]], header: Sequence[str]) -> str:
    delimiter = "," if kind == "csv" else "\t"
    path = f"a.{kind}"
    Path(path).write_text("".join(delimiter.join(row) + "\n" for row in [header, *rows]))
    return path


JOINED = ['"Well he said.', "I do not know.", 'She left"']


@pytest.mark.parametrize("kind", ["csv", "tsv"])
@pytest.mark.parametrize("labels", [["0", "1", "2"], ["pos", "neg", "pos"], ["4.5", "0.25", "1"]])
@pytest.mark.parametrize("text_first", [True, False])
@pytest.mark.parametrize("before", [3, 40])
def test_quotes_that_join_rows_are_refused(folder: Path, kind: str, labels: list[str], text_first: bool, before: int):
    ordinary = [(f"a few words {number}", labels[number % 3]) for number in range(before)]
    rows = [*ordinary, *zip(JOINED, labels, strict=True), *ordinary]
    path = raw_table(
        kind,
        rows if text_first else [row[::-1] for row in rows],
        ("text", "other") if text_first else ("other", "text"),
    )
    if text_first:
        first = before + 2
        assert problems_of(path, TextFormat()) == (
            f"{path} row {before + 1}: quotes join lines {first} to {first + 2} into one row, and each of them looks "
            "like a row of its own: set data.files.quoting=none where quotes are ordinary characters, or "
            "data.files.quoting=double where they are not"
        )
        assert len(read_whole(path, TextFormat(quoting="double"))) == 2 * before + 1
    else:  # the quote that closes stands in the last column of another line: it is at the end of that field
        assert "data.files.quoting=none" in problems_of(path, TextFormat())
    assert len(read_whole(path, TextFormat(quoting="none"))) == 2 * before + 3


def test_of_texts_alone_tabs_tell(folder: Path):
    pairs = [("one thing here", "eine Sache hier"), ('"said he', "sagte er"), ('she left"', "sie ging"), ("a b", "c d")]
    path = raw_table("tsv", pairs, ("text", "other"))
    assert "quotes join lines 3 to 4 into one row" in problems_of(path, TextFormat())


def test_quotes_that_break_suggest_that_they_are_ordinary(folder: Path):
    Path("a.tsv").write_text('text\tother\n"Well", he said.\t0\nyes\t1\n')
    assert problems_of("a.tsv", TextFormat()).endswith(
        "; or, as quotes seem to be ordinary characters in this file, set data.files.quoting=none"
    )
    Path("a.tsv").write_text('text\tother\n"Well, he said.\t0\nyes"\t1\t2\n')
    assert "quoting=none" not in problems_of("a.tsv", TextFormat())


WORDS = st.sampled_from(
    ["good", "bad film", "a, b", 'the "end"', "line\nbreak", "tab\there", "x", "Dear John,\nyes, no"]
)


@given(
    rows=st.lists(st.tuples(st.lists(WORDS, min_size=1, max_size=4).map(" ".join), st.sampled_from("012")), min_size=8),
    kind=st.sampled_from(["csv", "tsv"]),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
def test_files_that_are_quoted_well_are_read_whatever_their_texts_are(
    tmp_path: Path, rows: list[tuple[str, str]], kind: str
):
    path = str(tmp_path / f"a.{kind}")
    with Path(path).open("w", newline="") as file:
        writer = csv.writer(file, delimiter="," if kind == "csv" else "\t", lineterminator="\n")
        writer.writerows([("text", "other"), *rows])
    assert read_whole(path, TextFormat()) == read_stream(path, TextFormat()) == rows


def test_looking_for_joined_rows_reads_the_file_a_few_times_at_most(folder: Path, monkeypatch: pytest.MonkeyPatch):
    """Every text has two lines with as many commas as a row."""
    drawn = random.Random(0)
    rows = [(f"one, {drawn.random()}\ntwo", str(number % 3)) for number in range(2000)]
    with Path("a.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("text", "other"), *rows])
    opened = []
    iterate = Lines.__iter__

    def count(self):
        opened.append(self)
        return iterate(self)

    monkeypatch.setattr(Lines, "__iter__", count)
    assert read_whole("a.csv", TextFormat()) == rows
    assert len(opened) < 8
