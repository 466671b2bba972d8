"""Build a model from its config, or load it, in fp32."""

import re
import zlib
from collections.abc import Collection, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch
import transformers
from torch import nn
from transformers import PretrainedConfig

from trainer_loop.errors import UserError, in_one_line
from trainer_loop.models.config import (
    explain_failure,
    find_model,
    make_empty_model,
    use_padding_token,
    without_shared_padding,
)
from trainer_loop.parallel.sharding import gather_tensor
from trainer_loop.runtime.hub import offline_unless_reachable
from trainer_loop.runtime.memory import is_out_of_memory
from trainer_loop.runtime.randomness import seed_everything

if TYPE_CHECKING:
    from trainer_loop.models.plan import ModelPlan

_CHECKSUM_SAMPLES = 4096  # elements of each weight that enter the checksum


def make_model(
    plan: "ModelPlan",
    config: PretrainedConfig,
    *,
    model_class: str,
    num_tokens: int,
    compute_type: torch.dtype,
    seed: int,
) -> tuple[nn.Module, list[str]]:
    """Build or load the model in fp32, without its adapter.

    Args:
        num_tokens: size of the tokenizer, 0 if there is none; the embeddings grow to this size.
        compute_type: type of multiplications with 4-bit weights.
        seed: determines all new weights.

    Returns:
        The model, and the names of the weights that were not loaded; none for a new model.

    Raises:
        UserError: the model cannot be built or loaded, or its weights do not fit the config.
    """
    if plan.given is not None:
        return plan.given, []
    seed_everything(seed, "model")
    new_weights: list[str] = []
    if plan.name is None or plan.from_scratch:
        model = _build(plan, config, model_class)
    else:
        model, new_weights = _load(plan, config, model_class, find_model(plan.name), compute_type=compute_type)
    if num_tokens:
        use_padding_token(model, config)
        grow_embeddings(model, num_tokens)
    if plan.gradient_checkpointing:
        if not model.supports_gradient_checkpointing:
            raise UserError(
                f"model.gradient_checkpointing: {type(model).__name__} does not support it; set it to false"
            )
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return model, new_weights


def _build(plan: "ModelPlan", config: PretrainedConfig, model_class: str) -> Any:
    try:
        with without_shared_padding(config):
            return getattr(transformers, model_class).from_config(config, **_list_options(plan))
    except Exception as error:  # the model was built without values before; their initialisation may still fail
        if is_out_of_memory(error):
            raise
        if plan.attention == "auto":
            reason = in_one_line(error, at_most=200)
            raise UserError(
                f"model: transformers cannot build this {model_class}: {reason}; see model.overrides"
            ) from error
        raise UserError(_explain_attention(plan.attention, error)) from error


def _load(
    plan: "ModelPlan", config: PretrainedConfig, model_class: str, name: str, *, compute_type: torch.dtype
) -> tuple[Any, list[str]]:
    """Load the model of this name. Also returns the names of the weights that were not loaded."""
    options, attention, is_resized = _list_options(plan), plan.attention, bool(plan.overrides)
    if plan.quantize is not None:
        empty = make_empty_model(config, model_class=model_class, trust_remote_code=plan.trust_remote_code)
        options |= _make_4_bit_options(empty, dtype=compute_type)
    with offline_unless_reachable() as offline, without_shared_padding(config):
        try:
            model, loaded = getattr(transformers, model_class).from_pretrained(
                name,
                config=config,
                ignore_mismatched_sizes=True,  # checked below: a head for other classes starts with new weights
                output_loading_info=True,
                **options,
            )
        except Exception as error:  # for unknown files transformers may raise anything
            if is_out_of_memory(error):
                raise
            if attention != "auto" and ("attn_implementation" in str(error) or isinstance(error, ImportError)):
                raise UserError(_explain_attention(attention, error)) from error
            raise UserError(explain_failure(name, error, offline=offline)) from error
    _refuse_foreign_weights(name, model, loaded)
    if not is_resized:  # overrides may have changed the number of layers
        _refuse_missing_layers(name, model, set(loaded["missing_keys"]))
    cause = "model.overrides" if is_resized else "its config.json"
    # Outputs of a classification head. The head for multiple choice scores one choice at a time.
    num_outputs = 1 if model_class == "AutoModelForMultipleChoice" else config.num_labels
    _refuse_mismatched_body(name, loaded["mismatched_keys"], num_outputs=num_outputs, cause=cause)
    if plan.quantize is not None and not any(hasattr(weight, "quant_state") for weight in model.parameters()):
        raise UserError(
            f"model.quantize: in a {type(model).__name__} bitsandbytes finds no matrix to quantise; set it to null"
        )
    prevent_4_bit_repacking(model)
    return model, sorted({*loaded["missing_keys"], *(key for key, _, _ in loaded["mismatched_keys"])})


def _list_options(plan: "ModelPlan") -> dict[str, Any]:
    """Return the arguments of transformers that building and loading share."""
    return {
        "attn_implementation": None if plan.attention == "auto" else plan.attention,
        "dtype": torch.float32,  # otherwise weights saved in half precision would be trained in half precision
        "trust_remote_code": plan.trust_remote_code,
    }


def grow_embeddings(model: nn.Module, num_tokens: int) -> None:
    """Grow the embeddings to `num_tokens`; new ones start at the mean of the others."""
    try:
        table = model.get_input_embeddings()  # type: ignore[operator] # a model of transformers
    except NotImplementedError:  # a model of characters, such as Canine, has no table
        return
    old_size = getattr(table, "num_embeddings", num_tokens)
    if num_tokens <= old_size:
        return
    # transformers would initialise new rows at random, and a base model loaded again would get different rows.
    model.resize_token_embeddings(num_tokens, mean_resizing=False)  # type: ignore[operator]
    tables = [model.get_input_embeddings(), model.get_output_embeddings()]  # type: ignore[operator]
    with torch.no_grad():
        for layer in tables:
            if layer is not None and len(layer.weight) == num_tokens:
                layer.weight[old_size:] = layer.weight[:old_size].mean(dim=0)


def prevent_4_bit_repacking(model: nn.Module) -> None:
    """Prevent bitsandbytes from repacking 4-bit weights on a CPU at the first evaluation, which rounds their scales."""
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False  # type: ignore[assignment]


def _make_4_bit_options(empty: nn.Module, *, dtype: torch.dtype) -> dict[str, Any]:
    """Return arguments of `from_pretrained` for 4-bit weights. The head is not quantised, because it is trained."""
    children = [name for name, _ in empty.named_children()]
    body = getattr(empty, "base_model_prefix", "")
    heads = [name for name in children if name != body] if body in children else []  # else all is body
    quantization = transformers.BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",  # designed for normally distributed weights (arXiv 2305.14314)
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=heads,
    )
    # Weights are quantised on their device: each process has its own GPU, torch's current device.
    place = {"device_map": {"": torch.cuda.current_device()}} if torch.cuda.is_available() else {}
    return {"quantization_config": quantization, **place}


def count_weights(model: nn.Module) -> tuple[int, int]:
    """Return the number of trainable weights and of all weights. Two 4-bit weights that share a byte count as two."""
    trainable = total = 0
    for weight in model.parameters():
        quant_state = getattr(weight, "quant_state", None)
        count = weight.numel() if quant_state is None else quant_state.shape.numel()
        total += count
        trainable += count if weight.requires_grad else 0
    return trainable, total


def describe_frozen(model: nn.Module) -> str | None:
    """Return a checksum over sample elements of each frozen weight; None if all weights are trained."""
    frozen = [(name, weight) for name, weight in model.named_parameters() if not weight.requires_grad]
    if not frozen:
        return None
    checksum = 0
    for name, weight in frozen:
        sample = gather_tensor(weight.detach()).flatten()[:: max(1, weight.numel() // _CHECKSUM_SAMPLES)]
        content = sample.contiguous().view(torch.uint8).cpu().numpy().tobytes()
        checksum = zlib.crc32(content, zlib.crc32(name.encode(), checksum))
    return f"{len(frozen)} weights {checksum:08x}"


def _refuse_mismatched_body(
    name: str, mismatched: Iterable[tuple[str, Any, Any]], *, num_outputs: int, cause: str
) -> None:
    """Refuse weights of another size, except those of a head for other classes."""
    body = [
        f"{key} is {list(saved)} there and {list(expected)} here"
        for key, saved, expected in sorted(mismatched)
        if list(expected)[:1] != [num_outputs]
    ]
    if body:
        more = f" and {len(body) - 3} more" if len(body) > 3 else ""
        raise UserError(
            f"model.name: the weights of {name} do not fit {cause}: {'; '.join(body[:3])}{more}; remove what changes "
            "their size, or set model.from_scratch=true"
        )


def _refuse_foreign_weights(name: str, model: nn.Module, loaded: Mapping[str, Any]) -> None:
    """Refuse a folder whose weights belong to another model than its config: most weights would be random."""
    sizes = {key: weight.numel() for key, weight in model.named_parameters()}
    prefix = "" if model.base_model is model else f"{model.base_model_prefix}."
    body = {key for key in sizes if key.startswith(prefix)}
    missing = [key for key in loaded["missing_keys"] if key in body]
    if sum(sizes[key] for key in missing) * 2 <= sum(sizes[key] for key in body):
        return
    present = ", ".join(sorted(loaded["unexpected_keys"])[:2]) or "none of another name"
    raise UserError(
        f"model.name: {name} has no weights for most of a {type(model).__name__}, such as {missing[0]}; it has "
        f"{present}; give the folder whose config.json belongs to its weights, or set model.from_scratch=true"
    )


def _refuse_missing_layers(name: str, model: nn.Module, missing: Collection[str]) -> None:
    """Refuse weights that lack some, but not all, layers of a list of layers."""
    present = {_find_layer_list(key) for key, _ in model.named_parameters() if key not in missing}
    gaps = sorted(key for key in missing if _find_layer_list(key) is not None and _find_layer_list(key) in present)
    if gaps:
        raise UserError(
            f"model.name: {name} has no weights for {', '.join(gaps[:3])}{', ...' if len(gaps) > 3 else ''} in the "
            f"layers of a {type(model).__name__}; download it again, or set model.from_scratch=true"
        )


def _find_layer_list(parameter: str) -> str | None:
    """Return the name prefix of the layer list that contains a parameter; None if it is in no list."""
    match = re.match(r"(.*?\.)\d+\.", parameter)
    return None if match is None else match[1]


def _explain_attention(attention: str, error: Exception) -> str:
    reason = in_one_line(error, at_most=200)
    return f"model.attention: {attention} cannot be used: {reason}; set model.attention=auto"
