"""Models as the command meets them: heads, special tokens, positions, folders that are damaged or of another kind."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
import transformers
import zoo
from safetensors.torch import load_file, save_file

from trainer_loop import Predictor, build, load_config
from trainer_loop.cli.predict import main as predict

TEXTS = ["w1 w2 w3", "w40 w41 w42 w43 w44 w45 w46 w47", "w5", "w50 w9"]
NO_DROPOUT = {
    **{"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "classifier_dropout": 0.0},
    **{"dropout": 0.0, "attention_dropout": 0.0, "seq_classif_dropout": 0.0, "dropout_rate": 0.0},
    **{"summary_last_dropout": 0.0, "classifier_dropout_prob": 0.0},
}


def save_model(directory: Path, model_type: str, auto_class: str = "AutoModelForMaskedLM", **fields) -> Path:
    """A folder as the hub has it. auto_class: what it was trained as."""
    config = zoo.make_config(model_type)
    for name, value in {**NO_DROPOUT, **fields}.items():
        if hasattr(config, name):
            setattr(config, name, value)
    torch.manual_seed(0)
    getattr(transformers, auto_class).from_config(config).save_pretrained(directory)
    zoo.make_tokenizer().save_pretrained(directory)
    return directory


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    lines = [f"{' '.join(f'w{(7 * row + word) % 56}' for word in range(1 + row % 9))},{row % 3}" for row in range(24)]
    path = tmp_path / "rows.csv"
    path.write_text("\n".join(["text,label", *lines]) + "\n")
    return path


@pytest.fixture
def small(tmp_path: Path, rows: Path) -> list[str]:
    """A run of three updates on these rows, to which a test adds its model."""
    return [
        f"data.train={rows}",
        f"data.validation={rows}",
        "data.max_length=32",
        "batch.size=8",
        "train.epochs=1",
        "train.precision=no",
        "optimizer.lr=1e-2",
        f"run_dir={tmp_path / 'run'}",
    ]


def last_row(run: Path, name: str) -> dict[str, float]:
    found = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return next(row for row in reversed(found) if name in row)


# ------------------------------------------------------------------------------------------------------------ adapters

BASES = {
    "roberta": ("roberta", "AutoModelForMaskedLM", {}),  # a head of two layers, which is new
    "electra": ("electra", "AutoModelForMaskedLM", {}),
    "distilbert": ("distilbert", "AutoModelForMaskedLM", {}),  # one of two modules
    "two labels": ("bert", "AutoModelForSequenceClassification", {"num_labels": 2}),  # a head for other classes
    "added tokens": ("bert", "AutoModelForSequenceClassification", {"vocab_size": zoo.VOCABULARY - 3}),
    "without padding": ("gpt2", "AutoModelForCausalLM", {}),
}
ADAPTERS = {
    "lora": ["model.lora.r=2"],
    "merged": ["model.lora={r: 2, merge: true}"],
    "ia3": ["model.peft.name=ia3"],
}


@pytest.mark.parametrize(
    ("base", "adapter"), [*((base, "lora") for base in BASES), ("roberta", "merged"), ("added tokens", "ia3")]
)
def test_an_exported_adapter_answers_as_it_was_trained_from_any_folder(base, adapter, small, tmp_path, monkeypatch):
    model_type, auto_class, fields = BASES[base]
    save_model(tmp_path / "base", model_type, auto_class, **fields)
    monkeypatch.chdir(tmp_path)
    loop = build(load_config(None, [*small, "model.name=base", *ADAPTERS[adapter]]))
    named = dict(loop.bare_model.named_parameters())
    learning = {name for name, weight in named.items() if weight.requires_grad}
    before = {name: weight.detach().clone() for name, weight in named.items()}
    loop.fit()
    if adapter != "merged":  # which is used up
        assert learning == {name for name, weight in named.items() if not torch.equal(weight, before[name])}
        judged = loop.predict([{"text": text} for text in TEXTS])["probabilities"].max(axis=-1)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    answers = [row["probability"] for row in Predictor.load("../run/model").predict(TEXTS)]
    monkeypatch.chdir(tmp_path)
    if adapter != "merged":
        assert answers == pytest.approx(judged.tolist(), abs=1e-5)
    else:
        assert not (tmp_path / "run" / "model" / "adapter_config.json").exists()
        assert answers == pytest.approx([row["probability"] for row in merged_answers(small, tmp_path)], abs=1e-5)


def merged_answers(small, tmp_path):
    """Those of the same run with the adapter kept apart."""
    loop = build(load_config(None, [*small, "model.name=base", "model.lora.r=2", f"run_dir={tmp_path / 'apart'}"]))
    loop.fit()
    return Predictor.load(tmp_path / "apart" / "model").predict(TEXTS)


@pytest.mark.parametrize(
    "options",
    [
        ["model.peft.args={r: 2, init_lora_weights: pissa}"],
        ["model.peft.args={r: 2, init_lora_weights: olora}"],
        ["model.peft.args={r: 2, init_lora_weights: eva}"],
        ["model.peft.args={r: 2, modules_to_save: [pooler]}"],
        ["model.peft.args={r: 2, target_modules: [query, classifier]}"],
    ],
    ids=lambda options: options[0].rpartition(": ")[2].strip("}]"),
)
def test_what_peft_can_begin_with_can_be_exported(options, small, command, tmp_path):
    save_model(tmp_path / "base", "bert")
    ended = command(*small, "model.name=base", "model.peft.name=lora", *options)
    assert ended.code == 0, ended.err
    assert len(Predictor.load(tmp_path / "run" / "model").predict(TEXTS)) == len(TEXTS)


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        (["model.peft.name=lorra"], "did you mean lora?"),
        (["model.peft.name=shadow"], "needs a second model"),
        (["model.peft.name=trainable_tokens"], "set model.peft.args.token_indices"),
        (["model.peft.name=lora", "model.peft.args={layer_replication: [[0, 2], [1, 2]]}"], "cannot be exported"),
        (["model.peft.name=ia3", "model.lora.merge=true"], "set model.peft.merge"),
    ],
)
def test_an_adapter_that_cannot_be_exported_is_refused_before_training(options, wanted, small, command, tmp_path):
    save_model(tmp_path / "base", "bert")
    ended = command(*small, "model.name=base", *options)
    assert ended.code == 2
    (problem,) = ended.problems
    assert wanted in problem


@pytest.mark.parametrize("damage", ["empty", "cut"])
def test_damaged_weights_are_named_by_predict(damage, small, command, tmp_path, capfd):
    save_model(tmp_path / "base", "bert")
    for run, options in (("whole", []), ("adapter", ["model.lora.r=2"])):
        assert command(*small, "model.name=base", *options, f"run_dir={tmp_path / run}").code == 0
        (file,) = (tmp_path / run / "model").glob("*.safetensors")
        file.write_bytes(b"" if damage == "empty" else file.read_bytes()[:500])
        capfd.readouterr()
        assert predict([f"model={tmp_path / run}", "text=w1"]) == 2
        told = capfd.readouterr().err
        assert told.startswith(f"error: {file} is ") and told.count("\n") == 1


def test_an_adapter_whose_base_is_gone_is_told_with_what_to_do(small, command, tmp_path, capfd):
    save_model(tmp_path / "base", "bert")
    assert command(*small, "model.name=base", "model.lora.r=2").code == 0
    shutil.move(tmp_path / "base", tmp_path / "moved")
    assert predict([f"model={tmp_path / 'run'}", "text=w1"]) == 2
    (problem,) = capfd.readouterr().err.strip().splitlines()
    assert f"is an adapter beside the model {tmp_path / 'base'}, which is not there" in problem
    assert "base_model_name_or_path" in problem


def test_no_library_warns_on_the_console(small, subprocess_command, tmp_path):
    save_model(tmp_path / "base", "gpt2", "AutoModelForCausalLM")
    metric = "evaluate.metrics=[{name: f1, args: {average: macro}}]"
    ended = subprocess_command(*small, f"model.name={tmp_path / 'base'}", "model.lora={r: 2, dora: true}", metric)
    assert ended.code == 0, ended.err
    assert ended.err == ""
    assert "Warning" not in ended.out


# ---------------------------------------------------------------------------------------- parameters without a gradient

OWN_TASK = """
from torch.nn.functional import cross_entropy
from trainer_loop import Column, Task


class FirstToken(Task):
    auto_model = "AutoModel"
    auto_processor = "AutoTokenizer"
    columns = {"text": Column("text"), "label": Column("class", target=True)}

    def count(self, batch):
        return len(batch["labels"])

    def loss(self, model, batch):
        return cross_entropy(self._scores(model, batch), batch["labels"], reduction="sum")

    def predict(self, model, batch):
        return {"predictions": self._scores(model, batch).argmax(-1), "references": batch["labels"]}

    def _scores(self, model, batch):
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
        return model(**inputs).last_hidden_state[:, 0, :3]
"""


def test_a_parameter_without_a_gradient_is_named_before_the_first_update(small, command, tmp_path):
    save_model(tmp_path / "base", "bert", "AutoModel")
    (tmp_path / "own_task.py").write_text(OWN_TASK)
    options = [*small, "model.name=base", "task.name=own_task.FirstToken", "checkpoint.every=1"]
    ended = command(*options)
    assert ended.code == 2
    (problem,) = ended.problems
    assert re.match(
        r"step 1: 2 of \d+ trainable parameters get no gradient: pooler.dense.weight, pooler.dense.bias; "
        r"the loss of this step does not depend on them: freeze them, "
        r"optimizer.freeze=\[pooler.dense.weight, pooler.dense.bias\], or set train.unused_parameters=allow",
        problem,
    )
    assert not (tmp_path / "run" / "checkpoints").exists(), "nothing was updated"
    assert command(*options, "optimizer.freeze=[pooler.dense.weight, pooler.dense.bias]").code == 0
    before = load_file(tmp_path / "base" / "model.safetensors")
    ended = command(*options, "train.unused_parameters=allow", f"run_dir={tmp_path / 'allowed'}")
    assert ended.code == 0, ended.err
    after = load_file(tmp_path / "allowed" / "model" / "model.safetensors")
    assert torch.equal(after["pooler.dense.weight"], before["pooler.dense.weight"])
    assert not torch.equal(after["embeddings.LayerNorm.weight"], before["embeddings.LayerNorm.weight"])


@pytest.mark.parametrize(
    ("model_type", "parts"),
    [("gemma3", "model.multi_modal_projector"), ("xlnet", "transformer.mask_emb"), ("esm", "esm.contact_head")],
)
def test_what_no_text_reaches_is_frozen_and_told(model_type, parts, small, command, tmp_path):
    save_model(tmp_path / "base", model_type, "AutoModelForSequenceClassification")
    ended = command(*small, "model.name=base", "dry_run=true")
    assert ended.code == 0, ended.err
    (line,) = [line for line in ended.out.splitlines() if "no part in what this task computes" in line]
    assert parts in line


# ---------------------------------------------------------------------------------------------- what a model expects


def test_a_head_that_reads_the_last_position_answers_alike_for_every_cut(small, command, tmp_path):
    save_model(tmp_path / "base", "xlnet", "AutoModelForSequenceClassification")
    figures = []
    for cut in (1, 16):
        run = tmp_path / f"run-{cut}"
        ended = command(
            *small, "model.name=base", f"batch.per_device={cut}", f"evaluate.per_device={cut}", f"run_dir={run}"
        )
        assert ended.code == 0, ended.err
        assert "warning" not in ended.out
        training, validation = last_row(run, "grad_norm"), last_row(run, "validation/loss")
        figures.append([training["loss"], training["grad_norm"], validation["validation/loss"]])
    assert figures[0] == pytest.approx(figures[1], rel=1e-5)
    judged = pipeline_of(tmp_path / "run-1")(TEXTS)
    assert [row["score"] for row in judged] == pytest.approx(
        [row["probability"] for row in Predictor.load(tmp_path / "run-1" / "model").predict(TEXTS)], abs=1e-5
    )


def test_an_answer_that_depends_on_padding_is_told_with_its_figure(small, command, tmp_path):
    save_model(tmp_path / "base", "fnet", "AutoModelForSequenceClassification")
    ended = command(*small, "model.name=base", "dry_run=true")
    assert ended.code == 0, ended.err
    (line,) = [line for line in ended.out.splitlines() if line.startswith("warning: ")]
    assert re.match(
        r"warning: the answer of a FNetForSequenceClassification to a row depends on .* by 0\.\d+ of its largest",
        line,
    )
    ended = command(*small, "model.name=base", "dry_run=true", "batch.per_device=1", "evaluate.per_device=1")
    assert "warning" not in ended.out


def test_a_task_that_inherits_from_a_shipped_one_is_tried_as_that_is(small, command, tmp_path, monkeypatch):
    save_model(tmp_path / "base", "xlnet", "AutoModelForSequenceClassification")
    (tmp_path / "heir.py").write_text(
        "from trainer_loop.tasks.sequence_classification import SequenceClassification\n\n"
        "class Heir(SequenceClassification):\n    pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    losses = []
    for cut in (1, 16):
        run = tmp_path / f"run-{cut}"
        ended = command(
            *small, "model.name=base", "task.name=heir.Heir", f"evaluate.per_device={cut}", f"run_dir={run}"
        )
        assert ended.code == 0, ended.err
        losses.append(last_row(run, "validation/loss")["validation/loss"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_rows_as_short_as_those_of_the_data_are_tried(small, command, tmp_path, rows, capfd):
    """Funnel pools, and takes no row of three or four tokens."""
    save_model(tmp_path / "base", "funnel", "AutoModelForSequenceClassification")
    ended = command(*small, "model.name=base", "dry_run=true")
    assert (ended.code, len(ended.problems)) == (2, 1)
    assert "cannot answer rows as its tokenizer makes them" in ended.err
    lines = [f"{' '.join(f'w{(7 * row + word) % 56}' for word in range(14))},{row % 3}" for row in range(24)]
    rows.write_text("\n".join(["text,label", *lines]) + "\n")
    ended = command(*small, "model.name=base")
    assert ended.code == 0, ended.err
    assert predict([f"model={tmp_path / 'run'}", "text=w1 w2 w3 w4 w5 w6 w7 w8"]) == 0
    capfd.readouterr()
    assert predict([f"model={tmp_path / 'run'}", "text=w1 w2"]) == 2
    assert capfd.readouterr().err.startswith("error: text 1: a FunnelForSequenceClassification cannot answer it: ")


@pytest.mark.parametrize("model_type", ["gemma3", "roberta", "esm", "gpt2", "bert"])
def test_a_padding_token_may_be_the_end_token(model_type, small, command, tmp_path):
    save_model(tmp_path / "base", model_type, "AutoModelForSequenceClassification")
    tokenizer = zoo.make_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.save_pretrained(tmp_path / "base")
    ended = command(*small, "model.name=base")
    assert ended.code == 0, ended.err


@pytest.mark.parametrize("field", ["output_attentions=true", "return_dict=false", "output_hidden_states=true"])
def test_what_a_model_returns_is_for_the_loop_to_say(field, small, command, tmp_path):
    save_model(tmp_path / "base", "bert", "AutoModelForSequenceClassification")
    ended = command(*small, "model.name=base", f"model.overrides.{field}")
    assert ended.code == 0, ended.err


@pytest.mark.parametrize("model_type", ["bart", "opt"])
def test_layers_that_are_dropped_at_random_need_no_key(model_type, small, command, tmp_path):
    rates = {"encoder_layerdrop": 0.5, "decoder_layerdrop": 0.5, "layerdrop": 0.5}
    save_model(tmp_path / "base", model_type, "AutoModelForSequenceClassification", **rates)
    ended = command(*small, "model.name=base", "train.epochs=3")
    assert ended.code == 0, ended.err


def pipeline_of(run, **options):
    return transformers.pipeline("text-classification", model=str(run / "model"), **options)


@pytest.mark.parametrize("model_type", ["bert", "gpt2", "llama", "roberta", "t5", "xlnet", "gemma3"])
@pytest.mark.parametrize("problem_type", [None, "multi_label_classification"])
def test_the_export_says_what_was_trained(model_type, problem_type, small, command, tmp_path):
    save_model(tmp_path / "base", model_type, "AutoModelForSequenceClassification", problem_type=problem_type)
    ended = command(*small, "model.name=base")
    assert ended.code == 0, ended.err
    ours = Predictor.load(tmp_path / "run" / "model").predict(TEXTS)
    # The pipeline cannot take a batch of a model with memories apart.
    for options in ({}, {"batch_size": 4}) if model_type != "xlnet" else ({},):
        theirs = pipeline_of(tmp_path / "run", **options)(TEXTS)
        assert [row["label"] for row in theirs] == [row["label"] for row in ours]
        assert [row["score"] for row in theirs] == pytest.approx([row["probability"] for row in ours], abs=1e-5)


@pytest.mark.parametrize("model_type", ["t5", "mt5", "bart", "mbart"])
@pytest.mark.parametrize("streaming", [False, True])
def test_a_text_that_spells_out_the_end_token_is_named_before_the_model_loads(
    model_type, streaming, small, command, tmp_path, monkeypatch
):
    save_model(tmp_path / "base", model_type, "AutoModelForSequenceClassification")
    bad = tmp_path / "bad.csv"
    bad.write_text("text,label\nw1 w2,0\nw3 [EOS] w4,1\nw5,2\n")
    monkeypatch.setattr("trainer_loop.models.assemble.make_model", lambda *_, **__: pytest.fail("the model was loaded"))
    streamed = ["data.streaming=true", "train.epochs=", "train.steps=2", "data.label_names={a: 0, b: 1, c: 2}"]
    options = [f"data.train={bad}", "data.validation=null", "evaluate.every=never", "checkpoint.every=never"]
    ended = command(*small, "model.name=base", *options, *(streamed if streaming else []))
    assert ended.code == 2
    (problem,) = ended.problems
    assert re.search(r"bad.csv row 2: spells out the end token \[EOS\], which the model's head reads", problem)


def test_an_end_token_of_the_config_that_is_not_the_tokenizers_is_told_and_mended(small, command, tmp_path):
    save_model(tmp_path / "base", "t5", "AutoModelForSequenceClassification", eos_token_id=1)
    ended = command(*small, "model.name=base")
    assert ended.code == 0, ended.err
    assert "the end token of its config (1) is not that of the tokenizer, which is taken: [EOS] (2)" in ended.out
    assert json.loads((tmp_path / "run" / "model" / "config.json").read_text())["eos_token_id"] == 2


@pytest.mark.parametrize(
    ("model_type", "positions"),
    [
        ("esm", 62),
        ("roberta", 62),
        ("bert", 64),
        ("longformer", 62),
        ("bart", 64),
        ("nystromformer", 64),
        ("ibert", 62),
    ],
)
def test_positions_are_counted_before_the_model_loads(model_type, positions, small, command, tmp_path, rows):
    fields = {"pad_token_id": 1, "bos_token_id": 0} if model_type in ("esm", "roberta", "longformer", "ibert") else {}
    save_model(tmp_path / "base", model_type, "AutoModelForSequenceClassification", **fields)
    if fields:
        swap_padding(tmp_path / "base")
    rows.write_text("text,label\n" + "".join(f"{' '.join(['w7'] * 80)},{row % 3}\n" for row in range(8)))
    ended = command(*small, "model.name=base", f"data.max_length={positions + 1}")
    assert ended.code == 2
    assert f"data.max_length: {positions + 1} is more than the {positions} positions" in ended.problems[0]
    ended = command(*small, "model.name=base", f"data.max_length={positions}")
    assert ended.code == 0, ended.err


def swap_padding(directory: Path) -> None:
    """Let [PAD] be token 1, as RoBERTa has it."""
    path = directory / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["[PAD]"], vocabulary["[BOS]"] = 1, 0
    tokenizer["post_processor"]["special_tokens"]["[BOS]"]["ids"] = [0]
    for token in tokenizer["added_tokens"]:
        token["id"] = vocabulary[token["content"]]
    tokenizer["added_tokens"].sort(key=lambda token: token["id"])
    path.write_text(json.dumps(tokenizer))


# ----------------------------------------------------------------------------------------- before the model loads


def damage_lfs(folder):
    (folder / "model.safetensors").write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 4404\n"
    )


def damage_cut(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


def damage_header(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:20])


def damage_empty(folder):
    (folder / "model.safetensors").write_bytes(b"")


def damage_gone(folder):
    (folder / "model.safetensors").unlink()


def damage_bin(folder, content):
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(content)


def damage_index(folder, text):
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    (folder / "model.safetensors.index.json").write_text(text)


def damage_config(folder, text):
    (folder / "config.json").write_text(text)


def change_config(folder, **fields):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def damage_foreign(folder):
    """The weights of another architecture."""
    other = zoo.make_model("gpt2", "AutoModelForCausalLM").state_dict()
    del other["lm_head.weight"]
    save_file(other, folder / "model.safetensors", metadata={"format": "pt"})


def remove_weights(folder, part):
    weights = {name: weight for name, weight in load_file(folder / "model.safetensors").items() if part not in name}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def damage_tokenizer(folder, text):
    (folder / "tokenizer.json").write_text(text)


DAMAGES = {
    "pointer of LFS": (damage_lfs, "model.safetensors is a pointer of Git LFS"),
    "weights cut off": (damage_cut, "model.safetensors is damaged or not complete"),
    "weights cut in their header": (damage_header, "model.safetensors is damaged or not complete"),
    "empty weights": (damage_empty, "model.safetensors is empty"),
    "no weights": (damage_gone, "has no weights (model.safetensors or pytorch_model.bin); it has"),
    "garbage for a .bin": (lambda folder: damage_bin(folder, b"garbage" * 99), "is no file that torch has saved"),
    "a zip cut off": (lambda folder: damage_bin(folder, b"PK\x03\x04" + b"\0" * 99), "is no file that torch has saved"),
    "empty .bin": (lambda folder: damage_bin(folder, b""), "pytorch_model.bin is empty"),
    "pointer for a .bin": (lambda folder: damage_bin(folder, b"version https://git-lfs.github"), "pointer of Git LFS"),
    "a shard is missing": (
        lambda folder: damage_index(
            folder, '{"metadata": {}, "weight_map": {"a": "model-00002-of-00002.safetensors"}}'
        ),
        "lacks model-00002-of-00002.safetensors, which model.safetensors.index.json names",
    ),
    "garbage for an index": (lambda folder: damage_index(folder, "{"), "index.json is damaged"),
    "an index of another kind": (lambda folder: damage_index(folder, "[1]"), "index.json is damaged"),
    "an index of nothing": (
        lambda folder: damage_index(folder, '{"metadata": {}, "weight_map": {}}'),
        "index.json is damaged",
    ),
    "an index out of the folder": (
        lambda folder: damage_index(folder, '{"metadata": {}, "weight_map": {"a": "../model.safetensors"}}'),
        "names files outside of its folder, such as ../model.safetensors",
    ),
    "a layer is missing": (lambda folder: remove_weights(folder, "encoder.layer.1."), "in the layers of a Bert"),
    "a matrix is missing": (lambda folder: remove_weights(folder, "attention.self.query"), "in the layers of a Bert"),
    "empty config": (lambda folder: damage_config(folder, ""), "cannot be loaded"),
    "config cut off": (lambda folder: damage_config(folder, '{"model_type": "be'), "cannot be loaded"),
    "config is a list": (lambda folder: damage_config(folder, "[]"), "cannot be loaded"),
    "config is a number": (lambda folder: damage_config(folder, "7"), "cannot be loaded"),
    "config is deep": (lambda folder: damage_config(folder, "[" * 10000 + "]" * 10000), "cannot be loaded"),
    "config of no type": (lambda folder: damage_config(folder, "{}"), "cannot be loaded"),
    "config of an unknown type": (lambda folder: change_config(folder, model_type="berd"), "cannot be loaded"),
    "config for images": (
        lambda folder: damage_config(folder, '{"model_type": "vit"}'),
        "is of type vit, for which transformers has no AutoModelForSequenceClassification",
    ),
    "config of another size": (lambda folder: change_config(folder, hidden_size=64), "do not fit"),
    "config of a wrong type": (lambda folder: change_config(folder, hidden_size="wide"), "hidden_size"),
    "config with no heads": (lambda folder: change_config(folder, num_attention_heads=0), "cannot build"),
    "config with odd heads": (lambda folder: change_config(folder, num_attention_heads=5), "multiple"),
    "config with more tokens": (lambda folder: change_config(folder, vocab_size=99), "do not fit"),
    "weights of another model": (damage_foreign, "has no weights for most of a BertForSequenceClassification"),
    "quantised before": (
        lambda folder: change_config(folder, quantization_config={"quant_method": "gptq", "bits": 4}),
        "quantised before",
    ),
    "no tokenizer": (lambda folder: (folder / "tokenizer.json").unlink(), "tokenizer"),
    "empty tokenizer": (lambda folder: damage_tokenizer(folder, ""), "tokenizer"),
    "garbage for a tokenizer": (lambda folder: damage_tokenizer(folder, "{}"), "tokenizer"),
    "deep tokenizer": (lambda folder: damage_tokenizer(folder, "[" * 10000), "tokenizer"),
    "tokenizer config cut off": (
        lambda folder: (folder / "tokenizer_config.json").write_text('{"pad_token": '),
        "tokenizer",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_or_foreign_model_folder_is_told_in_one_line(damage, small, command, tmp_path, monkeypatch):
    save_model(tmp_path / "base", "bert", "AutoModel")
    spoil, wanted = DAMAGES[damage]
    spoil(tmp_path / "base")
    ended = command(*small, "model.name=base")
    assert ended.code == 2, (ended.out, ended.err)
    assert "Traceback" not in ended.err
    assert any(wanted in problem for problem in ended.problems), ended.err
    assert len(ended.problems) == 1, ended.err
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        (["model.overrides.num_labels=5"], "model.overrides.num_labels: 5, but the data has 3 classes"),
        (["model.overrides={id2label: {0: a}}"], "model.overrides.id2label: the classes are named by the data"),
        (
            ["model.name=", "model.type=mamba", "model.tokenizer=base"],
            "model.type: mamba is of type mamba, for which transformers has no AutoModelForSequenceClassification",
        ),
        (
            ["model.name=", "model.type=bert", "model.tokenizer=base", "model.overrides.vocab_size=20"],
            "model.overrides.vocab_size: 20 is less than the 60 tokens of the tokenizer",
        ),
    ],
)
def test_the_true_cause_is_told(options, wanted, small, command, tmp_path):
    save_model(tmp_path / "base", "bert", "AutoModel")
    ended = command(*small, "model.name=base", *options)
    assert ended.code == 2
    (problem,) = ended.problems
    assert problem.startswith(wanted)


def test_class_weights_are_tried_on_as_many_logits_as_the_model_has(small, command, tmp_path, rows):
    save_model(tmp_path / "base", "gpt2", "AutoModelForCausalLM", vocab_size=zoo.VOCABULARY + 4)
    options = ["model.name=base", "task.name=causal_lm", "data.validation=null", "evaluate.every=never"]
    weights = [1.0] * (zoo.VOCABULARY + 4)
    ended = command(*small, *options, f"loss.args={{class_weights: {weights}}}")
    assert ended.code == 0, ended.err
    ended = command(*small, *options, f"loss.args={{class_weights: {weights[:-4]}}}", f"run_dir={tmp_path / 'other'}")
    assert ended.code == 2
    assert f"fails on logits [4, {zoo.VOCABULARY + 4}]" in ended.problems[0]


def test_a_new_model_may_have_more_embeddings_than_the_tokenizer_has_tokens(small, command, tmp_path):
    save_model(tmp_path / "base", "bert", "AutoModel")
    overrides = "model.overrides={hidden_size: 16, num_hidden_layers: 1, num_attention_heads: 2, vocab_size: 64}"
    ended = command(*small, "model.type=bert", "model.tokenizer=base", overrides)
    assert ended.code == 0, ended.err
    weights = load_file(tmp_path / "run" / "model" / "model.safetensors")
    assert len(weights["bert.embeddings.word_embeddings.weight"]) == 64


# ------------------------------------------------------------------------------------------------- figures a class


@pytest.mark.parametrize("key", ["checkpoint.best", "scheduler.metric"])
def test_a_figure_of_one_class_may_be_followed_and_that_of_none_is_refused(key, small, command, tmp_path):
    save_model(tmp_path / "base", "bert", "AutoModel")
    plateau = ["scheduler.name=reduce_lr_on_plateau"] if key == "scheduler.metric" else []
    options = [*small, "model.name=base", "evaluate.metrics=[{name: f1, args: {average: null}}]", *plateau]
    ended = command(*options, f"{key}=f1")
    assert ended.code == 2
    (problem,) = ended.problems
    assert problem == f"{key}: f1 is not reported; evaluations have: f1/0, f1/1, f1/2, loss"
    ended = command(*options, f"{key}=f1/1")
    assert ended.code == 0, ended.err


def test_a_new_model_of_a_type_needs_a_tokenizer(command, arguments):
    ended = command(*arguments, "model={name: null, type: bert, tokenizer: null}")
    assert ended.code == 2
    assert "model.type is 'bert', which brings no tokenizer; set model.tokenizer to a hub id" in ended.err
