"""Tokenizers: loaded from the hub or a folder, or trained on the training texts."""

import difflib
import re
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Literal

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from trainer_loop.data.wording import enumerate_some
from trainer_loop.errors import UserError, in_one_line
from trainer_loop.runtime.host import expand_home
from trainer_loop.runtime.hub import describe_unreachable, offline_unless_reachable

TokenizerStyle = Literal["wordpiece", "byte_level_bpe"]

_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
_WORDPIECE_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_FIRST_PRIVATE = 0xF0000  # code point
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
        tokenizer = _load(str(path), name_or_path, trust_remote_code=trust_remote_code)
    elif path.exists():
        raise UserError(f"tokenizer {name_or_path} is a file; name the folder that it is in")
    elif not _HUB_ID.fullmatch(name_or_path):
        raise UserError(f"tokenizer {name_or_path}: there is no such folder{_describe_parent(path)}")
    else:
        reason = describe_unreachable()  # asked before offline mode is set, which would be the reason then
        with offline_unless_reachable() as reachable:
            offline = None if reachable else reason
            tokenizer = _load(name_or_path, name_or_path, trust_remote_code=trust_remote_code, offline=offline)
    if not getattr(tokenizer, "is_fast", False):
        raise UserError(
            f"tokenizer {name_or_path} ({type(tokenizer).__name__}) has no fast form (tokenizer.json); choose another"
        )
    if set(tokenizer.get_vocab()) <= set(tokenizer.all_special_tokens):
        raise UserError(f"tokenizer {name_or_path} has no vocabulary (tokenizer.json, vocab.txt or the like)")
    _ensure_padding(tokenizer, name_or_path, say=say)
    return tokenizer


def train_tokenizer(
    texts: Iterable[str], *, style: TokenizerStyle, vocab_size: int, max_length: int
) -> PreTrainedTokenizerFast:
    """A tokenizer of at most `vocab_size` tokens; the same texts give the same one.

    wordpiece: as BERT's, lower case, `[CLS] a [SEP] b [SEP]` with token types 0 and 1.
    byte_level_bpe: as GPT-2's: any text can be spelt, `<|endoftext|>` begins, ends and pads, nothing is put around it.
    max_length: tokens a model may take, for those who load it later.
    """
    if style == "wordpiece":
        return PreTrainedTokenizerFast(
            tokenizer_object=_train_wordpiece(texts, vocab_size),
            model_max_length=max_length,
            model_input_names=["input_ids", "token_type_ids", "attention_mask"],
            pad_token="[PAD]",
            unk_token="[UNK]",
            cls_token="[CLS]",
            sep_token="[SEP]",
            mask_token="[MASK]",
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=_train_byte_level_bpe(texts, vocab_size),
        model_max_length=max_length,
        model_input_names=["input_ids", "attention_mask"],
        bos_token="<|endoftext|>",
        eos_token="<|endoftext|>",
        pad_token="<|endoftext|>",
    )


def _train_wordpiece(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    normalizer, pre_tokenizer = normalizers.BertNormalizer(lowercase=True), pre_tokenizers.BertPreTokenizer()
    words: Counter[str] = Counter()
    for text in texts:
        words.update(word for word, _ in pre_tokenizer.pre_tokenize_str(normalizer.normalize_str(text)))
    pieces = _learn_pieces(words, size=vocab_size - len(_WORDPIECE_SPECIAL))
    vocabulary = {piece: position for position, piece in enumerate((*_WORDPIECE_SPECIAL, *pieces))}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.add_special_tokens(list(_WORDPIECE_SPECIAL))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, pre_tokenizer
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(token, vocabulary[token]) for token in ("[CLS]", "[SEP]")],
    )
    return tokenizer


def _learn_pieces(words: Counter[str], *, size: int) -> list[str]:
    """The pieces that merging the most frequent pairs gives: `token`, and `##ize` for what goes on with a word.

    As WordPieceTrainer of tokenizers does it, which breaks ties by the order of a hash map: every run another
    vocabulary. BpeTrainer does not, so the letters inside words are given code points of their own, and it is used.
    """
    letters = sorted(set().union(*words))
    # Private ones, which the normalizer has removed from the texts.
    inside = {letter: chr(_FIRST_PRIVATE + position) for position, letter in enumerate(letters)}
    outside = {marked: letter for letter, marked in inside.items()}
    marked = (f"{word[0]}{''.join(inside[letter] for letter in word[1:])} " * count for word, count in words.items())
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.train_from_iterator(
        marked, trainers.BpeTrainer(vocab_size=size, initial_alphabet=letters, show_progress=False)
    )
    by_id = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    return [
        ("##" if piece[0] in outside else "") + "".join(outside.get(letter, letter) for letter in piece)
        for piece, _ in by_id
    ]


def _train_byte_level_bpe(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),  # it comes as a set
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def _load(source: str, named: str, *, trust_remote_code: bool, offline: str | None = None) -> PreTrainedTokenizerFast:
    try:
        tokenizer: PreTrainedTokenizerFast = AutoTokenizer.from_pretrained(source, trust_remote_code=trust_remote_code)
    except Exception as error:  # files of somebody else's may make transformers raise anything
        if offline is not None:
            raise UserError(
                f"tokenizer {named}: {offline} and it is not in the cache; name a local folder, or fill "
                f"the cache with transformers.AutoTokenizer.from_pretrained({named!r}) where there is network"
            ) from error
        hint = "; model.trust_remote_code=true lets its Python code run" if "trust_remote_code" in str(error) else ""
        raise UserError(f"tokenizer {named} cannot be loaded: {in_one_line(error)}{hint}") from error
    return tokenizer


def _check_folder(path: Path) -> None:
    names = sorted(entry.name for entry in path.iterdir())
    if not any(_VOCABULARY_FILES.fullmatch(name) for name in names):
        there = f"it has {enumerate_some(names)}" if names else "it is empty"
        raise UserError(f"tokenizer {path}: the folder has no tokenizer.json, vocab.txt or the like; {there}")


def _describe_parent(path: Path) -> str:
    if not path.parent.is_dir():
        return f", nor a folder {path.parent}"
    near = difflib.get_close_matches(path.name, [entry.name for entry in path.parent.iterdir() if entry.is_dir()], n=1)
    return f"; did you mean {path.parent / near[0]}?" if near else ""


def _ensure_padding(tokenizer: PreTrainedTokenizerFast, name: str, *, say: Callable[[str], None]) -> None:
    if tokenizer.pad_token is not None:
        return
    if tokenizer.eos_token is not None:
        tokenizer.pad_token = tokenizer.eos_token
        say(f"tokenizer {name} has no token for padding: its end token {tokenizer.eos_token} stands in")
    else:
        tokenizer.add_special_tokens({"pad_token": "[PAD]"})
        say(f"tokenizer {name} has no token for padding: [PAD] is added, and the model gets an embedding for it")
