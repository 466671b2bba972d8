import pytest
import tiny
import torch
import zoo
from transformers import CONFIG_MAPPING, BertConfig, BertModel, GPT2Config, GPT2LMHeadModel

from trainer_loop import UserError
from trainer_loop.models.config import (
    check_model_config,
    count_tabled_positions,
    fit_model_config,
    load_model_config,
    make_empty_model,
)
from trainer_loop.models.loading import make_model

HEADS = ("SEQUENCE_CLASSIFICATION", "CAUSAL_LM", "SEQ_TO_SEQ_CAUSAL_LM", "IMAGE_CLASSIFICATION")
SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}


def make(config, *, model_class="AutoModelForSequenceClassification", num_tokens=50, seed=3, **section):
    """section: keys of the section `model`."""
    plan, compute_type = tiny.make_model_plan(**section), torch.float32
    return make_model(
        plan, config, model_class=model_class, num_tokens=num_tokens, compute_type=compute_type, seed=seed
    )


@pytest.fixture
def bert_config():
    return load_model_config(name=None, model_type="bert", overrides={**SIZES, "vocab_size": 50})


def test_new_weights_are_a_function_of_the_seed(bert_config):
    (one, _), (same, _), (other, _) = make(bert_config), make(bert_config), make(bert_config, seed=4)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), same.parameters(), strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_weights_saved_in_half_precision_are_trained_in_full(tmp_path, bert_config):
    BertModel(bert_config).to(torch.bfloat16).save_pretrained(tmp_path)
    config = load_model_config(name=str(tmp_path), model_type=None, overrides={})
    model, new_weights = make(config, name=str(tmp_path))
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert new_weights == ["classifier.bias", "classifier.weight"]


def test_from_scratch_takes_the_config_and_no_weights(tmp_path, bert_config):
    BertModel(bert_config).save_pretrained(tmp_path)
    config = load_model_config(name=str(tmp_path), model_type=None, overrides={})
    loaded, _ = make(config, name=str(tmp_path))
    scratch, new_weights = make(config, name=str(tmp_path), from_scratch=True)
    assert new_weights == []
    embeddings = [model.get_input_embeddings().weight for model in (loaded, scratch)]
    assert embeddings[0].shape == embeddings[1].shape
    assert not torch.equal(*embeddings)


def test_embeddings_grow_for_tokens_that_were_added(tmp_path):
    GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=8, n_layer=1, n_head=2)).save_pretrained(tmp_path)
    config = load_model_config(name=str(tmp_path), model_type=None, overrides={})
    model, _ = make(config, name=str(tmp_path), model_class="AutoModelForCausalLM", num_tokens=51)
    assert model.get_input_embeddings().num_embeddings == 51


def test_label_names_padding_and_vocabulary_come_from_the_data(bert_config):
    tokenizer = tiny.make_tokenizer()
    fit_model_config(bert_config, tokenizer=tokenizer, new_vocabulary=True, label_names=["no", "yes", "maybe"])
    assert bert_config.num_labels == 3
    assert bert_config.id2label == {0: "no", 1: "yes", 2: "maybe"}
    assert bert_config.vocab_size == len(tokenizer)
    assert bert_config.pad_token_id == tokenizer.pad_token_id


@pytest.mark.parametrize(
    ("changes", "own_tokenizer", "max_length", "wanted"),
    [
        ({"max_position_embeddings": 16}, True, 32, "set data.max_length=16"),
        ({"vocab_size": 20}, False, 16, "it has 50 tokens, the model has embeddings for 20"),
    ],
)
def test_what_does_not_go_together_is_told(changes, own_tokenizer, max_length, wanted):
    config = BertConfig(**{**SIZES, "vocab_size": 50} | changes)
    problems = check_model_config(
        config,
        empty=make_empty_model(config, model_class="AutoModelForSequenceClassification"),
        tokenizer=tiny.make_tokenizer(),
        own_tokenizer=own_tokenizer,
        max_length=max_length,
    )
    assert len(problems) == 1
    assert wanted in problems[0]


@pytest.mark.parametrize(
    ("model_type", "positions"), [("bart", 32), ("marian", 32), ("gpt2", 32), ("m2m_100", None), ("t5", None)]
)
def test_positions_are_a_limit_where_they_are_a_table(model_type, positions):
    sizes = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "vocab_size": 50, "max_position_embeddings": 32}
    config = CONFIG_MAPPING[model_type](**{"t5": {"d_model": 16}, "gpt2": {"n_positions": 32}}.get(model_type, sizes))
    auto_class = "AutoModelForCausalLM" if model_type == "gpt2" else "AutoModelForSeq2SeqLM"
    assert count_tabled_positions(make_empty_model(config, model_class=auto_class)) == positions


@pytest.mark.parametrize(
    ("model_type", "overrides", "derived", "value"),
    [
        ("t5", {"num_layers": 2}, "num_decoder_layers", 2),
        ("t5", {"num_hidden_layers": 3}, "num_decoder_layers", 3),  # another name of num_layers
        ("llama", {"hidden_size": 64, "num_attention_heads": 4}, "head_dim", 16),
        ("qwen2", {"num_hidden_layers": 40}, "layer_types", ["full_attention"] * 40),
    ],
)
def test_a_new_config_derives_fields_from_the_overrides(model_type, overrides, derived, value):
    config = load_model_config(name=None, model_type=model_type, overrides=overrides)
    assert getattr(config, derived) == value
    assert all(getattr(config, field) == value for field, value in overrides.items())


@pytest.mark.parametrize("model_type", sorted({model_type for head in HEADS for model_type in zoo.types_of(head)}))
def test_every_type_can_be_made_with_an_override(model_type):
    try:
        config = load_model_config(name=None, model_type=model_type, overrides={})
    except UserError as error:
        pytest.skip(str(error))
    field = next((name for name in ("hidden_size", "d_model", "initializer_range") if hasattr(config, name)), None)
    if field is None or not isinstance(getattr(config, field), int | float):
        pytest.skip("none of these fields")
    value = getattr(config, field)
    again = load_model_config(name=None, model_type=model_type, overrides={field: value})
    assert again.to_dict() == config.to_dict()


def test_a_config_that_no_model_can_be_built_from_is_told():
    config = BertConfig(**{**SIZES, "vocab_size": 50, "hidden_size": 15})
    with pytest.raises(UserError, match=r"cannot build this .*15.* is not a multiple of the number of attention heads"):
        make_empty_model(config, model_class="AutoModelForSequenceClassification")


def test_weights_that_cannot_begin_as_the_config_says_are_told(bert_config):
    bert_config.initializer_range = -1.0
    with pytest.raises(UserError, match=r"cannot build this .* std -1; see model\.overrides"):
        make(bert_config)


def test_a_model_that_cannot_recompute_its_activations_is_refused(bert_config, monkeypatch):
    from transformers import BertForSequenceClassification

    monkeypatch.setattr(BertForSequenceClassification, "supports_gradient_checkpointing", False)
    with pytest.raises(UserError, match=r"model\.gradient_checkpointing"):
        make(bert_config, gradient_checkpointing=True)


@pytest.mark.parametrize(
    ("name", "model_type", "wanted"),
    [
        (None, "brt", "did you mean bert"),
        ("./no/such/model", None, "is no directory"),
        ("google-bert/bert-base-cased", None, "is not in the cache and HF_HUB_OFFLINE is set"),
    ],
)
def test_a_model_that_is_not_there_is_told_in_one_line(name, model_type, wanted):
    with pytest.raises(UserError) as raised:
        load_model_config(name=name, model_type=model_type, overrides={})
    (problem,) = raised.value.problems
    assert wanted in problem
    assert "\n" not in problem


def test_a_directory_without_a_model_is_told_with_what_it_holds(tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(UserError, match=r"holds no config.json.*notes.txt"):
        load_model_config(name=str(tmp_path), model_type=None, overrides={})


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "opt"])
def test_a_token_that_ends_texts_learns_though_it_pads_too(model_type, tmp_path):
    """An embedding that is made with `padding_idx` begins at zero there, and stays there."""
    sizes = {"vocab_size": 50, "num_hidden_layers": 1, "num_attention_heads": 2, "hidden_size": 8}
    more = {"intermediate_size": 16, "num_key_value_heads": 2} if model_type == "llama" else {}
    more |= {"word_embed_proj_dim": 8, "ffn_dim": 16} if model_type == "opt" else {}
    overrides = {**sizes, **more, "eos_token_id": 7, "bos_token_id": 7, "tie_word_embeddings": False}
    config = load_model_config(name=None, model_type=model_type, overrides=overrides)
    config.pad_token_id = 7
    made, _ = make(config, model_class="AutoModelForCausalLM")
    made.save_pretrained(tmp_path)
    again = load_model_config(name=str(tmp_path), model_type=None, overrides={})
    loaded, _ = make(again, model_class="AutoModelForCausalLM", name=str(tmp_path))
    for model in (made, loaded):
        assert model.config.pad_token_id == 7
        embedding = model.get_input_embeddings()
        assert embedding.weight[7].abs().sum() > 0
        model(input_ids=torch.tensor([[7, 3, 7, 4]])).logits.logsumexp(-1).sum().backward()
        assert embedding.weight.grad[7].abs().sum() > 0


def test_a_token_for_padding_that_is_added_gets_an_embedding(tmp_path):
    overrides = {"vocab_size": 50, "num_hidden_layers": 1, "num_attention_heads": 2, "hidden_size": 8}
    config = load_model_config(name=None, model_type="llama", overrides={**overrides, "intermediate_size": 16})
    made, _ = make(config, model_class="AutoModelForCausalLM")
    made.save_pretrained(tmp_path)
    config = load_model_config(name=str(tmp_path), model_type=None, overrides={})
    config.pad_token_id = 50  # as the tokenizer says, whose [PAD] is the 51st
    model, _ = make(config, name=str(tmp_path), model_class="AutoModelForCausalLM", num_tokens=51)
    assert model.get_input_embeddings().num_embeddings == 51
    assert model.config.pad_token_id == 50
