"""Interpolations name another key or an environment variable, and nothing else; none makes a config explode."""

import sys
import time

import pytest

from trainer_loop.config.load import read_config

BASE = ["model.name=m", "data.name=d"]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("${seed}", "42"),
        ("a${seed}b${seed}", "a42b42"),
        ("${ seed }", "42"),
        ("${oc.env:MINE}", "mine"),
        ("${oc.env:NOT_THERE,other}", "other"),
        ("${oc.env:NOT_THERE,${seed}}", "42"),
        ("${data.name}/${model.name}", "d/m"),
        ("${.name}", "d"),
        ("${..model.name}", "m"),
        ("${model.overrides.a[0]}", "first"),
        ("\\${seed}", "${seed}"),
        ("$seed {x} $", "$seed {x} $"),
    ],
)
def test_what_is_allowed(text, value, monkeypatch):
    monkeypatch.setenv("MINE", "mine")
    reading = read_config(None, [*BASE, "model.overrides={a: [first]}", f"data.config={text}"])
    config, problems = reading.config, reading.problems
    assert problems == []
    assert config.data.config == value


@pytest.mark.parametrize(
    "text",
    [
        "${oc.coerce:planted.Code,1}",
        "${oc.decode:abc}",
        "${oc.create:abc}",
        "${oc.deprecated:seed}",
        "${oc.select:seed}",
        "${oc.dict.keys:model}",
        "${hydra:x}",
        "${${data.name}.coerce:planted.Code,1}",
        "${oc.${data.name}:planted.Code,1}",
        "${oc.env:NOT_THERE,${oc.coerce:planted.Code,1}}",
        "x\\\\${oc.coerce:planted.Code,1}",
        "${}",
        "${seed",
        "${a b}",
    ],
)
@pytest.mark.parametrize("place", ["log.project={}", "task.args={{a: ['{}']}}", "log.tracker_args={{a: {{b: '{}'}}}}"])
def test_everything_else_is_refused_and_no_module_is_imported(text, place, tmp_path, monkeypatch):
    (tmp_path / "planted.py").write_text("raise SystemExit('imported')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    argument = place.format(text)
    problems = read_config(None, [*BASE, argument]).problems
    (problem,) = problems
    assert problem.startswith("command line: ")
    assert "planted" not in sys.modules


def bomb(levels: int, factor: int) -> list[str]:
    entries = [f"a{level}: '" + f"${{model.overrides.a{level - 1}}}" * factor + "'" for level in range(1, levels)]
    return ["model.overrides={a0: xxxxxxxxxx, " + ", ".join(entries) + "}"]


@pytest.mark.parametrize(
    "arguments",
    [
        bomb(12, 10),
        bomb(40, 2),
        bomb(2000, 1),
        ["model.overrides={a: '${model.overrides}'}", "log.project=${log.project}"],
    ],
    ids=["wide", "doubled", "long", "itself"],
)
def test_texts_that_stand_for_ever_more_text_are_refused_at_once(arguments):
    began = time.monotonic()
    problems = read_config(None, [*BASE, *arguments]).problems
    assert time.monotonic() - began < 10
    assert problems
    assert all(len(problem) < 500 for problem in problems)
