"""A run that resumes with another number of processes: the same rows in the same steps."""

import json
from collections import defaultdict

import pytest
import torch
from harness import NO_DROPOUT, Run
from safetensors.torch import load_file

EXACT = (NO_DROPOUT, "train.epochs=3", "optimizer={name: sgd, lr: 0.1}", "evaluate.every=6", "log.every=1")
NUM_ROWS, STEPS = 61, 8  # per epoch


def read_rows(run: Run) -> dict[int, list[list[int]]]:
    """Return step -> rows of each process. If a step was repeated after a kill, the last time counts."""
    attempts: dict[int, dict[tuple[int, int], list[int]]] = defaultdict(dict)
    for line in (run.directory / "rows").read_text().splitlines():
        entry = json.loads(line)
        attempts[entry["step"]][entry["start"], entry["rank"]] = entry["rows"]
    steps = {}
    for step, parts in attempts.items():
        last = max(start for start, _ in parts)
        steps[step] = [rows for (start, _), rows in sorted(parts.items()) if start == last]
    return steps


def test_two_then_one_then_three(bench, tmp_path):
    whole = bench.run(tmp_path / "whole", *EXACT)
    whole.finish()
    run = bench.run(tmp_path / "run", *EXACT)
    record = {"RECORD": str(run.directory / "rows")}

    ended = run.run(num_processes=2, FAULT_AT="step:4", FAULT="signal:SIGTERM", FAULT_RANK="0", START="1", **record)
    assert [process.code for process in ended] == [75, 75]
    run.start(num_processes=1, FAULT_AT="step:15", START="2", **record)
    (ended_alone,) = run.wait()
    assert ended_alone.code == -9
    assert "saved by 2 processes, resumed by 1: the same rows in the same steps" in ended_alone.out
    run.check()
    output = run.finish(num_processes=3, START="3", **record)
    assert "saved by 1 processes, resumed by 3: the same rows in the same steps" in output
    assert "resumed at step 14 of 24" in output

    steps = read_rows(run)
    assert sorted(steps) == list(range(1, 25))
    assert [len(steps[step]) for step in (1, 5, 6, 14, 15, 24)] == [2, 2, 1, 1, 3, 3]
    for epoch in range(3):
        rows = [row for step in range(STEPS) for part in steps[epoch * STEPS + step + 1] for row in part]
        assert sorted(rows) == list(range(NUM_ROWS)), "each row once an epoch"

    rates = [[row["lr"] for row in each.rows() if "lr" in row] for each in (run, whole)]
    assert rates[0] == rates[1]
    losses = [[row["loss"] for row in each.rows() if "loss" in row] for each in (run, whole)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    one, two = (load_file(each.path / "model" / "model.safetensors") for each in (run, whole))
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=0, atol=1e-5)
