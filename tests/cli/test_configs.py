"""Every shipped config is complete: with stand-in data and a tiny model in place of the hub's, it passes a dry run."""

import json
import re
from pathlib import Path

import pytest
import yaml

from trainer_loop import load_config
from trainer_loop.tasks.find import list_tasks, load_task

CONFIGS = Path(__file__).parents[2] / "configs"
README = CONFIGS.parent / "README.md"
NAMES = sorted(path.name for path in CONFIGS.glob("*.yaml"))


PROMPTS = [
    {"prompt": "Is the bay wide?", "context": "", "completion": "Yes."},
    {"prompt": "Count the ferries:", "context": "one, two", "completion": "There are two."},
]


def stand_in(name: str, tmp_path: Path, tiny_model: Path) -> list[str]:
    """Overrides that put the task's example rows, and a tiny model, in place of what is on the hub."""
    config = yaml.safe_load((CONFIGS / name).read_text())
    data, task = config["data"], load_task(config["task"]["name"])
    example = PROMPTS if name == "chat.yaml" else task.example
    columns = {own: own for own in example[0]} | data.get("columns", {})
    rows = [{theirs: row.get(own, row[next(iter(row))]) for own, theirs in columns.items()} for row in example]
    file = tmp_path / "stand_in.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows * 15))
    splits = [split for split in ("train", "validation", "test") if split in data]
    overrides = ["data.name=null", *(f"data.{split}={file}" for split in splits)]
    own_models = dict.fromkeys(("causal_lm", "chat", "preference", "reward_model"), ("gpt2", "n_layer"))
    own_models["seq2seq"] = ("t5", "num_layers")
    if config["task"]["name"] == "image_classification":
        overrides += ["model={name: null, type: vit, overrides: {num_hidden_layers: 1, hidden_size: 24}}"]
    elif config["task"]["name"] in own_models:
        model_type, layers = own_models[config["task"]["name"]]
        overrides += [
            f"model={{name: null, type: {model_type}, tokenizer: train, vocab_size: 300}}",
            f"model.overrides={{{layers}: 1}}",
        ]
        if config["task"]["name"] in ("chat", "preference", "reward_model"):
            overrides += ["model.chat_template=plain", "model.lora.merge=true"]
    else:
        overrides += [f"model.name={tiny_model}", "data.max_length=64"]
    return overrides


def test_the_readme_has_a_row_for_each_task_with_its_configs():
    rows = re.findall(r"^\| `(\w+)` \| .* \| (`\w+`(?:, `\w+`)*) \| .* \|$", README.read_text(), re.MULTILINE)
    named = {task: re.findall(r"\w+", configs) for task, configs in rows}
    assert list_tasks() == sorted(named)
    assert sorted(f"{name}.yaml" for names in (*named.values(), ["quickstart"]) for name in names) == NAMES
    for task, names in named.items():
        given = ["data.train=a.csv"] if "reviews" in names else []
        assert {load_config(f"{name}.yaml", given).task.name for name in names} == {task}


@pytest.mark.parametrize("name", [name for name in NAMES if name != "quickstart.yaml"])
def test_config_passes_a_dry_run_on_stand_in_data(name, command, tmp_path, tiny_model):
    ended = command(f"config={CONFIGS / name}", "dry_run=true", *stand_in(name, tmp_path, tiny_model))
    assert ended.code == 0, ended.err
    assert "unknown:" not in ended.out, "of the memory of a step"
    assert "dry run: everything is in order" in ended.out


def test_quickstart_passes_a_dry_run_as_it_is(command):
    ended = command("config=quickstart.yaml", "dry_run=true")
    assert ended.code == 0, ended.err


@pytest.mark.parametrize("name", NAMES)
def test_the_head_of_a_config_tells_command_hardware_and_metric(name):
    head = (CONFIGS / name).read_text().split("run_dir:")[0]
    assert re.search(rf"trainer_loop\.run config={re.escape(name)}", head)
    assert "Hardware:" in head
    assert "Metric:" in head
    assert re.search(r"measured|expected", head)
