import dataclasses
import time
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pytest
from columns import make_columns

from trainer_loop import Column, UserError
from trainer_loop.data.checks import check_splits
from trainer_loop.data.columns import bind_columns
from trainer_loop.data.labels import LabelNames
from trainer_loop.data.origins import Origins
from trainer_loop.data.split import Split
from trainer_loop.tasks.token_classification import TokenClassification


def make_split(name: str, label_feature: Any = None, **columns: list[Any]) -> Split:
    rows = datasets.Dataset(pa.table({column: pa.array(values) for column, values in columns.items()}))
    if label_feature is not None:
        rows = rows.cast_column("label", label_feature)
    return Split(name, rows, Origins.of(f"{name}.csv row", len(rows)), "abc")


def check(*splits: Split, **given: Any) -> tuple[list[str], list[str], LabelNames | None]:
    names = {name: given.pop(name) for name in ("text", "text_pair", "label") if name in given}
    arguments = {"columns": make_columns(**names), "label_names": None, **given}
    return check_splits({split.name: split for split in splits}, **arguments)


LETTERS = {"text": list("abcdefg"), "label": list("abcdefg")}
GOOD = {"text": ["good", "bad", "fine"], "label": ["pos", "neg", "pos"]}


def test_good_splits_have_no_problems():
    names = LabelNames(["neg", "pos"], {"neg": 0, "pos": 1})
    assert check(make_split("train", **GOOD), make_split("validation", **GOOD)) == ([], [], names)


def test_missing_columns_are_told_with_what_is_there():
    problems, _, names = check(make_split("train", review=["a"], labels=[1]), text="revew", text_pair="second")
    assert problems == [
        "data.columns.text=revew: data.train has no such column; it has review, labels; did you mean 'review'?",
        "data.columns.text_pair=second: data.train has no such column; it has review, labels",
        "data.columns.label=label: data.train has no such column; it has review, labels; did you mean 'labels'?",
    ]
    assert names is None


def test_rows_without_text_are_named_five_at_most():
    texts = ["fine", None, "", " \n\t", *[None] * 6, "fine"]
    problems, _, _ = check(make_split("train", text=texts, label=[0, 1] * 5 + [1]))
    assert problems == [
        "data.train: column 'text' is null in 7 rows: train.csv row 2, train.csv row 5, train.csv row 6, "
        "train.csv row 7, train.csv row 8 and 2 more; fill it in or remove the row, or set data.missing=drop (or "
        "empty)",
        "data.train: column 'text' is empty in 2 rows: train.csv row 3, train.csv row 4; fill it in or remove the row, "
        "or set data.missing=drop (or empty)",
    ]


def test_second_texts_are_checked_too():
    problems, _, _ = check(make_split("train", **GOOD, other=["a", "b", None]), text_pair="other")
    assert problems == [
        "data.train: column 'other' is null in 1 row: train.csv row 3; fill it in or remove the row, or set "
        "data.missing=drop (or empty)"
    ]


def test_a_column_of_nulls_only_is_no_column_of_another_type():
    problems, _, _ = check(make_split("train", text=[None, None], label=[None, None]))
    assert [problem.split(";")[0] for problem in problems] == [
        "data.train: column 'text' is null in 2 rows: train.csv row 1, train.csv row 2",
        "data.train: column 'label' is null in 2 rows: train.csv row 1, train.csv row 2",
    ]


@pytest.mark.parametrize(("values", "kind"), [([1, 2], "int64"), ([["a"], ["b"]], "List"), ([{"a": 1}] * 2, "dict")])
def test_text_must_be_texts(values: list[Any], kind: str):
    problems, _, _ = check(make_split("train", text=values, label=[0, 1]))
    assert problems[0].startswith(f"data.train: column 'text' holds no texts but values of type {kind}, such as ")
    assert "(train.csv row 1)" in problems[0]


def test_running_text_may_have_blank_lines_but_must_have_text():
    assert check(make_split("train", text=["", "a", " "]), label=None) == ([], [], None)
    problems, _, _ = check(make_split("train", text=["", None]), make_split("validation", text=["", " "]), label=None)
    assert problems == [
        "data.train: column 'text' is null in 1 row: train.csv row 2; fill it in or remove the row, or set "
        "data.missing=drop (or empty)",
        "data.train: column 'text' holds empty texts only",
        "data.validation: column 'text' holds empty texts only",
    ]


def test_labels_unseen_in_train_are_told_with_rows_and_values():
    problems, _, names = check(
        make_split("train", **GOOD), make_split("validation", text=["a", "b", "c"], label=["pos", "postive", "neutral"])
    )
    assert problems == [
        "data.validation: column 'label' has an unknown label in 2 rows: validation.csv row 2 ('postive'), "
        "validation.csv row 3 ('neutral'); labels in data.train are 'neg', 'pos': correct them or "
        "remove the rows; did you mean 'pos'?"
    ]
    assert names is not None


@pytest.mark.parametrize("labels", [["neg", "pos", "rare"], [3, 5, 9]])
def test_labels_that_train_lost_are_told_apart_from_those_that_it_never_had(labels: list[Any]):
    train = make_split("train", text=["a", "b", "c"], label=labels).select(np.array([0, 1]))
    other = make_split("test", text=["a", "b"], label=[labels[2], type(labels[0])(77)])
    problems, _, _ = check(train, other, cuts=["data.limit.train=2"])
    unknown, lost = problems
    assert f"has an unknown label in 1 row: test.csv row 2 ({other.rows[1]['label']!r})" in unknown
    assert lost == (
        f"data.test: column 'label' has a label without a training row in 1 row: test.csv row 1 ({labels[2]!r}); "
        "data.train had some, and data.limit.train=2 moved or left out all of them: change this or the seed, or name "
        "all classes in data.label_names"
    )


def test_hidden_labels_are_not_told_as_lost():
    feature = datasets.ClassLabel(names=["neg", "pos"])
    train = make_split("train", feature, text=["a", "b", "c"], label=[0, 1, -1]).select(np.array([0, 1]))
    (problem,), _, _ = check(train, make_split("test", feature, text=["a"], label=[-1]), cuts=["data.missing=drop"])
    assert "stands for a label that is kept secret" in problem


def test_tags_that_train_lost_are_told_too():
    columns = bind_columns(TokenClassification.columns, {}, task="token_classification")
    train = make_split("train", words=[["a", "b"], ["c"]], tags=[["O", "B-X"], ["O"]]).select(np.array([1]))
    other = make_split("validation", words=[["a"]], tags=[["B-X"]])
    (problem,), _, _ = check(train, other, columns=columns, cuts=["data.limit.train=1"])
    assert "column 'tags' has a label without a training row in 1 row: validation.csv row 1 ('B-X')" in problem


def test_labels_outside_the_names_are_told_in_every_split():
    splits = make_split("train", **GOOD), make_split("validation", **GOOD)
    problems, _, _ = check(*splits, label_names=["neg", "neutral"])
    assert [problem.split(" in ")[0] for problem in problems] == [
        "data.train: column 'label' has an unknown label",
        "data.validation: column 'label' has an unknown label",
    ]
    assert "labels may be 'neg', 'neutral'" in problems[0]


def test_integers_that_do_not_count_from_zero_are_pointed_to_a_map():
    problems, _, _ = check(make_split("train", text=["a", "b"], label=[1, 2]), label_names=["one", "two"])
    assert "train.csv row 2 (2)" in problems[0]
    assert "a list names the values from 0 on; for others write a map" in problems[0]


def test_secret_labels_of_a_hub_test_split_are_explained():
    feature = datasets.ClassLabel(names=["neg", "pos"])
    train = make_split("train", feature, text=["a", "b"], label=[0, 1])
    problems, _, names = check(train, make_split("test", feature, text=["a", "b"], label=[-1, -1]))
    assert "-1 stands for a label that is kept secret: set data.test=null" in problems[0]
    assert names == LabelNames(["neg", "pos"], {0: 0, 1: 1})


def test_decimal_labels_say_what_to_do():
    problems, _, names = check(make_split("train", text=["a", "b"], label=[None, 4.5]))
    assert problems == [
        "data.train: column 'label' is null in 1 row: train.csv row 1; fill it in or remove the row, or set "
        "data.missing=drop",
        "data.train: column 'label' holds decimal numbers, such as 4.5 (train.csv row 2); classification needs "
        "integers, texts or true/false: make classes of them (1, not 1.0), or set task.name=sequence_regression, which "
        "learns numbers",
    ]
    assert names is None


def test_decimal_labels_may_all_be_null():
    split = make_split("train", datasets.Value("float32"), text=["a"], label=[None])
    assert [problem.split(", ")[0] for problem in check(split)[0]] == [
        "data.train: column 'label' is null in 1 row: train.csv row 1; fill it in or remove the row",
        "data.train: column 'label' holds decimal numbers",
    ]


def test_labels_of_other_types_are_refused():
    problems, _, _ = check(make_split("train", text=["a"], label=[[1, 2]]))
    assert problems == [
        "data.train: column 'label' holds values of type List; it must be one integer, text or true/false per row"
    ]


def test_labels_must_be_of_one_kind_in_all_splits():
    problems, _, _ = check(make_split("train", **GOOD), make_split("validation", text=["a"], label=[1]))
    assert problems == [
        "data.validation: column 'label' holds integers, such as 1 (validation.csv row 1), data.train has texts; "
        "write them alike"
    ]


def test_classes_must_be_the_same_in_all_splits_and_integers_stand_for_them():
    train = make_split("train", datasets.ClassLabel(names=["neg", "pos"]), text=["a", "b"], label=[0, 1])
    other = make_split("validation", datasets.ClassLabel(names=["pos", "neg"]), text=["a", "b"], label=[0, 1])
    problems, _, _ = check(train, other, make_split("test", text=["a", "b"], label=[0, 1]))
    assert problems == [
        "data.validation: column 'label' holds the classes pos, neg, data.train has neg, pos; "
        "both need the same in the same order"
    ]


def test_one_class_is_a_warning():
    problems, warnings, _ = check(make_split("train", text=["a", "b"], label=["pos", "pos"]))
    assert problems == []
    assert warnings == ["data.train has one class only (pos): a model learns nothing from it"]


def test_named_classes_without_rows_are_a_warning():
    problems, warnings, _ = check(make_split("train", **GOOD), label_names=["neg", "neutral", "pos"])
    assert problems == []
    assert warnings == ["data.train has no rows of these classes: neutral"]


def test_classes_that_no_evaluation_scores_are_told_in_one_line():
    train = make_split("train", text=list("abcdefgh"), label=list("abcdefgh"))
    some, none = make_split("validation.one", text=["a", "b"], label=["c", "a"]), make_split("test", **LETTERS)
    problems, warnings, _ = check(train, some, none)
    assert problems == []
    assert warnings == [
        "data.validation.one has no rows of 6 of 8 classes: b, d, e, f, g and 1 more; data.test has no rows of 1 of 8 "
        "classes: h: its metrics say nothing of them, and a mean over classes (macro) counts them as 0 or leaves them "
        "out"
    ]
    assert check(train, dataclasses.replace(train, name="validation"))[1] == []


def test_classes_that_no_evaluation_scores_are_told_of_a_stream_of_words_and_of_named_classes():
    feature = datasets.ClassLabel(names=["neg", "pos"])
    train = make_split("train", feature, text=["a", "b"], label=[0, 1])
    other = make_split("validation", feature, text=["a"], label=[1])
    (warning,) = check(train, other, is_streamed=True)[1]
    assert warning.startswith("data.validation has no rows of 1 of 2 classes: neg: ")
    (warning,) = check(other, known=LabelNames(["neg", "pos"], {0: 0, 1: 1}))[1]
    assert warning.startswith("data.validation has no rows of 1 of 2 classes: neg: ")
    columns = bind_columns(TokenClassification.columns, {}, task="token_classification")
    train = make_split("train", words=[["a", "b"], ["c"]], tags=[["O", "B-X"], ["O"]])
    (warning,) = check(train, make_split("test", words=[["a"]], tags=[["O"]]), columns=columns)[1]
    assert warning.startswith("data.test has no rows of 1 of 2 classes: B-X: ")


def test_labels_that_differ_in_capitals_or_spaces_are_a_warning():
    _, warnings, _ = check(make_split("train", text=["a", "b", "c"], label=["pos", "Pos ", "neg"]))
    assert warnings == ["these labels differ in capitals or spaces only and are taken as unlike classes: 'Pos ', 'pos'"]


def test_everything_wrong_is_told_at_once():
    problems, _, _ = check(
        make_split("train", text=["", "b", "c"], label=["x", None, "y"]),
        make_split("validation", text=[None, "b"], label=["x", "z"]),
        make_split("test", body=["a"], label=["x"]),
    )
    assert [problem.split(":")[0] for problem in problems] == [
        "data.train", "data.validation", "data.columns.text=text", "data.train", "data.validation"
    ]  # fmt: skip


def test_splits_are_judged_without_a_train_split_too():
    problems, _, names = check(make_split("validation", text=["a", ""], label=["x", None]))
    assert [problem.split(" in ")[0] for problem in problems] == [
        "data.validation: column 'text' is empty",
        "data.validation: column 'label' is null",
    ]
    assert names is None


def test_rows_are_found_after_a_selection():
    split = make_split("train", text=["a", "", "b", "", "c"], label=[0, 1, 0, 1, 0])
    problems, _, _ = check(split.select(np.array([4, 3, 0])))
    assert "in 1 row: train.csv row 4;" in problems[0]


def test_fifty_thousand_rows_take_seconds_at_most():
    split = make_split("train", text=["some words of a review " * 50] * 50_000, label=[0, 1] * 25_000)
    began = time.perf_counter()
    assert check(split)[0] == []
    assert time.perf_counter() - began < 5


TRAINED = LabelNames(["neg", "pos"], {0: 0, 1: 1})


@pytest.mark.parametrize(
    ("feature", "labels", "told"),
    [
        (None, [0, 1], None),
        (None, [1.0, 0.0], "holds decimal numbers"),
        (
            None,
            [True, False],
            "holds true/false, such as True (rows.csv row 1), data.train has integers; write them alike",
        ),
        (
            None,
            ["neg", "pos"],
            "holds texts, such as 'neg' (rows.csv row 1), data.train has integers; write them alike",
        ),
        (None, [0, 2], "has an unknown label in 1 row: rows.csv row 2 (2); labels in data.train are 0, 1"),
        (datasets.ClassLabel(names=["neg", "pos"]), [0, 1], None),
        (datasets.ClassLabel(names=["other", "names"]), [0, 1], None),
        (datasets.ClassLabel(names=["pos", "neg"]), [0, 1], "holds the classes pos, neg, data.train has neg, pos"),
        (datasets.ClassLabel(names=["neg", "pos"]), [-1, 1], "is -1 in 1 row: rows.csv row 1; -1 stands for a label"),
    ],
)
def test_rows_are_judged_by_the_classes_that_were_trained(feature: Any, labels: list[Any], told: str | None):
    problems, _, names = check(make_split("rows", feature, text=["a", "b"], label=labels), known=TRAINED)
    assert names == TRAINED
    if told is None:
        assert problems == []
    else:
        (problem,) = problems
        assert problem.startswith(f"data.rows: column 'label' {told}")


def test_the_number_that_is_no_class_is_the_one_that_is_named():
    problems, _, _ = check(make_split("train", text=["a", "b", "c"], label=[0.0, 1.0, 0.5]))
    assert problems[0].startswith("data.train: column 'label' holds decimal numbers, such as 0.5 (train.csv row 3);")


def test_texts_of_another_type_show_the_first_value_that_is_there():
    problems, _, _ = check(make_split("train", text=[None, 3], label=[0, 1]))
    assert problems[0].startswith(
        "data.train: column 'text' holds no texts but values of type int64, such as 3 (train.csv row 2)"
    )


# ------------------------------------------------------------------------------------------- columns and other kinds


@pytest.mark.parametrize(
    ("declared", "given", "told"),
    [
        (
            {"text": Column("text")},
            {"txt": "a"},
            "data.columns.txt='a': the task mine reads text; did you mean 'text'? "
            "(data.columns.txt=null takes back what another config says)",
        ),
        (
            {"tags": Column("classes", per="wrods")},
            {},
            "column tags for each element of wrods, and declares no such",
        ),
        ({"a": Column("class"), "b": Column("classes")}, {}, "several columns of classes (a, b); one is allowed"),
        (
            {"text": Column("text"), "label": Column("class", target=True)},
            {"label": "text"},
            "data.columns.label=text: the column text has this name too; what is learned is a column of its own",
        ),
    ],
)
def test_columns_that_do_not_go_together_are_refused(declared, given, told):
    with pytest.raises(UserError) as refused:
        bind_columns(declared, given, task="mine")
    (problem,) = refused.value.problems
    assert told in problem


def test_an_optional_column_is_read_where_it_is_named_and_null_takes_a_name_back():
    declared = {"text": Column("text"), "text_pair": Column("text", optional=True)}
    assert bind_columns(declared, {}, task="mine").names == {"text": "text"}
    assert bind_columns(declared, {"txt": None}, task="mine").names == {"text": "text"}  # as a config below it said
    assert bind_columns(declared, {"text_pair": "b"}, task="mine").names == {"text": "text", "text_pair": "b"}
    assert bind_columns(declared, {"text": None, "text_pair": None}, task="mine").names == {"text": "text"}


def test_a_column_has_one_of_the_known_kinds():
    with pytest.raises(
        UserError,
        match="Column: kind is 'label'; allowed: text, words, class, classes, number, numbers, weight, choices, choice",
    ):
        Column("label")


@pytest.mark.parametrize(
    ("words", "tags", "told"),
    [
        ([["a"], []], [[0], []], "column 'words' has no words in 1 row: train.csv row 2; correct or remove the row"),
        ([["a"], ["b", ""]], [[0], [0, 1]], "column 'words' has an empty word in 1 row: train.csv row 2"),
        ([["a"], None], [[0], [0]], "column 'words' is null in 1 row: train.csv row 2; fill it in or remove the row"),
        ([["a"], ["b", "c"]], [[0], [1]], "column 'tags' has 1 labels for 2 words in 1 row: train.csv row 2"),
        ([["a"], ["b"]], [[0], [None]], "column 'tags' has a label that is null in 1 row: train.csv row 2"),
    ],
)
def test_words_and_their_labels_are_checked(words, tags, told):
    columns = bind_columns(TokenClassification.columns, {}, task="token_classification")
    problems, _, _ = check(make_split("train", words=words, tags=tags), columns=columns)
    assert any(told in problem for problem in problems), problems


@pytest.mark.parametrize("wrong", ["words", "tags"])
def test_a_column_that_is_not_there_is_told_also_where_another_belongs_to_it(wrong: str):
    columns = bind_columns(TokenClassification.columns, {wrong: "sentence"}, task="token_classification")
    problems, _, _ = check(make_split("train", words=[["a"]], tags=[["O"]]), columns=columns)
    assert problems == [f"data.columns.{wrong}=sentence: data.train has no such column; it has words, tags"]


def test_rows_with_unlike_faults_are_told_apart():
    columns = bind_columns(TokenClassification.columns, {}, task="token_classification")
    words = [["a", "b"], ["c"], [], ["d", "e"], ["f", "g"], [""]]
    tags = [[0], [0, 1], [], [0], [0, 0], [1]]
    problems, _, _ = check(make_split("train", words=words, tags=tags), columns=columns)
    assert problems == [
        "data.train: column 'words' has no words in 1 row: train.csv row 3; correct or remove the row",
        "data.train: column 'words' has an empty word in 1 row: train.csv row 6; correct or remove the row",
        "data.train: column 'tags' has 1 labels for 2 words in 2 rows: train.csv row 1, train.csv row 4; others of the "
        "kind in 1 row: train.csv row 2; correct or remove the row",
    ]


def test_labels_of_words_are_the_classes_and_strangers_have_their_row():
    columns = bind_columns(TokenClassification.columns, {}, task="token_classification")
    train = make_split("train", words=[["a", "b"], ["c"]], tags=[["O", "B-X"], ["O"]])
    other = make_split("validation", words=[["a"], ["b", "c"]], tags=[["O"], ["O", "B-Y"]])
    assert check(train, columns=columns) == ([], [], LabelNames(["B-X", "O"], {"B-X": 0, "O": 1}))
    (problem,), _, _ = check(train, other, columns=columns)
    assert problem.startswith(
        "data.validation: column 'tags' has an unknown label in 1 row: validation.csv row 2 ('B-Y')"
    )


def check_tags(*rows: list[str], **given: Any) -> list[str]:
    words = [["w"] * len(row) for row in rows]
    columns = bind_columns(TokenClassification.columns, {}, task="token_classification")
    problems, warnings, _ = check(make_split("train", words=words, tags=list(rows)), columns=columns, **given)
    assert problems == []
    return warnings


def test_a_tag_that_goes_on_with_an_entity_that_did_not_begin_is_told_once():
    assert check_tags(["O", "B-PER", "I-PER"], ["B-PER", "B-LOC", "I-LOC", "I-LOC"]) == []
    (warning,) = check_tags(["B-PER", "I-PER"], ["O", "I-PER", "O", "I-LOC"], ["I-LOC", "B-LOC", "I-PER"])
    assert warning == (
        "data.train: 4 tags in 2 rows go on with an entity that did not begin, the first is I-PER in train.csv row 2; "
        "an entity begins with B-, and metrics let one begin there too"
    )
    assert check_tags(["B-LOC", "E-LOC", "S-LOC", "O", "B-LOC", "I-LOC", "E-LOC"], ["O"]) == []
    (warning,) = check_tags(["B-LOC", "E-LOC", "E-LOC", "S-LOC"])
    assert "1 tag in 1 row goes on" in warning
    of_stream = check_tags(["O", "I-X"], ["B-X"], is_streamed=True, label_names=["O", "B-X", "I-X"])
    assert of_stream[0].startswith("data.train: 1 tag in 1 row of the first 2 goes on")


@pytest.mark.parametrize("tags", [["I-PER", "O", "I-LOC"], ["NOUN", "VERB", "NOUN"], ["B-PER", "X-PER", "I-PER"]])
def test_tags_of_another_scheme_go_on_with_nothing(tags: list[str]):
    assert check_tags(tags, tags[::-1]) == []
