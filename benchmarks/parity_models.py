"""The models of the parity table (tiny, from their configs, float64, without dropout) and their rows."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import AutoConfig, PreTrainedTokenizerFast

from trainer_loop import Task
from trainer_loop.config.fields import ModelConfig
from trainer_loop.models.config import fit_model_config
from trainer_loop.models.loading import make_model as make_fp32_model
from trainer_loop.models.plan import ModelPlan
from trainer_loop.tasks.causal_lm import CausalLM
from trainer_loop.tasks.sequence_classification import SequenceClassification

LABELS = ("a", "b", "c")
LONGEST = 24  # tokens of the longest row
_SHORTEST = 3
_NUM_TOKENS = 50
_SEED = 0
_SIZES = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 64,
}


@dataclass(frozen=True)
class TinyModel:
    """A model of the table.

    Attributes:
        model_type: its name in transformers.
        fields: fields of its config, in addition to those that all models share.
    """

    model_type: str
    task: type[Task] = SequenceClassification
    fields: Mapping[str, Any] = field(default_factory=dict)


_DEBERTA_V3 = {  # as in its pretrained models, except for the sizes
    "relative_attention": True,
    "pos_att_type": ["p2c", "c2p"],
    "position_biased_input": False,
    "position_buckets": 8,
    "norm_rel_ebd": "layer_norm",
    "share_att_key": True,
}
_GROUPED = {"num_key_value_heads": 1}  # two query heads share one key head
MODELS = {
    "BERT": TinyModel("bert"),
    "DistilBERT": TinyModel("distilbert", fields={"hidden_dim": 32}),
    "RoBERTa": TinyModel("roberta"),
    "ModernBERT": TinyModel("modernbert"),
    "ELECTRA": TinyModel("electra", fields={"embedding_size": 8}),
    "DeBERTa-v2": TinyModel("deberta-v2", fields=_DEBERTA_V3),
    "ALBERT": TinyModel("albert", fields={"embedding_size": 8}),
    "GPT-2": TinyModel("gpt2"),
    "Llama": TinyModel("llama", fields=_GROUPED),
    "Qwen2": TinyModel("qwen2", fields=_GROUPED),
    "GPT-2 causal LM": TinyModel("gpt2", CausalLM),
    "Llama causal LM": TinyModel("llama", CausalLM, _GROUPED),
}


def make_model(name: str) -> nn.Module:
    """Make a model; its weights are the same at every call."""
    kind = MODELS[name]
    tokenizer = make_tokenizer()
    config = AutoConfig.for_model(kind.model_type, **_SIZES, **kind.fields)
    for key, value in config.to_dict().items():
        if "drop" in key and isinstance(value, float):
            setattr(config, key, 0.0)
    fit_model_config(
        config, tokenizer=tokenizer, new_vocabulary=True, label_names=LABELS if "label" in kind.task.columns else None
    )
    plan = ModelPlan(**vars(ModelConfig()) | {"lora": {}, "peft": {}, "given": None})
    model, _ = make_fp32_model(
        plan,
        config,
        model_class=str(kind.task.auto_model),
        num_tokens=len(tokenizer),
        compute_type=torch.float32,
        seed=_SEED,
    )
    return model.double()


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer of whole words; padding is token 0."""
    from tokenizers import Tokenizer, models

    words = ["[PAD]", "[UNK]", "[BOS]", "[EOS]"]
    words += [f"w{number}" for number in range(len(words), _NUM_TOKENS)]
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="[UNK]"))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        bos_token="[BOS]",
        eos_token="[EOS]",
        padding_side="right",
    )


def make_rows(count: int, *, labelled: bool) -> list[dict[str, Any]]:
    """Rows of random tokens, longest first; the lengths fall evenly from 24 to 3."""
    generator = np.random.default_rng(_SEED)
    rows: list[dict[str, Any]] = []
    for length in np.linspace(LONGEST, _SHORTEST, count).round().astype(int):
        row: dict[str, Any] = {"input_ids": generator.integers(4, _NUM_TOKENS, length).tolist()}
        if labelled:
            row["label"] = int(generator.integers(0, len(LABELS)))
        rows.append(row)
    return rows
