"""Describes a run before it starts, in lines for the console."""

import numpy as np
import torch

from trainer_loop.components import fingerprint_own, locate
from trainer_loop.config.fields import Config
from trainer_loop.config.load import values_of
from trainer_loop.data.loader import StepLoader, TrainLoader
from trainer_loop.data.stream_loader import StreamLoader
from trainer_loop.data.stream_rows import MixedStream
from trainer_loop.loop import TrainingLoop
from trainer_loop.memory_report import count_flops_per_token, describe_memory
from trainer_loop.models.loading import count_weights
from trainer_loop.optim.groups import describe_groups
from trainer_loop.optim.schedules import SchedulerPlan
from trainer_loop.parallel.plan import ShardingPlan
from trainer_loop.runtime.outline import Outline

_PUSHES = {"end": "the end", "checkpoint": "each checkpoint and at the end", "never": "your command"}
_SAMPLED_STEPS = 200  # number of steps of an epoch whose microbatches are summarised
_KEYS_OF_CODE = (
    *("task.name", "model.type", "loop.name", "loss.name", "optimizer.name", "scheduler.name"),
    *("data.filter", "data.map"),
)


def describe_plan(config: Config, loop: TrainingLoop) -> list[str]:
    """Describe model, hardware, batches, optimizer and schedule of a run."""
    accelerator = loop.accelerator
    trained, total = count_weights(loop.bare_model)
    options, outline = loop.options, loop.engine.outline
    warmup = SchedulerPlan(**vars(config.scheduler)).describe_warmup(options.num_steps)
    evaluation = "none" if options.evaluate_every is None else f"every {options.evaluate_every:,} steps"
    saving = "never" if options.checkpoint_every is None else f"every {options.checkpoint_every:,} steps"
    return [
        f"model: {type(loop.bare_model).__name__}, {total:,} parameters, "
        + ("all trained" if trained == total else f"{trained:,} of them ({trained / total:.2%}) trained")
        + (", compiled" if config.model.compile else ""),
        f"hardware: {accelerator.num_processes} x {accelerator.device.type}, precision {accelerator.mixed_precision}, "
        f"{torch.get_num_threads()} threads per process",
        *_describe_sharding(loop),
        *_describe_batches(loop.data.train, num_steps=options.num_steps, process_index=accelerator.process_index),
        f"optimizer: {config.optimizer.name}, learning rate {config.optimizer.lr:g}, {config.scheduler.name} with "
        f"{warmup}",
        f"evaluation: {evaluation}; checkpoints: {saving}, in {config.run_dir}",
        *([f"hub: {config.hub.push}, at {_PUSHES[config.hub.every]}"] if config.hub.push is not None else []),
        *(f"{key}: {fingerprint}" for key, fingerprint in fingerprint_own_code(config).items()),
        *(_describe_optimizer(config, loop) if config.dry_run else []),
        *([] if outline is None else _describe_costs(config, loop, outline)),
    ]


def _describe_costs(config: Config, loop: TrainingLoop, outline: Outline) -> list[str]:
    """Describe the memory of a step, and the floating-point operations for each token."""
    _, flops = count_flops_per_token(loop, outline)
    return [*describe_memory(loop, outline, ShardingPlan(**vars(config.parallel))), flops]


def _describe_sharding(loop: TrainingLoop) -> list[str]:
    sharded = loop.engine.sharded
    if sharded is None:
        return []
    replicas, parts = sharded.mesh.shape
    copies = f", {replicas} copies" if replicas > 1 else ""
    when = "once a step" if sharded.plan.gathers_once else "before each use"
    added = "once a step" if sharded.plan.reduces_once else "after each microbatch"
    waiting = "; what a process keeps lies in host memory" if sharded.plan.offloads else ""
    return [
        f"sharding: each weight in {parts} parts{copies}; {sharded.num_layers} layers and the rest of the model are "
        f"gathered {when}; gradients are added up {added}{waiting}"
    ]


def _describe_optimizer(config: Config, loop: TrainingLoop) -> list[str]:
    """Return the table of parameter groups and the curve of the learning rate."""
    frozen = {name: weight for name, weight in loop.bare_model.named_parameters() if not weight.requires_grad}
    scheduler = SchedulerPlan(**vars(config.scheduler))
    curve = scheduler.draw(lr=config.optimizer.lr, num_steps=loop.options.num_steps)
    table = describe_groups(loop.engine.groups, frozen)
    return ["groups of parameters:", *(f"  {line}" for line in table), f"schedule: {curve}"]


def describe_weights(weights: np.ndarray) -> str:
    """Summarise row weights, `[N]`, in one line."""
    span = f"from {weights.min():g} to {weights.max():g}, mean {weights.mean():.4g}"
    return f"weights of rows: {len(np.unique(weights)):,} distinct ones {span}"


def _describe_batches(loader: StepLoader, *, num_steps: int, process_index: int) -> list[str]:
    budget = "no limit" if loader.max_tokens is None else f"at most {loader.max_tokens:,} padded tokens"
    if isinstance(loader, StreamLoader):
        rows = "a stream" if loader.num_rows is None else f"{loader.num_rows:,}"
        epoch = "" if loader.steps_per_epoch is None else f"{loader.steps_per_epoch:,} steps per epoch, "
        return [
            f"rows: {rows}, {loader.batch_size:,} per step; {epoch}{num_steps:,} steps in all",
            *([loader.stream.describe()] if isinstance(loader.stream, MixedStream) else []),
            f"microbatches: {budget}",
        ]
    assert isinstance(loader, TrainLoader)
    plan = loader.plan
    steps = plan.sample(_SAMPLED_STEPS)
    microbatches = [len(step.shares[process_index].microbatches) for step in steps]
    padding = 1 - sum(step.num_tokens for step in steps) / sum(step.num_padded_tokens for step in steps)
    return [
        f"rows: {len(plan.lengths):,}, {plan.batch_size:,} per step; {plan.steps_per_epoch:,} steps per epoch, "
        f"{num_steps:,} in all",
        *([] if plan.mixture is None else [plan.mixture.describe()]),
        *([] if loader.weights is None else [describe_weights(loader.weights)]),
        f"microbatches per step and process: {min(microbatches)} to {max(microbatches)} ({budget}); "
        f"padding {padding:.1%}",
    ]


def fingerprint_own_code(config: Config) -> dict[str, str]:
    """Return a checksum of the user's code by the key that names it, so that a resumed run can report changes."""
    values = values_of(config)
    components = {key: locate(str(values[key]), place=key) for key in _KEYS_OF_CODE if "." in str(values[key])}
    fingerprints = {f"{key} (its code)": fingerprint_own(component) for key, component in components.items()}
    return {key: fingerprint for key, fingerprint in fingerprints.items() if fingerprint is not None}
