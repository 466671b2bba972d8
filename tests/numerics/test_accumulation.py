"""Law 1 for every kind of model in docs/parity.md: the gradient of one update does not depend on its microbatches."""

import functools
import json
import os
from pathlib import Path

import fork_server
import pytest
import torch
from scenarios import make_ranks

from benchmarks.parity_models import MODELS, make_rows
from benchmarks.parity_sides import ROWS, ROWS_TOGETHER, Gradient, compare_gradients, make_plan, measure_ours

ROOT = Path(__file__).parents[2]
CUTS = {"as many rows in each": {"per_device": ROWS_TOGETHER}, "a budget of tokens": {"max_tokens": 90}}


@functools.cache
def in_one_microbatch(name: str) -> Gradient:
    return measure_ours(name)


def assert_equal(gradient: Gradient, whole: Gradient) -> None:
    compared = compare_gradients(gradient, whole)
    assert compared["norm_ratio"] == pytest.approx(1, abs=1e-6)
    assert compared["difference"] <= 1e-6


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("name", MODELS)
def test_the_gradient_of_four_microbatches_is_that_of_one(name: str, cut: str):
    assert_equal(measure_ours(name, **CUTS[cut]), in_one_microbatch(name))


def test_the_cuts_are_those_that_were_meant():
    rows = make_rows(ROWS, labelled=True)
    sizes = {cut: [len(rows) for rows in make_plan(rows, **CUTS[cut]).step(0).microbatches[0]] for cut in CUTS}
    assert sizes == {"as many rows in each": [4, 4, 4, 4], "a budget of tokens": [4, 3, 5, 4]}
    assert [len(rows) for rows in make_plan(rows).step(0).microbatches[0]] == [ROWS]


def test_the_gradient_of_two_processes_is_that_of_one(tmp_path: Path):
    script, result, output = tmp_path / "measure.py", tmp_path / "result.json", tmp_path / "output.txt"
    script.write_text(
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\nfrom benchmarks.fresh_process import main; main()\n"
    )
    call = ["benchmarks.parity_sides:measure_in_group", json.dumps({"names": list(MODELS), "num_processes": 2})]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    with output.open("w") as told:
        processes = [
            fork_server.start([str(script), *call, str(result)], cwd=tmp_path, env=env | rank, stdout=told, stderr=told)
            for rank in make_ranks(2)
        ]
    assert [process.wait(300) for process in processes] == [0, 0], output.read_text()
    measured = json.loads(result.read_text())
    assert list(measured) == list(MODELS)
    for name, gradient in measured.items():
        whole = in_one_microbatch(name)
        flat = {weight: torch.tensor(values, dtype=torch.float64) for weight, values in gradient.items()}
        assert_equal(flat, {weight: values.flatten() for weight, values in whole.items()})


def test_a_gradient_that_is_off_is_found():
    whole = in_one_microbatch("BERT")
    name = max(whole, key=lambda weight: float(whole[weight].norm()))
    assert compare_gradients({weight: 4 * values for weight, values in whole.items()}, whole) == {
        "norm_ratio": pytest.approx(4),
        "difference": pytest.approx(3),
    }
    assert compare_gradients({**whole, name: whole[name] * 1.001}, whole)["difference"] == pytest.approx(1e-3)
