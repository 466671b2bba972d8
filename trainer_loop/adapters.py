"""Adapters of the package peft: a few new weights learn, and those of the model stay as they are."""

import inspect
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers
from torch import nn
from transformers import PreTrainedModel

from trainer_loop.config.component import check_arguments
from trainer_loop.errors import UserError, in_one_line
from trainer_loop.model import stay_in_4_bits
from trainer_loop.runtime.randomness import seed_everything

if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel

_NEED_MORE_THAN_A_MODEL = {
    "ADALORA": "calls of its own in the loop",
    "POLY": "the number of a task for each row",
    "XLORA": "adapters that are trained already",
}
_CONFIG_FILE = "adapter_config.json"


def is_adapter(model_dir: Path) -> bool:
    """Whether a directory holds an adapter alone, whose model is elsewhere."""
    return (model_dir / _CONFIG_FILE).is_file()


def check_adapter(kind: str, arguments: Mapping[str, Any], *, name_place: str, place: str) -> list[str]:
    """All that is wrong with the name of an adapter and with its arguments; the places are their config keys."""
    try:
        config_class = _find_config_class(kind, place=name_place)
    except UserError as error:
        return error.problems
    return check_arguments(config_class, arguments, place=place, given=("task_type", "inference_mode", "peft_type"))


def check_targets(model: nn.Module, targets: Sequence[str], *, place: str) -> list[str]:
    """Names that are not those of modules, or of their last parts; peft would leave them out without a word."""
    names = {name.rpartition(".")[2] for name, _ in model.named_modules()} | {name for name, _ in model.named_modules()}
    problems = []
    for target in targets:
        if not any(name == target or name.endswith(f".{target}") for name in names):
            close = get_close_matches(target, sorted(names - {""}), n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            problems.append(f"{place}: {target} is no module of {type(model).__name__}{hint}")
    return problems


def add_adapter(
    model: PreTrainedModel,
    *,
    kind: str,
    arguments: Mapping[str, Any],
    task_type: str | None,
    place: str,
    seed: int,
    new_weights: Sequence[str] = (),
) -> "PeftModel":
    """The model with an adapter, which learns, and its head, which does too; its new weights are a function of `seed`.

    kind: a name of peft's adapters, such as lora. arguments: of its config. task_type: as peft calls what the model
    is made for. new_weights: names of those that were not loaded; they learn in full and go with the adapter. Raises
    UserError, beginning with the config key `place`, where peft refuses them.
    """
    from peft import get_peft_model

    seed_everything(seed, "adapter")
    config_class = _find_config_class(kind, place=place)
    arguments = dict(arguments)
    if new_modules := sorted({name.rpartition(".")[0] for name in new_weights}):
        taken = inspect.signature(config_class).parameters
        for argument in ("modules_to_save", "exclude_modules"):  # in full, and not by the adapter
            if argument in taken and not isinstance(arguments.get(argument), str):
                arguments[argument] = [*(arguments.get(argument) or ()), *new_modules]
    try:
        config: PeftConfig = config_class(task_type=task_type, **arguments)
        adapted: PeftModel = get_peft_model(model, config)
    except (ValueError, TypeError, RuntimeError, NotImplementedError) as error:
        raise UserError(f"{place}: {in_one_line(error, at_most=300)}") from error
    return adapted


def merge_adapter(model: nn.Module, *, place: str) -> PreTrainedModel:
    """The model with what the adapter adds in its own weights: it can do without peft. The adapter is used up."""
    try:
        merged: PreTrainedModel = model.merge_and_unload()  # type: ignore[operator]
    except (AttributeError, NotImplementedError, ValueError) as error:
        raise UserError(f"{place}: this adapter cannot be merged: {in_one_line(error)}; set it to false") from error
    return merged


def load_adapted_model(model_dir: Path, *, model_class: str, trust_remote_code: bool = False) -> nn.Module:
    """An exported adapter in its model, which is loaded from where it was found when the adapter was trained.

    Raises UserError where one of them cannot be loaded.
    """
    peft = _import_peft("this model is an adapter, which")
    try:
        base = peft.PeftConfig.from_pretrained(str(model_dir)).base_model_name_or_path
        config = transformers.AutoConfig.from_pretrained(model_dir, trust_remote_code=trust_remote_code)
        quantised = config.to_dict().get("quantization_config")
        options: dict[str, Any] = {"trust_remote_code": trust_remote_code}
        if quantised is not None:  # as the adapter was trained; the model itself was saved in full
            del config.quantization_config
            options["quantization_config"] = transformers.BitsAndBytesConfig.from_dict(quantised)
        auto_class = getattr(transformers, model_class)
        model, loaded = auto_class.from_pretrained(
            base, config=config, dtype=torch.float32, output_loading_info=True, **options
        )
        stay_in_4_bits(model)
        adapted: Any = peft.PeftModel.from_pretrained(model, str(model_dir))
    except (OSError, ImportError, ValueError, RuntimeError, TypeError) as error:
        raise UserError(
            f"{model_dir} is an adapter, and cannot be loaded into its model: {in_one_line(error)}"
        ) from error
    brought = tuple(adapted.peft_config["default"].modules_to_save or ())
    modules = {name.rpartition(".")[0] for name in loaded["missing_keys"]}
    ends = tuple(f".{module}" for module in brought)
    if missing := sorted(module for module in modules if not f".{module}".endswith(ends)):
        raise UserError(
            f"{model_dir} is an adapter, and neither it nor {base} has weights for {', '.join(missing[:4])}: it would "
            "answer at random"
        )
    return adapted  # type: ignore[no-any-return]


def _find_config_class(kind: str, *, place: str) -> Any:
    peft = _import_peft(f"{place}: {kind}")
    classes = {str(known.value): found for known, found in peft.mapping.PEFT_TYPE_TO_CONFIG_MAPPING.items()}
    usable = [
        known
        for known, found in classes.items()
        if known not in _NEED_MORE_THAN_A_MODEL and not issubclass(found, peft.PromptLearningConfig)
    ]
    name = kind.upper()
    if name in _NEED_MORE_THAN_A_MODEL:
        raise UserError(f"{place}: {kind} needs {_NEED_MORE_THAN_A_MODEL[name]}, and cannot be used here")
    if name in classes and name not in usable:
        raise UserError(f"{place}: {kind} puts tokens of its own before each row, and cannot be used here")
    if name not in usable:
        raise UserError(f"{place}: {kind} is no adapter of peft; allowed: {', '.join(sorted(usable)).lower()}")
    return classes[name]


def _import_peft(what: str) -> Any:
    try:
        import peft
    except ModuleNotFoundError as error:
        raise UserError(f"{what} needs the package peft: pip install peft, or trainer_loop[lora]") from error
    return peft
