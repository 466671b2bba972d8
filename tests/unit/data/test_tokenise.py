import importlib
import os
import sys
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from columns import make_columns

from trainer_loop import UserError
from trainer_loop.data import tokenise as module
from trainer_loop.data.labels import LabelNames
from trainer_loop.data.origins import Origins
from trainer_loop.data.processors import train_tokenizer
from trainer_loop.data.split import Split, TokenisedSplit
from trainer_loop.data.tokenise import Encoding, tokenise_split
from trainer_loop.tasks.sequence_classification import SequenceClassification
from trainer_loop.tasks.task import Rows

TEXTS = ["good", "a bad and long text", "good enough", "bad"]
NAMES = LabelNames(["neg", "pos"], {"neg": 0, "pos": 1})


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return train_tokenizer(TEXTS * 5, framed=True, vocab_size=280, max_length=512)


class CountingTask(SequenceClassification):
    """Encodes as every task on texts does, and counts how many texts it was given."""

    def __init__(self, tokenizer: Any, **settings: Any) -> None:
        super().__init__()
        self.bind(tokenizer)
        self.given = settings
        self.num_texts = 0

    def settings(self) -> dict[str, Any]:
        return self.given

    def encode(self, rows: Rows, *, max_length: int) -> dict[str, list[Any]]:
        self.num_texts += len(rows["text"])
        return super().encode(rows, max_length=max_length)


class WordsTask(CountingTask):
    """One row per word: another number of rows than of texts."""

    def encode(self, rows: Rows, *, max_length: int) -> dict[str, list[Any]]:
        self.num_texts += len(rows["text"])
        words = [(word, source) for source, text in enumerate(rows["text"]) for word in text.split()]
        return {"input_ids": [[len(word)] for word, _ in words], "source": [source for _, source in words]}


class ForgetfulTask(WordsTask):
    """Does not say which text a row is from."""

    def encode(self, rows: Rows, *, max_length: int) -> dict[str, list[Any]]:
        return {"input_ids": super().encode(rows, max_length=max_length)["input_ids"]}


def make_split(texts: list[str] = TEXTS, fingerprint: str = "abc", **columns: list[Any]) -> Split:
    rows = datasets.Dataset.from_dict({"text": texts, "label": ["pos", "neg"] * (len(texts) // 2), **columns})
    return Split("train", rows, Origins.of("a.csv row", len(rows)), fingerprint)


def tokenise(task: CountingTask, folder: Path, split: Split | None = None, **given: Any) -> TokenisedSplit:
    arguments: dict[str, Any] = {
        "task": task, "tokenizer": task.tokenizer, "columns": make_columns(),
        "label_names": NAMES, "max_length": 6, "cache_dir": folder, "show_progress": False, "say": lambda line: None,
    }  # fmt: skip
    return tokenise_split(split or make_split(), Encoding(**{**arguments, **given}))


def test_rows_are_what_the_tokenizer_gives_and_labels_are_ids(tokenizer: Any, tmp_path: Path):
    split = tokenise(CountingTask(tokenizer), tmp_path)
    expected = [tokenizer(text, truncation=True, max_length=6) for text in TEXTS]
    assert list(split.rows["input_ids"]) == [row["input_ids"] for row in expected]
    assert list(split.rows["token_type_ids"]) == [row["token_type_ids"] for row in expected]
    assert list(split.rows["label"]) == [1, 0, 1, 0]
    assert set(split.rows.column_names) == {"input_ids", "token_type_ids", "label"}
    assert split.lengths.tolist() == [len(row["input_ids"]) for row in expected]
    assert split.lengths.dtype == np.int32
    assert isinstance(split.lengths.base, np.memmap)
    assert split.num_truncated == sum(len(tokenizer(text)["input_ids"]) > 6 for text in TEXTS) > 0
    assert split.origins.place(2) == "a.csv row 3"


def test_pairs_are_joined(tokenizer: Any, tmp_path: Path):
    split = tokenise(
        CountingTask(tokenizer),
        tmp_path,
        make_split(other=TEXTS[::-1]),
        columns=make_columns(text_pair="other"),
        max_length=30,
    )
    assert split.rows[1]["input_ids"] == tokenizer(TEXTS[1], TEXTS[2])["input_ids"]
    assert split.rows[1]["token_type_ids"][-1] == 1


def test_ids_replace_classes_whose_order_the_names_change(tokenizer: Any, tmp_path: Path):
    rows = make_split().rows.cast_column("label", datasets.ClassLabel(names=["neg", "pos"]))
    swapped = LabelNames(["pos", "neg"], {0: 1, 1: 0})
    given = Split("train", rows, Origins.of("a row", 4), "classes")
    split = tokenise(CountingTask(tokenizer), tmp_path, given, label_names=swapped)
    assert list(split.rows["label"]) == [0, 1, 0, 1]
    assert split.rows.features["label"] == datasets.Value("int64")


def test_true_and_false_become_ids(tokenizer: Any, tmp_path: Path):
    given = Split(
        "train", datasets.Dataset.from_dict({"text": ["a", "b"], "label": [True, False]}), Origins.of("a", 2), "b"
    )
    split = tokenise(
        CountingTask(tokenizer), tmp_path, given, label_names=LabelNames(["no", "yes"], {False: 0, True: 1})
    )
    assert list(split.rows["label"]) == [1, 0]
    assert split.rows.features["label"] == datasets.Value("int64")


def test_the_second_call_tokenises_nothing(tokenizer: Any, tmp_path: Path):
    task = CountingTask(tokenizer)
    first, second = tokenise(task, tmp_path), tokenise(task, tmp_path)
    assert task.num_texts == len(TEXTS)
    assert list(first.rows) == list(second.rows)
    assert first.lengths.tolist() == second.lengths.tolist()
    assert (first.num_truncated, first.origins.place(3)) == (second.num_truncated, second.origins.place(3))


def test_a_tokenizer_that_was_used_in_between_is_still_the_same(tokenizer: Any, tmp_path: Path):
    task = CountingTask(tokenizer)
    tokenise(task, tmp_path)
    tokenizer(TEXTS, padding="max_length", truncation=True, max_length=11)
    tokenise(task, tmp_path)
    assert task.num_texts == len(TEXTS)


def test_whatever_decides_about_the_tokens_is_part_of_the_key(tokenizer: Any, tmp_path: Path):
    retrained = train_tokenizer(TEXTS, framed=True, vocab_size=262, max_length=512)
    task = CountingTask(tokenizer)
    variants = [
        (task, {}),
        (task, {"max_length": 5}),
        (task, {"split": make_split(fingerprint="other")}),
        (task, {"label_names": LabelNames(["pos", "neg"], {"pos": 0, "neg": 1})}),
        (task, {"columns": make_columns(label=None), "label_names": None}),
        (CountingTask(tokenizer, end=True), {}),
        (CountingTask(tokenizer, end=False), {}),
        (CountingTask(retrained), {}),
        (WordsTask(tokenizer), {}),
    ]
    for count, (variant, given) in enumerate(variants, start=1):
        variant.num_texts = 0
        tokenise(variant, tmp_path, **given)
        assert variant.num_texts == len(TEXTS), f"variant {count} was taken for another"
    assert len([entry for entry in tmp_path.iterdir() if entry.is_dir()]) == len(variants)


def test_a_task_whose_code_was_edited_tokenises_anew(tokenizer: Any, folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    code = """
from trainer_loop.tasks.sequence_classification import SequenceClassification

class Edited(SequenceClassification):
    def encode(self, rows, *, max_length):
        return {"input_ids": [[%d]] * len(rows["text"])}
"""
    seen = []
    for number in (1, 2):
        Path("edited_task.py").write_text(code % number)
        sys.modules.pop("edited_task", None)
        task = importlib.import_module("edited_task").Edited()
        task.bind(tokenizer)
        seen.append(tokenise(task, folder / "cache").rows[0]["input_ids"])
    assert seen == [[1], [2]]


def test_columns_may_have_the_names_of_ours(tokenizer: Any, tmp_path: Path):
    rows = make_split().rows.rename_columns({"text": "source", "label": "length"})
    given = Split("train", rows, Origins.of("a row", 4), "renamed")
    split = tokenise(CountingTask(tokenizer), tmp_path, given, columns=make_columns("source", None, "length"))
    assert set(split.rows.column_names) == {"input_ids", "token_type_ids", "label"}
    assert list(split.rows["label"]) == [1, 0, 1, 0]


def test_rows_of_a_task_that_cuts_texts_keep_label_and_place(tokenizer: Any, tmp_path: Path, monkeypatch: Any):
    monkeypatch.setattr(module, "_TEXTS_PER_CALL", 2)  # so that positions count over several calls
    split = tokenise(WordsTask(tokenizer), tmp_path)
    words = [(word, row) for row, text in enumerate(TEXTS) for word in text.split()]
    assert [ids for (ids,) in split.rows["input_ids"]] == [len(word) for word, _ in words]
    assert list(split.rows["label"]) == [1 - row % 2 for _, row in words]
    assert [split.origins.place(n) for n in range(len(words))] == [f"a.csv row {row + 1}" for _, row in words]
    assert split.num_truncated == 0


def test_texts_without_tokens_give_no_rows_but_not_all_may_be_so(tokenizer: Any, tmp_path: Path):
    blank = [""] * 1000
    split = make_split([*blank, "one word", ""])
    assert [tokenise(WordsTask(tokenizer), tmp_path, split).origins.place(n) for n in (0, 1)] == ["a.csv row 1001"] * 2
    with pytest.raises(UserError, match=r"data\.train: its texts have no tokens"):
        tokenise(WordsTask(tokenizer), tmp_path, make_split(["", ""], fingerprint="blank"))


def test_a_task_that_forgets_where_its_rows_are_from_is_told(tokenizer: Any, tmp_path: Path):
    with pytest.raises(UserError, match="task ForgetfulTask: encode gave 9 rows for 4; it must name"):
        tokenise(ForgetfulTask(tokenizer), tmp_path)


def test_a_damaged_cache_is_made_again(tokenizer: Any, tmp_path: Path):
    task = CountingTask(tokenizer)
    whole = list(tokenise(task, tmp_path).rows)
    (kept,) = tmp_path.glob("*/rows.arrow")
    kept.write_bytes(kept.read_bytes()[:100])
    assert list(tokenise(task, tmp_path).rows) == whole
    assert task.num_texts == 2 * len(TEXTS)


@pytest.mark.parametrize("error", [FileNotFoundError(2, "not there", "lexicon.txt"), NotImplementedError("not yet")])
def test_errors_of_the_task_are_not_blamed_on_the_cache(tokenizer: Any, tmp_path: Path, error: Exception):
    class Task(CountingTask):
        def encode(self, rows: Rows, *, max_length: int) -> dict[str, list[Any]]:
            raise error

    error.__cause__ = cause = ValueError("why")
    with pytest.raises(type(error)) as caught:
        tokenise(Task(tokenizer), tmp_path)
    assert caught.value is error
    assert error.__cause__ is cause


def test_a_cache_that_cannot_be_written_names_the_key(tokenizer: Any, tmp_path: Path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match=r"data\.cache_dir=.*file cannot be used: .*; name another"):
        tokenise(CountingTask(tokenizer), tmp_path / "file")


def test_without_a_terminal_the_start_and_the_end_are_one_line_each(
    tokenizer: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    lines: list[str] = []
    for _ in range(2):
        tokenise(CountingTask(tokenizer), tmp_path, say=lines.append)
    assert lines[0] == "train: tokenising 4 texts"
    assert lines[1].startswith("train: 4 rows tokenised in ")
    assert len(lines) == 2
    assert capfd.readouterr().err == ""


def test_on_a_terminal_a_bar_is_shown(tokenizer: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    tokenise(CountingTask(tokenizer), tmp_path, show_progress=True, say=lambda line: pytest.fail(line))
    assert "tokenise train" in capfd.readouterr().err


@pytest.mark.parametrize(("of_user", "inside", "after"), [(None, "true", "false"), ("false", "false", "false")])
def test_threads_of_the_tokenizer_are_only_used_here(
    tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, of_user: str | None, inside: str, after: str
):
    monkeypatch.setattr(module, "_PARALLELISM_OF_USER", of_user)
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "put back after the test")
    seen: list[str] = []

    class WatchingTask(CountingTask):
        def encode(self, rows: Rows, *, max_length: int) -> dict[str, list[Any]]:
            seen.append(os.environ["TOKENIZERS_PARALLELISM"])
            return super().encode(rows, max_length=max_length)

    tokenise(WatchingTask(tokenizer), tmp_path)
    assert seen == [inside]
    assert os.environ["TOKENIZERS_PARALLELISM"] == after


def test_the_cache_folder_may_be_left_to_the_environment(
    tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("TRAINER_LOOP_CACHE", str(tmp_path / "from_environment"))
    tokenise(CountingTask(tokenizer), tmp_path, cache_dir=None)
    assert list((tmp_path / "from_environment").glob("*/rows.arrow"))
