"""`config=imdb.yaml key=value`, and where imdb.yaml is looked for."""

from pathlib import Path

import pytest

from trainer_loop import UserError
from trainer_loop.config import find
from trainer_loop.config.find import find_config
from trainer_loop.config.load import read_config, split_arguments


def test_no_argument_means_the_embedded_default():
    assert split_arguments([]) == ("quickstart.yaml", [], None)


def test_the_config_and_the_overrides_are_split_in_any_order():
    assert split_arguments(["seed=1", "config=a/b.yaml", "log.project=a=b c"]) == (
        "a/b.yaml",
        ["seed=1", "log.project=a=b c"],
        None,
    )
    assert split_arguments(["seed=1"]) == (None, ["seed=1"], None)


@pytest.mark.parametrize("word", ["--help", "-h"])
def test_help_is_found_anywhere_and_forgives_the_rest(word):
    assert split_arguments(["config=a.yaml", "--lr", "3", word])[2] == ""
    assert split_arguments([word, "config=a.yaml"])[2] == ""


def test_help_may_be_asked_about_one_key():
    assert split_arguments(["--help", "optimizer.name"])[2] == "optimizer.name"
    assert split_arguments(["config=a.yaml", "-h", "optimizer", "seed=1"])[2] == "optimizer"


@pytest.mark.parametrize(
    ("arguments", "write"),
    [
        (["--lr", "3"], "--lr 3: arguments are key=value; write optimizer.lr=3"),
        (["--lr", "-3"], "--lr -3: arguments are key=value; write optimizer.lr=-3"),
        (["--train.epochs=3"], "write train.epochs=3"),
        (["-lr=3"], "write optimizer.lr=3"),
        (["--learning-rate", "3e-5"], "write optimizer.lr=3e-5"),
        (["--per_device_train_batch_size=8"], "write batch.per_device=8 (rows of one microbatch;"),
        (["--bf16"], "write train.precision=... (bf16)"),
        (["--dry-run"], "write dry_run=true"),
        (["train.epochs", "3"], "train.epochs 3: arguments are key=value; write train.epochs=3"),
        (["--config", "imdb.yaml"], "write config=imdb.yaml"),
        (["imdb.yaml"], "imdb.yaml: arguments are key=value; write config=imdb.yaml"),
        (["config="], "config=: write one file, such as config=imdb.yaml"),
        (["config=a.yaml", "config=b.yaml"], "config=b.yaml: config=a.yaml was given before"),
        (["=3"], "=3: arguments are key=value"),
        (["zzz"], "--help lists all keys"),
        (["--"], "--help lists all keys"),
    ],
)
def test_another_form_is_told_with_the_right_spelling(arguments, write):
    with pytest.raises(UserError) as caught:
        split_arguments(arguments)
    (problem,) = caught.value.problems
    assert problem.startswith("command line: ")
    assert write in problem


def test_all_wrong_arguments_are_told_at_once():
    with pytest.raises(UserError) as caught:
        split_arguments(["imdb.yaml", "--lr", "3", "seed=1", "--fp16", "--epochs", "4"])
    assert [problem.split(": ")[1] for problem in caught.value.problems] == [
        "imdb.yaml",
        "--lr 3",
        "--fp16",
        "--epochs 4",
    ]


@pytest.fixture
def shipped(tmp_path, monkeypatch):
    """An empty current directory, and a directory of shipped configs elsewhere."""
    directory = tmp_path / "shipped"
    directory.mkdir()
    monkeypatch.setattr(find, "shipped_dir", lambda: directory)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return directory


def _write(path, seed):
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"seed: {seed}\nmodel: {{name: m}}\ndata: {{name: d}}\n")


def test_a_config_is_looked_for_as_given_then_in_configs_then_among_the_shipped_ones(shipped):
    _write(shipped / "imdb.yaml", 3)
    assert find_config("imdb.yaml") == shipped / "imdb.yaml"
    _write(Path("configs/imdb.yaml"), 2)
    assert read_config("imdb.yaml", []).config.seed == 2
    _write(Path("imdb.yaml"), 1)
    assert read_config("imdb.yaml", []).config.seed == 1
    assert read_config("configs/imdb.yaml", []).config.seed == 2
    assert find_config(str(shipped / "imdb.yaml")) == shipped / "imdb.yaml"


def test_problems_name_the_file_that_was_found(shipped):
    Path("configs").mkdir()
    Path("configs/imdb.yaml").write_text("lr: 1\n")
    assert read_config("imdb.yaml", []).problems[0].startswith("configs/imdb.yaml:1: there is no key lr")
    (shipped / "other.yaml").write_text("lr: 1\n")
    assert read_config("other.yaml", []).problems[0].startswith(f"{shipped}/other.yaml:1: there is no key lr")


def test_a_config_that_is_not_there_is_told_with_the_places_and_the_names(shipped):
    _write(shipped / "imdb.yaml", 1)
    _write(shipped / "mrpc.yaml", 1)
    with pytest.raises(UserError) as caught:
        find_config("imbd.yaml")
    (problem,) = caught.value.problems
    assert problem == (
        f"config=imbd.yaml is not there; looked for imbd.yaml, configs/imbd.yaml, {shipped}/imbd.yaml; "
        "shipped configs: imdb.yaml, mrpc.yaml; did you mean config=imdb.yaml?"
    )
    found = read_config("imbd.yaml", ["log.every=0"]).problems
    assert found[0] == problem
    assert found[1].startswith("command line: log.every is 0")
    assert len(found) == 2


def test_a_name_without_its_ending_is_told(shipped):
    _write(shipped / "imdb.yaml", 1)
    with pytest.raises(UserError, match=r"did you mean config=imdb\.yaml\?"):
        find_config("imdb")


def test_a_run_directory_is_told_its_config_file(shipped):
    _write(Path("run/config.yaml"), 1)
    with pytest.raises(UserError, match=r"config=run is a directory; write config=run/config\.yaml"):
        find_config("run")


def test_the_shipped_configs_lie_in_the_package_or_beside_it():
    assert find.shipped_dir().name == "configs"
    assert find.shipped_dir().is_dir()
