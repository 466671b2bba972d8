"""Builds the training loop of a config: plans and checks the run, then creates its parts."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from accelerate import Accelerator
from torch import nn
from torch.optim import Optimizer

from trainer_loop.components import full_name
from trainer_loop.config.fields import Config, ParallelConfig
from trainer_loop.config.load import public_values, values_of
from trainer_loop.config.schema import KEYS
from trainer_loop.data.fingerprint import digest_joined
from trainer_loop.data.loader import TrainLoader
from trainer_loop.data.run_data import RunData
from trainer_loop.data.stream_loader import StreamLoader
from trainer_loop.data.tokenise import describe_processor
from trainer_loop.description import fingerprint_own_code
from trainer_loop.engine import Engine
from trainer_loop.engine_assembly import log_mfu, make_engine
from trainer_loop.evaluation import Evaluator
from trainer_loop.loaders import ConfiguredData, make_evaluation_loader, make_train_loader
from trainer_loop.loop import TrainingLoop
from trainer_loop.metrics.load import load_metrics
from trainer_loop.models.loading import describe_frozen
from trainer_loop.options import LoopOptions
from trainer_loop.outputs import ConfiguredOutput
from trainer_loop.parallel.accelerate_file import take_over_fsdp
from trainer_loop.parallel.processes import (
    assert_same_on_all_processes,
    make_accelerator,
    process_index_from_environment,
)
from trainer_loop.plan import Overrides, RunPlan, name_splits, plan_run
from trainer_loop.record.checkpoint import Checkpointer
from trainer_loop.record.logs import Console, MetricLog
from trainer_loop.record.recorder import Recorder
from trainer_loop.record.run_dir import RunDir
from trainer_loop.record.trackers import is_custom
from trainer_loop.references import add_references
from trainer_loop.runtime.preempt import Preemption
from trainer_loop.runtime.quiet import quieten_libraries
from trainer_loop.runtime.shares import take_share
from trainer_loop.runtime.stopwatch import Stopwatch
from trainer_loop.tasks.task import Task

# Keys without effect if the caller passes a model, or an optimizer.
_MODEL_KEYS = ("model.overrides", "model.from_scratch", "model.attention", "model.gradient_checkpointing")
_OPTIMIZER_KEYS = (
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
    """Build a loop that is ready to `fit`. This writes nothing except the token cache.

    Args:
        task: replaces the task of the config.
        model: replaces the model of the config.
        rows: replace the data of the config, by split: `train`, `validation`, `test`, or one of several sets, such as
            `validation.hard`. A task on texts takes a datasets.Dataset, a pandas, polars or Arrow table, a torch
            Dataset or a list of dicts with the columns that `data` names. Any other task takes an object that returns a
            dict for each row number.
        optimizer: creates the optimizer for a model on its device; replaces the optimizer of the config.
        problems: known problems of the config.

    Raises:
        UserError: with `problems` and all others. The whole config and all data are checked before the model loads.
    """
    stopwatch = Stopwatch()
    quieten_libraries()
    console = console or Console(enabled=process_index_from_environment() == 0)
    config = _take_over_accelerate_file(config, console)
    overrides = Overrides(task, model, name_splits(rows), has_optimizer=optimizer is not None)
    plan = plan_run(config, overrides, problems=problems, console=console)
    accelerator = _make_accelerator(plan)
    train_loader = make_train_loader(plan, accelerator)
    run_facts = _describe_run(plan, train_loader)
    assert_same_on_all_processes(accelerator, run_facts, what="the data or the config")
    own_code = fingerprint_own_code(config)
    steps_per_epoch = train_loader.steps_per_epoch or 0
    num_steps = config.train.steps or math.ceil(take_share(config.train.epochs or 0, steps_per_epoch))

    preemption = preemption or Preemption()
    engine = make_engine(
        plan, accelerator, console, num_steps=num_steps, make_optimizer=optimizer, preemption=preemption
    )
    _warn_of_ignored_keys(plan, console)
    run_facts |= _describe_parts(plan, engine)
    evaluator = _make_evaluator(plan, engine, console, stopwatch)
    if plan.task.refers:
        plan = _add_references(plan, evaluator, console, train_loader)
    data = ConfiguredData(plan, accelerator, console, train_loader)
    metric_log = MetricLog(RunDir(config.run_dir).metrics, warn=console.warn)
    output = ConfiguredOutput(
        plan,
        accelerator=accelerator,
        console=console,
        facts=run_facts | own_code,
        num_steps=num_steps,
        stopwatch=stopwatch,
    )
    loop: TrainingLoop = plan.loop_class(
        task=plan.task,
        engine=engine,
        data=data,
        evaluator=evaluator,
        checkpointer=_make_checkpointer(plan, engine, console, stopwatch, run_facts, own_code),
        record=Recorder(accelerator=accelerator, console=console, metric_log=metric_log),
        output=output,
        options=_choose_options(plan, data, num_steps=num_steps),
        **config.loop.args,
    )
    if not config.dry_run:
        log_mfu(loop, tf32=config.train.tf32)
    return loop


def _take_over_accelerate_file(config: Config, console: Console) -> Config:
    """Return the config with the sharding of accelerate's FSDP file if its section `parallel` has only defaults."""
    translated = take_over_fsdp()
    if translated is None:
        return config
    if config.parallel != ParallelConfig():
        console.say("accelerate's FSDP file is not heeded: the section parallel says how the model is sharded")
        return config
    console.say(translated.notice)
    return replace(config, parallel=ParallelConfig(**translated.values))


# ------------------------------------------------------------------------------------------------ parts of the loop


def _make_accelerator(plan: RunPlan) -> Accelerator:
    config = plan.config
    return make_accelerator(
        precision=plan.precision,
        tf32=config.train.tf32,
        trackers=[name for name in config.log.trackers if not is_custom(name)],
        project_dir=str(RunDir(config.run_dir).root),
        timeout_minutes=config.train.timeout_minutes,
        threads=config.train.threads,
        updates_on_host=plan.sharding.offloads,
    )


def _add_references(
    plan: RunPlan, evaluator: Evaluator, console: Console, train_loader: TrainLoader | StreamLoader
) -> RunPlan:
    """Add the references of the task, computed by the model before training, to the plan and to the training rows."""
    assert isinstance(train_loader, TrainLoader), "a task that refers streams no rows"
    splits = add_references(
        plan.inputs.splits,
        evaluator,
        make_loader=partial(make_evaluation_loader, plan, evaluator.accelerator),
        cache_dir=plan.config.data.cache_dir,
        say=console.say,
    )
    train_loader.rows = splits["train"].rows
    return replace(plan, inputs=replace(plan.inputs, splits=splits))


def _make_evaluator(plan: RunPlan, engine: Engine, console: Console, stopwatch: Stopwatch) -> Evaluator:
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
        seed=plan.config.seed,
        console=console,
        preemption=engine.preemption,
        num_samples=plan.config.evaluate.generate.samples,
        stopwatch=stopwatch,
    )


def _make_checkpointer(
    plan: RunPlan,
    engine: Engine,
    console: Console,
    stopwatch: Stopwatch,
    run_facts: dict[str, Any],
    own_code: dict[str, str],
) -> Checkpointer:
    """Create the checkpointer.

    Args:
        run_facts: see `_describe_run`.
        own_code: checksums of the user's code.
    """
    config = plan.config
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
    if plan.task.has_state:
        checkpointer.register_for_checkpoint("task", plan.task)
    return checkpointer


def _choose_options(plan: RunPlan, data: RunData, *, num_steps: int) -> LoopOptions:
    config, steps_per_epoch, has_validation = plan.config, data.train.steps_per_epoch, bool(data.validation)
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


def _describe_parts(plan: RunPlan, engine: Engine) -> dict[str, Any]:
    """Describe which weights are frozen, always or at first, and name the optimizer and the task made in Python."""
    overrides = plan.overrides
    facts = {
        "unfreezing": [group.unfreeze_at for group in engine.groups if group.unfreeze_at] or None,
        "frozen_weights": describe_frozen(engine.bare_model),
        "optimizer.name": full_name(type(engine.scheduler.optimizer)) if overrides.has_optimizer else None,
        "task.name": None if overrides.task is None else full_name(type(overrides.task)),
    }
    return {name: fact for name, fact in facts.items() if fact is not None}


def _warn_of_ignored_keys(plan: RunPlan, console: Console) -> None:
    """Warn of config keys that have no effect because the caller passed the model or the optimizer."""
    values = values_of(plan.config)
    for part, is_given, names in (
        ("model", plan.overrides.model is not None, _MODEL_KEYS),
        ("optimizer", plan.overrides.has_optimizer, _OPTIMIZER_KEYS),
    ):
        ignored = [name for name in names if is_given and values[name] != KEYS[name].default]
        if ignored:
            console.warn(f"{', '.join(ignored)}: not heeded, for the {part} was given and is taken as it is")


def _interval(setting: Any, steps_per_epoch: int | None) -> int | None:
    """Return the number of steps of an interval setting; None: never."""
    if isinstance(setting, float):
        return None if steps_per_epoch is None else max(1, round(take_share(setting, steps_per_epoch)))
    return {"epoch": steps_per_epoch, "never": None}.get(setting, setting)


def _describe_run(plan: RunPlan, loader: TrainLoader | StreamLoader) -> dict[str, Any]:
    """Describe all inputs that determine the updates, as plain JSON. They must be the same on resume.

    Data and batches are described by their content, not by config values: a file may be moved.
    """
    if isinstance(loader, StreamLoader):
        stream = plan.inputs.stream
        assert stream is not None
        data, tokens, batch_size = f"a stream {stream.fingerprint}", stream.tokens, loader.batch_size
    else:
        train = plan.inputs.splits["train"]
        data, batch_size = f"{len(train.rows)} rows {train.fingerprint}", loader.plan.batch_size
        description = None if plan.inputs.processor is None else describe_processor(plan.inputs.processor)
        token_bytes = (part.tobytes() for part in loader.plan.all_tokens())
        tokens = digest_joined(token_bytes, 8 * len(train.lengths), json.dumps(description, sort_keys=True).encode())
    columns = {} if plan.inputs.data is None else plan.inputs.data.columns.given
    # The exported record needs the name of the task. Columns are the same whether the config names them or not.
    values = public_values(plan.config) | {"task.name": plan.config.task.name, "data.columns": columns}
    return {
        "data": data,
        "tokens": tokens,
        "data.label_names": plan.inputs.label_names,
        "batch.size": batch_size,
    } | {name: values[name] for name, key in KEYS.items() if key.on_resume == "refused"}
