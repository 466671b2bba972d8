"""Names that are no key: did-you-mean, and the names of transformers.TrainingArguments."""

import pytest

from trainer_loop.config.load import read_config
from trainer_loop.config.schema import KEYS, SECTIONS
from trainer_loop.migrate.translations import NOT_NEEDED, TRANSLATIONS, describe_unknown, meant_keys


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("lr", ["optimizer.lr"]),
        ("epochs", ["train.epochs"]),
        ("train.weight_decay", ["optimizer.weight_decay"]),
        ("every", ["evaluate.every", "checkpoint.every", "log.every", "hub.every"]),
        ("trian.epochs", ["train.epochs"]),
        ("modl.name", ["model.name"]),
        ("optimiser.name", ["optimizer.name"]),
        ("optimizer.lrr", ["optimizer.lr"]),
        ("optimiser", ["optimizer"]),
        ("data.txt", ["data.test"]),
        ("run_dri", ["run_dir"]),
        ("learning_rat", ["optimizer.lr"]),
        ("model.gradient_checkpoint", ["model.gradient_checkpointing"]),
        ("zzz", []),
        ("", []),
        ("a..b", []),
    ],
)
def test_the_meant_keys_are_found(name, meant):
    assert meant_keys(name) == meant
    described = describe_unknown(name)
    assert described.startswith(f"there is no key {name}; ")
    assert all(key in described for key in meant or ["--help lists all keys"])


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("num_train_epochs", "train.epochs"),
        ("per_device_train_batch_size", "batch.per_device"),
        ("gradient_accumulation_steps", "batch.accumulate"),
        ("learning_rate", "optimizer.lr"),
        ("warmup_steps", "scheduler.warmup"),
        ("warmup_ratio", "scheduler.warmup"),
        ("lr_scheduler_type", "scheduler.name"),
        ("bf16", "train.precision"),
        ("output_dir", "run_dir"),
        ("eval_strategy", "evaluate.every"),
        ("evaluation_strategy", "evaluate.every"),
        ("save_total_limit", "checkpoint.keep_last"),
        ("metric_for_best_model", "checkpoint.best"),
        ("report_to", "log.trackers"),
        ("dataloader_num_workers", "data.num_workers"),
    ],
)
@pytest.mark.parametrize("above", ["", "train.", "training_args.", "model.deep.er."])
def test_names_of_training_arguments_are_translated_at_any_level(name, key, above):
    assert describe_unknown(above + name).startswith(f"there is no key {above}{name}; here it is {key}")


def test_names_below_an_unknown_section_are_translated_one_by_one_with_their_lines(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text(
        "model: {name: m}\ndata: {train: a.csv}\ntrainer:\n  num_train_epochs: 3\n  deeper:\n    bf16: true\n"
    )
    found = read_config(str(path), []).problems
    assert found == [
        f"{path}:4: there is no key trainer.num_train_epochs; here it is train.epochs",
        f"{path}:6: there is no key trainer.deeper.bf16; here it is train.precision (bf16)",
    ]


def test_names_without_a_key_say_why():
    assert describe_unknown("dataloader_drop_last") == (
        "there is no key dataloader_drop_last: every row is trained exactly once an epoch, the last batch too"
    )


def test_every_translation_leads_to_a_key():
    assert {key for key, _ in TRANSLATIONS.values()} <= KEYS.keys()
    assert not TRANSLATIONS.keys() & NOT_NEEDED.keys()
    assert not NOT_NEEDED.keys() & (KEYS.keys() | SECTIONS.keys())
    assert not TRANSLATIONS.keys() & SECTIONS.keys()
    for name, (key, _) in TRANSLATIONS.items():
        assert name == key or f"here it is {key}" in describe_unknown(name)


def test_what_is_not_needed_says_why_unless_a_key_has_the_name():
    told = [name for name, why in NOT_NEEDED.items() if why in describe_unknown(name)]
    assert NOT_NEEDED.keys() - told == {"label_names"}
    assert "data.label_names" in describe_unknown("label_names")
