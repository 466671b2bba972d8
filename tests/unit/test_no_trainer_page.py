"""docs/no_trainer.md: its configs are shipped, and its commands make configs."""

import re
import shlex
from pathlib import Path

from trainer_loop import load_config
from trainer_loop.tasks.find import load_task

PAGE = Path(__file__).parents[2] / "docs" / "no_trainer.md"
TEXT = PAGE.read_text(encoding="utf-8")


def read_commands() -> list[list[str]]:
    """The arguments of the commands, in their order."""
    (block,) = re.findall(r"```bash\n(.*?)```", TEXT, flags=re.DOTALL)
    lines = [line for line in block.replace("\\\n", " ").splitlines() if not line.startswith("#")]
    return [shlex.split(line)[4:] for line in lines]


def test_its_configs_are_shipped():
    links = re.findall(r"\]\((\S+)\)", TEXT)
    assert len(links) >= 9
    assert [link for link in links if not (PAGE.parent / link).is_file()] == []


def test_its_commands_make_configs():
    commands = read_commands()
    assert len(commands) == 6
    for name, *overrides in commands:
        config = load_config(name.removeprefix("config="), overrides)
        assert load_task(config.task.name).columns.keys() >= config.data.columns.keys()
        load_task(config.task.name)(**config.task.args)
