"""From a `RunPlan` to a loop: everything that was checked is made. Only plan.py and this file know the config."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from torch.optim import Optimizer

from trainer_loop.components import fingerprint_own, full_name, locate
from trainer_loop.config.fields import Config
from trainer_loop.config.load import public_values, values_of
from trainer_loop.config.named_sets import parse_set
from trainer_loop.config.schema import KEYS
from trainer_loop.data.batch_plan import BatchPlan
from trainer_loop.data.cut import Limits
from trainer_loop.data.fingerprint import digest
from trainer_loop.data.given_rows import take_rows
from trainer_loop.data.loader import EvaluationLoader, StepLoader, TrainLoader
from trainer_loop.data.run_data import RunData
from trainer_loop.data.stream import StreamLoader
from trainer_loop.data.tokens import TokenisedSplit, describe_tokenizer
from trainer_loop.engine import Engine
from trainer_loop.errors import UserError, under
from trainer_loop.evaluation import Evaluator
from trainer_loop.loop import TrainingLoop
from trainer_loop.metrics.load import load_metrics
from trainer_loop.models.assemble import assemble_model, make_plain_model
from trainer_loop.models.config import drops_layers
from trainer_loop.models.loading import count_weights, describe_frozen
from trainer_loop.optim.ema import Ema
from trainer_loop.optim.groups import describe_groups
from trainer_loop.optim.schedule_free import ScheduleFreeAverages, is_schedule_free
from trainer_loop.optim.schedules import SchedulerPlan, follows_metric
from trainer_loop.options import LoopOptions
from trainer_loop.outputs import ConfiguredOutput
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
from trainer_loop.record.trackers import is_own
from trainer_loop.runtime.budget import choose_microbatch_tokens, choose_token_budget
from trainer_loop.runtime.compiler import compile_model
from trainer_loop.runtime.preempt import Preemption
from trainer_loop.runtime.quiet import quieten_libraries
from trainer_loop.runtime.shares import take_share
from trainer_loop.tasks.task import Task

_WORKERS_BESIDE_A_GPU = 2
_COMPUTE_TYPES = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
_STEPS_LOOKED_AT = 200  # of an epoch, to tell how it is cut
_OF_A_MODEL_MADE_HERE = ("model.overrides", "model.from_scratch", "model.attention", "model.gradient_checkpointing")
_OF_AN_OPTIMIZER_MADE_HERE = (
    *("optimizer.name", "optimizer.lr", "optimizer.weight_decay", "optimizer.args", "optimizer.layer_decay"),
    "optimizer.groups",
)
_NAMES_OF_CODE = ("task.name", "model.type", "loop.name", "loss.name", "optimizer.name", "scheduler.name")
_PUSHES = {"end": "the end", "checkpoint": "each checkpoint and at the end", "never": "your command"}
_WINDOW = 32  # batches whose rows are sorted together where the config names no number


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
    quieten_libraries()
    console = console or Console(enabled=process_index_from_environment() == 0)
    overrides = Overrides(task, model, name_splits(rows))
    plan = plan_run(config, overrides, problems=problems, console=console)
    run_dir = RunDir(config.run_dir)
    accelerator = make_accelerator(
        precision=plan.precision,
        tf32=config.train.tf32,
        trackers=[name for name in config.log.trackers if not is_own(name)],
        project_dir=str(run_dir.root),
        timeout_minutes=config.train.timeout_minutes,
        threads=config.train.threads,
    )
    train_loader = _make_train_loader(config, plan, accelerator)
    run_facts = _describe_run(config, plan, train_loader)
    assert_same_on_all_processes(accelerator, run_facts, what="the data or the config")
    own_code = _fingerprint_own_code(config)
    steps_per_epoch = train_loader.steps_per_epoch
    num_steps = config.train.steps or math.ceil(take_share(config.train.epochs or 0, steps_per_epoch or 0))

    model, calls = _make_model(config, plan, accelerator, console)
    with under("optimizer."):
        groups = plan.optimizer.group(model, num_steps=num_steps, calls=calls)
    torch_optimizer = optimizer(model) if optimizer is not None else plan.optimizer.make(groups, accelerator.device)
    _warn_of_unheeded(config, console, given_model=overrides.model is not None, given_optimizer=optimizer is not None)
    if unfreezing := [group.unfreeze_at for group in groups if group.unfreeze_at]:
        run_facts["unfreezing"] = unfreezing
    if (frozen := describe_frozen(model)) is not None:
        run_facts["frozen_weights"] = frozen
    if optimizer is not None:
        run_facts["optimizer.name"] = full_name(type(torch_optimizer))
    if task is not None:
        run_facts["task.name"] = full_name(type(task))
    scheduler = plan.scheduler.make(torch_optimizer, num_steps=num_steps)
    if follows_metric(scheduler) and (config.evaluate.every == "never" or not plan.inputs.has_validation):
        raise UserError(
            f"scheduler.name: {config.scheduler.name} follows an evaluation; set evaluate.every and data.validation"
        )
    prepared_model, prepared_optimizer = accelerator.prepare(model, torch_optimizer)
    averaged_weights = _make_averaged_weights(
        config, model, torch_optimizer
    )  # now every process has the weights of process 0
    engine = Engine(
        accelerator=accelerator,
        model=prepared_model,
        optimizer=prepared_optimizer,
        scheduler=scheduler,
        seed=config.seed,
        groups=groups,
        averaged_weights=averaged_weights,
        allow_unused=config.train.unused_parameters == "allow" or _drops_layers(plan),
        preemption=preemption,
    )
    data = _ConfiguredData(config, plan, accelerator, console, train_loader)
    evaluator = Evaluator(
        accelerator=accelerator,
        task=plan.task,
        model=engine.bare_model,
        metrics=load_metrics(
            plan.metrics,
            num_labels=None if plan.inputs.labels is None else len(plan.inputs.labels.names),
            label_names=plan.inputs.label_names,
        ),
        averaged_weights=averaged_weights,
        seed=config.seed,
        console=console,
        preemption=engine.preemption,
    )
    checkpointer = Checkpointer(
        run_dir,
        accelerator=accelerator,
        scheduler=scheduler,
        console=console,
        plan=run_facts,
        config=public_values(config) | own_code,
        replanned=[*own_code, *(name for name, key in KEYS.items() if key.on_resume == "planned anew")],
        resume_anyway=config.resume_anyway,
        averaged_weights=averaged_weights,
        keep_last=config.checkpoint.keep_last,
        background=config.checkpoint.background,
    )
    return plan.loop_class(
        task=plan.task,
        engine=engine,
        data=data,
        evaluator=evaluator,
        checkpointer=checkpointer,
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
        ),
        options=LoopOptions(
            num_steps=num_steps,
            log_every=config.log.every,
            checkpoint_every=_interval(config.checkpoint.every, steps_per_epoch),
            evaluate_every=_interval(config.evaluate.every, steps_per_epoch) if data.validation else None,
            evaluate_at_start=config.evaluate.at_start and bool(data.validation),
            max_grad_norm=config.train.max_grad_norm,
            max_grad_value=config.train.max_grad_value,
            skip_nonfinite=config.train.on_nonfinite == "skip",
            best=config.checkpoint.best,
            patience=config.train.patience,
            patience_metric=config.train.patience_metric,
            plateau_metric=plan.scheduler.followed_metric,
            resume=config.resume,
            max_minutes=config.train.max_time_minutes,
        ),
        **config.loop.args,
    )


class _ConfiguredData(RunData):
    """Evaluation sets of a config; it also says how in-memory rows are encoded."""

    def __init__(
        self, config: Config, plan: RunPlan, accelerator: Accelerator, console: Console, train_loader: StepLoader
    ):
        super().__init__(
            train_loader,
            validation=_make_evaluation_loaders(config, plan, accelerator, "validation"),
            test=_make_evaluation_loaders(config, plan, accelerator, "test"),
        )
        self._config, self._plan, self._accelerator, self._console = config, plan, accelerator, console

    def load_rows(self, rows: Any, *, labelled: bool) -> EvaluationLoader:
        task, inputs, kept = self._plan.task, self._plan.inputs, None
        if inputs.data is not None:
            split, kept = inputs.data.encode_rows(
                rows, task, inputs.tokenizer, labelled=labelled, say=self._console.say
            )
        else:
            split = take_rows(rows, name="rows", place="rows")
        loader = _make_evaluation_loader(self._config, self._plan, self._accelerator, split, labelled=labelled)
        loader.kept = kept
        return loader


def describe_plan(config: Config, loop: TrainingLoop) -> list[str]:
    """What is going to happen, in lines for a person."""
    accelerator = loop.accelerator
    trained, total = count_weights(loop.bare_model)
    options = loop.options
    warmup = SchedulerPlan(**vars(config.scheduler)).describe_warmup(options.num_steps)
    evaluation = "none" if options.evaluate_every is None else f"every {options.evaluate_every:,} steps"
    saving = "never" if options.checkpoint_every is None else f"every {options.checkpoint_every:,} steps"
    return [
        f"model: {type(loop.bare_model).__name__}, {total:,} parameters, "
        + ("all trained" if trained == total else f"{trained:,} of them ({trained / total:.2%}) trained")
        + (", compiled" if config.model.compile else ""),
        f"hardware: {accelerator.num_processes} x {accelerator.device.type}, precision {accelerator.mixed_precision}, "
        f"{torch.get_num_threads()} threads per process",
        *_describe_batches(loop.data.train, num_steps=options.num_steps, process_index=accelerator.process_index),
        f"optimizer: {config.optimizer.name}, learning rate {config.optimizer.lr:g}, {config.scheduler.name} with "
        f"{warmup}",
        f"evaluation: {evaluation}; checkpoints: {saving}, in {config.run_dir}",
        *([f"hub: {config.hub.push}, at {_PUSHES[config.hub.every]}"] if config.hub.push is not None else []),
        *(f"{name}: {told}" for name, told in _fingerprint_own_code(config).items()),
        *(_describe_optimizer(config, loop) if config.dry_run else []),
    ]


def _describe_optimizer(config: Config, loop: TrainingLoop) -> list[str]:
    """The table of groups and the curve of the learning rate."""
    frozen = {name: weight for name, weight in loop.bare_model.named_parameters() if not weight.requires_grad}
    scheduler = SchedulerPlan(**vars(config.scheduler))
    curve = scheduler.draw(lr=config.optimizer.lr, num_steps=loop.options.num_steps)
    table = describe_groups(loop.engine.groups, frozen)
    return ["groups of parameters:", *(f"  {line}" for line in table), f"schedule: {curve}"]


def _describe_batches(loader: StepLoader, *, num_steps: int, process_index: int) -> list[str]:
    budget = "no limit" if loader.max_tokens is None else f"at most {loader.max_tokens:,} padded tokens"
    if isinstance(loader, StreamLoader):
        rows = "a stream" if loader.num_rows is None else f"{loader.num_rows:,}"
        epoch = "" if loader.steps_per_epoch is None else f"{loader.steps_per_epoch:,} steps per epoch, "
        return [
            f"rows: {rows}, {loader.batch_size:,} per step; {epoch}{num_steps:,} steps in all",
            f"microbatches: {budget}",
        ]
    assert isinstance(loader, TrainLoader)
    plan = loader.plan
    steps = plan.sample(_STEPS_LOOKED_AT)
    microbatches = [len(step.shares[process_index].microbatches) for step in steps]
    padding = 1 - sum(step.num_tokens for step in steps) / sum(step.num_padded_tokens for step in steps)
    return [
        f"rows: {len(plan.lengths):,}, {plan.batch_size:,} per step; {plan.steps_per_epoch:,} steps per epoch, "
        f"{num_steps:,} in all",
        f"microbatches per step and process: {min(microbatches)} to {max(microbatches)} ({budget}); "
        f"padding {padding:.1%}",
    ]


# ------------------------------------------------------------------------------------------------ parts of the loop


def _make_model(
    config: Config, plan: RunPlan, accelerator: Accelerator, console: Console
) -> tuple[nn.Module, Sequence[str]]:
    """The model on its device, before accelerate prepares it, and the names of its modules in the order of their calls.

    The names are empty where they are not known.
    """
    inputs = plan.inputs
    if plan.task.auto_model is None:
        model = plan.model.given
        if model is None:
            model = make_plain_model(str(config.model.type), config.model.overrides, seed=config.seed)
        model = model.to(accelerator.device)
        if config.model.compile:
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
        say=console.say,
        warn=console.warn,
    )


def _drops_layers(plan: RunPlan) -> bool:
    """Whether a parameter may get no gradient in a step because the model left its layer out."""
    return plan.inputs.model_config is not None and drops_layers(plan.inputs.model_config)


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


def _make_train_loader(config: Config, plan: RunPlan, accelerator: Accelerator) -> TrainLoader | StreamLoader:
    limits = Limits(
        accelerator.num_processes,
        max_tokens=_token_budget(config.batch.max_tokens, plan, accelerator.device, training=True),
        per_device=config.batch.per_device,
        microbatch_tokens=choose_microbatch_tokens(accelerator.device.type),
        packed=config.model.packing,
    )
    batch_size = _batch_size(config, accelerator.num_processes)
    process: dict[str, Any] = {
        "collate": plan.task.collate,
        "count": plan.task.count,
        "device": accelerator.device,
        "process_index": accelerator.process_index,
    }
    if plan.inputs.stream is not None:
        return StreamLoader(
            plan.inputs.stream.rows,
            limits,
            encode=plan.inputs.stream.encode,
            batch_size=batch_size,
            shuffle_rows=config.data.shuffle_rows,
            seed=config.seed,
            num_rows=plan.inputs.stream.num_rows,
            **process,
        )
    train = plan.inputs.splits["train"]
    return TrainLoader(
        BatchPlan(train.lengths, limits, batch_size=batch_size, seed=config.seed, window=_window(config)),
        train.rows,
        num_workers=_num_workers(config, accelerator),
        origin_of=train.origins.place,
        **process,
    )


def _make_evaluation_loaders(
    config: Config, plan: RunPlan, accelerator: Accelerator, name: str
) -> dict[str, EvaluationLoader]:
    """The loaders of a split: by the names of its sets, or by the empty text where it has none."""
    sets = {parse_set(full_name): split for full_name, split in plan.inputs.splits.items()}
    workers = _num_workers(config, accelerator)
    return {
        part: _make_evaluation_loader(config, plan, accelerator, split, num_workers=workers)
        for (of, part), split in sets.items()
        if of == name
    }


def _make_evaluation_loader(
    config: Config,
    plan: RunPlan,
    accelerator: Accelerator,
    split: TokenisedSplit,
    *,
    labelled: bool = True,
    num_workers: int = 0,
) -> EvaluationLoader:
    """labelled: its targets are counted, and its rows shared by the processes; else each process has all of them."""
    limits = Limits(
        accelerator.num_processes if labelled else 1,
        max_tokens=_token_budget(config.evaluate.max_tokens, plan, accelerator.device, training=False),
        per_device=config.evaluate.per_device or _rows_judged_at_once(config, plan, accelerator),
        microbatch_tokens=choose_microbatch_tokens(accelerator.device.type),
        packed=config.model.packing,
    )
    return EvaluationLoader(
        split.rows,
        split.lengths,
        limits,
        collate=plan.task.collate,
        count=plan.task.count if labelled else lambda batch: 0,
        device=accelerator.device,
        process_index=accelerator.process_index if labelled else 0,
        num_workers=num_workers,
    )


# ------------------------------------------------------------------------------------------ values the config implies


def _batch_size(config: Config, num_processes: int) -> int:
    batch = config.batch
    if batch.size is not None:
        return batch.size
    assert batch.per_device is not None and batch.accumulate is not None
    return batch.per_device * batch.accumulate * num_processes


def _rows_judged_at_once(config: Config, plan: RunPlan, accelerator: Accelerator) -> int | None:
    """Rows without tokens have no budget of them: as many as training has in one microbatch. None: a budget says it."""
    if plan.task.has_tokens:
        return None
    return config.batch.per_device or math.ceil(
        _batch_size(config, accelerator.num_processes) / accelerator.num_processes
    )


def _num_workers(config: Config, accelerator: Accelerator) -> int:
    """Processes that prepare batches: beside a GPU they are ready when it is; on a CPU they would take its cores."""
    if config.data.num_workers != "auto":
        return int(config.data.num_workers)
    return 0 if accelerator.device.type == "cpu" else _WORKERS_BESIDE_A_GPU


def _window(config: Config) -> int | None:
    """Batches whose rows are sorted by length among each other; None: batches are a plain shuffle."""
    return (config.batch.window or _WINDOW) if config.batch.order == "window" else None


def _token_budget(setting: Any, plan: RunPlan, device: torch.device, *, training: bool) -> int | None:
    """Padded tokens of one microbatch at most; None: no limit."""
    if setting != "auto":
        return setting  # type: ignore[no-any-return]
    if not plan.task.has_tokens:
        return None  # its rows have no tokens: batch.per_device limits them
    logits_per_token = plan.task.logits_per_token(plan.inputs.model_config)
    return choose_token_budget(device.type, training=training, logits_per_token=logits_per_token)


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
        told = None if plan.inputs.tokenizer is None else describe_tokenizer(plan.inputs.tokenizer)
        tokens = digest(loader.plan.lengths.tobytes(), json.dumps(told, sort_keys=True).encode())
    columns = {} if plan.inputs.data is None else dict(plan.inputs.data.columns.names)
    # The exported record names the task itself, and columns are the same whether they are named or not.
    values = public_values(config) | {"task.name": config.task.name, "data.columns": columns}
    return {
        "data": data,
        "tokens": tokens,
        "data.label_names": plan.inputs.label_names,
        "batch.size": batch_size,
    } | {name: values[name] for name, key in KEYS.items() if key.on_resume == "refused"}


def _fingerprint_own_code(config: Config) -> dict[str, str]:
    """What the user wrote: a checksum by the key that names it, so that a run tells when it was changed."""
    values = values_of(config)
    found = {name: locate(str(values[name]), place=name) for name in _NAMES_OF_CODE if "." in str(values[name])}
    own = {f"{name} (its code)": fingerprint_own(component) for name, component in found.items()}
    return {name: told for name, told in own.items() if told is not None}
