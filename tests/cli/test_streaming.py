"""`data.streaming=true`: what a run over a stream gives, goes on with, tells and refuses."""

import json
import os
import re
from pathlib import Path

import datasets
import fork_server
import pytest
from made_up import make_reviews, write_csv
from safetensors.torch import load_file
from scenarios import make_ranks
from test_bad_input import assert_refused
from test_resume import KilledError, metric_rows

from trainer_loop import TrainingLoop

NO_DROPOUT = "model.overrides={hidden_dropout_prob: 0.0, attention_probs_dropout_prob: 0.0}"
LABELS = "data.label_names=[negative, positive]"


@pytest.fixture
def streaming(tiny_model, tmp_path) -> list[str]:
    """A complete small run over three files: 70 rows in batches of 8, so 9 steps an epoch, the last of 6 rows."""
    rows = make_reviews(70)
    for number, (first, last) in enumerate([(0, 33), (33, 60), (60, 70)]):
        write_csv(tmp_path / f"part{number}.csv", rows[first:last])
    write_csv(tmp_path / "validation.csv", make_reviews(20, seed=3))
    return [
        f"model.name={tiny_model}",
        f"data.train={tmp_path}/part*.csv",
        f"data.validation={tmp_path}/validation.csv",
        "data.streaming=true",
        "data.shuffle_rows=20",
        LABELS,
        "data.max_length=32",
        "batch.size=8",
        "train.precision=no",
        "optimizer.lr=1e-3",
        f"run_dir={tmp_path / 'run'}",
    ]


def kill_in(monkeypatch, step):
    train_step = TrainingLoop.train_step

    def die(self, step_batch):
        if step_batch.step + 1 == step:
            raise KilledError
        return train_step(self, step_batch)

    monkeypatch.setattr(TrainingLoop, "train_step", die)


def assert_same_end(one: Path, other: Path) -> None:
    assert metric_rows(one) == metric_rows(other)
    for name, tensor in load_file(one / "model" / "model.safetensors").items():
        assert tensor.equal(load_file(other / "model" / "model.safetensors")[name]), name
    files = [(run / "checkpoints" / "latest" / "optimizer.bin").read_bytes() for run in (one, other)]
    assert files[0] == files[1]


def go_through_and_killed(command, arguments, tmp_path, monkeypatch, *, killed_in):
    """One run without a fault, and one that is killed in these steps and started again each time."""
    ended = command(*arguments, f"run_dir={tmp_path / 'whole'}")
    assert ended.code == 0, ended.err
    for step in killed_in:
        with monkeypatch.context() as patch:
            kill_in(patch, step)
            with pytest.raises(KilledError):
                command(*arguments)
    last = command(*arguments)
    assert last.code == 0, last.err
    assert "resumed at step" in last.out
    assert_same_end(tmp_path / "whole", tmp_path / "run")
    return ended


@pytest.mark.parametrize("killed_in", [[4], [8, 13], [11, 18]])
def test_a_killed_run_goes_on_bit_for_bit_as_often_as_it_is_killed(
    command, streaming, tmp_path, monkeypatch, killed_in
):
    more = ["train.epochs=2", "checkpoint.every=3", "evaluate.every=4", "log.every=3", "checkpoint.best=accuracy"]
    more += ["model.overrides={hidden_dropout_prob: 0.1, attention_probs_dropout_prob: 0.1}"]
    ended = go_through_and_killed(command, [*streaming, *more], tmp_path, monkeypatch, killed_in=killed_in)
    assert "train: 70 rows counted in" in ended.out
    assert "train: 3 files, streamed, 70 rows an epoch; shuffled within 20 rows" in ended.out
    assert "train, first rows: 70 rows; labels: negative" in ended.out
    assert "rows: 70, 8 per step; 9 steps per epoch, 18 steps in all" in ended.out
    rows = metric_rows(tmp_path / "whole")
    assert [row["epoch"] for row in rows if row["step"] in (9, 18)] == pytest.approx([1, 2, 2, 2])


def test_a_stream_that_is_not_counted_goes_on_over_the_end_of_an_epoch(command, streaming, tmp_path, monkeypatch):
    more = ["train.steps=14", "checkpoint.every=4", "evaluate.every=never", "log.every=2"]
    ended = go_through_and_killed(command, [*streaming, *more], tmp_path, monkeypatch, killed_in=[7, 12])
    assert "train: 3 files, streamed, not counted" in ended.out
    assert "counting" not in ended.out
    assert "rows: a stream, 8 per step; 14 steps in all" in ended.out
    epochs = {row["step"]: row["epoch"] for row in metric_rows(tmp_path / "whole")}
    assert (epochs[8], epochs[10], epochs[14]) == (0, 1, 1)


def test_the_default_intervals_are_epochs_where_they_are_counted(command, streaming, tmp_path):
    ended = command(*streaming, "train.epochs=2")
    assert ended.code == 0, ended.err
    assert "evaluation: every 9 steps; checkpoints: every 9 steps" in ended.out
    assert "validation at step 9, epoch 1" in ended.out


def test_a_language_model_is_trained_on_a_stream_of_joined_texts(command, streaming, tmp_path, monkeypatch):
    Path("book.txt").write_text("\n".join(text for text, _ in make_reviews(150)))
    tokenizer = next(one for one in streaming if one.startswith("model.name=")).replace("name", "tokenizer")
    arguments = [
        tokenizer,
        "task.name=causal_lm",
        "model.type=gpt2",
        "model.overrides={n_embd: 16, n_layer: 1, n_head: 2, n_positions: 64}",
        "data={train: book.txt, streaming: true, shuffle_rows: 16, max_length: 24}",
        "batch.size=4",
        "train={steps: 12, precision: no}",
        "checkpoint.every=5",
        "log.every=1",
        f"run_dir={tmp_path / 'run'}",
    ]
    go_through_and_killed(command, arguments, tmp_path, monkeypatch, killed_in=[8])
    assert_refused(
        command(*arguments, "train.steps=", "train.epochs=2"),
        "train.epochs: this task makes another number of rows",
    )


def test_a_dry_run_says_what_a_stream_is(command, streaming):
    ended = command(*streaming, "train.steps=5", "checkpoint.every=5", "evaluate.every=5", "dry_run=true")
    assert ended.code == 0, ended.err
    assert "rows: a stream, 8 per step; 5 steps in all" in ended.out
    assert "microbatches: at most 2,048 padded tokens" in ended.out
    assert "train, first rows: tokens per row: median" in ended.out
    assert "with a text that is in train too" not in ended.out


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_the_rows_do_not_depend_on_the_kind_of_the_file(command, streaming, tmp_path, suffix):
    columns = dict(zip(("text", "label"), map(list, zip(*make_reviews(40), strict=True)), strict=True))
    write_csv(tmp_path / "one.csv", make_reviews(40))
    rows = datasets.Dataset.from_dict(columns)
    rows.to_json(tmp_path / "one.jsonl") if suffix == "jsonl" else rows.to_parquet(tmp_path / "one.parquet")
    more = ["train.steps=7", "checkpoint.every=7", "evaluate.every=7", "log.every=1"]
    for kind in ("csv", suffix):
        ended = command(*streaming, *more, f"data.train=one.{kind}", f"run_dir={tmp_path / kind}")
        assert ended.code == 0, ended.err
    assert_same_end(tmp_path / "csv", tmp_path / suffix)


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        (
            ["train.steps=5", "checkpoint.every=2"],
            "evaluate.every is 'epoch', but with train.steps the rows of a stream are not counted",
        ),
        (["data.shuffle_rows=0"], "data.shuffle_rows is 0; allowed: a whole number of at least 1 (rows)"),
        (["data.label_names=null"], "data.label_names=null: a stream is not searched for its labels: name all of them"),
        (["data.train=my_lab.data.train"], "only files and hub splits are streamed, and this is neither"),
        (["data.train=list.json"], "list.json is one JSON list, which can only be read as a whole"),
        (
            ["data.columns.text=review", "data.validation=null"],
            "data.columns.text=review: data.train has no such column; it has text, label",
        ),
        (["data.train=[part0.csv,other.csv]"], "other.csv has no column 'text'; it has words, label"),
        (["data.train=bad.csv"], "column 'text' is empty in 1 row: bad.csv row 2; fill it in or remove the row"),
        (["data.train=broken.jsonl"], "broken.jsonl line 2, column 1: this is no JSON"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line(command, streaming, tmp_path, change, wanted):
    Path("list.json").write_text('[{"text": "a", "label": "positive"}]')
    Path("other.csv").write_text("words,label\na,positive\n")
    Path("bad.csv").write_text("text,label\na,positive\n ,negative\n")
    Path("broken.jsonl").write_text('{"text": "a", "label": "positive"}\nx\n')
    ended = command(*streaming, *change)
    assert_refused(ended, wanted)
    assert len(ended.problems) == 1
    assert not (tmp_path / "run").exists()


def test_a_bad_row_ends_the_run_at_its_step_and_what_is_saved_stays(command, streaming, tmp_path):
    write_csv(tmp_path / "long.csv", [*make_reviews(1500), ("fine", "neutral"), *make_reviews(20)])
    more = ["data.train=long.csv", "train.steps=200", "checkpoint.every=50", "evaluate.every=never", "log.every=1"]
    ended = command(*streaming, *more)
    assert_refused(
        ended,
        "data.train: column 'label' has an unknown label in long.csv row 1501 ('neutral'); "
        "labels may be 'negative', 'positive': correct it or remove the row",
    )
    assert (tmp_path / "run" / "checkpoints" / "latest").resolve().name == "step-00000150"
    assert metric_rows(tmp_path / "run")[-1]["step"] == 1500 // 8


def test_a_counted_stream_is_judged_before_training(command, streaming, tmp_path):
    write_csv(tmp_path / "long.csv", [*make_reviews(1500), ("fine", "neutral")])
    ended = command(*streaming, "data.train=long.csv", "train.epochs=1")
    assert_refused(ended, "unknown label in long.csv row 1501")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ("data.shuffle_rows=30", "data.shuffle_rows was 20 and is 30"),
        ("data.streaming=false", "data.streaming was True and is False"),
        ("data.max_length=16", "tokens was"),
        ("data.label_names=[positive, negative]", "label_names was ['negative', 'positive']"),
        ("other content", "data was"),
    ],
)
def test_another_stream_is_not_gone_on_with(command, streaming, tmp_path, change, named):
    streaming = [*streaming, "train.steps=6", "checkpoint.every=3", "evaluate.every=3"]
    assert command(*streaming).code == 0
    if change == "other content":
        write_csv(tmp_path / "part1.csv", make_reviews(30, seed=9))
        change = "train.steps=6"
    ended = command(*streaming, change)
    assert ended.code == 2
    assert named in ended.problems[0]


@pytest.mark.parametrize(("before", "after"), [("true", "false"), ("false", "true")])
def test_a_stream_has_no_place_in_another_order_of_rows(command, streaming, before, after):
    streaming = [*streaming, "train.steps=6", "checkpoint.every=3", "evaluate.every=3"]
    assert command(*streaming, f"data.streaming={before}").code == 0
    more = [f"data.streaming={after}", "resume_anyway=[data, tokens, data.streaming]", "train.steps=9"]
    assert_refused(command(*streaming, *more), "data.streaming: the checkpoint is of a run that")


def test_a_hub_data_set_is_streamed_with_the_classes_of_its_column(command, streaming, tmp_path, monkeypatch):
    texts, labels = zip(*make_reviews(70), strict=True)
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["negative", "positive"])}
    )
    rows = datasets.Dataset.from_dict({"text": texts, "label": labels}, features=features)
    for shard in range(3):
        rows.shard(3, shard).to_parquet(tmp_path / "set" / f"train-{shard:05d}-of-00003.parquet")
    rows.select(range(20)).to_parquet(tmp_path / "set" / "test-00000-of-00001.parquet")
    load_builder = datasets.load_dataset_builder
    monkeypatch.setattr(datasets, "load_dataset_builder", lambda name, config: load_builder(str(tmp_path / "set")))
    more = ["data.name=lab/set", "data.train=train", "data.validation=test", "data.label_names=null"]
    more += ["train.epochs=2", "checkpoint.every=4", "evaluate.every=6", "log.every=1"]
    ended = go_through_and_killed(command, [*streaming, *more], tmp_path, monkeypatch, killed_in=[7, 12])
    assert "train: lab/set[train], 3 shards, streamed, 70 rows an epoch" in ended.out
    assert "labels: negative" in ended.out


def test_a_diverged_run_names_the_rows_of_its_step(command, streaming, tmp_path):
    (tmp_path / "lab.py").write_text(
        "def explode(logits, labels, *, threshold):\n"
        "    loss = (logits ** 2).sum()\n"
        "    explode.batches += len(labels) == 8\n"
        "    return loss / 0.0 if explode.batches > threshold else loss\n"
        "explode.batches = -1  # the first is a trial on made-up rows, given twice\n"
    )
    ended = command(
        *streaming, "loss={name: lab.explode, args: {threshold: 5}}", "batch.max_tokens=null", "train.steps=8",
        "evaluate.every=never", "checkpoint.every=8", "log.every=8",
    )  # fmt: skip
    assert ended.code == 3
    (problem,) = ended.problems
    assert problem.startswith("step 6: loss inf")
    assert len(re.findall(r"part\d\.csv row \d+", problem)) == 8


def test_two_processes_make_the_updates_of_one(streaming, tmp_path):
    """Batches of 23 rows, of which one has 12 and the other 11, and a last one of a row, of which one has none."""
    more = [NO_DROPOUT, "batch.size=23", "batch.max_tokens=100", "optimizer={name: sgd, lr: 0.1}", "train.epochs=2"]
    with (tmp_path / "output.txt").open("w") as output:
        for name, ranks in (("one", [{}]), ("two", make_ranks(2))):
            command = ["-m", "trainer_loop.run", *streaming, *more, f"run_dir={tmp_path / name}"]
            processes = [
                fork_server.start(
                    command,
                    cwd=tmp_path,
                    env=os.environ | {"OMP_NUM_THREADS": "1"} | rank,
                    stdout=output,
                    stderr=output,
                )
                for rank in ranks
            ]
            codes = [process.wait(300) for process in processes]
            assert not any(codes), (tmp_path / "output.txt").read_text()
    figures = [
        {name: row[name] for name in ("step", "loss", "grad_norm") if name in row}
        for run in ("one", "two")
        for row in metric_rows(tmp_path / run)
    ]
    half = len(figures) // 2
    assert figures[:half] == [pytest.approx(row, rel=1e-5) for row in figures[half:]]
    one, two = (load_file(tmp_path / run / "model" / "model.safetensors") for run in ("one", "two"))
    assert all(tensor.allclose(two[name], rtol=1e-5, atol=1e-6) for name, tensor in one.items())
    states = [json.loads((tmp_path / run / "checkpoints/latest/state.json").read_text()) for run in ("one", "two")]
    assert states[0]["stream"] == states[1]["stream"]
    assert states[0]["rows_seen"] == states[1]["rows_seen"]
