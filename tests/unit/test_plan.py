"""Sections of the config and the functions that plan them have the same names in them."""

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any

import pytest

from trainer_loop.config import fields
from trainer_loop.data.section import DataSection
from trainer_loop.models.adapters import plan_lora, plan_peft
from trainer_loop.models.plan import ModelPlan
from trainer_loop.optim.optimizers import OptimizerPlan
from trainer_loop.optim.schedules import SchedulerPlan
from trainer_loop.tasks.plan import plan_loss, plan_task

# Function, its section, and its further parameters.
PLANS: list[tuple[Callable[..., Any], type, set[str]]] = [
    (plan_task, fields.TaskConfig, {"loss"}),
    (plan_loss, fields.LossConfig, {"default"}),
    (ModelPlan, fields.ModelConfig, {"given", "adapter"}),
    (plan_lora, fields.LoraConfig, set()),
    (plan_peft, fields.PeftConfig, set()),
    (DataSection, fields.DataConfig, {"seed"}),
    (OptimizerPlan, fields.OptimizerConfig, set()),
    (SchedulerPlan, fields.SchedulerConfig, set()),
]


@pytest.mark.parametrize(("plan", "section", "further"), PLANS, ids=[plan.__name__ for plan, _, _ in PLANS])
def test_its_parameters_are_the_keys_of_its_section(plan: Callable[..., Any], section: type, further: set[str]):
    keys = {field.name for field in dataclasses.fields(section)}
    assert set(inspect.signature(plan).parameters) - further == keys
