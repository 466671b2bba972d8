"""Sharded runs that are killed, preempted, or resumed with another sharding."""

import pytest
import torch
from harness import NO_DROPOUT, SHARDED, Process, Run, assert_same
from safetensors.torch import load_file
from scenarios import make_ranks
from test_lost_processes import assert_process_named
from test_num_processes import NUM_ROWS, STEPS, read_rows

EXACT = (NO_DROPOUT, "train.epochs=3", "optimizer={name: adamw, lr: 3e-3}", "evaluate.every=6", "log.every=1")


@pytest.mark.parametrize(
    ("how", "place", "rank"),
    [
        ("zero2", "step:9", 1),
        ("zero2", "part:6", 1),
        ("zero2", "unsealed:6", 0),
        ("full", "half_checkpoint:6", 0),
        ("full", "part:8", 0),
        ("full", "unnamed:6", 0),
    ],
)
def test_a_killed_run_ends_with_the_same_bits(how, place, rank, bench, tmp_path):
    options = SHARDED[how]
    run = bench.run(tmp_path, *options, num_processes=2)
    run.kill_at(place, rank=rank)
    assert "resumed at step" in run.finish()
    assert_same(run, bench.whole(*options, num_processes=2))


def test_a_run_resumes_with_any_sharding(bench, tmp_path):
    """`full` on 4 processes, `zero2` on 2, no sharding on one, then two copies of a sharded model."""
    whole = bench.run(tmp_path / "whole", *EXACT)
    whole.finish()
    run = bench.run(tmp_path / "run", *EXACT)
    record = {"RECORD": str(run.directory / "rows")}
    legs = [
        ("step:4", 4, ("parallel={shard: full, exchange: step}",)),
        ("step:9", 2, ("parallel={shard: zero2, offload: weights}",)),
        ("step:15", 1, ()),
    ]
    for start, (place, num_processes, options) in enumerate(legs, start=1):
        preempted = run.run(
            *options,
            num_processes=num_processes,
            FAULT_AT=place,
            FAULT="signal:SIGTERM",
            FAULT_RANK=str(num_processes - 1),
            START=str(start),
            **record,
        )
        assert [process.code for process in preempted] == [75] * num_processes, preempted[0].describe()
        run.check()
    output = run.finish("parallel={shard: full, replicate: 2}", num_processes=4, START="4", **record)
    assert "saved by 1 processes, resumed by 4: the same rows in the same steps" in output

    steps = read_rows(run)
    assert sorted(steps) == list(range(1, 25))
    assert [len(steps[step]) for step in (1, 6, 12, 18)] == [4, 2, 1, 4]
    for epoch in range(3):
        rows = [row for step in range(STEPS) for part in steps[epoch * STEPS + step + 1] for row in part]
        assert sorted(rows) == list(range(NUM_ROWS)), "each row once an epoch"
    rates, losses = (
        [[row[key] for row in each.rows() if "lr" in row] for each in (run, whole)] for key in ("lr", "loss")
    )
    assert rates[0] == rates[1]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    assert_close_weights(run, whole)


def assert_close_weights(run: Run, other: Run) -> None:
    one, two = (load_file(each.path / "model" / "model.safetensors") for each in (run, other))
    assert one.keys() == two.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=0, atol=1e-5)


def test_an_fsdp_file_of_accelerate_gives_the_same_updates_as_its_keys(bench, tmp_path):
    run = bench.run(tmp_path, num_processes=2)
    output = run.finish(ACCELERATE_USE_FSDP="true", FSDP_VERSION="2", FSDP_TRANSFORMER_CLS_TO_WRAP="BertLayer")
    assert "accelerate's FSDP file means parallel.shard=full parallel.layers=[BertLayer]" in output
    assert_same(run, bench.whole("parallel={shard: full, layers: [BertLayer]}", num_processes=2))


def test_a_lost_process_is_named(bench, tmp_path):
    run = bench.run(tmp_path, "parallel.shard=full", num_processes=2)
    ended = run.kill_at("step:5", rank=1, together=False)
    assert_process_named(ended[0], survivor=0, silent="process 1")
    run.finish()
    assert_same(run, bench.whole("parallel.shard=full", num_processes=2))


def test_a_disk_that_the_processes_do_not_share_is_refused_before_training(bench, tmp_path):
    run = bench.run(tmp_path / "0", "parallel.shard=full", num_processes=2)
    (tmp_path / "1" / "run").mkdir(parents=True)
    started = [
        Process.start([*run.arguments, "run_dir=run"], directory=tmp_path / rank["RANK"], environment=rank)
        for rank in make_ranks(2)
    ]
    for ended in [process.wait() for process in started]:
        assert ended.code == 2, ended.describe()
        (problem,) = ended.problems
        assert problem.startswith("run_dir: run: 1 of 2 processes do not see what process 0 writes there")
    assert not list(run.path.glob(".seen-by-all*"))
