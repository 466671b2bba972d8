"""A tokenizer as many models on the hub have it: BERT's, lower case, with a token for what it cannot spell."""

from collections import Counter
from collections.abc import Iterable

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_FIRST_PRIVATE = 0xE000  # code points that no text here has


def make_wordpiece(texts: Iterable[str], *, vocab_size: int, max_length: int) -> PreTrainedTokenizerFast:
    """`[CLS] a [SEP] b [SEP]` with token types 0 and 1; the same texts give the same tokenizer."""
    normalizer, pre_tokenizer = normalizers.BertNormalizer(lowercase=True), pre_tokenizers.BertPreTokenizer()
    words: Counter[str] = Counter()
    for text in texts:
        words.update(word for word, _ in pre_tokenizer.pre_tokenize_str(normalizer.normalize_str(text)))
    pieces = _learn_pieces(words, size=vocab_size - len(_SPECIAL))
    vocabulary = {piece: position for position, piece in enumerate((*_SPECIAL, *pieces))}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.add_special_tokens(list(_SPECIAL))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, pre_tokenizer
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(token, vocabulary[token]) for token in ("[CLS]", "[SEP]")],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=max_length,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    )


def _learn_pieces(words: Counter[str], *, size: int) -> list[str]:
    """Pieces such as `token` and `##ize`, found with the BPE trainer: WordPieceTrainer breaks ties at random."""
    letters = sorted(set().union(*words))
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
