"""Out of memory in a step: the step is repeated with smaller microbatches, and nothing else changes.

A loss or gradient that is not finite ends the run, or the step is skipped and counted, on all processes.
"""

import json
from pathlib import Path

import pytest
import torch
from harness import NO_DROPOUT, Bench, Run, assert_same
from made_up import make_reviews, write_csv
from safetensors.torch import load_file

# float32 and SGD: with Adam, the rounding error of a zero gradient would become a full step.
EXACT = (NO_DROPOUT, "optimizer={name: sgd, lr: 0.1}", "checkpoint.best=null", "evaluate.every=never")
LAB = """
import os
import torch
from trainer_loop.tasks.sequence_classification import SequenceClassification

class Task(SequenceClassification):
    '''Runs out of memory with more than `rows` rows in a training microbatch, on process `rank` (None: on all), but
    for its first few; before its forward pass, or after it. With any number after its `last` call.
    The loss is no number for the text with a word that the tokenizer does not know.'''

    def __init__(self, rows=None, rank=None, first=0, late=False, last=None):
        super().__init__()
        self.rows, self.rank, self.first, self.late, self.last = rows, rank, first, late, last

    def loss(self, model, batch):
        self.first -= 1
        mine = self.rank in (None, int(os.environ.get("RANK", 0))) and self.first < 0
        too_many = self.rows is not None and mine and len(batch["labels"]) > self.rows
        too_many = too_many or (self.last is not None and mine and -self.first > self.last)
        if too_many and not self.late:
            raise torch.OutOfMemoryError("made up")
        loss = super().loss(model, batch)
        if too_many:
            raise torch.OutOfMemoryError("made up")
        odd = (batch["input_ids"] == self.tokenizer.unk_token_id).any()
        return loss * float("nan") if odd else loss
"""


def make_run(bench: Bench, directory: Path, *options: str, num_processes: int = 1, **arguments: int) -> Run:
    run = bench.run(directory, *EXACT, *options, num_processes=num_processes)
    (directory / "lab.py").write_text(LAB)
    run.arguments += (f"task={{name: lab.Task, args: {json.dumps(arguments)}}}",)
    return run


def halvings(output: str) -> list[int]:
    """Return the reduced budgets of padded tokens that the run reports."""
    lines = [line for line in output.splitlines() if "ran out of memory" in line]
    return [int(line.partition("at most ")[2].partition(" ")[0].replace(",", "")) for line in lines]


def assert_close(run: Run, other: Run, *, atol: float = 1e-6) -> None:
    one, two = (load_file(each.path / "model" / "model.safetensors") for each in (run, other))
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=0, atol=atol)
    for row, same in zip(run.rows(), other.rows(), strict=True):
        if "loss" in row:
            assert same["loss"] == pytest.approx(row["loss"], abs=1e-6)


@pytest.mark.parametrize(
    ("num_processes", "budget", "arguments"),
    [
        (1, "null", {"rows": 2}),
        (2, "null", {"rows": 1, "rank": 1}),
        (2, "null", {"rows": 1, "rank": 0, "late": True}),
        # In the second step, after a microbatch that fits: there are gradients when memory runs out.
        (1, "40", {"rows": 2, "first": 4}),
        (2, "40", {"rows": 2, "rank": 1, "late": True}),
    ],
)
def test_the_step_is_repeated_as_with_a_small_budget(num_processes, budget, arguments, bench, tmp_path):
    run = make_run(bench, tmp_path / "big", f"batch.max_tokens={budget}", num_processes=num_processes, **arguments)
    output = run.finish()
    budgets = halvings(output)
    assert budgets
    assert budgets == sorted(set(budgets), reverse=True), "each is reported once"

    small = make_run(bench, tmp_path / "small", f"batch.max_tokens={budgets[-1]}", num_processes=num_processes)
    assert not halvings(small.finish())
    assert_close(run, small)


@pytest.mark.parametrize("num_processes", [1, 2])
def test_a_resumed_run_starts_with_the_smaller_budget(num_processes, bench, tmp_path):
    def make(name: str) -> Run:
        return make_run(bench, tmp_path / name, "batch.max_tokens=null", num_processes=num_processes, rows=2)

    whole, run = make("whole"), make("run")
    budgets = halvings(whole.finish())
    run.kill_at("step:15")
    budget = json.loads((run.path / "checkpoints" / "latest" / "state.json").read_text())["max_tokens"]
    output = run.finish()
    assert f"microbatches of at most {budget} padded tokens, since more did not fit" in output
    assert budgets[budgets.index(budget) + 1 :] == halvings(output), "only later ones are reported again"
    assert_same(run, whole.remember())


def test_rows_that_do_not_fit_alone_end_the_run(bench, tmp_path):
    run = make_run(bench, tmp_path, rows=0)
    (ended,) = run.run()
    assert ended.code == 2, ended.describe()
    (line,) = ended.err.splitlines()
    assert line.startswith("error: step 1: out of memory with one row a microbatch")


def test_a_process_on_which_not_even_one_row_fits_ends_with_the_remedy(bench, tmp_path):
    """The process fails in the dummy microbatch with which it joins the reduction of the others."""
    run = make_run(bench, tmp_path, num_processes=2, rows=0, rank=1)
    first, second = run.run()
    assert second.code == 2, second.describe()
    lines = [line for line in second.err.splitlines() if "error: " in line]
    assert len(lines) == 1
    assert "error: step 1: process 1 ran out of memory with one row, the shortest of the step; lower" in lines[0]
    assert "Traceback" not in second.err
    assert first.code in (2, 4), first.describe()


def test_a_sharded_run_tests_the_largest_microbatch_first_and_a_later_failure_ends_all_processes(bench, tmp_path):
    options = ("batch.max_tokens=null", "parallel.shard=full", "log.every=1")
    run = make_run(bench, tmp_path, *options, num_processes=2, rows=2, rank=1, last=30)
    ended = run.run()
    cuts = [line for line in ended[0].warnings if "the largest microbatch, do not fit into memory" in line]
    assert cuts
    assert run.rows(), ended[0].describe()
    for process in ended:
        assert process.code == 2, process.describe()
        (problem,) = process.problems
        assert "process 1 ran out of memory while the processes exchanged" in problem
        assert "set a smaller batch.max_tokens" in problem


@pytest.fixture(scope="module")
def odd_reviews(bench: Bench, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Reviews, of which one has a word that the tokenizer does not know."""
    rows = make_reviews(61)
    rows[30] = (f"{rows[30][0]} q", rows[30][1])
    return write_csv(tmp_path_factory.mktemp("odd") / "train.csv", rows)


@pytest.mark.parametrize("num_processes", [1, 2])
def test_a_loss_that_is_not_finite_is_skipped_and_counted(num_processes, odd_reviews, bench, tmp_path):
    """Once in each of two epochs, on the process that has the row."""
    options = (f"data.train={odd_reviews}", "train.on_nonfinite=skip")
    run = make_run(bench, tmp_path / "whole", *options, num_processes=num_processes)
    output = run.finish()
    assert "warning: 2 steps were not finite and were skipped" in output
    assert [row["skipped_steps"] for row in run.rows() if "skipped_steps" in row] == [1, 1]
    weights = load_file(run.path / "model" / "model.safetensors")
    assert all(tensor.isfinite().all() for tensor in weights.values())

    killed = make_run(bench, tmp_path / "killed", *options, num_processes=num_processes)
    killed.kill_at("step:16")
    assert "warning: 2 steps were not finite and were skipped" in killed.finish()
    assert_same(killed, run.remember())


@pytest.mark.parametrize("num_processes", [1, 2])
def test_a_loss_that_is_not_finite_ends_the_run_and_leaves_the_checkpoints(num_processes, odd_reviews, bench, tmp_path):
    run = make_run(bench, tmp_path, f"data.train={odd_reviews}", num_processes=num_processes)
    ended = run.run()
    assert [process.code for process in ended] == [3] * num_processes, ended[0].describe()
    (problem,) = ended[0].problems
    step = int(problem.partition("step ")[2].partition(":")[0])
    assert "loss nan" in problem
    assert "train.csv row 31" in problem
    assert json.loads((run.path / "status.json").read_text())["ended"] == "diverged"
    run.check()
    assert max(run.checkpoints(), default=0) < step
