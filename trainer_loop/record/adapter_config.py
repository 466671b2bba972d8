"""Checks adapter_config.json, which may come from an untrusted source.

peft imports a module that the file names (`megatron_core`; before peft 0.20 any module), loads further models, adapters
and files that it names, and uses its texts as regular expressions.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trainer_loop.config.yaml_core import texts_in
from trainer_loop.errors import UserError, in_one_line, refuse
from trainer_loop.runtime.plain_json import parse_json

ADAPTER_CONFIG = "adapter_config.json"

_LOADED = {  # key by which peft loads something -> the value that loads nothing
    "megatron_config": None,
    "megatron_core": "megatron.core",
    "corda_config": None,
    "arrow_config": None,
    "adapters": None,
    "shadow_model": "mirror",
    "tokenizer_name_or_path": None,
    "tokenizer_kwargs": None,
    "prompt_tuning_init_state_dict_path": None,
}
_REPEATED_GROUP = re.compile(r"(?<!\\)\)[*+{]")  # matching may take exponential time
_REPEATS = re.compile(r"(?<!\\)[*+{]")
_MOST_REPEATS = 12  # in one pattern


def check_adapter_config(model_dir: Path) -> None:
    """Refuse an adapter that would make peft load more than it needs. peft must be installed.

    Raises:
        UserError: With all problems.
    """
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    path = model_dir / ADAPTER_CONFIG
    try:
        config = parse_json(path.read_bytes().decode())
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {in_one_line(error)}; export the adapter again") from error
    if not isinstance(config, dict):
        raise UserError(f"{path} holds a {type(config).__name__}, not an object; export the adapter again")
    peft_types = [str(getattr(kind, "value", kind)) for kind in PEFT_TYPE_TO_CONFIG_MAPPING]
    problems = []
    if config.get("peft_type") not in peft_types:
        problems.append(f"peft_type is {str(config.get('peft_type'))[:40]!r}, which this version of peft does not know")
    base = config.get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        problems.append("base_model_name_or_path names no model")
    elif (Path(base) / ADAPTER_CONFIG).is_file():
        problems.append(f"base_model_name_or_path is {base}, which is an adapter itself")
    refuse([f"{path}: {problem}" for problem in [*find_dangers(config), *problems]])


def find_dangers(config: Mapping[str, Any]) -> list[str]:
    """Return messages about values that make peft load something and texts that are unsafe as regular expressions."""
    loaded = [
        f"{key} is {str(config[key])[:80]!r}, by which peft would load what it names; set it to null"
        for key, harmless in _LOADED.items()
        if config.get(key) not in (None, harmless)
    ]
    return loaded + [
        f"{text[:80]!r} is a pattern on which matching may take for ever; write it without repeated groups"
        for text in texts_in(dict(config))
        if _REPEATED_GROUP.search(text) or len(_REPEATS.findall(text)) > _MOST_REPEATS
    ]
