"""Configs drawn at random from all keys: each trains, or is refused in one line for each problem."""

import random
from typing import Any

import pytest

from trainer_loop.config.schema import KEYS, Key
from trainer_loop.optim.optimizers import OPTIMIZERS
from trainer_loop.optim.schedules import SCHEDULES

# What a key may be where its type does not say: values that mean something, and some that do not go together.
VALUES: dict[str, list[Any]] = {
    "task.name": ["sequence_classification", "causal_lm"],
    "task.args": ["{}", "{append_eos: false}"],
    "model.type": [
        "bert",
        "distilbert",
        "roberta",
        "gpt2",
        "electra",
        "albert",
        "mpnet",
        "xlnet",
        "fnet",
        "t5",
        "vit",
        "",
    ],
    "model.name": ["", "no/such-model"],
    "model.tokenizer": ["train", "", "nowhere"],
    "model.chat_template": ["", "plain", "nowhere.jinja"],
    "model.vocab_size": [300, 1000],
    "model.overrides": [
        "{num_hidden_layers: 1}",
        "{hidden_size: 32}",
        "{num_labels: 2}",
        "{hidden_size: 30, num_attention_heads: 4}",
    ],
    "model.attention": ["auto", "sdpa", "eager", "flash_attention_2", "no_such"],
    "model.lora.r": [2, ""],
    "model.lora.target_modules": ["[]", "[query]", "[nothing]"],
    "model.peft.name": ["ia3", "loha", "prompt_tuning", ""],
    "model.peft.args": ["{}", "{rank: 2}"],
    "model.quantize": ["", "4bit"],
    "model.compile": ["false"],
    "data.train": ["trainer_loop.quickstart.reviews.train", "nothing.csv", "train"],
    "data.validation": ["trainer_loop.quickstart.reviews.validation", "", "nothing.csv"],
    "data.test": ["", "trainer_loop.quickstart.reviews.validation"],
    "data.mixture": ["[]", "[{name: a, train: nothing.csv, weight: 1}, {name: b, train: nothing.csv, weight: 1}]"],
    "data.weight": ["label", "no_such_column"],
    "data.split_by": ["text", "no_such_column"],
    "data.fold": ["", "2/5", "1/1"],
    "data.filter": ["", "builtins.bool", "builtins.nothing"],
    "data.map": ["", "builtins.dict"],
    "data.name": [""],
    "data.config": [""],
    "data.columns": ["{}", "{text: label}", "{text_pair: text}", "{label: text}", "{label: nothing}", "{no: text}"],
    "data.label_names": ["", "[bad, good]", "{bad: negative, good: positive}", "{negative: 0}"],
    "data.max_length": [16, 48, 512, 513],
    "data.num_workers": ["auto", 0, 1],
    "data.files.delimiter": ["", "tab", ";", "ab"],
    "data.files.encoding": ["", "utf-8", "windows-1252", "no-such"],
    "data.limit.train": [64, 7],
    "data.limit.validation": [16, 1],
    "data.limit.test": [16],
    "data.cache_dir": [""],
    "batch.max_tokens": ["auto", 64, 1, ""],
    "evaluate.max_tokens": ["auto", 64, 1, ""],
    "evaluate.every": ["epoch", "never", 2, 0.5],
    "checkpoint.every": ["epoch", "never", 2, 0.5],
    "evaluate.metrics": [
        "[]",
        "[accuracy, {name: f1, args: {average: macro}}]",
        "[{name: f1, args: {average: null}}]",
        "[perplexity]",
        "[no_such]",
        "[accuracy, accuracy]",
    ],
    "checkpoint.best": ["", "accuracy", "-loss", "f1", "loss", "nothing"],
    "train.patience_metric": ["", "accuracy", "-loss", "nothing"],
    "train.threads": ["auto", 1],
    "train.max_time_minutes": ["", 30],
    "parallel.replicate": [1, "auto", 3],
    "parallel.layers": ["[]", "[BertLayer]"],
    "loss.name": ["", "torch.nn.functional.cross_entropy", "nothing.here"],
    "loss.args": ["{}", "{label_smoothing: 0.1}", "{class_weights: [1.0, 2.0]}"],
    "loop.name": [""],
    "loop.args": ["{}", "{a: 1}"],
    "optimizer.name": [*OPTIMIZERS, "torch.optim.RAdam", "nothing"],
    "optimizer.lr": [1e-4, 1e-3, 0],
    "optimizer.args": ["{}", "{betas: [0.9, 0.99]}"],
    "optimizer.groups": ["[]", '[{match: "classifier.*", lr: 1e-3}]', '[{match: "*", unfreeze_at: 2}]'],
    "optimizer.freeze": ["[]", '["*embeddings*"]', '["*"]', '["nothing.*"]'],
    "optimizer.unfreeze_every": ["", 1, 0.3, 5],
    "scheduler.name": [*SCHEDULES, "nothing"],
    "scheduler.warmup": [0, 0.1, 2, 100],
    "scheduler.args": ["{}", "{num_cycles: 1}", "{min_lr: 1e-5}", "{num_decay_steps: 1}"],
    "scheduler.metric": ["", "accuracy", "-loss"],
    "resume": ["auto", "never", "nowhere"],
    "resume_anyway": ["[]", "[batch.size]", "[nothing]"],
    "log.profile": ["", "1-2", "2-99", "3-1"],
    "log.trackers": ["[]", "[tensorboard]", "[nothing]"],
    "log.project": ["trainer_loop"],
    "log.name": ["", "first"],
    "log.tracker_args": ["{}", "{wandb: {}}"],
}
LEFT_ALONE = ("run_dir", "hub.push", "dry_run", "train.epochs", "train.steps", "train.precision")
BASE = {
    "model.type": "bert",
    "model.tokenizer": "train",
    "model.vocab_size": 300,
    "model.overrides": "{hidden_size: 32, num_hidden_layers: 1, num_attention_heads: 2, intermediate_size: 32}",
    "data.train": "trainer_loop.quickstart.reviews.train",
    "data.validation": "trainer_loop.quickstart.reviews.validation",
    "data.limit.train": 64,
    "data.limit.validation": 16,
    "data.max_length": 48,
    "batch.size": 8,
    "train.precision": "no",
}


def draw(key: Key, generator: random.Random) -> Any:
    """A value that the key may have."""
    if key.name in VALUES:
        return generator.choice(VALUES[key.name])
    if key.allowed:
        return generator.choice([*key.allowed, *([""] if key.nullable else [])])
    if key.kind == "true_or_false":
        return generator.choice(["true", "false"])
    if key.kind in ("integer", "auto_or_positive", "auto_or_count", "token_limit"):
        return max(1, int(key.at_least or 1)) + generator.choice([0, 1, 7])
    assert key.kind == "number", f"{key.name} needs an entry in VALUES"
    low = key.above if key.above is not None else key.at_least or 0.0
    high = key.below if key.below is not None else low + 2.0
    return round(low + (high - low) * generator.choice([0.1, 0.5, 0.9]), 4)


def draw_config(seed: int) -> list[str]:
    """A small run with up to eight keys drawn at random; half of the runs keep to its model."""
    generator = random.Random(seed)
    names = [name for name in KEYS if name not in LEFT_ALONE]
    if seed % 2:
        names = [name for name in names if not name.startswith(("model.", "data.", "task."))]
    chosen = generator.sample(names, generator.randint(1, 8))
    values = BASE | {name: draw(KEYS[name], generator) for name in chosen}
    return [f"{name}={value}" for name, value in values.items()]


def check(seed: int, command) -> None:
    ended = command(*draw_config(seed), "train.epochs=", "train.steps=3")
    assert ended.code in (0, 2), (ended.code, ended.err)
    assert "Traceback" not in ended.out + ended.err
    if ended.code == 2:
        assert ended.problems
        assert ended.err.splitlines() == [f"error: {problem}" for problem in ended.problems], ended.err
        assert len(set(ended.problems)) == len(ended.problems)


@pytest.mark.parametrize("seed", range(24))
def test_a_random_config_trains_or_is_refused_in_lines(seed: int, command):
    check(seed, command)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(24, 224))
def test_200_random_configs_train_or_are_refused_in_lines(seed: int, command):
    check(seed, command)
