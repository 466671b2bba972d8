"""Translates the FSDP settings of an accelerate file into keys of the section `parallel`."""

import functools
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from trainer_loop.errors import UserError

_USES_FSDP, _USES_DEEPSPEED = "ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED"
# Name of an FSDP sharding strategy -> values of the section `parallel`.
FSDP_STRATEGIES: dict[str, dict[str, Any]] = {
    "FULL_SHARD": {"shard": "full"},
    "SHARD_GRAD_OP": {"shard": "zero2"},
    "NO_SHARD": {"shard": "none"},
    "HYBRID_SHARD": {"shard": "full", "replicate": "auto"},
    "HYBRID_SHARD_ZERO2": {"shard": "zero2", "replicate": "auto"},
}
# Settings of FSDP that have no counterpart here.
_WITHOUT_COUNTERPART = ("FSDP_ACTIVATION_CHECKPOINTING_OFFLOAD=true", "FSDP_AUTO_WRAP_POLICY=SIZE_BASED_WRAP")


@dataclass(frozen=True)
class TranslatedFile:
    """An accelerate file as values of the section `parallel`."""

    values: dict[str, Any]
    notice: str  # one line for the console that names the values


@functools.cache
def take_over_fsdp() -> TranslatedFile | None:
    """Translate the environment of `accelerate launch` and disable FSDP in accelerate itself.

    Returns:
        None if the environment does not ask for FSDP.

    Raises:
        UserError: if it asks for DeepSpeed.
    """
    translated = translate_fsdp(os.environ)
    if translated is not None:
        os.environ[_USES_FSDP] = "false"
    return translated


def translate_fsdp(environment: Mapping[str, str]) -> TranslatedFile | None:
    """Translate the variables that `accelerate launch` sets; see `take_over_fsdp`. This changes no variable."""
    if environment.get(_USES_DEEPSPEED, "").lower() == "true":
        raise UserError(
            "accelerate was told to use DeepSpeed, which has a training loop of its own; launch with --multi_gpu, and "
            "set parallel.shard=zero2 for its stages 1 and 2, or parallel.shard=full for stage 3"
        )
    if environment.get(_USES_FSDP, "").lower() != "true":
        return None
    values = _find_strategy(environment)
    if (layers := environment.get("FSDP_TRANSFORMER_CLS_TO_WRAP")) and values["shard"] != "none":
        values["layers"] = [name.strip() for name in layers.split(",")]
    if environment.get("FSDP_OFFLOAD_PARAMS") == "true" and values["shard"] != "none":
        values["offload"] = "weights"
    keys = " ".join(f"parallel.{key}={value}" for key, value in values.items()).replace("'", "")  # lists quote names
    notice = f"accelerate's FSDP file means {keys}"
    settings = [f"{name}={value}" for name, value in environment.items()]
    if "FSDP_ACTIVATION_CHECKPOINTING=true" in settings:
        notice += "; set model.gradient_checkpointing=true for FSDP_ACTIVATION_CHECKPOINTING=true"
    if dropped := [setting for setting in _WITHOUT_COUNTERPART if setting in settings]:
        notice += f"; without counterpart: {', '.join(dropped)}"
    return TranslatedFile(values, notice)


def _find_strategy(environment: Mapping[str, str]) -> dict[str, Any]:
    if environment.get("FSDP_VERSION", "1") == "2":
        reshards = environment.get("FSDP_RESHARD_AFTER_FORWARD", "true").lower() == "true"
        return {"shard": "full" if reshards else "zero2"}
    setting = environment.get("FSDP_SHARDING_STRATEGY", "FULL_SHARD").upper()
    numbered = dict(zip("12345", FSDP_STRATEGIES, strict=True))
    name = numbered.get(setting, setting)
    if name not in FSDP_STRATEGIES:
        raise UserError(
            f"FSDP_SHARDING_STRATEGY is {setting}; allowed: {', '.join(FSDP_STRATEGIES)}; set fsdp_sharding_strategy "
            "in the file of accelerate, or parallel.shard"
        )
    return dict(FSDP_STRATEGIES[name])
