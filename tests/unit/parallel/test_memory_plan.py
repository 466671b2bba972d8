"""The memory plan of a step, and what a dry run says of it."""

from dataclasses import replace
from pathlib import Path

import pytest
import tiny
import torch

from trainer_loop.memory_report import describe_memory
from trainer_loop.parallel.memory_plan import ModelTensors, count_bytes, offload, plan_full, plan_whole, plan_zero2
from trainer_loop.parallel.plan import ShardingPlan
from trainer_loop.parallel.processes import make_accelerator
from trainer_loop.runtime.outline import outline_model
from trainer_loop.tasks.sequence_classification import SequenceClassification

TWO_LAYERS = [[torch.nn.Parameter(torch.empty(8, 10))], [torch.nn.Parameter(torch.empty(8, 5))]]
REST = [torch.nn.Parameter(torch.empty(3, 10)), torch.nn.Parameter(torch.empty(7), requires_grad=False)]
HELD = ModelTensors(TWO_LAYERS, REST, [torch.empty(8, 10), torch.tensor(0.0)], [])
SHARDED = {"num_parts": 2, "reduce_dtype": torch.float32}


def test_a_part_has_the_rows_of_process_0():
    assert count_bytes([torch.empty(3, 10)], 2) == 2 * 10 * 4
    assert count_bytes([torch.empty(3, 10)], 2, padded=True) == 4 * 10 * 4
    assert count_bytes([torch.empty(1)], 8) == 4
    assert count_bytes([torch.tensor(0.0)], 8) == 4
    assert count_bytes([torch.empty(3, 10)], 2, dtype=torch.bfloat16) == 2 * 10 * 2


@pytest.mark.parametrize("accumulates", [True, False])
def test_without_shards_gradients_that_are_added_up_lie_beside_the_buckets(accumulates: bool):
    gradients = (80 + 40 + 30) * 4
    kept = gradients + 7 * 4 + 80 * 4 + 4
    alone, two = (
        replace(plan_whole(HELD, num_processes=count, accumulates=accumulates), activations=10_000) for count in (1, 2)
    )
    assert alone.peak == kept + 10_000 + accumulates * gradients
    assert two.peak == alone.peak + gradients


def test_zero2_has_whole_weights_and_gradients_in_a_step():
    plan = replace(plan_zero2(HELD, accumulates=True, **SHARDED), activations=10_000)
    assert (plan.weights, plan.gradients, plan.optimizer) == ((40 + 20 + 20 + 4) * 4, (40 + 20 + 20) * 4, 41 * 4)
    assert plan.gathered == (80 + 40 + 40 + 8) * 4
    assert plan.waiting == (80 + 40 + 30) * 4
    assert plan.peak == plan.weights + plan.optimizer + plan.gathered + plan.waiting + 10_000


def test_full_has_the_weights_of_two_layers_and_the_rest():
    plan = plan_full(HELD, accumulates=True, cast_to=torch.bfloat16, **SHARDED)
    assert plan.gathered == (2 * 80 + 40 + 8) * 2
    assert plan.waiting == plan.gradients == (40 + 20 + 20) * 4


def test_full_may_keep_whole_gradients_until_the_end_of_a_step():
    plan = plan_full(HELD, accumulates=True, cast_to=torch.bfloat16, keeps_gradients=True, **SHARDED)
    assert plan.waiting == (80 + 40 + 30) * 4
    assert plan.gradients == (40 + 20 + 20) * 4


@pytest.mark.parametrize("keeps_gradients", [True, False])
def test_what_is_kept_moves_to_host_memory(keeps_gradients: bool):
    on_device = plan_full(HELD, accumulates=True, cast_to=None, keeps_gradients=keeps_gradients, **SHARDED)
    on_device = replace(on_device, activations=10_000, update=40)
    plan = offload(on_device, keeps_gradients=keeps_gradients)
    kept = on_device.weights + (on_device.optimizer or 0) + on_device.gradients
    assert plan.host == kept + 40  # the update makes something there too
    waiting = (80 + 40 + 30) * 4 if keeps_gradients else 0
    assert plan.peak == waiting + on_device.gathered + 10_000


# ------------------------------------------------------------------------------------------------------ in a dry run


def describe(
    directory: Path, task: SequenceClassification, *, precision: str = "no", hidden_size: int = 16
) -> list[str]:
    model = tiny.make_bert(hidden_size=hidden_size)
    outline = outline_model(model, torch.device("cpu"))
    outline.optimizer = torch.optim.AdamW(outline.model.parameters())
    accelerator = make_accelerator(precision=precision)
    loop = tiny.make_loop(
        directory, rows=tiny.make_rows(32), task=task, model=model, num_steps=1, accelerator=accelerator
    )
    return describe_memory(loop, outline, ShardingPlan())


def test_a_dry_run_shows_each_way_to_spread_the_model(tmp_path: Path):
    title, header, below, *table = describe(tmp_path, SequenceClassification())
    assert title == "memory of a process, with a microbatch of 8 rows, 192 tokens with padding:"
    assert header.split() == ["MB", "none", "zero2", "full", "full"]
    assert below.split("  ")[-2:] == ["8 processes", "offload=weights"]
    assert [line.split("  ")[1] for line in table] == [
        *("weights", "optimizer state", "gradients", "gathered weights", "activations", "exchange buffers"),
        *("at once, at most", "host memory"),
    ]


def test_weights_that_are_gathered_in_bf16_are_kept_in_fp32(tmp_path: Path):
    rows = describe(tmp_path, SequenceClassification(), precision="bf16", hidden_size=128)
    kept = {line.split("  ")[1]: line.split()[-4:] for line in rows[3:]}
    assert kept["weights"][1] == kept["weights"][2] != "0.00"
    assert float(kept["gathered weights"][2]) < float(kept["gathered weights"][1])


def test_what_cannot_run_without_numbers_is_unknown_with_the_reason(tmp_path: Path):
    class Curious(SequenceClassification):
        def loss(self, model, batch):
            loss = super().loss(model, batch)
            return loss if loss.item() > 0 else -loss

    lines = describe(tmp_path, Curious())
    (row,) = (line for line in lines if line.startswith("  activations"))
    assert row.split()[1:] == ["unknown"] * 4
    (told,) = (line for line in lines if line.startswith("activations unknown"))
    assert "DataDependentOutputException" in told
