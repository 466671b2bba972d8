"""A compiled model learns what the same model learns uncompiled."""

from dataclasses import replace
from pathlib import Path

import pytest
import tiny
import torch
from scenarios import Outcome, Scenario, run_here, run_in_group

from trainer_loop import UserError
from trainer_loop.runtime.compiler import check_compiler, compile_model

# 49 rows in batches of 16 leave one: in that step the second process has none, and runs a dummy microbatch.
BASE = Scenario(
    dtype="float32", optimizer="sgd", lr=0.1, num_rows=49, batch_size=16, num_steps=4, max_tokens=128, longest=60
)
CASES = {
    "classification": replace(BASE, num_validation_rows=13),
    "causal LM": replace(BASE, task="causal_lm", num_validation_rows=13),
    "causal LM, gradient checkpointing": replace(BASE, task="causal_lm", gradient_checkpointing=True),
}
IN_BF16 = replace(BASE, task="causal_lm", precision="bf16")
SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in CASES]
ON_TWO = (SLOW[0], SLOW[-1])
SHARDED = {"full": "causal LM, gradient checkpointing", "zero2": "classification"}
BACKEND = "aot_eager"  # everything of torch.compile but the code of the kernels, which takes minutes to make


def compiled(scenario: Scenario) -> Scenario:
    return replace(scenario, backend=BACKEND)


def assert_close(one: Outcome, other: Outcome, *, tolerance: float) -> None:
    torch.testing.assert_close(torch.tensor(other.losses), torch.tensor(one.losses), rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(other.weights, one.weights, rtol=0, atol=tolerance)
    assert other.evaluation == pytest.approx(one.evaluation, abs=tolerance)


@pytest.mark.usefixtures("own_dynamo")
@pytest.mark.parametrize("case", SLOW)
def test_on_one_process(case: str, tmp_path: Path):
    scenario = CASES[case]
    assert_close(run_here(scenario, tmp_path), run_here(compiled(scenario), tmp_path), tolerance=1e-5)


@pytest.mark.parametrize("case", ON_TWO)
def test_on_two_processes(case: str, tmp_path: Path):
    scenario = CASES[case]
    outcome = run_in_group([compiled(scenario)], tmp_path)[compiled(scenario).name]
    assert [process[3] for process in outcome.microbatches] == [1, 0]
    assert_close(run_here(scenario, tmp_path), outcome, tolerance=1e-5)


@pytest.mark.slow
def test_layers_of_sharded_models(tmp_path: Path):
    """Two kinds of layers need up to eight graphs each, as a model does, not one for each shape and layer."""
    group = run_in_group([replace(compiled(CASES[case]), shard=how) for how, case in SHARDED.items()], tmp_path)
    for how, case in SHARDED.items():
        outcome = group[replace(compiled(CASES[case]), shard=how).name]
        assert 0 < outcome.num_graphs <= 16
        assert_close(run_here(CASES[case], tmp_path), outcome, tolerance=1e-5)


@pytest.mark.slow
@pytest.mark.usefixtures("own_dynamo")
def test_in_bf16(tmp_path: Path):
    assert_close(run_here(IN_BF16, tmp_path), run_here(compiled(IN_BF16), tmp_path), tolerance=5e-3)


@pytest.mark.usefixtures("own_dynamo")
def test_a_resumed_run_ends_where_the_other_did(tmp_path: Path):
    def run(directory: Path, **options) -> torch.Tensor:
        torch._dynamo.reset()  # as in a new process
        model = tiny.make_bert(dropout=0.1)
        compile_model(model, backend=BACKEND)
        loop = tiny.make_loop(
            directory,
            rows=tiny.make_rows(40),
            task=tiny.make_task("sequence_classification"),
            model=model,
            num_steps=6,
            optimizer="adamw",
            lr=0.01,
            checkpoint_every=3,
            **options,
        )
        assert loop.fit().step == 6
        return torch.cat([parameter.detach().flatten() for parameter in loop.bare_model.parameters()])

    whole = run(tmp_path / "whole")
    checkpoint = tmp_path / "whole" / "checkpoints" / "step-00000003"
    assert torch.equal(run(tmp_path / "resumed", resume=str(checkpoint)), whole)


@pytest.mark.slow
@pytest.mark.usefixtures("own_dynamo")
def test_with_kernels_that_are_made_on_the_spot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    try:
        check_compiler("cpu")
    except UserError as error:
        pytest.skip(str(error))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "kernels"))
    scenario = replace(BASE, num_steps=3, shortest=10, max_tokens=256)  # no microbatch of one row: one graph
    kernels = run_here(replace(scenario, backend="inductor"), tmp_path)
    assert_close(run_here(scenario, tmp_path), kernels, tolerance=1e-5)
