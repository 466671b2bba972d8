"""A small model with random weights for each task, as `Predictor` has it."""

import json
from typing import Any

import torch
import transformers
from transformers import AutoConfig

from trainer_loop import Predictor
from trainer_loop.data.columns import bind_columns
from trainer_loop.data.processors import make_image_processor, train_tokenizer
from trainer_loop.tasks.find import load_task

_BERT = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
_T5 = {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 2, "num_decoder_layers": 2, "num_heads": 2}
_KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "AutoModelForSeq2SeqLM": ("t5", _T5),
    "AutoModelForCausalLM": ("gpt2", {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64}),
    "AutoModelForImageClassification": ("vit", _BERT | {"image_size": 8, "patch_size": 4}),
}
_NUM_LABELS = {"sequence_regression": 1, "reward_model": 1, "question_answering": 2}
_PLAIN = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + eos_token }}{% endfor %}"
_PLAIN += "{% if add_generation_prompt %}assistant: {% endif %}"


def make_predictor(name: str) -> Predictor:
    """A model of the task of this name that was never trained."""
    task = load_task(name)
    kind, sizes = _KINDS.get(str(task.auto_model), ("bert", _BERT | {"max_position_embeddings": 64}))
    config = AutoConfig.for_model(kind, **sizes, num_labels=_NUM_LABELS.get(name, 3))
    if task.auto_processor == "AutoImageProcessor":
        processor = make_image_processor(config)
    else:
        texts = [json.dumps(row) for row in task.example]
        processor = train_tokenizer(texts, framed=task().frames_texts, vocab_size=300, max_length=32)
        config.vocab_size = len(processor)
        for special in ("pad_token_id", "eos_token_id", "bos_token_id"):
            setattr(config, special, getattr(processor, special))
        config.decoder_start_token_id = processor.pad_token_id
        if task.writes or name == "reward_model":
            processor.chat_template = _PLAIN
    torch.manual_seed(0)
    model = getattr(transformers, str(task.auto_model)).from_config(config)
    columns = bind_columns(task.columns, {}, task=name).names
    predictor = Predictor(model, processor, task=name, max_length=32, columns=columns)
    if task.generates:
        predictor.use_generation({"max_new_tokens": 4})
    return predictor


def example_rows(predictor: Predictor, name: str) -> list[dict[str, Any]]:
    """The example rows of the task, as they are to be predicted."""
    rows = [{own: row[own] for own in predictor.reads} for row in load_task(name).example if row[predictor.reads[0]]]
    if name == "masked_lm":
        mask = predictor.processor.mask_token
        rows = [{"text": f"{mask} {row['text']}"} for row in rows]
    return rows
