"""The rows of a stream are judged when they are read, and texts that are joined become the same chunks as elsewhere."""

import json
from pathlib import Path

import datasets
import pytest
from columns import make_columns
from streams import LABELS, make_stream, mark_behind

from trainer_loop import UserError
from trainer_loop.data.files import find_files, open_files, read_files
from trainer_loop.data.labels import LabelNames
from trainer_loop.data.processors import train_tokenizer
from trainer_loop.data.stream_rows import ChunkStream, RowStream
from trainer_loop.data.tokenise import Encoding, RowEncoder, tokenise_split
from trainer_loop.tasks.causal_lm import CausalLM
from trainer_loop.tasks.sequence_classification import SequenceClassification

TEXTS = [f"text number {n} " + "word " * (n % 7) for n in range(40)]


def open_stream(
    *files: str, label: str | None = "label", names: LabelNames | None = LABELS, pair: str | None = None
) -> RowStream:
    columns = ["text", *([label] if label else []), *([pair] if pair else [])]
    return RowStream(
        open_files(files, columns=columns).shards, seed=1, columns=make_columns("text", pair, label), label_names=names
    )


def read_all(stream, epoch: int = 0) -> list[tuple[dict, str]]:
    return [(row.values, row.place) for row in stream.read(epoch)]


def problem_of(stream) -> str:
    with pytest.raises(UserError) as caught:
        read_all(stream)
    (problem,) = caught.value.problems
    return problem


def test_rows_have_their_texts_and_class_ids(folder: Path):
    Path("a.jsonl").write_text('{"text": "x", "other": "y", "label": 1, "more": 2}\n')
    assert read_all(open_stream("a.jsonl", pair="other")) == [
        ({"text": "x", "text_pair": "y", "label": 1}, "a.jsonl line 1")
    ]
    assert read_all(open_stream("a.jsonl", label=None, names=None)) == [({"text": "x"}, "a.jsonl line 1")]


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"text": None, "label": 0}, "column 'text' is null in a.jsonl line 2; correct or remove the row"),
        ({"label": 0}, "column 'text' is null in a.jsonl line 2"),
        ({"text": " \t", "label": 0}, "column 'text' is empty in a.jsonl line 2"),
        ({"text": 5, "label": 0}, "column 'text' holds no text but 5 in a.jsonl line 2"),
        ({"text": "\ud800", "label": 0}, "column 'text' holds half of a surrogate pair, which is no character, in a.j"),
        ({"text": "b", "label": None}, "column 'label' is null in a.jsonl line 2; fill it in or remove the row"),
        (
            {"text": "b", "label": 2},
            "column 'label' has an unknown label in a.jsonl line 2 (2); labels may be 0, 1: correct it",
        ),
        ({"text": "b", "label": 1.5}, "unknown label in a.jsonl line 2 (1.5)"),
        ({"text": "b", "label": True}, "unknown label in a.jsonl line 2 (True)"),
        ({"text": "b", "label": [1]}, "unknown label in a.jsonl line 2 ([1])"),
    ],
)
def test_a_row_that_cannot_be_trained_on_is_told_with_its_place(folder: Path, row: dict, problem: str):
    Path("a.jsonl").write_text('{"text": "a", "label": 0}\n' + json.dumps(row) + "\n")
    told = problem_of(open_stream("a.jsonl"))
    assert told.startswith("data.train: column ")
    assert problem in told


def test_a_file_that_is_gone_is_told(folder: Path):
    for name in ("a.csv", "b.jsonl", "c.parquet"):
        Path("a.csv").write_text("text,label\na,1\n")
        Path("b.jsonl").write_text('{"text": "a", "label": 0}\n')
        datasets.Dataset.from_dict({"text": ["a"], "label": [1]}).to_parquet("c.parquet")
        stream = open_stream("a.csv", "b.jsonl", "c.parquet")
        Path(name).unlink()
        assert problem_of(stream).startswith(f"{name} cannot be read: ")


def test_a_near_miss_of_a_label_is_guessed(folder: Path):
    Path("a.csv").write_text("text,label\na,positiv\n")
    names = LabelNames(["negative", "positive"], {"negative": 0, "positive": 1})
    assert problem_of(open_stream("a.csv", names=names)).endswith("did you mean 'positive'?")


def test_a_text_without_a_label_may_be_blank_but_not_null(folder: Path):
    Path("a.jsonl").write_text('{"text": " "}\n{"text": null}\n')
    assert "null in a.jsonl line 2" in problem_of(open_stream("a.jsonl", label=None, names=None))


@pytest.mark.parametrize(
    ("names", "fields", "ids"),
    [
        ({0: 0, 1: 1}, ["0", "+1"], [0, 1]),
        ({False: 0, True: 1}, ["false", "TRUE"], [0, 1]),
        ({"0": 0, "1": 1}, ["0", "1"], [0, 1]),
        ({7: 0, -1: 1}, ["-1", "7"], [1, 0]),
    ],
)
def test_fields_of_csv_files_stand_for_what_the_classes_are(folder: Path, names: dict, fields: list, ids: list):
    Path("a.csv").write_text("text,label\n" + "".join(f"x,{field}\n" for field in fields))
    rows = read_all(open_stream("a.csv", names=LabelNames(["a", "b"], names)))
    assert [values["label"] for values, _ in rows] == ids


def test_rows_are_counted_where_no_file_tells_their_number(folder: Path):
    Path("a.jsonl").write_text('{"text": "a", "label": 0}\n\n{"text": "b", "label": 0}\n')
    Path("b.csv").write_text('text,label\n"a\nb",0\n')
    assert open_stream("a.jsonl", "b.csv").count_rows() == 3
    Path("b.csv").write_text("text,label\na,9\n")
    with pytest.raises(UserError, match=r"unknown label in b\.csv row 1"):
        open_stream("a.jsonl", "b.csv").count_rows()


def test_the_order_of_shards_is_another_one_in_every_epoch_and_with_every_seed():
    def order(epoch: int, seed: int = 1) -> list[str]:
        return list(dict.fromkeys(place.split()[0] for _, place in read_all(make_stream([2] * 8, seed=seed), epoch)))

    assert sorted(order(0)) == sorted(order(1)) == [f"shard{n}" for n in range(8)]
    assert order(0) != order(1)
    assert order(0) != order(0, seed=2)
    assert order(1) == order(1)


def bind(task):
    task.bind(train_tokenizer(TEXTS, framed=not isinstance(task, CausalLM), vocab_size=300, max_length=16))
    return task


def test_joined_texts_become_the_chunks_that_they_become_in_memory(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("trainer_loop.data.tokenise._TEXTS_PER_CALL", 7)
    task = bind(CausalLM())
    Path("a.txt").write_text("\n".join(TEXTS))
    whole = tokenise_split(
        read_files(find_files(["a.txt"], key="data.train"), split="train", columns=make_columns(label=None)),
        Encoding(task, task.tokenizer, make_columns("text", None, None), None, 16, folder / "cache"),
    )
    encode = RowEncoder(task, max_length=16)
    texts = open_stream("a.txt", label=None, names=None)
    assert encode.changes_number(next(iter(texts.read(0))))
    chunks = ChunkStream(texts, encode, num_texts=7)
    rows = read_all(chunks)
    assert [values["input_ids"] for values, _ in rows] == list(whole.rows["input_ids"])
    assert [place for _, place in rows] == [whole.origins.place(row) for row in range(len(rows))]

    for taken in range(len(rows) + 1):
        mark = mark_behind(chunks.read(0), taken)
        assert [(row.values, row.place) for row in chunks.read(0, mark)] == rows[taken:]


def test_a_text_becomes_what_it_becomes_in_memory(folder: Path):
    task = bind(SequenceClassification())
    Path("a.csv").write_text("text,label\n" + "".join(f"{text},{n % 2}\n" for n, text in enumerate(TEXTS)))
    whole = tokenise_split(
        read_files(["a.csv"], split="train", columns=make_columns()),
        Encoding(task, task.tokenizer, make_columns(), LABELS, 16, folder / "cache"),
    )
    encode = RowEncoder(task, max_length=16)
    rows = list(open_stream("a.csv").read(0))
    assert not encode.changes_number(rows[0])
    assert [row.values for row in encode(rows)] == list(whole.rows)
