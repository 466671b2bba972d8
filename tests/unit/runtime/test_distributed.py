import pytest
import torch

from trainer_loop import UserError
from trainer_loop.parallel import processes as distributed
from trainer_loop.parallel.processes import choose_precision, make_accelerator


@pytest.mark.parametrize(
    ("capabilities", "chosen"),
    [({"amx_bf16": True}, "bf16"), ({"avx512_bf16": True}, "bf16"), ({"avx2": True}, "no"), ({}, "no")],
)
def test_on_a_cpu_auto_is_bf16_where_the_hardware_multiplies_it(monkeypatch, capabilities, chosen):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert choose_precision("auto") == chosen
    assert choose_precision("bf16") == "bf16"  # asked for by name, it is emulated


@pytest.mark.parametrize(
    ("capability", "chosen"), [((9, 0), "bf16"), ((8, 0), "bf16"), ((7, 5), "fp16"), ((6, 1), "no")]
)
def test_on_a_gpu_auto_is_what_its_generation_does_best(monkeypatch, capability, chosen):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    assert choose_precision("auto") == chosen


def test_what_the_hardware_cannot_do_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="fp16 needs a GPU"):
        choose_precision("fp16")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: False)
    with pytest.raises(UserError, match="no bf16"):
        choose_precision("bf16")


def test_a_launchers_accumulation_does_not_divide_the_loss_again(monkeypatch):
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    accelerator = make_accelerator(precision="no")
    assert accelerator.gradient_accumulation_steps == 1
    assert accelerator.mixed_precision == "no"
    weight = torch.ones(1, requires_grad=True)
    accelerator.backward(3 * weight.sum())
    assert weight.grad.item() == 3.0


def test_a_sum_over_one_process_is_the_value_itself():
    assert distributed.sum_on_hosts(make_accelerator(precision="no"), [1.0, 2.0]) == [1.0, 2.0]


@pytest.mark.parametrize(("tf32", "chosen"), [(True, "high"), (False, "highest")])
def test_on_a_gpu_products_in_fp32_are_as_exact_as_was_asked(monkeypatch, tf32, chosen):
    asked = []
    monkeypatch.setattr(torch, "set_float32_matmul_precision", asked.append)
    make_accelerator(precision="no", tf32=tf32)
    assert asked == []  # no GPU: nothing to choose
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    make_accelerator(precision="no", tf32=tf32)
    assert asked == [chosen]
