"""Creates the `Engine` of a `RunPlan`: the model, sharded if the config asks for it, its optimizer and schedule."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial

import torch
from accelerate import Accelerator
from torch import nn
from torch.optim import Optimizer

from trainer_loop.config.fields import Config
from trainer_loop.config.values import parse_steps
from trainer_loop.engine import Engine
from trainer_loop.errors import UserError, in_one_line, under
from trainer_loop.loop import TrainingLoop
from trainer_loop.memory_report import count_flops_per_token
from trainer_loop.models.assemble import RowsToRead, assemble_model, make_plain_model
from trainer_loop.models.config import drops_layers
from trainer_loop.optim.averages import AveragedWeights, Ema, ScheduleFreeAverages, is_schedule_free
from trainer_loop.optim.groups import ParameterGroup
from trainer_loop.optim.schedules import follows_metric
from trainer_loop.parallel.on_demand import MemoryOnDemand
from trainer_loop.parallel.processes import assert_same_on_all_processes, send_from
from trainer_loop.parallel.sharding import ShardedModel, check_optimizer, prepare, shard_model
from trainer_loop.plan import RunPlan
from trainer_loop.record.logs import Console
from trainer_loop.record.run_dir import RunDir
from trainer_loop.runtime.compiler import compile_layers, compile_model
from trainer_loop.runtime.host import keep_freed_memory, return_freed_memory
from trainer_loop.runtime.outline import Outline, outline_model
from trainer_loop.runtime.peak_rates import find_peak_rate
from trainer_loop.runtime.preempt import Preemption
from trainer_loop.runtime.profiler import StepProfiler

_COMPUTE_TYPES = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def make_engine(
    plan: RunPlan,
    accelerator: Accelerator,
    console: Console,
    *,
    num_steps: int,
    make_optimizer: Callable[[nn.Module], Optimizer] | None,
    preemption: Preemption,
) -> Engine:
    """Create the engine: the model on its devices, its optimizer and its schedule.

    Args:
        make_optimizer: creates the optimizer of a model; None for the optimizer of the config.
    """
    config = plan.config
    profiler = _make_profiler(config, accelerator, console, num_steps=num_steps)
    memory = _choose_memory(plan, accelerator, console)
    with memory or nullcontext():
        model, calls = _make_model(plan, accelerator, console)

    def add_optimizer(model_or_outline: nn.Module) -> tuple[list[ParameterGroup], Optimizer]:
        with under("optimizer."):
            groups = plan.optimizer.group(model_or_outline, num_steps=num_steps, calls=calls)
        if make_optimizer is not None:
            return groups, make_optimizer(model_or_outline)
        return groups, plan.optimizer.make(groups)

    outline = None
    if config.dry_run:
        outline = _outline(config, model, accelerator, console, add_optimizer)
    elif _find_peak_rate(accelerator, model, tf32=config.train.tf32) is not None:
        outline = _outline(config, model, accelerator, console)
    sharded = _shard_model(plan, model, accelerator, console, memory)
    if memory is not None and accelerator.device.type == "cpu":
        keep_freed_memory()
    groups, optimizer = add_optimizer(model)
    scheduler = plan.scheduler.make(optimizer, num_steps=num_steps)
    if follows_metric(scheduler) and (config.evaluate.every == "never" or not plan.inputs.has_validation):
        raise UserError(
            f"scheduler.name: {config.scheduler.name} follows an evaluation; set evaluate.every and data.validation"
        )
    if sharded is not None:
        check_optimizer(optimizer)
    prepared_model, prepared_optimizer = prepare(accelerator, model, optimizer)
    # From here on, every process has the weights of process 0.
    return Engine(
        accelerator=accelerator,
        model=prepared_model,
        optimizer=prepared_optimizer,
        scheduler=scheduler,
        seed=config.seed,
        groups=groups,
        averaged_weights=_make_averaged_weights(config, model, optimizer),
        sharded=sharded,
        allow_unused=config.train.unused_parameters == "allow" or drops_layers(plan.inputs.model_config),
        preemption=preemption,
        tries_largest=not plan.task.has_state or type(plan.task).__module__.startswith("trainer_loop."),
        outline=outline,
        profiler=profiler,
    )


def _make_model(plan: RunPlan, accelerator: Accelerator, console: Console) -> tuple[nn.Module, Sequence[str]]:
    """Create the model on its device, not yet prepared by accelerate.

    Returns:
        The model, and the names of its modules in the order of their calls; no names if the order is unknown.
    """
    config, inputs = plan.config, plan.inputs
    compiles = config.model.compile and not _is_sharded(plan, accelerator)
    if plan.task.auto_model is None:
        model = plan.model.given
        if model is None:
            model = make_plain_model(str(config.model.type), config.model.overrides, seed=config.seed)
        model = model.to(accelerator.device)
        if compiles:
            compile_model(model)
        return model, ()
    assert inputs.model_config is not None
    return assemble_model(
        plan.model,
        inputs.model_config,
        task=plan.task,
        tokenizer=inputs.tokenizer,
        device=accelerator.device,
        compute_type=_COMPUTE_TYPES[accelerator.mixed_precision],
        seed=config.seed,
        rows=RowsToRead(
            max_length=config.data.max_length,
            lengths=None if inputs.stream is not None else inputs.splits["train"].lengths,
            pads=(config.batch.per_device, config.evaluate.per_device) != (1, 1),
        ),
        compiles=compiles,
        console=console,
    )


def _outline(
    config: Config,
    model: nn.Module,
    accelerator: Accelerator,
    console: Console,
    add_optimizer: Callable[[nn.Module], tuple[list[ParameterGroup], Optimizer]] | None = None,
) -> Outline | None:
    """Create an outline of the model. With `add_optimizer`, it includes the optimizer and the averaged weights."""
    try:
        outline = outline_model(model, accelerator.device)
        if add_optimizer is not None:
            _, outline.optimizer = add_optimizer(outline.model)
            averages = _make_averaged_weights(config, outline.model, outline.optimizer)
            outline.averages = list(averages.state_dict().values()) if isinstance(averages, Ema) else []
        outline.model = accelerator.prepare_model(outline.model, device_placement=False, evaluation_mode=True)
        accelerator._models.pop()  # only the real model is trained
    except Exception as error:  # noqa: BLE001 # a model cannot be copied, or an optimizer reads values
        unknown = "model FLOPs" if add_optimizer is None else "memory of a step"
        console.warn(f"{unknown} unknown: {type(error).__name__}: {in_one_line(error, at_most=120)}")
        return None
    return outline


def _find_peak_rate(accelerator: Accelerator, model: nn.Module, *, tf32: bool) -> float | None:
    """Return the peak rate of the device for the type of the model's matrix products; None: unknown."""
    if accelerator.device.type != "cuda":
        return None
    dtype = _COMPUTE_TYPES[accelerator.mixed_precision]
    if dtype == torch.float32:
        dtype = next((weight.dtype for weight in model.parameters()), dtype)
    return find_peak_rate(torch.cuda.get_device_name(accelerator.device), dtype, tf32=tf32)


def log_mfu(loop: TrainingLoop, *, tf32: bool) -> None:
    """Make the run log `mfu` if its device has a known peak rate; only then the loop has an outline. Removes it."""
    outline, loop.engine.outline = loop.engine.outline, None
    if outline is None:
        return
    flops_per_token, line = count_flops_per_token(loop, outline)
    loop.console.say(line)
    peak_rate = _find_peak_rate(loop.accelerator, outline.model, tf32=tf32)
    if flops_per_token is not None and peak_rate is not None:
        loop.record.log_mfu(flops_per_token, peak_rate=peak_rate)


def _choose_memory(plan: RunPlan, accelerator: Accelerator, console: Console) -> MemoryOnDemand | None:
    """Return the context in which to create the model without memory for all of its weights; None if not needed."""
    num_parts = accelerator.num_processes // plan.sharding.num_replicas
    if not plan.sharding.is_sharded or num_parts == 1 or plan.model.given is not None:
        return None
    if plan.task.auto_model is None or plan.model.trust_remote_code:
        console.say(
            "model: code that is not of transformers makes it, so each process holds all of it in host memory until it "
            "is sharded"
        )
        return None
    return_freed_memory()
    return MemoryOnDemand(
        index=accelerator.process_index % num_parts, num_parts=num_parts, send=partial(send_from, accelerator)
    )


def _is_sharded(plan: RunPlan, accelerator: Accelerator) -> bool:
    return plan.sharding.is_sharded and accelerator.num_processes > 1


def _shard_model(
    plan: RunPlan, model: nn.Module, accelerator: Accelerator, console: Console, memory: MemoryOnDemand | None
) -> ShardedModel | None:
    """Shard the model in place if the config asks for it and there are several processes.

    Args:
        memory: the context in which the model was created.
    """
    sharding, compute_type = plan.sharding, _COMPUTE_TYPES[accelerator.mixed_precision]
    if not _is_sharded(plan, accelerator):
        if sharding.is_sharded:
            console.warn(f"parallel.shard: {sharding.shard}: this is one process, so it holds the whole model")
        return None
    sharded = shard_model(model, sharding, device=accelerator.device, compute_type=compute_type, memory=memory)
    if memory is not None:
        assert_same_on_all_processes(accelerator, memory.checksum, what="the model's weight files")
    if not sharding.gathers_once and sharded.num_layers == 0:
        console.warn(
            "parallel.shard: full: the model names no layers, so all its weights are gathered at once; name their "
            "classes in parallel.layers"
        )
    if sharding.offloads and accelerator.device.type == "cpu":
        console.warn("parallel.offload: weights: no effect on CPUs, whose memory is host memory")
    if plan.model.compile:
        compile_layers(sharded.innermost)
    return sharded


def _make_profiler(
    config: Config, accelerator: Accelerator, console: Console, *, num_steps: int
) -> StepProfiler | None:
    """Create the profiler for the steps of `log.profile`."""
    if config.log.profile is None:
        return None
    first, last = parse_steps(config.log.profile)
    if last > num_steps:
        raise UserError(f"log.profile: {config.log.profile} ends after the run, which has {num_steps:,} steps")
    return StepProfiler(
        first,
        last,
        folder=RunDir(config.run_dir).profile,
        process_index=accelerator.process_index,
        say=console.say,
        warn=console.warn,
    )


def _make_averaged_weights(config: Config, model: nn.Module, optimizer: Optimizer) -> AveragedWeights | None:
    """Create the averaged weights, which are evaluated and exported instead of the trained weights."""
    if is_schedule_free(optimizer):
        if config.ema.decay is not None:
            raise UserError(
                f"ema.decay: a {type(optimizer).__name__} keeps an average of the weights itself; set it to null"
            )
        return ScheduleFreeAverages(model, optimizer)
    return None if config.ema.decay is None else Ema(model, decay=config.ema.decay)
