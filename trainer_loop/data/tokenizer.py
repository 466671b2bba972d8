"""Tokenizers: loaded from the hub or a folder, or trained on the training texts."""

import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from trainer_loop.data.pretrained import load_pretrained
from trainer_loop.data.wording import enumerate_some
from trainer_loop.errors import UserError, in_one_line
from trainer_loop.runtime.host import expand_home

_FRAME = {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}
_END_OF_TEXT = "<|endoftext|>"
# The end token stands behind an answer, where the model is to stop. A header ends with a line break, so that the tokens
# before an answer are the same whether it follows or not.
_PLAIN_TEMPLATE = """\
{%- if bos_token %}{{ bos_token }}{% endif %}
{%- for message in messages %}
{{- message.role + ":\\n" }}
{%- if message.role == "assistant" %}{% generation %}{{ message.content + eos_token }}{% endgeneration %}
{%- else %}{{ message.content }}{% endif %}{{ "\\n" }}
{%- endfor %}
{%- if add_generation_prompt %}{{ "assistant:\\n" }}{% endif %}"""
_VOCABULARY_FILES = re.compile(r"tokenizer\.json|vocab\.(txt|json|bpe)|.*\.(model|tiktoken)|tekken\.json")


def load_tokenizer(
    name_or_path: str, *, trust_remote_code: bool, say: Callable[[str], None]
) -> PreTrainedTokenizerFast:
    """The tokenizer in a local folder, or of a hub id (from its cache where the hub does not answer).

    It has a token for padding afterwards; `say` is told where that was not its own. Raises UserError.
    """
    path = expand_home(name_or_path, place="tokenizer")
    if path.is_dir():
        _check_folder(path)
    options = {"trust_remote_code": trust_remote_code}
    tokenizer: PreTrainedTokenizerFast = load_pretrained(AutoTokenizer, name_or_path, noun="tokenizer", options=options)
    if not getattr(tokenizer, "is_fast", False):
        raise UserError(
            f"tokenizer {name_or_path} ({type(tokenizer).__name__}) has no fast form (tokenizer.json); choose another"
        )
    if set(tokenizer.get_vocab()) <= set(tokenizer.all_special_tokens):
        raise UserError(f"tokenizer {name_or_path} has no vocabulary (tokenizer.json, vocab.txt or the like)")
    _ensure_padding(tokenizer, name_or_path, say=say)
    return tokenizer


def as_tokenizer(processor: Any) -> Any | None:
    """The processor of a task, if it is a tokenizer."""
    return processor if hasattr(processor, "backend_tokenizer") else None


def read_chat_template(name: str) -> str:
    """A chat template: `plain`, or that of a file. Raises UserError where the file cannot be read."""
    if name == "plain":
        return _PLAIN_TEMPLATE
    path = expand_home(name, place="model.chat_template")
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise UserError(
            f"model.chat_template: {name} cannot be read: {in_one_line(error)}; set it to plain, or to a file with a "
            "Jinja template"
        ) from error


def train_tokenizer(texts: Iterable[str], *, framed: bool, vocab_size: int, max_length: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE, as GPT-2's: any text can be spelt, and the same texts give the same tokenizer.

    Args:
        texts: What it is trained on.
        framed: True for a classifier: `[CLS] a [SEP] b [SEP]` with token types 0 and 1, as BERT has it. False for a
            language model: nothing stands around a text, and `<|endoftext|>` begins, ends and pads.
        vocab_size: Tokens at most, but at least 256 bytes and the special tokens.
        max_length: Tokens a model may take, for those who load the tokenizer later.
    """
    if framed:
        return PreTrainedTokenizerFast(
            tokenizer_object=_frame(_train_byte_level_bpe(texts, vocab_size, special=list(_FRAME.values()))),
            model_max_length=max_length,
            model_input_names=["input_ids", "token_type_ids", "attention_mask"],
            **_FRAME,
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=_train_byte_level_bpe(texts, vocab_size, special=[_END_OF_TEXT]),
        model_max_length=max_length,
        model_input_names=["input_ids", "attention_mask"],
        bos_token=_END_OF_TEXT,
        eos_token=_END_OF_TEXT,
        pad_token=_END_OF_TEXT,
    )


def _train_byte_level_bpe(texts: Iterable[str], vocab_size: int, *, special: list[str]) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=special,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),  # it comes as a set
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def _frame(tokenizer: Tokenizer) -> Tokenizer:
    """Let it put `[CLS]` and `[SEP]` around a text or a pair."""
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")],
    )
    return tokenizer


def _check_folder(path: Path) -> None:
    names = sorted(entry.name for entry in path.iterdir())
    if not any(_VOCABULARY_FILES.fullmatch(name) for name in names):
        there = f"it has {enumerate_some(names)}" if names else "it is empty"
        raise UserError(f"tokenizer {path}: the folder has no tokenizer.json, vocab.txt or the like; {there}")


def _ensure_padding(tokenizer: PreTrainedTokenizerFast, name: str, *, say: Callable[[str], None]) -> None:
    if tokenizer.pad_token is not None:
        return
    if tokenizer.eos_token is not None:
        tokenizer.pad_token = tokenizer.eos_token
        say(f"tokenizer {name} has no token for padding: its end token {tokenizer.eos_token} stands in")
    else:
        tokenizer.add_special_tokens({"pad_token": "[PAD]"})
        say(f"tokenizer {name} has no token for padding: [PAD] is added, and the model gets an embedding for it")
