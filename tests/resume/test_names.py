"""Every optimizer and every schedule: a killed run resumes bit for bit."""

from itertools import cycle, islice

import pytest
from harness import assert_same

from trainer_loop.optim.optimizers import OPTIMIZERS
from trainer_loop.optim.schedules import SCHEDULES

ARGUMENTS = {
    "warmup_stable_decay": "num_decay_steps: 4",
    "cosine_with_min_lr": "min_lr_rate: 0.1",
    "cosine_warmup_with_min_lr": "min_lr_rate: 0.1",
    "one_cycle": "cycle_momentum: false",
    "reduce_lr_on_plateau": "patience: 0",
    "greedy": "patience: 0, min_lr: 1e-6, max_lr: 1e-1",
}
RATES = {"lion": "1e-3", "sgd": "1e-1", "muon": "1e-2"}
# Pairs with each name of the longer list once and each name of the shorter list at least once.
PAIRS = list(islice(zip(cycle(OPTIMIZERS), cycle(SCHEDULES), strict=False), max(len(OPTIMIZERS), len(SCHEDULES))))


# On two processes, `make test` runs these optimizers, because they are implemented here; `make test-slow` runs all.
OWN_OPTIMIZERS = ("muon", "schedule_free_adamw")
CASES = [(*pair, 1) for pair in PAIRS] + [
    pytest.param(*pair, 2, marks=[] if pair[0] in OWN_OPTIMIZERS else [pytest.mark.slow]) for pair in PAIRS
]


@pytest.mark.parametrize(("optimizer", "schedule", "num_processes"), CASES)
def test_killed_and_resumed_with(optimizer, schedule, num_processes, bench, tmp_path):
    options = (
        f"optimizer={{name: {optimizer}, lr: {RATES.get(optimizer, '1e-2')}, weight_decay: 0.01}}",
        f"scheduler={{name: {schedule}, args: {{{ARGUMENTS.get(schedule, '')}}}}}",
    )
    whole = bench.whole(*options, num_processes=num_processes)
    losses = [row["loss"] for row in whole.rows if "lr" in row]
    assert len(losses) > 3
    assert len(set(losses)) == len(losses), "nothing was learnt"
    run = bench.run(tmp_path, *options, num_processes=num_processes)
    run.kill_at("step:9")
    output = run.finish()
    assert "resumed at step 8" in output
    assert_same(run, whole)
