"""`extends: base.yaml`: files that build on one another."""

import copy
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer_loop import load_config
from trainer_loop.config import find
from trainer_loop.config.load import read_config, spell_config
from trainer_loop.config.yaml_core import dump
from trainer_loop.record.run_dir import write_text


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Write a file below an empty current directory; the shipped configs lie in `shipped`."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(find, "shipped_dir", lambda: tmp_path / "shipped")

    def write_text(name, text):
        path = Path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    return write_text


@pytest.fixture
def problems(write):
    """The problems of imdb.yaml with this text."""

    def read_text(text, *overrides):
        write("imdb.yaml", text)
        return read_config("imdb.yaml", overrides).problems

    return read_text


def test_a_file_wins_over_what_it_extends_and_the_command_line_over_all(write):
    write("base.yaml", "seed: 1\nrun_dir: runs/base\nmodel: {name: m}\ndata: {name: d}\noptimizer: {lr: 1e-3}\n")
    write("imdb.yaml", "seed: 2\nextends: base.yaml\noptimizer: {weight_decay: 0}\n")
    config = load_config("imdb.yaml", ["run_dir=runs/mine"])
    assert (config.seed, config.model.name, config.run_dir) == (2, "m", "runs/mine")
    assert (config.optimizer.lr, config.optimizer.weight_decay) == (0.001, 0.0)


def test_mappings_merge_lists_are_replaced_and_a_later_file_of_a_list_wins(write):
    write(
        "first.yaml", "model: {name: m, overrides: {a: {x: 1, y: 1}, b: 1}}\ndata: {name: d, train: [a.csv, b.csv]}\n"
    )
    write("second.yaml", "model: {overrides: {a: {y: 2}}}\nlog: {trackers: [wandb]}\n")
    write("imdb.yaml", "extends: [first.yaml, second.yaml]\nmodel: {overrides: {c: 3}}\ndata: {train: [c.csv]}\n")
    config = load_config("imdb.yaml")
    assert config.model.overrides == {"a": {"x": 1, "y": 2}, "b": 1, "c": 3}
    assert (config.data.train, config.log.trackers) == (["c.csv"], ["wandb"])
    write("third.yaml", "extends: imdb.yaml\nmodel: {overrides: {}}\n")
    assert load_config("third.yaml").model.overrides == {}


def test_interpolations_are_resolved_over_all_files(write):
    write("base.yaml", "run_dir: runs/${data.name}-${seed}\nmodel: {name: m}\ndata: {name: d}\n")
    write("imdb.yaml", "extends: base.yaml\nseed: 7\n")
    assert load_config("imdb.yaml").run_dir == "runs/d-7"


def test_a_name_is_looked_for_beside_the_file_then_as_config_is(write):
    needed = "model: {name: m}\ndata: {name: d}\n"
    write("lab/imdb.yaml", "extends: base.yaml\n" + needed)
    write("../shipped/base.yaml", "seed: 4\n")
    assert load_config("lab/imdb.yaml").seed == 4
    write("configs/base.yaml", "seed: 3\n")
    assert load_config("lab/imdb.yaml").seed == 3
    write("base.yaml", "seed: 2\n")
    assert load_config("lab/imdb.yaml").seed == 2
    write("lab/base.yaml", "seed: 1\n")
    assert load_config("lab/imdb.yaml").seed == 1
    write("lab/imdb.yaml", f"extends: {Path('configs/base.yaml').absolute()}\n" + needed)
    assert load_config("lab/imdb.yaml").seed == 3


@pytest.mark.parametrize("nothing", ["", "null", "[]"])
def test_a_file_may_extend_nothing(problems, nothing):
    assert problems(f"extends: {nothing}\nmodel: {{name: m}}\ndata: {{name: d}}\n") == []


def test_every_problem_has_its_own_file_and_line(write, problems):
    write("lab/base.yaml", "\nlr: 1\nseed: x\nbatch: {size: 8}\n")
    write("lab/middle.yaml", "extends: base.yaml\nmodel: {nam: m}\n")
    assert problems("data: {name: d}\n\nbatch: {accumulate: 2}\nextends: lab/middle.yaml\n", "log.every=0") == [
        "lab/base.yaml:2: there is no key lr; did you mean optimizer.lr?",
        "lab/base.yaml:3: seed is 'x'; allowed: a whole number of at least 0",
        "lab/middle.yaml:2: there is no key model.nam; did you mean model.name or model.peft.name?",
        "command line: log.every is 0; allowed: a whole number of at least 1 (steps)",
        "imdb.yaml:3: batch.size is 8 and batch.accumulate is 2, but one excludes the other; "
        "set batch.size=null or batch.accumulate=null",
        "imdb.yaml:3: batch.accumulate is 2, which counts microbatches of batch.per_device rows; set batch.per_device",
    ]


def test_a_missing_file_is_told_with_its_line_and_the_places_beside_all_other_problems(write, problems):
    write("lab/base.yaml", "lr: 1\nextends:\n  - grund.yaml\n  - lab2.yaml\n")
    write("../shipped/ground.yaml", "seed: 1\n")
    shipped = find.shipped_dir()
    in_base, first, second, on_command_line = problems("seed: 1\nextends: lab/base.yaml\n", "log.every=0")
    assert in_base == "lab/base.yaml:1: there is no key lr; did you mean optimizer.lr?"
    assert first == (
        "lab/base.yaml:3: extends: grund.yaml is not there; looked for lab/grund.yaml, grund.yaml, "
        f"configs/grund.yaml, {shipped}/grund.yaml; shipped configs: ground.yaml; did you mean extends: ground.yaml?"
    )
    assert second.startswith("lab/base.yaml:4: extends: lab2.yaml is not there; looked for lab/lab2.yaml, lab2.yaml")
    assert on_command_line.startswith("command line: log.every is 0")


def test_files_that_extend_each_other_are_told_with_the_line(write, problems):
    write("a.yaml", "seed: 1\nextends: b.yaml\n")
    write("b.yaml", "extends: [c.yaml, a.yaml]\n")
    write("c.yaml", "seed: 2\n")
    assert problems("extends: a.yaml\n") == [
        "b.yaml:1: extends: a.yaml makes a circle: a.yaml -> b.yaml -> a.yaml; a file cannot extend itself, so remove "
        "this line or name another file"
    ]
    assert problems("extends: ./imdb.yaml\n")[0].startswith("imdb.yaml:1: extends: ./imdb.yaml makes a circle: ")


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("extends: {a: 1}", "imdb.yaml:1"),
        ("extends:\n  - base.yaml\n  - [a]", "imdb.yaml:3"),
        ("extends: ''", "imdb.yaml:1"),
    ],
)
def test_what_names_no_file_is_told(write, problems, text, place):
    write("base.yaml", "seed: 1\n")
    (problem,) = problems(text)
    assert problem.startswith(f"{place}: extends is ")
    assert problem.endswith("; allowed: the name of a file, or a list of such names")


def test_only_a_file_extends_others(write, problems):
    write("base.yaml", "seed: 1\n")
    assert problems("model: {name: m}\ndata: {name: d}\n", "extends=base.yaml") == [
        "command line: extends=base.yaml: extends is a line of a file; write it into the file that config= names"
    ]
    (problem,) = problems("model: {name: m, extends: base.yaml}\ndata: {name: d}\n")
    assert problem.startswith("imdb.yaml:1: there is no key model.extends")


def test_a_run_directory_is_told_its_config_file(write, problems):
    write("runs/imdb/config.yaml", "seed: 1\n")
    (problem,) = problems("extends: runs/imdb\n")
    assert problem == "imdb.yaml:1: extends: runs/imdb is a directory; write extends: runs/imdb/config.yaml"


def test_the_resolved_config_holds_everything_and_extends_nothing(write):
    write("base.yaml", "model: {name: m}\ndata: {name: d}\nseed: 1\n")
    write("imdb.yaml", "extends: base.yaml\nbatch: {size: 8}\n")
    config = load_config("imdb.yaml")
    write_text(Path("resolved.yaml"), spell_config(config))
    Path("base.yaml").unlink()
    assert "extends" not in Path("resolved.yaml").read_text()
    assert load_config("resolved.yaml") == config


# A file draws some of these keys, mappings among them, and files with higher numbers that it extends.
_numbers = st.integers(1, 3)
_values = _numbers | st.dictionaries(st.sampled_from("xy"), _numbers, max_size=2)
_splits = st.lists(st.sampled_from("st"), min_size=1, max_size=2)
_sections = {
    "data": st.fixed_dictionaries({}, optional={"train": _splits, "config": st.just("c")}),
    "model": st.fixed_dictionaries(
        {},
        optional={
            "overrides": st.dictionaries(st.sampled_from("ab"), _values, max_size=2),
            "vocab_size": st.integers(300, 302),
        },
    ),
}
_contents = st.fixed_dictionaries({}, optional={"seed": _numbers, **_sections})
_files = st.lists(st.tuples(_contents, st.lists(st.integers(1, 4), max_size=3)), min_size=1, max_size=6)


def _merge(below, above):
    """What `above` says over what `below` says; an empty mapping empties the one below."""
    if not (isinstance(below, dict) and isinstance(above, dict)):
        return copy.deepcopy(above)
    return below | {key: _merge(below.get(key), value) for key, value in above.items()}


def _merge_sections(below, above):
    merged = _merge(below, above)
    if above.get("model", {}).get("overrides") == {}:
        merged["model"]["overrides"] = {}
    return merged


def _expand(files, number):
    """All that a file says with what it extends, written out by the rule."""
    content, offsets = files[number]
    merged = {}
    for offset in offsets:
        if number + offset < len(files):
            merged = _merge_sections(merged, _expand(files, number + offset))
    return _merge_sections(merged, content)


@settings(max_examples=40, deadline=None)
@given(_files)
def test_files_that_extend_others_equal_the_merged_file(tmp_path_factory, files):
    directory = tmp_path_factory.mktemp("files")
    for number, (content, offsets) in enumerate(files):
        bases = [f"{number + offset}.yaml" for offset in offsets if number + offset < len(files)]
        (directory / f"{number}.yaml").write_text(dump({**content, "extends": bases}))
    (directory / "merged.yaml").write_text(dump(_expand(files, 0)))
    needed = ["model.name=m", "data.name=d"]
    assert load_config(str(directory / "0.yaml"), needed) == load_config(str(directory / "merged.yaml"), needed)
