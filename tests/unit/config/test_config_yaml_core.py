"""YAML read as a person means it."""

import math
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer_loop.config.yaml_core import compose, dump, plain

PLAIN = {
    "no": "no",
    "off": "off",
    "y": "y",
    "NO": "NO",
    "true": True,
    "False": False,
    "012": "012",
    "12": 12,
    "-3": -3,
    "+3": 3,
    "0": 0,
    "1_000": 1000,
    "1_00": "1_00",
    "0x1F": "0x1F",
    "1e-3": 0.001,
    "1E3": 1000.0,
    "5.": 5.0,
    ".5": 0.5,
    "-.inf": -math.inf,
    ".": ".",
    "1.2.3": "1.2.3",
    "12:30:00": "12:30:00",
    "2024-01-31": "2024-01-31",
    "~": None,
    "null": None,
    "": None,
    "None": "None",
    "'12'": "12",
    '"null"': "null",
    "'~'": "~",
}


@pytest.mark.parametrize(("text", "meant"), PLAIN.items())
def test_scalars_follow_the_core_rules(text, meant):
    node, faults = compose(f"key: {text}")
    value = plain(node)["key"]
    assert (value, type(value), faults) == (meant, type(meant), [])


def test_aliases_are_read_and_an_alias_to_itself_is_a_fault():
    node, faults = compose("a: &x [1]\nb: *x\n")
    assert (plain(node), faults) == ({"a": [1], "b": [1]}, [])
    node, (fault,) = compose("keep: 1\nloop: &x {inside: *x}\n")
    assert fault.line == 2
    assert plain(node) == {"keep": 1, "loop": {}}


@pytest.mark.parametrize(
    "value",
    ["!!python/object/apply:os.system [ls]", "!!python/name:os.system ''", "!mine 3", "!!int three", "!!set {a}"],
)
def test_tags_run_nothing_and_are_refused(value):
    node, (fault,) = compose(f"a: 1\nb: {value}\n")
    assert fault.line == 2
    assert "without a tag" in fault.problem
    assert plain(node) == {"a": 1}


def test_a_tag_on_the_whole_document_is_refused():
    node, (fault,) = compose("!!python/object/apply:os.system [ls]")
    assert node is None
    assert "!!python/object/apply:os.system is not allowed" in fault.problem


def test_a_key_given_twice_is_told_with_both_lines_and_the_first_one_stays():
    node, faults = compose("a: 1\nb: {c: 1,\n    c: 2}\na: 3\n")
    assert [fault.line for fault in faults] == [3, 4]
    assert "lines 2 and 3" in faults[0].problem
    assert "lines 1 and 4" in faults[1].problem
    assert plain(node) == {"a": 1, "b": {"c": 1}}


@pytest.mark.parametrize(
    ("text", "line", "column", "remedy"),
    [
        ("a: 1\n\tb: 2\n", 2, 1, "tabs"),
        ("a: b: c\n", 1, 5, "quotes"),
        ("a: *.csv\n", 1, 5, "begins with *"),
        ("a: *nowhere\n", 1, 4, "begins with *"),
        ("a: [1, 2\nb: 3\n", 1, 4, "close the bracket"),
        ("a: 'b\n\n", 1, 4, "close the quote"),
        ("a:\n    b: 1\n  c: 2\n", 3, 3, "indentation"),
        ("a: 1\n---\nb: 2\n", 2, 1, "one document"),
        ("a: 1\nb:2\nc: 3\n", 2, 1, "space after the colon"),
        ("a: @x\n", 1, 4, "quotes"),
    ],
)
def test_a_syntax_error_is_one_line_with_its_place_and_a_remedy(text, line, column, remedy):
    node, (fault,) = compose(text)
    assert node is None
    assert (fault.line, fault.column) == (line, column)
    assert remedy in fault.problem
    assert "\n" not in fault.problem


def test_a_colon_without_a_space_is_told():
    _, (fault,) = compose("overrides: {hidden_size:64}")
    assert "write" not in fault.problem
    assert "hidden_size: 64" in fault.problem


def test_control_characters_are_told_with_their_line():
    _, (fault,) = compose("a: 1\nb: \x00\n")
    assert fault.line == 2


def test_brackets_without_end_are_told():
    _, (fault,) = compose("[" * 2000)
    assert "nested too deeply" in fault.problem


@pytest.mark.parametrize("key", ["[a, b]: 1", "~: 1", "? {a: 1}\n: 2"])
def test_keys_are_texts(key):
    _, (fault,) = compose(key)
    assert "a key must be a text" in fault.problem


scalars = st.none() | st.booleans() | st.integers(-(10**20), 10**20) | st.floats(allow_nan=False) | st.text()
looks_like_another = st.sampled_from([*PLAIN, "yes", "0o17", "1:30", "<<", "=", "- a", "a: b", "#", "x # y", "1_000.5"])
trees = st.recursive(
    scalars | looks_like_another,
    lambda below: st.lists(below, max_size=4) | st.dictionaries(st.text() | looks_like_another, below, max_size=4),
    max_leaves=12,
)


@settings(deadline=None)
@given(st.dictionaries(st.text() | looks_like_another, trees, max_size=5))
def test_what_is_dumped_reads_as_the_same_tree(tree):
    node, faults = compose(dump(tree))
    assert faults == []
    assert plain(node) == tree


@settings(deadline=None)
@given(st.text())
def test_any_text_is_read_or_has_a_fault_with_a_line(text):
    node, faults = compose(text)
    assert all(fault.line >= 1 and "\n" not in fault.problem for fault in faults)
    if node is not None:
        plain(node)


def doubled(levels: int, form: str) -> str:
    """Every line holds the one before twice."""
    lines = ["a0: &a0 [v, v]"]
    return "\n".join([*lines, *(f"a{n}: &a{n} " + form.format(*[f"*a{n - 1}"] * 2) for n in range(1, levels))])


@pytest.mark.parametrize(
    "text",
    [
        doubled(60, "[{}, {}]"),
        doubled(60, "{{p: {}, q: {}}}"),
        doubled(60, "[[{}], {{p: {}}}]"),
        "\n".join(["a0: &a0 [v]", *(f"a{n}: &a{n} [*a{n - 1}]" for n in range(1, 3000))]),
        "a: &a [" + "v, " * 200 + "]\nb: [" + "*a, " * 200 + "]",
    ],
    ids=["lists", "mappings", "both", "deep", "wide"],
)
def test_aliases_that_stand_for_ever_more_values_are_refused_at_once(text):
    began = time.monotonic()
    node, faults = compose(text)
    assert time.monotonic() - began < 10
    assert node is None
    (fault,) = faults
    assert "aliases" in fault.problem


def test_a_few_aliases_and_many_values_are_fine():
    names = ", ".join(f"name{n}" for n in range(2_000))
    node, faults = compose(f"names: [{names}]\na: &a {{b: [1, 2]}}\nc: [*a, *a]\nd: *a\n")
    assert faults == []
    assert plain(node)["c"] == [{"b": [1, 2]}] * 2
