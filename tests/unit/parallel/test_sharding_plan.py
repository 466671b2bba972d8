"""The section `parallel`: what it excludes, what an accelerate file comes to, and which modules are layers."""

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertForMaskedLM, BertForSequenceClassification

from trainer_loop import TrainingLoop, UserError, build, load_config
from trainer_loop.config.load import values_of
from trainer_loop.parallel.accelerate_file import translate_fsdp
from trainer_loop.parallel.plan import ShardingPlan, changes_the_step
from trainer_loop.parallel.sharding import _check_parameters, _refuse_batch_norm, find_layers
from trainer_loop.record.logs import Console

SIZES = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 8, "vocab_size": 9}


def find_problems(*overrides: str, has_own_step: bool = False) -> list[str]:
    config = load_config(None, ["model.name=m", "data.train=a.csv", "data.validation=b.csv", *overrides])
    try:
        ShardingPlan(**vars(config.parallel)).check(values_of(config), has_own_step=has_own_step)
    except UserError as error:
        return error.problems
    return []


def test_weights_in_4_bits_do_not_go_with_shards():
    assert find_problems("model.quantize=4bit") == []
    (told,) = find_problems("model.quantize=4bit", "parallel.shard=zero2")
    assert told == "model.quantize: 4bit: not with parallel.shard=zero2; set it to null"


def test_a_step_of_ones_own_is_refused():
    (told,) = find_problems("parallel.shard=full", "loop.name=my.Loop", has_own_step=True)
    assert told.startswith("loop.name: my.Loop changes the step itself")


def test_keys_of_shards_are_refused_where_there_are_none():
    idle = {
        "replicate": 2,
        "layers": "[BertLayer]",
        "reduce_dtype": "bf16",
        "exchange": "step",
        "offload": "weights",
    }
    told = find_problems(*(f"parallel.{key}={value}" for key, value in idle.items()))
    assert [line.partition(":")[0] for line in told] == [f"parallel.{key}" for key in idle]


def test_zero2_has_one_time_to_exchange_gradients():
    assert find_problems("parallel={shard: full, exchange: step}") == []
    (told,) = find_problems("parallel={shard: zero2, exchange: step}")
    assert told.startswith("parallel.exchange: step: zero2 adds gradients up once a step in any case")


def test_gradients_that_wait_are_added_up_in_float32():
    (told,) = find_problems("parallel={shard: full, exchange: step, reduce_dtype: bf16}")
    assert told.startswith("parallel.reduce_dtype: bf16: with parallel.exchange=step microbatches would be added up")


def test_a_loss_scaler_does_not_go_with_weights_in_host_memory():
    assert find_problems("parallel={shard: full, offload: weights}", "train.precision=bf16") == []
    (told,) = find_problems("parallel={shard: full, offload: weights}", "train.precision=fp16")
    assert told == "parallel.offload: weights: not with train.precision=fp16; set train.precision=bf16 or no"


def test_copies_must_share_the_processes_evenly(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WORLD_SIZE", "8")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert find_problems("parallel={shard: full, replicate: 4}") == []
    (told,) = find_problems("parallel={shard: full, replicate: 3}")
    assert told.startswith("parallel.replicate: 3 groups cannot share 8 processes") and told.endswith("1, 2, 4, 8")
    assert ShardingPlan("full", "auto").num_replicas == 2


def test_a_loop_that_overrides_the_loss_alone_keeps_the_step():
    class OwnLoss(TrainingLoop):
        def loss_sum(self, batch):
            return super().loss_sum(batch)

    class OwnStep(TrainingLoop):
        def train_step(self, step_batch):
            return super().train_step(step_batch)

    assert not changes_the_step(OwnLoss, TrainingLoop)
    assert changes_the_step(OwnStep, TrainingLoop)


# --- files of accelerate


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ({"FSDP_VERSION": "2", "FSDP_RESHARD_AFTER_FORWARD": "true"}, {"shard": "full"}),
        ({"FSDP_VERSION": "2", "FSDP_RESHARD_AFTER_FORWARD": "false"}, {"shard": "zero2"}),
        ({"FSDP_VERSION": "1", "FSDP_SHARDING_STRATEGY": "SHARD_GRAD_OP"}, {"shard": "zero2"}),
        ({"FSDP_SHARDING_STRATEGY": "4"}, {"shard": "full", "replicate": "auto"}),
        (
            {"FSDP_SHARDING_STRATEGY": "NO_SHARD", "FSDP_TRANSFORMER_CLS_TO_WRAP": "T5Block"},
            {"shard": "none"},
        ),
        (
            {"FSDP_TRANSFORMER_CLS_TO_WRAP": "T5Block, BertLayer"},
            {"shard": "full", "layers": ["T5Block", "BertLayer"]},
        ),
        ({"FSDP_OFFLOAD_PARAMS": "true"}, {"shard": "full", "offload": "weights"}),
    ],
)
def test_an_fsdp_file_becomes_keys(given: dict[str, str], meant: dict[str, object]):
    translated = translate_fsdp({"ACCELERATE_USE_FSDP": "true", **given})
    assert translated is not None
    assert translated.values == meant
    assert all(f"parallel.{key}=" in translated.notice for key in meant)
    assert "counterpart" not in translated.notice


def test_what_has_no_counterpart_is_named():
    translated = translate_fsdp(
        {
            "ACCELERATE_USE_FSDP": "true",
            "FSDP_AUTO_WRAP_POLICY": "SIZE_BASED_WRAP",
            "FSDP_ACTIVATION_CHECKPOINTING": "true",
        }
    )
    assert translated is not None
    assert translated.notice == (
        "accelerate's FSDP file means parallel.shard=full; set "
        "model.gradient_checkpointing=true for FSDP_ACTIVATION_CHECKPOINTING=true; without counterpart: "
        "FSDP_AUTO_WRAP_POLICY=SIZE_BASED_WRAP"
    )


def test_other_files_are_left_alone_and_deepspeed_is_refused_with_the_key():
    assert translate_fsdp({"ACCELERATE_USE_FSDP": "false", "FSDP_VERSION": "2"}) is None
    with pytest.raises(UserError, match=r"parallel.shard=zero2 for its stages 1 and 2"):
        translate_fsdp({"ACCELERATE_USE_DEEPSPEED": "true"})
    with pytest.raises(UserError, match="FSDP_SHARDING_STRATEGY is HALF_SHARD; allowed: FULL_SHARD"):
        translate_fsdp({"ACCELERATE_USE_FSDP": "true", "FSDP_SHARDING_STRATEGY": "half_shard"})


# --- layers


def name_layers(model: nn.Module, names: list[str] | tuple[()] = ()) -> list[str]:
    layers = find_layers(model, names)
    return [name for name, module in model.named_modules() if any(module is layer for layer in layers)]


def test_layers_are_those_that_the_model_names():
    model = BertForSequenceClassification(BertConfig(**SIZES))
    encoder = [f"bert.encoder.layer.{number}" for number in range(2)]
    assert name_layers(model) == ["bert.embeddings", *encoder]
    assert name_layers(model, ["BertLayer"]) == encoder
    assert name_layers(nn.Linear(2, 2)) == []


def test_a_layer_whose_weight_is_tied_to_another_is_left_to_the_whole():
    assert name_layers(BertForMaskedLM(BertConfig(**SIZES))) == [f"bert.encoder.layer.{number}" for number in range(2)]


def test_inner_layers_come_first():
    model = BertForSequenceClassification(BertConfig(**SIZES))
    layers = find_layers(model, ["BertLayer", "BertAttention"])
    assert [type(layer).__name__ for layer in layers] == ["BertAttention", "BertLayer"] * 2


def test_an_optimizer_that_may_need_whole_matrices_is_refused_before_the_model_loads(tmp_path):
    rows = [{"text": f"row {number}", "label": number % 2} for number in range(8)]
    config = load_config(
        None,
        [
            "model.type=bert",
            "model.tokenizer=train",
            "parallel.shard=full",
            "optimizer.name=muon",
            f"run_dir={tmp_path}",
        ],
    )
    with pytest.raises(UserError) as refused:
        build(config, rows={"train": rows}, console=Console(enabled=False))
    assert refused.value.problems == [
        "parallel.shard: MuonWithAdamW may need whole parameters; optimizers allowed with shards: AdamW, Adam, SGD, "
        "Adagrad, RMSprop"
    ]


# --- models that cannot be spread


def test_parameters_that_cannot_be_spread_are_named_all_at_once():
    model = nn.Module()
    model.scale = nn.Parameter(torch.tensor(1.0))
    model.none = nn.Parameter(torch.empty(0, 2))
    model.turned = nn.Parameter(torch.zeros(2, 3).T)
    model.narrow = nn.Parameter(torch.zeros(2, dtype=torch.bfloat16))
    with pytest.raises(UserError) as refused:
        _check_parameters(model)
    assert [line.split()[1] for line in refused.value.problems] == ["scale", "none", "turned", "parameters"]
    assert "scale is torch.float32, narrow is torch.bfloat16" in refused.value.problems[-1]
    _check_parameters(BertForSequenceClassification(BertConfig(**SIZES)))


def test_batch_norm_is_refused_where_dummies_fill_up():
    with pytest.raises(UserError, match=r"full: 1 is a BatchNorm1d, .+; set parallel\.shard=zero2"):
        _refuse_batch_norm(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)))
    _refuse_batch_norm(nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2)))
