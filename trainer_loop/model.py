"""The model: its config judged before any weight is read, then built or loaded in fp32."""

import contextlib
import difflib
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from transformers import AutoConfig, PretrainedConfig

from trainer_loop.errors import UserError, in_one_line
from trainer_loop.runtime.hub import describe_unreachable, offline_unless_reachable
from trainer_loop.runtime.randomness import seed_everything

_NUMBERS_OF_A_WEIGHT = 4096  # that tell it from another
# Their first position is the one after that of padding.
_POSITIONS_AFTER_PADDING = ("roberta", "xlm-roberta", "xlm-roberta-xl", "roberta-prelayernorm", "camembert", "mpnet")


def first_position(config: PretrainedConfig) -> int:
    """The position of a row's first token."""
    return config.pad_token_id + 1 if config.model_type in _POSITIONS_AFTER_PADDING else 0


def find_model(name: str) -> str:
    """The name itself, or where it is a run directory, the model that was exported there."""
    exported = Path(name) / "model"
    return str(exported) if (exported / "config.json").is_file() else name


def _refuse_adapter(name: str) -> None:
    """transformers would load the adapter's model too, and train that."""
    if (Path(name) / "adapter_config.json").is_file():
        raise UserError(
            f"model.name: {name} is an adapter, and not a model; train it with model.lora.merge=true (or "
            "model.peft.merge=true), which exports a model to go on from"
        )


def load_model_config(
    *, name: str | None, model_type: str | None, overrides: Mapping[str, Any], trust_remote_code: bool = False
) -> PretrainedConfig:
    """The model's own config: of a hub id or directory `name`, or of a bare `model_type`; with `overrides` applied.

    Raises UserError for a name that cannot be loaded, an unknown type, and overrides the config has no field for.
    """
    if name is None:
        assert model_type is not None
        known = list(transformers.CONFIG_MAPPING.keys())
        if model_type not in known:
            close = difflib.get_close_matches(model_type, known, n=1)
            raise UserError(
                f"model.type: {model_type} is no model type of transformers"
                + (f"; did you mean {close[0]}?" if close else "; examples: bert, distilbert, roberta, gpt2, llama")
            )
        config = AutoConfig.for_model(model_type)
    else:
        name = find_model(name)
        _refuse_missing_directory(name)
        _refuse_adapter(name)
        reason = describe_unreachable()  # asked before offline mode is set, which would be the reason then
        with offline_unless_reachable() as reachable:
            try:
                config = AutoConfig.from_pretrained(name, trust_remote_code=trust_remote_code)
            except (OSError, ValueError, KeyError) as error:
                raise UserError(_explain_failure(name, error, offline=None if reachable else reason)) from error
    problems = []
    for field, value in overrides.items():
        if hasattr(config, field):
            try:
                setattr(config, field, value)
            except StrictDataclassError as error:
                problems.append(f"model.overrides.{field}: {value!r}: {in_one_line(error)}")
            continue
        close = difflib.get_close_matches(field, config.to_dict(), n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        problems.append(f"model.overrides.{field}: {type(config).__name__} has no such field{hint}")
    if problems:
        raise UserError(problems)
    try:
        config.validate()  # transformers' own rules; by itself it would apply them when the model is saved, at the end
    except StrictDataclassError as error:
        raise UserError(f"model.overrides: {type(config).__name__} refuses them: {in_one_line(error)}") from error
    return config


def fit_model_config(
    config: PretrainedConfig, *, tokenizer: Any, new_vocabulary: bool, label_names: Sequence[str] | None
) -> None:
    """Tell the config what the data decides: label names, padding, and the vocabulary where the model is new."""
    if label_names is not None:
        config.id2label = dict(enumerate(label_names))  # num_labels follows from it
        config.label2id = {label: index for index, label in enumerate(label_names)}
    config.pad_token_id = tokenizer.pad_token_id
    if new_vocabulary:
        config.vocab_size = len(tokenizer)
        config.bos_token_id, config.eos_token_id = tokenizer.bos_token_id, tokenizer.eos_token_id


def check_model_config(config: PretrainedConfig, *, tokenizer: Any, own_tokenizer: bool, max_length: int) -> list[str]:
    """What does not go together: texts and positions, tokens and embeddings, hidden size and heads.

    own_tokenizer: it came with the model, which is made here; tokens that were added to it then get new embeddings.
    """
    problems = []
    positions = getattr(config, "max_position_embeddings", None)
    if isinstance(positions, int):
        positions -= first_position(config)
    if isinstance(positions, int) and 0 < positions < max_length:
        problems.append(
            f"data.max_length: {max_length} is more than the {positions} positions of the model; "
            f"set data.max_length={positions}"
        )
    elif max_length > tokenizer.model_max_length:
        problems.append(
            f"data.max_length: {max_length} is more than the {tokenizer.model_max_length} tokens of the tokenizer; "
            f"set data.max_length={tokenizer.model_max_length}"
        )
    if len(tokenizer) > config.vocab_size and not own_tokenizer:
        problems.append(
            f"model.tokenizer: it has {len(tokenizer):,} tokens, the model has embeddings for {config.vocab_size:,}; "
            "use the tokenizer that came with the model"
        )
    hidden, heads = getattr(config, "hidden_size", None), getattr(config, "num_attention_heads", None)
    if isinstance(hidden, int) and isinstance(heads, int) and hidden % heads and not hasattr(config, "head_dim"):
        problems.append(f"model.overrides.hidden_size: {hidden} is not a multiple of num_attention_heads {heads}")
    return problems


def check_outputs(config: PretrainedConfig, num_classes: int) -> list[str]:
    """Whether a model that was made elsewhere has an output for each class."""
    if config.num_labels == num_classes:
        return []
    return [f"model: the one that was given has {config.num_labels} outputs, and the data {num_classes} classes"]


def make_empty_model(config: PretrainedConfig, *, model_class: str, trust_remote_code: bool = False) -> nn.Module:
    """The model without memory for its weights: their names and shapes."""
    with torch.device("meta"), _without_borrowed_padding(config):
        model: nn.Module = getattr(transformers, model_class).from_config(config, trust_remote_code=trust_remote_code)
    return model


@contextlib.contextmanager
def _without_borrowed_padding(config: PretrainedConfig) -> Iterator[None]:
    """Build a model that knows no padding where its token is the end or the beginning of a text too, or is added later.

    The row of an embedding that is made with `padding_idx` begins at zero and never learns.
    """
    padding = config.pad_token_id
    ends = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
    if padding is not None and (padding in [*ends, config.bos_token_id] or padding >= config.vocab_size):
        config.pad_token_id = None
    try:
        yield
    finally:
        config.pad_token_id = padding


def make_model(
    config: PretrainedConfig,
    *,
    model_class: str,
    name: str | None,
    from_scratch: bool = False,
    attention: str = "auto",
    gradient_checkpointing: bool = False,
    quantize: torch.dtype | None = None,
    trust_remote_code: bool = False,
    num_tokens: int,
    seed: int,
) -> tuple[nn.Module, list[str]]:
    """The model in fp32, and the names of the weights that `name` had none for; those are a function of `seed`.

    num_tokens: of the tokenizer; the embeddings grow where there are fewer. attention: an implementation that
    transformers knows; auto: what it takes by itself. quantize: the matrices of the body are loaded in 4 bits, and
    multiplied in this type.
    """
    auto_class = getattr(transformers, model_class)
    implementation = None if attention == "auto" else attention
    seed_everything(seed, "model")
    if name is None or from_scratch:
        try:
            with _without_borrowed_padding(config):
                model = auto_class.from_config(
                    config, dtype=torch.float32, trust_remote_code=trust_remote_code, attn_implementation=implementation
                )
        except (ImportError, ValueError) as error:
            raise UserError(_explain_attention(attention, error)) from error
        new_weights: list[str] = []
    else:
        name = find_model(name)
        reason = describe_unreachable()
        in_4_bits: dict[str, Any] = {}
        if quantize is not None:
            empty = make_empty_model(config, model_class=model_class, trust_remote_code=trust_remote_code)
            in_4_bits = _in_4_bits(empty, dtype=quantize)
        with offline_unless_reachable() as reachable, _without_borrowed_padding(config):
            try:
                model, loaded = auto_class.from_pretrained(
                    name,
                    config=config,
                    attn_implementation=implementation,
                    dtype=torch.float32,  # else weights saved in half precision would be trained in half precision
                    trust_remote_code=trust_remote_code,
                    ignore_mismatched_sizes=True,  # judged below: a head for other classes is begun anew
                    output_loading_info=True,
                    **in_4_bits,
                )
            except ImportError as error:
                raise UserError(_explain_attention(attention, error)) from error
            except (OSError, ValueError, RuntimeError) as error:
                if attention != "auto" and "attn_implementation" in str(error):
                    raise UserError(_explain_attention(attention, error)) from error
                raise UserError(_explain_failure(name, error, offline=None if reachable else reason)) from error
        _refuse_mismatched_body(name, loaded["mismatched_keys"], num_labels=config.num_labels)
        if quantize is not None and not any(hasattr(weight, "quant_state") for weight in model.parameters()):
            raise UserError(
                f"model.quantize: in a {type(model).__name__} bitsandbytes finds no matrix to take; set it to null"
            )
        stay_in_4_bits(model)
        new_weights = sorted({*loaded["missing_keys"], *(key for key, _, _ in loaded["mismatched_keys"])})
    model.config.pad_token_id = config.pad_token_id
    if num_tokens > model.get_input_embeddings().num_embeddings:
        model.resize_token_embeddings(num_tokens)  # the tokenizer was given a token for padding
    if gradient_checkpointing:
        if not model.supports_gradient_checkpointing:
            raise UserError(
                f"model.gradient_checkpointing: {type(model).__name__} does not support it; set it to false"
            )
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return model, new_weights


def stay_in_4_bits(model: nn.Module) -> None:
    """On a CPU bitsandbytes would cut matrices otherwise at the first evaluation, and round their scales for good."""
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False  # type: ignore[assignment]


def _in_4_bits(empty: nn.Module, *, dtype: torch.dtype) -> dict[str, Any]:
    """Arguments of from_pretrained. The head stays as it is: it may be new, and learns."""
    parts = [name for name, _ in empty.named_children()]
    body = getattr(empty, "base_model_prefix", "")
    heads = [name for name in parts if name != body] if body in parts else []  # else it is all body
    quantization = transformers.BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",  # made for weights that are normally distributed (arXiv 2305.14314)
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=heads,
    )
    # Weights are quantised where they arrive: each process has its own GPU, which torch calls the current one.
    place = {"device_map": {"": torch.cuda.current_device()}} if torch.cuda.is_available() else {}
    return {"quantization_config": quantization, **place}


def count_weights(model: nn.Module) -> tuple[int, int]:
    """Weights that learn, and all; those in 4 bits, of which two share a byte, are counted one by one."""
    learn = total = 0
    for weight in model.parameters():
        quantised = getattr(weight, "quant_state", None)
        count = weight.numel() if quantised is None else quantised.shape.numel()
        total += count
        learn += count if weight.requires_grad else 0
    return learn, total


def describe_frozen(model: nn.Module) -> str | None:
    """What tells the weights that do not learn from others, by some numbers of each; None where all learn."""
    frozen = [(name, weight) for name, weight in model.named_parameters() if not weight.requires_grad]
    if not frozen:
        return None
    value = 0
    for name, weight in frozen:
        some = weight.detach().flatten()[:: max(1, weight.numel() // _NUMBERS_OF_A_WEIGHT)]
        numbers = some.contiguous().view(torch.uint8).cpu().numpy().tobytes()
        value = zlib.crc32(numbers, zlib.crc32(name.encode(), value))
    return f"{len(frozen)} weights {value:08x}"


def _refuse_mismatched_body(name: str, mismatched: Iterable[tuple[str, Any, Any]], *, num_labels: int) -> None:
    """Weights of another size are begun anew where they are a head for other classes, and an error elsewhere."""
    body = [
        f"{key} is {list(saved)} there and {list(wanted)} here"
        for key, saved, wanted in sorted(mismatched)
        if list(wanted)[:1] != [num_labels]
    ]
    if body:
        raise UserError(
            f"model.name: the weights of {name} do not fit model.overrides: {'; '.join(body[:3])}"
            + (f" and {len(body) - 3} more" if len(body) > 3 else "")
            + "; remove what changes their size, or set model.from_scratch=true"
        )


def _refuse_missing_directory(name: str) -> None:
    """A path that is not there would be taken for a hub id."""
    looks_like_path = name.startswith((".", "/", "~")) or name.count("/") > 1
    if looks_like_path and not Path(name).is_dir():
        raise UserError(
            f"model.name: {name} is no directory; give a hub id such as google-bert/bert-base-cased, or a directory"
        )
    if Path(name).is_dir() and not (Path(name) / "config.json").is_file():
        present = ", ".join(sorted(path.name for path in Path(name).iterdir())[:8]) or "nothing"
        raise UserError(f"model.name: {name} holds no config.json, so no model of transformers; it holds {present}")


def _explain_attention(attention: str, error: Exception) -> str:
    """Why an implementation of attention cannot be had, in one line."""
    told = in_one_line(error, at_most=160)
    return f"model.attention: {attention} cannot be used: {told}; set model.attention=auto"


def _explain_failure(name: str, error: Exception, *, offline: str | None) -> str:
    """Why a model could not be loaded, in one line; `offline` is why the hub was not asked."""
    if offline is not None and not Path(name).is_dir():
        return (
            f"model.name: {name} is not in the cache and {offline}; give a local directory, or fill the "
            f"cache on a machine with network: hf download {name}"
        )
    return f"model.name: {name} cannot be loaded: {in_one_line(error)}"
