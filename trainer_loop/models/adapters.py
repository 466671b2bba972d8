"""Adapters of the package peft: a few new weights are trained while the weights of the model are frozen."""

import inspect
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers
from torch import nn
from transformers import PreTrainedModel

from trainer_loop.components import check_arguments
from trainer_loop.errors import UserError, in_one_line, refuse, suggest
from trainer_loop.models.config import find_text_config, looks_like_path
from trainer_loop.models.loading import grow_embeddings, prevent_4_bit_repacking
from trainer_loop.models.weight_files import check_adapter_weights, check_weight_files
from trainer_loop.record.adapter_config import ADAPTER_CONFIG, check_adapter_config, find_dangers
from trainer_loop.runtime.memory import is_out_of_memory
from trainer_loop.runtime.randomness import seed_everything

if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel

_UNSUPPORTED_NEEDS = {  # type of adapter -> what it needs that the loop does not have
    "ADALORA": "calls of its own in the loop",
    "POLY": "the number of a task for each row",
    "SHADOW": "a second model beside the first",
    "XLORA": "adapters that are trained already",
}
_ALL_LINEAR = "all-linear"  # peft's name for all linear layers except the output


def is_adapter(model_dir: Path) -> bool:
    """Return whether a directory holds only an adapter, without its base model."""
    return (model_dir / ADAPTER_CONFIG).is_file()


@dataclass(frozen=True)
class AdapterPlan:
    """A checked adapter."""

    kind: str  # peft's name of the adapter type, such as lora
    arguments: Mapping[str, Any]  # of the adapter's config class in peft
    section: str  # `lora` or `peft`: the section of `model` that has its keys
    merge: bool = False  # export the model with the adapter merged into it
    target_modules: Sequence[str] = ()  # layers that the user names

    @property
    def place(self) -> str:
        """Config key of the section, for error messages."""
        return f"model.{self.section}"

    def add_to(
        self,
        model: PreTrainedModel,
        *,
        task_type: str | None,
        seed: int,
        new_weights: Sequence[str] = (),
        new_tokens: Sequence[int] = (),
        idle_layers: Collection[str] = (),
    ) -> "PeftModel":
        """Freeze a model and add a trainable adapter. The head and other new weights stay trainable.

        Args:
            model: the base model; changed in place.
            task_type: peft's name of the model's task, such as SEQ_CLS.
            new_weights: names of weights that were not loaded.
            new_tokens: ids of tokens added to the embeddings; their rows are trained if the adapter supports it.
            idle_layers: names of layers that do not affect the output of the model; they get no adapter.

        Raises:
            UserError: peft rejects the arguments or the model.
        """
        from peft import get_peft_model

        seed_everything(seed, "adapter")
        config_class = _find_config_class(self.kind, place=self.place)
        in_full = _outermost([*_find_head(model), *_modules_of(model, new_weights, place=self.place)])
        arguments = self._complete_arguments(
            config_class, model, in_full=in_full, idle_layers=idle_layers, new_tokens=new_tokens
        )
        self._refuse_arguments(arguments, config_class)
        try:
            config: PeftConfig = config_class(task_type=task_type, **arguments)
            adapted: PeftModel = get_peft_model(model, config)
        except (ValueError, TypeError, RuntimeError, NotImplementedError) as error:
            if "No modules were targeted" in str(error):
                raise UserError(
                    f"{self.place}: {self.kind} finds no layer in a {type(model).__name__} that it can stand beside; "
                    "name layers with model.peft.args.target_modules, or train without an adapter"
                ) from error
            raise UserError(f"{self.place}: {in_one_line(error)}") from error
        if nested := _find_nested(adapted):
            raise UserError(
                f"{self.place}: peft would train {nested} outside the forward pass of {type(model).__name__}; name "
                "what is saved in full with model.peft.args.modules_to_save"
            )
        base = config.base_model_name_or_path
        if base and Path(base).is_dir():  # peft then finds it from any working directory
            config.base_model_name_or_path = str(Path(base).resolve())
        return adapted

    def _complete_arguments(
        self,
        config_class: type,
        model: PreTrainedModel,
        *,
        in_full: Sequence[str],
        idle_layers: Collection[str],
        new_tokens: Sequence[int],
    ) -> dict[str, Any]:
        """Return the arguments with those that follow from the model; modules `in_full` get no adapter."""
        arguments = dict(self.arguments)
        parameters = inspect.signature(config_class).parameters
        if in_full and "modules_to_save" in parameters:
            saved = [str(name) for name in arguments.get("modules_to_save") or ()]
            missing = [name for name in in_full if not any(f".{each}." in f".{name}." for each in saved)]
            arguments["modules_to_save"] = [*saved, *(_unique(model, name) for name in missing)] or None
        if "exclude_modules" in parameters:
            excluded = [*in_full, *sorted(idle_layers), *_find_fused(model)]
            arguments["exclude_modules"] = _join_exclusions(arguments.get("exclude_modules"), excluded)
        if (
            "target_modules" in parameters
            and not arguments.get("target_modules")
            and not _has_own_targets(self.kind, model)
        ):
            arguments["target_modules"] = _ALL_LINEAR
            if "feedforward_modules" in parameters:
                arguments.setdefault("feedforward_modules", [])
        if new_tokens and "trainable_token_indices" in parameters:
            arguments.setdefault("trainable_token_indices", list(new_tokens))
        return arguments

    def _refuse_arguments(self, arguments: Mapping[str, Any], config_class: type) -> None:
        """Raise UserError for arguments whose export could not be loaded, or that would train nothing."""
        problems = find_dangers(arguments)
        if arguments.get("layer_replication"):
            problems.append("layer_replication makes layers that share weights, and cannot be exported")
        if "token_indices" in inspect.signature(config_class).parameters and not arguments.get("token_indices"):
            problems.append(f"{self.kind} needs the ids of the tokens that learn: set model.peft.args.token_indices")
        refuse([f"{self.place}: {problem}" for problem in problems])

    def add_to_empty(self, empty: PreTrainedModel, *, task_type: str | None, seed: int) -> nn.Module | None:
        """Add the adapter to a model on the meta device. Returns None if it needs values of weights, as PiSSA does.

        Raises:
            UserError: the adapter does not fit the model.
        """
        self._check_targets(empty)
        try:
            return self.add_to(empty, task_type=task_type, seed=seed)
        except UserError as error:
            if isinstance(error.__cause__, RuntimeError):
                return None
            raise

    def _check_targets(self, model: nn.Module) -> None:
        """Raise UserError for names that match no module; peft would ignore them silently."""
        full_names = [name for name, _ in model.named_modules()]
        names = {*full_names, *(name.rpartition(".")[2] for name in full_names)}
        problems = [
            f"{self.place}.target_modules: {target} is no module of {type(model).__name__}"
            + suggest(target, sorted(names - {""}))
            for target in self.target_modules
            if not any(name == target or name.endswith(f".{target}") for name in names)
        ]
        refuse(problems)

    def merge_into(self, model: nn.Module) -> nn.Module:
        """Return the model, with the adapter merged into it if `merge` is set; see `merge_adapter`."""
        return merge_adapter(model, place=f"{self.place}.merge", remedy="set it to false") if self.merge else model


def merge_adapter(model: nn.Module, *, place: str, remedy: str = "") -> nn.Module:
    """Merge the adapter of a model into its weights and return the base model. Do not use `model` afterwards.

    Args:
        place: config key or file at the start of the error message.
        remedy: advice at the end of it.

    Raises:
        UserError: peft cannot merge this adapter.
    """
    _unwrap_saved_modules(model)
    try:
        merged: PreTrainedModel = model.merge_and_unload()  # type: ignore[operator]
    except (AttributeError, NotImplementedError, ValueError) as error:
        reason = "; ".join(filter(None, (in_one_line(error), remedy)))
        raise UserError(f"{place}: this adapter cannot be merged: {reason}") from error
    return merged


def plan_lora(
    *, r: int | None, alpha: float | None, dropout: float, target_modules: Sequence[str], dora: bool, merge: bool
) -> AdapterPlan | None:
    """Check the keys of the section `model.lora`. Returns None if `r` is None. Raises UserError."""
    if r is None:
        return None
    arguments = {
        "r": r,
        "lora_alpha": 2 * r if alpha is None else alpha,
        "lora_dropout": dropout,
        "target_modules": target_modules or _ALL_LINEAR,
        "use_dora": dora,
    }
    return _check_plan(AdapterPlan("lora", arguments, "lora", merge, target_modules))


def plan_peft(*, name: str | None, args: Mapping[str, Any], merge: bool) -> AdapterPlan | None:
    """Check the keys of the section `model.peft`. Returns None if `name` is None. Raises UserError."""
    return None if name is None else _check_plan(AdapterPlan(name, args, "peft", merge))


def _check_plan(plan: AdapterPlan) -> AdapterPlan:
    config_class = _find_config_class(plan.kind, place=plan.section)
    set_elsewhere = ("task_type", "inference_mode", "peft_type")
    refuse(check_arguments(config_class, plan.arguments, place=f"{plan.section}.args", given=set_elsewhere))
    return plan


def _find_head(model: PreTrainedModel) -> list[str]:
    """Return the names of the modules outside the body of a model. A model with output embeddings has no such head."""
    body = model.base_model
    if body is model or model.get_output_embeddings() is not None:
        return []
    return [
        name for name, child in model.named_children() if child is not body and any(True for _ in child.parameters())
    ]


def _find_fused(model: nn.Module) -> list[str]:
    """Return the linear layers of state space blocks whose weights a GPU kernel reads without calling the layer."""
    blocks = [(name, module) for name, module in model.named_modules() if "A_log" in module._parameters]
    return [
        f"{name}.{child}"
        for name, block in blocks
        for child, layer in block.named_children()
        if isinstance(layer, nn.Linear) and child != "in_proj"  # in_proj is called as a layer
    ]


def _modules_of(model: nn.Module, weights: Sequence[str], *, place: str) -> list[str]:
    """Return the smallest modules that contain these weights. Raises UserError if one holds most of the model."""
    names = sorted({name.rpartition(".")[0] for name in weights})
    total = sum(weight.numel() for weight in model.parameters())
    for name in names:
        inside = sum(weight.numel() for weight in model.get_submodule(name).parameters())
        if inside > total / 2:
            new = next(weight for weight in weights if weight.rpartition(".")[0] == name)
            raise UserError(
                f"{place}: the weight {new} is new, and an adapter can save {name or 'the whole model'} only as a "
                "whole; train without an adapter first, or begin with a model that has this weight"
            )
    return names


def _outermost(names: Iterable[str]) -> list[str]:
    """Return the module names that are not inside another module of the list."""
    distinct = list(dict.fromkeys(names))
    return [name for name in distinct if not any(name.startswith(f"{other}.") for other in distinct)]


def _unique(model: nn.Module, name: str) -> str:
    """Return a name that matches only this module in peft, which matches all modules whose names end with it."""
    others = [other for other, _ in model.named_modules() if other.endswith(name) and other != name]
    return f"base_model.model.{name}" if any(not other.startswith(f"{name}.") for other in others) else name


def _join_exclusions(excluded: str | Sequence[str] | None, modules: Sequence[str]) -> str | None:
    """Return a pattern that matches what the user excludes, and `modules` with everything inside them."""
    if excluded and not isinstance(excluded, str):
        excluded = rf"(.*\.)?({'|'.join(map(re.escape, excluded))})"
    own = rf"({'|'.join(map(re.escape, modules))})(\..*)?" if modules else None
    return "|".join(f"({pattern})" for pattern in (own, excluded) if pattern) or None


def _has_own_targets(kind: str, model: PreTrainedModel) -> bool:
    """Return whether peft knows the target modules of this adapter for this type of model."""
    tuner = _import_peft(kind).mapping.PEFT_TYPE_TO_TUNER_MAPPING[kind.upper()]
    return model.config.model_type in (getattr(tuner, "target_module_mapping", None) or {})


def _find_nested(adapted: nn.Module) -> str | None:
    """Return a module that peft trains in full and that is inside another one; None if there is none."""
    from peft.utils.other import AuxiliaryTrainingWrapper

    wrapped = [name for name, module in adapted.named_modules() if isinstance(module, AuxiliaryTrainingWrapper)]
    return next((name for name in wrapped if any(name.startswith(f"{other}.") for other in wrapped)), None)


def _unwrap_saved_modules(model: nn.Module) -> None:
    """Replace peft's wrappers by the modules trained in full, because some adapters merge only their own layers."""
    from peft.utils.other import ModulesToSaveWrapper

    for name, module in list(model.named_modules()):
        if isinstance(module, ModulesToSaveWrapper):
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, module.modules_to_save[module.active_adapters[0]])


def load_adapted_model(
    model_dir: Path, *, model_class: str, num_tokens: int, trust_remote_code: bool = False
) -> nn.Module:
    """Load an exported adapter into its base model, from the path or hub id recorded in training.

    Args:
        model_class: name of the auto class in transformers, such as AutoModelForCausalLM.
        num_tokens: size of the exported tokenizer; the base model gets embeddings for added tokens.

    Raises:
        UserError: the adapter or the base model cannot be loaded, or both lack some weights.
    """
    peft = _import_peft("this model is an adapter, which")
    check_adapter_config(model_dir)
    try:
        refuse(check_adapter_weights(model_dir))
        base = _find_base(peft.PeftConfig.from_pretrained(str(model_dir)).base_model_name_or_path, model_dir)
        # Load with the exported config, but with the vocabulary size of the base model.
        config, base_config = (
            transformers.AutoConfig.from_pretrained(place, trust_remote_code=trust_remote_code)
            for place in (model_dir, base)
        )
        if hasattr(find_text_config(base_config), "vocab_size"):
            find_text_config(config).vocab_size = find_text_config(base_config).vocab_size
        options: dict[str, Any] = {}
        if (quantization := config.to_dict().get("quantization_config")) is not None:  # quantise as in training
            del config.quantization_config
            options["quantization_config"] = transformers.BitsAndBytesConfig.from_dict(quantization)
        model, loaded = getattr(transformers, model_class).from_pretrained(
            base,
            config=config,
            dtype=torch.float32,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # the adapter has a head for its own classes, which is checked below
            trust_remote_code=trust_remote_code,
            **options,
        )
        grow_embeddings(model, num_tokens)
        prevent_4_bit_repacking(model)
        adapted: Any = peft.PeftModel.from_pretrained(model, str(model_dir))
    except UserError:
        raise
    except Exception as error:  # for unknown files peft and transformers may raise anything
        if is_out_of_memory(error):
            raise
        reason = f"{type(error).__name__}: {in_one_line(error)}"
        raise UserError(f"{model_dir} is an adapter, and cannot be loaded into its model: {reason}") from error
    not_loaded = {*loaded["missing_keys"], *(key for key, _, _ in loaded["mismatched_keys"])}
    if missing := _find_unsaved(adapted, model_dir, not_loaded):
        raise UserError(
            f"{model_dir} is an adapter, and neither it nor {base} has weights for {', '.join(missing[:4])}: it would "
            "answer at random"
        )
    return adapted  # type: ignore[no-any-return]


def _find_base(name: str, model_dir: Path) -> str:
    """Return the directory or hub id of an adapter's base model. Raises UserError if the directory is missing."""
    if not looks_like_path(name) and not Path(name).exists():
        return name  # a hub id
    place = f"{model_dir} is an adapter beside the model {name}"
    if not Path(name).is_dir():
        raise UserError(
            f"{place}, which is not there; put it back, or write its new place into base_model_name_or_path of "
            f"{model_dir / ADAPTER_CONFIG}"
        )
    refuse([f"{place}: {problem}" for problem in check_weight_files(Path(name))])
    return name


def _find_unsaved(adapted: Any, model_dir: Path, not_loaded: Collection[str]) -> list[str]:
    """Return the weights that neither the adapter's file nor the base model has."""
    from peft.utils.save_and_load import get_peft_model_state_dict, load_peft_weights

    saved = set(load_peft_weights(str(model_dir), device="cpu"))
    adapter_keys = set(get_peft_model_state_dict(adapted, save_embedding_layers=False))
    saved_names = {key.removeprefix("base_model.model.") for key in saved}
    return sorted(
        {key.removeprefix("base_model.model.") for key in adapter_keys - saved} | (set(not_loaded) - saved_names)
    )


def _find_config_class(kind: str, *, place: str) -> Any:
    peft = _import_peft(f"{place}: {kind}")
    classes = {str(name.value): config_class for name, config_class in peft.mapping.PEFT_TYPE_TO_CONFIG_MAPPING.items()}
    unusable = {
        name: "puts tokens of its own before each row"
        for name, config_class in classes.items()
        if issubclass(config_class, peft.PromptLearningConfig)
    } | {name: f"needs {what}" for name, what in _UNSUPPORTED_NEEDS.items()}
    if kind.upper() in unusable:
        raise UserError(f"{place}: {kind} {unusable[kind.upper()]}, and cannot be used here")
    if kind.upper() not in classes:
        usable = [name.lower() for name in sorted(classes.keys() - unusable.keys())]
        hint = suggest(kind.lower(), usable)
        raise UserError(f"{place}: {kind} is no adapter of peft; allowed: {', '.join(usable)}{hint}")
    return classes[kind.upper()]


def _import_peft(what: str) -> Any:
    try:
        import peft
    except ModuleNotFoundError as error:
        raise UserError(f"{what} needs the package peft: pip install peft, or trainer_loop[lora]") from error
    return peft
