"""`--help KEY`."""

import sys
from pathlib import Path

import pytest

from trainer_loop import UserError
from trainer_loop.cli.help import help_about
from trainer_loop.optim.optimizers import OPTIMIZERS
from trainer_loop.optim.schedules import SCHEDULES
from trainer_loop.tasks.describe import markdown


@pytest.mark.parametrize(("key", "names"), [("optimizer.name", OPTIMIZERS), ("scheduler.name", SCHEDULES)])
def test_every_name_of_a_key_is_listed_with_its_arguments(key, names):
    lines = help_about(key).splitlines()
    for name in names:
        assert any(line.startswith(f"  {name}(") for line in lines), name


def test_arguments_that_the_config_has_keys_for_are_not_listed():
    (line,) = [line for line in help_about("optimizer.name").splitlines() if line.startswith("  adamw(")]
    assert "betas=(0.9, 0.999)" in line
    assert "lr" not in line
    assert "weight_decay" not in line


def test_a_name_whose_package_is_missing_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "lion_pytorch", None)
    assert "  lion: pip install lion-pytorch" in help_about("optimizer.name")


def test_a_section_and_a_plain_key_are_told_as_the_whole_help_tells_them():
    assert "  train.epochs=null" in help_about("train")
    assert "train.steps" in help_about("train")
    only = help_about("train.epochs")
    assert "train.epochs" in only
    assert "train.steps=" not in only


def test_a_name_that_is_no_key_is_an_error_with_the_likely_one():
    with pytest.raises(UserError, match=r"optimizer\.name"):
        help_about("optimiser.name")


def test_help_about_a_task_tells_its_columns_and_an_example():
    told = help_about("task.name=token_classification")
    assert "| `tags` | a list of labels | target, one for each of `words` |" in told
    assert '{"words": ["Nobody", "answered"], "tags": ["O", "O"]}' in told
    with pytest.raises(UserError, match=r"task.name is .tokens.; allowed: causal_lm, .*, token_classification, or"):
        help_about("task.name=tokens")


def test_the_page_of_tasks_is_current():
    assert (Path(__file__).parents[2] / "docs" / "tasks.md").read_text(encoding="utf-8") == markdown()
