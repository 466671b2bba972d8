import textwrap
from pathlib import Path
from typing import Any

import datasets
import pytest
from columns import make_columns

from trainer_loop.data.read_splits import read_splits
from trainer_loop.data.section import DataSection
from trainer_loop.data.split import Split

ROWS = "from datasets import Dataset, DatasetDict\n"


def load(**given: Any) -> tuple[dict[str, Split], list[str]]:
    section = DataSection(**({"train": None, "columns": make_columns(), "seed": 42} | given))
    splits, _, problems = read_splits(section)
    return splits, problems


def write_csv(path: str, num_rows: int) -> None:
    Path(path).write_text("text,label\n" + "".join(f"text {n},{n % 2}\n" for n in range(num_rows)))


@pytest.fixture
def lab(folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a fresh module in the current folder."""
    monkeypatch.syspath_prepend(str(folder))
    Path("row_lab.py").write_text(
        textwrap.dedent("""
        from datasets import Dataset, DatasetDict
        def as_dataset(): return Dataset.from_dict({"text": ["a", "b", "c"], "label": [0, 1, 0]}).select([2, 0])
        def as_list(): return [{"text": "a", "label": 0}, {"text": "b"}]
        def as_generator(seed, shout=False):
            yield {"text": f"seed {seed}", "label": 1}
        def needs_path(path): return []
        def empty(): return []
        def mixed(): return [{"text": "a", "label": 0}, {"text": "b", "label": "x"}]
        def numbers(): return 3
        def texts(): return ["a", "b"]
        def several(): return DatasetDict({"train": as_dataset()})
        no_function = 5
        """)
    )
    return "row_lab"


def test_files_and_limits_and_a_validation_part(folder: Path):
    write_csv("train.csv", 40)
    write_csv("test.csv", 9)
    splits, problems = load(
        train="train.csv",
        test=["test.csv"],
        validation_fraction=0.25,
        limit={"train": 10, "validation": 4, "test": None},
    )
    assert problems == []
    assert {name: len(split.rows) for name, split in splits.items()} == {"train": 10, "validation": 4, "test": 9}
    whole, _ = load(train="train.csv", validation_fraction=0.25)
    assert set(splits["validation"].rows["text"]) < set(whole["validation"].rows["text"])
    text = splits["train"].rows["text"][3]
    assert splits["train"].origins.place(3) == f"train.csv row {int(text.split()[1]) + 1}"


def test_functions_of_all_kinds_give_rows(lab: str):
    splits, problems = load(train=f"{lab}.as_dataset", validation=f"{lab}.as_list", test=f"{lab}.as_generator")
    assert problems == []
    assert list(splits["train"].rows["text"]) == ["c", "a"]
    assert list(splits["validation"].rows) == [{"text": "a", "label": 0}, {"text": "b", "label": None}]
    assert splits["test"].rows[0]["text"] == "seed 42"
    assert splits["train"].origins.place(1) == f"{lab}.as_dataset row 2"


def test_the_fingerprint_of_a_function_follows_what_it_returns(lab: str):
    def fingerprint(seed: int, name: str = "as_generator") -> str:
        return load(train=f"{lab}.{name}", seed=seed)[0]["train"].fingerprint

    assert fingerprint(1) == fingerprint(1) != fingerprint(2)
    assert fingerprint(1, "as_dataset") == fingerprint(2, "as_dataset")


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        ("needs_path", "needs path; it may have no required parameter but seed"),
        ("empty", "returned no rows"),
        (
            "mixed",
            "column 'label' has values of several kinds: int (0, {lab}.mixed row 1), str ('x', {lab}.mixed row 2)",
        ),
        ("numbers", "returned a int; it must return a datasets.Dataset or an iterable of dicts"),
        ("several", "returned a DatasetDict"),
        ("texts", "every row must be an object of named values: {lab}.texts row 1 is 'a'"),
        ("no_function", "is no function but a int"),
        ("as_lst", "as_list"),
    ],
)
def test_a_function_that_gives_no_rows_is_told(lab: str, function: str, expected: str):
    splits, (problem,) = load(train=f"{lab}.{function}")
    assert splits == {}
    assert problem.startswith(f"data.train={lab}.{function}") or problem.startswith("data.train")
    assert expected.format(lab=lab) in problem


def test_an_error_inside_a_users_function_is_not_hidden(lab: str):
    Path(f"{lab}.py").write_text("def broken():\n    return [1 / 0]\n")
    with pytest.raises(ZeroDivisionError):
        load(train=f"{lab}.broken")


def test_the_problems_of_all_splits_come_with_the_splits_that_can_be_read(folder: Path):
    write_csv("good.csv", 3)
    Path("broken.csv").write_text('text,label\n"a,1\n')
    splits, problems = load(train="broken.csv", validation="good.csv", test="absent.csv", validation_fraction=1.5)
    assert list(splits) == ["validation"]
    assert [problem.split(":")[0].split("=")[0] for problem in problems] == [
        "data.validation and data.validation_fraction are both given; set one to null",
        "data.validation_fraction",
        "broken.csv row 1, which begins on line 2",
        "data.test",
    ]


@pytest.mark.parametrize("spec", [[], [3], 3, "", {"a": "b"}, ["a.csv", None]])
def test_a_spec_of_another_type_is_told(folder: Path, spec: object):
    _, problems = load(train=spec)
    assert problems
    assert problems[0].startswith("data.train")


def test_a_split_name_without_a_data_set_is_told():
    _, (problem,) = load(train="train")
    assert problem.startswith("data.train=train: neither a file (.csv, ")
    assert "give data.name too" in problem


def test_train_is_needed():
    assert load()[1] == ["data.train=null: a split, a file or a dotted path is needed"]


def test_one_row_cannot_be_divided(folder: Path):
    write_csv("train.csv", 1)
    splits, problems = load(train="train.csv", validation_fraction=0.5)
    assert problems == ["data.validation_fraction: data.train has 1 row, which cannot be divided"]
    assert list(splits) == ["train"]


def test_text_columns_stay_texts_and_labels_have_their_type(folder: Path):
    Path("train.csv").write_text("text,label,other\n1,2,3\n")
    assert load(train="train.csv")[0]["train"].rows[0] == {"text": "1", "label": 2}
    texts = load(train="train.csv", columns=make_columns(text_pair="label", label=None))[0]
    assert texts["train"].rows[0] == {"text": "1", "label": "2"}
    assert load(train="train.csv")[0]["train"].columns == ["text", "label", "other"]


def test_progress_bars_of_datasets_are_as_before_afterwards(folder: Path, capfd: pytest.CaptureFixture[str]):
    datasets.Dataset.from_dict({"text": ["a"], "label": [1]}).to_parquet("train.parquet")
    capfd.readouterr()
    assert load(train="train.parquet")[1] == []
    assert capfd.readouterr().err == ""
    assert not datasets.utils.are_progress_bars_disabled()
