"""What learns, how fast and from when on, and the adapters of peft: as the command does it."""

import json
import shutil

import peft
import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

from trainer_loop import build, load_config
from trainer_loop.cli.predict import main
from trainer_loop.models.loading import make_model

RATES = "optimizer={name: sgd, lr: 0.1, weight_decay: 0.0}"
NO_DROPOUT = "model.overrides={hidden_dropout_prob: 0.0, attention_probs_dropout_prob: 0.0}"


def weights_of(directory):
    return load_file(directory / "model.safetensors")


def predict(run, text, capfd):
    """The line it prints."""
    capfd.readouterr()
    assert main([f"model={run}", f"text={text}"]) == 0
    return capfd.readouterr().out.strip().splitlines()[-1]


def rows_of(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_a_dry_run_shows_every_group_and_the_curve(command, arguments):
    ended = command(
        *arguments,
        "optimizer.freeze=['*embeddings*']",
        "optimizer.layer_decay=0.5",
        "optimizer.groups=[{match: 'classifier.*', lr: 1e-2, unfreeze_at: 3}]",
        "scheduler.name=cosine",
        "dry_run=true",
    )
    assert ended.code == 0, ended.err
    lines = ended.out.splitlines()
    start = lines.index("groups of parameters:")
    table = lines[start + 1 :]
    assert "learning rate" in table[0]
    (head,) = [line for line in table if "classifier.*, head, matrices" in line or "classifier.*, matrices" in line]
    assert "0.01" in head
    assert head.split()[-2:] == ["4", "classifier.weight"]
    assert any(line.strip().startswith("frozen") for line in table)
    assert any(line.startswith("schedule: ▁") for line in table)


def test_what_is_frozen_stays_and_what_has_a_rate_of_its_own_moves_by_it(command, arguments, tmp_path):
    shared = [*arguments, NO_DROPOUT, RATES, "train.epochs=", "train.steps=1", "scheduler={name: constant}"]
    assert command(*shared, "train.max_grad_norm=").code == 0
    ended = command(
        *shared,
        "train.max_grad_norm=",
        "optimizer.freeze=[bert.embeddings.*]",
        "optimizer.groups=[{match: classifier.*, lr: 0.2}, {match: '*.layer.0.*', unfreeze_at: 5}]",
        f"run_dir={tmp_path / 'other'}",
    )
    assert ended.code == 2
    assert "layer.0.*, matrices" in ended.err
    assert "would not learn in any of the 1 steps" in ended.err
    ended = command(
        *shared,
        "train.max_grad_norm=",
        "optimizer.freeze=[bert.embeddings.*]",
        "optimizer.groups=[{match: classifier.*, lr: 0.2}]",
        f"run_dir={tmp_path / 'other'}",
    )
    assert ended.code == 0, ended.err
    plain, other = weights_of(tmp_path / "run" / "model"), weights_of(tmp_path / "other" / "model")
    # The same first step from the same weights: start = plain + 0.1 g, and here start - 0.2 g.
    checkpoint = tmp_path / "other" / "checkpoints" / "step-00000001"
    assert "bert.embeddings.word_embeddings.weight" not in weights_of(checkpoint)
    name = "bert.encoder.layer.1.output.dense.weight"
    torch.testing.assert_close(other[name], plain[name], rtol=0, atol=1e-7)
    assert not torch.equal(other["classifier.weight"], plain["classifier.weight"])


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        (["optimizer.freeze=[encoder.*]"], "optimizer.freeze: encoder.* matches no parameter"),
        (["optimizer.groups=[{match: head.*, lr: 1}]"], "optimizer.groups[0]: head.* matches no parameter"),
        (
            ["model.lora={r: 4, target_modules: [querry]}"],
            "target_modules: querry is no module of Bert",
        ),
        (["model.lora.alpha=4"], "model.lora.alpha is 4.0, but there is no such adapter; set model.lora.r"),
        (["model.lora.r=4", "model.peft.name=ia3"], "one excludes the other"),
        (["model.lora.r=4", "model.from_scratch=true"], "model.lora.merge is false, but the model is new"),
        (["model.quantize=4bit"], "model.quantize: 4bit: 4-bit weights cannot be trained; add an adapter"),
        (["model.quantize=4bit", "model.lora={r: 4, merge: true}"], "merging an adapter into 4-bit weights would lose"),
        (
            ["model.quantize=4bit", "model.lora={r: 4, merge: true}", "model.from_scratch=true"],
            "model.quantize: 4bit: weights are quantised while they load, and here none are loaded",
        ),
        (["model.peft.name=lorra"], "model.peft: lorra is no adapter of peft; allowed: "),
        (["model.peft.name=adalora"], "adalora needs calls of its own in the loop"),
        (["model.peft.name=prompt_tuning"], "puts tokens of its own before each row"),
        (["model.peft={name: ia3, args: {rank: 3}}"], "model.peft.args.rank"),
        (
            ["optimizer.name=schedule_free_adamw", "ema.decay=0.9"],
            "ema.decay: 0.9: schedule_free_adamw keeps an average",
        ),
        (["scheduler.metric=accuracy"], "scheduler.metric: accuracy: linear follows none"),
        (["scheduler={name: one_cycle, warmup: 1}"], "one_cycle cannot warm up in 1 of 8 steps"),
        (["scheduler={name: one_cycle, warmup: 8}"], "one_cycle cannot warm up in 8 of 8 steps"),
        (["scheduler.name=greedy"], "its least learning rate, 0.001, is not below the 0.001 it begins with"),
        (
            ["scheduler.name=torch.optim.lr_scheduler.ReduceLROnPlateau", "data.validation_fraction="],
            "ReduceLROnPlateau follows the validation loss; set data.validation",
        ),
        (
            ["optimizer.name=schedule_free_adamw", "optimizer.unfreeze_every=2"],
            "optimizer.name: schedule_free_adamw counts the steps of what is frozen too",
        ),
        (["loss={args: {class_weights: [1, 2, 3]}}"], "loss.args: cross_entropy fails on logits [4, 2]"),
    ],
)
def test_what_means_nothing_is_told_before_the_model_loads(command, arguments, options, wanted):
    ended = command(*arguments, *options)
    assert ended.code == 2
    assert any(wanted in problem for problem in ended.problems), ended.err
    assert "Traceback" not in ended.err


@pytest.mark.parametrize(
    "adapter", ["model.lora={r: 4, dropout: 0.1}", "model.lora={r: 4, dora: true}", "model.peft.name=ia3"]
)
def test_an_adapter_is_all_that_is_exported_and_loads_with_peft_alone(command, arguments, tmp_path, adapter, capfd):
    ended = command(*arguments, adapter, "optimizer.lr=1e-2")
    assert ended.code == 0, ended.err
    (plan,) = [line for line in ended.out.splitlines() if line.startswith("model: Peft")]
    assert "%) trained" in plan
    exported = tmp_path / "run" / "model"
    assert not (exported / "model.safetensors").exists()
    base = json.loads((exported / "adapter_config.json").read_text())["base_model_name_or_path"]
    model = peft.PeftModel.from_pretrained(AutoModelForSequenceClassification.from_pretrained(base), exported).eval()
    tokenizer = AutoTokenizer.from_pretrained(exported)
    texts = ["a fine film", "a bad film, and long"]
    with torch.no_grad():
        logits = model(**tokenizer(texts, padding=True, return_tensors="pt")).logits
    probability = float(logits.softmax(-1).max(-1).values[0])
    assert predict(tmp_path / "run", texts[0], capfd).endswith(f"probability={probability:.4f}")


def test_a_checkpoint_of_an_adapter_holds_what_learns_and_goes_on(command, arguments, tmp_path):
    options = [*arguments, "model.lora={r: 4, dropout: 0.1}", "checkpoint.every=4"]
    assert command(*options).code == 0
    saved = weights_of(tmp_path / "run" / "checkpoints" / "step-00000004")
    assert all("lora_" in name or "classifier" in name or "position_ids" in name for name in saved), sorted(saved)
    whole = weights_like(tmp_path / "run" / "model")
    again = [f"run_dir={tmp_path / 'again'}", f"resume={tmp_path / 'run' / 'checkpoints' / 'step-00000004'}"]
    ended = command(*options, *again)
    assert ended.code == 0, ended.err
    assert "resumed at step 4" in ended.out
    for name, weight in weights_like(tmp_path / "again" / "model").items():
        assert torch.equal(weight, whole[name]), name


def weights_like(exported):
    return load_file(exported / "adapter_model.safetensors")


def test_a_merged_adapter_is_a_model_that_answers_as_the_adapted_one(command, arguments, tmp_path, capfd):
    options = [*arguments, "optimizer.lr=1e-2"]
    assert command(*options, "model.lora.r=4").code == 0
    ended = command(*options, "model.lora={r: 4, merge: true}", f"run_dir={tmp_path / 'merged'}")
    assert ended.code == 0, ended.err
    assert (tmp_path / "merged" / "model" / "model.safetensors").exists()
    said = [predict(tmp_path / run, "a fine film", capfd) for run in ("run", "merged")]
    assert said[0] == said[1]
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged" / "model")
    assert type(model).__name__ == "BertForSequenceClassification"


def test_a_schedule_of_a_fixed_length_is_not_made_longer(command, arguments):
    options = [*arguments, "scheduler={name: one_cycle, warmup: 2}", "checkpoint.every=4"]
    assert command(*options).code == 0
    ended = command(*options, "train.epochs=2")
    assert ended.code == 2
    assert "a OneCycleLR that was planned for 8 steps cannot become one of 16" in ended.err


def test_layers_that_learn_already_are_not_frozen_again_by_a_longer_run(command, arguments):
    options = [*arguments, "optimizer.unfreeze_every=0.25", "checkpoint.every=4"]
    assert command(*options).code == 0
    ended = command(*options, "train.epochs=4")
    assert ended.code == 2
    assert "(unfreezing was [" in ended.err


def test_weights_that_are_new_learn_in_full_and_go_with_the_adapter(command, arguments, tmp_path, tiny_model, capfd):
    model = shutil.copytree(tiny_model, tmp_path / "without a pooler")
    kept = {name: weight for name, weight in weights_of(model).items() if not name.startswith("pooler")}
    save_file(kept, model / "model.safetensors", metadata={"format": "pt"})
    loop = build(load_config(None, [*arguments, f"model.name={model}", "model.lora.r=4", "optimizer.lr=1e-2"]))
    loop.fit()
    exported = weights_like(tmp_path / "run" / "model")
    assert any(name.endswith("pooler.dense.weight") for name in exported), sorted(exported)
    judged = loop.predict([{"text": "a fine film"}])["probabilities"].max()
    assert predict(tmp_path / "run", "a fine film", capfd).endswith(f"probability={judged:.4f}")


def test_an_adapter_that_lacks_what_its_model_lacks_is_refused(command, arguments, tmp_path, tiny_model, capfd):
    model = shutil.copytree(tiny_model, tmp_path / "model")
    assert command(*arguments, f"model.name={model}", "model.lora.r=4").code == 0
    kept = {name: weight for name, weight in weights_of(model).items() if not name.startswith("pooler")}
    save_file(kept, model / "model.safetensors", metadata={"format": "pt"})
    assert main([f"model={tmp_path / 'run'}", "text=a fine film"]) == 2
    assert (
        "has weights for bert.pooler.dense.bias, bert.pooler.dense.weight: it would answer at random"
        in capfd.readouterr().err
    )


def test_all_matrices_of_a_model_without_a_head_are_in_4_bits(command, tiny_model):
    config = AutoConfig.from_pretrained(tiny_model)
    plan = tiny.make_model_plan(name=str(tiny_model), quantize="4bit")
    model, _ = make_model(plan, config, model_class="AutoModel", num_tokens=10, compute_type=torch.float32, seed=0)
    assert {type(module).__name__ for module in model.modules() if isinstance(module, nn.Linear)} == {"Linear4bit"}


def test_weights_in_4_bits_stay_beside_an_adapter_that_learns_and_goes_on(command, arguments, tmp_path):
    options = [*arguments, "model.lora.r=4", "checkpoint.every=4", "train.epochs=2"]
    ended = command(*options, "model.quantize=4bit")
    assert ended.code == 0, ended.err
    (plan,) = [line for line in ended.out.splitlines() if line.startswith("model: Peft")]
    full = command(*options, "dry_run=true", f"run_dir={tmp_path / 'full'}")
    assert plan in full.out.splitlines(), "weights of which two share a byte are counted one by one"
    exported = tmp_path / "run" / "model"
    assert sorted(path.name for path in exported.glob("*.safetensors")) == ["adapter_model.safetensors"]
    whole = weights_like(exported)
    again = [f"run_dir={tmp_path / 'again'}", f"resume={tmp_path / 'run' / 'checkpoints' / 'step-00000012'}"]
    ended = command(*options, "model.quantize=4bit", *again)
    assert ended.code == 0, ended.err
    for name, weight in weights_like(tmp_path / "again" / "model").items():
        assert torch.equal(weight, whole[name]), name


def test_a_model_in_4_bits_answers_as_it_was_judged(command, arguments, tmp_path, capfd):
    options = [*arguments, "model={quantize: 4bit, lora: {r: 4}}", "optimizer.lr=1e-2"]
    config = load_config(None, options)
    loop = build(config)
    loop.fit()
    judged = loop.predict([{"text": "a fine film"}])["probabilities"].max()
    assert predict(tmp_path / "run", "a fine film", capfd).endswith(f"probability={judged:.4f}")
    assert (tmp_path / "run" / "model" / "config.json").read_text().count("load_in_4bit")


def test_an_evaluation_leaves_weights_in_4_bits_as_they_are(command, arguments, tmp_path):
    options = [*arguments, "model={quantize: 4bit, lora: {r: 4}}", "checkpoint.best="]
    assert command(*options, "evaluate.every=2").code == 0
    assert command(*options, "evaluate.every=never", f"run_dir={tmp_path / 'other'}").code == 0
    other = weights_like(tmp_path / "other" / "model")
    for name, weight in weights_like(tmp_path / "run" / "model").items():
        assert torch.equal(weight, other[name]), name


def test_other_weights_under_the_same_name_are_refused_on_resume(command, arguments, tmp_path, tiny_model):
    model = shutil.copytree(tiny_model, tmp_path / "model")
    options = [*arguments, f"model.name={model}", "model.lora.r=4", "checkpoint.every=4"]
    assert command(*options).code == 0
    weights = weights_of(model)
    name = "encoder.layer.0.output.dense.weight"
    save_file(weights | {name: weights[name] + 1.0}, model / "model.safetensors", metadata={"format": "pt"})
    ended = command(*options, "train.epochs=2")
    assert ended.code == 2
    assert "frozen_weights" in ended.err


def test_schedule_free_needs_no_schedule_and_goes_on_bit_for_bit(command, arguments, tmp_path):
    options = [*arguments, "optimizer={name: schedule_free_adamw, lr: 1e-2}", "scheduler.name=constant"]
    options += ["checkpoint.every=4"]
    assert command(*options).code == 0
    again = [f"run_dir={tmp_path / 'again'}", f"resume={tmp_path / 'run' / 'checkpoints' / 'step-00000004'}"]
    ended = command(*options, *again)
    assert ended.code == 0, ended.err
    whole = weights_of(tmp_path / "run" / "model")
    for name, weight in weights_of(tmp_path / "again" / "model").items():
        assert torch.equal(weight, whole[name]), name
    assert [row for row in rows_of(tmp_path / "again") if row["step"] == 8 and "validation/loss" in row] == [
        row for row in rows_of(tmp_path / "run") if row["step"] == 8 and "validation/loss" in row
    ]


@pytest.mark.parametrize("option", ["model.neftune_alpha=50", "train.max_grad_value=1e-5"])
def test_options_of_an_update_change_what_is_learnt(command, arguments, tmp_path, option):
    assert command(*arguments).code == 0
    ended = command(*arguments, option, f"run_dir={tmp_path / 'other'}")
    assert ended.code == 0, ended.err
    plain, other = weights_of(tmp_path / "run" / "model"), weights_of(tmp_path / "other" / "model")
    assert any((plain[name] - other[name]).abs().max() > 1e-6 for name in plain)
