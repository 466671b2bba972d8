from typing import Any

import datasets
import pytest

from trainer_loop import UserError
from trainer_loop.data.labels import LabelNames, describe_kind, name_labels

CLASS_NAMES = ["neg", "pos"]


def problems_of(**arguments: Any) -> list[str]:
    with pytest.raises(UserError) as caught:
        name_labels(**{"values": [0, 1], "kind": "integers", "class_names": None, **arguments})
    return caught.value.problems


@pytest.mark.parametrize(
    ("feature", "kind"),
    [
        (datasets.ClassLabel(names=CLASS_NAMES), "classes"),
        (datasets.Value("int8"), "integers"),
        (datasets.Value("uint64"), "integers"),
        (datasets.Value("string"), "texts"),
        (datasets.Value("large_string"), "texts"),
        (datasets.Value("bool"), "true/false"),
        (datasets.Value("float32"), "decimal numbers"),
        (datasets.Value("null"), "nulls"),
        (datasets.Value("date32"), "values of type date32"),
        (datasets.List(datasets.Value("int64")), "values of type List"),
    ],
)
def test_the_kind_of_a_label_column_follows_from_its_type(feature: Any, kind: str):
    rows = datasets.Dataset.from_dict({"label": []}, features=datasets.Features({"label": feature}))
    assert describe_kind(rows, "label") == kind


@pytest.mark.parametrize(
    ("values", "kind", "class_names", "given", "expected"),
    [
        # Found in the data.
        ([10, 2, -1], "integers", None, None, LabelNames(["-1", "2", "10"], {-1: 0, 2: 1, 10: 2})),
        (["b", "a"], "texts", None, None, LabelNames(["a", "b"], {"a": 0, "b": 1})),
        ([True], "true/false", None, None, LabelNames(["false", "true"], {False: 0, True: 1})),
        ([1], "classes", CLASS_NAMES, None, LabelNames(["neg", "pos"], {0: 0, 1: 1})),
        # A list.
        ([0, 1], "integers", None, ["no", "yes"], LabelNames(["no", "yes"], {0: 0, 1: 1})),
        (["b", "a"], "texts", None, ["b", "a", "c"], LabelNames(["b", "a", "c"], {"b": 0, "a": 1, "c": 2})),
        ([True, False], "true/false", None, ["no", "yes"], LabelNames(["no", "yes"], {False: 0, True: 1})),
        ([0, 1], "classes", CLASS_NAMES, ["bad", "good"], LabelNames(["bad", "good"], {0: 0, 1: 1})),
        ([0, 1], "classes", CLASS_NAMES, ["pos", "neg"], LabelNames(["pos", "neg"], {0: 1, 1: 0})),
        # A map.
        ([5, 1], "integers", None, {"five": 5, "one": 1}, LabelNames(["one", "five"], {1: 0, 5: 1})),
        (["n", "y"], "texts", None, {"yes": "y", "no": "n"}, LabelNames(["yes", "no"], {"y": 0, "n": 1})),
        ([True], "true/false", None, {"yes": True, "no": 0}, LabelNames(["no", "yes"], {False: 0, True: 1})),
        ([0, 1], "classes", CLASS_NAMES, {"good": "pos", "bad": 0}, LabelNames(["bad", "good"], {0: 0, 1: 1})),
    ],
)
def test_names_and_ids(values: Any, kind: str, class_names: Any, given: Any, expected: LabelNames):
    named = name_labels(values, kind=kind, class_names=class_names, given=given)
    assert named == expected
    assert [type(raw) for raw in named.ids] == [type(raw) for raw in expected.ids]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"given": "negative"}, "data.label_names='negative': it must be a list of names, a map"),
        ({"given": []}, "data.label_names is empty"),
        ({"given": ["a", "b", "a"]}, "data.label_names has a name more than once: a"),
        ({"given": [False, "yes"]}, "names must be texts, and these are not: False; quote them"),
        ({"given": {1: "a"}}, "names must be texts, and these are not: 1"),
        ({"given": ["a", "b", "c"], "kind": "true/false"}, "must be [name of false, name of true]"),
        (
            {"given": ["a", "b", "c"], "kind": "classes", "class_names": CLASS_NAMES},
            "has 3 names, the label column has 2 classes (neg, pos)",
        ),
    ],
)
def test_names_that_cannot_be_are_told(arguments: dict[str, Any], expected: str):
    (problem,) = problems_of(**arguments)
    assert expected in problem


def test_all_wrong_values_of_a_map_are_told_at_once():
    assert problems_of(given={"a": 0, "b": "one", "c": 0, "d": True}) == [
        "data.label_names.b='one': the label column holds integers, and this is not one",
        "data.label_names.c=0: another name has this value already",
        "data.label_names.d=True: the label column holds integers, and this is not one",
    ]


@pytest.mark.parametrize("given", [{"neg": 0, "neu": 1}, {"neu": 1, "neg": 0}])
def test_numbers_for_labels_that_are_texts_point_to_a_list(given: dict[str, int]):
    assert problems_of(values=["neg", "neu"], kind="texts", given=given) == [
        f"data.label_names={given}: the label column holds texts, and a map says what stands in the column for each "
        "name, such as {neg: neg}; to number them in this order write data.label_names=[neg, neu]"
    ]
