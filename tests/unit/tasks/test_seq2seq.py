"""Texts that are written for others: the loss of the head, where a text ends, and what is decoded."""

from typing import Any

import pytest
import torch
from tokenizers.processors import TemplateProcessing
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    EncoderDecoderConfig,
    M2M100Config,
    M2M100ForConditionalGeneration,
    T5Config,
    T5ForConditionalGeneration,
)

from trainer_loop import Predictor, UserError
from trainer_loop.data.processors import train_tokenizer
from trainer_loop.tasks.generation import Generation
from trainer_loop.tasks.seq2seq import Seq2Seq

ROWS = {"source": ["one two three", "four"], "target": ["three two one", "a text that is somewhat longer"]}
OF_BART = {
    **{"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2},
    **{"decoder_attention_heads": 2, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16, "dropout": 0.0},
}
MODELS = {
    T5ForConditionalGeneration: T5Config(vocab_size=300, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2),
    BartForConditionalGeneration: BartConfig(vocab_size=300, **OF_BART),
    M2M100ForConditionalGeneration: M2M100Config(vocab_size=300, **OF_BART),  # shifts labels in its forward alone
}


def make_task(**arguments: Any) -> Seq2Seq:
    task = Seq2Seq(**arguments)
    texts = ROWS["source"] + ROWS["target"]
    task.bind(train_tokenizer(texts, framed=False, vocab_size=300, max_length=64))
    return task


def make_batch(task: Seq2Seq, rows: dict[str, list[str]]) -> dict[str, Any]:
    encoded = task.encode(rows, max_length=32)
    names = [name for name in encoded if name not in ("length", "truncated")]
    return task.collate([dict(zip(names, row, strict=True)) for row in zip(*(encoded[n] for n in names), strict=True)])


@pytest.mark.parametrize("kind", MODELS)
def test_the_loss_is_the_sum_of_that_of_the_head(kind: Any):
    task, config = make_task(), MODELS[kind]
    config.pad_token_id = config.eos_token_id = config.decoder_start_token_id = task.tokenizer.eos_token_id
    torch.manual_seed(0)
    model = kind(config).double().eval()
    batch = make_batch(task, ROWS)
    mean = model(**batch).loss
    assert task.loss(model, batch).item() == pytest.approx(mean.item() * task.count(batch), rel=1e-6)
    assert task.count(batch) == int((batch["labels"] != -100).sum())


def test_logits_are_those_of_the_decoder_where_it_has_a_vocabulary_of_its_own():
    encoder, decoder = BertConfig(vocab_size=40), BertConfig(vocab_size=50, is_decoder=True)
    assert make_task().logits_per_token(EncoderDecoderConfig.from_encoder_decoder_configs(encoder, decoder)) == 50
    assert make_task().logits_per_token(T5Config(vocab_size=60)) == 60


def test_each_target_ends_with_the_end_token_and_is_never_too_long():
    task = make_task(max_target_length=5)
    labels = task.encode(ROWS, max_length=32)["labels"]
    assert all(ids[-1] == task.tokenizer.eos_token_id and len(ids) <= 5 for ids in labels)
    assert len(labels[1]) == 5


def test_texts_are_no_longer_than_the_positions_of_the_model():
    task = make_task(max_target_length=40)
    assert task.fit_positions(None) == []
    assert (task.max_target_length, task.generation.length) == (40, 128)
    told = "task.args.max_target_length: 40 is more than the 32 positions of the model; set it to 32"
    assert task.fit_positions(32) == [told]
    assert task.generation.length == 32
    assert task.fit_positions(40) == []


def test_a_model_that_was_trained_with_a_longer_length_is_loaded_and_answers():
    tokenizer = make_task().tokenizer
    end = tokenizer.eos_token_id
    ids = {"pad_token_id": end, "eos_token_id": end, "bos_token_id": end, "decoder_start_token_id": end}
    model = BartForConditionalGeneration(BartConfig(vocab_size=300, max_position_embeddings=32, **OF_BART, **ids))
    arguments = {"max_target_length": 128}
    columns = {"source": "source", "target": "target"}
    predictor = Predictor(
        model,
        tokenizer,
        task="seq2seq",
        max_length=16,
        columns=columns,
        arguments=arguments,
        evaluation={"generate": {"max_new_tokens": 5}},
    )
    assert isinstance(predictor.predict(["one two"])[0]["text"], str)


def test_a_prefix_stands_before_each_source_and_the_length_counts_both_texts():
    task = make_task(prefix="four ")
    encoded = task.encode(ROWS, max_length=32)
    assert task.tokenizer.decode(encoded["input_ids"][0]) == "four one two three"
    both = zip(encoded["input_ids"], encoded["labels"], strict=True)
    assert encoded["length"] == [len(source) + len(target) for source, target in both]


def test_a_model_without_token_types_writes_with_a_tokenizer_that_has_them():
    task, model = make_task(), T5ForConditionalGeneration(MODELS[T5ForConditionalGeneration]).eval()
    task.bind(train_tokenizer(ROWS["source"], framed=True, vocab_size=300, max_length=64))
    model.config.decoder_start_token_id = model.generation_config.decoder_start_token_id = 0
    assert len(task.predict(model, make_batch(task, {"source": ROWS["source"]}))["tokens"]) == 2


def test_a_text_stops_at_its_first_end_token():
    task = make_task()
    end = task.tokenizer.eos_token_id
    tokens = torch.tensor([*task.tokenizer("three two")["input_ids"], end, *task.tokenizer("one")["input_ids"]]).numpy()
    merged = task.merge([{"tokens": tokens}], {"source": "one", "target": "three"})
    assert merged == {"predictions": "three two", "references": ["three"]}
    assert task.merge([{"tokens": tokens}], {"source": "one"}) == {"predictions": "three two"}
    assert task.decode(merged, {"source": "one"}) == {"text": "three two"}


def test_a_target_that_ends_with_a_language_gets_no_second_end():
    task = make_task()
    end = task.tokenizer.eos_token_id
    task.tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="$A <|endoftext|> ĠxÄ", special_tokens=[("<|endoftext|>", end), ("ĠxÄ", 5)]
    )
    assert [ids[-2:] for ids in task.encode(ROWS, max_length=32)["labels"]] == [[end, 5], [end, 5]]


def test_arguments_out_of_range_are_refused():
    with pytest.raises(UserError, match=r"task.args.max_target_length: "):
        Seq2Seq(max_target_length=1)
    with pytest.raises(UserError, match=r"evaluate.generate.num_beams: "):
        Generation(num_beams=0)
