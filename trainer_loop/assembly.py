"""From a `RunPlan` to a loop: everything that was checked is made."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from torch.optim import Optimizer

from trainer_loop.components import full_name
from trainer_loop.config.fields import Config, ParallelConfig
from trainer_loop.config.load import public_values, values_of
from trainer_loop.config.schema import KEYS
from trainer_loop.config.values import parse_steps
from trainer_loop.data.fingerprint import digest_joined
from trainer_loop.data.loader import TrainLoader
from trainer_loop.data.stream import StreamLoader
from trainer_loop.data.tokens import describe_processor
from trainer_loop.description import fingerprint_own_code
from trainer_loop.engine import Engine
from trainer_loop.errors import UserError, in_one_line, under
from trainer_loop.evaluation import Evaluator
from trainer_loop.loaders import ConfiguredData, make_evaluation_loader, make_train_loader
from trainer_loop.loop import TrainingLoop
from trainer_loop.memory_report import count_flops_per_token
from trainer_loop.metrics.load import load_metrics
from trainer_loop.models.assemble import assemble_model, make_plain_model
from trainer_loop.models.config import drops_layers
from trainer_loop.models.loading import describe_frozen
from trainer_loop.optim.ema import Ema
from trainer_loop.optim.groups import ParameterGroup
from trainer_loop.optim.schedule_free import ScheduleFreeAverages, is_schedule_free
from trainer_loop.optim.schedules import follows_metric
from trainer_loop.options import LoopOptions
from trainer_loop.outputs import ConfiguredOutput
from trainer_loop.parallel.accelerate_file import take_over_fsdp
from trainer_loop.parallel.on_demand import MemoryOnDemand
from trainer_loop.parallel.processes import (
    assert_same_on_all_processes,
    make_accelerator,
    process_index_from_environment,
    send_from,
)
from trainer_loop.parallel.sharding import ShardedModel, check_optimizer, prepare, shard_model
from trainer_loop.plan import Overrides, RunPlan, name_splits, plan_run
from trainer_loop.record.checkpoint import Checkpointer
from trainer_loop.record.logs import Console, MetricLog
from trainer_loop.record.recorder import Recorder
from trainer_loop.record.run_dir import RunDir
from trainer_loop.record.trackers import is_own
from trainer_loop.references import add_references
from trainer_loop.runtime.compiler import compile_layers, compile_model
from trainer_loop.runtime.host import keep_freed_memory, return_freed_memory
from trainer_loop.runtime.outline import Outline, outline_model
from trainer_loop.runtime.peak_rates import find_peak_rate
from trainer_loop.runtime.preempt import Preemption
from trainer_loop.runtime.profiler import StepProfiler
from trainer_loop.runtime.quiet import quieten_libraries
from trainer_loop.runtime.shares import take_share
from trainer_loop.runtime.stopwatch import Stopwatch
from trainer_loop.tasks.task import Task

_COMPUTE_TYPES = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
_OF_A_MODEL_MADE_HERE = ("model.overrides", "model.from_scratch", "model.attention", "model.gradient_checkpointing")
_OF_AN_OPTIMIZER_MADE_HERE = (
    *("optimizer.name", "optimizer.lr", "optimizer.weight_decay", "optimizer.args", "optimizer.layer_decay"),
    "optimizer.groups",
)


def build(
    config: Config,
    *,
    task: Task | None = None,
    model: nn.Module | None = None,
    rows: Mapping[str, Any] | None = None,
    optimizer: Callable[[nn.Module], Optimizer] | None = None,
    problems: Sequence[str] = (),
    console: Console | None = None,
    preemption: Preemption | None = None,
) -> TrainingLoop:
    """A loop that is ready to `fit`; nothing is written yet but the token cache.

    task, model, optimizer: in the place of those that the config names; the optimizer is made of a model on its device.
    rows: likewise, by split: `train`, `validation`, `test`, or one of several sets, `validation.hard`. A task on texts
    takes a datasets.Dataset, a pandas, polars or Arrow table, a torch Dataset or a list of dicts with the columns that
    `data` names; any other task takes whatever has rows by number, each a dict.
    problems: what is already known to be wrong with the config. Raises UserError with these and all others: the whole
    config and all data are judged before the model loads.
    """
    stopwatch = Stopwatch()
    quieten_libraries()
    console = console or Console(enabled=process_index_from_environment() == 0)
    config = _take_over_accelerate_file(config, console)
    overrides = Overrides(task, model, name_splits(rows), has_optimizer=optimizer is not None)
    plan = plan_run(config, overrides, problems=problems, console=console)
    run_dir = RunDir(config.run_dir)
    accelerator = make_accelerator(
        precision=plan.precision,
        tf32=config.train.tf32,
        trackers=[name for name in config.log.trackers if not is_own(name)],
        project_dir=str(run_dir.root),
        timeout_minutes=config.train.timeout_minutes,
        threads=config.train.threads,
        updates_on_host=plan.sharding.offloads,
    )
    train_loader = make_train_loader(config, plan, accelerator)
    run_facts = _describe_run(config, plan, train_loader)
    assert_same_on_all_processes(accelerator, run_facts, what="the data or the config")
    own_code = fingerprint_own_code(config)
    steps_per_epoch = train_loader.steps_per_epoch
    num_steps = config.train.steps or math.ceil(take_share(config.train.epochs or 0, steps_per_epoch or 0))

    profiler = _make_profiler(config, accelerator, console, num_steps=num_steps)
    engine = _make_engine(
        config,
        plan,
        accelerator,
        console,
        num_steps=num_steps,
        make_optimizer=optimizer,
        preemption=preemption or Preemption(),
    )
    engine.profiler = profiler
    _warn_of_unheeded(config, console, given_model=model is not None, given_optimizer=optimizer is not None)
    run_facts |= _describe_what_learns(engine.bare_model, engine.groups)
    run_facts |= {} if optimizer is None else {"optimizer.name": full_name(type(engine.scheduler.optimizer))}
    run_facts |= {} if task is None else {"task.name": full_name(type(task))}
    evaluator = _make_evaluator(config, plan, engine, console, stopwatch)
    if plan.task.refers:
        plan = _add_references(config, plan, evaluator, console, train_loader)
    data = ConfiguredData(config, plan, accelerator, console, train_loader)
    loop: TrainingLoop = plan.loop_class(
        task=plan.task,
        engine=engine,
        data=data,
        evaluator=evaluator,
        checkpointer=_make_checkpointer(
            config, plan.task, engine, console, run_facts=run_facts, own_code=own_code, stopwatch=stopwatch
        ),
        record=Recorder(
            accelerator=accelerator, console=console, metric_log=MetricLog(run_dir.metrics, warn=console.warn)
        ),
        output=ConfiguredOutput(
            config,
            plan,
            overrides,
            accelerator=accelerator,
            console=console,
            facts=run_facts | own_code,
            num_steps=num_steps,
            stopwatch=stopwatch,
        ),
        options=_choose_options(
            config,
            plan,
            num_steps=num_steps,
            steps_per_epoch=steps_per_epoch,
            has_validation=bool(data.validation),
        ),
        **config.loop.args,
    )
    if not config.dry_run:
        _log_mfu(loop, tf32=config.train.tf32)
    return loop


def _take_over_accelerate_file(config: Config, console: Console) -> Config:
    """The config with the sharding of an FSDP file of accelerate, where it has none of its own."""
    translated = take_over_fsdp()
    if translated is None:
        return config
    if config.parallel != ParallelConfig():
        console.say("accelerate's FSDP file is not heeded: the section parallel says how the model is sharded")
        return config
    console.say(translated.notice)
    return replace(config, parallel=ParallelConfig(**translated.values))


# ------------------------------------------------------------------------------------------------ parts of the loop


def _make_engine(
    config: Config,
    plan: RunPlan,
    accelerator: Accelerator,
    console: Console,
    *,
    num_steps: int,
    make_optimizer: Callable[[nn.Module], Optimizer] | None,
    preemption: Preemption,
) -> Engine:
    """The model, what it learns with, and how it runs on the devices. make_optimizer: None for that of the config."""
    memory = _choose_memory(plan, accelerator, console)
    with memory or nullcontext():
        model, calls = _make_model(config, plan, accelerator, console)

    def let_learn(learner: nn.Module) -> tuple[list[ParameterGroup], Optimizer]:
        with under("optimizer."):
            groups = plan.optimizer.group(learner, num_steps=num_steps, calls=calls)
        if make_optimizer is not None:
            return groups, make_optimizer(learner)
        return groups, plan.optimizer.make(groups)

    outline = None
    if config.dry_run:
        outline = _outline(config, model, accelerator, console, let_learn)
    elif _find_peak_rate(accelerator, model, tf32=config.train.tf32) is not None:
        outline = _outline(config, model, accelerator, console)
    sharded = _shard_model(plan, model, accelerator, console, memory)
    if memory is not None and accelerator.device.type == "cpu":
        keep_freed_memory()
    groups, optimizer = let_learn(model)
    scheduler = plan.scheduler.make(optimizer, num_steps=num_steps)
    if follows_metric(scheduler) and (config.evaluate.every == "never" or not plan.inputs.has_validation):
        raise UserError(
            f"scheduler.name: {config.scheduler.name} follows an evaluation; set evaluate.every and data.validation"
        )
    if sharded is not None:
        check_optimizer(optimizer)
    prepared_model, prepared_optimizer = prepare(accelerator, model, optimizer)
    # From here on every process has the weights of process 0.
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
        tries_largest=not plan.task.keeps_state or type(plan.task).__module__.startswith("trainer_loop."),
        outline=outline,
    )


def _make_model(
    config: Config, plan: RunPlan, accelerator: Accelerator, console: Console
) -> tuple[nn.Module, Sequence[str]]:
    """The model on its device, before accelerate prepares it, and the names of its modules in the order of their calls.

    The names are empty where they are not known.
    """
    inputs, compiles = plan.inputs, config.model.compile and not _is_spread(plan, accelerator)
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
        max_length=config.data.max_length,
        lengths=None if inputs.stream is not None else inputs.splits["train"].lengths,
        pads=(config.batch.per_device, config.evaluate.per_device) != (1, 1),
        compiles=compiles,
        say=console.say,
        warn=console.warn,
    )


def _outline(
    config: Config,
    model: nn.Module,
    accelerator: Accelerator,
    console: Console,
    let_learn: Callable[[nn.Module], tuple[list[ParameterGroup], Optimizer]] | None = None,
) -> Outline | None:
    """The model without numbers, and for the memory plan of a dry run, which has `let_learn`, what learns with it."""
    try:
        outline = outline_model(model, accelerator.device)
        if let_learn is not None:
            _, outline.optimizer = let_learn(outline.model)
            averages = _make_averaged_weights(config, outline.model, outline.optimizer)
            outline.averages = list(averages.state_dict().values()) if isinstance(averages, Ema) else []
        outline.model = accelerator.prepare_model(outline.model, device_placement=False, evaluation_mode=True)
        accelerator._models.pop()  # it is not the one that is trained
    except Exception as error:  # noqa: BLE001 # of a model that cannot be copied, or of an optimizer that wants numbers
        unknown = "model FLOPs" if let_learn is None else "memory of a step"
        console.warn(f"{unknown} unknown: {type(error).__name__}: {in_one_line(error, at_most=120)}")
        return None
    return outline


def _find_peak_rate(accelerator: Accelerator, model: nn.Module, *, tf32: bool) -> float | None:
    """Operations that the device can do in a second in the type that the model computes in; None: not known."""
    if accelerator.device.type != "cuda":
        return None
    dtype = _COMPUTE_TYPES[accelerator.mixed_precision]
    if dtype == torch.float32:
        dtype = next((weight.dtype for weight in model.parameters()), dtype)
    return find_peak_rate(torch.cuda.get_device_name(accelerator.device), dtype, tf32=tf32)


def _log_mfu(loop: TrainingLoop, *, tf32: bool) -> None:
    """Let a run log `mfu` whose device has a known rate: the loop has an outline then, and needs it no more."""
    outline, loop.engine.outline = loop.engine.outline, None
    if outline is None:
        return
    flops_per_token, told = count_flops_per_token(loop, outline)
    loop.console.say(told)
    peak_rate = _find_peak_rate(loop.accelerator, outline.model, tf32=tf32)
    if flops_per_token is not None and peak_rate is not None:
        loop.record.log_mfu(flops_per_token, peak_rate=peak_rate)


def _choose_memory(plan: RunPlan, accelerator: Accelerator, console: Console) -> MemoryOnDemand | None:
    """What the model is made with so that it never takes the memory of all its weights; None where it may."""
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


def _is_spread(plan: RunPlan, accelerator: Accelerator) -> bool:
    return plan.sharding.is_sharded and accelerator.num_processes > 1


def _shard_model(
    plan: RunPlan, model: nn.Module, accelerator: Accelerator, console: Console, memory: MemoryOnDemand | None
) -> ShardedModel | None:
    """Spread the model over the processes, in place, where the config says so and there are several.

    memory: what the model was made with.
    """
    sharding, compute_type = plan.sharding, _COMPUTE_TYPES[accelerator.mixed_precision]
    if not _is_spread(plan, accelerator):
        if sharding.is_sharded:
            console.warn(f"parallel.shard: {sharding.shard}: this is one process, so it holds the whole model")
        return None
    sharded = shard_model(
        model,
        device=accelerator.device,
        gathers_once=sharding.gathers_once,
        reduces_once=sharding.reduces_once,
        offloads=sharding.offloads,
        num_replicas=sharding.num_replicas,
        layers=list(sharding.layers) or None,
        # Autocast would keep a copy of all weights in 16 bits until the backward pass: let these travel instead.
        compute_dtype=None if sharding.gathers_once or compute_type == torch.float32 else compute_type,
        reduce_dtype=sharding.gradient_type,
        memory=memory,
    )
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


def _add_references(
    config: Config, plan: RunPlan, evaluator: Evaluator, console: Console, train_loader: TrainLoader | StreamLoader
) -> RunPlan:
    """The plan, and the loader of training rows, with what the task wants to know from the model of now."""
    assert isinstance(train_loader, TrainLoader), "a task that refers streams no rows"
    splits = add_references(
        plan.inputs.splits,
        evaluator,
        make_loader=partial(make_evaluation_loader, config, plan, evaluator.accelerator),
        cache_dir=config.data.cache_dir,
        say=console.say,
    )
    train_loader.rows = splits["train"].rows
    return replace(plan, inputs=replace(plan.inputs, splits=splits))


def _make_profiler(
    config: Config, accelerator: Accelerator, console: Console, *, num_steps: int
) -> StepProfiler | None:
    """What traces the steps of `log.profile`."""
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


def _make_evaluator(config: Config, plan: RunPlan, engine: Engine, console: Console, stopwatch: Stopwatch) -> Evaluator:
    label_names = plan.inputs.label_names
    return Evaluator(
        accelerator=engine.accelerator,
        task=plan.task,
        model=engine.bare_model,
        metrics=load_metrics(
            plan.metrics, num_labels=None if label_names is None else len(label_names), label_names=label_names
        ),
        averaged_weights=engine.averaged_weights,
        sharded=engine.sharded,
        seed=config.seed,
        console=console,
        preemption=engine.preemption,
        num_samples=config.evaluate.generate.samples,
        stopwatch=stopwatch,
    )


def _make_checkpointer(
    config: Config,
    task: Task,
    engine: Engine,
    console: Console,
    *,
    run_facts: dict[str, Any],
    own_code: dict[str, str],
    stopwatch: Stopwatch,
) -> Checkpointer:
    """run_facts: what decides the updates. own_code: checksums of the user's code."""
    checkpointer = Checkpointer(
        RunDir(config.run_dir),
        accelerator=engine.accelerator,
        scheduler=engine.scheduler,
        console=console,
        run_facts=run_facts,
        config=public_values(config) | own_code,
        replanned=[*own_code, *(name for name, key in KEYS.items() if key.on_resume == "planned anew")],
        resume_anyway=config.resume_anyway,
        averaged_weights=engine.averaged_weights,
        is_sharded=engine.sharded is not None,
        keep_last=config.checkpoint.keep_last,
        background=config.checkpoint.background,
        stopwatch=stopwatch,
    )
    if task.keeps_state:
        checkpointer.register_for_checkpoint("task", task)
    return checkpointer


def _choose_options(
    config: Config, plan: RunPlan, *, num_steps: int, steps_per_epoch: int | None, has_validation: bool
) -> LoopOptions:
    return LoopOptions(
        num_steps=num_steps,
        log_every=config.log.every,
        checkpoint_every=_interval(config.checkpoint.every, steps_per_epoch),
        evaluate_every=_interval(config.evaluate.every, steps_per_epoch) if has_validation else None,
        evaluate_at_start=config.evaluate.at_start and has_validation,
        max_grad_norm=config.train.max_grad_norm,
        max_grad_value=config.train.max_grad_value,
        skip_nonfinite=config.train.on_nonfinite == "skip",
        best=config.checkpoint.best,
        patience=config.train.patience,
        patience_metric=config.train.patience_metric,
        plateau_metric=plan.scheduler.followed_metric,
        resume=config.resume,
        max_minutes=config.train.max_time_minutes,
    )


def _describe_what_learns(model: nn.Module, groups: Sequence[ParameterGroup]) -> dict[str, Any]:
    """Which weights stand still, and until when."""
    unfreezing = [group.unfreeze_at for group in groups if group.unfreeze_at]
    frozen = describe_frozen(model)
    return ({"unfreezing": unfreezing} if unfreezing else {}) | ({} if frozen is None else {"frozen_weights": frozen})


def _warn_of_unheeded(config: Config, console: Console, *, given_model: bool, given_optimizer: bool) -> None:
    """Keys that say what a part made in Python decides itself."""
    values = values_of(config)
    for part, is_given, names in (
        ("model", given_model, _OF_A_MODEL_MADE_HERE),
        ("optimizer", given_optimizer, _OF_AN_OPTIMIZER_MADE_HERE),
    ):
        unheeded = [name for name in names if is_given and values[name] != KEYS[name].default]
        if unheeded:
            console.warn(f"{', '.join(unheeded)}: not heeded, for the {part} was given and is taken as it is")


def _make_averaged_weights(config: Config, model: nn.Module, optimizer: Optimizer) -> Ema | ScheduleFreeAverages | None:
    """What is evaluated and exported in the place of the weights."""
    if is_schedule_free(optimizer):
        if config.ema.decay is not None:
            raise UserError(
                f"ema.decay: a {type(optimizer).__name__} keeps an average of the weights itself; set it to null"
            )
        return ScheduleFreeAverages(model, optimizer)
    return None if config.ema.decay is None else Ema(model, decay=config.ema.decay)


def _interval(setting: Any, steps_per_epoch: int | None) -> int | None:
    """Steps between two occasions; None: never."""
    if isinstance(setting, float):
        return None if steps_per_epoch is None else max(1, round(take_share(setting, steps_per_epoch)))
    return {"epoch": steps_per_epoch, "never": None}.get(setting, setting)


def _describe_run(config: Config, plan: RunPlan, loader: TrainLoader | StreamLoader) -> dict[str, Any]:
    """What decides the updates, as plain JSON: who goes on from a checkpoint must have the same.

    Of data and batches it is what came of the config, not the words that led there: a file may be moved.
    """
    if isinstance(loader, StreamLoader):
        assert plan.inputs.stream is not None
        data, tokens, batch_size = (
            f"a stream {plan.inputs.stream.fingerprint}",
            plan.inputs.stream.tokens,
            loader.batch_size,
        )
    else:
        train = plan.inputs.splits["train"]
        data, batch_size = f"{len(train.rows)} rows {train.fingerprint}", loader.plan.batch_size
        told = None if plan.inputs.processor is None else describe_processor(plan.inputs.processor)
        pieces = (part.tobytes() for part in loader.plan.all_tokens())
        tokens = digest_joined(pieces, 8 * len(train.lengths), json.dumps(told, sort_keys=True).encode())
    columns = {} if plan.inputs.data is None else plan.inputs.data.columns.given
    # The exported record names the task itself, and columns are the same whether they are named or not.
    values = public_values(config) | {"task.name": config.task.name, "data.columns": columns}
    return {
        "data": data,
        "tokens": tokens,
        "data.label_names": plan.inputs.label_names,
        "batch.size": batch_size,
    } | {name: values[name] for name, key in KEYS.items() if key.on_resume == "refused"}
