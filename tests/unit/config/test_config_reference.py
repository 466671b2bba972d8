"""The help text and docs/config.md say every key, and are made from fields.py."""

from pathlib import Path

import pytest

from trainer_loop.config.load import read_config
from trainer_loop.config.reference import _EXAMPLES, help_text, markdown
from trainer_loop.config.schema import KEYS, SECTIONS
from trainer_loop.config.values import KINDS, expects

SOURCE_TREE = Path(__file__).parents[3]


def test_the_document_is_current():
    document = SOURCE_TREE / "docs" / "config.md"
    assert document.read_text(encoding="utf-8") == markdown(), "run python -m trainer_loop.config.reference"


@pytest.mark.parametrize("key", KEYS.values(), ids=list(KEYS))
def test_every_key_is_told_with_default_comment_unit_and_what_is_allowed(key):
    assert key.comment
    assert key.unit in expects(key)
    row = next(line for line in markdown().splitlines() if line.startswith(f"| `{key.name}` |"))
    position = help_text().splitlines().index(f"  {key.name}={_written(key.default)}")
    below = help_text().splitlines()[position + 1]
    for text in (key.comment, expects(key)):
        assert text in row
        assert text in below
    assert f"`{_written(key.default)}`" in row


def _written(default):
    return {"None": "null", "True": "true", "False": "false"}.get(str(default), str(default))


def test_every_section_is_told():
    for section, comment in SECTIONS.items():
        assert f"## {section}: {comment}" in markdown()
        assert f"{section}: {comment}" in help_text()


@pytest.mark.parametrize("key", KEYS.values(), ids=list(KEYS))
def test_every_default_is_accepted_as_it_is_told(key):
    reading = read_config(None, [f"{key.name}={_written(key.default)}"])
    config, problems = reading.config, reading.problems
    assert not [problem for problem in problems if "allowed" in problem]
    for part in key.name.split("."):
        config = getattr(config, part)
    filled_in = {"batch.size": 32, "train.epochs": 3.0}
    assert config == filled_in.get(key.name, key.default)


def test_the_examples_have_only_keys_that_exist():
    for _, command in _EXAMPLES:
        if "--help" in command:
            assert command.split()[-1] in KEYS
            continue
        overrides = [word for word in command.split()[3:] if not word.startswith("config=")]
        problems = read_config(None, ["model.name=m", "data.name=d", *overrides]).problems
        assert problems == []


def test_every_kind_is_the_kind_of_a_key():
    assert {key.kind for key in KEYS.values()} == KINDS.keys()
