"""Three layers, read by the type of each key, every problem at once."""

import subprocess
import sys

import pytest

from trainer_loop import UserError, load_config
from trainer_loop.config.fields import Config
from trainer_loop.config.load import read_config, spell_config
from trainer_loop.record.run_dir import write_text

MINIMAL = "model: {name: m}\ndata: {train: a.csv}\n"


@pytest.fixture
def read(tmp_path, monkeypatch):
    """Write imdb.yaml into the current directory and read it with overrides."""
    monkeypatch.chdir(tmp_path)

    def read_text(text, *overrides):
        (tmp_path / "imdb.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
        reading = read_config("imdb.yaml", overrides)
        return reading.config, reading.problems

    return read_text


@pytest.fixture
def accepted(read):
    """The config of a text that has no problems."""

    def read_text(text, *overrides):
        config, problems = read(text, *overrides)
        assert problems == []
        return config

    return read_text


@pytest.fixture
def problems(read):
    """The problems of a text; each is one line."""

    def read_text(text, *overrides):
        _, found = read(text, *overrides)
        assert all("\n" not in problem for problem in found)
        return found

    return read_text


def test_a_later_layer_wins(accepted):
    text = MINIMAL + "seed: 1\noptimizer: {lr: 1e-3}\n"
    assert accepted(text).seed == 1
    config = accepted(text, "seed=2", "seed=3", "optimizer.weight_decay=0")
    assert (config.seed, config.optimizer.lr, config.optimizer.weight_decay) == (3, 0.001, 0.0)
    assert config.log == Config().log


def test_without_a_file_there_are_the_defaults_and_the_overrides():
    config = load_config(None, ["model.name=m", "data.name=d"])
    assert (config.model.name, config.data.train, config.batch.size, config.train.epochs) == ("m", "train", 32, 3.0)


def test_mappings_are_merged_and_everything_else_is_replaced(accepted):
    text = """
model: {name: m, overrides: {a: {x: 1, y: 2}, b: 3}}
data: {train: [a.csv, b.csv], label_names: {bad: 0, good: 1}}
log: {trackers: [tensorboard, wandb]}
"""
    changes = ["model.overrides.a.x=5", "model.overrides={c: 4}", "data.label_names={worse: 0, better: 1}"]
    config = accepted(text, *changes, "log.trackers=[wandb]", "data.train=c.csv")
    assert config.model.overrides == {"a": {"x": 5, "y": 2}, "b": 3, "c": 4}
    assert config.data.label_names == {"worse": 0, "better": 1}
    assert (config.log.trackers, config.data.train) == (["wandb"], "c.csv")


@pytest.mark.parametrize("nothing", ["", "null", "~", "{}"])
def test_a_mapping_can_be_emptied(accepted, nothing):
    text = MINIMAL + "optimizer: {args: {betas: [0.9, 0.99]}}\n"
    assert accepted(text, f"optimizer.args={nothing}").optimizer.args == {}


@pytest.mark.parametrize(
    ("key", "written", "meant"),
    [
        ("dry_run", "yes", True),
        ("dry_run", "On", True),
        ("dry_run", "off", False),
        ("dry_run", "FALSE", False),
        ("train.precision", "no", "no"),
        ("log.project", "012", "012"),
        ("log.project", "off", "off"),
        ("log.project", "1e-3", "1e-3"),
        ("log.project", "true", "true"),
        ("log.project", "2024-01-31", "2024-01-31"),
        ("batch.size", "012", 12),
        ("batch.size", "1_000", 1000),
        ("batch.size", "1e3", 1000),
        ("batch.size", "64.0", 64),
        ("optimizer.lr", "1e-3", 0.001),
        ("optimizer.lr", "3", 3.0),
        ("train.epochs", "0.5", 0.5),
        ("train.max_grad_norm", "null", None),
        ("train.max_grad_norm", "", None),
        ("data.cache_dir", "", None),
        ("data.train", "no", "no"),
        ("data.train", "[012, no]", ["012", "no"]),
        ("data.label_names", "[no, yes]", ["no", "yes"]),
        ("data.label_names", "[0, 1]", ["0", "1"]),
        ("data.label_names", "{no: 0, yes: true, 012: none}", {"no": 0, "yes": True, "012": "none"}),
        ("batch.max_tokens", "null", None),
        ("batch.max_tokens", "4_096", 4096),
        ("batch.max_tokens", "auto", "auto"),
        ("evaluate.every", "1e3", 1000),
        ("evaluate.every", "never", "never"),
        ("log.trackers", "tensorboard", ["tensorboard"]),
        ("log.trackers", "[tensorboard, wandb]", ["tensorboard", "wandb"]),
        ("log.trackers", "null", []),
        ("evaluate.metrics", "accuracy", ["accuracy"]),
        ("evaluate.metrics", "{name: f1, key: f1_macro}", [{"name": "f1", "key": "f1_macro"}]),
        ("evaluate.metrics", "[no, {name: f1, args: {a: 1e-3}}]", ["no", {"name": "f1", "args": {"a": 0.001}}]),
        (
            "task.args",
            "{a: no, b: 012, c: 1e-3, d: true, e: null, f: [1]}",
            {"a": "no", "b": "012", "c": 0.001, "d": True, "e": None, "f": [1]},
        ),
    ],
)
def test_a_value_is_read_by_the_type_of_its_key_in_a_file_and_on_the_command_line(accepted, key, written, meant):
    for config in (accepted(_file(key, written)), accepted(_file(), f"{key}={written}")):
        value = _value(config, key)
        assert (value, type(value)) == (meant, type(meant))


def _file(key="", written=""):
    """A file that has nothing but what a config needs, and one key more."""
    sections = {"model": ["name: m"], "data": ["name: d"]}
    section, _, name = key.rpartition(".")
    if section:
        sections.setdefault(section, []).append(f"{name}: {written}")
    lines = [f"{section}: {{{', '.join(keys)}}}" for section, keys in sections.items()]
    return "\n".join([*lines, f"{key}: {written}" if key and not section else ""])


def _value(config, key):
    for part in key.split("."):
        config = getattr(config, part)
    return config


@pytest.mark.parametrize(
    ("key", "written", "allowed"),
    [
        ("seed", "3.5", "a whole number of at least 0"),
        ("seed", "-1", "a whole number of at least 0"),
        ("seed", "true", "a whole number"),
        ("seed", "1e400", "a whole number"),
        ("seed", "[1]", "a whole number"),
        ("seed", "{a: 1}", "a whole number"),
        ("seed", "", "a whole number of at least 0; leave the key out for its default"),
        ("batch.size", "0", "a whole number of at least 1 (rows) or null"),
        ("batch.size", "None", "or null; write null for no value"),
        ("batch.size", "many", "a whole number of at least 1 (rows) or null"),
        ("train.epochs", "0", "a number above 0 or null"),
        ("train.max_grad_norm", "0", "a number above 0 or null"),
        ("train.precision", "bf61", "auto, no, bf16 or fp16; did you mean bf16?"),
        ("train.precision", "[bf16]", "auto, no, bf16 or fp16"),
        ("optimizer.lr", "-1e-3", "a number of at least 0"),
        ("optimizer.lr", ".inf", "a number of at least 0"),
        ("optimizer.lr", ".nan", "a number of at least 0"),
        ("optimizer.lr", "3e-5x", "a number of at least 0"),
        ("dry_run", "maybe", "true or false"),
        ("dry_run", "1", "true or false"),
        ("run_dir", "null", "a text"),
        ("run_dir", "{a: 1}", "a text"),
        ("data.cache_dir", "None", "write null for no value"),
        ("data.validation_fraction", "0", "a number above 0 and below 1 or null"),
        ("data.validation_fraction", "1", "a number above 0 and below 1 or null"),
        ("data.fold", "0/5", "a part of several, such as 2/5 or null"),
        ("data.fold", "6/5", "a part of several, such as 2/5 or null; there is no part 6 of 5 parts"),
        ("data.train", "null", "a text, a list of texts, or {sql, connection}; leave the key out"),
        ("data.train", "[]", "a text, a list of texts, or {sql, connection}"),
        ("data.train", "[a, [b]]", "a text, a list of texts, or {sql, connection}"),
        ("data.validation", "[a, null]", "a text, a list of texts, {sql, connection}, or a mapping from"),
        ("data.label_names", "[a, b, a]", "'a' is there twice"),
        ("data.label_names", "{a: 1, b: 1}", "1 is there twice"),
        ("data.label_names", "{a: 0.5, b: 1}", "a list of names or a mapping from name to label or null"),
        ("data.label_names", "[]", "a list of names"),
        ("data.label_names", "[a, null]", "a list of names"),
        ("data.label_names", "positive", "a list of names"),
        ("batch.max_tokens", "0", "auto or a whole number of at least 1 (tokens) or null"),
        ("batch.max_tokens", "unlimited", "auto or a whole number of at least 1 (tokens) or null"),
        ("evaluate.every", "no", "epoch, never, a number of steps, or below 1 a share of an epoch; write never"),
        ("evaluate.every", "null", "write never"),
        ("evaluate.every", "0", "write never"),
        ("checkpoint.every", "1.5", "epoch, never, a number of steps, or below 1 a share of an epoch"),
        ("evaluate.every", "0.0", "epoch, never, a number of steps"),
        ("checkpoint.every", "epochs", "epoch, never, a number of steps, or below 1 a share of an epoch"),
        (
            "optimizer.groups",
            "[classifier.*]",
            "'classifier.*' is not a mapping; write {match: classifier.*, lr: 1e-3}",
        ),
        ("optimizer.groups", "[{lr: 1}]", "has no match, the pattern of its parameters' names"),
        ("optimizer.groups", "[{match: a}]", "a has no lr, weight_decay or unfreeze_at"),
        ("optimizer.groups", "[{match: a, rate: 1}]", "rate is not match, lr, weight_decay or unfreeze_at"),
        ("optimizer.groups", "[{match: a, lr: fast}]", "lr of a is 'fast', not a number of at least 0"),
        ("optimizer.groups", "[{match: a, lr: -1}]", "lr of a is -1, not a number of at least 0"),
        ("optimizer.layer_decay", "1", "a number above 0 and below 1 or null"),
        ("evaluate.metrics", "[{nam: f1}]", "nam is not name, args or key"),
        ("evaluate.metrics", "[{args: {a: 1}}]", "has no name"),
        ("evaluate.metrics", "[{name: f1, args: macro}]", "the args of f1 are not a mapping"),
        ("evaluate.metrics", "[{name: f1, key: [a]}]", "the key of f1 is not a text"),
        ("evaluate.metrics", "[[f1]]", "is not the name of a metric"),
        ("log.trackers", "[wandb, null]", "a list of texts"),
        ("task.args", "3", "a mapping"),
        ("task.args", "[a]", "a mapping"),
        ("resume", "'???'", "??? marks a value that is still missing"),
        ("model.overrides", "{a: [x, '???']}", "??? marks a value that is still missing"),
    ],
)
def test_a_wrong_value_is_told_with_its_place_and_what_is_allowed_and_its_default_stays(read, key, written, allowed):
    config, (problem, *_) = read(_file(key, written))
    line = {"model": 1, "data": 2}.get(key.partition(".")[0], 3)
    assert problem.startswith(f"imdb.yaml:{line}: {key} is ")
    assert allowed in problem
    assert _value(config, key) == _value(load_config(None, ["model.name=m", "data.name=d"]), key)


@pytest.mark.parametrize(
    "argument", ["seed=3.5", "run_dir=", "evaluate.every=no", "batch.size=[3]", "model.overrides=["]
)
def test_a_wrong_value_on_the_command_line_is_told_as_such(problems, argument):
    (problem,) = problems(_file(), argument)
    assert problem.startswith(f"command line: {argument.partition('=')[0]} is ")


def test_a_text_key_takes_the_command_line_as_it_stands(accepted):
    for text in ("I am, really: good", "[a", "{x", "a # b", "*", "'quoted'", "- a", "@x", "a=b=c", " "):
        config = accepted(
            _file(), f"log.project={text}", f"task.args.prompt={text}" if text != "'quoted'" else "seed=1"
        )
        assert config.log.project == text
        assert config.task.args.get("prompt", text) == text


def test_globs_need_no_quotes_on_the_command_line(accepted):
    config = accepted(MINIMAL, "data.train=*.csv", "data.validation=[0-9]*.csv", "data.test=[a*.csv,b.csv]")
    assert (config.data.train, config.data.validation, config.data.test) == ("*.csv", "[0-9]*.csv", ["a*.csv", "b.csv"])


def test_interpolations_are_resolved_over_all_layers(accepted):
    text = """
run_dir: runs/${data.name}-${batch.size}-${seed}
model: {name: m, overrides: {a: "${data.max_length}", b: ["${seed}"]}}
data: {name: d, cache_dir: "${log.project}"}
evaluate: {every: "${log.every}"}
"""
    config = accepted(text, "seed=7", "log.project=${data.config}", "data.config=\\${stars}")
    assert config.run_dir == "runs/d-32-7"
    assert config.model.overrides == {"a": 512, "b": [7]}
    assert (config.log.project, config.data.cache_dir) == ("${stars}", "${stars}")
    assert config.evaluate.every == 10


@pytest.mark.parametrize(
    ("argument", "reason"),
    [
        ("seed=${nowhere}", "Interpolation key 'nowhere' not found"),
        ("seed=${seed}", "ecursive"),
        ("seed=${log.project}", "could not be converted to Integer"),
        ("seed=${oc.env:NOT_SET_ANYWHERE}", "NOT_SET_ANYWHERE"),
        ("model.vocab_size=${seed}", "model.vocab_size is 42; allowed: a whole number of at least 300"),
        ("run_dir=${seed", "is no interpolation; write ${another.key}, or \\${ for a plain ${"),
        ("model.overrides.a=${nowhere}", "Interpolation key 'nowhere' not found"),
    ],
)
def test_an_interpolation_that_cannot_be_resolved_is_told(problems, argument, reason):
    (problem,) = problems(_file(), argument)
    assert problem.startswith(f"command line: {argument.partition('=')[0].removesuffix('.a')} is ")
    assert reason in problem


def test_all_problems_of_all_layers_come_at_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "imdb.yaml").write_text("seed: x\nseed: 1\nlr: 1\nmodel: bert\ntrain:\n  epochs: 1\n  steps: 2\n")
    with pytest.raises(UserError) as caught:
        load_config("imdb.yaml", ["log.every=0", "log.evry=1"])
    assert caught.value.problems == [
        "imdb.yaml:2: seed is given twice, on lines 1 and 2; remove one of them",
        "imdb.yaml:1: seed is 'x'; allowed: a whole number of at least 0",
        "imdb.yaml:3: there is no key lr; did you mean optimizer.lr?",
        "imdb.yaml:4: model is 'bert', but it is a section; write model.name=bert (in a file model: {name: bert})",
        "command line: log.every is 0; allowed: a whole number of at least 1 (steps)",
        "command line: there is no key log.evry; did you mean log.every?",
        "imdb.yaml:6: train.epochs is 1 and train.steps is 2, but one excludes the other; "
        "set train.epochs=null or train.steps=null",
    ]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "imdb.yaml: the file is empty"),
        (b"# only a comment\n", "imdb.yaml: the file is empty"),
        (b"\n- a\n- b\n", "imdb.yaml:2: this is a list; a config is a mapping"),
        (b"hello\n", "imdb.yaml:1: this is the text 'hello'; a config is a mapping"),
        (b"seed: 1\n\x89PNG\r\n\x1a\n", "imdb.yaml:2: this is not a text in UTF-8: byte 0x89"),
        (b"seed: 1\nrun_dir: \x00\n", "imdb.yaml:2: character '\\x00'"),
        (b"seed: [1\n", "imdb.yaml:1:7: this is not YAML"),
    ],
)
def test_a_file_that_is_no_config_is_told_in_one_line_beside_the_problems_of_the_command_line(problems, content, said):
    in_file, on_command_line = problems(content, "log.every=0")
    assert in_file.startswith(said)
    assert on_command_line.startswith("command line: log.every is 0")


def test_a_byte_order_mark_and_windows_line_ends_are_read(accepted):
    assert accepted(b"\xef\xbb\xbfseed: 3\r\n" + MINIMAL.replace("\n", "\r\n").encode()).seed == 3


def test_an_empty_section_is_nothing_and_a_scalar_for_a_section_is_told(problems, accepted):
    assert accepted(MINIMAL + "train:\nbatch: {}\n").train.epochs == 3.0
    (problem,) = problems(MINIMAL + "train: 3\n")
    assert problem.startswith("imdb.yaml:3: train is 3, but it is a section; its keys are train.epochs, train.steps")
    (problem,) = problems(MINIMAL, "data.limit=100")
    assert "its keys are data.limit.train, data.limit.validation, data.limit.test" in problem


def test_a_key_below_a_value_is_told(problems):
    (problem,) = problems(_file(), "log.project.0=a")
    assert problem == "command line: log.project is {'0': 'a'}; allowed: a text"


def test_importing_it_loads_no_heavy_library():
    heavy = {"torch", "transformers", "datasets", "numpy", "pandas", "pyarrow"}
    program = f"import sys, trainer_loop.config.load; print({heavy} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", program], text=True).strip() == "set()"


@pytest.mark.parametrize(
    ("written", "meant"), [("tab", "\t"), ("\\t", "\t"), ("\t", "\t"), (";", ";"), ("|", "|"), (" ", " ")]
)
def test_a_delimiter_is_one_character_and_a_tab_has_a_name(accepted, tmp_path, written, meant):
    config = accepted(MINIMAL, f"data.files.delimiter={written}")
    assert config.data.files.delimiter == meant
    write_text(tmp_path / "again.yaml", spell_config(config))
    assert load_config(str(tmp_path / "again.yaml")) == config


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("data.files.delimiter=::", "allowed: one character, or tab or null"),
        ("data.files.delimiter='\"'", "allowed: one character, or tab or null"),
        ('data.files.delimiter="', "has a meaning of its own"),
        ("data.files.encoding=utf-61", "Python knows no encoding of this name; some are utf-8"),
        ("data.files.encoding=rot13", "Python knows no encoding of this name"),
        ("data.files.encoding=base64", "Python knows no encoding of this name"),
        ("data.files.quoting=single", "allowed: auto, double or none"),
        ("data.missing=skip", "allowed: refuse, drop or empty"),
    ],
)
def test_how_files_are_written_is_checked(problems, override, told):
    (problem,) = problems(MINIMAL, override)
    assert told in problem
