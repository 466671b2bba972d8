"""What both sides of the benchmark of tasks share: made-up rows, a tokenizer and a model for each task."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from trainer_loop.data.processors import read_chat_template, train_tokenizer
from trainer_loop.tasks.find import load_task

TASK_NAMES = {
    "tags": "token_classification",
    "spans": "question_answering",
    "seq2seq": "seq2seq",
    "chat": "chat",
}
TAGS = ("O", "B-PER", "I-PER")
MAX_LENGTH = 384
_WORDS = 2000
_VOCABULARY = 4000
_WIDTH, _HEADS = 256, 4


def prepare(folder: Path, task: str, *, rows: int, held_out: int, layers: int) -> None:
    """Write train.jsonl, held_out.jsonl and model/ into a new folder."""
    folder.mkdir()
    made = {"train": list(_make_rows(task, rows, seed=0)), "held_out": list(_make_rows(task, held_out, seed=1))}
    for name, of_split in made.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in of_split), encoding="utf-8")
    kind = load_task(TASK_NAMES[task])
    texts = (json.dumps(row) for row in made["train"])
    tokenizer = train_tokenizer(texts, framed=not kind().writes, vocab_size=_VOCABULARY, max_length=MAX_LENGTH)
    if task == "chat":
        tokenizer.chat_template = read_chat_template("plain")
    torch.manual_seed(0)
    model = getattr(transformers, str(kind.auto_model)).from_config(_make_config(task, tokenizer, layers))
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")


def _make_config(task: str, tokenizer: Any, layers: int) -> Any:
    vocab_size, pad, end = len(tokenizer), tokenizer.pad_token_id, tokenizer.eos_token_id
    if task == "seq2seq":
        return transformers.T5Config(
            vocab_size=vocab_size,
            d_model=_WIDTH,
            d_kv=_WIDTH // _HEADS,
            d_ff=4 * _WIDTH,
            num_layers=layers,
            num_decoder_layers=layers,
            num_heads=_HEADS,
            dropout_rate=0.0,
            pad_token_id=pad,
            eos_token_id=end,
            decoder_start_token_id=pad,
        )
    if task == "chat":
        return transformers.GPT2Config(
            vocab_size=vocab_size,
            n_embd=_WIDTH,
            n_layer=layers,
            n_head=_HEADS,
            n_positions=MAX_LENGTH,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            bos_token_id=end,
            eos_token_id=end,
        )
    return transformers.BertConfig(
        vocab_size=vocab_size,
        hidden_size=_WIDTH,
        num_hidden_layers=layers,
        num_attention_heads=_HEADS,
        intermediate_size=4 * _WIDTH,
        max_position_embeddings=MAX_LENGTH,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        pad_token_id=pad,
        **({"num_labels": len(TAGS), "id2label": dict(enumerate(TAGS))} if task == "tags" else {}),
    )


def _make_rows(task: str, count: int, *, seed: int) -> Iterator[dict[str, Any]]:
    """Lengths are log-normal, as those of texts are."""
    generator = np.random.Generator(np.random.PCG64(seed))
    words = [f"{'bcdfghjk'[number % 8]}{'aeiou'[number % 5]}{number}" for number in range(_WORDS)]
    for _ in range(count):
        lengths = np.clip(generator.lognormal(3.2, 0.7, size=2), 4, 90).astype(int)
        first, second = ([words[place] for place in generator.integers(_WORDS, size=length)] for length in lengths)
        if task == "tags":
            yield {"words": first, "tags": [TAGS[1 + len(word) % 2] if word[0] == "b" else TAGS[0] for word in first]}
        elif task == "spans":
            place = int(generator.integers(len(second)))
            start = len(" ".join(second[:place])) + (1 if place else 0)
            answers = {"text": [second[place]], "answer_start": [start]}
            yield {"question": f"Where is {second[place]}?", "context": " ".join(second), "answers": answers}
        elif task == "seq2seq":
            yield {"source": " ".join(first), "target": " ".join(first[::-1])}
        else:
            roles = zip(("user", "assistant"), (first, second), strict=True)
            yield {"messages": [{"role": role, "content": " ".join(text)} for role, text in roles]}
