"""Small models of every text architecture that transformers has: two narrow layers, made from their configs."""

import contextlib
import functools
from typing import Any

import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import nn
from transformers import PretrainedConfig, PreTrainedTokenizerFast
from transformers.models.auto import modeling_auto
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

VOCABULARY = 60
_MOST_WEIGHTS = 3_000_000
PAD, BOS, EOS = 0, 1, 2

_WIDTH = ("hidden_size", "d_model", "n_embd", "dim", "embedding_size", "emb_dim", "d_embed", "word_embed_proj_dim")
_WIDTH += ("pooler_hidden_size", "true_hidden_size", "intra_bottleneck_size")
_INNER = ("intermediate_size", "d_ff", "d_inner", "n_inner", "hidden_dim", "ffn_dim", "encoder_ffn_dim", "dff")
_INNER += ("decoder_ffn_dim", "ffn_hidden_size")
_LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "encoder_layers", "decoder_layers")
_LAYERS += ("num_decoder_layers", "num_encoder_layers")
_HEADS = ("num_attention_heads", "n_head", "n_heads", "num_heads", "encoder_attention_heads")
_HEADS += ("decoder_attention_heads", "num_key_value_heads")
_POSITIONS = ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len")
_EXPERTS = ("num_experts", "n_routed_experts", "num_local_experts", "moe_num_experts")
_SIZES: dict[str, int] = {
    **dict.fromkeys(_WIDTH, 32),
    **dict.fromkeys(_INNER, 48),
    **dict.fromkeys(_LAYERS, 2),
    **dict.fromkeys(_HEADS, 2),
    **dict.fromkeys(_POSITIONS, 64),
    **dict.fromkeys(_EXPERTS, 4),
    **dict.fromkeys(("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k"), 2),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size"), 32),
    **dict.fromkeys(("head_dim", "d_kv", "d_head", "v_head_dim", "q_lora_rank", "kv_lora_rank"), 16),
    **{"qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "qk_head_dim": 16, "vocab_size": VOCABULARY},
    **{"pad_token_id": PAD, "bos_token_id": BOS, "eos_token_id": EOS, "image_size": 28, "patch_size": 14},
}
_UNSET = ("pad_token_id", "vocab_size", "num_key_value_heads", "head_dim")  # given a value where the default is None
# What a type needs besides.
_MORE: dict[str, dict[str, Any]] = {
    "canine": {"num_hash_buckets": 64},
    "deberta": {"relative_attention": True, "pos_att_type": ["c2p", "p2c"]},
    "deberta-v2": {"relative_attention": True, "pos_att_type": ["c2p", "p2c"], "norm_rel_ebd": "layer_norm"},
    "esm": {"position_embedding_type": "absolute", "mask_token_id": 4},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "attention_layers": ["global", "local"]},
    "gptj": {"rotary_dim": 8},
    "codegen": {"rotary_dim": 8},
    "mobilebert": {"embedding_size": 32},
    "reformer": {
        "axial_pos_shape": (8, 8),
        "axial_pos_embds_dim": (16, 16),
        "attention_head_size": 16,
        "feed_forward_size": 48,
    },
    "roc_bert": {
        "shape_vocab_size": 60,
        "pronunciation_vocab_size": 60,
        "pronunciation_embed_dim": 16,
        "shape_embed_dim": 16,
    },
    "xmod": {"default_language": "en_XX"},
    "lilt": {"hidden_size": 48, "intermediate_size": 48},
    "layoutlmv3": {"hidden_size": 48, "coordinate_size": 8, "shape_size": 8, "visual_embed": False},
    "t5": {"decoder_start_token_id": PAD},
    "luke": {"entity_vocab_size": 20, "entity_emb_size": 16},
}


def make_config(model_type: str) -> PretrainedConfig:
    config = CONFIG_MAPPING[model_type]()
    _shrink(config)
    for name, value in _MORE.get(model_type, {}).items():
        setattr(config, name, value)
    config.num_labels = 3
    return config


def _shrink(config: PretrainedConfig) -> None:
    for name, value in _SIZES.items():
        if getattr(config, name, None) is not None or (name in _UNSET and hasattr(config, name)):
            with contextlib.suppress(AttributeError, NotImplementedError):  # it follows from others
                setattr(config, name, value)
    for value in list(vars(config).values()):
        if isinstance(value, PretrainedConfig):
            _shrink(value)
    if hasattr(config, "qk_rope_head_dim") and hasattr(config, "head_dim"):
        config.head_dim = config.qk_rope_head_dim  # what rotations are made of
    for name in ("layer_types", "mlp_layer_types", "layers_block_type", "block_types"):
        if kinds := vars(config).get(name):
            setattr(config, name, (list(dict.fromkeys(kinds)) * 2)[:2])


def make_model(model_type: str, auto_class: str) -> nn.Module:
    torch.manual_seed(0)
    return getattr(transformers, auto_class).from_config(make_config(model_type))


def make_tokenizer(*, has_ends: bool = True) -> PreTrainedTokenizerFast:
    """Words w0, w1, ... that begin and end as `BOS` and `EOS`, or without these."""
    words = ["[PAD]", "[BOS]", "[EOS]", "[UNK]", *(f"w{index}" for index in range(VOCABULARY - 4))]
    made = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special: dict[str, Any] = {"pad_token": "[PAD]", "unk_token": "[UNK]"}
    if has_ends:
        made.post_processor = processors.TemplateProcessing(
            single="[BOS] $A [EOS]",
            pair="[BOS] $A [EOS] $B [EOS]",
            special_tokens=[("[BOS]", BOS), ("[EOS]", EOS)],
        )
        special |= {"bos_token": "[BOS]", "eos_token": "[EOS]"}
    return PreTrainedTokenizerFast(tokenizer_object=made, model_input_names=["input_ids", "attention_mask"], **special)


def skip_unless_small(model_type: str, auto_class: str) -> None:
    """Skip a test where transformers cannot build a small model of this type here, or that cannot answer by itself."""
    if (reason := _why_not(model_type, auto_class)) is not None:
        pytest.skip(reason)


@functools.cache
def _why_not(model_type: str, auto_class: str) -> str | None:
    try:
        with torch.device("meta"):
            empty = getattr(transformers, auto_class).from_config(make_config(model_type))
        if sum(weight.numel() for weight in empty.parameters()) > _MOST_WEIGHTS:
            return "its smallest form is not small"
        ids = torch.tensor([[BOS, 7, 23, 41, 5, 30, 11, EOS]])
        with torch.no_grad():
            make_model(model_type, auto_class).eval()(input_ids=ids, attention_mask=torch.ones_like(ids))
    except Exception as error:  # noqa: BLE001 - whatever transformers raises for a config that does not suit the type
        return f"{type(error).__name__}: {error}"
    return None


def types_of(kind: str) -> list[str]:
    """kind: as transformers calls it, such as SEQUENCE_CLASSIFICATION."""
    return list(getattr(modeling_auto, f"MODEL_FOR_{kind}_MAPPING_NAMES"))
