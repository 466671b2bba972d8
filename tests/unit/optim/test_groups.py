"""Which group each parameter stands in, and what is special about it."""

import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from trainer_loop import UserError
from trainer_loop.optim.groups import GroupRule, check_patterns, describe_groups, freeze_parameters, make_groups
from trainer_loop.optim.layers import find_depths

NAMES = [name for name, _ in tiny.make_bert().named_parameters()]


def group_of(groups, name):
    (found,) = [group for group in groups if name in group.parameters]
    return found


def test_biases_and_norms_do_not_decay():
    decayed, spared = make_groups(tiny.make_bert(), lr=1e-3, weight_decay=0.1)
    assert set(spared.parameters) == {name for name in NAMES if name.endswith("bias") or "LayerNorm" in name}
    assert (decayed.weight_decay, spared.weight_decay) == (0.1, 0.0)
    assert {decayed.lr, spared.lr} == {1e-3}


@settings(max_examples=60)
@given(
    patterns=st.lists(
        st.sampled_from(["*", "classifier.*", "*bias", "*.layer.0.*", "*.layer.*", "bert.*", "*LayerNorm*", "nothing"]),
        max_size=4,
    ),
    layer_decay=st.sampled_from([1.0, 0.5]),
    unfreeze_every=st.sampled_from([0, 3]),
    hidden_matrices_apart=st.booleans(),
    frozen=st.sampled_from([[], ["*embeddings*"], ["*"]]),
)
def test_every_trainable_parameter_stands_in_exactly_one_group(
    patterns, layer_decay, unfreeze_every, hidden_matrices_apart, frozen
):
    model = tiny.make_bert()
    freeze_parameters(model, frozen)
    groups = make_groups(
        model,
        lr=1.0,
        weight_decay=0.1,
        rules=[GroupRule(pattern, lr=0.5) for pattern in patterns],
        layer_decay=layer_decay,
        unfreeze_every=unfreeze_every,
        hidden_matrices_apart=hidden_matrices_apart,
    )
    together = [name for group in groups for name in group.parameters]
    assert sorted(together) == sorted(name for name, weight in model.named_parameters() if weight.requires_grad)
    assert all(group.parameters for group in groups)


def test_the_first_rule_that_matches_holds_and_says_no_more_than_it_says():
    groups = make_groups(
        tiny.make_bert(),
        lr=1.0,
        weight_decay=0.1,
        rules=[GroupRule("classifier.bias", lr=3.0), GroupRule("classifier.*", lr=2.0, weight_decay=0.5)],
    )
    bias, weight = group_of(groups, "classifier.bias"), group_of(groups, "classifier.weight")
    assert (bias.lr, bias.weight_decay) == (3.0, 0.0)
    assert (weight.lr, weight.weight_decay) == (2.0, 0.5)
    assert groups[0].lr == 1.0, "what is logged as the learning rate is that of the first group"


def test_a_rules_weight_decay_holds_for_biases_too():
    groups = make_groups(
        tiny.make_bert(), lr=1.0, weight_decay=0.1, rules=[GroupRule("classifier.*", weight_decay=0.5)]
    )
    assert set(group_of(groups, "classifier.bias").parameters) == {"classifier.weight", "classifier.bias"}


def test_each_layer_below_the_head_is_slower_by_the_factor():
    groups = make_groups(tiny.make_bert(), lr=1.0, weight_decay=0.1, layer_decay=0.5)
    rates = {name: group_of(groups, name).lr for name in NAMES}
    assert rates["classifier.weight"] == rates["bert.pooler.dense.weight"] == 1.0
    assert rates["bert.encoder.layer.1.output.dense.weight"] == 0.5
    assert rates["bert.encoder.layer.0.output.dense.weight"] == 0.25
    assert rates["bert.embeddings.word_embeddings.weight"] == 0.125


def test_a_rule_with_a_rate_of_its_own_does_not_follow_the_layers():
    groups = make_groups(
        tiny.make_bert(),
        lr=1.0,
        weight_decay=0.1,
        layer_decay=0.5,
        rules=[GroupRule("*.layer.*", lr=0.3, unfreeze_at=0)],
    )
    assert {group_of(groups, name).lr for name in NAMES if ".layer." in name} == {0.3}


def test_layers_learn_one_after_the_other_from_the_head_down():
    groups = make_groups(tiny.make_bert(), lr=1.0, weight_decay=0.1, unfreeze_every=10)
    first = {name: group_of(groups, name).unfreeze_at for name in NAMES}
    assert first["classifier.bias"] == 0
    assert first["bert.encoder.layer.1.attention.self.query.bias"] == 10
    assert first["bert.encoder.layer.0.attention.self.query.bias"] == 20
    assert first["bert.embeddings.LayerNorm.bias"] == 30


def test_depths_of_a_decoder_and_of_models_without_a_list_of_layers():
    depths, top = find_depths(tiny.make_gpt2())
    assert top == 3
    assert (depths["transformer.wte.weight"], depths["transformer.h.1.ln_1.weight"]) == (0, 2)
    assert depths["transformer.ln_f.weight"] == 3
    mlp = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))
    assert find_depths(mlp) == ({"0.weight": 1, "0.bias": 1, "2.weight": 2, "2.bias": 2}, 3)
    assert find_depths(nn.Linear(2, 2)) == ({"weight": 1, "bias": 1}, 1)


def test_layers_inside_layers_do_not_count():
    model = nn.Module()
    model.blocks = nn.ModuleList([nn.ModuleList([nn.Linear(1, 1), nn.Linear(1, 1)]), nn.ModuleList([nn.Linear(1, 1)])])
    depths, top = find_depths(model)
    assert top == 3
    assert depths["blocks.0.1.weight"] == 1


def test_frozen_parameters_stand_in_no_group():
    model = tiny.make_bert()
    freeze_parameters(model, ["bert.*"])
    groups = make_groups(model, lr=1.0, weight_decay=0.1)
    assert sorted(name for group in groups for name in group.parameters) == ["classifier.bias", "classifier.weight"]


def test_a_tied_weight_is_frozen_by_either_of_its_names():
    model = tiny.make_gpt2()
    freeze_parameters(model, ["lm_head.*"])
    assert not model.transformer.wte.weight.requires_grad


def test_a_rule_finds_a_tied_weight_by_either_of_its_names():
    model = tiny.make_gpt2()
    for pattern in ("lm_head.*", "*.wte.weight"):
        groups = make_groups(model, lr=1.0, weight_decay=0.1, rules=[GroupRule(pattern, lr=0.5)])
        assert group_of(groups, "transformer.wte.weight").lr == 0.5, pattern


@pytest.mark.parametrize(
    ("frozen", "rules", "wanted"),
    [
        (["encoder.*"], [], "freeze: encoder.* matches no parameter; names here are like bert.embeddings"),
        (["*"], [], "freeze: it leaves no parameter to train"),
        ([], ["klassifier.*"], "groups[0]: klassifier.* matches no parameter"),
        ([], ["bert.*", "bert.pooler.*"], "groups[1]: bert.pooler.* matches only what is frozen or matches"),
        (["bert.*"], ["bert.pooler.*"], "groups[0]: bert.pooler.* matches only what is frozen"),
    ],
)
def test_patterns_that_mean_nothing_are_problems(frozen, rules, wanted):
    with pytest.raises(UserError) as refused:
        check_patterns(tiny.make_bert(), frozen=frozen, rules=[GroupRule(rule) for rule in rules])
    (problem,) = refused.value.problems
    assert wanted in problem


def test_the_table_counts_every_parameter():
    model = tiny.make_bert()
    freeze_parameters(model, ["*embeddings*"])
    groups = make_groups(model, lr=1.0, weight_decay=0.1, layer_decay=0.5)
    frozen = {name: weight for name, weight in model.named_parameters() if not weight.requires_grad}
    head, *lines = describe_groups(groups, frozen)
    ends = head.index("number") + len("number")
    assert lines[-1].startswith("frozen")
    counts = [int(line[:ends].split()[-1].replace(",", "")) for line in lines]
    assert sum(counts) == sum(weight.numel() for weight in model.parameters())
