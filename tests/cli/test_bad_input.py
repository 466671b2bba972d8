"""Every bad input ends with exit code 2, no traceback, and one line a problem: all of them in one go."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from made_up import make_reviews, write_csv

from trainer_loop.cli.command import run_command

ROOT = Path(__file__).parents[2]
ROWS = make_reviews(40)


def assert_refused(ended, *wanted: str) -> None:
    """Each wanted text stands in a problem of its own line, and nothing else is told."""
    assert ended.code == 2, ended.out + ended.err
    assert "Traceback" not in ended.err
    assert all(line.startswith("error: ") for line in ended.err.splitlines())
    for part in wanted:
        assert any(part in problem for problem in ended.problems), f"{part!r} is not in {ended.problems}"


def test_wrong_names_and_types_of_keys_are_all_told_at_once_before_torch_is_imported(subprocess_command, tmp_path):
    """In a process of its own, as a user sees it; what else is wrong is not looked for yet."""
    (tmp_path / "torch.py").write_text("raise SystemExit('torch was imported')\n")
    (tmp_path / "base.yaml").write_text("num_train_epochs: 3\noptimizer: {name: adamv}\n")
    (tmp_path / "own.yaml").write_text(
        "extends: base.yaml\nmodel: {name: nowhere}\nbatch: {sise: 8}\ntrain: {precision: bf17}\ndata: {train: a.csv}\n"
    )
    ended = subprocess_command(
        "config=own.yaml", "log.every=0", "batch.accumulate=2", environment={"PYTHONPATH": f"{tmp_path}:{ROOT}"}
    )
    assert_refused(
        ended,
        "base.yaml:1: there is no key num_train_epochs; here it is train.epochs",
        "own.yaml:3: there is no key batch.sise; did you mean batch.size",
        "own.yaml:4: train.precision is 'bf17'; allowed: auto, no, bf16 or fp16",
        "command line: log.every is 0",
        "command line: batch.accumulate is 2, which counts microbatches",  # needs nothing but the config either
    )
    assert len(ended.problems) == 5


def test_wrong_names_and_types_of_keys_are_told_within_a_second(tmp_path):
    """A second of the processor: what else runs on this machine does not count."""
    program = (
        "import resource, sys; from trainer_loop.cli.run import main\n"
        "assert main(['config=quickstart.yaml', 'batch.sise=32']) == 2\n"
        "assert not {'torch', 'transformers', 'datasets'} & set(sys.modules)\n"
        "used = resource.getrusage(resource.RUSAGE_SELF); print(used.ru_utime + used.ru_stime)"
    )
    seconds = []
    for _ in range(3):
        done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True)
        assert done.stderr == "error: command line: there is no key batch.sise; did you mean batch.size?\n"
        seconds.append(float(done.stdout))
    assert min(seconds) < 1


def test_every_command_tells_its_help_without_what_takes_seconds_to_import():
    program = (
        "import importlib, sys\n"
        "for name in 'checkpoints compare data migrate onnx predict push report run search serve'.split():\n"
        "    assert importlib.import_module(f'trainer_loop.cli.{name}').main(['--help']) == 0\n"
        "assert not {'torch', 'transformers', 'datasets', 'pandas', 'pyarrow'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, check=True)


@pytest.mark.parametrize("prints_result", [True, False])
def test_help_that_cannot_be_written_is_an_error_of_every_command(prints_result, monkeypatch, capsys):
    with Path("/dev/full").open("w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        assert run_command(["-h"], "help\n", lambda _: 0, prints_result=prints_result) == 2
    told = "error: standard output cannot be written: No space left on device; send the output elsewhere\n"
    assert capsys.readouterr().err == told


def test_wrong_keys_are_how_the_command_ended(command, arguments, tmp_path):
    """status.json would tell of the run before, otherwise."""
    assert command(*arguments).code == 0
    assert command(*arguments, "batch.sise=32").code == 2
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    assert (status["ended"], status["exit_code"]) == ("error", 2)


def test_conflicts_components_and_data_are_all_told_at_once(command, tiny_model, tmp_path):
    write_csv(tmp_path / "train.csv", [*ROWS, ("", "positive"), ("good", "")])
    (tmp_path / "own.yaml").write_text(
        f"model: {{name: {tiny_model}}}\n"
        "batch: {accumulate: 2}\n"
        "optimizer: {name: adamv, args: {betas: [0.9, 0.99]}}\n"
        "scheduler: {name: linear, args: {cycles: 2}}\n"
        "evaluate: {metrics: [acuracy]}\n"
        "data: {train: train.csv, validation_fraction: 0.2, max_length: 32}\n"
    )
    ended = command("config=own.yaml")
    assert_refused(
        ended,
        "own.yaml:2: batch.accumulate is 2, which counts microbatches of batch.per_device rows",
        "did you mean adam",
        "scheduler.args.cycles",
        "optimizer.name is 'adamv'",
        "did you mean accuracy",
        "train.csv row 41",
        "train.csv row 42",
    )
    assert len(ended.problems) == 6


@pytest.mark.parametrize(
    ("content", "wanted"),
    [
        ("txt,label\ngood,positive\n", ["no such column", "txt", "did you mean 'txt'"]),
        ("", ["reviews.csv", "empty"]),
        ("text,label\n", ["reviews.csv", "header"]),
        ('text,label\ngood,positive\n"bad,negative\nfine,positive\n', ["reviews.csv", "line 3", "quote"]),
        ("text,label\ngood,positive\nbad,negative,extra\n", ["reviews.csv", "line 3"]),
        ("text,label\ngood,positive\n   ,negative\n", ["column 'text' is empty", "reviews.csv row 2"]),
        ("text,label\ngood,positive\nbad,\n", ["column 'label' is null", "reviews.csv row 2"]),
        ("text,label\ngood,1.5\nbad,0.5\n", ["decimal numbers", "reviews.csv row 1"]),
    ],
    ids=[
        "missing column",
        "empty",
        "header only",
        "broken quote",
        "too many fields",
        "blank text",
        "null label",
        "float",
    ],
)
def test_a_bad_csv_is_named_with_its_place(command, arguments, reviews, content, wanted):
    reviews.write_text(content)
    assert_refused(command(*arguments), *wanted)


def test_text_that_is_not_utf8_is_named_with_its_line(command, arguments, reviews):
    reviews.write_bytes("text,label\ngood,positive\ncaf\xe9,negative\n".encode("latin-1"))
    assert_refused(command(*arguments), "line 3", "UTF-8")


def test_a_broken_json_line_is_named_with_its_number(command, arguments, tmp_path):
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"text": "good", "label": "positive"}\n{"text": "bad", "label": \n')
    assert_refused(command(*arguments, f"data.train={broken}"), "broken.jsonl", "line 2")


def test_labels_outside_the_names_and_unseen_in_train_are_named(command, arguments, tmp_path):
    other = write_csv(tmp_path / "other.csv", [("good", "positive"), ("odd", "puzzled")])
    arguments = [argument for argument in arguments if "fraction" not in argument]
    assert_refused(command(*arguments, f"data.validation={other}"), "other.csv row 2", "puzzled")
    assert_refused(
        command(*arguments, f"data.validation={other}", "data.label_names=[negative, neutral]"),
        "reviews.csv row 1",
        "positive",
    )


def test_a_training_set_of_one_class_is_a_warning(command, arguments, reviews):
    write_csv(reviews, [(text, "positive") for text, _ in ROWS])
    ended = command(*arguments, "dry_run=true", "evaluate.metrics=[accuracy]")
    assert ended.code == 0
    assert "warning: data.train has one class only (positive)" in ended.out


def test_a_missing_file_and_a_missing_model_are_told_together(command, arguments, tmp_path):
    ended = command(*arguments, f"data.train={tmp_path / 'review.csv'}", f"model.name={tmp_path / 'tiny'}/none/here")
    assert_refused(ended, "there is no such file; did you mean 'reviews.csv'", "is no directory")


def test_a_hub_that_cannot_be_reached_is_told_at_once_with_the_offline_way(command, arguments):
    arguments = [argument for argument in arguments if not argument.startswith(("model.name", "data."))]
    started = time.monotonic()
    ended = command(
        *arguments, "model.name=google-bert/bert-base-cased", "data.name=stanfordnlp/imdb", "data.validation=test"
    )
    assert time.monotonic() - started < 10
    assert_refused(ended, "model.name: google-bert/bert-base-cased is not in the cache", "data.name=stanfordnlp/imdb")
    assert all("HF_HUB_OFFLINE is set" in problem for problem in ended.problems)
    assert any("local files" in problem for problem in ended.problems)


@pytest.mark.parametrize(
    ("extra", "wanted"),
    [
        (["data.max_length=600"], ["data.max_length: 600 is more than the 64 positions"]),
        (["model.overrides={hidden_sise: 8}"], ["did you mean hidden_size"]),
        (["model.from_scratch=true", "model.overrides={hidden_size: 10, num_attention_heads: 4}"], ["multiple"]),
        (["optimizer.name=torch.optim.NoSuch"], ["optimizer.name", "NoSuch"]),
        (["optimizer.args={lr: 1}"], ["optimizer.args.lr"]),
        (["optimizer.args={betas: 3}"], ["optimizer"]),
        (["scheduler.name=warmup_stable_decay"], ["num_decay_steps"]),
        (["loss.name=no_lab.losses.focal"], ["loss.name", "no_lab"]),
        (["loss.args={label_smooting: 0.1}"], ["did you mean label_smoothing"]),
        (["loss.name=torch.nn.functional.cross_entropy"], ["it must be a sum over the targets (reduction='sum')"]),
        (["loss={name: torch.nn.functional.cross_entropy, args: {reduction: none}}"], ["a tensor of shape [4]"]),
        (["loss.name=torch.nn.functional.binary_cross_entropy"], ["fails on logits [4, 2] and targets [4]"]),
        (["loss.name=torch.add"], ["loss.name: torch.add fails on logits [4, 2]"]),
        (["scheduler.name=reduce_lr_on_plateau", "evaluate.every=never"], ["follows the validation loss"]),
        (["evaluate.metrics=[perplexity]"], ["perplexity does not fit this task; those that do: accuracy"]),
        (
            ["model.overrides={initializer_range: much}"],
            ["model.overrides.initializer_range: 'much'", "expected float"],
        ),
        (["task.name=sequence_clasification"], ["did you mean sequence_classification"]),
        (["task.args={gamma: 1}"], ["task.args.gamma"]),
        (["checkpoint.best=loss"], ["smaller is better: write -loss"]),
        (["checkpoint.best=f1"], ["checkpoint.best: f1 is not reported"]),
        (["train={patience: 1, patience_metric: f1}"], ["train.patience_metric: f1 is not reported"]),
        (["train={patience: 1, patience_metric: loss}"], ["train.patience_metric", "smaller is better: write -loss"]),
        (["log.trackers=[no_tracker]"], ["log.trackers", "no_tracker"]),
        (["log.profile=2-99"], ["log.profile: 2-99 ends after the run, which has "]),
        (["train.precision=fp16"], ["fp16 needs a GPU"]),
        (["batch.accumulate=2"], ["batch.accumulate"]),
        (["--lr", "3"], ["optimizer.lr=3"]),
        (["config=none.yaml"], ["config=none.yaml is not there", "quickstart.yaml"]),
        (["evaluate.metrics=[{name: f1, args: {pos_label: 7}}]"], ["args.pos_label: 7"]),
    ],
    ids=lambda value: value[0] if isinstance(value, list) and len(value) == 1 else None,
)
def test_what_does_not_fit_is_told_before_the_model_loads(command, arguments, extra, wanted, monkeypatch):
    import torch

    if torch.cuda.is_available() and "fp16" in extra[0]:
        pytest.skip("this machine has a GPU")
    monkeypatch.setattr("trainer_loop.models.assemble.make_model", lambda *_, **__: pytest.fail("the model was loaded"))
    problems_of_the_optimizer_itself = ("optimizer.args={betas: 3}",)
    if extra[0] in problems_of_the_optimizer_itself:
        monkeypatch.undo()
        monkeypatch.chdir(Path(arguments[-1].partition("=")[2]).parent)
    assert_refused(command(*arguments, *extra), *wanted)


def test_a_language_model_takes_no_pairs_and_no_metric_of_classes(command, tmp_path, reviews):
    ended = command(
        "task.name=causal_lm",
        "model={type: gpt2, tokenizer: train}",
        f"data.train={reviews}",
        "data.columns.text_pair=label",
        "evaluate.metrics=[accuracy]",
    )
    assert_refused(ended, "data.columns.text_pair='label': the task causal_lm reads text; did you mean 'text'?")


def test_positions_that_begin_after_padding_are_counted(command, arguments):
    """RoBERTa's first position is that of padding plus one: 64 of them hold texts of 62 tokens."""
    arguments = [argument for argument in arguments if not argument.startswith("model.name")]
    roberta = "model={type: roberta, tokenizer: train, vocab_size: 300}"
    sizes = "hidden_size: 16, num_hidden_layers: 1, num_attention_heads: 2, intermediate_size: 16"
    assert_refused(
        command(*arguments, roberta, f"model.overrides={{max_position_embeddings: 32, {sizes}}}"),
        "data.max_length: 32 is more than the 31 positions of the model",
    )
    ended = command(
        *arguments,
        roberta,
        f"model.overrides={{max_position_embeddings: 33, {sizes}}}",
        "train.steps=2",
        "train.epochs=",
    )
    assert ended.code == 0, ended.err


def test_what_is_wrong_with_one_file_is_told_once_where_validation_is_cut_from_it(command, arguments):
    ended = command(*arguments, "data.columns.text=txt")
    assert_refused(ended, "data.columns.text=txt: data.train has no such column")
    assert len(ended.problems) == 1


def test_a_run_directory_can_be_the_model_of_another_run(command, arguments, tmp_path):
    assert command(*arguments).code == 0
    ended = command(*arguments, f"model.name={tmp_path / 'run'}", f"run_dir={tmp_path / 'next'}")
    assert ended.code == 0, ended.err
    assert "are new" not in ended.out


def test_a_head_for_other_classes_is_begun_anew_and_told(command, arguments, tmp_path):
    assert command(*arguments).code == 0
    three = write_csv(tmp_path / "three.csv", [(text, f"class {number % 3}") for number, (text, _) in enumerate(ROWS)])
    arguments = [*arguments, f"data.train={three}", f"run_dir={tmp_path / 'other'}"]
    ended = command(*arguments, f"model.name={tmp_path / 'run' / 'model'}")
    assert ended.code == 0, ended.err
    assert "model: 2 weights are new: classifier.bias, classifier.weight" in ended.out
    assert_refused(
        command(*arguments, f"run_dir={tmp_path / 'third'}", "model.overrides={hidden_size: 32}"),
        "do not fit model.overrides",
        "bert.embeddings",
    )


@pytest.mark.skipif(os.geteuid() == 0 and not Path("/proc").exists(), reason="needs /proc")
def test_a_run_directory_that_cannot_be_written_is_told(command, arguments):
    assert_refused(command(*arguments, "run_dir=/proc/run"), "run_dir: /proc/run cannot be written")
