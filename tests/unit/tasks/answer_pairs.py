"""What the tests of tasks on pairs of answers share: a tokenizer, and the config of a short run of a small model."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerFast

from trainer_loop import load_config
from trainer_loop.config.fields import Config
from trainer_loop.data.processors import read_chat_template, train_tokenizer


def make_tokenizer(rows: Sequence[Mapping[str, Any]]) -> PreTrainedTokenizerFast:
    """One that is trained on these rows and has a chat template."""
    tokenizer = train_tokenizer([str(row) for row in rows], framed=False, vocab_size=300, max_length=256)
    tokenizer.chat_template = read_chat_template("plain")
    return tokenizer


def configure_run(
    folder: Path, *arguments: str, rows: Sequence[Mapping[str, Any]], tokenizer: PreTrainedTokenizerFast
) -> Config:
    """A run of 20 steps that trains a GPT-2 on the rows and evaluates it on the same."""
    tokenizer.save_pretrained(folder / "tokenizer")
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    sizes = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 96}
    common = [
        f"model={json.dumps({'type': 'gpt2', 'overrides': sizes, 'tokenizer': str(folder / 'tokenizer')})}",
        f"data={json.dumps({split: str(folder / 'rows.jsonl') for split in ('train', 'validation')})}",
        f"data.cache_dir={folder / 'cache'}",
        "data.max_length=96",
        "batch.size=3",
        "train={steps: 20, precision: no, threads: 1}",
        "optimizer={name: adamw, lr: 1e-2}",
        f"run_dir={folder / 'run'}",
    ]
    return load_config(None, [*common, *arguments])
