"""A config from the arguments of transformers.Trainer: every field, values there and back, files that are wrong."""

import ast
import dataclasses
import functools
import inspect
import json
import re
from pathlib import Path

import pytest
import transformers
from packaging.version import Version
from transformers import SchedulerType, Trainer, TrainingArguments
from transformers.training_args import OptimizerNames

from trainer_loop import load_config
from trainer_loop.cli.migrate import main, migrate
from trainer_loop.config.checks import missing_parts
from trainer_loop.config.fields import OptimizerConfig
from trainer_loop.config.load import read_config, values_of
from trainer_loop.config.schema import KEYS
from trainer_loop.migrate.page import FIRST_HEADING, markdown
from trainer_loop.migrate.trainer_optimizers import OPTIMIZERS
from trainer_loop.migrate.translations import FIELDS, NOT_NEEDED, OLD_FIELDS, OTHER_NAMES, TRANSLATIONS
from trainer_loop.optim.optimizers import OptimizerPlan, find_optimizer
from trainer_loop.optim.schedules import SCHEDULES

PAGE = (Path(__file__).parents[2] / "docs" / "migrate.md").read_text(encoding="utf-8")
INSTALLED = [field.name for field in dataclasses.fields(TrainingArguments) if field.init]
STILL_TO_SET = ["model.name=m", "data.train=a.csv", "data.validation=b.csv"]

# What TrainingArguments' defaults decide otherwise than ours.
DEFAULTS = {
    "batch.size": None,
    "batch.per_device": 8,
    "batch.accumulate": 1,
    "train.precision": "no",
    "train.tf32": False,
    "optimizer.weight_decay": 0.0,
    "scheduler.warmup": 0,
}


@pytest.fixture
def written(tmp_path):
    """A function that translates arguments: returns the text of the config, and its keys that are not our defaults."""

    def write(arguments) -> tuple[str, dict]:
        path = tmp_path / "training_args.json"
        path.write_text(arguments if isinstance(arguments, str) else json.dumps(arguments))
        config = tmp_path / "config.yaml"
        text = migrate(path)
        config.write_text(text)
        values = values_of(load_config(str(config), STILL_TO_SET))
        return text, {name: value for name, value in values.items() if value != read_defaults()[name]}

    return write


@functools.cache
def read_defaults() -> dict:
    return values_of(load_config(None, STILL_TO_SET))


@pytest.fixture
def noted(written):
    """A function that translates arguments: returns the fields without a key, and their notes."""

    def write(arguments) -> dict[str, str]:
        _, _, notes = written(arguments)[0].partition("# Without a key here:\n")
        return dict(line.removeprefix("#   ").split(": ", 1) for line in notes.splitlines())

    return write


# --- the tables


@pytest.mark.parametrize("name", INSTALLED)
def test_every_field_of_the_installed_version_is_a_key_or_says_why_not(name):
    assert name in FIELDS | OLD_FIELDS  # an older version than the tables are of still has some of those
    assert (name in TRANSLATIONS) != (name in NOT_NEEDED)
    key, why = TRANSLATIONS.get(name, ("", NOT_NEEDED.get(name)))
    assert key in KEYS or len(why.split()) >= 3


@pytest.mark.skipif(Version(transformers.__version__) < Version("5.23"), reason="the tables are of 5.23")
def test_no_name_is_called_a_field_that_is_none():
    assert sorted(FIELDS - set(INSTALLED)) == []
    assert not OLD_FIELDS & set(INSTALLED)
    assert not OTHER_NAMES & (OLD_FIELDS | set(INSTALLED))
    assert {*TRANSLATIONS, *NOT_NEEDED} == FIELDS | OLD_FIELDS | OTHER_NAMES


def test_the_page_is_current():
    by_hand, begins, _ = PAGE.partition(FIRST_HEADING)
    assert by_hand + markdown() == PAGE, "run python -m trainer_loop.migrate.page"
    assert begins and len(by_hand.splitlines()) <= 60


def test_the_script_of_the_page_is_the_config_beside_it(tmp_path, written):
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    call = ast.parse(code).body[0].value
    arguments = {keyword.arg: ast.literal_eval(keyword.value) for keyword in call.keywords}
    (yaml,) = re.findall(r"```yaml\n(.*?)```", PAGE, flags=re.DOTALL)
    shown = tmp_path / "shown.yaml"
    shown.write_text(yaml)
    _, values = written({"output_dir": call.args[0].value, **arguments})
    page = values_of(load_config(str(shown)))
    of_the_script = {name: value for name, value in page.items() if name in values}
    assert of_the_script == values
    others = {name for name in page if page[name] != KEYS[name].default and name not in values}
    assert others <= {"model.name", "data.name", "data.train", "data.validation", "evaluate.metrics"}


# --- values


def test_defaults_come_to_what_decides_updates_alone(tmp_path, written):
    # What transformers takes for disable_tqdm by itself depends on how much it was told to log.
    text, values = written(TrainingArguments(str(tmp_path), disable_tqdm=False).to_json_string())
    assert values == {**DEFAULTS, "run_dir": str(tmp_path)}
    assert "# Without a key" not in text
    assert text.count("# TrainingArguments' default") == len(DEFAULTS) - 1


def test_no_field_at_all_comes_to_the_same(written):
    assert written({})[1] == DEFAULTS


def test_many_values_there_and_back(tmp_path, written, noted):
    arguments = TrainingArguments(
        str(tmp_path / "out"),
        run_name="mine",
        seed=7,
        data_seed=8,
        learning_rate=3e-5,
        weight_decay=0.1,
        adam_beta2=0.95,
        adam_epsilon=1e-6,
        per_device_train_batch_size=4,
        per_device_eval_batch_size=64,
        gradient_accumulation_steps=8,
        num_train_epochs=5,
        max_grad_norm=0,
        label_smoothing_factor=0.1,
        lr_scheduler_type="cosine_with_min_lr",
        lr_scheduler_kwargs={"min_lr_rate": 0.1},
        warmup_steps=250,
        bf16=True,
        use_cpu=True,
        tf32=False,
        activation_checkpointing=True,
        neftune_noise_alpha=5,
        eval_strategy="steps",
        eval_steps=0.02,
        eval_on_start=True,
        eval_delay=3,
        save_strategy="steps",
        save_steps=0.04,
        save_total_limit=4,
        load_best_model_at_end=True,
        metric_for_best_model="eval_loss",
        logging_steps=25,
        report_to=["tensorboard"],
        dataloader_num_workers=3,
        ddp_timeout=600,
    ).to_json_string()
    _, values = written(arguments)
    assert values == {
        "run_dir": str(tmp_path / "out"),
        "seed": 7,
        "model.neftune_alpha": 5,
        "model.gradient_checkpointing": True,
        "data.num_workers": 3,
        "batch.size": None,
        "batch.per_device": 4,
        "batch.accumulate": 8,
        "train.epochs": 5,
        "train.precision": "bf16",
        "train.tf32": False,
        "train.max_grad_norm": None,
        "train.timeout_minutes": 10,
        "loss.args": {"label_smoothing": 0.1},
        "optimizer.lr": 3e-5,
        "optimizer.weight_decay": 0.1,
        "optimizer.args": {"betas": [0.9, 0.95], "eps": 1e-6},
        "scheduler.name": "cosine_with_min_lr",
        "scheduler.args": {"min_lr_rate": 0.1},
        "scheduler.warmup": 250,
        "evaluate.every": 0.1,
        "evaluate.at_start": True,
        "evaluate.per_device": 64,
        "checkpoint.every": 0.2,
        "checkpoint.keep_last": 3,
        "checkpoint.best": "-loss",
        "log.every": 25,
        "log.trackers": ["tensorboard"],
        "log.name": "mine",
    }
    assert {"data_seed", "eval_delay", "use_cpu"} <= noted(arguments).keys()


BESIDE = {"hub.every": "checkpoint"}

# A value other than the default for each field that has a key, with what it needs beside it, and what comes of it.
EACH = [
    ({"run_name": "a"}, {"log.name": "a"}),
    ({"data_seed": 3, "seed": 3}, {"seed": 3}),
    ({"torch_compile": True}, {"model.compile": True}),
    ({"torch_compile_mode": "max-autotune"}, {"model.compile": True}),
    ({"use_cache": True}, {"model.overrides": {"use_cache": True}}),
    ({"gradient_checkpointing": True}, {"model.gradient_checkpointing": True}),
    ({"accelerator_config": {"split_batches": True}, "gradient_accumulation_steps": 4}, {"batch.size": 32}),
    ({"max_steps": 100}, {"train.steps": 100, "train.epochs": None}),
    ({"max_steps": 100, "num_train_epochs": 2}, {"train.steps": 100, "train.epochs": None}),
    ({"num_train_epochs": 0.5}, {"train.epochs": 0.5}),
    ({"fp16": True}, {"train.precision": "fp16"}),
    ({"tf32": True}, {"train.tf32": True}),
    ({"max_grad_norm": 0.5}, {"train.max_grad_norm": 0.5}),
    ({"max_grad_norm": -1}, {"train.max_grad_norm": None}),
    ({"ddp_timeout": 90}, {"train.timeout_minutes": 1.5}),
    ({"weight_decay": 0.01}, {"optimizer.weight_decay": 0.01}),
    ({"warmup_steps": 0.06}, {"scheduler.warmup": 0.06}),
    ({"warmup_steps": 100.0}, {"scheduler.warmup": 100}),
    ({"lr_scheduler_type": "cosine"}, {"scheduler.name": "cosine"}),
    ({"lr_scheduler_kwargs": '{"num_cycles": 2}'}, {"scheduler.args": {"num_cycles": 2}}),
    (
        {"lr_scheduler_type": "greedy", "eval_strategy": "epoch", "metric_for_best_model": "f1"},
        {"scheduler.name": "greedy", "scheduler.metric": "f1"},
    ),
    ({"optim": "adamw_torch"}, {}),
    (
        {"optim": "sgd", "optim_args": "momentum=0.9, nesterov=true"},
        {"optimizer.name": "sgd", "optimizer.args": {"momentum": 0.9, "nesterov": True}},
    ),
    (
        {"optim": "adafactor"},
        {
            "optimizer.name": "transformers.optimization.Adafactor",
            "optimizer.args": {"scale_parameter": False, "relative_step": False},
        },
    ),
    (
        {"optim": "adamw_bnb_8bit"},
        {"optimizer.name": "adamw_8bit", "optimizer.args": {"betas": [0.9, 0.999], "eps": 1e-8}},
    ),
    (
        {"optim": "lion_32bit"},
        {"optimizer.name": "bitsandbytes.optim.Lion32bit", "optimizer.args": {"betas": [0.9, 0.999]}},
    ),
    (
        {"optim": "ademamix", "optim_args": "beta1=0.8,alpha=4,t_alpha=10"},
        {
            "optimizer.name": "bitsandbytes.optim.AdEMAMix32bit",
            "optimizer.args": {"betas": [0.8, 0.999, 0.9999], "eps": 1e-8, "alpha": 4, "t_alpha": 10},
        },
    ),
    (
        {"optim": "schedule_free_sgd", "warmup_steps": 9},
        {
            "optimizer.name": "schedulefree.SGDScheduleFree",
            "optimizer.args": {"warmup_steps": 9},
            "scheduler.warmup": 9,
        },
    ),
    ({"eval_strategy": "steps", "eval_steps": 50}, {"evaluate.every": 50}),
    ({"eval_strategy": "steps", "logging_steps": 20}, {"evaluate.every": 20, "log.every": 20}),
    (
        {"eval_strategy": "steps", "eval_steps": 0.015, "max_steps": 100},
        {"evaluate.every": 2, "train.steps": 100, "train.epochs": None},
    ),
    ({"eval_strategy": "steps", "eval_steps": 0.5, "num_train_epochs": 1}, {"evaluate.every": 0.5, "train.epochs": 1}),
    ({"eval_strategy": "steps", "eval_steps": 0.25, "num_train_epochs": 4}, {"train.epochs": 4}),
    ({"save_strategy": "no"}, {"checkpoint.every": "never"}),
    ({"save_steps": 50}, {"checkpoint.every": 50}),
    ({"save_total_limit": 1}, {"checkpoint.keep_last": 1}),
    ({"save_total_limit": 5}, {"checkpoint.keep_last": 5}),
    ({"save_strategy": "best", "metric_for_best_model": "f1", "eval_strategy": "epoch"}, {"checkpoint.best": "f1"}),
    (
        {"load_best_model_at_end": True, "eval_strategy": "epoch", "save_strategy": "epoch"},
        {"checkpoint.best": "-loss"},
    ),
    (
        {
            "load_best_model_at_end": True,
            "eval_strategy": "epoch",
            "metric_for_best_model": "wer",
            "greater_is_better": False,
        },
        {"checkpoint.best": "-wer"},
    ),
    ({"logging_steps": 0.1, "max_steps": 50}, {"log.every": 5, "train.steps": 50, "train.epochs": None}),
    ({"report_to": "wandb"}, {"log.trackers": ["wandb"]}),
    ({"project": "spoons"}, {"log.project": "spoons"}),
    # hub
    ({"push_to_hub": True, "output_dir": "a/b"}, {"run_dir": "a/b", "hub.push": "b", "hub.every": "checkpoint"}),
    ({"push_to_hub": True, "hub_model_id": "me/x", "hub_strategy": "end"}, {"hub.push": "me/x"}),
    ({"push_to_hub": True, "hub_model_id": "me/x", "hub_strategy": "every_save"}, {"hub.push": "me/x", **BESIDE}),
    ({"push_to_hub": True, "hub_model_id": "me/x", "hub_strategy": "checkpoint"}, {"hub.push": "me/x", **BESIDE}),
    ({"push_to_hub": True, "hub_model_id": "me/x", "hub_strategy": "all_checkpoints"}, {"hub.push": "me/x", **BESIDE}),
    (
        {"push_to_hub": True, "hub_model_id": "me/x", "save_strategy": "no"},
        {"hub.push": "me/x", "checkpoint.every": "never"},
    ),
    (
        {"push_to_hub": True, "hub_model_id": "x", "hub_private_repo": False, "hub_strategy": "end"},
        {"hub.push": "x", "hub.private": False},
    ),
    ({"push_to_hub": True, "hub_model_id": "x", "hub_private_repo": True}, {"hub.push": "x", **BESIDE}),
    ({"hub_model_id": "me/x"}, {"hub.push": "me/x", "hub.every": "never"}),
    (
        {"push_to_hub": True, "push_to_hub_model_id": "x", "push_to_hub_organization": "lab"},
        {"hub.push": "lab/x", **BESIDE},
    ),
    # older versions, and the example scripts
    ({"evaluation_strategy": "steps", "eval_steps": 5}, {"evaluate.every": 5}),
    ({"evaluate_during_training": True, "logging_steps": 5}, {"evaluate.every": 5, "log.every": 5}),
    ({"evaluation_strategy": None, "eval_strategy": "steps", "eval_steps": 5}, {"evaluate.every": 5}),
    ({"per_gpu_train_batch_size": 2}, {"batch.per_device": 2}),
    ({"per_gpu_eval_batch_size": 2}, {"evaluate.per_device": 2}),
    ({"warmup_ratio": 0.06}, {"scheduler.warmup": 0.06}),
    ({"warmup_ratio": 0.06, "warmup_steps": 10}, {"scheduler.warmup": 10}),
    (
        {"adafactor": True},
        {
            "optimizer.name": "transformers.optimization.Adafactor",
            "optimizer.args": {"scale_parameter": False, "relative_step": False},
        },
    ),
    ({"mixed_precision": "bf16"}, {"train.precision": "bf16"}),
    (
        {"model_name_or_path": "m", "max_seq_length": 128, "text_column_name": "review"},
        {"data.max_length": 128, "data.columns": {"text": "review"}},
    ),
    # The arguments of example scripts, by which their tasks are known.
    (
        {"doc_stride": 64, "version_2_with_negative": True, "max_answer_length": 20},
        {
            "task.name": "question_answering",
            "task.args": {"stride": 64, "null_answers": True, "max_answer_tokens": 20},
        },
    ),
    (
        {"source_prefix": "summarize: ", "text_column": "article", "summary_column": "highlights", "num_beams": 4},
        {
            "task.name": "seq2seq",
            "task.args": {"prefix": "summarize: "},
            "data.columns": {"source": "article", "target": "highlights"},
            "evaluate.generate.num_beams": 4,
        },
    ),
    (
        {"mlm_probability": 0.2, "line_by_line": True, "max_seq_length": 128},
        {
            "task.name": "masked_lm",
            "task.args": {"mask_probability": 0.2, "join_texts": False},
            "data.max_length": 128,
        },
    ),
    ({"block_size": 128}, {"task.name": "causal_lm", "data.max_length": 128}),
    (
        {"fim_rate": 0.9, "fim_middle_token": "<M>", "block_size": 128},
        {
            "task.name": "causal_lm",
            "task.args": {"fim": {"rate": 0.9, "middle_token": "<M>"}},
            "data.max_length": 128,
        },
    ),
    ({"do_regression": True}, {"task.name": "sequence_regression"}),
    (
        {"image_column_name": "img"},
        {
            "task.name": "image_classification",
            "data.columns": {"image": "img"},
        },
    ),
    ({"fsdp": "full_shard auto_wrap"}, {"parallel.shard": "full"}),
    ({"fsdp": ["hybrid_shard_zero2"]}, {"parallel.shard": "zero2", "parallel.replicate": "auto"}),
    (
        {
            "fsdp": True,
            "fsdp_config": {
                "fsdp_transformer_layer_cls_to_wrap": "BertLayer",
                "reshard_after_forward": False,
                "activation_checkpointing": True,
            },
        },
        {"parallel.shard": "zero2", "parallel.layers": ["BertLayer"], "model.gradient_checkpointing": True},
    ),
    (
        {"fsdp": True, "fsdp_transformer_layer_cls_to_wrap": "T5Block"},
        {"parallel.shard": "full", "parallel.layers": ["T5Block"]},
    ),
    ({"deepspeed": {"zero_optimization": {"stage": 2}}}, {"parallel.shard": "zero2"}),
    ({"deepspeed": {"zero_optimization": {"stage": 3}}}, {"parallel.shard": "full"}),
    (
        {"deepspeed": {"zero_optimization": {"stage": 3, "offload_param": {"device": "cpu"}}}},
        {"parallel.shard": "full", "parallel.offload": "weights"},
    ),
    ({"fsdp": "full_shard offload"}, {"parallel.shard": "full", "parallel.offload": "weights"}),
    (
        {"lora_r": 8, "lora_alpha": 16, "lora_dropout": 0.1},
        {"model.lora.r": 8, "model.lora.alpha": 16, "model.lora.dropout": 0.1},
    ),
]


@pytest.mark.parametrize(("arguments", "meant"), EACH, ids=[", ".join(map(str, given)) for given, _ in EACH])
def test_each_value_comes_to_what_it_means(arguments, meant, written):
    _, values = written(arguments)
    expected = {**DEFAULTS, **meant}
    if "batch.size" in meant:
        expected = {
            name: value
            for name, value in expected.items()
            if name not in ("batch.per_device", "batch.accumulate", "batch.size")
        }
    assert values == {name: value for name, value in expected.items() if value != read_defaults()[name]}


# A value other than the default, where the type of the field alone does not give one.
SAMPLES = {
    "lr_scheduler_type": "cosine",
    "optim": "sgd",
    "optim_args": "momentum=0.9",
    "lr_scheduler_kwargs": {"num_cycles": 2},
    "eval_strategy": "epoch",
    "save_strategy": "no",
    "logging_strategy": "no",
    "hub_strategy": "end",
}


@pytest.mark.parametrize("field", dataclasses.fields(TrainingArguments), ids=lambda field: field.name)
def test_a_field_that_is_given_is_named_in_the_config_or_in_the_notes(field, written):
    by_type = {"bool": field.default is not True, "int": 3, "float": 0.25, "str": "x", "dict": {"a": 1}, "list": ["x"]}
    value = next((sample for kind, sample in by_type.items() if kind in str(field.type)), "x")
    text, _ = written({field.name: SAMPLES.get(field.name, value)})
    comments = re.findall(r"  # ([\w, ]+)$|^#   (\w+): ", text, flags=re.MULTILINE)
    assert field.name in {name for pair in comments for part in pair for name in part.split(", ")}


# --- optimizers and schedules


@pytest.mark.parametrize("name", [name.value for name in OptimizerNames if name.value in OPTIMIZERS])
def test_an_optimizer_is_given_what_trainer_gives_it(name, tmp_path, written):
    arguments = TrainingArguments(str(tmp_path), optim=name, adam_beta2=0.95, warmup_steps=5, weight_decay=0.1)
    _, values = written(arguments.to_json_string())
    ours, args = values.get("optimizer.name", "adamw"), values.get("optimizer.args", {})
    if name in ("adamw_torch_xla", "adamw_torch_npu_fused"):  # their packages are for other devices
        assert (ours, args) == ("adamw", {"betas": [0.9, 0.95], "eps": 1e-8})
        return
    OptimizerPlan(**vars(OptimizerConfig(name=ours, weight_decay=0.1, args=args))).check()
    takes = inspect.signature(find_optimizer(ours)).parameters
    given = {**{argument: parameter.default for argument, parameter in takes.items()}, **args}
    kind, theirs = Trainer.get_optimizer_cls_and_kwargs(arguments)
    for argument in theirs.keys() - {"lr", "weight_decay", "fused", "optim_bits", "is_paged"}:
        assert plain(given[argument]) == plain(theirs[argument]), argument
    assert find_optimizer(ours).__name__.startswith(kind.__name__) or theirs["is_paged"]
    assert ("8bit" in ours) == (theirs.get("optim_bits") == 8)
    assert ("Paged" in ours) == theirs.get("is_paged", False)


def plain(value):
    return list(value) if isinstance(value, tuple) else value


@pytest.mark.parametrize("name", [name.value for name in OptimizerNames if name.value not in OPTIMIZERS])
def test_an_optimizer_without_a_name_here_is_noted(name, noted):
    assert noted({"optim": name}).keys() == {"optim"}


def test_every_schedule_is_a_schedule_here():
    assert {name.value for name in SchedulerType} <= SCHEDULES.keys()


# --- notes


@pytest.mark.parametrize(
    ("arguments", "reasons"),
    [
        ({"hub_token": "hf_secret"}, {"hub_token": "set HF_TOKEN"}),
        ({"push_to_hub_token": "hf_secret"}, {"push_to_hub_token": "set HF_TOKEN"}),
        (
            {"hub_revision": "v1", "hub_always_push": True},
            {"hub_revision": "main", "hub_always_push": "newest weights"},
        ),
        ({"push_to_hub": True, "hub_strategy": "end"}, {"push_to_hub": "private"}),
        (
            {"push_to_hub": True, "hub_private_repo": False, "hub_strategy": "all_checkpoints"},
            {"hub_strategy": "states of optimizers are not"},
        ),
        ({"train_sampling_strategy": "group_by_length"}, {"train_sampling_strategy": "batch.order=window"}),
        ({"group_by_length": True}, {"group_by_length": "batch.order=window"}),
        ({"metric_for_best_model": "f1"}, {"metric_for_best_model": "checkpoint.best"}),
        ({"optim": "sgd", "adam_beta1": 0.8}, {"adam_beta1": "does not read it"}),
        ({"optim_args": "momentum=0.9"}, {"optim_args": "does not read momentum"}),
        ({"report_to": ["wandb", "neptune"]}, {"report_to": "neptune is no tracker"}),
        ({"eval_strategy": "steps", "eval_steps": 0.5}, {"eval_strategy": "1.5 epochs", "eval_steps": "1.5 epochs"}),
        ({"logging_strategy": "epoch"}, {"logging_strategy": "log.every"}),
        ({"resume_from_checkpoint": "out/checkpoint-5"}, {"resume_from_checkpoint": "model.name"}),
        ({"do_predict": True, "do_train": True}, {"do_predict": "data.test", "do_train": "always trains"}),
        ({"learning_rate": 1e-3, "max_norm": 0.5, "max_grad_norm": 2}, {"max_norm": "2 already, by max_grad_norm"}),
        ({"predict_with_generate": True}, {"predict_with_generate": "always generates"}),
        ({"fsdp_config": {"min_num_params": 100}}, {"fsdp_config": "without fsdp"}),
        ({"fsdp": True, "fsdp_config": "fsdp.json"}, {"fsdp_config": "fsdp.json was not read"}),
        ({"deepspeed": "ds.json"}, {"deepspeed": "'ds.json' was not read; set parallel.shard"}),
    ],
)
def test_a_field_without_a_key_is_noted_with_the_reason(arguments, reasons, noted):
    notes = noted(arguments)
    assert notes.keys() == reasons.keys()
    assert all(words in notes[name] for name, words in reasons.items())


@pytest.mark.parametrize("name", ["hub_token", "push_to_hub_token"])
def test_a_token_is_not_printed(name, written):
    assert "hf_secret" not in written({name: "hf_secret", "push_to_hub": True})[0]


def test_a_text_that_looks_like_an_interpolation_stays_a_text(written):
    assert written({"output_dir": "a/${b}: c # d"})[1]["run_dir"] == "a/${b}: c # d"


def test_a_field_that_a_later_version_brings_is_noted(monkeypatch, noted):
    @dataclasses.dataclass
    class Later(TrainingArguments):
        brand_new: int = 0

    monkeypatch.setattr("transformers.TrainingArguments", Later)
    assert "not known here yet" in noted({"brand_new": 1})["brand_new"]


def test_a_config_without_a_model_says_so(tmp_path):
    config = tmp_path / "config.yaml"
    (tmp_path / "a.json").write_text("{}")
    config.write_text(migrate(tmp_path / "a.json"))
    reading = read_config(str(config), ["data.train=a.csv"])
    read, problems = reading.config, reading.problems
    assert problems == []
    assert list(missing_parts(read)) == ["model"]


# --- the command


def test_the_command_prints_the_config(tmp_path, capsys):
    path = tmp_path / "training_args.json"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps({"learning_rate": 1e-4}).encode())
    assert main([str(path)]) == 0
    printed = capsys.readouterr()
    assert "  lr: 0.0001  # learning_rate\n" in printed.out
    assert "model.name" in printed.out
    assert printed.err == ""


def test_the_command_tells_its_form(capsys):
    assert main(["--help"]) == 0
    assert "python -m trainer_loop.migrate training_args.json" in capsys.readouterr().out
    assert main([]) == 2
    assert "0 arguments were given; the form is" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", ["1:2: this is not JSON"]),
        ("[1]", ["this is [1]"]),
        ('{"learning_rate": NaN}', ["NaN is no number"]),
        ('{"lerning_rate": 1}', ["lerning_rate is no field of TrainingArguments; did you mean learning_rate?"]),
        ('{"zzzzzz": 1}', ["zzzzzz is no field of TrainingArguments; remove it"]),
        ('{"learning_rate": "fast"}', ["learning_rate is 'fast'; allowed: a number"]),
        ('{"learning_rate": null}', ["learning_rate is null; allowed: a number"]),
        ('{"learning_rate": true}', ["learning_rate is true; allowed: a number"]),
        ('{"learning_rate": -1}', ["learning_rate: optimizer.lr is -1; allowed: a number of at least 0"]),
        ('{"bf16": "yes"}', ["bf16 is 'yes'; allowed: true or false"]),
        ('{"bf16": true, "fp16": true}', ["bf16 and fp16 are both true"]),
        ('{"save_steps": [1]}', ["save_steps is [1]; allowed: a number"]),
        ('{"save_total_limit": "two"}', ["save_total_limit is 'two'; allowed: a whole number or null"]),
        ('{"lr_scheduler_type": "cosin"}', ["lr_scheduler_type is 'cosin'; allowed: linear, cosine", "mean cosine?"]),
        ('{"optim": "adamw_troch"}', ["optim is 'adamw_troch'; allowed: ", "did you mean adamw_torch?"]),
        ('{"optim": "sgd", "optim_args": "momentum"}', ["optim_args is 'momentum'; the form is"]),
        ('{"lr_scheduler_kwargs": "min_lr=1"}', ["lr_scheduler_kwargs is 'min_lr=1'; it must be a mapping"]),
        ('{"warmup_ratio": 1.5}', ["warmup_ratio is 1.5; it is a share of all steps, below 1"]),
        ('{"warmup_ratio": "x"}', ["warmup_ratio is 'x'; allowed: a number"]),
        ('{"per_device_train_batch_size": 0}', ["per_device_train_batch_size: batch.per_device is 0"]),
    ],
)
def test_what_is_wrong_is_told_in_one_line(text, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("a.json").write_text(text)
    assert main(["a.json"]) == 2
    printed = capsys.readouterr()
    (line,) = printed.err.splitlines()
    assert line.startswith("error: a.json:")
    assert all(words in line for words in said)
    assert printed.out == ""


def test_everything_wrong_is_told_at_once(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("a.json").write_text('{"lerning_rate": 1, "bf16": 3, "seed": "x"}')
    assert main(["a.json"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 3


def test_a_file_that_is_not_there_or_not_json_is_told(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["a.json"]) == 2
    assert "a.json: cannot be read: No such file" in capsys.readouterr().err
    Path("training_args.bin").write_bytes(b"PK\x03\x04\xff\xfe")
    assert main(["training_args.bin"]) == 2
    assert "training_args.bin: this is not JSON" in capsys.readouterr().err
