"""Load, change and check the config of a transformers model before any weight is read."""

import contextlib
import copy
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from transformers import AutoConfig, PretrainedConfig

from trainer_loop.errors import UserError, in_one_line, refuse, suggest
from trainer_loop.record.adapter_config import ADAPTER_CONFIG
from trainer_loop.runtime.hub import offline_unless_reachable

_MAX_EXTRA_POSITIONS = 8  # rows that a table of positions may have beyond the number in the config


def find_text_config(config: PretrainedConfig) -> PretrainedConfig:
    """Return the part of a config that describes the text model; for most models the config itself."""
    try:
        part = config.get_text_config()
    except ValueError:  # several parts are for text
        return config
    return part if isinstance(part, PretrainedConfig) else config  # in a damaged config it is a plain mapping


def without_numbers(name: str) -> str:
    """Replace the layer numbers in a parameter name by `*`, so that all layers share the name."""
    return re.sub(r"\d+", "*", name)


def find_position_table(model: nn.Module) -> nn.Module | None:
    """Return the module with an embedding for each absolute position; None if the model has none."""
    stated = _stated_positions(model)
    for name, module in model.named_modules():
        weight = getattr(module, "weight", None)
        is_named = any(word in name.rpartition(".")[2] for word in ("position", "wpe", "pos_emb"))
        rows = len(weight) if isinstance(weight, torch.Tensor) and weight.ndim == 2 else 0
        if stated is not None and is_named and 0 <= rows - stated <= _MAX_EXTRA_POSITIONS:
            return module
    return None


def first_position(model: nn.Module) -> int:
    """Return the position id of the first token of a row, for a model that takes position ids."""
    padding = getattr(find_position_table(model), "padding_idx", None)
    return 0 if padding is None else padding + 1


def count_positions(model: nn.Module) -> int | None:
    """Return the maximum number of tokens in a row; None if the config has no limit. Reads no weights."""
    stated, table = _stated_positions(model), find_position_table(model)
    if stated is None or table is None:
        return stated
    rows: torch.Tensor = table.weight  # type: ignore[assignment] # it has one
    return min(stated, len(rows) - first_position(model))


def count_tabled_positions(model: nn.Module) -> int | None:
    """Return `count_positions` if a longer row would fail; None if the model computes positions of any number."""
    return None if find_position_table(model) is None else count_positions(model)


def _stated_positions(model: nn.Module) -> int | None:
    config = find_text_config(model.config)  # type: ignore[arg-type] # a model of transformers has one
    stated = [getattr(config, name, None) for name in ("max_position_embeddings", "max_seq_len")]
    return next((number for number in stated if isinstance(number, int) and number > 0), None)


def find_model(name: str) -> str:
    """Return the path of the exported model if `name` is a run directory, else `name` itself."""
    exported = Path(name) / "model"
    return str(exported) if (exported / "config.json").is_file() else name


def load_model_config(
    *, name: str | None, model_type: str | None, overrides: Mapping[str, Any], trust_remote_code: bool = False
) -> PretrainedConfig:
    """Load the config of a model, or make the default config of a type, and apply the overrides.

    Args:
        name: hub id or directory; None for a new model of `model_type`.
        overrides: values for fields of the config.

    Raises:
        UserError: the name cannot be loaded, the type is unknown, or the config has no such field.
    """
    if name is None:
        assert model_type is not None
        config = _make_config(model_type)
    else:
        name = find_model(name)
        _refuse_wrong_directory(name)
        with offline_unless_reachable() as offline:
            try:
                config = AutoConfig.from_pretrained(name, trust_remote_code=trust_remote_code)
            except Exception as error:  # for unknown files transformers may raise anything
                raise UserError(explain_failure(name, error, offline=offline)) from error
    _override(config, overrides)
    try:
        if name is None and overrides:  # rebuild it: fields such as the layers of a decoder are derived from others
            renamed = type(config).attribute_map
            config = type(config)(**{renamed.get(field, field): value for field, value in overrides.items()})
        config.validate()  # transformers itself checks its rules only when it saves the model
    except (StrictDataclassError, TypeError, ValueError) as error:
        if not overrides:
            raise UserError(f"model.name: the config.json of {name} is refused: {in_one_line(error)}") from error
        raise UserError(f"model.overrides: {type(config).__name__} refuses them: {in_one_line(error)}") from error
    # The loop reads `outputs.logits` and requests no attention weights; our CPU attention returns none.
    for part in (config, find_text_config(config)):
        part.return_dict = True
        part.output_attentions = False
    return config


def _make_config(model_type: str) -> PretrainedConfig:
    types = transformers.CONFIG_MAPPING.keys()
    if model_type not in types:
        hint = suggest(model_type, types) or "; examples: bert, distilbert, roberta, gpt2, llama"
        raise UserError(f"model.type: {model_type} is no model type of transformers{hint}")
    try:
        return AutoConfig.for_model(model_type)
    except (StrictDataclassError, TypeError, ValueError) as error:
        raise UserError(f"model.type: {model_type} has no config by default: {in_one_line(error)}") from error


def _override(config: PretrainedConfig, overrides: Mapping[str, Any]) -> None:
    """Set fields of a config. Raises one UserError that lists all unknown fields and rejected values."""
    problems = []
    for field, value in overrides.items():
        place, kind = f"model.overrides.{field}", type(config).__name__
        if not hasattr(config, field):
            problems.append(f"{place}: {kind} has no such field{suggest(field, config.to_dict())}")
            continue
        try:
            setattr(config, field, value)
        except (StrictDataclassError, TypeError, ValueError) as error:
            problems.append(f"{place}: {value!r}: {in_one_line(error)}")
        except (AttributeError, NotImplementedError):  # a property that transformers computes
            problems.append(f"{place}: {kind} derives it from other fields")
    refuse(problems)


def drops_layers(config: PretrainedConfig | None) -> bool:
    """Return whether a model skips random layers in training (LayerDrop), so that they get no gradient."""
    fields = {} if config is None else config.to_dict()
    return any("layerdrop" in name and isinstance(value, float | int) and value > 0 for name, value in fields.items())


def count_outputs(config: PretrainedConfig | None, tokenizer: Any | None) -> int | None:
    """Return the logits per token of a language model: the larger of its embeddings and the tokens. None if unknown."""
    if config is None or tokenizer is None:
        return None
    return max(getattr(find_text_config(config), "vocab_size", 0), count_tokens(tokenizer))


def fit_model_config(
    config: PretrainedConfig,
    *,
    tokenizer: Any,
    new_vocabulary: bool,
    label_names: Sequence[str] | None,
    problem_type: str | None = None,
    vocab_size: int | None = None,
) -> list[str]:
    """Set the classes, special tokens and vocabulary of a config from the data and the tokenizer.

    Args:
        tokenizer: None if the model reads no tokens.
        new_vocabulary: the model is new, and its vocabulary becomes that of the tokenizer.
        label_names: names of the classes; None if the task has none.
        problem_type: of the task; None means one class per row if `label_names` is set.
        vocab_size: embeddings of a new model; None: one for each token.

    Returns:
        One line for the user for each value that differed in the config.
    """
    notes = []
    if label_names is not None:
        config.id2label = dict(enumerate(label_names))  # this also sets num_labels
        config.label2id = {label: index for index, label in enumerate(label_names)}
        problem_type = problem_type or "single_label_classification"
    elif problem_type == "regression":
        config.num_labels = 1
    if problem_type is not None:
        if config.problem_type not in (None, problem_type):
            notes.append(f"model: its config says {config.problem_type}; the export says {problem_type}, as the task")
        config.problem_type = problem_type
    if tokenizer is None:
        return notes
    parts = _text_parts(config)
    for part in parts:
        part.pad_token_id = tokenizer.pad_token_id
    text = find_text_config(config)
    if new_vocabulary:
        text.vocab_size = vocab_size or count_tokens(tokenizer)
        text.bos_token_id, text.eos_token_id = tokenizer.bos_token_id, tokenizer.eos_token_id
    ends = list_ids(getattr(text, "eos_token_id", None))
    if tokenizer.eos_token_id is not None and tokenizer.eos_token_id not in ends:
        notes.append(
            f"model: the end token of its config ({', '.join(map(str, ends)) or 'none'}) is not that of the tokenizer, "
            f"which is taken: {tokenizer.eos_token} ({tokenizer.eos_token_id})"
        )
        for part in parts:
            part.eos_token_id = tokenizer.eos_token_id
    begin = getattr(config, "decoder_start_token_id", None)
    if config.is_encoder_decoder and (begin is None or (new_vocabulary and begin >= text.vocab_size)):
        config.decoder_start_token_id = tokenizer.pad_token_id  # as in T5
    return notes


def count_tokens(tokenizer: Any) -> int:
    """Return the number of embeddings that a tokenizer needs; its ids may have gaps."""
    return max(len(tokenizer), *(position + 1 for position in tokenizer.get_vocab().values()))


def _text_parts(config: PretrainedConfig) -> list[PretrainedConfig]:
    """Return the config, and the configs inside it that have a vocabulary."""
    inside = [part for part in vars(config).values() if isinstance(part, PretrainedConfig)]
    return [config, *(part for part in inside if hasattr(part, "vocab_size"))]


def list_ids(ids: Any) -> list[int]:
    """Return the token ids in a config field, which holds None, one id or several, as a list."""
    return [] if ids is None else list(ids) if isinstance(ids, (list, tuple)) else [ids]


def check_model_config(
    config: PretrainedConfig,
    *,
    empty: nn.Module,
    tokenizer: Any,
    own_tokenizer: bool,
    max_length: int,
    needs_end: bool = False,
) -> list[str]:
    """Check that rows fit the positions of the model and token ids fit its embeddings. Returns one message per problem.

    Args:
        empty: the model on the meta device, without values of weights.
        own_tokenizer: the tokenizer belongs to the model; tokens added to it then get new embeddings.
        max_length: tokens of the longest row.
        needs_end: the head reads the end token of each row.
    """
    problems = []
    limits = {"positions of the model": count_positions(empty), "tokens of the tokenizer": tokenizer.model_max_length}
    too_low = [(limit, what) for what, limit in limits.items() if limit is not None and limit < max_length]
    if too_low:
        limit, what = too_low[0]
        problems.append(f"data.max_length: {max_length} is more than the {limit} {what}; set data.max_length={limit}")
    vocabulary, num_tokens = getattr(find_text_config(config), "vocab_size", None), count_tokens(tokenizer)
    if isinstance(vocabulary, int) and num_tokens > vocabulary and not own_tokenizer:
        problems.append(
            f"model.tokenizer: it has {num_tokens:,} tokens, the model has embeddings for {vocabulary:,}; "
            "use the tokenizer that came with the model"
        )
    problems += _check_token_types(empty, tokenizer)
    if needs_end and tokenizer.eos_token_id not in tokenizer("a")["input_ids"]:
        problems.append(
            f"model.tokenizer: the head of a {config.model_type} reads the end token of each row, and this tokenizer "
            f"puts none there ({tokenizer.eos_token}); use the tokenizer that came with the model"
        )
    return problems


def _check_token_types(empty: nn.Module, tokenizer: Any) -> list[str]:
    """Return a problem if the model lacks an embedding for a token type of the tokenizer."""
    types = tokenizer("a", "a").get("token_type_ids")
    tables = [module for name, module in empty.named_modules() if name.endswith("token_type_embeddings")]
    limit = min((len(table.weight) for table in tables), default=None)  # type: ignore[arg-type] # embeddings have one
    if not types or limit is None or max(types) < limit:
        return []
    return [
        f"model.tokenizer: it gives tokens the types 0 to {max(types)}, the model has embeddings for {limit}; "
        "use the tokenizer that came with the model"
    ]


def make_empty_model(config: PretrainedConfig, *, model_class: str, trust_remote_code: bool = False) -> nn.Module:
    """Build a model on the meta device: its weights have names and shapes, but no values.

    Raises:
        UserError: transformers cannot build a model from this config.
    """
    try:
        with torch.device("meta"), without_shared_padding(config):
            model: nn.Module = getattr(transformers, model_class).from_config(
                copy.deepcopy(config),  # a trial adapter may change it, for example one that repeats layers
                trust_remote_code=trust_remote_code,
            )
    except Exception as error:  # for a changed or damaged config transformers may raise anything
        raise UserError(
            f"model: transformers cannot build this {model_class}: {type(error).__name__}: "
            f"{in_one_line(error, at_most=200)}; see model.overrides, or the model's config.json"
        ) from error
    return model


@contextlib.contextmanager
def without_shared_padding(config: PretrainedConfig) -> Iterator[None]:
    """Context in which models are built without a padding token that also marks start or end, or is added later.

    torch sets the `padding_idx` row of an embedding to zero and never trains it.
    """
    removed = []
    for part in _text_parts(config):
        padding, vocabulary = getattr(part, "pad_token_id", None), getattr(part, "vocab_size", None)
        shared = [*list_ids(getattr(part, "eos_token_id", None)), *list_ids(getattr(part, "bos_token_id", None))]
        if padding is not None and (padding in shared or (isinstance(vocabulary, int) and padding >= vocabulary)):
            removed.append((part, padding))
            part.pad_token_id = None
    try:
        yield
    finally:
        for part, padding in removed:
            part.pad_token_id = padding


def use_padding_token(model: nn.Module, config: PretrainedConfig) -> None:
    """Set the padding token of a model that was built in `without_shared_padding`."""
    for part, original in zip(_text_parts(model.config), _text_parts(config), strict=True):  # type: ignore[arg-type]
        part.pad_token_id = original.pad_token_id
    for module in model.modules():  # for example in RoBERTa, which counts positions from it
        if not isinstance(module, nn.Embedding) and getattr(module, "padding_idx", 0) is None:
            module.padding_idx = find_text_config(config).pad_token_id


def looks_like_path(name: str) -> bool:
    """Return whether a name can only be a directory, and not a hub id."""
    return name.startswith((".", "/", "~")) or name.count("/") > 1


def _refuse_wrong_directory(name: str) -> None:
    """Refuse a path without a model: transformers would read it as a hub id, or load an adapter's base model."""
    folder = Path(name)
    if looks_like_path(name) and not folder.is_dir():
        raise UserError(
            f"model.name: {name} is no directory; give a hub id such as google-bert/bert-base-cased, or a directory"
        )
    if folder.is_dir() and not (folder / "config.json").is_file():
        present = ", ".join(sorted(path.name for path in folder.iterdir())[:8]) or "nothing"
        raise UserError(f"model.name: {name} holds no config.json, so no model of transformers; it holds {present}")
    if (folder / ADAPTER_CONFIG).is_file():
        raise UserError(
            f"model.name: {name} is an adapter, and not a model; train it with model.lora.merge=true (or "
            "model.peft.merge=true), which exports a model to go on from"
        )


def explain_failure(name: str, error: Exception, *, offline: str | None) -> str:
    """Return one line on why a model was not loaded. `offline` is why the hub was not asked; None if it was."""
    if offline is not None and not Path(name).is_dir():
        return (
            f"model.name: {name} is not in the cache and {offline}; give a local directory, or fill the "
            f"cache on a machine with network: hf download {name}"
        )
    kind = "" if isinstance(error, (OSError, ValueError)) else f"{type(error).__name__}: "
    return f"model.name: {name} cannot be loaded: {kind}{in_one_line(error)}"
