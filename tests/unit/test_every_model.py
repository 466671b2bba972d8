"""What is derived of a model instead of looked up by its name, for every classifier that can be built small."""

import functools
import re

import pytest
import torch
import zoo
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor, nn
from transformers import PretrainedConfig, Trainer
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.pytorch_utils import Conv1D

from trainer_loop import UserError
from trainer_loop.models.config import count_positions, find_position_table, fit_model_config, without_shared_padding
from trainer_loop.models.trials import Reach, find_reach, make_rows, try_padding
from trainer_loop.optim.groups import make_groups
from trainer_loop.optim.layers import find_depths
from trainer_loop.tasks.sequence_classification import SequenceClassification

CLASSIFIER = "AutoModelForSequenceClassification"
TYPES = zoo.types_of("SEQUENCE_CLASSIFICATION")
# Types whose layers are not all of one ModuleList, or whose parts outside of it act elsewhere than they are registered.
DEPTHS = {
    "albert": {
        "albert.encoder.embedding_hidden_mapping_in.weight": 0,
        "albert.pooler.weight": 2,
        "classifier.weight": 2,
    },
    "bart": {
        "model.encoder.layernorm_embedding.weight": 0,
        "model.encoder.layers.1.fc1.weight": 2,
        "model.decoder.layernorm_embedding.weight": 2,
        "model.decoder.layers.0.fc1.weight": 3,
        "classification_head.dense.weight": 5,
    },
    "bigbird_pegasus": {"model.decoder.layernorm_embedding.weight": 5, "model.encoder.layers.0.fc1.weight": 1},
    "bloom": {"transformer.word_embeddings_layernorm.weight": 0, "transformer.ln_f.weight": 3, "score.weight": 3},
    "canine": {
        "canine.initial_char_encoder.layer.0.output.dense.weight": 1,
        "canine.chars_to_molecules.conv.weight": 1,
        "canine.encoder.layer.1.output.dense.weight": 3,
    },
    "ctrl": {"transformer.w.weight": 0, "transformer.h.1.layernorm1.weight": 2, "transformer.layernorm.weight": 3},
    "deberta": {
        "deberta.encoder.rel_embeddings.weight": 0,
        "deberta.encoder.layer.1.output.dense.weight": 2,
        "pooler.dense.weight": 3,
    },
    "deberta-v2": {"deberta.encoder.rel_embeddings.weight": 0, "deberta.encoder.LayerNorm.weight": 0},
    "distilbert": {"distilbert.transformer.layer.1.ffn.lin1.weight": 2, "pre_classifier.weight": 3},
    "esm": {"esm.embeddings.position_embeddings.weight": 0, "esm.encoder.emb_layer_norm_after.weight": 3},
    "eurobert": {"model.norm.weight": 3, "dense.weight": 3, "classifier.weight": 3},
    "flaubert": {"transformer.layer_norm_emb.weight": 0, "transformer.ffns.1.lin1.weight": 2},
    "fnet": {"fnet.embeddings.projection.weight": 0, "fnet.pooler.dense.weight": 3},
    "funnel": {
        "funnel.encoder.blocks.0.1.ffn.linear_1.weight": 2,
        "funnel.encoder.blocks.2.3.ffn.linear_1.weight": 12,
        "classifier.linear_out.weight": 13,
    },
    "gemma3": {"model.language_model.layers.1.mlp.up_proj.weight": 2, "score.weight": 3},
    "gpt2": {"transformer.wpe.weight": 0, "transformer.h.0.ln_1.weight": 1, "transformer.ln_f.weight": 3},
    "gpt_neox": {"gpt_neox.embed_in.weight": 0, "gpt_neox.final_layer_norm.weight": 3},
    "jina_embeddings_v3": {"roberta.embeddings.LayerNorm.weight": 0, "roberta.layers.1.mlp.fc1.weight": 2},
    "llama": {"model.embed_tokens.weight": 0, "model.layers.1.mlp.up_proj.weight": 2, "model.norm.weight": 3},
    "mbart": {"model.encoder.layernorm_embedding.weight": 0, "model.decoder.layer_norm.weight": 5},
    "mobilebert": {"mobilebert.embeddings.embedding_transformation.weight": 0, "mobilebert.pooler.dense.weight": 3},
    "modernbert": {"model.embeddings.norm.weight": 0, "model.final_norm.weight": 3, "head.dense.weight": 3},
    "mpnet": {"mpnet.encoder.relative_attention_bias.weight": 0, "classifier.dense.weight": 3},
    "mpt": {"transformer.blocks.1.ffn.up_proj.weight": 2, "transformer.norm_f.weight": 3},
    "mt5": {
        "transformer.encoder.final_layer_norm.weight": 2,
        "transformer.decoder.block.1.layer.2.layer_norm.weight": 4,
    },
    "openai-gpt": {"transformer.positions_embed.weight": 0, "transformer.h.1.ln_1.weight": 2, "score.weight": 3},
    "opt": {"model.decoder.embed_positions.weight": 0, "model.decoder.final_layer_norm.weight": 3},
    "qwen3_moe": {"model.layers.0.mlp.gate.weight": 1, "model.norm.weight": 3},
    "rembert": {"rembert.encoder.embedding_hidden_mapping_in.weight": 0, "rembert.pooler.dense.weight": 3},
    "roberta": {"roberta.embeddings.position_embeddings.weight": 0, "classifier.out_proj.weight": 3},
    "roberta-prelayernorm": {"roberta_prelayernorm.LayerNorm.weight": 3},
    "roformer": {"roformer.encoder.embed_positions.weight": 0, "roformer.encoder.layer.1.output.dense.weight": 2},
    "squeezebert": {
        "transformer.encoder.layers.1.post_attention.layernorm.weight": 2,
        "transformer.pooler.dense.weight": 3,
    },
    "t5": {
        "transformer.shared.weight": 0,
        "transformer.encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight": 1,
        "transformer.decoder.block.0.layer.0.SelfAttention.q.weight": 3,
        "transformer.decoder.final_layer_norm.weight": 5,
    },
    "xlm": {
        "transformer.layer_norm_emb.weight": 0,
        "transformer.attentions.0.q_lin.weight": 1,
        "transformer.layer_norm2.1.weight": 2,
        "transformer.ffns.1.lin2.weight": 2,
        "sequence_summary.summary.weight": 3,
    },
    "xlm-roberta-xl": {"roberta.encoder.LayerNorm.weight": 3, "roberta.encoder.layer.0.output.dense.weight": 1},
    "xlnet": {"transformer.mask_emb": 0, "transformer.layer.1.rel_attn.r_w_bias": 2, "logits_proj.weight": 3},
}

# Their answers depend on padding, each for a reason of its own: no mask, convolutions, hashes, landmarks.
DEPENDENT = ("canine", "convbert", "fnet", "nystromformer", "t5gemma2", "yoso")


@functools.lru_cache(maxsize=4)  # the tests of one type follow each other
def make_model(model_type: str) -> nn.Module:
    return zoo.make_model(model_type, CLASSIFIER).eval()


@functools.cache
def make_task() -> SequenceClassification:
    task = SequenceClassification()
    task.bind(zoo.make_tokenizer())
    return task


def try_out(model: nn.Module) -> Reach:
    ids = torch.tensor([[1, 7, 23, 41, 5, 30, 11, 58, 2]])
    return find_reach(model, {"input_ids": ids, "attention_mask": torch.ones_like(ids)})


def answer_alone(model: nn.Module, row: list[int]) -> Tensor:
    with torch.no_grad():
        return model(input_ids=torch.tensor([row]), attention_mask=torch.ones(1, len(row), dtype=torch.long)).logits[0]


def answer_together(model: nn.Module, rows: list[list[int]], side: str) -> Tensor:
    length = max(map(len, rows))
    ids, mask = torch.full((len(rows), length), zoo.PAD), torch.zeros(len(rows), length, dtype=torch.long)
    for number, row in enumerate(rows):
        place = slice(0, len(row)) if side == "right" else slice(length - len(row), length)
        ids[number, place], mask[number, place] = torch.tensor(row), 1
    with torch.no_grad():
        return model(input_ids=ids, attention_mask=mask).logits


@pytest.mark.parametrize("model_type", TYPES)
def test_padding_changes_no_answer_or_is_told_with_its_figure(model_type: str):
    zoo.skip_unless_small(model_type, CLASSIFIER)
    model = make_model(model_type)
    try:
        trial = try_padding(model, make_task(), make_rows(make_task(), model, max_length=64))
    except UserError as error:
        (problem,) = error.problems
        assert re.match(r"model: a \w+ cannot answer rows as its tokenizer makes them: RuntimeError: ", problem)
        assert model_type == "funnel"  # which pools until nothing is left of a short row
        return
    generator = torch.Generator().manual_seed(0)
    rows = [
        [zoo.BOS, *torch.randint(4, zoo.VOCABULARY, (length,), generator=generator).tolist(), zoo.EOS]
        for length in (4, 9, 30)
    ]
    alone = torch.stack([answer_alone(model, row) for row in rows])
    difference = float((alone - answer_together(model, rows, trial.side)).abs().max() / alone.abs().max())
    assert trial.is_harmless == (model_type not in DEPENDENT), trial
    assert not trial.is_harmless or difference < 1e-4
    if not trial.is_harmless:
        assert re.search(r"depends on its padding: by [\d.e-]+ of its largest logit", trial.describe("X"))


def test_a_head_that_reads_the_last_position_is_padded_on_the_left():
    model = make_model("xlnet")
    trial = try_padding(model, make_task(), make_rows(make_task(), model, max_length=64))
    assert (trial.side, trial.is_harmless) == ("left", True)


def test_a_layer_whose_output_is_changed_in_place_takes_part():
    assert not try_out(make_model("roc_bert")).idle


@pytest.mark.parametrize("model_type", TYPES)
def test_a_row_may_have_as_many_tokens_as_there_are_positions(model_type: str):
    zoo.skip_unless_small(model_type, CLASSIFIER)
    model = make_model(model_type)
    limit = count_positions(model)
    row = [*([7] * ((limit or 100) - 1)), zoo.EOS]
    answer_alone(model, row)
    if find_position_table(model) is not None and model_type != "tapas":  # it takes the last one for all that follow
        with pytest.raises((IndexError, RuntimeError, ValueError)):
            answer_alone(model, [7, *row])


@pytest.mark.parametrize("model_type", TYPES)
def test_what_decays_is_what_decays_in_transformers_but_for_vectors(model_type: str):
    zoo.skip_unless_small(model_type, CLASSIFIER)
    model = make_model(model_type)
    theirs = set(Trainer.get_decay_parameter_names(None, model))
    groups = make_groups(model, lr=1e-3, weight_decay=0.1, hidden_matrices_apart=True, calls=try_out(model).calls)
    ours = {name for group in groups if group.weight_decay for name in group.parameters}
    trainable = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    assert ours == {name for name, weight in trainable.items() if name in theirs and weight.ndim > 1}
    apart = {name for group in groups if group.is_hidden_matrix for name in group.parameters}
    owners = {name: model.get_submodule(name.removesuffix(".weight")) for name in apart}
    assert all(isinstance(owner, (nn.Linear, Conv1D)) for owner in owners.values()), owners


@pytest.mark.parametrize("model_type", TYPES)
def test_depths_are_those_written_by_hand(model_type: str):
    zoo.skip_unless_small(model_type, CLASSIFIER)
    model = make_model(model_type)
    depths, top = find_depths(model, try_out(model).calls)
    wanted = DEPTHS.get(model_type, {})
    assert {name: depths[name] for name in wanted} == wanted
    assert {depths[name] for name in depths if ".embeddings.word_embeddings." in name} <= {0}
    head = [name for name in depths if name.split(".")[0] in ("classifier", "score", "classification_head")]
    assert {depths[name] for name in head} <= {top}


@pytest.mark.parametrize("model_type", list(CONFIG_MAPPING))
@pytest.mark.parametrize("has_ends", [True, False])
def test_a_config_needs_no_special_tokens(model_type: str, has_ends: bool):
    try:
        config: PretrainedConfig = CONFIG_MAPPING[model_type]()
    except (ValueError, StrictDataclassError) as error:  # one that has no defaults
        pytest.skip(f"{type(error).__name__}: {error}")
    tokenizer = zoo.make_tokenizer(has_ends=has_ends)
    fit_model_config(config, tokenizer=tokenizer, new_vocabulary=False, label_names=["no", "yes"])
    with without_shared_padding(config):
        pass
    assert config.pad_token_id == tokenizer.pad_token_id
    assert config.num_labels == 2 or model_type == "pvt"  # for images, which counts them in a way of its own
