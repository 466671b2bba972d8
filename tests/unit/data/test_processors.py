import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models
from transformers import AutoTokenizer, BertConfig, PreTrainedTokenizerFast

from trainer_loop import UserError
from trainer_loop.data.processors import load_tokenizer, train_tokenizer
from trainer_loop.runtime import hub

END = "<|endoftext|>"
TEXTS = [
    f"The {thing} was {much} {quality}{end}"
    for thing in ("tent", "lid", "zipper", "old handle")
    for much in ("not at all", "rather", "never as promised but")
    for quality in ("sturdy", "loose", "worth the price")
    for end in ("!", " É 😀.")
]


def train(framed: bool, texts: list[str] = TEXTS, vocab_size: int = 280) -> Any:
    return train_tokenizer(texts, framed=framed, vocab_size=vocab_size, max_length=64)


def load(name: str | Path, say: Any = pytest.fail) -> Any:
    return load_tokenizer(str(name), trust_remote_code=False, say=say)


def problem_of(name: str | Path) -> str:
    with pytest.raises(UserError) as caught:
        load(name)
    (problem,) = caught.value.problems
    assert "\n" not in problem
    return problem


@pytest.mark.parametrize("framed", [True, False])
def test_the_same_texts_give_the_same_tokenizer_in_any_order(framed: bool):
    # Many words that are equally common, so that ties decide.
    texts = [f"{a}{b}{c}" for a in "abcd" for b in "efgh" for c in "ijkl"]
    trained = [
        train(framed, random.Random(seed).sample(texts, len(texts))).backend_tokenizer.to_str() for seed in range(5)
    ]
    assert len(set(trained)) == 1


@pytest.mark.parametrize(("framed", "special"), [(True, ["[PAD]", "[CLS]", "[SEP]", "[MASK]"]), (False, [END])])
def test_the_most_frequent_pairs_are_merged(framed: bool, special: list[str]):
    tokenizer = train(framed, ["hug hug hug hugs pug pun"], vocab_size=len(special) + 256 + 4)
    tokens = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().get)
    assert tokens[: len(special)] == special
    assert tokens[-4:] == ["ug", "hug", "\u0120hug", "\u0120p"]  # \u0120 spells a space
    assert len(tokens) == len(special) + 256 + 4


@pytest.mark.parametrize("framed", [True, False])
def test_a_vocabulary_is_no_larger_than_asked_for(framed: bool):
    assert len(train(framed, vocab_size=300)) <= 300


def test_texts_and_pairs_are_framed_as_bert_does():
    encoded = FRAMED("The tent", "not sturdy")
    assert FRAMED.decode(encoded["input_ids"]) == "[CLS]The tent[SEP]not sturdy[SEP]"
    first, second = (len(FRAMED(text, add_special_tokens=False)["input_ids"]) for text in ("The tent", "not sturdy"))
    assert encoded["token_type_ids"] == [0] * (first + 2) + [1] * (second + 1)
    single = FRAMED("The tent")
    assert list(single) == ["input_ids", "token_type_ids", "attention_mask"]
    assert single["token_type_ids"] == [0] * (first + 2)
    assert [FRAMED.pad_token_id, FRAMED.cls_token_id, FRAMED.sep_token_id, FRAMED.mask_token_id] == [0, 1, 2, 3]
    assert [FRAMED.eos_token, FRAMED.bos_token, FRAMED.model_max_length] == [None, None, 64]


def test_pairs_that_are_too_long_keep_their_frame():
    encoded = FRAMED("The tent " * 9, "not sturdy " * 9, truncation=True, max_length=12)
    tokens = FRAMED.convert_ids_to_tokens(encoded["input_ids"])
    assert (len(tokens), tokens[0], tokens[-1], tokens.count("[SEP]")) == (12, "[CLS]", "[SEP]", 2)
    assert encoded["token_type_ids"][tokens.index("[SEP]") :] == [0] + [1] * (11 - tokens.index("[SEP]"))


@given(text=st.text(st.characters(exclude_categories=["Cs"])))
@settings(max_examples=50, deadline=None)
def test_every_text_can_be_spelt(text: str):
    for tokenizer in (BARE, FRAMED):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert tokenizer.decode(ids, clean_up_tokenization_spaces=False) == text
    assert BARE(text)["input_ids"] == BARE(text, add_special_tokens=False)["input_ids"]


BARE, FRAMED = train(False, vocab_size=300), train(True, vocab_size=300)


def test_for_a_language_model_one_token_begins_ends_and_pads():
    assert BARE.bos_token == BARE.eos_token == BARE.pad_token == END
    assert list(BARE("the tent")) == ["input_ids", "attention_mask"]


@pytest.mark.parametrize("framed", [True, False])
def test_a_saved_tokenizer_gives_the_same_ids_again(framed: bool, tmp_path: Path):
    trained = train(framed)
    trained.save_pretrained(tmp_path)
    for loaded in (AutoTokenizer.from_pretrained(tmp_path), load(tmp_path)):
        assert dict(loaded(TEXTS, TEXTS[::-1])) == dict(trained(TEXTS, TEXTS[::-1]))
        assert loaded.model_max_length == 64
        assert loaded.special_tokens_map == trained.special_tokens_map


def save_without_padding(folder: Path, **special: str) -> None:
    vocabulary = {word: position for position, word in enumerate(["a", "b", "<end>", "<unk>"])}
    bare = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    PreTrainedTokenizerFast(tokenizer_object=bare, unk_token="<unk>", **special).save_pretrained(folder)


def test_the_end_token_stands_in_for_padding(tmp_path: Path):
    save_without_padding(tmp_path, eos_token="<end>")
    said: list[str] = []
    tokenizer = load(tmp_path, said.append)
    assert (tokenizer.pad_token, len(tokenizer)) == ("<end>", 4)
    assert said == [f"tokenizer {tmp_path} has no token for padding: its end token <end> stands in"]


def test_a_padding_token_is_added_where_nothing_can_stand_in(tmp_path: Path):
    save_without_padding(tmp_path)
    said: list[str] = []
    tokenizer = load(tmp_path, said.append)
    assert (tokenizer.pad_token, tokenizer.pad_token_id, len(tokenizer)) == ("[PAD]", 4, 5)
    assert "[PAD] is added" in said[0]


def test_a_folder_without_a_vocabulary_is_told(tmp_path: Path):
    # transformers makes a tokenizer of five special tokens from this without a word.
    BertConfig().save_pretrained(tmp_path)
    assert problem_of(tmp_path) == (
        f"tokenizer {tmp_path}: the folder has no tokenizer.json, vocab.txt or the like; it has config.json"
    )
    assert problem_of(tmp_path / "config.json").endswith("is a file; name the folder that it is in")


def test_a_broken_tokenizer_file_is_told(tmp_path: Path):
    (tmp_path / "tokenizer.json").write_text('{"model":\n')
    assert problem_of(tmp_path).startswith(f"tokenizer {tmp_path} cannot be loaded: ")


def test_a_folder_that_is_not_there_is_told(tmp_path: Path):
    (tmp_path / "my_model").mkdir()
    assert problem_of(tmp_path / "my_modle") == (
        f"tokenizer {tmp_path / 'my_modle'}: there is no such folder; did you mean {tmp_path / 'my_model'}?"
    )
    assert problem_of("./nowhere/model") == "tokenizer ./nowhere/model: there is no such folder, nor a folder nowhere"


@pytest.fixture
def _ask_anew() -> Iterator[None]:
    hub.hub_is_reachable.cache_clear()
    yield
    hub.hub_is_reachable.cache_clear()


@pytest.mark.usefixtures("_ask_anew")
@pytest.mark.parametrize(
    ("offline_mode", "expected"),
    [(True, "HF_HUB_OFFLINE is set"), (False, f"the hub ({constants.ENDPOINT}) does not answer")],
)
def test_an_unreachable_hub_names_the_offline_way(monkeypatch: pytest.MonkeyPatch, offline_mode: bool, expected: str):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline_mode)
    monkeypatch.setattr(hub, "_probe", lambda address: False)
    assert problem_of("lab/no-such-model") == (
        f"tokenizer lab/no-such-model: {expected} and it is not in the cache; name a local folder, or fill the "
        "cache with transformers.AutoTokenizer.from_pretrained('lab/no-such-model') where there is network"
    )
