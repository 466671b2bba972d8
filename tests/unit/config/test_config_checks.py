"""What must hold between keys."""

import pytest

from trainer_loop import UserError
from trainer_loop.config.checks import missing_parts
from trainer_loop.config.load import read_config
from trainer_loop.config.schema import KEYS

NEEDED = ["model.name=m", "data.train=a.csv"]


def problems(*overrides):
    return read_config(None, [*NEEDED, *overrides]).problems


@pytest.mark.parametrize(
    ("overrides", "missing"),
    [
        ([], {}),
        (["model.name="], {"model": "neither model.name nor model.type is given; set model.name to a hub id"}),
        (["model.name=", "model.type=bert", "model.tokenizer=train"], {}),
        (
            ["data.train=train"],
            {"train": "data.train is 'train', the name of a split, but data.name is null; set data"},
        ),
        (["data.train=train", "data.name=d"], {}),
        (
            ["checkpoint.best=f1"],
            {"validation": "checkpoint.best is 'f1', but there is no validation set to measure it"},
        ),
        (["checkpoint.best=f1", "data.validation=b.csv"], {}),
        (
            ["train={patience: 2, patience_metric: -loss}"],
            {"validation": "train.patience_metric is '-loss', but there is no validation set to measure it"},
        ),
    ],
)
def test_what_only_python_could_still_give_is_no_contradiction(overrides, missing):
    reading = read_config(None, [*NEEDED, *overrides])
    config, wrong = reading.config, reading.problems
    assert wrong == []
    found = missing_parts(config)
    assert found.keys() == missing.keys()
    assert all(found[part].startswith(told) for part, told in missing.items())


@pytest.mark.parametrize(
    ("overrides", "values", "remedy"),
    [
        (
            ["model.type=bert", "model.tokenizer=train"],
            "model.name is 'm' and model.type is 'bert'",
            "set model.name=null or model.type=null",
        ),
        (["model.tokenizer=train"], "model.tokenizer is 'train'", "write model.from_scratch=true"),
        (
            ["data.validation=b.csv", "data.validation_fraction=0.1"],
            "data.validation is 'b.csv' and data.validation_fraction is 0.1",
            "set data.validation=null or data.validation_fraction=null",
        ),
        (
            ["data.validation_fraction=0.1", "data.fold=1/5"],
            "data.validation_fraction is 0.1 and data.fold is '1/5'",
            "set data.validation_fraction=null or data.fold=null",
        ),
        (
            ["data.streaming=true", "data.fold=1/5"],
            "data.fold is '1/5', but no part of a stream can be cut off",
            "set it to null, and data.validation to other rows",
        ),
        (
            ["data.train=training"],
            "data.train is 'training', the name of a split, but data.name is null",
            "data.name to a hub",
        ),
        (
            ["data.test=[b.csv,test]"],
            "data.test is 'test', the name of a split",
            "data.test to a file such as test.csv",
        ),
        (["data.validation=valid-set"], "data.validation is 'valid-set'", "valid-set.csv"),
        (
            ["batch.size=8", "batch.accumulate=2", "batch.per_device=4"],
            "batch.size is 8 and batch.accumulate is 2",
            "set batch.size=null or batch.accumulate=null",
        ),
        (["batch.accumulate=2"], "batch.accumulate is 2", "set batch.per_device"),
        (["batch.window=8"], "batch.window is 8, but batch.order is 'shuffle'", "set batch.order=window"),
        (
            ["batch.order=window", "data.streaming=true"],
            "batch.order is 'window', but the rows of a stream are not known",
            "set batch.order=shuffle",
        ),
        (
            ["train.epochs=0.5", "train.steps=3"],
            "train.epochs is 0.5 and train.steps is 3",
            "set train.epochs=null or train.steps=null",
        ),
        (["scheduler.warmup=1.5"], "scheduler.warmup is 1.5", "from 1 a whole number of steps"),
        (
            ["checkpoint.best=accuracy", "data.validation=b.csv", "evaluate.every=never"],
            "but evaluate.every is never",
            "set it to epoch or a number of steps",
        ),
        (
            ["checkpoint.best=-loss", "data.validation_fraction=0.1", "checkpoint.every=never"],
            "checkpoint.best is '-loss', but checkpoint.every is never",
            "or checkpoint.best to null",
        ),
        (
            ["model.packing=true", "model.compile=true"],
            "packed rows would be compiled anew for each microbatch",
            "set one of them to false",
        ),
        (
            ["model.packing=true", "model.attention=eager"],
            "packed rows bring their own attention",
            "set model.attention=auto",
        ),
        (["checkpoint.best=-", "data.validation=b.csv"], "checkpoint.best is '-'", "-loss"),
        (
            ["train.patience=2", "data.validation=b.csv"],
            "train.patience is 2, which counts evaluations without a better metric",
            "set train.patience_metric or checkpoint.best to a metric, such as -loss",
        ),
        (
            ["train.patience_metric=-loss", "data.validation=b.csv"],
            "train.patience_metric is '-loss', but train.patience is null",
            "set it to a number of evaluations",
        ),
        (
            ["train={patience: 2, patience_metric: -}", "data.validation=b.csv"],
            "train.patience_metric is '-'",
            "a metric follows the sign, such as -loss",
        ),
        (
            ["train={patience: 2, patience_metric: -loss}", "data.validation=b.csv", "evaluate.every=never"],
            "train.patience_metric is '-loss', but evaluate.every is never",
            "or train.patience_metric to null",
        ),
        (
            ["data.streaming=true", "data.validation_fraction=0.1"],
            "data.validation_fraction is 0.1, but no part of a stream can be cut off",
            "set it to null, and data.validation to other rows",
        ),
        (
            ["data.streaming=true", "data.limit.train=10"],
            "data.limit.train is 10, but no sample of a stream can be drawn",
            "set train.steps",
        ),
        (
            ["data.streaming=true", "data.num_workers=2"],
            "data.num_workers is 2, but a stream is read ahead by a thread of its own",
            "leave data.num_workers out",
        ),
        (
            ["data.streaming=true", "model.tokenizer=train", "model.from_scratch=true"],
            "model.tokenizer is 'train', but a stream is not read before training",
            "name a tokenizer",
        ),
        (
            ["data.streaming=true", "train.steps=5"],
            "checkpoint.every is 'epoch', but with train.steps the rows of a stream are not counted",
            "set checkpoint.every to a number of steps, or set train.epochs",
        ),
        (
            ["data.streaming=true", "train.steps=5", "checkpoint.every=5", "data.validation=b.csv"],
            "evaluate.every is 'epoch', but with train.steps the rows of a stream are not counted",
            "set evaluate.every to a number of steps, or set train.epochs",
        ),
    ],
)
def test_a_contradiction_names_the_keys_their_values_and_the_remedy(overrides, values, remedy):
    (problem,) = problems(*overrides)
    assert problem.startswith("command line: ")
    assert values in problem
    assert remedy in problem


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["model.name=", "model.type=bert", "model.tokenizer=train"],
        ["model.from_scratch=true"],
        ["model.from_scratch=true", "model.tokenizer=train"],
        ["data.name=d", "data.train=train", "data.validation=validation", "data.test=[test,extra]"],
        ["data.train=my_lab.data.reviews", "data.validation=rows/*.csv"],
        ["batch.accumulate=2", "batch.per_device=4"],
        ["batch.accumulate=2", "batch.per_device=4", "batch.size=null"],
        ["train.epochs=null", "train.steps=3"],
        ["scheduler.warmup=0"],
        ["scheduler.warmup=0.99"],
        ["scheduler.warmup=1"],
        ["scheduler.warmup=100"],
        ["checkpoint.best=-loss", "data.validation_fraction=0.1", "evaluate.every=10"],
        ["checkpoint.best=-loss", "data.fold=2/5", "data.split_by=author"],
        ["evaluate.every=never", "checkpoint.every=never"],
        ["data.streaming=true", "data.validation=b.csv"],
        ["data.streaming=true", "train.steps=5", "checkpoint.every=never"],
        ["data.streaming=true", "train.steps=5", "checkpoint.every=5", "evaluate.every=2", "data.validation=b.csv"],
    ],
)
def test_what_belongs_together_is_accepted(overrides):
    assert problems(*overrides) == []


@pytest.mark.parametrize(
    ("overrides", "size", "epochs"),
    [
        ([], 32, 3.0),
        (["batch.size=8", "train.epochs=1"], 8, 1.0),
        (["batch.accumulate=2", "batch.per_device=4"], None, 3.0),
        (["train.steps=3"], 32, None),
        (["train.steps=3", "train.steps="], 32, 3.0),
    ],
)
def test_size_and_epochs_are_filled_in_where_nothing_else_is_given(overrides, size, epochs):
    reading = read_config(None, [*NEEDED, *overrides])
    config, found = reading.config, reading.problems
    assert (config.batch.size, config.train.epochs, found) == (size, epochs, [])


def test_a_contradiction_carries_the_line_of_a_key_that_was_given(tmp_path):
    path = tmp_path / "imdb.yaml"
    path.write_text("model: {name: m}\ndata:\n  train: a.csv\n  validation: b.csv\n")
    (problem,) = read_config(str(path), ["data.validation_fraction=0.1"]).problems
    assert problem.startswith("command line: data.validation is 'b.csv'")
    (problem,) = read_config(str(path), ["checkpoint.best=f1", "evaluate.every=never"]).problems
    assert problem.startswith("command line: checkpoint.best is 'f1'")
    path.write_text("model: {name: m}\ndata:\n  train: a.csv\n  validation: b.csv\n  validation_fraction: 0.5\n")
    (problem,) = read_config(str(path), []).problems
    assert problem.startswith(f"{path}:5: ")


def test_a_key_that_is_wrong_by_itself_raises_no_contradiction_as_well():
    (problem,) = problems("batch.accumulate=${seed}", "batch.per_device=0", "seed=3", "batch.accumulate=zero")[:1]
    assert problem.startswith("command line: batch.per_device is 0")
    assert problems("model.name=${nowhere}") == [
        "command line: model.name is '${nowhere}'; allowed: a text or null; Interpolation key 'nowhere' not found"
    ]


@pytest.mark.parametrize("name", ["data.num_workers", "train.threads"])
@pytest.mark.parametrize(("cores", "most"), [(2, 64), (16, 64), (96, 384)])
def test_more_processes_and_threads_than_a_machine_has_a_use_for_are_refused(name, cores, most, monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: cores)
    assert problems(f"{name}={most}") == []
    for number in (most + 1, 100_000):
        (problem,) = problems(f"{name}={number}")
        told = f"{name} is {number:,}; on this machine of {cores} cores at most {most:,} are allowed; set {name}=auto"
        assert problem == f"command line: {told}"


def test_a_vocabulary_that_would_take_all_memory_is_refused():
    assert problems("model.vocab_size=9999999") == []
    assert (
        "model.vocab_size is 10000000; allowed: a whole number of at least 300" in problems("model.vocab_size=1e7")[0]
    )


WHOLE_NUMBERS = [
    name for name, key in KEYS.items() if key.kind in ("integer", "token_limit", "auto_or_count", "interval")
]


@pytest.mark.parametrize("name", WHOLE_NUMBERS)
def test_whole_numbers_that_no_64_bits_hold_are_refused(name):
    for number in (2**62 + 1, 10**99):
        told = [problem for problem in problems(f"{name}={number}") if "whole numbers reach to" in problem]
        assert len(told) == 1
        assert told[0].startswith(f"command line: {name} is {str(number)[:60]}")


LONG = "n" * 300
PATHS = ["run_dir", "resume", "model.name", "model.tokenizer", "data.name", "data.cache_dir", "data.train", "data.test"]


@pytest.mark.parametrize("value", [LONG, f"/a/{LONG}/b", "a/" * 3000, "ü" * 128], ids=["name", "part", "path", "bytes"])
@pytest.mark.parametrize("form", [*(f"{name}={{}}" for name in PATHS), "evaluate.metrics=[./{}]", "data.train=[{}]"])
def test_names_that_no_file_system_takes_are_refused_before_anything_looks_for_them(form, value):
    argument = form.format(value)
    with pytest.raises(UserError) as caught:
        problems(argument)
    assert any(f"{argument.partition('=')[0]} is " in problem for problem in caught.value.problems)
    assert all(len(problem) < 1000 for problem in caught.value.problems)


def test_long_names_of_columns_are_fine_and_those_of_sets_are_not():
    assert problems(f"log.project={LONG}") == []
    (problem,) = problems(f"data.test={{{LONG}: a.csv}}")
    assert "is no name: up to 100 letters" in problem


@pytest.mark.parametrize(
    "argument", ["run_dir=a\0b", "log.project=\0", 'task.args={a: {"b": ["x\\0"]}}', 'data.train=["a\\0"]']
)
def test_a_nul_character_is_refused_wherever_it_is(argument):
    (problem,) = problems(argument)
    assert "there is a NUL character in it" in problem
    assert problem.isprintable()
