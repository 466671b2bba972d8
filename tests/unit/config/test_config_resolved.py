"""A resolved config reads as an equal config."""

import dataclasses

from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from trainer_loop import load_config
from trainer_loop.config.fields import Config
from trainer_loop.config.load import read_config, spell_config
from trainer_loop.config.secrets import is_secret
from trainer_loop.errors import UserError
from trainer_loop.record.run_dir import write_text

TRICKY = [
    "no",
    "off",
    "yes",
    "012",
    "1_000",
    "1e-3",
    "1e3",
    "null",
    "~",
    "true",
    "0x1F",
    "12:30",
    "2024-01-31",
    "a.b.c",
]
TRICKY += ["${run_dir}", "\\${run_dir}", "\\\\${x", "${", "$", "a: b", "- a", "#x", "*.csv", "'", '"', "[a]", "{a: 1}"]
TRICKY += [
    "ünï",
    "日本",
    "\u2028",
    "\x85",
    "\ufeff",
    "\x07",
    "a\nb",
    " a ",
    "\ud800",
    "<<",
    "=",
    "y",
    "@x",
    "%",
    "\\",
    "\\\\",
]

texts = (st.text(min_size=1, max_size=60) | st.sampled_from(TRICKY)).filter(
    lambda text: (
        not text.endswith("???")
        and text != "None"
        and "\0" not in text
        and not is_secret(text, text)
        # as the name of a file it would be too long
        and len(text.encode(errors="replace")) < 250
    )
)
plain = st.none() | st.booleans() | st.integers(-(10**18), 10**18) | st.floats(allow_nan=False) | texts
trees = st.recursive(
    plain,
    lambda below: st.lists(below, max_size=3) | st.dictionaries(texts | st.integers(), below, max_size=3),
    max_leaves=6,
)
mappings = st.dictionaries(texts, trees, max_size=3)
counts = st.integers(1, 2**62)
numbers = st.floats(min_value=1e-300, max_value=1e300)


@st.composite
def configs(draw):
    """Configs without a problem, with all that is hard to write in their texts."""
    config = Config()
    label_names = draw(
        st.none()
        | st.lists(texts, min_size=1, max_size=4, unique=True)
        | st.dictionaries(texts, texts | st.integers(), min_size=1, max_size=3)
    )
    if isinstance(label_names, dict):
        assume(len(set(label_names.values())) == len(label_names))
    metric = texts | st.fixed_dictionaries({"name": texts}, optional={"args": mappings, "key": texts})
    model = dataclasses.replace(config.model, name=draw(texts), overrides=draw(mappings))
    data = dataclasses.replace(
        config.data,
        name=draw(texts),
        train=draw(texts | st.lists(texts, min_size=1, max_size=3)),
        columns=draw(st.dictionaries(texts, texts, max_size=3)),
        label_names=label_names,
        validation_fraction=draw(st.none() | st.floats(0, 1, exclude_min=True, exclude_max=True)),
    )
    return dataclasses.replace(
        config,
        run_dir=draw(texts),
        seed=draw(st.integers(0, 10**18)),
        model=model,
        data=data,
        batch=dataclasses.replace(config.batch, size=draw(counts), max_tokens=draw(st.none() | counts)),
        train=dataclasses.replace(config.train, epochs=draw(numbers)),
        optimizer=dataclasses.replace(config.optimizer, lr=draw(numbers), args=draw(mappings)),
        evaluate=dataclasses.replace(config.evaluate, metrics=draw(st.lists(metric, max_size=3))),
        log=dataclasses.replace(config.log, trackers=draw(st.lists(texts, max_size=2))),
    )


@settings(max_examples=50, deadline=None)
@given(config=configs())
def test_what_is_written_reads_as_an_equal_config(tmp_path_factory, config):
    path = tmp_path_factory.getbasetemp() / "resolved.yaml"
    write_text(path, spell_config(config))
    assert load_config(str(path)) == config


def test_a_resolved_config_says_every_key_and_leaves_no_other_file(tmp_path):
    config = load_config(None, ["model.name=m", "data.name=d", "run_dir=runs/${seed}", "train.precision=no"])
    write_text(tmp_path / "config.yaml", spell_config(config))
    text = (tmp_path / "config.yaml").read_text()
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]
    assert "run_dir: runs/42" in text
    assert "size: 32" in text
    assert "precision: 'no'" in text
    assert "lr: 5.0e-05" in text


def test_a_resolved_config_takes_overrides(tmp_path):
    config = load_config(None, ["model.name=m", "data.name=d"])
    write_text(tmp_path / "config.yaml", spell_config(config))
    again = load_config(str(tmp_path / "config.yaml"), ["train.epochs=", "train.steps=5"])
    assert again == dataclasses.replace(config, train=dataclasses.replace(config.train, epochs=None, steps=5))


keys = st.sampled_from(
    ["seed", "batch.size", "data.train", "model.overrides", "model.overrides.a", "optimizer", "x", "log.project"]
)
long_path = f"data.train={'0' * 256}"
arguments = st.builds(lambda key, text: f"{key}={text}", keys, st.text() | st.sampled_from(TRICKY)) | st.text()


@settings(max_examples=50, deadline=None)
@given(st.lists(arguments, max_size=4))
@example([long_path])
def test_whatever_is_on_the_command_line_there_is_a_config_and_every_problem_is_one_line(overrides):
    try:
        reading = read_config(None, overrides)
    except UserError as error:
        problems = error.problems
        assert any("a path has at most" in problem for problem in problems)  # nothing can go on with such a name
    else:
        problems = reading.problems
        assert isinstance(reading.config, Config)
    assert all(problem.startswith("command line: ") and problem.isprintable() for problem in problems)


PIECES = [
    "seed",
    "data",
    "train",
    "model",
    "overrides",
    "name",
    ": ",
    "\n",
    "\n  ",
    "\n- ",
    "{",
    "}",
    "[",
    "]",
    ", ",
    "&a ",
    "*a",
]
PIECES += [
    "!!x ",
    "!!int ",
    "'",
    '"',
    "1",
    "no",
    "${",
    "}",
    "${seed}",
    " #",
    "|",
    ">",
    "? ",
    "null",
    "<<",
    "\t",
    "\x00",
    "\x85",
    "---",
]


@settings(max_examples=100, deadline=None)
@given(st.binary() | st.lists(st.sampled_from(PIECES), max_size=12).map("".join).map(str.encode))
def test_whatever_is_in_a_file_there_is_a_config_and_every_problem_is_one_line(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_bytes(content)
    reading = read_config(str(path), [])
    config, problems = reading.config, reading.problems
    assert isinstance(config, Config)
    assert all(problem.startswith(str(path)) and problem.isprintable() for problem in problems)
