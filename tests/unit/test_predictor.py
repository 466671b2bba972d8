"""How a text and its continuation are joined, for tokenizers that mark spaces in unlike ways."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch import nn
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

from trainer_loop import Predictor, UserError
from trainer_loop.data.processors import train_tokenizer

TEXTS = ["once upon a time there was a little bird", "there was, once upon a time, a bird"] * 20


def metaspace(prepend_scheme: str = "always") -> PreTrainedTokenizerFast:
    """As Llama's and T5's: a word begins with a mark, and so does the first."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=prepend_scheme)
    tokenizer.decoder = decoders.Metaspace(prepend_scheme=prepend_scheme)
    tokenizer.train_from_iterator(TEXTS, trainers.BpeTrainer(vocab_size=200, special_tokens=["<unk>", "</s>"]))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", eos_token="</s>", pad_token="</s>")


def wordpiece() -> PreTrainedTokenizerFast:
    """As BERT's: spaces are not kept, letters are small, and marks stand around the text."""
    letters = sorted({letter for text in TEXTS for letter in text.lower() if not letter.isspace()})
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *letters, *(f"##{letter}" for letter in letters)]
    tokenizer = Tokenizer(models.WordPiece({token: place for place, token in enumerate(tokens)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=32, **special)


def byte_level() -> PreTrainedTokenizerFast:
    """As GPT-2's: the space belongs to the word behind it."""
    return train_tokenizer(TEXTS, framed=False, vocab_size=300, max_length=32)


class Parrot(nn.Module):
    """Continues every text with the same tokens."""

    def __init__(self, ids: list[int]):
        super().__init__()
        self.ids = ids
        self.config = BertConfig(is_decoder=True)
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(self, input_ids: torch.Tensor, **_: Any) -> dict[str, torch.Tensor]:
        return {"logits": self.bias.expand(*input_ids.shape, 3)}

    def generate(self, input_ids: torch.Tensor, **options: Any) -> torch.Tensor:
        return torch.cat([input_ids, torch.tensor([self.ids])], dim=1)


def continue_text(tokenizer: PreTrainedTokenizerFast, text: str, ids: list[int]) -> str:
    predictor = Predictor(Parrot(ids), tokenizer, task="causal_lm", max_length=32, columns={"text": "text"})
    predictor.device = torch.device("cpu")
    return predictor.generate(text, max_new_tokens=3)


def ids_of(tokenizer: PreTrainedTokenizerFast, text: str, continued: str) -> list[int]:
    """Of what stands behind a text in a longer one."""
    encode = [tokenizer(each, add_special_tokens=False)["input_ids"] for each in (text, continued)]
    assert encode[1][: len(encode[0])] == encode[0]
    return encode[1][len(encode[0]) :]


@pytest.mark.parametrize("make", [metaspace, byte_level], ids=["Metaspace", "byte level"])
@pytest.mark.parametrize(
    ("text", "continued"),
    [
        ("once upon a time", "once upon a time there was"),
        ("once upon a time there was", "once upon a time there was a bird"),
        ("there", "there was a bird"),
    ],
)
def test_a_continuation_begins_as_it_was_written(make, text: str, continued: str):
    tokenizer = make()
    assert continue_text(tokenizer, text, ids_of(tokenizer, text, continued)) == continued


@pytest.mark.parametrize("make", [metaspace, byte_level, wordpiece], ids=["Metaspace", "byte level", "WordPiece"])
def test_a_text_that_ends_in_a_space_gets_no_second_one(make):
    tokenizer = make()
    for words in (" there was", "there was"):
        ids = tokenizer(words, add_special_tokens=False)["input_ids"]
        assert continue_text(tokenizer, "once upon a time ", ids) == "once upon a time there was"


def test_spaces_that_the_model_means_are_kept():
    tokenizer = byte_level()
    for text, more in (("a bird:\n", "  there"), ("a bird:", "\n  there"), ("a ", "   there"), ("a", "  there")):
        ids = tokenizer(more, add_special_tokens=False)["input_ids"]
        assert continue_text(tokenizer, text, ids) == text + more


def test_a_text_keeps_its_letters_and_what_stands_around_it_is_not_shown():
    tokenizer = wordpiece()
    ids = tokenizer("there was", add_special_tokens=False)["input_ids"]
    assert continue_text(tokenizer, "once upon a time", ids) == "once upon a time there was"
    tokenizer.add_special_tokens({"bos_token": "<s>"})
    assert "<s>" not in continue_text(tokenizer, "once", [*ids, tokenizer.bos_token_id])


def test_a_word_that_goes_on_is_not_cut():
    tokenizer = metaspace()
    rest = tokenizer.convert_tokens_to_ids(["h", "e"])
    assert continue_text(tokenizer, "once upon a t", rest) == "once upon a the"


def test_metrics_are_of_the_rows_with_labels_alone():
    config = BertConfig(
        vocab_size=200, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, num_labels=3
    )
    torch.manual_seed(0)
    predictor = Predictor(
        BertForSequenceClassification(config), wordpiece(), task="sequence_classification", max_length=8,
        columns={"text": "text"},
    )  # fmt: skip
    texts = ["once", "upon a time", "there was a little bird", "bird"]
    predictions = predictor.predict_rows({"text": texts}, labels=[0, None, 2, None])
    alone = predictor.predict_rows({"text": [texts[0], texts[2]]}, labels=[0, 2])
    assert predictions.metrics == pytest.approx(alone.metrics)
    assert predictions.metrics["rows"] == 2
    assert [row["label"] for row in predictions.rows] == [row["label"] for row in predictor.predict(texts)]
    assert predictor.predict_rows({"text": texts}, labels=[None] * 4).metrics is None


@pytest.mark.parametrize(
    ("evaluation", "figures", "told"),
    [
        (
            {"metrics": ["accuracy", {"name": "f1", "args": {"average": "macro"}, "key": "f"}]},
            ["loss", "accuracy", "f"],
            [],
        ),
        ({"metrics": []}, ["loss", "accuracy"], []),
        ({"metrics": ["trap.metric", "accuracy"]}, ["loss", "accuracy"], ["trap.metric is not computed"]),
        ({"loss": {"name": "trap.loss", "args": {}}}, ["accuracy"], ["no loss: the model was trained with trap.loss"]),
        ({"loss": {"name": None, "args": {"gamma": 2}}}, ["accuracy"], ["no loss: loss.args.gamma: "]),
        ({"metrics": ["f1"]}, ["loss"], ["no metrics: evaluate.metrics[0]: f1 with average: binary is for 2 classes"]),
        ({"metrics": 3, "loss": 3, "values": "x"}, ["loss", "accuracy"], []),
    ],
)
def test_what_a_model_says_of_its_evaluation_runs_no_code_and_ends_nothing(evaluation, figures, told):
    config = BertConfig(
        vocab_size=200, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, num_labels=3
    )
    predictor = Predictor(
        BertForSequenceClassification(config), wordpiece(), task="sequence_classification", max_length=8,
        columns={"text": "text"}, evaluation=evaluation,
    )  # fmt: skip
    predictions = predictor.predict_rows({"text": ["once", "upon"]}, labels=[0, 1])
    assert list(predictions.metrics) == [*figures, "rows"]
    assert len(predictions.notes) == len(told)
    assert all(note.startswith(start) for note, start in zip(predictions.notes, told, strict=True))


@pytest.mark.parametrize("names", ["x", {}, [{}]])
def test_a_tokenizer_whose_files_were_damaged_is_told_when_it_is_loaded(names: Any, tmp_path: Path):
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    BertForSequenceClassification(BertConfig(vocab_size=100, **sizes)).save_pretrained(tmp_path)
    wordpiece().save_pretrained(tmp_path)
    path = tmp_path / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "model_input_names": names}))
    with pytest.raises(UserError, match=f"^model={tmp_path} cannot be loaded: "):
        Predictor.load(tmp_path)
