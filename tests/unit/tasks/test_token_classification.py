"""Tags of words: the first token of a word stands for it, and all of them may be learned."""

import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import BertConfig, BertForTokenClassification, PreTrainedTokenizerFast

from trainer_loop import UserError
from trainer_loop.data.processors import train_tokenizer
from trainer_loop.tasks.token_classification import TokenClassification


def make_task(**arguments: str) -> TokenClassification:
    """Every character is a token."""
    letters = ["[PAD]", "[UNK]", *"abcdefgh"]
    tokenizer = Tokenizer(
        models.WordLevel({letter: number for number, letter in enumerate(letters)}, unk_token="[UNK]")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    task = TokenClassification(**arguments)
    task.bind(
        PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]"),
        label_names=["O", "B-X", "I-X"],
    )
    return task


def make_model() -> BertForTokenClassification:
    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    return BertForTokenClassification(BertConfig(vocab_size=10, num_labels=3, **sizes)).eval()


def make_batch(task: TokenClassification, rows: dict, max_length: int = 16) -> dict:
    columns = task.encode(rows, max_length=max_length)
    columns.pop("truncated")
    return task.collate([dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)])


ROWS = {"words": [["ab", "c"], ["d"], ["abc", "de", "fgh"]], "tags": [[1, 0], [2], [0, 1, 2]]}


def test_the_tag_of_a_word_stands_at_its_first_token():
    batch = make_batch(make_task(), ROWS)
    assert batch["labels"].tolist() == [
        [1, -100, 0, -100, -100, -100, -100, -100],
        [2, -100, -100, -100, -100, -100, -100, -100],
        [0, -100, -100, 1, -100, 2, -100, -100],
    ]
    assert make_task().count(batch) == 6


def test_all_tokens_of_a_word_may_have_its_tag():
    task = make_task(pieces="all")
    batch = make_batch(task, ROWS)
    assert batch["labels"].tolist() == [
        [1, 1, 0, -100, -100, -100, -100, -100],
        [2, -100, -100, -100, -100, -100, -100, -100],
        [0, 0, 0, 1, 1, 2, 2, 2],
    ]
    assert task.count(batch) == 12
    model = make_model()
    loss, outputs = task.loss_and_predict(model, batch)
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits.log_softmax(-1)
    places = (batch["labels"] >= 0).nonzero().tolist()
    torch.testing.assert_close(loss, -sum(logits[row, place, batch["labels"][row, place]] for row, place in places))
    first = make_task().predict(model, make_batch(make_task(), ROWS))
    for name in ("predictions", "references", "words"):  # those of the first tokens all the same
        assert [one.tolist() for one in outputs[name]] == [one.tolist() for one in first[name]]
    assert task.settings() != make_task().settings()  # what was encoded for the one is not taken for the other
    with pytest.raises(UserError, match=r"task.args.pieces: last; it must be first or all"):
        make_task(pieces="last")


def test_words_that_are_cut_off_are_no_targets_and_have_no_prediction():
    task = make_task()
    encoded = task.encode(ROWS, max_length=4)
    assert encoded["truncated"] == [False, False, True]
    assert encoded["labels"][2] == [0, -100, -100, 1]
    assert task.decode(
        {"predictions": torch.tensor([0, 1]), "words": torch.tensor([0, 1])}, {"words": ["abc", "de", "fgh"]}
    ) == {"tags": ["O", "B-X", None]}


def test_a_word_of_which_no_token_is_made_moves_no_other_tag():
    task = make_task()
    task.tokenizer.backend_tokenizer.normalizer = normalizers.Replace("h", "")
    encoded = task.encode({"words": [["a", "h", "bc"]], "tags": [[1, 0, 2]]}, max_length=8)
    assert encoded["word"] == [[0, 2, -1]]
    assert encoded["labels"] == [[1, 2, -100]]


def test_words_of_a_byte_level_tokenizer_have_the_tokens_that_they_have_in_a_text():
    tokenizer = train_tokenizer(["a word and another word"] * 9, framed=False, vocab_size=280, max_length=16)
    task = TokenClassification()
    task.bind(tokenizer, label_names=["O"])
    words = "another word and a word"
    assert task.encode({"words": [words.split()]}, max_length=16)["input_ids"] == [tokenizer(words)["input_ids"]]


def test_the_loss_is_summed_over_words_and_predictions_are_ragged():
    task, model = make_task(), make_model()
    batch = make_batch(task, ROWS)
    loss, outputs = task.loss_and_predict(model, batch)
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    by_hand = -sum(
        logits[row, place].log_softmax(-1)[tag]
        for row, place, tag in [(0, 0, 1), (0, 2, 0), (1, 0, 2), (2, 0, 0), (2, 3, 1), (2, 5, 2)]
    )
    torch.testing.assert_close(loss, by_hand)
    assert [len(tags) for tags in outputs["predictions"]] == [2, 1, 3]
    assert [tags.tolist() for tags in outputs["references"]] == ROWS["tags"]
    assert "references" not in task.predict(model, make_batch(task, {"words": ROWS["words"]}))
