"""Names and dotted paths -> objects, and their arguments judged by signature."""

import functools
import sys

import pytest

from trainer_loop import UserError
from trainer_loop.components import check_arguments, choose, locate


@pytest.fixture
def lab(tmp_path, monkeypatch):
    """A current directory with a package my_lab that is not on the path; `lab(name, text)` writes a module into it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry not in ("", str(tmp_path))])

    def write(name, text):
        path = tmp_path / "my_lab" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    return write


def _problem(dotted, place="loss.name"):
    with pytest.raises(UserError) as caught:
        locate(dotted, place=place)
    (problem,) = caught.value.problems
    assert "\n" not in problem
    assert problem.startswith(place)
    return problem


def test_a_function_in_a_file_of_the_current_directory_is_found(lab):
    lab("losses.py", "def focal(logits, targets, gamma=2.0):\n    return gamma\n")
    assert locate("my_lab.losses.focal", place="loss.name")(0, 0) == 2.0


def test_packages_without_init_and_attributes_of_classes_are_found(lab):
    lab("deep/er/losses.py", "class Focal:\n    @staticmethod\n    def make():\n        return 3\n")
    assert locate("my_lab.deep.er.losses.Focal.make", place="loss.name")() == 3


def test_a_module_of_an_installed_package_is_not_hidden_by_a_file_of_the_same_name(lab, tmp_path):
    (tmp_path / "wsgiref.py").write_text("raise RuntimeError('the wrong one')\n")
    assert callable(locate("wsgiref.util.guess_scheme", place="loss.name"))


@pytest.mark.parametrize(
    "dotted", ["focal", "my lab.focal", "my_lab..focal", ".focal", "my_lab.losses:focal", "a/b.py", ""]
)
def test_what_is_no_dotted_path_is_told(dotted):
    assert "a dotted path names a module and what is in it" in _problem(dotted)


def test_a_missing_module_is_told_with_what_the_current_directory_has(lab):
    lab("__init__.py", "")
    problem = _problem("my_labb.losses.focal")
    assert problem == (
        "loss.name: my_labb.losses.focal: there is no module my_labb, installed or in the current directory; "
        "did you mean my_lab?"
    )


def test_a_missing_submodule_and_a_missing_function_are_told_with_the_nearest_name(lab):
    lab("__init__.py", "")
    lab("losses.py", "def focal(logits, targets): ...\n")
    assert _problem("my_lab.loses.focal") == (
        "loss.name: my_lab.loses.focal: my_lab (my_lab/__init__.py) has no loses; did you mean losses?"
    )
    assert _problem("my_lab.losses.focl") == (
        "loss.name: my_lab.losses.focl: my_lab.losses (my_lab/losses.py) has no focl; did you mean focal?"
    )
    assert "my_lab.losses.focal has no gamma" in _problem("my_lab.losses.focal.gamma")


def test_a_module_alone_is_told_with_what_it_defines(lab):
    lab("losses.py", "from math import sqrt\ndef focal(): ...\nclass Dice: ...\ndef _hidden(): ...\n")
    assert _problem("my_lab.losses") == "loss.name: my_lab.losses is a module; name what to take from it: Dice, focal"


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        ("x = 1\nimport nowhere_at_all\n", 2, "ModuleNotFoundError: No module named 'nowhere_at_all'"),
        ("import my_lab.nowhere\n", 1, "ModuleNotFoundError: No module named 'my_lab.nowhere'"),
        ("from math import sqroot\n", 1, "ImportError: cannot import name 'sqroot'"),
        ("x = 1\n\ndef focal(:\n", 3, "SyntaxError: "),
        ("def f():\n    return 1 / 0\n\nf()\n", 2, "ZeroDivisionError: division by zero"),
        ("import json\njson.loads('{')\n", 2, "JSONDecodeError: "),
        ("raise ValueError('a\\nb')\n", 1, "ValueError: a"),
        ("import sys\nsys.exit('usage: mine')\n", 2, "SystemExit: usage: mine"),
        ("import nowhere_at_all.deeper\n", 1, "ModuleNotFoundError"),
    ],
)
def test_a_file_that_fails_on_import_is_told_with_its_own_line(lab, text, line, said):
    lab("losses.py", text)
    problem = _problem("my_lab.losses.focal")
    assert problem.startswith(f"loss.name: my_lab.losses.focal cannot be imported: my_lab/losses.py:{line}: {said}")


def test_the_line_is_of_the_deepest_file_of_the_user(lab):
    lab("__init__.py", "from my_lab import inner\n")
    lab("inner.py", "\n\nundefined\n")
    assert "my_lab/inner.py:3: NameError" in _problem("my_lab.losses.focal")


def test_a_module_whose_attributes_fail_is_told(lab):
    lab("__init__.py", "def __getattr__(name):\n    raise RuntimeError('no backend')\n")
    assert "my_lab/__init__.py:2: RuntimeError: no backend" in _problem("my_lab.losses")


def test_choose_takes_a_name_of_the_table_or_a_dotted_path():
    table = {"sgd": 1, "adamw": 2}
    assert choose("adamw", table, place="optimizer.name") == 2
    assert choose("math.sqrt", table, place="optimizer.name")(4) == 2.0


def test_choose_tells_the_names_and_the_nearest():
    with pytest.raises(UserError) as caught:
        choose("adam", {"sgd": 1, "adamw": 2}, place="optimizer.name")
    assert caught.value.problems == [
        "optimizer.name is 'adam'; allowed: adamw, sgd, or a dotted path such as my_lab.parts.mine; did you mean adamw?"
    ]


def focal(logits, targets, *, gamma, alpha=1.0):
    return logits, targets, gamma, alpha


def test_arguments_that_fit_have_no_problems():
    assert check_arguments(focal, {"gamma": 2}, place="loss.args", given=["logits", "targets"]) == []
    assert (
        check_arguments(focal, {"gamma": 2, "alpha": 1}, place="loss.args", given=["logits", "targets", "weight"]) == []
    )


def test_unknown_missing_and_doubly_given_arguments_are_told_at_once():
    found = check_arguments(focal, {"gama": 2, "logits": 1}, place="loss.args", given=["logits", "targets"])
    name = f"{__name__}.focal"
    assert found == [
        f"loss.args.gama: {name} has no argument gama; it takes gamma, alpha; did you mean gamma?",
        f"loss.args.logits: {name} is given logits by the trainer itself; remove it here",
        f"loss.args: {name} needs an argument gamma; set loss.args.gamma",
    ]


def test_classes_partials_and_open_signatures_are_judged():
    class Open:
        def __init__(self, params, lr, **others): ...

    assert check_arguments(Open, {"anything": 1}, place="optimizer.args", given=["params", "lr"]) == []
    assert len(check_arguments(Open, {"anything": 1}, place="optimizer.args", given=["params"])) == 1
    assert check_arguments(functools.partial(focal, gamma=1), {}, place="loss.args", given=["logits", "targets"]) == []
    assert check_arguments(lambda: None, {"a": 1}, place="loss.args", given=[])[0].endswith("it takes no arguments")


def test_a_function_whose_signature_cannot_be_told_has_no_problems():
    assert check_arguments(dict, {"a": 1}, place="loss.args", given=[]) == []
    assert check_arguments(type("NoSignature", (), {"__signature__": 3}), {"a": 1}, place="loss.args", given=[]) == []


@pytest.mark.parametrize(
    ("value", "fault"),
    [
        (None, "args.prefix: null is not a text"),
        (3, "args.prefix: 3 is not a text"),
        ("", None),
    ],
)
def test_an_argument_of_another_type_than_its_annotation_is_refused(value, fault):
    def translate(*, prefix: str, limit: float | None = None, any_value: list[int] | None = None) -> None: ...

    found = check_arguments(translate, {"prefix": value, "limit": 1, "any_value": "x"}, place="args", given=[])
    assert found == ([] if fault is None else [fault])


def test_true_is_no_number():
    def shuffle(*, seed: int | None) -> None: ...

    (problem,) = check_arguments(shuffle, {"seed": True}, place="args", given=[])
    assert problem == "args.seed: True is not a whole number or null"
