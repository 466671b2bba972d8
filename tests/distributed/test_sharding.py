"""Law 1 for sharded models: the update is that of one process."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from scenarios import Outcome, Scenario, run_here, run_in_group

BASE = Scenario(batch_size=16, longest=60, num_steps=6, num_validation_rows=21, evaluation_per_device=2, max_tokens=128)
CASES = {
    "classification": BASE,
    "float32, SGD": replace(BASE, dtype="float32", optimizer="sgd", lr=0.1),
    "causal LM": replace(BASE, task="causal_lm"),
    "one microbatch": replace(BASE, max_tokens=None),
    "idle": replace(BASE, num_rows=49),
    "no targets": replace(BASE, task="causal_lm", num_rows=20, batch_size=2, num_steps=20, blank_every=2),
    "gradient checkpointing": replace(BASE, gradient_checkpointing=True),
    "frozen, clipped by value": replace(BASE, frozen_steps=3, max_grad_value=0.01),
    "weighted": replace(BASE, weighted=True),
    "packed": replace(BASE, packed=True),
    "LoRA": replace(BASE, lora=True),
    "EMA": replace(BASE, ema=0.5),
}
SHARDS = ("zero2", "full")


def shard(scenario: Scenario, how: str, *, replicas: int = 1) -> Scenario:
    return replace(scenario, shard=how, replicas=replicas)


@pytest.fixture(scope="session")
def on_two(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Outcome]:
    scenarios = [shard(case, how) for case in CASES.values() for how in SHARDS]
    return run_in_group(scenarios, tmp_path_factory.mktemp("sharded"))


@pytest.mark.parametrize("how", SHARDS)
@pytest.mark.parametrize("case", CASES)
def test_two_processes_make_the_updates_of_one(case: str, how: str, on_two: dict[str, Outcome], tmp_path: Path):
    one, two = run_here(CASES[case], tmp_path), on_two[shard(CASES[case], how).name]
    close = {"rtol": 1e-6, "atol": 1e-6}
    torch.testing.assert_close(torch.tensor(two.losses), torch.tensor(one.losses), **close)
    torch.testing.assert_close(torch.tensor(two.grad_norms), torch.tensor(one.grad_norms), **close)
    torch.testing.assert_close(two.weights, one.weights, **close)
    assert two.evaluation == pytest.approx(one.evaluation, rel=1e-6)
