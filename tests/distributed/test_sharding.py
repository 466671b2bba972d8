"""Law 1 for sharded models: the update is that of one process."""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from scenarios import Outcome, Scenario, run_alone, run_in_group

from trainer_loop.memory_report import collect_tensors
from trainer_loop.parallel.memory_plan import plan_full, plan_zero2
from trainer_loop.runtime.outline import measure_update, outline_model

BASE = Scenario(batch_size=16, longest=60, num_steps=6, num_validation_rows=21, evaluation_per_device=2, max_tokens=128)
CASES = {
    "classification": BASE,
    "float32, SGD": replace(BASE, dtype="float32", optimizer="sgd", lr=0.1),
    "causal LM": replace(BASE, task="causal_lm"),
    "Llama": replace(BASE, task="causal_lm", model="llama"),
    "Llama, tied embeddings": replace(BASE, task="causal_lm", model="tied llama"),
    "one microbatch": replace(BASE, max_tokens=None),
    "idle": replace(BASE, num_rows=49),
    "no targets": replace(BASE, task="causal_lm", num_rows=20, batch_size=2, num_steps=20, blank_every=2),
    "gradient checkpointing": replace(BASE, gradient_checkpointing=True),
    "frozen, clipped by value": replace(BASE, frozen_steps=3, max_grad_value=0.01),
    "weighted": replace(BASE, weighted=True),
    "packed": replace(BASE, packed=True),
    "LoRA": replace(BASE, lora=True),
    "streamed": replace(BASE, num_rows=49, streamed=True),
    "EMA": replace(BASE, ema=0.5),
    "parameters that some rows use": replace(BASE, sparing=True, max_tokens=64, num_rows=49, num_validation_rows=0),
}
SHARDS = ("zero2", "full")
IN_COPIES = ("classification", "idle", "streamed", "no targets", "packed", "EMA")  # on two copies of two parts each
# make test has all cases in full and these; make test-slow has the others too, two minutes of processor time.
IN_ZERO2 = ("classification", "one microbatch", "idle", "no targets", "frozen, clipped by value", "EMA")
QUICK = {(case, "full") for case in CASES} | {(case, "zero2") for case in IN_ZERO2}
QUICK_IN_COPIES = {("classification", "full"), ("idle", "full"), ("no targets", "zero2"), ("EMA", "full")}
WAITING = {  # gradients until the end of a step, or what a process keeps in host memory
    "whole gradients": replace(BASE, shard="full", exchange="step"),
    "whole gradients, idle": replace(CASES["idle"], shard="full", exchange="step"),
    "whole gradients, EMA, offloaded": replace(CASES["EMA"], shard="full", exchange="step", offload="weights"),
    "zero2, offloaded": replace(BASE, shard="zero2", offload="weights"),
    "full, offloaded": replace(CASES["frozen, clipped by value"], shard="full", offload="weights"),
}
TIGHT = {place: replace(BASE, tight=place) for place in ("forward", "backward")}
IN_BF16 = replace(BASE, dtype="float32", precision="bf16")
BF16_ONCE = replace(IN_BF16, shard="full", exchange="step")
SPARING_IN_BF16 = replace(CASES["parameters that some rows use"], dtype="float32", precision="bf16")
IN_FP16 = replace(BASE, dtype="float32", precision="fp16", loss_scale=2.0**22, num_steps=10, num_validation_rows=0)


TIGHT_IN_COPIES = {  # copies exchange gradients in the last microbatch of a step
    "zero2": replace(TIGHT["backward"], shard="zero2", replicas=2),
    "whole gradients": replace(TIGHT["backward"], shard="full", replicas=2, exchange="step"),
}


def shard(scenario: Scenario, how: str, *, replicas: int = 1) -> Scenario:
    return replace(scenario, shard=how, replicas=replicas)


@pytest.fixture(scope="session")
def on_two(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Outcome]:
    scenarios = [shard(CASES[case], how) for case, how in sorted(QUICK)]
    scenarios += [shard(case, how) for case in TIGHT.values() for how in SHARDS]
    scenarios += [shard(IN_BF16, how) for how in ("none", *SHARDS)] + [BF16_ONCE]
    scenarios += [shard(SPARING_IN_BF16, "none"), replace(shard(SPARING_IN_BF16, "full"), exchange="step")]
    scenarios += WAITING.values()
    scenarios += [shard(IN_FP16, how) for how in ("none", *SHARDS)]
    return run_in_group(scenarios, tmp_path_factory.mktemp("sharded"))


@pytest.fixture(scope="session")
def on_four(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Outcome]:
    scenarios = [shard(CASES[case], how, replicas=2) for case, how in sorted(QUICK_IN_COPIES)]
    scenarios += [shard(TIGHT["backward"], "full", replicas=2), *TIGHT_IN_COPIES.values()]
    return run_in_group(scenarios, tmp_path_factory.mktemp("copies"), num_processes=4)


def list_cells(cases: Iterable[str], quick: set[tuple[str, str]]) -> list[Any]:
    cells = [(case, how) for case in cases for how in SHARDS]
    return [pytest.param(*cell, marks=() if cell in quick else pytest.mark.slow) for cell in cells]


def find_outcome(scenario: Scenario, known: dict[str, Outcome], directory: Path, *, num_processes: int) -> Outcome:
    if scenario.name not in known:
        known = run_in_group([scenario], directory, num_processes=num_processes)
    return known[scenario.name]


@pytest.mark.parametrize(("case", "how"), list_cells(CASES, QUICK))
def test_two_processes_make_the_updates_of_one(case: str, how: str, on_two: dict[str, Outcome], tmp_path: Path):
    other = find_outcome(shard(CASES[case], how), on_two, tmp_path, num_processes=2)
    assert_equal(run_alone(CASES[case]), other)


@pytest.mark.parametrize(("case", "how"), list_cells(IN_COPIES, QUICK_IN_COPIES))
def test_two_copies_of_a_sharded_model_make_the_updates_of_one_process(
    case: str, how: str, on_four: dict[str, Outcome], tmp_path: Path
):
    other = find_outcome(shard(CASES[case], how, replicas=2), on_four, tmp_path, num_processes=4)
    assert_equal(run_alone(CASES[case]), other)


@pytest.mark.parametrize("case", WAITING)
def test_the_update_does_not_depend_on_where_and_how_long_gradients_wait(case: str, on_two: dict[str, Outcome]):
    alone = replace(WAITING[case], shard="none", exchange="microbatch", offload="none")
    assert_equal(run_alone(alone), on_two[WAITING[case].name])


@pytest.mark.parametrize("how", SHARDS)
@pytest.mark.parametrize("place", TIGHT)
def test_all_cut_smaller_before_the_first_step_where_one_runs_out_of_memory(
    place: str, how: str, on_two: dict[str, Outcome]
):
    outcome = on_two[shard(TIGHT[place], how).name]
    assert sum(map(sum, outcome.microbatches)) > sum(map(sum, on_two[shard(BASE, how).name].microbatches))
    assert_equal(run_alone(BASE), outcome)


def test_copies_of_a_sharded_model_cut_smaller_too(on_four: dict[str, Outcome]):
    alone = run_alone(BASE)
    for case in (shard(TIGHT["backward"], "full", replicas=2), *TIGHT_IN_COPIES.values()):
        assert_equal(alone, on_four[case.name])


def assert_equal(one: Outcome, other: Outcome) -> None:
    close = {"rtol": 1e-6, "atol": 1e-6}
    torch.testing.assert_close(torch.tensor(other.losses), torch.tensor(one.losses), **close)
    torch.testing.assert_close(torch.tensor(other.grad_norms), torch.tensor(one.grad_norms), **close)
    torch.testing.assert_close(other.weights, one.weights, **close)
    assert other.evaluation == pytest.approx(one.evaluation, rel=1e-6)


@pytest.mark.parametrize("how", SHARDS)
def test_the_memory_plan_is_what_process_0_holds(how: str, on_two: dict[str, Outcome]):
    outline = outline_model(tiny.make_bert().double(), torch.device("cpu"))
    outline.optimizer = torch.optim.AdamW(outline.model.parameters())
    measure_update(outline)
    options = {"num_parts": 2, "accumulates": True, "reduce_dtype": torch.float32}
    held = collect_tensors(outline)
    plan = plan_zero2(held, **options) if how == "zero2" else plan_full(held, **options, cast_to=None)
    assert [plan.weights, plan.gradients, plan.optimizer] == on_two[shard(BASE, how).name].memory


def test_in_bf16_the_weights_stay_in_float32_and_no_gradient_is_lost(on_two: dict[str, Outcome]):
    """Casts of weights that outlive a microbatch would lose gradients of the last one: biases learn first of all."""
    plain, zero2, full = (on_two[shard(IN_BF16, how).name] for how in ("none", *SHARDS))
    assert max(plain.microbatches[0]) > 1
    assert torch.equal(zero2.weights, plain.weights)
    assert zero2.losses == plain.losses
    assert full.losses == pytest.approx(plain.losses, rel=1e-3)  # weights are rounded before they are gathered
    assert full.losses != plain.losses
    once = on_two[BF16_ONCE.name]
    assert once.losses == pytest.approx(full.losses, rel=1e-5)  # gradients that wait are added up in float32
    for outcome in (plain, zero2, full, once):
        assert (outcome.weights.bfloat16().double() - outcome.weights).abs().max() > 1e-6


def test_gradients_that_first_come_in_the_last_microbatch_join_those_that_wait_in_float32(on_two: dict[str, Outcome]):
    plain, full = on_two[SPARING_IN_BF16.name], on_two[replace(SPARING_IN_BF16, shard="full", exchange="step").name]
    assert full.losses == pytest.approx(plain.losses, rel=1e-3)
    assert full.grad_norms == pytest.approx(plain.grad_norms, rel=1e-2)


def test_in_fp16_all_parts_skip_the_updates_in_which_a_gradient_overflows_anywhere(on_two: dict[str, Outcome]):
    plain, zero2, full = (on_two[shard(IN_FP16, how).name] for how in ("none", *SHARDS))
    assert 0 < plain.num_updates < IN_FP16.num_steps
    assert zero2.num_updates == full.num_updates == plain.num_updates
    assert torch.equal(zero2.weights, plain.weights)
    assert full.losses == pytest.approx(plain.losses, rel=1e-3)
