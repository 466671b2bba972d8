"""What an adapter that somebody else made must not ask of peft is refused before peft sees it."""

import json
import sys
from pathlib import Path

import peft
import pytest
import tiny

from trainer_loop import UserError
from trainer_loop.models.adapters import load_adapted_model
from trainer_loop.record.adapter_config import check_adapter_config

BASE = {"peft_type": "LORA", "base_model_name_or_path": "base", "r": 2, "target_modules": ["query"]}


def problems_of(folder: Path, content: object) -> list[str]:
    text = content if isinstance(content, (str, bytes)) else json.dumps(content)
    (folder / "adapter_config.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    try:
        check_adapter_config(folder)
    except UserError as error:
        return error.problems
    return []


@pytest.mark.filterwarnings("ignore")
def test_what_peft_writes_for_an_adapter_is_taken(tmp_path):
    """Of every kind that can be made without arguments, but for one that consists of other adapters."""
    taken = []
    for kind, config_class in peft.mapping.PEFT_TYPE_TO_CONFIG_MAPPING.items():
        try:
            config = config_class(base_model_name_or_path="base")
        except (TypeError, ValueError):  # it needs some
            continue
        config.save_pretrained(str(tmp_path))
        problems = problems_of(tmp_path, (tmp_path / "adapter_config.json").read_bytes())
        assert problems == [] or kind == peft.PeftType.XLORA
        taken.append(kind)
    assert len(taken) > 20


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("megatron_core", "planted.code"),
        ("megatron_core", "planted"),
        ("megatron_core", ["planted"]),
        ("megatron_config", {"a": 1}),
        ("corda_config", {"cache_file": "planted.pt"}),
        ("arrow_config", {}),
        ("adapters", {"a": "planted"}),
        ("shadow_model", "planted"),
        ("tokenizer_name_or_path", "planted"),
        ("tokenizer_kwargs", {"trust_remote_code": True}),
        ("prompt_tuning_init_state_dict_path", "planted.bin"),
    ],
)
def test_a_key_that_makes_peft_load_what_it_names_is_refused(key, value, tmp_path):
    assert problems_of(tmp_path, BASE) == []
    (problem,) = problems_of(tmp_path, BASE | {key: value})
    assert problem.startswith(f"{tmp_path / 'adapter_config.json'}: {key} is ")


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("", "cannot be read: Expecting value"),
        ("{", "cannot be read: Expecting property name"),
        (b"\xff\xfe", "cannot be read: 'utf-8' codec"),
        ("[" * 100_000, "cannot be read: it is nested too deeply"),
        ('{"r": ' + "9" * 5000 + "}", "cannot be read: Exceeds the limit"),
        ([], "holds a list, not an object"),
        ({}, "peft_type is 'None', which this version of peft does not know"),
        (BASE | {"peft_type": "PLANTED"}, "peft_type is 'PLANTED', which this version"),
        (BASE | {"peft_type": ["LORA"]}, "peft_type is "),
        (BASE | {"base_model_name_or_path": None}, "base_model_name_or_path names no model"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_damaged_file_is_told_in_lines(content, told, tmp_path):
    problems = problems_of(tmp_path, content)
    assert told in problems[0]
    assert all(len(problem) < 500 and problem.isprintable() for problem in problems)


def test_a_base_that_is_an_adapter_itself_is_refused(tmp_path):
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "adapter_config.json").write_text(json.dumps(BASE | {"megatron_core": "planted.code"}))
    (problem,) = problems_of(tmp_path, BASE | {"base_model_name_or_path": str(tmp_path / "inner")})
    assert problem.endswith("inner, which is an adapter itself")


@pytest.mark.parametrize(
    "key", ["target_modules", "exclude_modules", "layers_pattern", "rank_pattern", "modules_to_save"]
)
@pytest.mark.parametrize("pattern", ["(a+)+b", "(a|a)*b", "((a{1,9}){1,9}){9}", ".*" * 30 + "x"])
def test_a_pattern_on_which_matching_takes_for_ever_is_refused(key, pattern, tmp_path):
    value = {"rank_pattern": {pattern: 4}, "modules_to_save": [pattern]}.get(key, pattern)
    (problem,) = problems_of(tmp_path, BASE | {key: value})
    assert "on which matching may take for ever" in problem


@pytest.mark.parametrize(
    "pattern",
    [
        r".*\.layers\.\d+\.(self_attn|mlp)\.(q|k|v)_proj",
        r"(?:.*?(?:language|text).*?(?:self_attn|mlp).*?(?:q_proj|v_proj).*?)|(?:\bmodel\.layers\.[\d]{1,}\.q_proj)",
        r"^(?!.*vision).*(?:q_proj|v_proj)$",
        "all-linear",
    ],
)
def test_patterns_that_people_use_are_taken(pattern, tmp_path):
    assert problems_of(tmp_path, BASE | {"target_modules": pattern}) == []


def test_no_module_is_imported_when_an_adapter_is_loaded(tmp_path, monkeypatch):
    """Nor by what is not refused: peft itself does not heed auto_mapping here."""
    (tmp_path / "planted.py").write_text("raise SystemExit('imported')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    model = tiny.make_bert()
    model.save_pretrained(tmp_path / "base")
    config = peft.LoraConfig(r=2, target_modules=["query"], task_type="SEQ_CLS")
    adapted = peft.get_peft_model(model, config)
    adapted.peft_config["default"].base_model_name_or_path = str(tmp_path / "base")
    adapted.save_pretrained(tmp_path / "adapter")
    model.config.save_pretrained(tmp_path / "adapter")
    path = tmp_path / "adapter" / "adapter_config.json"
    whole = json.loads(path.read_text())
    mapping = {"auto_mapping": {"base_model_class": "Code", "parent_library": "planted"}}
    path.write_text(json.dumps(whole | mapping))
    load_adapted_model(tmp_path / "adapter", model_class="AutoModelForSequenceClassification", num_tokens=1)
    path.write_text(json.dumps(whole | {"megatron_core": "planted.code", "megatron_config": {"a": 1}}))
    with pytest.raises(UserError):
        load_adapted_model(tmp_path / "adapter", model_class="AutoModelForSequenceClassification", num_tokens=1)
    assert "planted" not in sys.modules
