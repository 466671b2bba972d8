"""The README shows what is there: its loop is loop.py's, its loss works, its commands and links exist."""

import inspect
import re
from pathlib import Path

import torch

from trainer_loop import load_config, loop
from trainer_loop.config.fields import Config

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def test_the_update_it_shows_is_the_update_that_runs():
    """Both methods, line by line, whatever the indentation."""
    (block,) = [block for block in blocks("python") if "def train_step" in block]
    shown = strip_lines(block).strip().replace("\n\n\n", "\n\n")  # outside a class two lines are between them
    methods = loop.TrainingLoop.train_step, loop.TrainingLoop.accumulate_gradients
    assert shown == "\n\n".join(strip_lines(inspect.getsource(method)).strip() for method in methods)
    assert shown in strip_lines(Path(loop.__file__).read_text(encoding="utf-8")), "they stand under each other"


def test_the_loop_can_be_read_in_one_sitting():
    assert len(Path(loop.__file__).read_text(encoding="utf-8").splitlines()) <= 300
    methods = loop.TrainingLoop.train_step, loop.TrainingLoop.accumulate_gradients
    assert sum(len(inspect.getsource(method).splitlines()) for method in methods) <= 45
    assert len(inspect.signature(loop.TrainingLoop).parameters) <= 8


def strip_lines(text: str) -> str:
    return "\n".join(line.strip() for line in text.splitlines())


def test_the_loss_it_shows_is_cross_entropy_at_gamma_zero():
    (code,) = [block for block in blocks("python") if "def focal" in block]
    namespace: dict = {}
    exec(code, namespace)
    logits, targets = torch.randn(6, 3), torch.tensor([0, 1, 2, 0, 1, 2])
    ours = namespace["focal"](logits, targets, gamma=0)
    torch.testing.assert_close(ours, torch.nn.functional.cross_entropy(logits, targets, reduction="sum"))


def test_nothing_in_it_waits_to_be_filled_in():
    assert re.findall(r"@[A-Z]+@|TODO|TBD", README) == []


def test_its_make_targets_are_in_the_makefile():
    makefile = (ROOT / "Makefile").read_text()
    targets = re.findall(r"^make (\w+)", README, flags=re.MULTILINE)
    assert targets == ["quickstart", "test", "bench"]
    assert all(re.search(rf"^{target}:", makefile, flags=re.MULTILINE) for target in targets)


def test_the_keys_of_its_commands_are_keys():
    overrides = re.findall(r"\s((?:data|model|batch|train|optimizer)\.[\w.]+|dry_run)=", README)
    assert "data.train" in overrides
    for key in overrides:
        value: object = Config()
        for part in key.split("."):
            value = getattr(value, part)


def test_the_configs_it_names_are_shipped():
    for name in set(re.findall(r"config=(\w+\.yaml)", README)):
        assert load_config(name, ["data.train=x.csv"] if name == "reviews.yaml" else []).model


def test_the_config_it_shows_extends_a_shipped_one(tmp_path):
    (text,) = blocks("yaml")
    (tmp_path / "large.yaml").write_text(text)
    large, imdb = load_config(str(tmp_path / "large.yaml")), load_config("imdb.yaml")
    assert (large.model.name, large.optimizer.lr) == ("google-bert/bert-large-uncased", 2e-5)
    assert (large.data, large.model.overrides) == (imdb.data, imdb.model.overrides)
